"""Writes the files of MLflow and Weights & Biases beside it, by their own packages.

They are no dependency of the tests: `pip install mlflow-skinny wandb`, then run this script. It
needs no account and no network.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
LOSSES = [1.0, 0.5, 0.25, 0.125, float("nan"), float("nan")]


def write_mlflow() -> None:
    """A run whose loss is NaN at step 4, with a metric in a folder of its own."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"file://{folder}/runs")
        with mlflow.start_run() as run:
            for step, loss in enumerate(LOSSES):
                mlflow.log_metric("loss", loss, step=step)
                mlflow.log_metric("train/accuracy", 0.5, step=step)
        metrics = next(Path(folder, "runs").glob(f"*/{run.info.run_id}/metrics"))
        shutil.rmtree(HERE / "mlflow_run", ignore_errors=True)
        shutil.copytree(metrics, HERE / "mlflow_run" / "metrics")


def write_wandb() -> None:
    """The same history in the file of an offline run."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(WANDB_MODE="offline", WANDB_DIR=folder, WANDB_SILENT="true")
        import wandb

        settings = wandb.Settings(console="off", disable_git=True, disable_code=True)
        run = wandb.init(project="tests", settings=settings)
        for loss in LOSSES:
            run.log({"loss": loss, "optimizer/lr": 0.1})
        run.finish()
        file = next(Path(folder).glob("wandb/offline-run-*/*.wandb"))
        while b"_step" not in file.read_bytes():  # a process beside this one writes it
            time.sleep(0.1)
        time.sleep(2.0)
        (HERE / "offline.wandb").write_bytes(without_the_machine(file.read_bytes()))


def without_the_machine(data: bytes) -> bytes:
    """The records of the history as they were written; those that tell of the machine left out."""
    kept, position = data[:7], 7
    while position + 7 <= len(data):
        end = position + 7 + int.from_bytes(data[position + 4 : position + 6], "little")
        record = data[position:end]
        # a record of the first block is whole; field 2, after its number, is the history
        if record[9:10] == b"\x12":
            kept += record
        position = end
    return kept


if __name__ == "__main__":
    write_mlflow()
    write_wandb()
