"""`nanreplay replay`: run the recorded steps again, by the recorded program or current code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from nanreplay.commands.console import as_json, max_memory, print_json, progress_bar, trust
from nanreplay.commands.exits import fail
from nanreplay.commands.outputs import Outputs, for_machines
from nanreplay.commands.rerun_options import check_needs_model, passed, rerun_options
from nanreplay.errors import NanreplayError
from nanreplay.terminal import FINITE, NONFINITE, UNDECIDED, UNREADABLE, quiet_work

if TYPE_CHECKING:
    from nanreplay.replay import StepResult
    from nanreplay.replay.replay_programs import Mode
    from nanreplay.report.contents import Report
    from nanreplay.rerun import RerunResult


@click.command("replay")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--mode",
    type=click.Choice(["recorded", "graph", "ops", "float64"]),
    default="recorded",
    show_default=True,
    help=(
        "recorded: compiled as it was trained; graph: compiled without XLA; ops: op by op; "
        "float64: op by op, every float as float64."
    ),
)
@rerun_options
@as_json
@for_machines("replay")
@trust
@max_memory
def command(
    files: tuple[str, ...],
    mode: Mode,
    model: str | None,
    as_json: bool,
    trust: bool,
    outputs: Outputs,
    **rerun: Any,
) -> int:
    """Replay the recorded steps of each FILE and compare them with the recording.

    With --model, the recorded weights and batches run through today's code. The function returns a
    compiled Keras model, or (model, optimizer, step) of a training loop; it is found from the
    current folder.

    Exit codes: 0 all finite (with --model: fixed), 1 non-finite reproduced (still non-finite), 2
    unreadable file (or no such model, or the recorded state does not fit it), 3 cannot be replayed
    (cannot decide).
    """
    check_needs_model(model)
    if model and passed("mode"):
        raise click.UsageError("--mode cannot be given with --model", click.get_current_context())
    captures, codes = [], []
    for file in files:
        try:
            with outputs.of(file):
                if model:
                    done = _rerun(file, model, trust, rerun)
                else:
                    done = _replayed(file, mode, trust, outputs.wants_origin)
        except NanreplayError as error:  # the other files are replayed all the same
            codes.append(fail(error))
            continue
        codes.append(done.code)
        outputs.add(file, done.code, done.sentence, done.report, done.lines)
        if as_json:
            captures.append(done.as_json())
        elif not outputs.jsonl:
            for line in done.lines:
                click.echo(line)
    if as_json:
        print_json({"format": "nanreplay-replay", "version": 1, "captures": captures})
    # the worst of the files, where an unreadable one is worse than an undecided one
    return max(codes, key=(FINITE, NONFINITE, UNDECIDED, UNREADABLE).index)


class Done(NamedTuple):
    """What replaying one file gave."""

    code: int
    sentence: str
    report: Report | None
    """Where a non-finite value was born, when that was looked for."""
    lines: tuple[str, ...]
    """What people read."""
    as_json: Callable[[], dict[str, Any]]


def _replayed(file: str, mode: Mode, trust: bool, wants_origin: bool) -> Done:
    """Run the recorded program; name the origin too where a format for machines holds it."""
    from nanreplay.report.explain import explain
    from nanreplay.report.replayed_steps import step_lines, steps_to_json, summary

    results, notes = _replay_steps(file, mode, trust)
    code = FINITE if all(result.finite for result in results) else NONFINITE
    report = None
    if code == NONFINITE and wants_origin:
        with contextlib.suppress(NanreplayError), quiet_work():
            report = explain(file, trust=trust, fixes="none")
    sentence = report.sentence if report else summary(results)
    lines = tuple(step_lines(file, results, notes))
    return Done(code, sentence, report, lines, lambda: steps_to_json(file, mode, results, notes))


def _replay_steps(file: str, mode: Mode, trust: bool) -> tuple[Sequence[StepResult], Sequence[str]]:
    from nanreplay.capture import Capture
    from nanreplay.report.replayed_steps import replay_steps

    with Capture(file) as capture, quiet_work(), progress_bar() as reporter:
        return replay_steps(capture, mode, trust=trust, progress=reporter.progress)


def _rerun(file: str, model: str, trust: bool, options: dict[str, Any]) -> Done:
    """Run the recorded state and batches through the user's current code."""
    with quiet_work(), progress_bar() as reporter:
        from nanreplay.rerun import replay_with
        from nanreplay.rerun.rerun_result import rerun_to_json

        result: RerunResult = replay_with(
            file, model, trust=trust, progress=reporter.progress, **options
        )
    lines = (result.line, *(f"note: {note}" for note in result.notes))
    return Done(
        result.exit_code, result.sentence, result.report, lines, lambda: rerun_to_json(result)
    )
