"""The loss in one line of bars, with the failing step marked below."""

from __future__ import annotations

from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget

from nanreplay.report.history import History, bar_lines
from nanreplay.report.numbers import readable_number


class LossLine(Widget):
    """Bars of the recorded losses; as wide as there is room.

    Args:
        history: The capture's timeline.
        failing: The failing step.
    """

    DEFAULT_CSS = "LossLine { height: 3; width: 1fr; }"

    def __init__(self, history: History, failing: int) -> None:
        super().__init__()
        self.history = history
        self.failing = failing

    def show(self, failing: int) -> None:
        """Mark another step."""
        self.failing = failing
        self.refresh()

    def render(self) -> Content:
        """Draw bars, mark and ends."""
        return Content("\n").join(loss_lines(self.history, self.failing, self.size))


def loss_lines(history: History, failing: int, size: Size) -> list[Content]:
    """The bars, the mark below, and the first and the last loss.

    Args:
        history: The timeline.
        failing: The step that is marked.
        size: The room.
    """
    values = history.loss.values
    if not len(values):
        return [Content("no losses were recorded")]
    each = max(min(size.width // len(values), 4), 1)
    shown = max(min(size.width, len(values)), 1)
    bars = ["".join(bar * each for bar in line) for line in bar_lines(values, shown, max(size.height - 2, 1))]
    width = shown * each
    place = min(history.position(failing) * shown // len(values) * each + each // 2, width - 1)
    finite = [f"{readable_number(float(f'{value:.4g}'))} at step {step}" for step, value in zip(history.steps, values, strict=True)]
    label = f"▲ step {failing}"
    mark = " " * place + label if place + len(label) <= max(size.width, width) else label[2:].rjust(place - 1) + " ▲"
    ends = f"{finite[0]}, {finite[-1]}" if len(finite) > 1 else finite[0]
    return [
        *(Content.assemble(*((bar, "bold $text-error" if bar == "✗" else "$text-primary") for bar in line)) for line in bars),
        Content.styled(mark, "$text-error"),
        Content.styled(ends, "dim"),
    ]
