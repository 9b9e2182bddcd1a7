"""`nanreplay diff`: where two captures part, or two ways of running one.

The two ways are two modes of replaying, or the recorded program and the user's current code.
"""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any, cast

import click

from nanreplay.commands.console import (
    CapturePath,
    as_json,
    check_readable,
    max_memory,
    print_result,
    trust,
)
from nanreplay.commands.rerun_options import check_needs_model, rerun_options
from nanreplay.terminal import UNDECIDED, quiet_work

if TYPE_CHECKING:
    from nanreplay.diff import Diff
    from nanreplay.replay.replay_programs import Mode

MODES = ("recorded", "graph", "ops", "float64")
CODES = {True: 0, False: 1, None: UNDECIDED}
"""Exit code by whether the sides are the same."""


def _two_modes(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[Mode, Mode] | None:
    if value is None:
        return None
    modes = value.split(",")
    if len(modes) != 2 or modes[0] == modes[1] or not set(modes) <= set(MODES):
        message = f"Expected two of {', '.join(MODES)}, joined by a comma. Received: {value}"
        raise click.BadParameter(message, context, option)
    return cast("tuple[Mode, Mode]", tuple(modes))


def _pairs_of_modes(context: click.Context, option: click.Parameter, incomplete: str) -> list[str]:
    pairs = (f"{one},{other}" for one, other in permutations(MODES, 2))
    return [pair for pair in pairs if pair.startswith(incomplete)]


@click.command("diff")
@click.argument("file", metavar="FILE", type=CapturePath(path_type=str))
@click.argument("other", metavar="[OTHER]", required=False, type=CapturePath(path_type=str))
@click.option(
    "--modes",
    metavar="MODE,MODE",
    callback=_two_modes,
    shell_complete=_pairs_of_modes,
    help=f"Two ways of replaying FILE: {', '.join(MODES)}.",
)
@rerun_options
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
    **rerun: Any,
) -> int:
    """Name the first step, layer and op at which FILE and OTHER differ.

    In place of OTHER, --modes compares two ways of replaying FILE, and --model runs today's code on
    its weights and batches. Versions and machines are listed; they are no difference.

    Exit codes: 0 the same, 1 they differ, 2 unreadable file, 3 could not decide.
    """
    check_needs_model(model)
    n_sides = sum(side is not None for side in (other, modes, model))
    if n_sides > 1:
        raise click.UsageError(
            "Compare FILE with one thing alone: a second file, --modes MODE,MODE or "
            "--model MODULE:FUNCTION.",
            click.get_current_context(),
        )
    if not n_sides:
        raise click.UsageError(
            "Say what to compare FILE with: a second file, --modes MODE,MODE, or "
            "--model MODULE:FUNCTION.",
            click.get_current_context(),
        )
    check_readable(*filter(None, (file, other)))
    with quiet_work():
        diff = _diff(file, other, modes, model, trust, rerun)
    from nanreplay.diff.diff_findings import diff_lines, diff_to_json

    print_result(diff, as_json, diff_lines, diff_to_json)
    return CODES[diff.same]


def _diff(
    file: str,
    other: str | None,
    modes: tuple[Mode, Mode] | None,
    model: str | None,
    trust: bool,
    rerun: dict[str, Any],
) -> Diff:
    from nanreplay.diff import diff_captures, diff_modes, diff_with_code

    if modes is not None:
        return diff_modes(file, *modes, trust=trust)
    if model is not None:
        return diff_with_code(file, model, trust=trust, **rerun)
    return diff_captures(file, cast("str", other), trust=trust)
