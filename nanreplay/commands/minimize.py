"""`nanreplay minimize`: the smallest capture that still gives the same origin."""

from __future__ import annotations

import click

from nanreplay.commands.console import (
    as_json,
    capture_file,
    check_readable,
    force,
    max_memory,
    output_file,
    print_result,
    progress_bar,
    trust,
)
from nanreplay.terminal import FINITE, quiet_work


@click.command("minimize")
@capture_file
@output_file
@click.option(
    "--budget",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Most seconds that the search takes.",
)
@force
@as_json
@max_memory
@trust
def command(file: str, output: str, budget: float, force: bool, as_json: bool, trust: bool) -> int:
    """Write the smallest capture that still has the origin of FILE.

    It has one step, and the fewest rows, features and variables. Every cut is replayed. Notes say
    what was left out, set to zero or changed; they are printed and stand in the file.

    Exit codes: 0 written, 2 unreadable file or OUT exists, 3 a replay of FILE gives no origin.
    """
    from nanreplay.export.output_paths import check_output

    check_readable(file)
    check_output(file, output, force=force)
    with quiet_work(), progress_bar() as reporter:
        from nanreplay.export.minimizer import minimize

        minimized = minimize(
            file,
            output,
            trust=trust,
            force=force,
            budget_s=budget,
            progress=reporter.progress,
            say=reporter.say,
        )
    from nanreplay.export.export_text import minimized_lines, minimized_to_json

    print_result(minimized, as_json, minimized_lines, minimized_to_json)
    return FINITE
