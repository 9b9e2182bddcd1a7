"""One long training of `scale.py` in a process of its own: many small steps of a loop, whose memory
is looked at ten times on the way.

The weight begins to grow after a tenth of the steps. At the end the recorder writes a file.

Usage: python scale_steps_once.py bare|recorder STEPS FOLDER
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

LOOKS = 10
GROWTH = 1.001
"""What a weight is multiplied by in a step, once it grows."""
LARGEST = 1e30


def resident_mib() -> float:
    """What this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def steps(recorder: Any) -> Any:
    """A step that trains one weight, and multiplies it by what it is given."""
    weight = tf.Variable(tf.ones([8]))

    @tf.function
    def train(growth: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(weight * weight)
        gradient = tape.gradient(loss, weight)
        weight.assign(tf.minimum(weight * growth - 0.0 * gradient, LARGEST**0.5))
        return loss

    return train if recorder is None else recorder.wrap(train)


def main(mode: str, count: str, folder: str) -> None:
    """Train, and print what was in memory on the way and what is in the file."""
    recorder = None
    if mode == "recorder":
        from nanreplay import Recorder

        recorder = Recorder(Path(folder) / "run.h5")
    train, total = steps(recorder), int(count)
    growths, looks = [tf.constant(1.0), tf.constant(GROWTH)], []
    for step in range(total):
        train(growths[step >= total // 10])
        if (step + 1) % (total // LOOKS) == 0:
            looks.append((step + 1, resident_mib(), time.process_time()))
    facts: dict[str, Any] = {
        "steps": [step for step, _, _ in looks],
        "resident_mib": [size for _, size, _ in looks],
        "step_us": [
            (later[2] - earlier[2]) / (later[0] - earlier[0]) * 1e6
            for earlier, later in itertools.pairwise(looks)
        ],
    }
    if recorder is not None:
        from nanreplay import Capture

        path = recorder.dump()
        recorder.close()
        with Capture(path) as capture:
            shown = capture.timeline()
            older = shown[shown["step"] < total - recorder_history()]
            facts |= {
                "rows": len(shown),
                "first_step": int(shown["step"].iloc[0]),
                "widest_gap": int(np.diff(shown["step"]).max()),
                "older_rows": len(older),
                "older_losses": [float(older["loss"].min()), float(older["loss"].max())],
                "file_mib": os.path.getsize(path) / 2**20,
            }
    print(json.dumps(facts))


def recorder_history() -> int:
    """Last steps of the timeline that are all kept by default."""
    import inspect

    from nanreplay import Recorder

    return int(inspect.signature(Recorder).parameters["history"].default)


if __name__ == "__main__":
    main(*sys.argv[1:])
