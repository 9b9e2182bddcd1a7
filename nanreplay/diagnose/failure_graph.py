"""Questions about the ops of a failing step: what made a value, whether it is a variance, a mask, a weight. Imports no TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nanreplay.bisect.failing_step import Scene
from nanreplay.bisect.influence import COPIES
from nanreplay.bisect.judge import BACKWARD
from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.tensor_stats import TensorStat, words
from nanreplay.replay.provenance import ValueId

_CARRIERS = COPIES | words(
    "BroadcastTo Cast ExpandDims Fill GatherV2 OptionalGetValue Pack Real ReadVariableOp Slice Squeeze StackPopV2 StridedSlice "
    "TensorListGetItem TensorListStack Tile Transpose"
)
"""Ops that hand on (some of) one value."""
_CHOOSERS = words("Select SelectV2 GatherNd GatherV2")
_SUMS = words("Sum Mean")
SEGMENTS = words(
    "SegmentSum SegmentSumV2 UnsortedSegmentSum SegmentMean SparseSegmentSum SparseSegmentMean Bincount DenseBincount "
    "MatMul BatchMatMulV2 BatchMatMul Einsum"
)
"""Ops that sum up groups of rows."""
_COUNTS = words("Size Prod Shape")
_SIGNED_SCOPES = re.compile(
    r"(^|/)(moments|reduce_variance|reduce_std|variance|batchnorm|weighted_moments)(_\d+)?/"
)


class Graph:
    """One failing step, as a graph of the op executions in it."""

    def __init__(self, scene: Scene) -> None:
        """Take the step as it ran."""
        self.scene = scene
        self.trace = scene.trace

    def source(self, value: ValueId) -> ValueId:
        """Return what a value is a copy, cast or part of."""
        seen: set[ValueId] = set()
        while (
            value not in seen
            and (fact := self.trace.facts.get(value.serial)) is not None
            and fact.type in _CARRIERS
        ):
            seen.add(value)
            inputs = fact.via[-1:] or fact.input_ids
            if not inputs:
                break
            value = inputs[min(1, len(inputs) - 1)] if fact.type == "Fill" else inputs[0]
        return value

    def maker(self, value: ValueId) -> Fact | None:
        """Return the op that made a value; copies, casts and parts of it are looked through. None for what is fed."""
        return self.trace.facts.get(self.source(value).serial)

    def inputs(self, fact: Fact) -> list[ValueId]:
        """Return an op's inputs, each looked through to where it was made."""
        return [self.source(value) for value in fact.input_ids]

    def makers(self, fact: Fact) -> list[Fact]:
        """Return the ops that made an op's inputs."""
        return [maker for value in fact.input_ids if (maker := self.maker(value)) is not None]

    def upstream(self, value: ValueId, depth: int) -> Iterator[Fact]:
        """Yield the ops that a value was made by, nearest first, `depth` ops back."""
        level, seen = [value], set[int]()
        for _ in range(depth):
            facts = [
                maker
                for each in level
                if (maker := self.maker(each)) is not None and maker.serial not in seen
            ]
            seen |= {fact.serial for fact in facts}
            yield from facts
            level = [each for fact in facts for each in fact.input_ids]

    def infinities(self, value: ValueId, depth: int = 6) -> Iterator[Fact]:
        """Yield the ops with infinite outputs that a value was made by, casts and constants included, nearest first."""
        level = [value]
        for _ in range(depth):
            facts = [
                fact for each in level if (fact := self.trace.facts.get(each.serial)) is not None
            ]
            facts = [fact for fact in facts if any(stat.nonfinite for stat in fact.outputs)]
            yield from facts
            level = [each for fact in facts for each in (*fact.input_ids, *fact.via)]

    def stat(self, value: ValueId) -> TensorStat | None:
        """Return the facts of a value."""
        return self.trace.stat(value)

    def is_zero(self, value: ValueId) -> bool:
        """Whether a value is zero everywhere."""
        stat = self.stat(value)
        return stat is not None and stat.minimum == stat.maximum == 0 and not stat.nonfinite

    def feed(self, value: ValueId) -> str | None:
        """Return what a value is fed from (`batch`, `variable`, `constant`), None for one that an op made."""
        return self.trace.feed(value)[0] if value.serial < 0 else None

    def depends_on_variables(self, value: ValueId, depth: int = 12) -> bool:
        """Whether a variable has an influence on a value, as far back as is looked."""
        level, seen = [self.source(value)], set[ValueId]()
        for _ in range(depth):
            if any(self.feed(each) == "variable" for each in level):
                return True
            seen |= set(level)
            facts = [
                fact for each in level if (fact := self.trace.facts.get(each.serial)) is not None
            ]
            level = [
                source
                for fact in facts
                for each in fact.input_ids
                if (source := self.source(each)) not in seen
            ]
        return False

    # Forward and backward

    def is_backward(self, fact: Fact) -> bool:
        """Whether an op belongs to the backward pass or the update."""
        return self.scene.attribution.place(fact).rank >= BACKWARD

    def forward_of(self, fact: Fact) -> list[Fact]:
        """Return the executions of the forward op whose gradient an op computes."""
        info = self.scene.attribution.info(fact)
        if info is None or not info.forward:
            return []
        return [
            other
            for other in self.trace.facts.values()
            if other.key == (info.forward_function, info.forward)
        ]

    def dropped_by(self, fact: Fact, depth: int = 6) -> Fact | None:
        """Return the `where` of the forward pass that an op's value goes into within `depth` ops, None without one."""
        level, seen = [fact.serial], {fact.serial}
        for _ in range(depth):
            users = [
                self.trace.facts[user]
                for serial in level
                for user in self.trace.consumers(serial)
                if user not in seen
            ]
            users = [user for user in users if not self.is_backward(user)]
            chooser = next((user for user in users if user.type in _CHOOSERS), None)
            if chooser is not None:
                return chooser
            seen |= {user.serial for user in users}
            level = [user.serial for user in users]
        return None

    # What a value is

    def variance(self, value: ValueId) -> Fact | None:
        """Return the mean of squared deviations that a value is (a root, a sum with an epsilon, ... of), or None."""
        for fact in self.upstream(value, 6):
            if fact.type in _SUMS and self.is_mean_of_deviations(fact):
                return fact
            if fact.type == "Sub" and self.is_difference_of_moments(fact):
                return fact
            if fact.type in _SUMS or fact.type not in _ON_THE_WAY:
                named = _SIGNED_SCOPES.search(fact.name) is not None and fact.type in _SUMS
                return fact if named else None
        return None

    def is_mean_of_deviations(self, fact: Fact) -> bool:
        """Whether a reduction sums squared differences of something from its own mean."""
        squares = self.maker(fact.input_ids[0])
        if squares is None:
            return False
        if (
            squares.type in ("RealDiv", "Mul") and len(squares.input_ids) == 2
        ):  # weights, or a count, before the sum
            inner = self.maker(squares.input_ids[0])
            if inner is not None and inner.type in ("Square", "SquaredDifference"):
                squares = inner
        if squares.type == "SquaredDifference":
            return self.is_centred(squares)
        same = squares.type == "Mul" and len(set(self.inputs(squares))) == 1
        difference = (
            self.maker(squares.input_ids[0]) if same or squares.type in ("Square", "Pow") else None
        )
        if difference is not None and difference.type == "Abs":
            difference = self.maker(difference.input_ids[0])
        return difference is not None and difference.type == "Sub" and self.is_centred(difference)

    def is_centred(self, difference: Fact) -> bool:
        """Whether one operand of a difference is a mean of the other."""
        first, second = self.inputs(difference)[:2]
        return self.is_mean_of(second, first) or self.is_mean_of(first, second)

    def is_same(self, one: ValueId, other: ValueId, depth: int = 3) -> bool:
        """Whether two values are one, or were computed twice from the same values by the same ops."""
        one, other = self.source(one), self.source(other)
        if one == other:
            return True
        first, second = self.trace.facts.get(one.serial), self.trace.facts.get(other.serial)
        if (
            not depth
            or first is None
            or second is None
            or first.type != second.type
            or len(first.input_ids) != len(second.input_ids)
        ):
            return False
        if not first.input_ids:
            return first.outputs == second.outputs
        return all(
            self.is_same(a, b, depth - 1)
            for a, b in zip(first.input_ids, second.input_ids, strict=True)
        )

    def is_mean_of(self, value: ValueId, whole: ValueId) -> bool:
        """Whether a value is the mean of another."""
        return any(
            fact.type in _SUMS and self.is_same(fact.input_ids[0], whole)
            for fact in self.upstream(value, 3)
        )

    def is_difference_of_moments(self, difference: Fact) -> bool:
        """Whether a difference is E[x^2] - E[x]^2."""
        makers = self.makers(difference)
        if (
            len(makers) != 2
            or makers[0].type not in _SUMS
            or makers[1].type not in ("Square", "Mul", "Pow")
        ):
            return False
        squares, mean = self.maker(makers[0].input_ids[0]), self.maker(makers[1].input_ids[0])
        return (
            squares is not None
            and squares.type in ("Square", "Mul", "Pow")
            and mean is not None
            and mean.type in _SUMS
        )

    def squares_under(self, value: ValueId) -> Fact | None:
        """Return the sum of squares that a value is (a root of), or None."""
        for fact in self.upstream(value, 4):
            if fact.type == "Sum":
                squares = self.maker(fact.input_ids[0])
                own = squares is not None and (
                    squares.type in ("Square", "SquaredDifference")
                    or len(set(self.inputs(squares))) == 1
                )
                return fact if own else None
            if fact.type not in _ON_THE_WAY:
                return None
        return None

    def weights_under(self, value: ValueId) -> Fact | None:
        """Return the sum (or count) of weights that a value is, all of them zero; None when it is something else."""
        fact = self.maker(value)
        if fact is None:
            return None
        if fact.type in ("Sub", "AddV2") and any(
            maker.type in _COUNTS for maker in self.makers(fact)
        ):  # n - 1
            return fact
        if fact.type in _COUNTS or fact.type in SEGMENTS:
            return fact
        if fact.type not in _SUMS or not fact.input_ids:
            return None
        stat = self.stat(fact.input_ids[0])
        if stat is not None and not stat.size:
            return fact
        weights = self.maker(fact.input_ids[0])
        if weights is not None and weights.type in _NO_WEIGHTS:
            return None
        if weights is not None and weights.type == "Mul" and len(set(self.inputs(weights))) == 1:
            return None
        is_negative = stat is not None and stat.minimum is not None and stat.minimum < 0
        return None if is_negative else fact


_ON_THE_WAY = words(
    "Sqrt Rsqrt Square AddV2 Add AddN Maximum ClipByValue Reciprocal Pow Relu Mul RealDiv Sum Mean Select SelectV2 Abs Sub"
)
"""Ops that a variance or a sum of squares goes through before it is divided by or before its root is taken."""
_NO_WEIGHTS = words("Square SquaredDifference Exp Abs Softmax Sub Sqrt Log Pow")
"""Ops that make quantities, not weights."""
