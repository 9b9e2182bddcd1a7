"""`nanreplay minimize`: the smallest capture that still gives the same origin."""

from __future__ import annotations

import click

from nanreplay.commands.console import (
    as_json,
    capture_file,
    force,
    max_memory,
    output_file,
    print_json,
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
    help="Time that the search may take.",
)
@force
@as_json
@max_memory
@trust
def command(file: str, output: str, budget: float, force: bool, as_json: bool, trust: bool) -> int:
    """Write the smallest capture that still has the origin of FILE: one step, the fewest rows, features and variables.

    Every cut is replayed. What was left out, set to zero or changed is said, and noted in the file that is written.

    Exit codes: 0 written, 2 unreadable file or OUT exists, 3 FILE has no origin that a replay gives.
    """
    from nanreplay.capture import Capture
    from nanreplay.export.output_paths import check_output

    Capture(file).close()  # a file that cannot be read says so before TensorFlow loads
    check_output(file, output, force=force)
    with quiet_work(), progress_bar() as watch:
        from nanreplay.export.minimizer import minimize

        found = minimize(
            file,
            output,
            trust=trust,
            force=force,
            budget_s=budget,
            progress=watch.progress,
            say=watch.say,
        )
    from nanreplay.export.export_text import minimized_lines, minimized_to_json

    if as_json:
        print_json(minimized_to_json(found))
    else:
        for line in minimized_lines(found):
            click.echo(line)
    return FINITE
