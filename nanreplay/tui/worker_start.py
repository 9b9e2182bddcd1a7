"""How the process beside the interface begins: behind all others, before it imports anything."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_NICENESS = 5
"""How far the process steps back behind others, in the units of `os.nice`."""


def begin(connection: Connection, trust: bool) -> None:
    """Leave the processor to the interface first, which imports what it needs now; then serve it.

    Args:
        connection: The worker's end of the pipe.
        trust: Whether a program may run ops that touch files, the network or processes.
    """
    with contextlib.suppress(OSError, AttributeError):  # no such thing on Windows
        os.nice(_NICENESS)
    from nanreplay.tui.worker import work

    work(connection, trust)
