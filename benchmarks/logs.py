"""How fast `nanreplay logs` reads: event files with a million scalars, and checkpoints against
plain h5py and `tf.train.load_checkpoint`, which read and measure nothing. Processes of their own.

Usage: python benchmarks/logs.py [--scalars 1000000] [--mib 1024] [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import ENVIRONMENT, machine, machine_line, table, write_results

TAGS = ("batch_loss", "batch_accuracy", "learning_rate", "gradient_norm", "examples")
MEASURED = """
import json, re, time
before = time.process_time(), time.perf_counter()
{work}
used = time.process_time() - before[0], time.perf_counter() - before[1]
# not ru_maxrss, which counts the process that started this one
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps([*used, peak]))
"""
WORK = {
    "nanreplay": "from nanreplay.logs.run_reader import read_runs\n"
    "from nanreplay.logs.log_answer import answer\n"
    "before = time.process_time(), time.perf_counter()\n"
    "for run in read_runs([{path!r}]).runs: answer(run)",
    "tf.data": "import tensorflow as tf\nfrom tensorflow.core.util import event_pb2\n"
    "before = time.process_time(), time.perf_counter()\n"
    "for record in tf.data.TFRecordDataset({path!r}):\n"
    "    event = event_pb2.Event.FromString(record.numpy())\n"
    "    for value in event.summary.value: value.tag",
    "h5py": "import h5py\n"
    "before = time.process_time(), time.perf_counter()\n"
    "file = h5py.File({path!r})\n"
    "file.visititems(lambda name, item: (item[()], None)[1] if hasattr(item, 'dtype') else None)",
    "load_checkpoint": "import tensorflow as tf\n"
    "before = time.process_time(), time.perf_counter()\n"
    "reader = tf.train.load_checkpoint({path!r})\n"
    "for name in reader.get_variable_to_shape_map(): reader.get_tensor(name)",
}


def write_events(path: Path, scalars: int) -> None:
    """An event file as `TensorBoard(update_freq=1)` writes it."""
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    with tf.io.TFRecordWriter(str(path)) as writer:
        head = event_pb2.Event(wall_time=1.7e9, file_version="brain.Event:2")
        writer.write(head.SerializeToString())
        for step in range(scalars // len(TAGS)):
            for tag in TAGS:
                event = event_pb2.Event(wall_time=1.7e9 + step, step=step)
                value = event.summary.value.add(tag=tag)
                value.tensor.dtype = 1
                value.tensor.tensor_shape.SetInParent()
                value.tensor.tensor_content = (0.25).hex().encode()[:4]
                value.metadata.plugin_data.plugin_name = "scalars"
                writer.write(event.SerializeToString())


def write_checkpoints(folder: Path, mib: int) -> tuple[Path, Path]:
    """The same weights as `.weights.h5` and as TensorFlow's checkpoint."""
    import h5py
    import numpy as np
    import tensorflow as tf

    random = np.random.default_rng(0)
    shape = (mib * 2**20 // 4 // 32 // 1024, 1024)
    arrays = [random.normal(size=shape).astype("float32") for _ in range(32)]
    with h5py.File(folder / "a.weights.h5", "w") as file:
        for number, array in enumerate(arrays):
            file[f"layers/dense_{number}/vars/0"] = array
    variables = {f"dense_{number}": tf.Variable(array) for number, array in enumerate(arrays)}
    prefix = tf.train.Checkpoint(**variables).write(str(folder / "ckpt"))
    return folder / "a.weights.h5", Path(prefix)


def measured(work: str, path: Path, runs: int) -> dict[str, float]:
    """Median seconds of processor and of clock, and peak memory in MiB."""
    code = MEASURED.format(work=WORK[work].format(path=str(path)))
    found = []
    for _ in range(runs):
        child = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=ENVIRONMENT,
        )
        found.append(json.loads(child.stdout.splitlines()[-1]))
    processor_s, elapsed_s, peak_mib = (
        statistics.median(column) for column in zip(*found, strict=True)
    )
    return {"processor_s": processor_s, "elapsed_s": elapsed_s, "peak_mib": peak_mib}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scalars", type=int, default=1_000_000)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "measured": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        events = folder / "events.out.tfevents.1.host"
        write_events(events, arguments.scalars)
        weights, prefix = write_checkpoints(folder, arguments.mib)
        pairs = [
            (f"{arguments.scalars:,} scalars", events, "tf.data"),
            (f"{arguments.mib} MiB, .weights.h5", weights, "h5py"),
            (f"{arguments.mib} MiB, TensorFlow", prefix, "load_checkpoint"),
        ]
        rows = []
        for what, path, other in pairs:
            ours = measured("nanreplay", path, arguments.runs)
            theirs = measured(other, path, arguments.runs)
            results["measured"][what] = {"nanreplay": ours, other: theirs}
            rows.append(
                [
                    what,
                    f"{ours['processor_s']:.2f} s",
                    f"{theirs['processor_s']:.2f} s ({other})",
                    f"{ours['processor_s'] / theirs['processor_s']:.2f}",
                    f"{ours['peak_mib']:.0f} MiB",
                    f"{theirs['peak_mib']:.0f} MiB",
                ]
            )
    headings = ["read", "processor time", "compared with", "ratio", "peak", "its peak"]
    text = table(headings, rows) + "\n\n" + machine_line(results["machine"])
    write_results("logs", text, results)


if __name__ == "__main__":
    main()
