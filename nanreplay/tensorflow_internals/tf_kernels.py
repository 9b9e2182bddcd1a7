"""Private names of TensorFlow for its registry of kernels: what which device can run.

No public name lists kernels; to run an op and catch the error would cost a call of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

from tensorflow.python.framework import kernels as _kernels

Limits: TypeAlias = Mapping[str, frozenset[int]]
"""The types (DataType enums) that a kernel is limited to, by attribute of its op."""


def has_kernel(op_type: str, types: Mapping[str, Sequence[int]]) -> bool:
    """Whether the CPU has a kernel of `op_type` for these types (DataType enums, by attribute)."""
    return any(_covers(limits, types) for limits in _cpu_kernels(op_type))


@cache
def _cpu_kernels(op_type: str) -> list[Limits]:
    """A kernel registered for the device type DEFAULT serves every device."""
    return [*kernel_limits(op_type, "CPU"), *kernel_limits(op_type, "DEFAULT")]


def kernel_limits(op_type: str, device: str) -> list[Limits]:
    """What each kernel of an op for a device type is limited to.

    A kernel with a label serves only nodes that ask for it by that label (`_kernel`), as those of
    oneDNN do; no trace holds such nodes.
    """
    kernels = _kernels.get_registered_kernels_for_op(op_type).kernel
    limits = []
    for kernel in kernels:
        if kernel.device_type == device and not kernel.label:
            limits.append(_allowed_types(kernel))
    return limits


def _allowed_types(kernel: Any) -> Limits:
    allowed = {}
    for constraint in kernel.constraint:
        allowed[constraint.name] = frozenset(constraint.allowed_values.list.type)
    return allowed


def _covers(limits: Limits, types: Mapping[str, Sequence[int]]) -> bool:
    return all(set(types.get(name, ())) <= allowed for name, allowed in limits.items())


def gpu_only_types(op_type: str) -> Iterator[dict[str, int]]:
    """Yield the types, by attribute, for which GPUs have a kernel of an op and the CPU has none.

    Only a TensorFlow that was built for GPUs knows of their kernels, with or without a GPU.
    """
    seen: set[tuple[tuple[str, int], ...]] = set()
    for limits in kernel_limits(op_type, "GPU"):
        for kinds in itertools.product(*(sorted(allowed) for allowed in limits.values())):
            types = dict(zip(limits, kinds, strict=True))
            key = tuple(sorted(types.items()))
            if key not in seen and not has_kernel(op_type, {k: (v,) for k, v in types.items()}):
                seen.add(key)
                yield types


def gpu_op_types() -> list[str]:
    """Return the types of all ops that have a kernel for GPUs, sorted."""
    kernels = _kernels.get_all_registered_kernels().kernel
    return sorted({kernel.op for kernel in kernels if kernel.device_type == "GPU"})
