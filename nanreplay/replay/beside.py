"""Work in Python beside a call of TensorFlow that takes seconds and no Python."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def beside(work: Callable[[], None] | None) -> Iterator[None]:
    """Do some work in another thread while a block runs; it ends when both are done.

    Args:
        work: Makes something ready that is asked for later. What it raises is left out: who asks
            makes it anew, and is told. None for no work.
    """
    if work is None:
        yield
        return
    thread = threading.Thread(target=_tried, args=(work,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _tried(work: Callable[[], None]) -> None:
    with contextlib.suppress(Exception):
        work()
