"""The terminal interface of `nanreplay open`. Imports no TensorFlow: replays run in a process of their own, see `engine`."""

from __future__ import annotations

from collections.abc import Sequence

from nanreplay.capture.storage import Location


def show(paths: Sequence[Location], *, trust: bool = False) -> None:
    """Show captures until the user quits: one at once, several as a list to choose from.

    Args:
        paths: Capture files; at least one can be read.
        trust: Let ops that touch files, the network or processes run; only for captures of your own.
    """
    from nanreplay.tui.app import NanreplayApp

    NanreplayApp(paths, trust=trust).run()
