"""`nanreplay bisect`: replay the failing step and name the op that made the first non-finite value."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

import click

from nanreplay.commands.console import (
    as_json,
    capture_files,
    max_memory,
    print_json,
    progress_bar,
    trust,
)
from nanreplay.commands.outputs import Outputs, for_machines
from nanreplay.terminal import CODES, UNDECIDED, quiet_work

if TYPE_CHECKING:
    from nanreplay.report.contents import Report

FIXES: dict[bool | None, Literal["fast", "all", "none"]] = {
    None: "fast",
    True: "all",
    False: "none",
}


@click.command("bisect")
@capture_files
@click.option(
    "--fixes/--no-fixes",
    "fixes",
    default=None,
    help="Try all fixes that fit the cause, or none; those that take under 5 s unless given.",
)
@as_json
@for_machines("bisect")
@trust
@max_memory
def command(
    files: tuple[str, ...], fixes: bool | None, as_json: bool, trust: bool, outputs: Outputs
) -> int:
    """Replay the failing step of FILE, name the op that made the first non-finite value, say why, and try fixes.

    The files of several workers of one training are one run: the report is that of the worker whose own step failed first.

    Exit codes: 0 healthy, 1 non-finite reproduced, 2 unreadable file, 3 could not decide.
    """
    with outputs.of(files[0]):
        report = _explained(files, fixes, trust)
    code = CODES.get(report.verdict.kind, UNDECIDED)
    outputs.add(report.path, code, report.sentence, report, report.findings.notes)
    if as_json:
        from nanreplay.report.report_json import to_json

        print_json(to_json(report))
    elif not outputs.jsonl:
        from rich.console import Console

        from nanreplay.report.report_text import print_report

        print_report(
            report,
            Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 140),
        )
    return code


def _explained(files: tuple[str, ...], fixes: bool | None, trust: bool) -> Report:
    from nanreplay.capture import Capture
    from nanreplay.report.explain import check_one_run, explain_run

    for file in files:
        Capture(file).close()  # a file that cannot be read says so before TensorFlow loads
    if len(files) > 1:
        check_one_run(files)
    with quiet_work(), progress_bar() as watch:
        from nanreplay.report.explain import explain

        def explained(file: str) -> Report:
            return explain(
                file, trust=trust, fixes=FIXES[fixes], progress=watch.progress, say=watch.say
            )

        return explained(files[0]) if len(files) == 1 else explain_run(files, explained)
