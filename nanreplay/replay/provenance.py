"""Following values through storage: variables, tensor lists, optionals, stacks. Used by the interpreter only.

A variant value carries a *shadow*: what is known of the values inside it. A resource carries a *key*, under which the
run remembers what was written to it last. Reads turn both into `OpEvent.via`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

# What the interpreter tells of each op it runs. Pure data: imports no TensorFlow.

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
    """One execution of one leaf op. Call-like ops (While, If, PartitionedCall) have no event of their own."""

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
    """For an op that reads storage (ReadVariableOp, TensorListGetItem/Stack/..., OptionalGetValue, StackPopV2):
    the values that had been stored there and that its outputs hold. Empty for a variable not yet written in this run."""
    error: Exception | None = None
    """What the kernel raised, or None."""


# --- replay.provenance

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
        shadow = self.shadows[i]
        return shadow if isinstance(shadow, tuple) and not isinstance(shadow, Key) else ()

    def element(self, i: int) -> Held:
        """Return input i as the element of a container."""
        return Held((self.ids[i],), self.shadows[i])

    def number(self, i: int) -> int:
        """Return the integer scalar that is input i."""
        return int(self.inputs[i])

    def numbers(self, i: int) -> list[int]:
        """Return the integers of input i."""
        return [int(n) for n in self.inputs[i].numpy().ravel()]


Followed: TypeAlias = tuple[Ids, dict[int, Any]]
"""`via`, and the shadow or key of each output that has one."""


def follow(access: Access) -> Followed:
    """Return where the outputs' values come from, and what the outputs hold."""
    handler = _HANDLERS.get(access.type)
    if handler is not None:
        return handler(access)
    keys = [shadow for shadow in access.shadows if isinstance(shadow, Key)]
    if keys:
        return _write(access, keys)
    return _generic(access)


def union(parts: Iterable[Held]) -> Ids:
    """Return every value inside the elements, containers of containers opened, each once."""
    found: dict[ValueId, None] = {}
    for part in parts:
        inner = (
            part.shadow
            if isinstance(part.shadow, tuple) and not isinstance(part.shadow, Key)
            else None
        )
        found.update(dict.fromkeys(union(inner) if inner else part.ids))
    return tuple(found)


def _generic(a: Access) -> Followed:
    """Variants without a rule: the outputs hold whatever went in."""
    inside = union(part for i in range(len(a.ids)) for part in a.held(i))
    plain = tuple(value for value, shadow in zip(a.ids, a.shadows, strict=True) if shadow is None)
    return inside, {0: (Held(tuple(dict.fromkeys(inside + plain))),)}


def _write(a: Access, keys: Iterable[Key]) -> Followed:
    """AssignAdd, ResourceApply*, ResourceScatter*: the op itself makes what the variable holds from now on.

    It has no output, so `ValueId(serial, 0)` names the event.
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
    """Tables and arrays: one more value in the resource."""

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
    return (), {
        0: Key("shared", (a.node.attr["container"].s, a.node.attr["shared_name"].s or a.node.name))
    }


def _make(a: Access) -> Followed:
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
    found = held[place] if 0 <= place < len(held) else NOTHING
    return union([found]), {0: found.shadow}


def _gather(a: Access) -> Followed:
    held = a.held(0)
    return union(held[i] for i in a.numbers(1) if 0 <= i < len(held)), {}


def _all(a: Access) -> Followed:
    return union(a.held(0)), {}


def _scatter(a: Access) -> Followed:
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
    lists = [a.held(i) for i in range(len(a.ids))]
    longest = max((len(held) for held in lists), default=0)
    rows = ([held[i] for held in lists if i < len(held)] for i in range(longest))
    return (), {0: tuple(Held(union(row)) for row in rows)}


def _optional(a: Access) -> Followed:
    return (), {0: tuple(a.element(i) for i in range(len(a.ids)))}


def _optional_value(a: Access) -> Followed:
    held = a.held(0)
    return union(held), {i: part.shadow for i, part in enumerate(held)}


_HANDLERS: dict[str, Callable[[Access], Followed]] = {
    **dict.fromkeys(("ReadVariableOp", "ResourceGather", "ResourceGatherNd"), _read),
    **dict.fromkeys(
        ("VariableShape", "VarIsInitializedOp", "DestroyResourceOp", "DisableCopyOnRead"), _neutral
    ),
    **dict.fromkeys(("OptionalHasValue", "TensorListLength", "TensorListElementShape"), _neutral),
    **dict.fromkeys(("Identity", "IdentityN", "StopGradient", "PreventGradient"), _pass),
    **dict.fromkeys(("TensorListStack", "TensorListConcat", "TensorListConcatV2"), _all),
    **dict.fromkeys(("TensorListScatter", "TensorListScatterV2"), _scatter),
    **dict.fromkeys(
        (
            "StackV2",
            "MutableHashTableV2",
            "HashTableV2",
            "MutableDenseHashTableV2",
            "TensorArrayV3",
        ),
        _make,
    ),
    **dict.fromkeys(
        ("LookupTableFindV2", "LookupTableExportV2", "TensorArrayReadV3", "TensorArrayGatherV3"),
        _read,
    ),
    **dict.fromkeys(("TensorArrayConcatV3",), _read),
    **dict.fromkeys(("TensorArrayWriteV3", "LookupTableInsertV2", "LookupTableImportV2"), _put(2)),
    **dict.fromkeys(("EmptyTensorList", "OptionalNone"), _empty),
    **dict.fromkeys(("AddN", "AccumulateNV2"), _add),
    "AssignVariableOp": _assign,
    "VarHandleOp": _handle,
    "StackPushV2": _put(1),
    "StackPopV2": _pop,
    "TensorArrayScatterV3": _put(2),
    "TensorArraySplitV3": _put(1),
    "TensorListReserve": _reserve,
    "TensorListFromTensor": _from_tensor,
    "TensorListPushBack": _push,
    "TensorListPopBack": _pop_back,
    "TensorListSetItem": _set_item,
    "TensorListGetItem": _get_item,
    "TensorListGather": _gather,
    "TensorListScatterIntoExistingList": _scatter_into,
    "TensorListSplit": _split,
    "TensorListResize": _resize,
    "TensorListConcatLists": _concat_lists,
    "ZerosLike": _zeros,
    "OptionalFromValue": _optional,
    "OptionalGetValue": _optional_value,
}
