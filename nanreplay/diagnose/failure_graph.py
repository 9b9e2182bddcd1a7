"""Questions about the ops of a failing step, for the rules of `rules/`.

What made a value? Is it a variance, a sum of squares, a sum of weights? Which `where` drops it?
Ops are told apart by type and by how they are connected, names of scopes come second: layers, Keras
and users write the same formula with other ops. Imports no TensorFlow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from nanreplay.bisect.failing_step import Scene
from nanreplay.bisect.influence import COPIES
from nanreplay.bisect.judge import BACKWARD
from nanreplay.bisect.op_trace import Fact
from nanreplay.bisect.tensor_stats import TensorStat, words
from nanreplay.records import Role
from nanreplay.replay.provenance import ValueId

_CARRIERS = COPIES | words(
    "BroadcastTo Cast ExpandDims Fill GatherV2 OptionalGetValue Pack Real ReadVariableOp Slice "
    "Squeeze StackPopV2 StridedSlice TensorListGetItem TensorListStack Tile Transpose"
)
"""Ops that hand on (some of) one value."""
SELECTS = words("Select SelectV2")
"""Ops that choose, element by element, between two values."""
_CHOOSERS = SELECTS | words("GatherNd GatherV2")
_SUMS = words("Sum Mean")
_SQUARES = words("Square SquaredDifference")
SEGMENTS = words(
    "SegmentSum SegmentSumV2 UnsortedSegmentSum SegmentMean SparseSegmentSum SparseSegmentMean "
    "Bincount DenseBincount MatMul BatchMatMulV2 BatchMatMul Einsum"
)
"""Ops that sum up groups of rows."""
_COUNTS = words("Size Prod Shape")
"""Ops that make the number of elements."""
_WHOLE = words("int32 int64")
"""Types of what counts elements: a product of other numbers is no count."""
_ON_THE_WAY = words(
    "Sqrt Rsqrt Square AddV2 Add AddN Maximum ClipByValue Reciprocal Pow Relu Mul RealDiv Sum Mean "
    "Select SelectV2 Abs Sub"
)
"""Ops between a variance, or a sum of squares, and the division or root that takes it."""
_NO_WEIGHTS = words("Square SquaredDifference Exp Abs Softmax Sub Sqrt Log Pow")
"""Ops that make quantities, not weights."""
_SIGNED_SCOPES = re.compile(
    r"(^|/)(moments|reduce_variance|reduce_std|variance|batchnorm|weighted_moments)(_\d+)?/"
)
"""Name scopes in which TensorFlow and Keras compute variances."""


class FailureGraph:
    """One failing step, as a graph of the op executions in it."""

    def __init__(self, scene: Scene) -> None:
        """Take the step as it ran."""
        self.scene = scene
        self.trace = scene.trace

    # What made a value

    def source(self, value: ValueId) -> ValueId:
        """Return what a value is a copy, cast or part of."""
        seen: set[ValueId] = set()
        while value not in seen:
            fact = self.trace.facts.get(value.serial)
            if fact is None or fact.type not in _CARRIERS:
                break
            seen.add(value)
            inputs = fact.via[-1:] or fact.input_ids
            if not inputs:
                break
            # Fill takes the shape first, then the value.
            value = inputs[min(1, len(inputs) - 1)] if fact.type == "Fill" else inputs[0]
        return value

    def maker(self, value: ValueId) -> Fact | None:
        """Return the op that made a value, None for what is fed.

        Copies, casts and parts of it are looked through.
        """
        return self.trace.facts.get(self.source(value).serial)

    def inputs(self, fact: Fact) -> list[ValueId]:
        """Return an op's inputs, each looked through to where it was made."""
        return list(map(self.source, fact.input_ids))

    def makers(self, fact: Fact) -> list[Fact]:
        """Return the ops that made an op's inputs."""
        return self.makers_of(fact.input_ids)

    def makers_of(self, values: Iterable[ValueId]) -> list[Fact]:
        """Return the ops that made some values; what is fed has none."""
        makers = list(map(self.maker, values))
        return [maker for maker in makers if maker is not None]

    def upstream(self, value: ValueId, depth: int) -> Iterator[Fact]:
        """Yield the ops that a value was made by, nearest first, `depth` ops back."""
        level: list[ValueId] = [value]
        seen: set[int] = set()
        for _ in range(depth):
            facts = [maker for maker in self.makers_of(level) if maker.serial not in seen]
            level = []
            for fact in facts:
                seen.add(fact.serial)
                yield fact
                level.extend(fact.input_ids)

    def reads_variable(self, value: ValueId, role: Role, depth: int = 6) -> bool:
        """Whether a variable of a role goes into a value, a few ops back."""
        variables = self.trace.runner.variables
        for fact in self.upstream(value, depth):
            for source in self.inputs(fact):
                if source.serial >= 0:
                    continue  # made by an op, which comes later on the way
                kind, index = self.trace.feed(source)
                if kind == "variable" and variables[index].role == role:
                    return True
        return False

    def infinities(self, value: ValueId, depth: int = 6) -> Iterator[Fact]:
        """Yield the ops with non-finite outputs that a value was made by, nearest first.

        Casts and constants are not looked through here: they may be what made an infinity.
        """
        level = [value]
        for _ in range(depth):
            facts = [fact for fact in self._facts(level) if _is_nonfinite(fact)]
            level = []
            for fact in facts:
                yield fact
                level.extend(fact.sources)

    def _facts(self, values: Iterable[ValueId]) -> list[Fact]:
        facts = [self.trace.facts.get(value.serial) for value in values]
        return [fact for fact in facts if fact is not None]

    def stat(self, value: ValueId) -> TensorStat | None:
        """Return the facts of a value."""
        return self.trace.stat(value)

    def is_finite(self, value: ValueId) -> bool:
        """Whether a value is known to hold no NaN and no infinity."""
        stat = self.stat(value)
        return stat is not None and not stat.nonfinite

    def is_zero(self, value: ValueId) -> bool:
        """Whether a value is zero everywhere."""
        stat = self.stat(value)
        return stat is not None and stat.minimum == stat.maximum == 0 and not stat.nonfinite

    def is_zero_constant(self, value: ValueId) -> bool:
        """Whether a value is a constant that is zero everywhere."""
        maker = self.maker(value)
        return maker is not None and maker.type == "Const" and self.is_zero(value)

    # Forward and backward

    def is_backward(self, fact: Fact) -> bool:
        """Whether an op belongs to the backward pass or the update."""
        return self.scene.attribution.place(fact).rank >= BACKWARD

    def forward_of(self, fact: Fact) -> list[Fact]:
        """Return the executions of the forward op whose gradient an op computes."""
        info = self.scene.attribution.info(fact)
        if info is None or not info.forward:
            return []
        key = (info.forward_function, info.forward)
        return [other for other in self.trace.facts.values() if other.key == key]

    def dropped_by(self, fact: Fact, depth: int = 6) -> Fact | None:
        """Return the `where` of the forward pass that may leave an op's value out.

        One branch of it alone is made of that value. None without one within `depth` ops.
        """
        level, seen = [fact.serial], {fact.serial}
        for _ in range(depth):
            next_level = []
            for serial in level:
                for user_serial in self.trace.consumers(serial):
                    user = self.trace.facts[user_serial]
                    if user_serial in seen or self.is_backward(user):
                        continue
                    if user.type in _CHOOSERS and self.may_leave_out(user, fact):
                        return user
                    next_level.append(user_serial)
            level = next_level
            seen.update(level)
        return None

    def may_leave_out(self, chooser: Fact, fact: Fact) -> bool:
        """Whether not all that a `where` chooses from is made of an op's value."""
        if chooser.type not in SELECTS:
            return True  # a gather leaves rows out
        return self.branch_of(chooser, fact) is not None

    def branch_of(self, select: Fact, fact: Fact) -> int | None:
        """Return which input of a `where` (1 or 2) is made of an op's value; None for both.

        None as well of a gather, which has no branches.
        """
        if select.type not in SELECTS:
            return None
        is_first = self._is_made_of(select.input_ids[1], fact)
        is_second = self._is_made_of(select.input_ids[2], fact)
        if is_first == is_second:
            return None
        return 1 if is_first else 2

    def _is_made_of(self, value: ValueId, fact: Fact, depth: int = 7) -> bool:
        level, seen = [value], {value}
        for _ in range(depth):
            facts = self._facts(level)
            if any(maker.serial == fact.serial for maker in facts):
                return True
            sources = {source for maker in facts for source in maker.sources} - seen
            seen |= sources
            level = list(sources)
        return False

    # Variances

    def variance(self, value: ValueId) -> Fact | None:
        """Return the mean of squared deviations that a value is, or None.

        The value may be a root of it, its sum with an epsilon, and the like.
        """
        for fact in self.upstream(value, 6):
            if fact.type in _SUMS and self.is_mean_of_deviations(fact):
                return fact
            if fact.type == "Sub" and self.is_difference_of_moments(fact):
                return fact
            if fact.type in _SUMS:
                return fact if _SIGNED_SCOPES.search(fact.name) is not None else None
            if fact.type not in _ON_THE_WAY:
                return None
        return None

    def is_mean_of_deviations(self, fact: Fact) -> bool:
        """Whether a reduction sums squared differences of something from its own mean."""
        squares = self.maker(fact.input_ids[0])
        if squares is None:
            return False
        if squares.type in ("RealDiv", "Mul") and len(squares.input_ids) == 2:
            # Weights, or a count, may come before the sum.
            unweighted = self.maker(squares.input_ids[0])
            if unweighted is not None and unweighted.type in _SQUARES:
                squares = unweighted
        if squares.type == "SquaredDifference":
            return self.is_centred(squares)
        if squares.type not in ("Square", "Pow") and not self.is_product_with_itself(squares):
            return False
        difference = self.maker(squares.input_ids[0])
        if difference is not None and difference.type == "Abs":
            difference = self.maker(difference.input_ids[0])
        return difference is not None and difference.type == "Sub" and self.is_centred(difference)

    def is_product_with_itself(self, fact: Fact) -> bool:
        """Whether an op is x * x."""
        return fact.type == "Mul" and self.has_one_input(fact)

    def has_one_input(self, fact: Fact) -> bool:
        """Whether all inputs of an op are one value."""
        return len(set(self.inputs(fact))) == 1

    def is_centred(self, difference: Fact) -> bool:
        """Whether one operand of a difference is a mean of the other."""
        first, second = self.inputs(difference)[:2]
        return self.is_mean_of(second, first) or self.is_mean_of(first, second)

    def is_mean_of(self, value: ValueId, whole: ValueId) -> bool:
        """Whether a value is the mean of another."""
        sums = []
        for fact in self.upstream(value, 3):
            if fact.type in _SUMS:
                sums.append(fact)
        return any(self.is_same(fact.input_ids[0], whole) for fact in sums)

    def is_same(self, one: ValueId, other: ValueId, depth: int = 3) -> bool:
        """Whether two values are one, or computed twice from the same values by the same ops."""
        one, other = self.source(one), self.source(other)
        if one == other:
            return True
        first, second = self.trace.facts.get(one.serial), self.trace.facts.get(other.serial)
        if not depth or first is None or second is None:
            return False
        if first.type != second.type or len(first.input_ids) != len(second.input_ids):
            return False
        if not first.input_ids:
            return first.outputs == second.outputs
        pairs = zip(first.input_ids, second.input_ids, strict=True)
        return all(self.is_same(a, b, depth - 1) for a, b in pairs)

    def is_difference_of_moments(self, difference: Fact) -> bool:
        """Whether a difference is E[x^2] - E[x]^2."""
        makers = self.makers(difference)
        if len(makers) != 2:
            return False
        mean_of_squares, squared_mean = makers
        if mean_of_squares.type not in _SUMS or squared_mean.type not in ("Square", "Mul", "Pow"):
            return False
        squares = self.maker(mean_of_squares.input_ids[0])
        mean = self.maker(squared_mean.input_ids[0])
        is_of_squares = squares is not None and squares.type in ("Square", "Mul", "Pow")
        return is_of_squares and mean is not None and mean.type in _SUMS

    # Sums

    def squares_under(self, value: ValueId) -> Fact | None:
        """Return the sum of squares that a value is (a root of), or None."""
        for fact in self.upstream(value, 4):
            if fact.type == "Sum":
                squares = self.maker(fact.input_ids[0])
                if squares is None:
                    return None
                are_squares = squares.type in _SQUARES or self.has_one_input(squares)
                return fact if are_squares else None
            if fact.type not in _ON_THE_WAY:
                return None
        return None

    def weights_under(self, value: ValueId) -> Fact | None:
        """Return the sum (or count) of weights that a value is, all of them zero.

        None when it is something else.
        """
        fact = self.maker(value)
        if fact is None:
            return None
        if is_count(fact) or fact.type in SEGMENTS or self.is_corrected_count(fact):
            return fact
        if fact.type not in _SUMS or not fact.input_ids:
            return None
        stat = self.stat(fact.input_ids[0])
        if stat is not None and not stat.size:
            return fact
        weights = self.maker(fact.input_ids[0])
        if weights is not None and self._makes_quantities(weights):
            return None
        is_negative = stat is not None and stat.minimum is not None and stat.minimum < 0
        return None if is_negative else fact

    def _makes_quantities(self, fact: Fact) -> bool:
        return fact.type in _NO_WEIGHTS or self.is_product_with_itself(fact)

    def is_corrected_count(self, fact: Fact) -> bool:
        """Whether an op is a count plus or minus something, such as the n - 1 of a variance."""
        if fact.type not in ("Sub", "AddV2"):
            return False
        return any(map(is_count, self.makers(fact)))


def is_count(fact: Fact) -> bool:
    """Whether an op makes the number of elements of something."""
    return fact.type in _COUNTS and bool(fact.outputs) and fact.outputs[0].dtype in _WHOLE


def _is_nonfinite(fact: Fact) -> bool:
    return any(stat.nonfinite for stat in fact.outputs)
