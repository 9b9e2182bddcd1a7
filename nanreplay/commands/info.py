"""`nanreplay info`: what a capture holds.

Reads tables only, so the size of the file does not matter.
"""

from __future__ import annotations

import click

from nanreplay.commands.console import as_json, capture_files, max_memory, print_json
from nanreplay.terminal import FINITE


@click.command("info")
@capture_files
@as_json
@max_memory
def command(files: tuple[str, ...], as_json: bool) -> int:
    """Say what a capture holds: incident, versions, steps, programs, variables, the last losses.

    Several files, such as those of the workers of one training, follow each other. Nothing is
    replayed and TensorFlow is not needed.
    """
    from nanreplay.capture import Capture
    from nanreplay.report.inventory import inventory, inventory_lines

    inventories = []
    for file in files:
        with Capture(file) as capture:
            inventories.append(inventory(capture))
    if as_json:
        many = {"format": "nanreplay-info", "version": 1, "captures": inventories}
        print_json(inventories[0] if len(inventories) == 1 else many)
        return FINITE
    for place, facts in enumerate(inventories):
        if place:
            click.echo()
        for line in inventory_lines(facts):
            click.echo(line)
    return FINITE
