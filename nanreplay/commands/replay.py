"""`nanreplay replay`: run the recorded steps again and hold each against the recording."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from nanreplay.commands.console import as_json, max_memory, print_json, progress_bar, quiet_work, trust
from nanreplay.commands.exits import FINITE, NONFINITE, UNDECIDED, UNREADABLE, fail
from nanreplay.commands.outputs import Outputs, for_machines
from nanreplay.errors import NanreplayError

if TYPE_CHECKING:
    from nanreplay.replay import StepResult
    from nanreplay.replay.programs import Mode


@click.command("replay")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--mode",
    type=click.Choice(["recorded", "graph", "ops", "float64"]),
    default="recorded",
    show_default=True,
    help="recorded: compiled as it was trained; graph: compiled without XLA; ops: op by op; float64: op by op, every float as float64.",
)
@as_json
@for_machines("replay")
@trust
@max_memory
def command(files: tuple[str, ...], mode: Mode, as_json: bool, trust: bool, outputs: Outputs) -> int:
    """Replay the recorded steps of each FILE and compare them with the recording.

    Exit codes: 0 all finite, 1 non-finite reproduced, 2 unreadable file, 3 cannot be replayed.
    """
    from nanreplay.report.steps import steps_to_json

    captures, codes = [], []
    for file in files:
        try:
            with outputs.of(file):
                results, notes = _replay(file, mode, trust)
        except NanreplayError as error:  # the other files are replayed all the same
            codes.append(fail(error))
            continue
        codes.append(FINITE if all(result.finite for result in results) else NONFINITE)
        _add(outputs, file, codes[-1], results, notes, trust)
        if as_json:
            captures.append(steps_to_json(file, mode, results, notes))
        elif not outputs.jsonl:
            _print(file, results, notes)
    if as_json:
        print_json({"format": "nanreplay-replay", "version": 1, "captures": captures})
    return max(codes, key=(FINITE, NONFINITE, UNDECIDED, UNREADABLE).index)


def _replay(file: str, mode: Mode, trust: bool) -> tuple[Sequence[StepResult], Sequence[str]]:
    from nanreplay.capture import Capture
    from nanreplay.report.steps import replay_steps

    with Capture(file) as capture, quiet_work(), progress_bar() as watch:
        return replay_steps(capture, mode, trust=trust, progress=watch.progress)


def _add(outputs: Outputs, file: str, code: int, results: Sequence[StepResult], notes: Sequence[str], trust: bool) -> None:
    from nanreplay.report.explain import explain
    from nanreplay.report.steps import step_lines, summary

    report = None
    if code == NONFINITE and outputs.wants_origin:
        with contextlib.suppress(NanreplayError), quiet_work():
            report = explain(file, trust=trust, fixes="none")
    outputs.add(file, code, report.sentence if report else summary(results), report, tuple(step_lines(file, results, notes)))


def _print(file: str, results: Sequence[StepResult], notes: Sequence[str]) -> None:
    from nanreplay.report.steps import step_lines

    for line in step_lines(file, results, notes):
        click.echo(line)
