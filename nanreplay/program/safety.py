"""Whether a program may run unasked: what its ops reach, how its functions call each other, how large its tensors become.

Checked before anything is replayed. A capture comes from elsewhere, and TensorFlow graphs are programs. `op_classes` says
what each op reaches; this module keeps those out that reach beyond tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import tensorflow as tf

from nanreplay.errors import UnsafeProgramError, UnsupportedOpError
from nanreplay.program.op_sizes import check_constant_sizes
from nanreplay.tensorflow_internals.tf_eager import op_definition

# What each op of TensorFlow reaches: nothing but tensors, or files, the network, Python, other
# code, devices.

PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
"""Ops that call back into the Python process that traced the program. No replay runs them, trusted or not."""
WRITTEN_FILES = frozenset("Save SaveV2 SaveSlices MergeV2Checkpoints WriteFile".split())
"""Ops that write files and give nothing back: checkpoints of a step. Every replay leaves them out, so they may be there."""
_REACHES = {
    "files": r"""
        ReadFile | WriteFile | MatchingFiles | .*Reader(V2)? | Reader[A-Z].* | RecordInput | ImmutableConst
      | Save | SaveV2 | SaveSlices | (DTensor)?RestoreV2 | Restore | RestoreSlice | MergeV2Checkpoints | DistributedSave
      | LoadAndRemapMatrix | GenerateVocabRemapping | InitializeTableFromTextFile(V2)? | FileSystemSetConfiguration
      | DecodeProtoV2 | EncodeProto | CalibrationStatisticsSaver | DumpTensor
      | (Experimental)?(TextLine|TFRecord|FixedLengthRecord|CSV|Sql|LMDB|MatchingFiles|Snapshot|SnapshotChunk|Cache
            |ListSnapshotChunks|Save|Load|Register)Dataset(V\d)? | SnapshotDatasetReader | SnapshotNestedDatasetReader
      | (Experimental)?DatasetToTFRecord | CreateSummary(File|Db)Writer | SummaryWriter
      | StatsAggregatorSetSummaryWriter
    """,
    "network": r"""
        Debug(Identity|NanCount|NumericSummary)(V\d)? | Copy | CopyHost                # they send to URLs
      | Rpc.* | DeleteRpcFutureResource | _?(Host)?Send | _?(Host)?Recv | Xla(Send|Recv|SendToHost|RecvFromHost).*
      | RemoteCall | DataServiceDataset(V\d)? | _?Nccl.* | .*Worker(Heartbeat).*
    """,
    "code that the check cannot see": r"""
        DeserializeIterator | DatasetFromGraph | XlaCallModule | XlaCustomCall(V2)? | MlirPassthroughOp
      | XlaHostCompute | _Xla.* | TfLiteSubgraphExecute
    """,
    "the process": r"Abort",
    "devices": r"""
        _?TPU.* | .*(TPUEmbedding|DistributedTPU|GlobalTPU|TPUSystem|PhysicalReplica|StatisticsInFdo|GlobalCoreArray).*
      | (ExecuteTPU|CollateTPU).* | GetTpuTaskId | TpuHandleToProtoKey | DTensorSetGlobalTPUArray
    """,
    "what only TensorFlow itself may use": r"_(?!Arg|Retval|EagerConst|ListToArray|ArrayToList|SwitchN|If|While).*",
}
_COMPILED = {reach: re.compile(pattern, re.VERBOSE) for reach, pattern in _REACHES.items()}


@cache
def reach_of(op_type: str) -> str | None:
    """What an op reaches beyond tensors, in words; None for a harmless one, "unknown" for one that nobody has looked at."""
    for reach, pattern in _COMPILED.items():
        if pattern.fullmatch(op_type):
            return reach
    return None if op_type in harmless_ops() or op_type in PYTHON_OPS else "unknown"


@cache
def harmless_ops() -> frozenset[str]:
    """Ops that reach nothing but tensors, variables and the resources of their own program."""
    return frozenset(
        files("nanreplay.program").joinpath("harmless_ops.txt").read_text(encoding="utf-8").split()
    )


# How the functions of a program call each other: none calls itself, and all calls written out are
# a program of sane size.

MAX_CALL_DEPTH = 100
"""Calls within calls. Nested layers, loops and branches of real trainings stay below 20."""
MAX_INLINED_OPS = 50_000_000
"""Ops of a program with every call replaced by the ops of its function."""


def check_calls(graph: Any) -> None:
    """Refuse functions that call themselves, and calls that double and double again until a program never ends.

    Args:
        graph: A GraphDef.

    Raises:
        UnsafeProgramError: They do.
    """
    functions = {function.signature.name: function for function in graph.library.function}
    calls = {
        name: [each for each in _called(function.node_def) if each in functions]
        for name, function in functions.items()
    }
    sizes: dict[str, int] = {}
    depths: dict[str, int] = {}
    for name in _callees_first(calls):
        sizes[name] = len(functions[name].node_def) + sum(sizes[each] for each in calls[name])
        depths[name] = 1 + max((depths[each] for each in calls[name]), default=0)
    called = [each for each in _called(graph.node) if each in functions]
    if max((depths[each] for each in called), default=0) > MAX_CALL_DEPTH:
        raise UnsafeProgramError(
            f"The program is refused: its functions call each other more than {DEEPEST} deep."
        )
    if len(graph.node) + sum(sizes[each] for each in called) > MAX_INLINED_OPS:
        raise UnsafeProgramError(
            f"The program is refused: its calls, written out, are more than {LARGEST:,} ops."
        )


def _called(nodes: Any) -> Iterator[str]:
    for node in nodes:
        yield node.op
        for value in node.attr.values():
            if value.HasField("func"):
                yield value.func.name
            yield from (function.name for function in value.list.func)


def _callees_first(calls: Mapping[str, list[str]]) -> Iterator[str]:
    """The functions, each after those that it calls; without recursion, which a hostile program could exhaust."""
    done: set[str] = set()
    for root in calls:
        pending, above = [(root, iter(calls[root]))] if root not in done else [], {root}
        while pending:
            name, rest = pending[-1]
            following = next((each for each in rest if each not in done), None)
            if following is None:
                pending.pop()
                above.discard(name)
                done.add(name)
                yield name
            elif following in above:
                raise UnsafeProgramError(
                    f"The program is refused: its function {following!r} calls itself, so it may never end."
                )
            else:
                above.add(following)
                pending.append((following, iter(calls[following])))


# --- program.safety

__all__ = ["PYTHON_OPS", "all_nodes", "check_graph", "parse_graph", "python_ops"]


def check_graph(graph: Any, *, trust: bool = False) -> None:
    """Refuse a program with ops that reach beyond tensors, in its main graph or in any function.

    Args:
        graph: A GraphDef or its bytes.
        trust: Let unsafe ops pass; ops that this TensorFlow lacks never do, nor functions that call themselves.

    Raises:
        UnsafeProgramError: Ops that touch files, the network, processes or foreign code; functions that never end.
        UnsupportedOpError: An op that this TensorFlow does not know.
        MemoryLimitError: It holds a tensor that is larger than the memory it may take.
    """
    parsed = parse_graph(graph)
    library = {function.signature.name for function in parsed.library.function}
    for name in library:
        if op_definition(name) is not None:
            raise UnsafeProgramError(
                f"The program is broken: its function {name!r} has the name of an op."
            )
    unsafe: dict[str, None] = {}
    for function, node in all_nodes(parsed):
        if node.op in library or node.op in WRITTEN_FILES:
            continue
        if op_definition(node.op) is None:
            raise UnsupportedOpError(node.op, node.name, "this TensorFlow has no such op")
        reach = _reach(node)
        if reach is not None:
            unsafe[
                f"{node.op} {node.name!r}"
                + (f" in function {function!r}" if function else "")
                + f" ({reach})"
            ] = None
    if unsafe and not trust:
        raise UnsafeProgramError(_refusal(list(unsafe)))
    check_calls(parsed)
    check_constant_sizes(all_nodes(parsed))


def _reach(node: Any) -> str | None:
    """What a node reaches beyond tensors. Ops of Python are not meant here; see `python_ops`."""
    if node.op == "PrintV2":
        return "files" if node.attr["output_stream"].s.startswith(b"file://") else None
    return reach_of(node.op)


def python_ops(graph: Any) -> list[str]:
    """Return the names of ops that call Python: `op`, or `function::op` in a library function.

    A program that holds some can be replayed only when their recorded outputs are given (as feeds, or by the
    interpreter's `on_error`); the interpreter never runs them.
    """
    nodes = all_nodes(parse_graph(graph))
    return [
        f"{function}::{node.name}" if function else node.name
        for function, node in nodes
        if node.op in PYTHON_OPS
    ]


def parse_graph(graph: Any) -> Any:
    """Return a GraphDef, parsing it from its bytes when need be.

    Raises:
        UnsafeProgramError: The bytes are no GraphDef.
    """
    if not isinstance(graph, bytes):
        return graph
    try:
        return tf.compat.v1.GraphDef.FromString(graph)
    except Exception as error:
        raise UnsafeProgramError(
            "The program is not a readable GraphDef; the capture is damaged."
        ) from error


def all_nodes(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield (function, node) over a GraphDef and its library; the function is "" for the main graph."""
    for node in graph.node:
        yield "", node
    for function in graph.library.function:
        for node in function.node_def:
            yield function.signature.name, node


def _refusal(unsafe: list[str]) -> str:
    shown = ", ".join(unsafe[:5]) + (f" and {len(unsafe) - 5} more" if len(unsafe) > 5 else "")
    return f"The program holds ops that reach beyond tensors: {shown}. Pass trust only for a capture of your own."
