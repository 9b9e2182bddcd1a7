"""`nanreplay whatif`: try fixes on the recorded failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nanreplay.commands.console import (
    as_json,
    capture_file,
    check_readable,
    max_memory,
    print_json,
    progress_bar,
    quiet,
    results_console,
    trust,
)
from nanreplay.terminal import FINITE, NONFINITE, UNDECIDED, quiet_work

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def _fix_names(
    context: click.Context, option: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from nanreplay.whatif.fix_names import NAMES

    return [CompletionItem(name) for name in NAMES if name.startswith(incomplete)]


@click.command("whatif")
@capture_file
@click.option(
    "--fix",
    "fixes",
    metavar="NAME[=VALUE]",
    multiple=True,
    shell_complete=_fix_names,
    help="Try this fix; several are tried together as well.",
)
@quiet
@as_json
@trust
@max_memory
def command(file: str, fixes: tuple[str, ...], quiet: bool, as_json: bool, trust: bool) -> int:
    """Replay the window of FILE with fixes and say which of them prevents the non-finite value.

    Without --fix, those that fit the cause are tried, and what people usually try. Names: lr (a
    factor), clipnorm, clipvalue, global_clipnorm, epsilon, clip_data (a bound), clean_data
    (nan_to_num or drop_rows), float32, leaky_relu (a slope), init (glorot or he), double_where,
    stable_op, finite_mask, skip_step.

    Exit codes: 0 a fix prevents it, or nothing was non-finite; 1 none does; 2 unreadable file or no
    such fix; 3 none could be tried.
    """
    from nanreplay.whatif import check_fix

    for fix in fixes:
        check_fix(fix)
    check_readable(file)
    with quiet_work(), progress_bar() as reporter:
        from nanreplay.report.explain import explain

        report = explain(
            file,
            trust=trust,
            fixes=list(fixes) or "all",
            progress=reporter.progress,
            say=reporter.say,
        )
    if as_json:
        from nanreplay.report.report_json import to_json

        print_json(to_json(report))
    elif quiet:
        click.echo(report.sentence)
    else:
        from nanreplay.report.report_text import print_fixes

        print_fixes(report, results_console())
    if report.verdict.kind == "healthy" or any(fix.prevents for fix in report.fixes):
        return FINITE
    return NONFINITE if any(fix.prevents is False for fix in report.fixes) else UNDECIDED
