"""Replaying the steps of a capture: what that gave as JSON, and as a table for people.

For `nanreplay replay` and the terminal interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
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

    recorded_notes = tuple(capture.incident.notes)
    with Replay(capture, trust=trust) as replay:
        if not replay.steps:
            message = f"{capture.path}: no recorded step can be replayed."
            raise ReplayError(" ".join((message, *recorded_notes)))
        results = replay.run_window(mode, progress=progress, keeps_state=False)
        return results, tuple(dict.fromkeys((*recorded_notes, *replay.notes)))


def steps_to_json(
    path: str, mode: str, results: Sequence[StepResult], notes: Sequence[str]
) -> dict[str, Any]:
    """The replayed steps of one capture as plain JSON values."""
    value = {
        "path": path,
        "mode": mode,
        "finite": all(result.finite for result in results),
        "bit_exact": _all_exact(results),
        "steps": list(map(_step, results)),
        "notes": list(notes),
    }
    plain: dict[str, Any] = jsonable(value)
    return plain


def _step(result: StepResult) -> dict[str, Any]:
    return {
        "step": result.step,
        "finite": result.finite,
        "nonfinite": None if result.nonfinite is None else asdict(result.nonfinite),
        "bit_exact": result.bit_exact,
        "max_ulp": result.max_ulp,
        "loss": result.loss,
        "recorded_loss": result.recorded_loss,
        "differences": list(map(asdict, result.differences)),
    }


def _all_exact(results: Sequence[StepResult]) -> bool | None:
    known = []
    for result in results:
        if result.bit_exact is not None:
            known.append(result.bit_exact)
    return all(known) if known else None


def step_lines(path: str, results: Sequence[StepResult], notes: Sequence[str]) -> Iterator[str]:
    """One line a step, and a line that sums up."""
    yield path
    rows = [("step", "loss", "finite", "as recorded"), *map(_cells, results)]
    step_width, loss_width, finite_width, _ = map(_width, zip(*rows, strict=True))
    for step, loss, finite, exact in rows:
        line = f"{step:>{step_width}}  {loss:>{loss_width}}  {finite:<{finite_width}}  {exact}"
        yield "  " + line.rstrip()
    yield summary(results)
    for note in notes:
        yield f"note: {note}"


def _width(column: Sequence[str]) -> int:
    return max(map(len, column))


def _cells(result: StepResult) -> tuple[str, str, str, str]:
    loss = "" if result.loss is None else readable_number(result.loss)
    finite = "finite" if result.finite else "NON-FINITE"
    if result.exception is not None:
        finite = "RAISED"
    if result.nonfinite is not None:
        finite += f": {readable_trigger(result.nonfinite)}"
    return str(result.step), loss, finite, _exactness(result)


def _exactness(result: StepResult) -> str:
    if result.bit_exact is None:
        return "not recorded"
    if result.bit_exact:
        return "bit for bit"
    worst = max(result.differences, key=lambda difference: difference.ulp, default=None)
    return readable_ulp(result.max_ulp) + (f" in {worst.name}" if worst else "")


def summary(results: Sequence[StepResult]) -> str:
    """One line for all steps: "25 steps replayed, 25 of 25 bit for bit; step 24 is non-finite."."""
    replayed = f"{len(results)} step{'' if len(results) == 1 else 's'} replayed"
    compared, bad_steps = [], []
    for result in results:
        if result.bit_exact is not None:
            compared.append(result.bit_exact)
        if not result.finite:
            bad_steps.append(result.step)
    if compared:
        replayed += f", {sum(compared)} of {len(compared)} bit for bit"
    if results[-1].exception is not None:
        others = f"; {len(bad_steps) - 1} non-finite" if len(bad_steps) > 1 else ""
        return f"{replayed}{others}; step {bad_steps[-1]} raises, as it did in training."
    if not bad_steps:
        return f"{replayed}; all finite."
    if len(bad_steps) == 1:
        return f"{replayed}; step {bad_steps[0]} is non-finite."
    return f"{replayed}; {len(bad_steps)} are non-finite, the first is step {bad_steps[0]}."
