"""What each op of TensorFlow reaches: nothing but tensors, or files, the network, Python, other code, devices.

Every op that TensorFlow registers is in one of the classes; a test names those that a new version brings. What is in
none is refused like those that reach out: an op is harmless when somebody looked at it, not when nobody did.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

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
    return frozenset(files("nanreplay.program").joinpath("harmless_ops.txt").read_text(encoding="utf-8").split())
