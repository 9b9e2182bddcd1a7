"""`nanreplay export`: a test that fails as long as the user's current code turns non-finite."""

from __future__ import annotations

import click

from nanreplay.commands.console import (
    as_json,
    capture_file,
    check_readable,
    force,
    max_memory,
    print_result,
    progress_bar,
    trust,
)
from nanreplay.terminal import FINITE, quiet_work


@click.command("export")
@capture_file
@click.option(
    "--pytest",
    "folder",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=str),
    help="Where the test and its capture go.",
)
@click.option(
    "--model",
    metavar="MODULE:FUNCTION",
    required=True,
    help=(
        "What makes today's model, or FILE.py:FUNCTION: "
        "a compiled Keras model, or (model, optimizer, step) of a loop."
    ),
)
@force
@as_json
@max_memory
@trust
def command(file: str, folder: str, model: str, force: bool, as_json: bool, trust: bool) -> int:
    """Write a pytest module for the failure of FILE, beside the smallest capture of it.

    The test runs the recorded state and batch through the model that --model makes, and asserts
    that the result is finite: it fails today and passes once the code is fixed. It is run once, and
    said is what came of it.

    Exit codes: 0 written, 2 unreadable file, no such model or files exist, 3 FILE has no origin
    that a replay gives.
    """
    check_readable(file)
    with quiet_work(), progress_bar() as reporter:
        from nanreplay.export.pytest_module import export_test

        exported = export_test(
            file,
            folder,
            model,
            trust=trust,
            force=force,
            progress=reporter.progress,
            say=reporter.say,
        )
    from nanreplay.export.export_text import exported_lines, exported_to_json

    print_result(exported, as_json, exported_lines, exported_to_json)
    return FINITE
