"""What `replay` and `bisect` write for machines: `--junit`, `--sarif`, `--jsonl`.

Where GitHub runs the command, annotations come besides. The formats are in
`report.machine_formats`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanreplay.errors import NanreplayError
from nanreplay.terminal import CODES, STATUS, UNDECIDED, code_of, own_stdout

if TYPE_CHECKING:
    from nanreplay.findings import FixResult
    from nanreplay.report.contents import Report
    from nanreplay.report.machine_formats import CaptureOutcome


class Outputs:
    """Collects what became of each capture, and writes the files when the command ends.

    Args:
        command: Name of the command.
        junit: File for JUnit XML, or None.
        sarif: File for SARIF, or None.
        jsonl: Whether a line of JSON a capture goes to stdout.
    """

    def __init__(self, command: str, junit: str | None, sarif: str | None, jsonl: bool) -> None:
        self._suite = f"nanreplay.{command}"
        self._junit, self._sarif, self.jsonl = junit, sarif, jsonl
        self._annotates = os.environ.get("GITHUB_ACTIONS") == "true"
        self._outcomes: list[CaptureOutcome] = []
        # Lines are printed while the work goes on, when stdout is that of the recorded program.
        self._stdout = own_stdout() if jsonl else None
        self._telling: str | None = None
        """The capture whose line of JSON was printed last."""
        self._began_s = 0.0

    @property
    def wants_origin(self) -> bool:
        """Whether somebody reads where a non-finite value was born."""
        return bool(self._junit or self._sarif or self.jsonl or self._annotates)

    @contextlib.contextmanager
    def of(self, file: str) -> Iterator[None]:
        """Time the work on one capture, and note the error that it ends with."""
        self._began_s = time.perf_counter()
        try:
            yield
        except NanreplayError as error:
            self.add(file, code_of(error), " ".join(str(error).split()))
            raise

    def add(
        self,
        file: str,
        code: int,
        sentence: str,
        report: Report | None = None,
        details: Sequence[str] = (),
    ) -> None:
        """Note what became of a capture; prints its lines of JSON, unless they are there.

        Args:
            file: The capture.
            code: The exit code that it alone stands for.
            sentence: What happened, or why it cannot be said.
            report: Where a non-finite value was born, when it was looked for.
            details: Further lines to read.
        """
        from nanreplay.report.machine_formats import CaptureOutcome, outcome_to_json

        elapsed_s = time.perf_counter() - self._began_s
        outcome = CaptureOutcome(file, STATUS[code], sentence, report, tuple(details), elapsed_s)
        if self._telling != file or report is None:  # an error after the answer is told, too
            self._telling = file
            self._print(outcome_to_json(outcome))
            for fix in () if report is None else report.fixes:
                self.tell_fix(fix)
        self._outcomes.append(outcome)

    def tell(self, report: Report) -> None:
        """Print the line of JSON of a capture whose fixes are still to be tried."""
        from nanreplay.report.machine_formats import CaptureOutcome, outcome_to_json

        code = CODES.get(report.verdict.kind, UNDECIDED)
        elapsed_s = time.perf_counter() - self._began_s
        outcome = CaptureOutcome(report.path, STATUS[code], report.sentence, report, (), elapsed_s)
        self._print(outcome_to_json(outcome))
        self._telling = report.path

    def tell_fix(self, fix: FixResult) -> None:
        """Print the line of JSON of a fix that was tried on the capture told last."""
        from nanreplay.report.machine_formats import fix_line_to_json

        assert self._telling is not None
        self._print(fix_line_to_json(self._telling, fix))

    def _print(self, facts: dict[str, Any]) -> None:
        if self.jsonl:
            line = json.dumps(facts, ensure_ascii=False, allow_nan=False)
            click.echo(line, file=self._stdout)

    def close(self) -> None:
        """Let go of the copy of stdout."""
        if self._stdout is not None:
            with contextlib.suppress(OSError):  # each line was flushed; who reads it may be gone
                self._stdout.close()

    def write(self) -> None:
        """Write the files, and the annotations to stderr, where GitHub reads them too."""
        from nanreplay.report.machine_formats import annotation, checkout_root, to_junit, to_sarif

        root = checkout_root()
        if self._junit:
            _write(self._junit, to_junit(self._suite, self._outcomes, root))
        if self._sarif:
            log = to_sarif(self._outcomes, root)
            text = json.dumps(log, indent=2, ensure_ascii=False, allow_nan=False)
            _write(self._sarif, text + "\n")
        if self._annotates:
            for line in filter(None, (annotation(outcome, root) for outcome in self._outcomes)):
                click.echo(line, err=True)


def _write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise click.FileError(file, error.strerror or str(error)) from error


def _can_be_written(
    context: click.Context, option: click.Parameter, file: str | None
) -> str | None:
    """Refuse a file in a folder that is not there, before any work is done."""
    if file is not None and not Path(file).absolute().parent.is_dir():
        raise click.BadParameter(f"the folder of {file} does not exist.", context, option)
    return file


_file = click.Path(dir_okay=False, writable=True, path_type=str)
_junit = click.option(
    "--junit",
    metavar="FILE",
    type=_file,
    callback=_can_be_written,
    help="Write JUnit XML, one test case for each capture.",
)
_sarif = click.option(
    "--sarif",
    metavar="FILE",
    type=_file,
    callback=_can_be_written,
    help="Write SARIF 2.1.0, one result for each line of code.",
)
_jsonl = click.option(
    "--jsonl", is_flag=True, help="Print one line of JSON for each capture and fix, as they come."
)


def for_machines(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command `--junit`, `--sarif` and `--jsonl`, and an argument `outputs`.

    The files of `outputs` are written when the command ends, with a result or an error.
    """

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)
        def with_outputs(
            *args: Any, junit: str | None, sarif: str | None, jsonl: bool, **others: Any
        ) -> int:
            if jsonl and others.get("as_json"):
                raise click.UsageError("--json and --jsonl exclude each other.")
            with contextlib.closing(Outputs(name, junit, sarif, jsonl)) as outputs:
                try:
                    code = command(*args, outputs=outputs, **others)
                except NanreplayError:
                    outputs.write()
                    raise
                outputs.write()
                return code

        return _junit(_sarif(_jsonl(with_outputs)))

    return decorate
