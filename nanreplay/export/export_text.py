"""What `minimize`, `redact` and `export` wrote, as lines for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nanreplay.limits import readable_size
from nanreplay.report.numbers import jsonable, readable_steps
from nanreplay.report.report_json import to_json

if TYPE_CHECKING:
    from nanreplay.export.minimizer import Minimized
    from nanreplay.export.pytest_module import Exported
    from nanreplay.export.redaction import Redacted

_ANSWERS = {True: "yes", False: "no", None: "not known"}


def minimized_lines(minimized: Minimized) -> Iterator[str]:
    """What is left of a capture, and what the smaller one says."""
    yield minimized.report.sentence
    yield ""
    before, after = readable_size(minimized.size_bytes), readable_size(minimized.output_bytes)
    steps = readable_steps(minimized.steps)
    yield (
        f"{minimized.output}  ({after}, from {before}; {steps}; "
        f"{minimized.replays} candidates were replayed)"
    )
    for note in minimized.notes:
        yield f"note: {note}"


def minimized_to_json(minimized: Minimized) -> dict[str, Any]:
    """The same as plain JSON values."""
    rows, features = minimized.rows, minimized.features
    document: dict[str, Any] = {
        "format": "nanreplay-minimize",
        "version": 1,
        "path": minimized.path,
        "output": minimized.output,
        "size_bytes": minimized.size_bytes,
        "output_bytes": minimized.output_bytes,
        "steps": minimized.steps,
        "rows": {
            "recorded": rows.recorded,
            "kept": rows.kept,
            "taken_out": rows.is_shrunk,
            "program_resized": rows.is_resized,
        },
        "features": None if features is None else {"kept": features[0], "recorded": features[1]},
        "zeroed_variables": minimized.zeroed,
        "replays": minimized.replays,
        "notes": minimized.notes,
        "report": to_json(minimized.report),
    }
    return _plain(document)


def redacted_lines(redacted: Redacted) -> Iterator[str]:
    """What a redacted capture says, whether it still reproduces, and what was left out."""
    if redacted.report is not None:
        yield redacted.report.sentence
        yield ""
    yield f"{redacted.output}  ({readable_size(redacted.output_bytes)})"
    yield f"reproduces  {_ANSWERS[redacted.reproduces]}. {redacted.reason}"
    for note in redacted.notes:
        yield f"note: {note}"


def redacted_to_json(redacted: Redacted) -> dict[str, Any]:
    """The same as plain JSON values."""
    document: dict[str, Any] = {
        "format": "nanreplay-redact",
        "version": 1,
        "path": redacted.path,
        "output": redacted.output,
        "output_bytes": redacted.output_bytes,
        "reproduces": redacted.reproduces,
        "reason": redacted.reason,
        "batches": redacted.batches,
        "weights": redacted.weights,
        "notes": redacted.notes,
        "report": None if redacted.report is None else to_json(redacted.report),
    }
    return _plain(document)


def exported_lines(exported: Exported) -> Iterator[str]:
    """What was written, and what the test says of the user's current code."""
    yield f"{exported.module}::{exported.name}"
    yield f"{exported.capture}  ({readable_size(exported.capture_bytes)})"
    outcome = "passes" if exported.rerun.finite else "fails"
    yield f"today       the test {outcome}. {exported.rerun.sentence}"


def exported_to_json(exported: Exported) -> dict[str, Any]:
    """The same as plain JSON values."""
    return {
        "format": "nanreplay-export",
        "version": 1,
        "module": exported.module,
        "capture": exported.capture,
        "capture_bytes": exported.capture_bytes,
        "test": exported.name,
        "passes_today": exported.rerun.finite,
        "sentence": exported.rerun.sentence,
    }


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """The document with numpy's numbers, tuples and non-finite floats as JSON has them."""
    plain: dict[str, Any] = jsonable(document)
    return plain
