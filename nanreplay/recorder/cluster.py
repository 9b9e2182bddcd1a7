"""Which worker of a cluster this process is, by TF_CONFIG, as TensorFlow reads it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Worker:
    """One of the processes that train together."""

    index: int
    """From 0; the chief, where there is one, is the first."""
    count: int
    """How many there are; 1 without a cluster."""


def this_worker() -> Worker:
    """Return which worker this process is; the only one when TF_CONFIG says nothing (or nothing that can be read)."""
    try:
        config = json.loads(os.environ.get("TF_CONFIG") or "{}")
        task, cluster = config.get("task", {}), config.get("cluster", {})
        index, chiefs = int(task.get("index", 0)), len(cluster.get("chief", ()))
        count = chiefs + len(cluster.get("worker", ()))
        return Worker(index if task.get("type") == "chief" else chiefs + index, max(count, 1))
    except (ValueError, TypeError, AttributeError):
        return Worker(0, 1)
