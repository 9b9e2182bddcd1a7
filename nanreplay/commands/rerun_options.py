"""Options of the commands that run the user's current code: `replay` and `diff`."""

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
"""Those that need --model, by the names of the arguments of `nanreplay.replay_with`."""


def rerun_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--model` and what goes with it."""
    for option in reversed(_OPTIONS):  # as decorators: the last one applied is listed first
        command = option(command)
    return command


def _renamings(
    context: click.Context, option: click.Parameter, pairs: Sequence[str]
) -> dict[str, str]:
    """Recorded and current names, from `old=new` texts."""
    renamed = {}
    for pair in pairs:
        old, sign, new = pair.partition("=")
        if not old or not sign:
            raise click.BadParameter(f"Expected OLD=NEW. Received: {pair}", context, option)
        renamed[old] = new
    return renamed


_OPTIONS = (
    click.option(
        "--model",
        metavar="MODULE:FUNCTION",
        help="Run today's code: a function, or FILE.py:FUNCTION, that returns the model.",
    ),
    click.option(
        "--map",
        "renamed",
        metavar="OLD=NEW",
        multiple=True,
        callback=_renamings,
        help="Today's name of a part of a recorded path, such as encoder/old=encoder/new.",
    ),
    click.option(
        "--allow-missing",
        is_flag=True,
        help="Keep today's initial values where nothing was recorded.",
    ),
    click.option(
        "--learning-rate",
        type=click.Choice(["auto", "today", "recorded"]),
        default="auto",
        show_default=True,
        help="Whose learning rate: auto takes that of today's code, "
        "unless it was changed while the recorded training ran.",
    ),
)


def passed(*names: str) -> list[str]:
    """Which of some arguments the command line has."""
    source_of = click.get_current_context().get_parameter_source
    return [name for name in names if source_of(name) is not ParameterSource.DEFAULT]


def check_needs_model(model: str | None) -> None:
    """Refuse options that say something of a model which is not there.

    Raises:
        click.UsageError: There are such options.
    """
    options = passed(*OPTIONS)
    if options and not model:
        raise click.UsageError(f"{OPTIONS[options[0]]} needs --model", click.get_current_context())
