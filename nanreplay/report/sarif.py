"""Outcomes as SARIF 2.1.0, which GitHub's code scanning and editors show at the line of code. Imports no TensorFlow."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanreplay import __version__
from nanreplay.report.numbers import jsonable
from nanreplay.report.outcome import Outcome, outcome_to_json
from nanreplay.report.places import Place, place_of, relative

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(outcomes: Sequence[Outcome], root: Path) -> dict[str, Any]:
    """A SARIF log with one result a non-finite capture; captures that cannot be replayed or decided are notifications.

    Args:
        outcomes: What the captures came to.
        root: The folder of the checkout, which URIs are relative to.
    """
    bad = [outcome for outcome in outcomes if outcome.status == "nonfinite"]
    rules = sorted({outcome.rule for outcome in bad})
    unsaid = [outcome for outcome in outcomes if outcome.status in ("undecided", "unreadable")]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "nanreplay", "version": __version__, "rules": [_rule(rule) for rule in rules]}},
                "columnKind": "unicodeCodePoints",
                "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "The root of the checkout."}}},
                "invocations": [
                    {"executionSuccessful": not unsaid, "toolExecutionNotifications": [_notification(each, root) for each in unsaid]}
                ],
                "results": [_result(outcome, rules.index(outcome.rule), root) for outcome in bad],
            }
        ],
    }


def _rule(rule: str) -> dict[str, Any]:
    words = rule.replace("_", " ")
    return {
        "id": rule,
        "name": "".join(word.capitalize() for word in rule.split("_")),
        "shortDescription": {"text": f"Non-finite value in training: {words}"},
        "fullDescription": {"text": f"A recorded training step gives NaN or an infinity when it is replayed. Cause: {words}."},
        "help": {"text": "`nanreplay bisect CAPTURE` shows the operands and the way to the loss; `nanreplay whatif CAPTURE` tries fixes."},
        "defaultConfiguration": {"level": "error"},
    }


def _result(outcome: Outcome, rule: int, root: Path) -> dict[str, Any]:
    place, facts = place_of(outcome, root), outcome_to_json(outcome)
    shown = ("verdict", "bit_exact", "cause", "step", "phase", "layer_path", "op_type", "rows")
    return {
        "ruleId": outcome.rule,
        "ruleIndex": rule,
        "level": "error",
        "message": {"text": outcome.sentence},
        "locations": [{"physicalLocation": _physical(place)}],
        "relatedLocations": [
            {"id": 1, "message": {"text": "The recording."}, "physicalLocation": {"artifactLocation": _artifact(_capture(outcome, root))}}
        ],
        "partialFingerprints": {"nanreplayOrigin/v1": _fingerprint(outcome)},
        "properties": jsonable({key: facts[key] for key in shown if facts[key] is not None}),
    }


def _fingerprint(outcome: Outcome) -> str:
    """The same for the same line, layer and op, wherever the line has moved to."""
    origin, source = outcome.origin, outcome.source
    parts = [outcome.rule] if origin is None else [outcome.rule, origin.phase, origin.layer_path, origin.op_type]
    parts += [Path(outcome.path).name] if source is None else [Path(source.file).name, source.function, source.code]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def _physical(place: Place) -> dict[str, Any]:
    return {"artifactLocation": _artifact(place), "region": {"startLine": place.line or 1}}


def _artifact(place: Place) -> dict[str, Any]:
    return {"uri": place.uri, **({} if place.uri.startswith("file:") else {"uriBaseId": "%SRCROOT%"})}


def _capture(outcome: Outcome, root: Path) -> Place:
    return Place(relative(Path(outcome.path), root), None)


def _notification(outcome: Outcome, root: Path) -> dict[str, Any]:
    return {
        "level": "error",
        "message": {"text": outcome.sentence},
        "locations": [{"physicalLocation": {"artifactLocation": _artifact(_capture(outcome, root))}}],
    }
