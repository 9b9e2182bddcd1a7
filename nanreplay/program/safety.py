"""Whether a program may run unasked: what its ops reach and how large it becomes.

Checked before anything is replayed, because a capture comes from elsewhere and TensorFlow graphs
are programs. The lists below say what each op reaches beyond tensors; ops that do are refused
unless the user trusts the capture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import tensorflow as tf

from nanreplay.errors import UnsafeProgramError, UnsupportedOpError
from nanreplay.program.graph_nodes import functions_by_name, mentioned_functions
from nanreplay.program.op_sizes import check_constant_sizes
from nanreplay.tensorflow_internals.tf_eager import op_definition

# What each op of TensorFlow reaches: nothing but tensors, or files, the network, Python, other
# code, devices. An op in no list is refused as unknown, so that an op of a later TensorFlow runs
# only after somebody has looked at it.

PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
"""Ops that call back into the Python process that traced the program.

No replay runs them, trusted or not.
"""
WRITTEN_FILES = frozenset("Save SaveV2 SaveSlices MergeV2Checkpoints WriteFile".split())
"""Ops that write files and give nothing back: checkpoints of a step.

Every replay leaves them out, so they may be there.
"""
_OF_TENSORFLOW = "what only TensorFlow itself may use"
_REACHES = {
    "files": r"""
        ReadFile | WriteFile | MatchingFiles | .*Reader(V2)? | Reader[A-Z].* | RecordInput
      | ImmutableConst | Save | SaveV2 | SaveSlices | (DTensor)?RestoreV2 | Restore | RestoreSlice
      | MergeV2Checkpoints | DistributedSave | LoadAndRemapMatrix | GenerateVocabRemapping
      | InitializeTableFromTextFile(V2)? | FileSystemSetConfiguration
      | DecodeProtoV2 | EncodeProto | CalibrationStatisticsSaver | DumpTensor
      | (Experimental)?(TextLine|TFRecord|FixedLengthRecord|CSV|Sql|LMDB|MatchingFiles|Snapshot
            |SnapshotChunk|Cache|ListSnapshotChunks|Save|Load|Register)Dataset(V\d)?
      | SnapshotDatasetReader | SnapshotNestedDatasetReader | (Experimental)?DatasetToTFRecord
      | CreateSummary(File|Db)Writer | SummaryWriter | StatsAggregatorSetSummaryWriter
    """,
    "network": r"""
        Debug(Identity(V\d)?|NanCount|NumericSummary) | Copy | CopyHost   # they send to URLs
      | Rpc.* | DeleteRpcFutureResource | _?(Host)?Send | _?(Host)?Recv
      | Xla(Send|Recv|SendToHost|RecvFromHost).* | RemoteCall
      | DataServiceDataset(V\d)? | _Nccl.* | .*Worker(Heartbeat).*
    """,
    "code that the check cannot see": r"""
        DeserializeIterator | DatasetFromGraph | XlaCallModule | XlaCustomCall(V2)?
      | MlirPassthroughOp | XlaHostCompute | _Xla.* | TfLiteSubgraphExecute
    """,
    "the process": r"Abort",
    "devices": r"""
        _?TPU.*
      | .*(TPUEmbedding|DistributedTPU|GlobalTPU|TPUSystem|PhysicalReplica|StatisticsInFdo).*
      | .*GlobalCoreArray.*
      | (ExecuteTPU|CollateTPU).* | GetTpuTaskId | TpuHandleToProtoKey | DTensorSetGlobalTPUArray
    """,
    _OF_TENSORFLOW: (r"_(?!Arg|Retval|EagerConst|ListToArray|ArrayToList|SwitchN|If|While).*"),
}
_COMPILED = {reach: re.compile(pattern, re.VERBOSE) for reach, pattern in _REACHES.items()}


@cache
def reach_of(op_type: str) -> str | None:
    """What an op reaches beyond tensors, in words.

    None for a harmless op, "unknown" for one that nobody has looked at.
    """
    for reach, pattern in _COMPILED.items():
        if pattern.fullmatch(op_type):
            return reach
    return None if op_type in harmless_ops() or op_type in PYTHON_OPS else "unknown"


@cache
def harmless_ops() -> frozenset[str]:
    """Ops that reach nothing but tensors, variables and the resources of their own program."""
    path = files("nanreplay.program").joinpath("harmless_ops.txt")
    return frozenset(path.read_text(encoding="utf-8").split())


# How the functions of a program call each other. A graph of a few kilobytes never ends when a
# function calls itself, and hardly ever when each of 60 functions calls the next one twice: 2^60
# calls. So depth and size are counted without running anything.

MAX_CALL_DEPTH = 100
"""Calls within calls. Nested layers, loops and branches of real trainings stay below 20."""
MAX_INLINED_OPS = 50_000_000
"""Ops of a program with every call replaced by the ops of its function."""


def check_calls(graph: Any) -> None:
    """Refuse functions that call themselves, and calls that double until a program never ends.

    Args:
        graph: A GraphDef.

    Raises:
        UnsafeProgramError: They do.
    """
    functions = functions_by_name(graph)
    calls: dict[str, list[str]] = {}
    for name, function in functions.items():
        mentioned = mentioned_functions(function.node_def)
        calls[name] = [callee for callee in mentioned if callee in functions]
    # Of each function: its ops with every call written out, and its calls within calls. Callees
    # come first, so that the numbers of what a function calls are known.
    sizes: dict[str, int] = {}
    depths: dict[str, int] = {}
    for name in _callees_first(calls):
        n_own_ops = len(functions[name].node_def)
        sizes[name] = n_own_ops + sum(sizes[callee] for callee in calls[name])
        depths[name] = 1 + max((depths[callee] for callee in calls[name]), default=0)
    called = [callee for callee in mentioned_functions(graph.node) if callee in functions]
    if max((depths[callee] for callee in called), default=0) > MAX_CALL_DEPTH:
        raise UnsafeProgramError(
            "The program is refused: its functions call each other more than "
            f"{MAX_CALL_DEPTH} deep."
        )
    if len(graph.node) + sum(sizes[callee] for callee in called) > MAX_INLINED_OPS:
        raise UnsafeProgramError(
            "The program is refused: its calls, written out, are more than "
            f"{MAX_INLINED_OPS:,} ops."
        )


def _callees_first(calls: Mapping[str, list[str]]) -> Iterator[str]:
    """The functions, each after those that it calls.

    A depth-first search without recursion, which a hostile program could exhaust. `pending` is the
    chain of calls from the root to the current function, each with the calls that are left of it;
    `above` holds the same functions, so that a call of one of them is a cycle. With
    `{"f": ["g", "h"], "g": ["h"], "h": []}` it yields h, g, f.
    """
    done: set[str] = set()
    for root in calls:
        if root in done:
            continue
        pending = [(root, iter(calls[root]))]
        above = {root}
        while pending:
            name, rest = pending[-1]
            following = next((callee for callee in rest if callee not in done), None)
            if following is None:
                pending.pop()
                above.discard(name)
                done.add(name)
                yield name
            elif following in above:
                raise UnsafeProgramError(
                    f"The program is refused: its function {following!r} calls itself, "
                    "so it may never end."
                )
            else:
                above.add(following)
                pending.append((following, iter(calls[following])))


# The check of a whole program, and the walk over its nodes.


def check_graph(graph: Any, *, trust: bool = False, also: frozenset[str] = frozenset()) -> None:
    """Refuse a program with ops that reach beyond tensors, in its main graph or in any function.

    Args:
        graph: A GraphDef or its bytes.
        trust: Let unsafe ops pass. Ops that this TensorFlow lacks never do, nor functions that call
            themselves.
        also: Types of ops that pass as well.

    Raises:
        UnsafeProgramError: Ops that touch files, the network, processes or foreign code; functions
            that never end.
        UnsupportedOpError: An op that this TensorFlow does not know.
        MemoryLimitError: It holds a tensor that is larger than the memory it may take.
    """
    parsed = parse_graph(graph)
    library = functions_by_name(parsed)
    for name in library:
        if op_definition(name) is not None:
            raise UnsafeProgramError(
                f"The program is broken: its function {name!r} has the name of an op."
            )
    unsafe: dict[str, None] = {}  # a set that keeps its order
    for function, node in all_nodes(parsed):
        if node.op in library or node.op in also or writes_files(node):
            continue
        if op_definition(node.op) is None:
            raise UnsupportedOpError(node.op, node.name, "this TensorFlow has no such op")
        reach = reach_of(node.op)
        if reach is not None:
            inside = f" in function {function!r}" if function else ""
            unsafe[f"{node.op} {node.name!r}{inside} ({reach})"] = None
    if unsafe and not trust:
        raise UnsafeProgramError(_refusal(list(unsafe)))
    check_calls(parsed)
    check_constant_sizes(all_nodes(parsed))


def _refusal(unsafe: list[str]) -> str:
    shown = ", ".join(unsafe[:5])
    if len(unsafe) > 5:
        shown += f" and {len(unsafe) - 5} more"
    if all(_OF_TENSORFLOW in each for each in unsafe):
        return (
            f"The program holds ops that no trace of a step has: {shown}. TensorFlow puts them "
            "into graphs as it runs them; record the training step itself."
        )
    return (
        f"The program holds ops that reach beyond tensors: {shown}. "
        "Pass trust only for a capture of your own."
    )


def writes_files(node: Any) -> bool:
    """Whether a node writes files and gives nothing back: a checkpoint, `tf.print` into a file."""
    if node.op == "PrintV2":
        return bool(node.attr["output_stream"].s.startswith(b"file://"))
    return node.op in WRITTEN_FILES


def python_ops(graph: Any) -> list[str]:
    """Return the names of ops that call Python: `op`, or `function::op` in a library function.

    A program that holds some can be replayed only when their recorded outputs are given (as feeds,
    or by the interpreter's `on_error`); the interpreter never runs them.
    """
    names = []
    for function, node in all_nodes(parse_graph(graph)):
        if node.op in PYTHON_OPS:
            names.append(f"{function}::{node.name}" if function else node.name)
    return names


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


def copied_graph(graph: Any) -> Any:
    """Return a copy of a GraphDef, or of its bytes, that may be changed."""
    copied = tf.compat.v1.GraphDef()
    copied.CopyFrom(parse_graph(graph))
    return copied


def all_nodes(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield (function, node) over a GraphDef and its library; "" stands for the main graph."""
    for node in graph.node:
        yield "", node
    for function in graph.library.function:
        for node in function.node_def:
            yield function.signature.name, node
