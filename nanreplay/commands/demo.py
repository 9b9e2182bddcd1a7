"""`nanreplay demo`: a real training that turns NaN in one process, replayed and explained in another."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from nanreplay.commands.console import as_json
from nanreplay.commands.exits import FINITE, NONFINITE, UNDECIDED


@click.command("demo")
@click.option("-o", "--output", metavar="FILE", help="Keep the capture here; a temporary file unless given.")
@as_json
def command(output: str | None, as_json: bool) -> int:
    """Train a small Keras model until it turns NaN, then replay the capture in a new process and name the op.

    Exits with 0 when the op was named.
    """
    if output is not None:
        return _demo(Path(output), as_json)
    with tempfile.TemporaryDirectory(prefix="nanreplay-") as folder:
        return _demo(Path(folder) / "demo.h5", as_json)


def _demo(path: Path, as_json: bool) -> int:
    _say("Training a small Keras model with callbacks=[Recorder(...)] ...", as_json)
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    training = [sys.executable, "-m", "nanreplay.commands.demo_training", os.fspath(path)]
    trained = subprocess.run(training, env=environment, capture_output=True, text=True, check=False)
    if trained.returncode or not path.exists():
        lines = trained.stderr.strip().splitlines() or ["no capture was written"]
        raise click.ClickException(f"the demo's training failed: {lines[-1]}")
    _say(trained.stdout.strip(), as_json)
    _say(f"Replaying {path.name} in a new process, without the training code or data ...\n", as_json)
    bisect = [sys.executable, "-m", "nanreplay", "bisect", os.fspath(path), *(["--json"] if as_json else [])]
    code = subprocess.run(bisect, env=environment, check=False).returncode
    return FINITE if code == NONFINITE else code or UNDECIDED


def _say(line: str, as_json: bool) -> None:
    click.echo(line, err=as_json)
