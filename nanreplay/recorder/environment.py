"""What a capture says of the machine and the run, and how far its writing is, on the terminal.

`describe_environment` gives facts for the file. `DumpProgress` shows a bar on stderr for files that
take longer than a second to write; it never fails and never shows in a log.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorflow as tf

import nanreplay
from nanreplay.recorder.settings import this_worker
from nanreplay.tensorflow_internals import tf_eager
from nanreplay.terminal import new_bar

# Facts


def describe_environment() -> dict[str, str]:
    """Versions, platform, devices and the flags that change numbers."""
    worker = this_worker()
    workers = {"worker": str(worker.index), "workers": str(worker.count)}
    return {
        **(workers if worker.count > 1 else {}),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "nanreplay": nanreplay.__version__,
        "tensorflow": tf.__version__,
        "keras": _keras_version(),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {' '.join(platform.libc_ver())}".strip(),
        "machine": platform.machine(),
        "processor": _processor(),
        "devices": ", ".join(_device_names()),
        "cpu_count": str(os.cpu_count()),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "deterministic_ops": str(tf_eager.is_deterministic()),
        "script": os.path.basename(sys.argv[0]) if sys.argv else "",
    }


def _device_names() -> list[str]:
    """The model of each device; its type ("CPU") where TensorFlow knows no more."""
    details_of = tf.config.experimental.get_device_details
    device_names = []
    for device in tf.config.list_physical_devices():
        device_names.append(details_of(device).get("device_name", device.device_type))
    return device_names


def _keras_version() -> str:
    """The version of the Keras that is imported: of Keras 3, else of Keras 2."""
    for name in ("keras", "tf_keras"):
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "__version__"):
            return str(module.__version__)
    return ""


def _processor() -> str:
    """The processor's model: kernels are chosen by it, so another one may give other last bits."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


# Progress

SHOWN_AFTER_S = 1.0
"""Quicker dumps show nothing."""


class DumpProgress:
    """Shows how far a dump is, when stderr is a terminal.

    Args:
        name: Name of the file.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._began_s = time.perf_counter()
        self._bar: Any = None
        self._task: Any = None
        self._stage = ("", 0.0)
        self._done = 0.0
        self._usable = True

    def __enter__(self) -> DumpProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(Exception):
                self._bar.stop()

    def stage(self, activity: str, total: float) -> None:
        """Begin a stage: `writing` so many bytes, `replaying` so many steps."""
        self._stage, self._done = (activity, total), 0.0
        self._show()

    def advance(self, amount: float) -> None:
        """Some of the stage is done."""
        self._done += amount
        self._show()

    def _show(self) -> None:
        if not self._usable:
            return
        if self._bar is None and time.perf_counter() - self._began_s < SHOWN_AFTER_S:
            return
        try:
            self._draw()
        except Exception:  # stderr was closed, or is no stream: nobody looks at it
            self._usable = False

    def _draw(self) -> None:
        if self._bar is None:
            if not sys.stderr.isatty():
                self._usable = False
                return
            self._start_bar()
        activity, total = self._stage
        self._bar.update(
            self._task,
            description=f"nanreplay: {activity} {self._name}",
            total=total,
            completed=self._done,
        )

    def _start_bar(self) -> None:
        self._bar = new_bar(shows_counts=False)
        self._task = self._bar.add_task("")
        self._bar.start()
