"""`nanreplay bisect`: name the op that made the first non-finite value of a capture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nanreplay.commands.answers import check_can_store, explaining
from nanreplay.commands.console import (
    as_json,
    capture_files,
    check_readable,
    fixes_or_none,
    max_memory,
    print_json,
    quiet,
    results_console,
    trust,
)
from nanreplay.commands.outputs import Outputs, for_machines
from nanreplay.terminal import CODES, UNDECIDED

if TYPE_CHECKING:
    from nanreplay.report.contents import Report


@click.command("bisect")
@capture_files
@fixes_or_none
@click.option(
    "--store",
    is_flag=True,
    help="Store the answer in FILE, for machines without TensorFlow. Its data stays as it is.",
)
@quiet
@as_json
@for_machines("bisect")
@trust
@max_memory
def command(
    files: tuple[str, ...],
    fixes: bool | None,
    store: bool,
    quiet: bool,
    as_json: bool,
    trust: bool,
    outputs: Outputs,
) -> int:
    """Name the op that made the first non-finite value in FILE, say why, and try fixes.

    The failing step is replayed. The files of several workers of one training are one run: the
    report is that of the worker whose own step failed first. Where TensorFlow is not installed, the
    answer that is stored in FILE is printed.

    Exit codes: 0 healthy, 1 non-finite reproduced, 2 unreadable file, 3 could not decide.
    """
    with outputs.of(files[0]):
        report = _explained(files, fixes, trust, store, outputs)
    code = CODES.get(report.verdict.kind, UNDECIDED)
    outputs.add(report.path, code, report.sentence, report, report.findings.notes)
    if as_json:
        from nanreplay.report.report_json import to_json

        print_json(to_json(report))
    elif quiet and not outputs.jsonl:
        click.echo(report.sentence)
    elif not outputs.jsonl:
        from nanreplay.report.report_text import print_report

        print_report(report, results_console())
    return code


def _explained(
    files: tuple[str, ...], fixes: bool | None, trust: bool, store: bool, outputs: Outputs
) -> Report:
    from nanreplay.report.explain import check_one_run, explain_run
    from nanreplay.report.stored_answers import content_of, store_answer

    check_readable(*files)
    if store:
        check_can_store(files)
        content = content_of(files[0])
    if len(files) > 1:
        check_one_run(files)
    # Which of several workers failed first is known once all are explained.
    streams = outputs.jsonl and len(files) == 1
    before_fixes, each_fix = (outputs.tell, outputs.tell_fix) if streams else (None, None)
    with explaining(fixes, trust, before_fixes, each_fix) as explained:
        report = explained(files[0]) if len(files) == 1 else explain_run(files, explained)
    if store:
        store_answer(files[0], report, content=content)
        click.echo(f"nanreplay: {files[0]}: holds this answer now.", err=True)
    return report
