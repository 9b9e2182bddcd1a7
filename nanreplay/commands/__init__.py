"""The command line: `nanreplay COMMAND`, one module a command; their names are here.

Imports click alone, so that `--help` answers at once; a command imports what it needs when it runs.
Exit codes are in `nanreplay.terminal`, what errors print in `exits`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nanreplay import __version__
from nanreplay.commands.exits import fail, leave
from nanreplay.commands.streams import lasting_output
from nanreplay.terminal import UNREADABLE

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMPLETION = "_NANREPLAY_COMPLETE"
"""What a shell sets when it asks for completions, as click's scripts for shells have it."""
COMMANDS = {
    "run": "Run a program as it is, and record whatever trains in it.",
    "demo": "Train a small model into a NaN, replay it and name the op.",
    "logs": "Read logs and checkpoints: when did the training go wrong, and how?",
    "info": "Say what a capture holds.",
    "replay": "Replay the recorded steps and compare them bit for bit, "
    "or run them through today's code.",
    "bisect": "Name the op that made the first non-finite value, and why.",
    "triage": "Explain many captures, and group those that failed alike.",
    "whatif": "Try fixes on the recorded failure.",
    "diff": "Say where two captures, two modes, or a capture and today's code part.",
    "report": "Write a page about a failure: HTML, or Markdown for an issue.",
    "minimize": "Write the smallest capture that still has the same origin.",
    "redact": "Write a capture without its data, source lines and paths.",
    "export": "Write a test that fails until it is fixed, or the timeline for other tools.",
    "completion": "Print a script that lets your shell complete commands and files.",
    "open": "Show a capture in the terminal: the answer, every op and tensor, fixes.",
    "shell": "Open an IPython session with the failing step's tensors by name.",
}

_MOST_NAMED = 4
"""Commands that an error names; many share options such as `--json`."""
_LIBRARIES = (
    "tensorflow", "tensorflow-cpu", "tf-nightly", "keras", "tf_keras", "numpy", "h5py", "textual",
)  # fmt: skip


class LazyGroup(click.Group):
    """A group that imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, from its module."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"nanreplay.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that a line calls, or the ones that it may have meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            meant = difflib.get_close_matches(args[0], COMMANDS, n=2, cutoff=0.6)
            question = f" Did you mean {' or '.join(meant)}?" if meant else ""
            ctx.fail(f"No such command {args[0]!r}.{question}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands that begin so, without importing them."""
        from click.shell_completion import CompletionItem

        items = []
        for name, about in COMMANDS.items():
            if name.startswith(incomplete):
                items.append(CompletionItem(name, help=about))
        return items

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def installed_versions() -> Iterator[str]:
    """A line for each library that recordings and replays hang on, and for Python."""
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"
    yield f"python {platform.python_version()}"


def _show_versions(context: click.Context, option: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        click.echo("\n".join([f"nanreplay {__version__}", *installed_versions()]))
        context.exit()


@click.group(
    cls=LazyGroup,
    epilog=(
        "Exit codes: 0 finite or healthy, 1 non-finite reproduced, "
        "2 wrong usage or unreadable file, 3 could not decide."
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the versions of nanreplay, TensorFlow and other libraries, and exit.",
)
def cli() -> None:
    """Replay a training that turned NaN, and name the op that did it.

    Record: `nanreplay run train.py`, or model.fit(data, callbacks=[nanreplay.Recorder("run.h5")]).
    Then ask: `nanreplay bisect run.h5`.
    """


def run_command_line(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code.

    Args:
        arguments: What follows `nanreplay`; that of the process unless given.
    """
    line = list(sys.argv[1:] if arguments is None else arguments)
    completion = os.environ.get(COMPLETION)
    if completion is not None:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "nanreplay", COMPLETION, completion)
    if _runs_program(line):  # it has the process to itself, its output too
        return _run(line)
    with lasting_output():
        return _run(line)


def _runs_program(line: Sequence[str]) -> bool:
    # the options before a command are flags, so the first other word is the command
    return next((word for word in line if not word.startswith("-")), None) == "run"


def _run(line: list[str]) -> int:
    # click's own `main` exits the process, and with codes of its own
    try:
        with cli.make_context("nanreplay", line) as context:
            result: Any = cli.invoke(context)
        return int(result or 0)
    except click.exceptions.Exit as error:  # --help, --version
        return error.exit_code
    except click.exceptions.NoSuchOption as error:
        return fail(_with_its_command(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return UNREADABLE
    except (Exception, KeyboardInterrupt) as error:
        return fail(error)


def _with_its_command(error: click.exceptions.NoSuchOption) -> click.UsageError:
    """The same error with the commands that do have the option, in place of similar options."""
    group = cli.make_context("nanreplay", [], resilient_parsing=True)
    commands = {name: cli.get_command(group, name) for name in COMMANDS}
    having = []
    for name, command in commands.items():
        if command is not None and any(error.option_name in each.opts for each in command.params):
            having.append(f"`nanreplay {name}`")
    if not having:
        return error
    if len(having) > _MOST_NAMED:
        who = f"Write it after a command that has it, such as {having[-1]}."
    else:
        who = f"{', '.join(having)} {'has' if len(having) == 1 else 'have'} it."
    return click.UsageError(f"No such option {error.option_name!r}. {who}", error.ctx)


def main() -> NoReturn:
    """The console script."""
    code = run_command_line()
    if "tensorflow" in sys.modules and not _runs_program(sys.argv[1:]):
        leave(code)
    sys.exit(code)
