"""A tensor over the steps of the window, and in this step beside the one before, in lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from rich.text import Text

from nanreplay.explore import TensorAtStep
from nanreplay.tui.widgets.figures import histogram_text, histogram_words
from nanreplay.tui.widgets.op_words import (
    nonfinite_words,
    range_words,
    short_number,
    theme_style,
)

Words: TypeAlias = Callable[[TensorAtStep], str]
_BAR = 8
_ELEMENT, _NUMBER = 12, 10
_NAME = 12
"""Columns of the names of facts, at least."""
_TIMES = 10.0
"""How many times the largest value of the steps before is a jump."""
_HISTOGRAM = 48
"""Columns of a histogram, at most."""


def steps_text(
    found: Sequence[TensorAtStep], at: tuple[int, ...], colours: Mapping[str, str]
) -> Text:
    """A line a step: the element, the largest value, a bar by powers of ten, what is not finite.

    Args:
        found: The tensor in each step, ascending.
        at: The element that was followed.
        colours: The theme's variables.
    """
    muted = theme_style(colours, "text-muted")
    heading = f"  step{'element' if at else 'value':>{_ELEMENT}}{'|max|':>{_NUMBER}}"
    lines = [Text(heading, muted)]
    sizes = [abs(each.stat.absmax or 0.0) for each in found]
    jump = first_jump(sizes)
    known = [math.log10(size) for size in sizes if size > 0]
    high = max(known, default=0.0)
    span = max(high - min(known, default=0.0), 1.0)  # a power of ten at least
    for i, each in enumerate(found):
        share = (math.log10(sizes[i]) - high) / span + 1 if sizes[i] > 0 else 0.0
        bar = "█" * max(round(share * _BAR), 1 if sizes[i] else 0)
        colour = "text-error" if each.stat.nonfinite else "text-primary"
        line = Text.assemble(
            ("▸ " if i == jump else "  ", theme_style(colours, "text-accent")),
            f"{each.step:>4}",
            f"{short_number(each.element):>{_ELEMENT}}",
            f"{short_number(each.stat.absmax):>{_NUMBER}}  ",
            (bar.ljust(_BAR), theme_style(colours, colour)),
            (f"  {nonfinite_words(each.stat)}", theme_style(colours, "text-error")),
        )
        lines.append(line)
    if jump is not None:
        words = f"From step {found[jump].step} on it is {_TIMES:g} times what it was before."
        lines.append(Text(words, theme_style(colours, "text-accent")))
    return Text("\n").join(lines)


def first_jump(sizes: Sequence[float]) -> int | None:
    """Position from which sizes stay ten times above the largest one before; None without one."""
    for i in range(1, len(sizes)):
        before = max(sizes[:i])
        if before > 0 and min(sizes[i:]) > _TIMES * before:
            return i
    return None


def both_text(
    before: TensorAtStep, now: TensorAtStep, at: tuple[int, ...], colours: Mapping[str, str]
) -> Text:
    """The tensor in two steps side by side: numbers, then histograms.

    Args:
        before: In the earlier step.
        now: In the later step.
        at: The element that is compared.
        colours: The theme's variables.
    """
    muted = theme_style(colours, "text-muted")
    rows = [
        ("element" if at else "value", *_pair(before, now, _element)),
        ("non-finite", *_pair(before, now, lambda each: nonfinite_words(each.stat) or "none")),
        ("range", *_pair(before, now, lambda each: range_words(each.stat))),
        ("mean", *_pair(before, now, lambda each: short_number(each.mean))),
    ]
    names = max(_NAME, *(len(name) + 2 for name, _, _ in rows))
    column = max(len(left) + 2 for _, left, _ in rows)
    heading = f"{'':<{names}}{f'step {before.step}':<{column}}step {now.step}"
    lines = [Text(heading, muted)]
    for name, left, right in rows:
        lines.append(Text.assemble((name.ljust(names), muted), left.ljust(column), (right, "bold")))
    for each in (before, now):
        lines += list(_histogram_lines(each, colours))
    return Text("\n").join(lines)


def _element(each: TensorAtStep) -> str:
    return short_number(each.element)


def _pair(before: TensorAtStep, now: TensorAtStep, words: Words) -> tuple[str, str]:
    return words(before), words(now)


def _histogram_lines(each: TensorAtStep, colours: Mapping[str, str]) -> Iterator[Text]:
    yield Text("")
    muted = theme_style(colours, "text-muted")
    if each.histogram is None:
        yield Text(f"step {each.step}: nothing finite", muted)
        return
    yield Text(f"step {each.step}: {histogram_words(each.histogram)}", muted)
    yield histogram_text(each.histogram, colours, _HISTOGRAM, height=3)
