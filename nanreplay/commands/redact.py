"""`nanreplay redact`: a capture to share, without data, source lines and paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from nanreplay.export.redaction import Batches, Weights


@click.command("redact")
@capture_file
@output_file
@click.option(
    "--batches",
    type=click.Choice(["statistics", "failing-rows", "none"]),
    default="statistics",
    show_default=True,
    help=(
        "statistics: random numbers replace the data; failing-rows: they replace all rows but "
        "those that fail; none: no batches."
    ),
)
@click.option(
    "--weights",
    type=click.Choice(["keep", "none"]),
    default="keep",
    show_default=True,
    help="none: leave the weights and all other state out.",
)
@force
@as_json
@max_memory
@trust
def command(
    file: str,
    output: str,
    batches: Batches,
    weights: Weights,
    force: bool,
    as_json: bool,
    trust: bool,
) -> int:
    """Write the failing step of FILE without its data, source lines, folders and machine facts.

    The result is replayed; the command says whether it still has the origin of FILE. Names of
    layers, variables, ops, functions and source files stay. The weights stay too, unless you give
    --weights none.

    Exit codes: 0 written, whether it reproduces or not; 2 unreadable file or OUT exists; 3 the
    failing rows are not known.
    """
    from nanreplay.export.output_paths import check_output

    check_readable(file)
    check_output(file, output, force=force)
    with quiet_work(), progress_bar() as reporter:
        from nanreplay.export.redaction import redact

        redacted = redact(
            file,
            output,
            batches=batches,
            weights=weights,
            trust=trust,
            force=force,
            progress=reporter.progress,
            say=reporter.say,
        )
    from nanreplay.export.export_text import redacted_lines, redacted_to_json

    print_result(redacted, as_json, redacted_lines, redacted_to_json)
    return FINITE
