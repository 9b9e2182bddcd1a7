"""`nanreplay run`: a program as it is, with whatever trains in it recorded.

Options have the names and defaults of the arguments of `Recorder`, and are passed on to it.
"""

from __future__ import annotations

from typing import Any

import click

from nanreplay.commands.console import ScriptPath


@click.command(
    "run", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False}
)
@click.option(
    "-m",
    "module",
    metavar="MODULE",
    help="Run a module, as `python -m` does, in place of a script.",
)
@click.option(
    "-o",
    "--output",
    "path",
    metavar="FILE",
    default="run.h5",
    show_default=True,
    help="The capture; may hold {step}, {time}, {pid}.",
)
@click.option(
    "--on-nan",
    type=click.Choice(["raise", "stop", "continue"]),
    default="raise",
    show_default=True,
    help="What follows a NaN: an error, the end of `fit`, or more training.",
)
@click.option(
    "--max-incidents",
    metavar="FILES",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Most files of one training with --on-nan continue.",
)
@click.option(
    "--window",
    metavar="STEPS",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Last steps whose batches are kept.",
)
@click.option(
    "--keyframe-every",
    metavar="STEPS",
    default="auto",
    show_default=True,
    help="Steps between copies of all variables.",
)
@click.option(
    "--memory-limit",
    metavar="SIZE",
    default="auto",
    show_default=True,
    help="Most memory for batches and copies of variables, such as 1GiB.",
)
@click.option(
    "--disk-limit",
    metavar="SIZE",
    default="auto",
    show_default=True,
    help="Largest capture, such as 10GiB.",
)
@click.option(
    "--full-steps",
    metavar="STEPS",
    default="auto",
    show_default=True,
    help="Last steps whose weights and gradients are written.",
)
@click.option(
    "--history",
    metavar="STEPS",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Last steps that the timeline keeps whole; of older ones it keeps a choice.",
)
@click.option(
    "--sources",
    type=click.Choice(["lines", "none"]),
    default="lines",
    show_default=True,
    help="none leaves your lines of code out of the file.",
)
@click.option(
    "--max-skipped",
    metavar="STEPS",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Updates in a row that loss scaling may skip.",
)
@click.option(
    "--dump-signal", metavar="SIGNAL", help="A signal that asks for a file, such as SIGUSR1."
)
@click.option(
    "--explain",
    is_flag=True,
    help="Store the answer in the file. The end of the program waits for it.",
)
@click.argument("script", required=False, metavar="[SCRIPT]", type=ScriptPath())
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
def command(
    module: str | None, script: str | None, arguments: tuple[str, ...], **settings: Any
) -> int:
    """Run a program unchanged, and write a file when its training turns NaN.

    Every `fit`, every `train_on_batch` and every loop over a `tf.function` that trains is recorded.
    The second training of the process gets `run.1.h5`. Without a NaN, nothing is written or
    printed, but for a line where no training was seen.

    The exit code is the program's own.
    """
    from nanreplay.recorder.script import run_module, run_script
    from nanreplay.recorder.settings import check_settings

    for name in ("keyframe_every", "full_steps"):
        if settings[name] != "auto":
            settings[name] = _steps(settings[name], f"--{name.replace('_', '-')}")
    check_settings(**settings)
    if module is not None:  # then what click took for the script is the module's first argument
        first = [] if script is None else [script]
        return run_module(module, [*first, *arguments], settings)
    if script is None:
        raise click.UsageError(
            "Give a script, or -m MODULE. Example: nanreplay run train.py --epochs 3"
        )
    return run_script(script, arguments, settings)


def _steps(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a number of steps nor 'auto'.", param_hint=option
        ) from None
