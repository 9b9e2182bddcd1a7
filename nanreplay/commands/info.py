"""`nanreplay info`: what a capture holds.

Reads tables only, so the size of the file does not matter.
"""

from __future__ import annotations

import click

from nanreplay.commands.console import as_json, capture_files, max_memory, print_json
from nanreplay.commands.exits import fail
from nanreplay.errors import NanreplayError
from nanreplay.terminal import FINITE


@click.command("info")
@capture_files
@as_json
@max_memory
def command(files: tuple[str, ...], as_json: bool) -> int:
    """Say what a capture holds: incident, versions, steps, programs, variables, the last losses.

    Several files, such as those of the workers of one training, follow each other. Nothing is
    replayed and TensorFlow is not needed.

    Exit codes: 0 shown, 2 a file cannot be read; the others are shown.
    """
    from nanreplay.capture import Capture
    from nanreplay.report.inventory import inventory, inventory_lines

    inventories, code = [], FINITE
    for file in files:
        try:
            with Capture(file) as capture:
                inventories.append(inventory(capture))
        except NanreplayError as error:  # the other files are shown all the same
            code = fail(error)
    if as_json and inventories:
        many = {"format": "nanreplay-info", "version": 1, "captures": inventories}
        print_json(inventories[0] if len(files) == 1 else many)
        return code
    for place, facts in enumerate(inventories):
        if place:
            click.echo()
        for line in inventory_lines(facts):
            click.echo(line)
    return code
