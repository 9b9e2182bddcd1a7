"""Waiting until the workers of an app have done their work."""

from __future__ import annotations

import contextlib
from typing import Any

from textual.app import App
from textual.worker import WorkerCancelled


async def workers_done(app: App[Any]) -> None:
    """Wait for every worker; one that a newer one of its group replaced counts as done."""
    while waiting := [worker for worker in app.workers if not worker.is_finished]:
        with contextlib.suppress(WorkerCancelled):
            await app.workers.wait_for_complete(waiting)
