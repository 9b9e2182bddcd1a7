"""The terminal interface of `nanreplay open`.

This package imports no TensorFlow: replays run in a worker process, see `engine` and `worker`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanreplay.errors import OutputExistsError
from nanreplay.limits import fewer_collections

if TYPE_CHECKING:
    from nanreplay.capture.storage import Location
    from nanreplay.tui.engine import Engine
    from nanreplay.tui.view_link import ViewLink


def show(paths: Sequence[Location], *, trust: bool = False, at: ViewLink | None = None) -> None:
    """Show captures in the terminal until the user quits.

    One capture is opened at once. Several are listed in a table, and the user chooses.

    ```python
    show([Path("run.h5")])
    ```

    Args:
        paths: Capture files, at least one.
        trust: Whether a program may run ops that touch files, the network or processes. Say so
            only for captures of your own. Default False: such a program is refused.
        at: What a single capture shows first; the answer unless given.

    Raises:
        CaptureError: There is one path, and it cannot be read.
    """
    # Imported here, so that `nanreplay open --help` does not wait for them.
    from nanreplay.report.stored_answers import has_tensorflow
    from nanreplay.tui.engine import Engine

    engine = Engine(trust=trust)
    try:
        if len(paths) == 1 and has_tensorflow():
            # It is replayed in any case: the process starts while Textual is imported.
            engine.start()
        _show(paths, engine, at)
    finally:
        engine.close()


def _show(paths: Sequence[Location], engine: Engine, at: ViewLink | None) -> None:
    from nanreplay.triage.answer_cache import AnswerCache, default_cache_folder
    from nanreplay.tui.app import NanreplayApp

    cache = AnswerCache(None)
    if len(paths) > 1:
        with contextlib.suppress(OutputExistsError):  # a home that is read only costs time alone
            cache = AnswerCache(default_cache_folder())
    with fewer_collections():
        NanreplayApp(paths, engine=engine, cache=cache, at=at).run()
