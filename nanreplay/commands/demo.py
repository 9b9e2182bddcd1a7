"""`nanreplay demo`: a real training that turns NaN in one process, explained in another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

import nanreplay
from nanreplay.commands.console import as_json, check_output
from nanreplay.terminal import FINITE, NONFINITE, UNDECIDED


@click.command("demo")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Keep the capture as FILE. Default: it is removed.",
)
@as_json
def command(output: str | None, as_json: bool) -> int:
    """Train a small Keras model until it turns NaN, then replay the capture and name the op.

    Another process replays it, without the training code. Exit code 0: the op was named.
    """
    if output is not None:
        check_output(Path(output))
        return _demo(Path(output), as_json)
    with tempfile.TemporaryDirectory(prefix="nanreplay-") as folder:
        return _demo(Path(folder) / "demo.h5", as_json)


def _demo(path: Path, as_json: bool) -> int:
    environment = _environment()
    _say("Training a small Keras model with callbacks=[Recorder(...)] ...", as_json)
    _say(_train(path, environment), as_json)
    _say(
        f"Replaying {path.name} in a new process, without the training code or data ...\n", as_json
    )
    bisect = [sys.executable, "-m", "nanreplay", "bisect", os.fspath(path)]
    if as_json:
        bisect.append("--json")
    code = subprocess.run(bisect, env=environment, check=False).returncode
    return FINITE if code == NONFINITE else code or UNDECIDED


def _environment() -> dict[str, str]:
    """For processes that find this nanreplay, even where it is not installed."""
    packages = [os.fspath(Path(nanreplay.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(filter(None, packages))
    return {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, "PYTHONPATH": path}


def _train(path: Path, environment: dict[str, str]) -> str:
    """Run the demo's training, which writes its capture to `path`; returns what it prints."""
    with tempfile.TemporaryDirectory(prefix="nanreplay-") as folder:
        # a copy, since lines of nanreplay itself do not count as the user's code
        original = Path(__file__).with_name("demo_training.py")
        script = shutil.copy(original, Path(folder) / "train.py")
        training = [sys.executable, os.fspath(script), os.fspath(path.absolute())]
        trained = subprocess.run(
            training, env=environment, capture_output=True, text=True, check=False
        )
    if trained.returncode or not path.exists():
        lines = trained.stderr.strip().splitlines() or ["no capture was written"]
        raise click.ClickException(f"the demo's training failed: {lines[-1]}")
    return trained.stdout.strip()


def _say(line: str, as_json: bool) -> None:
    click.echo(line, err=as_json)  # with --json, stdout holds the JSON alone
