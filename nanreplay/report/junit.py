"""Outcomes as JUnit XML, as GitLab, GitHub's test reporters and Jenkins read it. Imports no TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from nanreplay.report.outcome import Outcome
from nanreplay.report.places import place_of, relative

_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


def to_junit(suite: str, outcomes: Sequence[Outcome], root: Path) -> str:
    """One test case a capture: failed when it is non-finite, an error when it cannot be replayed or decided.

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
    each = ElementTree.SubElement(tree, "testsuite", {"name": suite, **counts, "skipped": "0"})
    for outcome in outcomes:
        _add_case(each, suite, outcome, root)
    ElementTree.indent(tree)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(tree, encoding="unicode") + "\n"


def _add_case(suite: ElementTree.Element, name: str, outcome: Outcome, root: Path) -> None:
    place = place_of(outcome, root)
    line = {} if place.line is None else {"line": str(place.line)}
    facts = {"classname": name, "name": relative(Path(outcome.path), root), "time": _seconds(outcome.elapsed_s), "file": place.file, **line}
    case = ElementTree.SubElement(suite, "testcase", {key: _legal(value) for key, value in facts.items()})
    text = _legal("\n".join((outcome.sentence, *outcome.details)))
    if outcome.status == "finite":
        ElementTree.SubElement(case, "system-out").text = text
        return
    kind = "failure" if outcome.status == "nonfinite" else "error"
    ElementTree.SubElement(case, kind, {"message": _legal(outcome.sentence), "type": outcome.rule}).text = text


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)


def _seconds(elapsed_s: float) -> str:
    return f"{elapsed_s:.3f}"
