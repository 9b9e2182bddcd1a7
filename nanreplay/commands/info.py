"""`nanreplay info`: what a capture holds. Reads tables only, so the size of the file does not matter."""

from __future__ import annotations

import click

from nanreplay.commands.console import as_json, capture_file, max_memory, print_json
from nanreplay.commands.exits import FINITE


@click.command("info")
@capture_file
@as_json
@max_memory
def command(file: str, as_json: bool) -> int:
    """Say what a capture holds: incident, versions, steps, programs, variables, the last losses.

    Nothing is replayed and TensorFlow is not needed.
    """
    from nanreplay.capture import Capture
    from nanreplay.report.inventory import inventory, inventory_lines

    with Capture(file) as capture:
        facts = inventory(capture)
    if as_json:
        print_json(facts)
    else:
        for line in inventory_lines(facts):
            click.echo(line)
    return FINITE
