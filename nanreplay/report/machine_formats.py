"""What captures came to, in the formats of machines: JSON lines, GitHub annotations, JUnit, SARIF.

`nanreplay replay` and `bisect` and the pytest plugin make a `CaptureOutcome` of each capture, and
write all of them in the formats that were asked for. Imports no TensorFlow.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from nanreplay import __version__
from nanreplay.findings import FixResult, Origin
from nanreplay.records import Frame
from nanreplay.report.contents import Report
from nanreplay.report.numbers import jsonable
from nanreplay.report.report_json import fix_to_json
from nanreplay.terminal import Status


@dataclass(frozen=True, slots=True)
class CaptureOutcome:
    """One capture, replayed or refused."""

    path: str
    status: Status
    sentence: str
    """What happened, or why it cannot be said."""
    report: Report | None = None
    """Where a non-finite value was born, when it was looked for."""
    details: tuple[str, ...] = ()
    """Further lines to read: the steps, notes."""
    elapsed_s: float = 0.0

    @property
    def origin(self) -> Origin | None:
        """Where the non-finite value was born, when it is known."""
        return None if self.report is None else self.report.findings.origin

    @property
    def source(self) -> Frame | None:
        """The line of the user's code that made it, when it is known."""
        return None if self.origin is None else self.origin.source

    @property
    def rule(self) -> str:
        """What kind of outcome it is: that of the likeliest cause, else the verdict or status."""
        if self.report is not None and self.report.causes:
            return self.report.causes[0].kind
        if self.status == "undecided" and self.report is not None:
            return self.report.verdict.kind
        return "non_finite" if self.status == "nonfinite" else self.status


def outcome_to_json(outcome: CaptureOutcome) -> dict[str, Any]:
    """One flat object, a line of `--jsonl`; see `docs/report-format.md`."""
    report, origin, source = outcome.report, outcome.origin, outcome.source
    value = {
        "format": "nanreplay-outcome",
        "version": 1,
        "path": outcome.path,
        "status": outcome.status,
        "sentence": outcome.sentence,
        "verdict": None if report is None else report.verdict.kind,
        "bit_exact": None if report is None else report.verdict.bit_exact,
        "cause": report.causes[0].kind if report is not None and report.causes else None,
        "step": None if origin is None else origin.step,
        "phase": None if origin is None else origin.phase,
        "layer_path": None if origin is None else origin.layer_path,
        "op_type": None if origin is None else origin.op_type,
        "rows": None if origin is None else origin.rows,
        "file": None if source is None else source.file,
        "line": None if source is None else source.line,
        "elapsed_s": round(outcome.elapsed_s, 3),
    }
    plain: dict[str, Any] = jsonable(value)
    return plain


def fix_line_to_json(path: str, fix: FixResult) -> dict[str, Any]:
    """One fix that was tried on a capture, a line of `--jsonl`; see `docs/report-format.md`."""
    plain: dict[str, Any] = jsonable(
        {"format": "nanreplay-fix", "version": 1, "path": path, **fix_to_json(fix)}
    )
    return plain


# Where in the current checkout a recorded line of code stands. The capture may have been recorded
# on another machine, in another folder, and before the file was edited.

_ROOTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")
"""Variables in which GitHub and GitLab name the folder of the checkout."""


@dataclass(frozen=True, slots=True)
class SourcePosition:
    """A line of a file in the checkout."""

    file: str
    """Relative to the root where it lies inside, with slashes."""
    line: int | None
    """None when the file no longer holds the recorded line."""

    @property
    def uri(self) -> str:
        """The file as a URI: relative, unless it lies outside of the checkout."""
        quoted = quote(os.fsencode(self.file))
        return f"file://{quoted}" if self.file.startswith("/") else quoted


def checkout_root(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder that paths of reports are relative to.

    It is the checkout of the CI job, else the git repository, else the working directory.
    """
    for name in _ROOTS:
        if environment.get(name):
            return Path(environment[name]).resolve()
    start = Path.cwd().resolve()
    for folder in (start, *start.parents):
        if (folder / ".git").exists():
            return folder
    return start


def place_of(outcome: CaptureOutcome, root: Path) -> SourcePosition:
    """The line that made the non-finite value.

    It is the capture itself when no line is known, or its file is not in the checkout.
    """
    source, capture = outcome.source, Path(outcome.path)
    files = [] if source is None else list(_files_of(source, capture, root))
    if source is None or not files:
        return SourcePosition(relative(capture, root), None)
    for file in files:
        line = _current_line(source, file)
        if line is not None:
            return SourcePosition(relative(file, root), line)
    return SourcePosition(relative(files[0], root), None)


def relative(path: Path, root: Path) -> str:
    """`path` relative to `root` where it lies inside, with slashes."""
    absolute = Path(os.path.abspath(path))  # links stay as they are named
    for candidate in (absolute, absolute.resolve()):
        if candidate.is_relative_to(root):
            return candidate.relative_to(root).as_posix()
    return PurePath(path).as_posix()


def _files_of(source: Frame, capture: Path, root: Path) -> Iterator[Path]:
    """Files of the checkout that may be the recorded one, the likeliest first.

    That is the very path, then ends of it, the longest first, below the root, beside the capture
    and in the folders above it. `/home/me/project/src/train.py` may be `ROOT/project/src/train.py`,
    `ROOT/src/train.py` or `ROOT/train.py`.
    """
    recorded = PureWindowsPath(source.file) if "\\" in source.file else PurePath(source.file)
    # without `..`, so that a capture cannot name files outside of the checkout
    parts = []
    for part in recorded.parts:
        if part not in (recorded.anchor, "..", "."):
            parts.append(part)
    above = []
    for folder in capture.resolve().parents:
        if folder.is_relative_to(root):
            above.append(folder)
    folders = list(dict.fromkeys((root, *above)))
    ends = [parts[start:] for start in range(len(parts))]
    candidates = [Path(recorded), *(folder.joinpath(*end) for end in ends for folder in folders)]
    for path in dict.fromkeys(candidate.resolve() for candidate in candidates):
        if path.is_relative_to(root) and path.is_file():
            yield path


def _current_line(source: Frame, file: Path) -> int | None:
    """The number of the recorded line in the file as it is now.

    It is the recorded number when the line's text is unknown or still there, else the one place
    where the text stands, else None.
    """
    if source.code is None:
        return source.line
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = [line.strip() for line in text.splitlines()]
    wanted = source.code.strip()
    if source.line <= len(lines) and lines[source.line - 1] == wanted:
        return source.line
    return lines.index(wanted) + 1 if lines.count(wanted) == 1 else None


# Outcomes as GitHub annotations: lines of a job's log that GitHub shows at the line of code.


def annotation(outcome: CaptureOutcome, root: Path) -> str | None:
    """The workflow command for one capture; None when it is finite.

    Args:
        outcome: What the capture came to.
        root: The folder of the checkout, which paths are relative to.
    """
    if outcome.status == "finite":
        return None
    place = place_of(outcome, root)
    properties = {"file": place.file}
    if place.line is not None:
        properties["line"] = str(place.line)
    capture = relative(Path(outcome.path), root)
    properties["title"] = f"{outcome.rule.replace('_', ' ')} ({capture})"
    pairs = []
    for name, value in properties.items():
        pairs.append(f"{name}={_escaped_property(value)}")
    return f"::error {','.join(pairs)}::{_escaped_message(outcome.sentence)}"


# As GitHub's own toolkit escapes them: a line break would end the command.


def _escaped_message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escaped_property(text: str) -> str:
    return _escaped_message(text).replace(":", "%3A").replace(",", "%2C")


# Outcomes as JUnit XML, as GitLab, GitHub's test reporters and Jenkins read it.

_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


def to_junit(suite: str, outcomes: Sequence[CaptureOutcome], root: Path) -> str:
    """One test case a capture.

    It failed when the capture is non-finite, and is an error when that cannot be replayed or
    decided.

    Args:
        suite: Name of the test suite, e.g. `nanreplay.replay`.
        outcomes: What the captures came to.
        root: The folder that paths are relative to.
    """
    counts = {
        "tests": str(len(outcomes)),
        "failures": str(sum(outcome.status == "nonfinite" for outcome in outcomes)),
        "errors": str(sum(outcome.status in ("undecided", "unreadable") for outcome in outcomes)),
        "time": _seconds(sum(outcome.elapsed_s for outcome in outcomes)),
    }
    tree = ElementTree.Element("testsuites", {"name": "nanreplay", **counts})
    attributes = {"name": suite, **counts, "skipped": "0"}
    element = ElementTree.SubElement(tree, "testsuite", attributes)
    for outcome in outcomes:
        _add_case(element, suite, outcome, root)
    ElementTree.indent(tree)
    document = ElementTree.tostring(tree, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{document}\n'


def _add_case(suite: ElementTree.Element, name: str, outcome: CaptureOutcome, root: Path) -> None:
    place = place_of(outcome, root)
    facts = {
        "classname": name,
        "name": relative(Path(outcome.path), root),
        "time": _seconds(outcome.elapsed_s),
        "file": place.file,
    }
    if place.line is not None:
        facts["line"] = str(place.line)
    attributes = {key: _legal(value) for key, value in facts.items()}
    case = ElementTree.SubElement(suite, "testcase", attributes)
    if outcome.status == "finite":
        element = ElementTree.SubElement(case, "system-out")
    else:
        kind = "failure" if outcome.status == "nonfinite" else "error"
        reason = {"message": _legal(outcome.sentence), "type": outcome.rule}
        element = ElementTree.SubElement(case, kind, reason)
    element.text = _legal("\n".join((outcome.sentence, *outcome.details)))


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)


def _seconds(elapsed_s: float) -> str:
    return f"{elapsed_s:.3f}"


# Outcomes as SARIF 2.1.0, which GitHub's code scanning and editors show at the line of code.

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(outcomes: Sequence[CaptureOutcome], root: Path) -> dict[str, Any]:
    """A SARIF log with one result a non-finite capture.

    Captures that cannot be replayed or decided are notifications.

    Args:
        outcomes: What the captures came to.
        root: The folder of the checkout, which URIs are relative to.
    """
    bad, undecided = [], []
    for outcome in outcomes:
        if outcome.status == "nonfinite":
            bad.append(outcome)
        elif outcome.status in ("undecided", "unreadable"):
            undecided.append(outcome)
    rules = sorted({outcome.rule for outcome in bad})
    driver = {
        "name": "nanreplay",
        "version": __version__,
        "rules": list(map(_rule, rules)),
    }
    invocation = {
        "executionSuccessful": not undecided,
        "toolExecutionNotifications": [_notification(outcome, root) for outcome in undecided],
    }
    source_root = {"description": {"text": "The root of the checkout."}}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"%SRCROOT%": source_root},
        "invocations": [invocation],
        "results": [_result(outcome, rules.index(outcome.rule), root) for outcome in bad],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: str) -> dict[str, Any]:
    words = rule.replace("_", " ")
    return {
        "id": rule,
        "name": "".join(word.capitalize() for word in rule.split("_")),
        "shortDescription": {"text": f"Non-finite value in training: {words}"},
        "fullDescription": {
            "text": "A recorded training step gives NaN or an infinity when it is replayed. "
            f"Cause: {words}."
        },
        "help": {
            "text": "`nanreplay bisect CAPTURE` shows the operands and the way to the loss; "
            "`nanreplay whatif CAPTURE` tries fixes."
        },
        "defaultConfiguration": {"level": "error"},
    }


def _result(outcome: CaptureOutcome, rule: int, root: Path) -> dict[str, Any]:
    place, facts = place_of(outcome, root), outcome_to_json(outcome)
    shown = ("verdict", "bit_exact", "cause", "step", "phase", "layer_path", "op_type", "rows")
    return {
        "ruleId": outcome.rule,
        "ruleIndex": rule,
        "level": "error",
        "message": {"text": outcome.sentence},
        "locations": [{"physicalLocation": _physical_location(place)}],
        "relatedLocations": [
            {
                "id": 1,
                "message": {"text": "The recording."},
                "physicalLocation": _capture_location(outcome, root),
            }
        ],
        "partialFingerprints": {"nanreplayOrigin/v1": _result_identity(outcome)},
        "properties": jsonable({key: facts[key] for key in shown if facts[key] is not None}),
    }


def _result_identity(outcome: CaptureOutcome) -> str:
    """The same for the same line, layer and op, wherever the line has moved to.

    GitHub tells by it whether a result is new.
    """
    origin, source = outcome.origin, outcome.source
    parts: list[str | None] = [outcome.rule]
    if origin is not None:
        parts += [origin.phase, origin.layer_path, origin.op_type]
    if source is None:
        parts.append(Path(outcome.path).name)
    else:
        parts += [Path(source.file).name, source.function, source.code]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def _physical_location(place: SourcePosition) -> dict[str, Any]:
    return {"artifactLocation": _artifact(place), "region": {"startLine": place.line or 1}}


def _artifact(place: SourcePosition) -> dict[str, Any]:
    if place.uri.startswith("file:"):
        return {"uri": place.uri}
    return {"uri": place.uri, "uriBaseId": "%SRCROOT%"}


def _capture_location(outcome: CaptureOutcome, root: Path) -> dict[str, Any]:
    """The capture as a file, without a line."""
    capture = SourcePosition(relative(Path(outcome.path), root), None)
    return {"artifactLocation": _artifact(capture)}


def _notification(outcome: CaptureOutcome, root: Path) -> dict[str, Any]:
    return {
        "level": "error",
        "message": {"text": outcome.sentence},
        "locations": [{"physicalLocation": _capture_location(outcome, root)}],
    }
