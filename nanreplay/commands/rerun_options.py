"""Options of the commands that run today's code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
from click.core import ParameterSource

OPTIONS = {
    "renamed": "--map",
    "allow_missing": "--allow-missing",
    "learning_rate": "--learning-rate",
}
"""Those that say something of today's model, by the names of the arguments of `nanreplay.replay_with`."""


def _renamings(
    context: click.Context, option: click.Parameter, given: Sequence[str]
) -> dict[str, str]:
    """`old=new` pairs of recorded and today's names."""
    pairs = [each.partition("=") for each in given]
    for text, (old, sign, _) in zip(given, pairs, strict=True):
        if not old or not sign:
            raise click.BadParameter(f"Expected OLD=NEW. Received: {text}", context, option)
    return {old: new for old, _, new in pairs}


def of_model(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--model` and what goes with it."""
    for option in reversed((
        click.option(
            "--model", metavar="MODULE:FUNCTION", help="Run today's code instead: a function (or FILE.py:FUNCTION) that returns it."
        ),
        click.option(
            "--map", "renamed", metavar="OLD=NEW", multiple=True, callback=_renamings,
            help="What part of a recorded path is called today.",
        ),
        click.option("--allow-missing", is_flag=True, help="Keep today's initial values where nothing was recorded."),
        click.option(
            "--learning-rate", type=click.Choice(["auto", "today", "recorded"]), default="auto", show_default=True,
            help="Whose learning rate: auto takes that of today's code, unless it was changed while the recorded training ran.",
        ),
    )):  # fmt: skip
        command = option(command)
    return command


def given(*names: str) -> list[str]:
    """Which of some arguments the command line has."""
    context = click.get_current_context()
    return [
        name for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]


def check_needs_model(model: str | None) -> None:
    """Refuse options that say something of a model which is not there.

    Raises:
        click.UsageError: There are such options.
    """
    named = given(*OPTIONS)
    if named and not model:
        raise click.UsageError(f"{OPTIONS[named[0]]} needs --model", click.get_current_context())
