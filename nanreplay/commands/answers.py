"""The report of a capture for `bisect` and `report`: replayed, or stored where nothing can be.

Where TensorFlow is not installed, the answer that the file holds stands in, with a line on stderr
that says whose it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from nanreplay.commands.console import FIXES, progress_bar
from nanreplay.terminal import quiet_work

if TYPE_CHECKING:
    from nanreplay.findings import FixResult
    from nanreplay.report.contents import Report


@contextlib.contextmanager
def explaining(
    fixes: bool | None,
    trust: bool,
    before_fixes: Callable[[Report], None] | None = None,
    each_fix: Callable[[FixResult], None] | None = None,
) -> Iterator[Callable[[str], Report]]:
    """Give what explains a capture, while TensorFlow is quiet and a progress bar shows.

    Args:
        fixes: What `--fixes/--no-fixes` says.
        trust: What `--trust` says.
        before_fixes: As for `explain`; not called where a stored answer stands in.
        each_fix: The same.
    """
    from nanreplay.report.stored_answers import has_tensorflow

    if not has_tensorflow():
        yield _stored
        return
    with quiet_work(), progress_bar() as reporter:
        from nanreplay.report.explain import explain

        yield lambda file: explain(
            file,
            trust=trust,
            fixes=FIXES[fixes],
            progress=reporter.progress,
            say=reporter.say,
            before_fixes=before_fixes,
            each_fix=each_fix,
        )


def _stored(file: str) -> Report:
    from nanreplay.report.stored_answers import answer_without_tensorflow

    answer = answer_without_tensorflow(file)
    click.echo(
        f"nanreplay: {file}: TensorFlow is not installed, so this is {answer.line}.", err=True
    )
    return answer.report


def check_can_store(files: tuple[str, ...]) -> None:
    """Say now, not after the work, that no answer can be stored.

    Raises:
        UsageError: There are several files, or the one is of another machine.
        MissingPackageError: TensorFlow, which makes the answer, is not installed.
    """
    from nanreplay.capture.storage import RemotePath, location
    from nanreplay.errors import MissingPackageError
    from nanreplay.report.stored_answers import has_tensorflow

    if len(files) > 1:
        raise click.UsageError("--store takes one file: the answer of each is stored in itself.")
    if isinstance(location(files[0]), RemotePath):
        raise click.UsageError(f"--store takes a file of this machine; copy {files[0]} first.")
    if not has_tensorflow():
        raise MissingPackageError(
            "--store replays, and so needs tensorflow, which is not installed: "
            "pip install 'nanreplay[tensorflow]', or the build of TensorFlow that you train with."
        )
