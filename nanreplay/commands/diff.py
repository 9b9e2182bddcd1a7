"""`nanreplay diff`: where two captures part, two ways of replaying one, or a capture and today's code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from nanreplay.commands.console import as_json, max_memory, print_json, trust
from nanreplay.commands.rerun_options import check_needs_model, of_model
from nanreplay.terminal import UNDECIDED, quiet_work

if TYPE_CHECKING:
    from nanreplay.diff import Diff
    from nanreplay.replay.replay_programs import Mode

MODES = ("recorded", "graph", "ops", "float64")
CODES = {True: 0, False: 1, None: UNDECIDED}
"""Exit code by whether the sides are the same."""


def _two_modes(
    context: click.Context, option: click.Parameter, given: str | None
) -> tuple[Mode, Mode] | None:
    if given is None:
        return None
    modes = given.split(",")
    if len(modes) != 2 or modes[0] == modes[1] or not set(modes) <= set(MODES):
        raise click.BadParameter(
            f"Expected two of {', '.join(MODES)}, joined by a comma. Received: {given}",
            context,
            option,
        )
    return cast("tuple[Mode, Mode]", tuple(modes))


@click.command("diff")
@click.argument("file", metavar="FILE", type=click.Path(path_type=str))
@click.argument("other", metavar="[OTHER]", required=False, type=click.Path(path_type=str))
@click.option(
    "--modes",
    metavar="MODE,MODE",
    callback=_two_modes,
    help=f"Two ways of replaying FILE: {', '.join(MODES)}.",
)
@of_model
@as_json
@trust
@max_memory
def command(
    file: str,
    other: str | None,
    modes: tuple[Mode, Mode] | None,
    model: str | None,
    as_json: bool,
    trust: bool,
    **today: Any,
) -> int:
    """Say where FILE and OTHER part: the first step, layer and op, and what they were made with.

    In place of OTHER: two --modes of replaying FILE, or --model, today's code on its weights and batches. Versions and
    machines are listed, and do not count as a difference.

    Exit codes: 0 the same, 1 they differ, 2 unreadable file, 3 could not decide.
    """
    check_needs_model(model)
    if sum(each is not None for each in (other, modes, model)) != 1:
        raise click.UsageError(
            "give one of OTHER, --modes and --model", click.get_current_context()
        )
    from nanreplay.capture import Capture

    for path in filter(None, (file, other)):
        Capture(path).close()  # a file that cannot be read says so before TensorFlow loads
    with quiet_work():
        found = _diff(file, other, modes, model, trust, today)
    _print(found, as_json)
    return CODES[found.same]


def _diff(
    file: str,
    other: str | None,
    modes: tuple[Mode, Mode] | None,
    model: str | None,
    trust: bool,
    today: dict[str, Any],
) -> Diff:
    from nanreplay.diff import diff_captures, diff_modes, diff_with_code

    if modes is not None:
        return diff_modes(file, *modes, trust=trust)
    if model is not None:
        return diff_with_code(file, model, trust=trust, **today)
    return diff_captures(file, cast("str", other), trust=trust)


def _print(found: Diff, as_json: bool) -> None:
    from nanreplay.diff.diff_findings import diff_lines, diff_to_json

    if as_json:
        print_json(diff_to_json(found))
        return
    for line in diff_lines(found):
        click.echo(line)
