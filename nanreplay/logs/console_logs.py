"""Console output: Keras's progress bars and lines, and what loops of one's own print.

A terminal overwrites its lines: carriage returns and backspaces part what was shown one after the
other. Keras shows a running mean of the epoch, step by step.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from nanreplay.errors import FormatError
from nanreplay.logs.log_columns import LogRows
from nanreplay.logs.logged_run import ScalarSeries
from nanreplay.logs.tabular_logs import flat_numbers, number_of_text
from nanreplay.logs.tag_roles import role_of, words_of

_LONGEST_LINE = 20_000
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BREAKS = re.compile(r"[\r\n\x08]+")
_NUMBER = r"[-+]?(?:\d[\d_]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
_WRAPPED = r"(?:tf\.Tensor\(|tensor\(|np\.float\d+\(|array\(|<tf\.Tensor:.*?numpy=|\[)?\s*"
_END = r"(?![\w.]*\w)"
_EPOCH_LINE = re.compile(r"^\s*Epoch\s+(\d+)\s*/\s*(\d+)\s*$")
_EPOCH_HEADING = re.compile(
    r"^[\W\d]*(?:(?:start(?:ing)?|begin(?:ning)?)(?: of)?\s+)?epoch\s*[:#=]?\s*(\d+)", re.IGNORECASE
)
_KERAS_LINE = re.compile(
    r"^\s*(?P<step>\d+)/(?P<total>\d+|Unknown)\s*(?P<bar>\[[=>.\s]*\]|[━\s]+|-)\s*"
    r"(?:-\s*)?(?:ETA:\s*)?\d"
)
_KERAS_VALUE = re.compile(rf"(?:^|\s)-\s+([A-Za-z_][\w./ -]*?):\s*({_NUMBER}){_END}", re.IGNORECASE)
_VALUE = re.compile(
    rf"['\"]?([A-Za-z_][\w./-]*(?:[ -](?:loss|rate|norm|scale|acc|accuracy))?)['\"]?"
    rf"\s*(?:=|:|\bis\b)\s*{_WRAPPED}({_NUMBER}){_END}",
    re.IGNORECASE,
)
_SPACED_VALUE = re.compile(
    rf"\b((?:train(?:ing)?|val(?:idation)?|test|eval)?[ _-]?(?:loss|lr|learning rate))\s+"
    rf"{_WRAPPED}({_NUMBER}){_END}",
    re.IGNORECASE,
)
_STEP = re.compile(
    r"\b(global[_ ]?step|step|iteration|iter|it|batch|update|epoch)s?['\"]?\s*[:=#]?\s*\[?\s*"
    r"(\d[\d,_]*(?:\.\d+)?)",
    re.IGNORECASE,
)
_BATCH_OF = re.compile(r"(?:\[\s*(\d+)\s*/\s*\d+\s*\]|\b(\d+)/\d+ \[)")
"""`[100/1000]`, and what tqdm prints: `100/1000 [00:10<...`."""
_LOSS_AT_STEP = re.compile(
    rf"\bloss\b[^:=]*?\bat\s+(?:global\s+)?step\s+(\d+)\b[^:=]*[:=]\s*{_WRAPPED}({_NUMBER}){_END}",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"(?<![\w.])([-+]?(?:\d[\d_]*(?:,\d{3})*(?:\.\d*)?(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)(?!\w))",
    re.IGNORECASE,
)
_MOST_LAYOUTS = 10_000
_NO_STEP = re.compile(r"\d+(?:\.\d+)?\s*(?:ms|s|us)/(?:step|epoch|batch|it)", re.IGNORECASE)
_WORTH = re.compile(r"loss|nan\b|inf\b|epoch|acc|step|iter|\d/\d", re.IGNORECASE)


def read_console(path: Path, pattern: str | None = None) -> list[ScalarSeries]:
    r"""Read what a training printed.

    Args:
        path: The file.
        pattern: A regular expression for lines of one's own; its named groups are the columns, of
            which `step` or `epoch` says where: `step (?P<step>\d+) .* L=(?P<loss>\S+)`.

    Raises:
        FormatError: No line of it tells a value.
    """
    own = None if pattern is None else re.compile(pattern)
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = _own_rows(file, own) if own else _console_rows(file)
    if not rows.n_rows:
        what = "that --pattern matches" if own else "that tells a loss or a metric"
        raise FormatError(f"{path}: has no line {what}.")
    epochs = rows.columns.get("epoch")
    # Keras counts epochs from 1 on the console, loops as they like
    first_epoch = 0 if epochs is not None and min(epochs.values) < 1 else 1
    return rows.series(str(path), first_epoch)


def _shown_lines(file: object) -> Iterator[str]:
    """Lines as a terminal showed them, one after the other."""
    while text := file.readline(_LONGEST_LINE):  # type: ignore[attr-defined]
        for part in _BREAKS.split(_ESCAPES.sub("", text)):
            if part.strip():
                yield part


def _own_rows(file: object, pattern: re.Pattern[str]) -> LogRows:
    rows = LogRows()
    for line in _shown_lines(file):
        match = pattern.search(line)
        if match is None:
            continue
        row = {}
        for name, text in match.groupdict().items():
            value = number_of_text(text.replace(",", "")) if text is not None else None
            if value is not None:
                row[name] = value
        if row:
            rows.add(row)
    return rows


def _console_rows(file: object) -> LogRows:
    rows = LogRows()
    keras = _KerasOutput()
    loops = _LoopOutput()
    epoch = None  # of a heading above the lines of its steps
    for line in _shown_lines(file):
        if not _WORTH.search(line):
            continue
        row = keras.row(line)
        if row is None:
            row = loops.row(line)
            heading = _EPOCH_HEADING.match(line) if not row else None
            if heading is not None:
                epoch = float(heading[1])
            elif row and epoch is not None:
                row.setdefault("epoch", epoch)
        if row:
            rows.add(row)
    return rows


class _LoopOutput:
    """Lines that differ in their numbers alone are taken apart once.

    Which number of a line is which value is told by a line in which each number is another one.
    """

    def __init__(self) -> None:
        self._known: dict[str, list[tuple[str, int]] | None] = {}
        """Names and positions of the numbers, by the text between them; None: read each anew."""

    def row(self, line: str) -> dict[str, float]:
        """The values of a line; {} when it tells none."""
        parts = _TOKEN.split(line)
        between = "\0".join(parts[::2])
        if between not in self._known:
            if len(self._known) > _MOST_LAYOUTS:
                return _loop_row(line)
            self._known[between] = _layout_of(parts)
        layout = self._known[between]
        if layout is None:
            return _loop_row(line)
        numbers = parts[1::2]
        row = {}
        for name, at in layout:
            value = number_of_text(numbers[at].replace(",", "").replace("_", ""))
            if value is None:
                return _loop_row(line)
            row[name] = value
        return row


def _layout_of(parts: list[str]) -> list[tuple[str, int]] | None:
    """Which number is which value; None where the numbers themselves change what a line means."""
    if "{" in parts[0]:
        return None
    marked = list(parts)
    for place in range(len(parts) // 2):
        marked[2 * place + 1] = str(1000 + place)
    layout = []
    for name, value in _loop_row("".join(marked)).items():
        place = int(value) - 1000
        if not 0 <= place < len(parts) // 2:
            return None
        layout.append((name, place))
    original = _loop_row("".join(parts))
    return layout if {name for name, _ in layout} == original.keys() else None


class _KerasOutput:
    """Where the output of `fit` is: its epoch, and the steps before it."""

    def __init__(self) -> None:
        self._epoch = 0
        self._before = 0
        """Steps of the epochs before this one."""
        self._last = 0
        """Last step of this epoch."""

    def row(self, line: str) -> dict[str, float] | None:
        """The values of a line; None when it is not Keras's, {} when it tells none."""
        epoch = _EPOCH_LINE.match(line)
        if epoch is not None:
            number = int(epoch[1])
            # a later epoch follows on; an earlier one is another `fit`
            self._before = self._before + self._last if number > self._epoch else 0
            self._epoch, self._last = number, 0
            return {}
        match = _KERAS_LINE.match(line)
        if match is None:
            return None
        step = int(match["step"][:12])
        total = match["total"]
        if total != "Unknown" and self._epoch > 1 and not self._before:
            self._before = (self._epoch - 1) * int(total)  # the log begins in this epoch
        values = {}
        for name, text in _KERAS_VALUE.findall(line):
            value = number_of_text(text)
            if value is not None:
                values[name.strip()] = value
        if not values:
            return {}
        self._last = max(self._last, step)
        values["step"] = float(self._before + step)
        if self._epoch:
            values["epoch"] = float(self._epoch)
        return values


def _loop_row(line: str) -> dict[str, float]:
    """The values of a line that a loop of one's own printed; {} when it tells no loss."""
    at_step = _LOSS_AT_STEP.search(line)
    if at_step is not None:
        value = number_of_text(at_step[2])
        return {} if value is None else {"step": float(at_step[1]), "loss": value}
    if line.lstrip().startswith("{"):
        row = _json_row(line)
        if row:
            return row
    row = {}
    for name, text in (*_VALUE.findall(line), *_SPACED_VALUE.findall(line)):
        value = number_of_text(text)
        words = words_of(name)
        if value is not None and words and not set(words) & {"step", "epoch", "iter", "iteration"}:
            row.setdefault(" ".join(name.split()), value)
    steps = _steps_of(_NO_STEP.sub(" ", line))
    roles = {role_of(name) for name in row}
    is_told = roles & {"loss", "validation_loss"} or (steps and roles - {"other"})
    return {**steps, **row} if is_told else {}


def _json_row(line: str) -> dict[str, float]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return flat_numbers(value) if isinstance(value, dict) else {}


def _steps_of(line: str) -> dict[str, float]:
    steps: dict[str, float] = {}
    for name, text in _STEP.findall(line):
        word = name.lower().replace(" ", "_")
        kind = {"iteration": "step", "iter": "step", "it": "step", "update": "step"}.get(word, word)
        value = float(text.replace(",", "").replace("_", ""))
        if math.isfinite(value):
            steps.setdefault("step" if kind == "globalstep" else kind, value)
    counted = _BATCH_OF.search(line)
    if counted is not None and not steps.keys() & {"step", "global_step"}:
        steps.setdefault("batch", float(counted[1] or counted[2]))
    return steps
