"""Facts about the machine, the libraries and the run that go into every capture."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from pathlib import Path

import h5py
import numpy as np
import tensorflow as tf

import nanreplay
from nanreplay.program import private_tf
from nanreplay.recorder.cluster import this_worker


def describe_environment() -> dict[str, str]:
    """Versions, platform, devices and the flags that change numbers."""
    devices = [
        tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
        for device in tf.config.list_physical_devices()
    ]
    worker = this_worker()
    return {
        **({"worker": str(worker.index), "workers": str(worker.count)} if worker.count > 1 else {}),
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
        "devices": ", ".join(devices),
        "cpu_count": str(os.cpu_count()),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "deterministic_ops": str(private_tf.is_deterministic()),
        "script": os.path.basename(sys.argv[0]) if sys.argv else "",
    }


def _keras_version() -> str:
    """The version of the Keras that is imported: of Keras 3, else of Keras 2."""
    return next((sys.modules[name].__version__ for name in ("keras", "tf_keras") if hasattr(sys.modules.get(name), "__version__")), "")


def _processor() -> str:
    """The processor's model: kernels are chosen by it, so another one may give other last bits."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
