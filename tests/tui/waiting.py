"""Waiting until the workers of an app have done their work."""

from __future__ import annotations

import contextlib
from typing import Any

from textual.app import App
from textual.worker import WorkerCancelled, WorkerFailed


async def workers_done(app: App[Any]) -> None:
    """Wait for every worker; one that was replaced, or has failed, counts as done.

    What a failure leads to is on the screen, and whether it comes while this waits is chance.
    """
    while waiting := [worker for worker in app.workers if not worker.is_finished]:
        with contextlib.suppress(WorkerCancelled, WorkerFailed):
            await app.workers.wait_for_complete(waiting)
