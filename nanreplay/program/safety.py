"""Which ops of a program must not run unasked: files, network, processes, Python. Checked before anything is replayed.

A capture comes from elsewhere. TensorFlow graphs are programs; this module keeps those parts of the op registry out that
reach beyond tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from nanreplay.errors import UnsafeProgramError, UnsupportedOpError
from nanreplay.program.private_tf import op_definition

PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
"""Ops that call back into the Python process that traced the program."""

_UNSAFE = re.compile(
    r"""
    ReadFile | WriteFile | MatchingFiles | .*Reader(V2)? | Reader[A-Z].* | RecordInput | ImmutableConst     # files
  | Save | SaveV2 | SaveSlices | Restore | RestoreV2 | RestoreSlice | MergeV2Checkpoints | DistributedSave
  | LoadAndRemapMatrix | GenerateVocabRemapping | InitializeTableFromTextFile(V2)? | FileSystemSetConfiguration
  | DecodeProtoV2 | EncodeProto | CalibrationStatisticsSaver | DumpTensor
  | (Experimental)?(TextLine|TFRecord|FixedLengthRecord|CSV|Sql|LMDB|MatchingFiles|Snapshot|SnapshotChunk|Cache
        |ListSnapshotChunks|Save|Load|DataService|Register)Dataset(V\d)? | SnapshotDatasetReader
  | (Experimental)?DatasetToTFRecord | SnapshotNestedDatasetReader
  | CreateSummary(File|Db)Writer | SummaryWriter                                                            # event files
  | Debug(Identity|NanCount|NumericSummary)(V\d)? | Copy | CopyHost                                          # debug URLs
  | Rpc.* | _?(Host)?Send | _?(Host)?Recv | Xla(Send|Recv|SendToHost|RecvFromHost).* | RemoteCall           # network
  | Nccl.* | _Nccl.* | DeserializeIterator | DatasetFromGraph
  | Abort | XlaCallModule | XlaCustomCall(V2)? | XlaHostCompute | _Xla.* | TPU.*                            # processes, code
    """,
    re.VERBOSE,
)


def check_graph(graph: Any, *, trust: bool = False) -> None:
    """Refuse a program with ops that reach beyond tensors, in its main graph or in any function.

    Args:
        graph: A GraphDef or its bytes.
        trust: Let unsafe ops pass; unknown ones never do.

    Raises:
        UnsafeProgramError: Ops that touch files, the network, processes or foreign code.
        UnsupportedOpError: An op that this TensorFlow does not know.
    """
    parsed = parse_graph(graph)
    library = {function.signature.name for function in parsed.library.function}
    unsafe: dict[str, None] = {}
    for function, node in all_nodes(parsed):
        if node.op in library:
            continue
        if op_definition(node.op) is None:
            raise UnsupportedOpError(node.op, node.name, "this TensorFlow has no such op")
        if is_unsafe(node):
            unsafe[f"{node.op} {node.name!r}" + (f" in function {function!r}" if function else "")] = None
    if unsafe and not trust:
        raise UnsafeProgramError(_refusal(list(unsafe)))


def is_unsafe(node: Any) -> bool:
    """Whether a node reaches beyond tensors. Ops of Python are not meant here; see `python_ops`."""
    if node.op == "PrintV2":
        return bool(node.attr["output_stream"].s.startswith(b"file://"))
    return _UNSAFE.fullmatch(node.op) is not None


def python_ops(graph: Any) -> list[str]:
    """Return the names of ops that call Python: `op`, or `function::op` in a library function.

    A program that holds some can be replayed only when their recorded outputs are given (as feeds, or by the
    interpreter's `on_error`); the interpreter never runs them.
    """
    nodes = all_nodes(parse_graph(graph))
    return [f"{function}::{node.name}" if function else node.name for function, node in nodes if node.op in PYTHON_OPS]


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
        raise UnsafeProgramError("The program is not a readable GraphDef; the capture is damaged.") from error


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
