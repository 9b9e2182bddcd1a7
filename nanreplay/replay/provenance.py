"""What the interpreter tells of each op that it runs, and where the op's values came from.

Observers of a run get an `OpEvent` for each op. Values also pass through storage: variables,
tensor lists, optionals, stacks. A variant tensor carries a *shadow*: what is known of the values
inside it. A resource carries a *key*, under which the run remembers what was written to it last.
An op that reads storage has these values in `OpEvent.via`. For example, an RNN pushes each time
step's output on a tensor list; the op that stacks the list has the ids of all of them in `via`.

Pure Python: imports no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

FeedKind: TypeAlias = Literal["batch", "variable", "constant"]
"""What a placeholder of a program is fed with."""


class ValueId(NamedTuple):
    """Identity of one tensor of one run: which op instance made it, and as which of its outputs.

    Values that are fed from outside have a negative serial.
    """

    serial: int
    output: int


class Call(NamedTuple):
    """One enclosing call of an op instance: a loop, a branch or a function."""

    function: str
    """Library function that holds the calling op; "" for the main graph."""
    op: str
    """Name of the calling op."""
    op_type: str
    """`While`, `StatelessWhile`, `If`, `StatelessIf`, `Case`, `PartitionedCall`, ..."""
    callee: str
    """Library function that was called."""
    iteration: int | None
    """Iteration from 0 for a loop (body and condition), None otherwise."""


@dataclass(frozen=True, slots=True)
class OpEvent:
    """One execution of one leaf op.

    Ops that call functions (While, If, PartitionedCall) have no event of their own.
    """

    serial: int
    """Order of execution, from 0."""
    function: str
    """Library function that holds the op; "" for the main graph."""
    name: str
    """Name of the op in its function."""
    type: str
    """Op type, e.g. `MatMul`."""
    calls: tuple[Call, ...]
    """Enclosing calls, outermost first."""
    inputs: tuple[Any, ...]
    """Input tensors (EagerTensors)."""
    input_ids: tuple[ValueId, ...]
    """Where each input came from."""
    outputs: tuple[Any, ...]
    """Output tensors (EagerTensors); empty when the op raised."""
    attrs: Mapping[str, Any]
    """The node's attributes by name (AttrValue protos)."""
    via: tuple[ValueId, ...] = ()
    """For an op that reads storage: the stored values that its outputs hold.

    Such ops are ReadVariableOp, TensorListGetItem, TensorListStack, OptionalGetValue, StackPopV2
    and the like. Empty for a variable that this run has not written yet.
    """
    error: Exception | None = None
    """What the kernel raised, or None."""


# Following values through storage; the rest of the module is for the interpreter alone.

Ids: TypeAlias = tuple[ValueId, ...]


class Held(NamedTuple):
    """One element of a container."""

    ids: Ids
    """The values it holds; several where lists were added up."""
    shadow: Any = None
    """The element's own shadow when it is a container itself."""


Shadow: TypeAlias = tuple[Held, ...]
NOTHING = Held(())


class Key(NamedTuple):
    """Identity of one resource within a run."""

    kind: str
    name: object


@dataclass(slots=True)
class Access:
    """One execution of an op that touches variants or resources."""

    type: str
    serial: int
    inputs: Sequence[Any]
    ids: Sequence[ValueId]
    shadows: Sequence[Any]
    """Shadow or key of each input, None for plain tensors."""
    node: Any
    storage: dict[Key, Ids]
    """What each resource holds, as far as this run wrote it."""

    def held(self, i: int) -> Shadow:
        """Return the shadow of input i; empty when it is unknown."""
        return _as_shadow(self.shadows[i])

    def element(self, i: int) -> Held:
        """Return input i as the element of a container."""
        return Held((self.ids[i],), self.shadows[i])

    def number(self, i: int) -> int:
        """Return the integer scalar that is input i."""
        return int(self.inputs[i])

    def numbers(self, i: int) -> list[int]:
        """Return the integers of input i."""
        return list(map(int, self.inputs[i].numpy().ravel()))


Followed: TypeAlias = tuple[Ids, dict[int, Any]]
"""`via`, and the shadow or key of each output that has one."""


def follow(access: Access) -> Followed:
    """Return where the outputs' values come from, and what the outputs hold.

    Ops without a rule of their own count as writes when they take a resource. All others are
    taken to pass on whatever went in: too many sources are found rather than one too few.
    """
    handler = _HANDLERS.get(access.type)
    if handler is not None:
        return handler(access)
    keys = []
    for shadow in access.shadows:
        if isinstance(shadow, Key):
            keys.append(shadow)
    if keys:
        return _write(access, keys)
    return _generic(access)


def union(parts: Iterable[Held]) -> Ids:
    """Return every value inside the elements, containers of containers opened, each once."""
    values: dict[ValueId, None] = {}  # a set that keeps the order
    for part in parts:
        inner = _as_shadow(part.shadow)
        values.update(dict.fromkeys(union(inner) if inner else part.ids))
    return tuple(values)


def _as_shadow(known: Any) -> Shadow:
    # a Key is a tuple too, but the identity of a resource
    return known if isinstance(known, tuple) and not isinstance(known, Key) else ()


# The rules. Each is given one execution of an op, updates the run's storage if the op writes, and
# returns what the op's outputs hold. Their table is at the end.


def _generic(a: Access) -> Followed:
    """Variants without a rule: the outputs hold whatever went in."""
    inside = union(part for i in range(len(a.ids)) for part in a.held(i))
    plain = tuple(value for value, shadow in zip(a.ids, a.shadows, strict=True) if shadow is None)
    return inside, {0: (Held(tuple(dict.fromkeys(inside + plain))),)}


def _write(a: Access, keys: Iterable[Key]) -> Followed:
    """AssignAdd, ResourceApply*, ResourceScatter*: the op makes what the variable holds then.

    It has no output, so `ValueId(serial, 0)` stands for the event.
    """
    before = tuple(value for key in keys for value in a.storage.get(key, ()))
    for key in keys:
        a.storage[key] = (ValueId(a.serial, 0),)
    return before, {}


def _assign(a: Access) -> Followed:
    a.storage[a.shadows[0]] = (a.ids[1],)
    return (), {}


def _read(a: Access) -> Followed:
    return a.storage.get(a.shadows[0], ()), {}


def _neutral(_: Access) -> Followed:
    return (), {}


def _put(value: int) -> Callable[[Access], Followed]:
    """Tables, arrays and stacks: input number `value` is one more value in the resource."""

    def put(a: Access) -> Followed:
        a.storage[a.shadows[0]] = (*a.storage.get(a.shadows[0], ()), a.ids[value])
        return (), {}

    return put


def _pop(a: Access) -> Followed:
    stack = a.storage.get(a.shadows[0], ())
    a.storage[a.shadows[0]] = stack[:-1]
    return stack[-1:], {}


def _pass(a: Access) -> Followed:
    return (), {i: shadow for i, shadow in enumerate(a.shadows) if shadow is not None}


def _handle(a: Access) -> Followed:
    """VarHandleOp: handles of the same shared name are the same variable."""
    name = a.node.attr["shared_name"].s or a.node.name
    return (), {0: Key("shared", (a.node.attr["container"].s, name))}


def _make(a: Access) -> Followed:
    """A resource that is new with each execution."""
    return (), {0: Key("made", a.serial)}


def _empty(_: Access) -> Followed:
    return (), {0: ()}


def _reserve(a: Access) -> Followed:
    return (), {0: (NOTHING,) * max(a.number(1), 0)}


def _from_tensor(a: Access) -> Followed:
    return (), {0: (a.element(0),) * int(a.inputs[0].shape[0])}


def _push(a: Access) -> Followed:
    return (), {0: (*a.held(0), a.element(1))}


def _pop_back(a: Access) -> Followed:
    held = a.held(0)
    last = held[-1] if held else NOTHING
    return union([last]), {0: held[:-1], 1: last.shadow}


def _set_item(a: Access) -> Followed:
    return (), {0: _placed(a.held(0), [a.number(1)], a.element(2))}


def _placed(held: Shadow, places: Sequence[int], element: Held) -> Shadow:
    items = list(held)
    for place in places:
        items += [NOTHING] * (place + 1 - len(items))
        items[place] = element
    return tuple(items)


def _get_item(a: Access) -> Followed:
    held, place = a.held(0), a.number(1)
    element = held[place] if 0 <= place < len(held) else NOTHING
    return union([element]), {0: element.shadow}


def _gather(a: Access) -> Followed:
    held = a.held(0)
    return union(held[i] for i in a.numbers(1) if 0 <= i < len(held)), {}


def _read_all(a: Access) -> Followed:
    return union(a.held(0)), {}


def _scatter(a: Access) -> Followed:
    # TensorListScatterV2 is told the number of elements; -1 leaves it to the indices
    size = a.number(3) if len(a.inputs) > 3 else -1
    return (), {0: _placed((NOTHING,) * max(size, 0), a.numbers(1), a.element(0))}


def _scatter_into(a: Access) -> Followed:
    return (), {0: _placed(a.held(0), a.numbers(2), a.element(1))}


def _split(a: Access) -> Followed:
    return (), {0: (a.element(0),) * len(a.numbers(2))}


def _resize(a: Access) -> Followed:
    held, size = a.held(0), a.number(1)
    return (), {0: held[:size] + (NOTHING,) * (size - len(held))}


def _concat_lists(a: Access) -> Followed:
    return (), {0: a.held(0) + a.held(1)}


def _zeros(a: Access) -> Followed:
    return (), {0: (NOTHING,) * len(a.held(0))}


def _add(a: Access) -> Followed:
    """AddN of lists, as gradients of loops do it: element i holds element i of every list."""
    lists = [a.held(i) for i in range(len(a.ids))]
    rows = []
    for i in range(max(map(len, lists), default=0)):
        rows.append(Held(union(held[i] for held in lists if i < len(held))))
    return (), {0: tuple(rows)}


def _optional(a: Access) -> Followed:
    return (), {0: tuple(a.element(i) for i in range(len(a.ids)))}


def _optional_value(a: Access) -> Followed:
    held = a.held(0)
    return union(held), {i: part.shadow for i, part in enumerate(held)}


_HANDLERS: dict[str, Callable[[Access], Followed]] = {
    "Identity": _pass,
    "IdentityN": _pass,
    "StopGradient": _pass,
    "PreventGradient": _pass,
    "ZerosLike": _zeros,
    "AddN": _add,
    "AccumulateNV2": _add,
    # variables
    "VarHandleOp": _handle,
    "AssignVariableOp": _assign,
    "ReadVariableOp": _read,
    "ResourceGather": _read,
    "ResourceGatherNd": _read,
    "VariableShape": _neutral,
    "VarIsInitializedOp": _neutral,
    "DestroyResourceOp": _neutral,
    "DisableCopyOnRead": _neutral,
    # stacks, lookup tables, tensor arrays
    "StackV2": _make,
    "StackPushV2": _put(1),
    "StackPopV2": _pop,
    "HashTableV2": _make,
    "MutableHashTableV2": _make,
    "MutableDenseHashTableV2": _make,
    "LookupTableInsertV2": _put(2),
    "LookupTableImportV2": _put(2),
    "LookupTableFindV2": _read,
    "LookupTableExportV2": _read,
    "TensorArrayV3": _make,
    "TensorArrayWriteV3": _put(2),
    "TensorArrayScatterV3": _put(2),
    "TensorArraySplitV3": _put(1),
    "TensorArrayReadV3": _read,
    "TensorArrayGatherV3": _read,
    "TensorArrayConcatV3": _read,
    # tensor lists
    "EmptyTensorList": _empty,
    "TensorListReserve": _reserve,
    "TensorListFromTensor": _from_tensor,
    "TensorListPushBack": _push,
    "TensorListPopBack": _pop_back,
    "TensorListSetItem": _set_item,
    "TensorListGetItem": _get_item,
    "TensorListGather": _gather,
    "TensorListStack": _read_all,
    "TensorListConcat": _read_all,
    "TensorListConcatV2": _read_all,
    "TensorListConcatLists": _concat_lists,
    "TensorListScatter": _scatter,
    "TensorListScatterV2": _scatter,
    "TensorListScatterIntoExistingList": _scatter_into,
    "TensorListSplit": _split,
    "TensorListResize": _resize,
    "TensorListLength": _neutral,
    "TensorListElementShape": _neutral,
    # optionals
    "OptionalNone": _empty,
    "OptionalFromValue": _optional,
    "OptionalGetValue": _optional_value,
    "OptionalHasValue": _neutral,
}
