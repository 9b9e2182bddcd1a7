"""What was written, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nanreplay.report.numbers import jsonable, readable_bytes, readable_steps
from nanreplay.report.report_json import to_json

if TYPE_CHECKING:
    from nanreplay.export.minimizer import Minimized
    from nanreplay.export.pytest_module import Exported
    from nanreplay.export.redaction import Redacted

_ANSWERS = {True: "yes", False: "no", None: "not known"}


def minimized_lines(found: Minimized) -> Iterator[str]:
    """What is left of a capture, and what the smaller one says."""
    yield found.report.sentence
    yield ""
    sizes = f"{readable_bytes(found.output_bytes)}, from {readable_bytes(found.size_bytes)}"
    yield f"{found.output}  ({sizes}; {readable_steps(found.steps)}; {found.replays} candidates were replayed)"
    for note in found.notes:
        yield f"note: {note}"


def minimized_to_json(found: Minimized) -> dict[str, Any]:
    """The same as plain JSON values."""
    rows, features = found.rows, found.features
    value = {
        "format": "nanreplay-minimize",
        "version": 1,
        "path": found.path,
        "output": found.output,
        "size_bytes": found.size_bytes,
        "output_bytes": found.output_bytes,
        "steps": found.steps,
        "rows": {
            "recorded": rows.recorded,
            "kept": rows.kept,
            "taken_out": rows.is_shrunk,
            "program_resized": rows.is_resized,
        },
        "features": None if features is None else {"kept": features[0], "recorded": features[1]},
        "zeroed_variables": found.zeroed,
        "replays": found.replays,
        "notes": found.notes,
        "report": to_json(found.report),
    }
    plain: dict[str, Any] = jsonable(value)
    return plain


def redacted_lines(found: Redacted) -> Iterator[str]:
    """What a redacted capture says, whether it still reproduces, and what was left out."""
    if found.report is not None:
        yield found.report.sentence
        yield ""
    yield f"{found.output}  ({readable_bytes(found.output_bytes)})"
    yield f"reproduces  {_ANSWERS[found.reproduces]}. {found.reason}"
    for note in found.notes:
        yield f"note: {note}"


def redacted_to_json(found: Redacted) -> dict[str, Any]:
    """The same as plain JSON values."""
    value = {
        "format": "nanreplay-redact",
        "version": 1,
        "path": found.path,
        "output": found.output,
        "output_bytes": found.output_bytes,
        "reproduces": found.reproduces,
        "reason": found.reason,
        "batches": found.batches,
        "weights": found.weights,
        "notes": found.notes,
        "report": None if found.report is None else to_json(found.report),
    }
    plain: dict[str, Any] = jsonable(value)
    return plain


def exported_lines(found: Exported) -> Iterator[str]:
    """What was written, and what the test says of today's code."""
    yield f"{found.module}::{found.name}"
    yield f"{found.capture}  ({readable_bytes(found.capture_bytes)})"
    yield f"today       the test {'passes' if found.today.finite else 'fails'}. {found.today.sentence}"


def exported_to_json(found: Exported) -> dict[str, Any]:
    """The same as plain JSON values."""
    return {
        "format": "nanreplay-export",
        "version": 1,
        "module": found.module,
        "capture": found.capture,
        "capture_bytes": found.capture_bytes,
        "test": found.name,
        "passes_today": found.today.finite,
        "sentence": found.today.sentence,
    }
