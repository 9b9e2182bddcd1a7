"""Which elements of an op's inputs influence which elements of its outputs. Pure numpy; `rules` chooses among these."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.arrays import Mask
from nanreplay.tensors import as_array

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
    squashed = tuple(axis for axis, (has, wants) in enumerate(zip(mask.shape, shape, strict=True)) if wants == 1 < has)
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
