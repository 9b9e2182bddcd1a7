"""`nanreplay export`: a test of the user's current code, or the timeline for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from nanreplay.commands.console import (
    as_json,
    capture_file,
    check_output,
    check_readable,
    force,
    max_memory,
    print_json,
    print_result,
    progress_bar,
    trust,
)
from nanreplay.terminal import FINITE, quiet_work

_out = click.Path(path_type=Path)


@click.command("export")
@capture_file
@click.option(
    "--pytest",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=str),
    help="Where the test and its capture go.",
)
@click.option(
    "--model",
    metavar="MODULE:FUNCTION",
    help=(
        "What makes today's model, or FILE.py:FUNCTION: "
        "a compiled Keras model, or (model, optimizer, step) of a loop."
    ),
)
@click.option(
    "--tensorboard",
    metavar="DIR",
    type=_out,
    help="Write the timeline as an event file, the incident marked.",
)
@click.option("--csv", metavar="OUT", type=_out, help="Write the timeline as CSV.")
@click.option("--parquet", metavar="OUT", type=_out, help="Write the timeline as Parquet.")
@click.option("--npy", metavar="OUT", type=_out, help="Write the tensor of --tensor for numpy.")
@click.option(
    "--tensor",
    metavar="NAME",
    help='A tensor of the step: "dense/Relu:0", "dense/kernel", "batch[0]".',
)
@click.option(
    "--step", metavar="N", type=int, help="The step of the tensor. Default: the failing step."
)
@force
@as_json
@max_memory
@trust
def command(
    file: str,
    folder: str | None,
    model: str | None,
    tensorboard: Path | None,
    csv: Path | None,
    parquet: Path | None,
    npy: Path | None,
    tensor: str | None,
    step: int | None,
    force: bool,
    as_json: bool,
    trust: bool,
) -> int:
    """Write a pytest module for the failure of FILE, or its timeline for other tools.

    The test (--pytest, with --model) runs the recorded state and batch through the model that
    --model makes, and asserts that the result is finite. So it fails today and passes once the code
    is fixed. The smallest capture of the failure lies beside it. The command runs the test once and
    says whether it fails.

    A tensor (--npy, with --tensor) is of the incident's step, or of --step; it is replayed.

    The timeline (--tensorboard, --csv, --parquet) needs no TensorFlow, and nothing is replayed.

    Exit codes: 0 written, 2 unreadable file, no such model or files exist, 3 a replay of FILE gives
    no origin.
    """
    outputs = {"tensorboard": tensorboard, "csv": csv, "parquet": parquet}
    wanted = {}
    for name, path in outputs.items():
        if path is not None:
            wanted[name] = path
    if (npy is None) != (tensor is None) or (step is not None and npy is None):
        raise click.UsageError("--npy OUT and --tensor NAME go together; --step is for them.")
    if npy is not None and (wanted or folder is not None):
        raise click.UsageError("--npy writes one tensor: use another call for the rest.")
    if folder is None and not wanted and npy is None:
        raise click.UsageError(
            "Say what to write: --pytest DIR --model MODULE:FUNCTION, --tensorboard DIR, "
            "--csv OUT, --parquet OUT or --npy OUT --tensor NAME."
        )
    if folder is not None and model is None:
        raise click.UsageError("--pytest needs --model MODULE:FUNCTION: what makes today's model.")
    if model is not None and folder is None:
        raise click.UsageError("--model is for --pytest DIR.")
    if folder is not None and wanted and as_json:
        raise click.UsageError("--json is for one of them: a test, or the timeline.")
    check_readable(file)
    if npy is not None and tensor is not None:
        _write_tensor(file, npy, tensor, step, force=force, as_json=as_json, trust=trust)
    if wanted:
        _write_timeline(file, wanted, force, as_json)
    if folder is not None and model is not None:
        _write_test(file, folder, model, force, as_json, trust)
    return FINITE


def _write_timeline(file: str, wanted: dict[str, Path], force: bool, as_json: bool) -> None:
    from nanreplay.capture import Capture
    from nanreplay.export.timeline_files import write_csv, write_parquet, write_tensorboard

    written = {}
    for name in ("csv", "parquet"):
        if name in wanted:
            check_output(wanted[name], file)
    with Capture(file) as capture:
        if "tensorboard" in wanted:
            written["tensorboard"] = write_tensorboard(capture, wanted["tensorboard"])
        if "csv" in wanted:
            written["csv"] = write_csv(capture, wanted["csv"], force=force)
        if "parquet" in wanted:
            written["parquet"] = write_parquet(capture, wanted["parquet"], force=force)
        incident = capture.incident.step
    if as_json:
        files = []
        for name, count in written.items():
            files.append({"format": name, "path": str(wanted[name]), "count": count})
        print_json({"incident_step": incident, "written": files})
        return
    for name, count in written.items():
        what = "scalars" if name == "tensorboard" else "rows"
        click.echo(f"{wanted[name]}: {count} {what}, step {incident} marked")


def _write_tensor(
    file: str, output: Path, name: str, step: int | None, *, force: bool, as_json: bool, trust: bool
) -> None:
    import numpy as np

    from nanreplay.export.output_paths import check_output as check_new

    check_new(file, output, force=force)
    with quiet_work():
        from nanreplay.capture import Capture
        from nanreplay.explore import Explorer
        from nanreplay.explore.step_tensors import StepTensors
        from nanreplay.replay import Replay
        from nanreplay.report.numbers import readable_steps

        with Capture(file) as capture, Replay(capture, trust=trust) as replay:
            wanted = capture.incident.step if step is None else step
            if wanted not in capture.steps:
                held = readable_steps(capture.steps)
                raise click.UsageError(f"--step {wanted}: FILE holds {held}.")
            array = StepTensors(Explorer(replay), wanted)[name]
    with output.open("wb") as target:  # np.save would put another suffix behind
        np.save(target, array, allow_pickle=False)
    if as_json:
        facts = {"path": str(output), "tensor": name, "step": wanted}
        print_json({**facts, "dtype": array.dtype.name, "shape": list(array.shape)})
        return
    click.echo(f"{output}: {name} of step {wanted}, {array.dtype.name} {list(array.shape)}")


def _write_test(
    file: str, folder: str, model: str, force: bool, as_json: bool, trust: bool
) -> None:
    with quiet_work(), progress_bar() as reporter:
        from nanreplay.export.pytest_module import export_test

        exported = export_test(
            file,
            folder,
            model,
            trust=trust,
            force=force,
            progress=reporter.progress,
            say=reporter.say,
        )
    from nanreplay.export.export_text import exported_lines, exported_to_json

    print_result(exported, as_json, exported_lines, exported_to_json)
