"""The rule of each op type: how its output elements depend on its input elements. Pure numpy.

Ops that move data need no rule: they are run once more on numbered elements. Ops without a rule get `Everything`,
which `blame` makes sharper by running the op again with cleaned inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.tensor_stats import Mask, dtype_name, is_float, is_opaque, words
from nanreplay.capture.arrays import as_array
from nanreplay.replay.provenance import OpEvent

# Which elements of an op's inputs influence which elements of its outputs. Pure numpy; `rules`
# chooses among these.

Labels: TypeAlias = tuple[Hashable, ...]
"""One label an axis, as in an einsum: what is equal in input and output goes together."""
Shape: TypeAlias = tuple[int, ...]


class Influence(Protocol):
    """The element-wise dependences of one execution of an op."""

    @property
    def exact(self) -> bool:
        """Whether it is known which elements depend on which; False when everything may depend on everything."""
        ...

    @property
    def in_shapes(self) -> Sequence[Shape]:
        """Shape of each input."""
        ...

    def forth(self, i: int, k: int, mask: Mask) -> Mask:
        """Return the elements of output k that the marked elements of input i influence."""
        ...

    def back(self, i: int, k: int, mask: Mask) -> Mask:
        """Return the elements of input i that influence the marked elements of output k."""
        ...


@dataclass(frozen=True, slots=True)
class ByLabels:
    """Element-wise ops, reductions, products and row-wise ops: axes with one label go together."""

    inputs: Sequence[Labels | None]
    """Labels of each input; None for one that says only how (an axis, a shape)."""
    outputs: Sequence[Labels | None]
    in_shapes: Sequence[Shape]
    out_shapes: Sequence[Shape]
    exact: bool = True

    def forth(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        source, target = self.inputs[i], self.outputs[k]
        if source is None or target is None:
            return np.zeros(self.out_shapes[k], bool)
        return project(mask, source, target, self.out_shapes[k])

    def back(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        source, target = self.outputs[k], self.inputs[i]
        if source is None or target is None:
            return np.zeros(self.in_shapes[i], bool)
        return project(mask, source, target, self.in_shapes[i])


def project(mask: Mask, source: Labels, target: Labels, shape: Shape) -> Mask:
    """Carry a mask over axes labelled `source` to axes labelled `target` of the given shape."""
    gone = tuple(axis for axis, label in enumerate(source) if label not in target)
    if gone:
        mask = as_array(mask.any(axis=gone))
        source = tuple(label for label in source if label in target)
    mask = mask.transpose([source.index(label) for label in target if label in source])
    mask = mask[tuple(slice(None) if label in source else None for label in target)]
    squashed = tuple(
        axis
        for axis, (has, wants) in enumerate(zip(mask.shape, shape, strict=True))
        if wants == 1 < has
    )
    if squashed:
        mask = as_array(mask.any(axis=squashed, keepdims=True))
    return np.broadcast_to(mask, shape)


@dataclass(frozen=True, slots=True)
class BySources:
    """Ops that only move data, known by what they did to numbered elements."""

    sources: Sequence[NDArray[np.int64]]
    """For each output, the number of the element that came there, 0 for none (padding)."""
    offsets: Sequence[int | None]
    """Elements of input i are numbered from `offsets[i]`; None for an input that is not data."""
    in_shapes: Sequence[Shape]
    exact: bool = True

    def forth(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        offset, source = self.offsets[i], self.sources[k]
        if offset is None:
            return np.zeros(source.shape, bool)
        inside = (source >= offset) & (source < offset + mask.size)
        moved = np.zeros(source.shape, bool)
        moved[inside] = mask.reshape(-1)[source[inside] - offset]
        return moved

    def back(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        offset, shape = self.offsets[i], self.in_shapes[i]
        found = np.zeros(int(np.prod(shape, dtype=np.int64)), bool)
        if offset is not None:
            numbers = self.sources[k][mask]
            found[numbers[(numbers >= offset) & (numbers < offset + found.size)] - offset] = True
        return found.reshape(shape)


@dataclass(frozen=True, slots=True)
class Copies:
    """Ops that hand input k on as output k, in another shape at most."""

    in_shapes: Sequence[Shape]
    out_shapes: Sequence[Shape]
    exact: bool = True

    def forth(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        return mask.reshape(self.out_shapes[k]) if i == k else np.zeros(self.out_shapes[k], bool)

    def back(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        return mask.reshape(self.in_shapes[i]) if i == k else np.zeros(self.in_shapes[i], bool)


@dataclass(frozen=True, slots=True)
class Everything:
    """An op without a rule: every element may depend on every other."""

    in_shapes: Sequence[Shape]
    out_shapes: Sequence[Shape]
    exact: bool = False

    def forth(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        return np.full(self.out_shapes[k], bool(mask.any()))

    def back(self, i: int, k: int, mask: Mask) -> Mask:
        """See `Influence`."""
        return np.full(self.in_shapes[i], bool(mask.any()))


# --- bisect.rules

Execute: TypeAlias = Callable[[OpEvent, Sequence[Any]], Sequence[Any]]
ELEMENTWISE = words(
    "Abs Acos Acosh Add AddN AddV2 AccumulateNV2 Angle Asin Asinh Atan Atan2 Atanh BesselI0e BesselI1e Betainc Cast "
    "Ceil CheckNumerics CheckNumericsV2 ClipByValue ComplexAbs Complex Conj Cos Cosh Digamma Div DivNoNan Elu EluGrad "
    "Erf Erfc Erfinv Exp Expm1 Floor FloorDiv FloorMod Igamma IgammaGradA Igammac Imag Inv InvGrad LeakyRelu "
    "LeakyReluGrad Lgamma Log Log1p Maximum Minimum Mod Mul MulNoNan Ndtri Neg NextAfter Polygamma Pow Real RealDiv "
    "Reciprocal ReciprocalGrad Relu Relu6 Relu6Grad ReluGrad Rint Round Rsqrt RsqrtGrad Selu SeluGrad Sigmoid "
    "SigmoidGrad Sign Sin Sinh Softplus SoftplusGrad Softsign SoftsignGrad Sqrt SqrtGrad Square SquaredDifference Sub "
    "Tan Tanh TanhGrad TruncateDiv TruncateMod Xdivy Xlog1py Xlogy Zeta _MklSwish"
)
"""Ops whose output element depends on the (broadcast) input elements at its own index."""
REDUCTIONS = words("Sum Mean Max Min Prod EuclideanNorm")
ROWWISE = frozenset({"Softmax", "LogSoftmax"})
ACCUMULATIONS = frozenset({"Cumsum", "Cumprod", "CumulativeLogsumexp"})
COPIES = words("Identity IdentityN StopGradient PreventGradient Snapshot EnsureShape Reshape")
MOVEMENTS = COPIES | words(
    "BatchToSpace BatchToSpaceND BroadcastTo Concat ConcatV2 DepthToSpace Diag DiagPart DynamicPartition DynamicStitch "
    "ExpandDims Fill Gather GatherNd GatherV2 MatrixBandPart MatrixDiag MatrixDiagPart MatrixDiagPartV2 "
    "MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3 MirrorPad Pack Pad PadV2 "
    "ParallelDynamicStitch Reverse ReverseSequence ReverseV2 Roll Select SelectV2 Slice SpaceToBatch SpaceToBatchND "
    "SpaceToDepth Split SplitV Squeeze StridedSlice StridedSliceGrad TensorScatterUpdate Tile Transpose Unpack"
)
"""Ops whose output elements are copies of input elements (or padding)."""
BATCHED = words(
    "Conv Conv1D Conv2D Conv3D DepthwiseConv2dNative AvgPool AvgPool3D MaxPool MaxPool3D MaxPoolGrad MaxPool3DGrad "
    "ResizeBilinear ResizeNearestNeighbor ResizeBicubic LRN"
)
"""Ops that treat each entry of axis 0 of their first input (and of others of its rank) by itself."""
_INT64 = 9


def influence_of(event: OpEvent, execute: Execute) -> Influence:
    """Return the element-wise dependences of one execution of an op.

    Args:
        event: The execution.
        execute: Runs the event's kernel on other inputs.
    """
    in_shapes = [_shape(value) for value in event.inputs]
    out_shapes = [_shape(value) for value in event.outputs]
    try:
        found = _by_rule(event, execute, in_shapes, out_shapes)
    except Exception:  # a kernel refused numbered elements, or a shape is not what the rule expects
        found = None
    return found or Everything(in_shapes, out_shapes)


def _by_rule(
    event: OpEvent, execute: Execute, in_shapes: list[Shape], out_shapes: list[Shape]
) -> Influence | None:
    if event.type in COPIES:
        return Copies(in_shapes, out_shapes)
    if event.type in MOVEMENTS:
        return _moved(event, execute, in_shapes)
    rule = _RULES.get(event.type)
    if rule is None:
        return None
    inputs, outputs = rule(event, in_shapes, out_shapes)
    return ByLabels(inputs, outputs, in_shapes, out_shapes)


def _shape(value: Any) -> Shape:
    return () if is_opaque(value) else tuple(int(size) for size in value.shape)


def _moved(event: OpEvent, execute: Execute, in_shapes: list[Shape]) -> BySources:
    offsets: list[int | None] = []
    numbered: list[Any] = []
    following = 1
    for value, shape in zip(event.inputs, in_shapes, strict=True):
        if not is_float(value):
            offsets.append(None)
            numbered.append(value)
            continue
        size = int(np.prod(shape, dtype=np.int64))
        offsets.append(following)
        numbered.append(np.arange(following, following + size, dtype=np.int64).reshape(shape))
        following += size
    numbered_event = dataclasses.replace(event, attrs=_with_int64(event))
    return BySources(
        [as_array(out) for out in execute(numbered_event, numbered)], offsets, in_shapes
    )


def _with_int64(event: OpEvent) -> dict[str, Any]:
    """Return the attributes with the data's dtype exchanged, so that a number a element fits exactly."""
    data = next(value for value in event.outputs if is_float(value))
    kind = int(data.dtype.as_datatype_enum)
    return {
        name: type(value)(type=_INT64) if value.HasField("type") and value.type == kind else value
        for name, value in event.attrs.items()
    }


def _axes(rank: int, out_rank: int | None = None) -> Labels:
    """Labels of a tensor that is broadcast to `out_rank` axes from the right."""
    return tuple(range((out_rank or rank) - rank, out_rank or rank))


Rule: TypeAlias = Callable[
    [OpEvent, list[Shape], list[Shape]], tuple[Sequence[Labels | None], Sequence[Labels | None]]
]


def _elementwise(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> Any:
    rank = len(outs[0])
    return [_axes(len(shape), rank) for shape in ins], [_axes(len(shape)) for shape in outs]


def _reduction(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> Any:
    rank = len(ins[0])
    reduced = (
        {int(axis) % rank for axis in as_array(event.inputs[1]).reshape(-1)} if rank else set()
    )
    kept = _flag(event, "keep_dims")
    out = tuple(
        ("reduced", a) if a in reduced else a for a in range(rank) if kept or a not in reduced
    )
    return [_axes(rank), None], [out]


def _to_scalar(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> Any:
    return [_axes(len(shape)) for shape in ins], [()]


def _rowwise(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> Any:
    rank = len(ins[0])
    return [_axes(rank)], [(*range(rank - 1), "row")]


def _accumulation(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> Any:
    rank = len(ins[0])
    axis = int(as_array(event.inputs[1])) % rank
    return [_axes(rank), None], [tuple("along" if a == axis else a for a in range(rank))]


def _cross_entropy(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> Any:
    labels = ("row", "class") if len(ins[1]) == 2 else ("row",)
    return [("row", "class"), labels], [("row",), ("row", "other class")]


def _matmul(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> Any:
    rank = len(outs[0])
    first = _flag(event, "transpose_a") or _flag(event, "adj_x")
    second = _flag(event, "transpose_b") or _flag(event, "adj_y")
    a = ("inner", "row") if first else ("row", "inner")
    b = ("column", "inner") if second else ("inner", "column")
    batch = [_axes(len(shape) - 2, rank - 2) if len(shape) > 2 else () for shape in ins[:2]]
    rest = [("column",)] * (len(ins) - 2)
    return [(*batch[0], *a), (*batch[1], *b), *rest], [(*range(rank - 2), "row", "column")]


def _bias(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> Any:
    rank = len(outs[0])
    return [_axes(rank), (1 if _channels_first(event) else rank - 1,)], [_axes(rank)]


def _bias_gradient(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> Any:
    rank = len(ins[0])
    return [_axes(rank)], [(1 if _channels_first(event) else rank - 1,)]


def _batched(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> Any:
    rank = len(ins[0])
    inputs: list[Labels | None] = [
        ("sample", *(f"in{i}.{a}" for a in range(1, len(shape)))) if i == 0 or _follows(event, shape, rank) else
        tuple(f"in{i}.{a}" for a in range(len(shape)))
        for i, shape in enumerate(ins)
    ]  # fmt: skip
    return inputs, [("sample", *(f"out.{a}" for a in range(1, len(shape)))) for shape in outs]


def _follows(event: OpEvent, shape: Shape, rank: int) -> bool:
    return event.type.endswith("Grad") and len(shape) == rank


def _einsum(event: OpEvent, ins: list[Shape], outs: list[Shape]) -> Any:
    equation = event.attrs["equation"].s.decode().replace(" ", "")
    terms, result = equation.split("->")
    parts = terms.split(",")
    longest = max(
        len(shape) - len(part.replace("...", "")) for part, shape in zip(parts, ins, strict=True)
    )

    def expand(term: str, shape: Shape) -> Labels:
        before, dots, after = term.partition("...")
        extra = len(shape) - len(before) - len(after) if dots else 0
        labels = (*before, *range(longest - extra, longest), *after)
        if len(set(labels)) < len(labels):
            raise ValueError("A diagonal has no label of its own.")
        return labels

    return [expand(p, s) for p, s in zip(parts, ins, strict=True)], [expand(result, outs[0])]


def _flag(event: OpEvent, name: str) -> bool:
    return bool(event.attrs[name].b) if name in event.attrs else False


def _channels_first(event: OpEvent) -> bool:
    return "data_format" in event.attrs and event.attrs["data_format"].s.startswith(b"NC")


_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(ROWWISE, _rowwise),
    **dict.fromkeys(ACCUMULATIONS, _accumulation),
    **dict.fromkeys(BATCHED, _batched),
    **dict.fromkeys(
        ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "_FusedMatMul"), _matmul
    ),
    **dict.fromkeys(
        ("SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"), _cross_entropy
    ),
    "BiasAdd": _bias,
    "BiasAddGrad": _bias_gradient,
    "Einsum": _einsum,
    "L2Loss": _to_scalar,
}


def is_data(value: Any) -> bool:
    """Return whether a tensor holds numbers (not a handle, a container or text)."""
    return dtype_name(value) not in ("resource", "variant", "string")
