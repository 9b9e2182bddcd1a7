"""Replaying the steps of a capture: what that gave as JSON, and as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nanreplay.errors import ReplayError
from nanreplay.report.numbers import jsonable, readable_number, readable_trigger, readable_ulp

if TYPE_CHECKING:
    from nanreplay.capture import Capture
    from nanreplay.replay import StepResult
    from nanreplay.replay.replay_programs import Mode


def replay_steps(
    capture: Capture,
    mode: Mode,
    *,
    trust: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[StepResult], tuple[str, ...]]:
    """Replay every step of an open capture that can be; returns the results and readable notes.

    Raises:
        ReplayError: No step can be replayed, or one failed.
        UnsafeProgramError: The program reaches beyond tensors.
        UnsupportedOpError: The program holds an op that cannot be replayed.
    """
    from nanreplay.replay import Replay

    recorded = tuple(capture.incident.notes)
    with Replay(capture, trust=trust) as replay:
        if not replay.steps:
            raise ReplayError(
                " ".join((f"{capture.path}: no recorded step can be replayed.", *recorded))
            )
        results = replay.run_window(mode, progress=progress)
        return results, tuple(dict.fromkeys((*recorded, *replay.notes)))


def steps_to_json(
    path: str, mode: str, results: Sequence[StepResult], notes: Sequence[str]
) -> dict[str, Any]:
    """The replayed steps of one capture as plain JSON values."""
    value = {
        "path": path,
        "mode": mode,
        "finite": all(result.finite for result in results),
        "bit_exact": _all_exact(results),
        "steps": [_step(result) for result in results],
        "notes": list(notes),
    }
    plain: dict[str, Any] = jsonable(value)
    return plain


def _step(result: StepResult) -> dict[str, Any]:
    bad = result.nonfinite
    return {
        "step": result.step,
        "finite": result.finite,
        "nonfinite": None
        if bad is None
        else {"what": bad.what, "name": bad.name, "value": bad.value},
        "bit_exact": result.bit_exact,
        "max_ulp": result.max_ulp,
        "loss": result.loss,
        "recorded_loss": result.recorded_loss,
        "differences": [
            {
                "name": each.name,
                "recorded": each.recorded,
                "replayed": each.replayed,
                "ulp": each.ulp,
            }
            for each in result.differences
        ],
    }


def _all_exact(results: Sequence[StepResult]) -> bool | None:
    known = [result.bit_exact for result in results if result.bit_exact is not None]
    return all(known) if known else None


def step_lines(path: str, results: Sequence[StepResult], notes: Sequence[str]) -> Iterator[str]:
    """One line a step, and a line that sums up."""
    yield path
    rows = [("step", "loss", "finite", "as recorded"), *(_cells(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        yield (
            "  "
            + "  ".join(
                (row[0].rjust(widths[0]), row[1].rjust(widths[1]), row[2].ljust(widths[2]), row[3])
            ).rstrip()
        )
    yield summary(results)
    for note in notes:
        yield f"note: {note}"


def _cells(result: StepResult) -> tuple[str, str, str, str]:
    bad = result.nonfinite
    finite = "finite" if result.finite else "NON-FINITE"
    if bad is not None:
        finite += f": {readable_trigger(bad)}"
    exact = (
        "not recorded"
        if result.bit_exact is None
        else "bit for bit"
        if result.bit_exact
        else _worst(result)
    )
    return (
        str(result.step),
        "" if result.loss is None else readable_number(result.loss),
        finite,
        exact,
    )


def _worst(result: StepResult) -> str:
    worst = max(result.differences, key=lambda each: each.ulp, default=None)
    return readable_ulp(result.max_ulp) + (f" in {worst.name}" if worst else "")


def summary(results: Sequence[StepResult]) -> str:
    """One line for all steps: "25 steps replayed, 25 of 25 bit for bit; step 24 is non-finite."."""
    count = f"{len(results)} step{'' if len(results) == 1 else 's'} replayed"
    compared = [result for result in results if result.bit_exact is not None]
    exact = (
        f", {sum(bool(result.bit_exact) for result in compared)} of {len(compared)} bit for bit"
        if compared
        else ""
    )
    bad = [result.step for result in results if not result.finite]
    if not bad:
        return f"{count}{exact}; all finite."
    where = (
        f"step {bad[0]} is non-finite."
        if len(bad) == 1
        else f"{len(bad)} are non-finite, the first is step {bad[0]}."
    )
    return f"{count}{exact}; {where}"
