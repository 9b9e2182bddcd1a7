"""The control of `open.py`'s keys: the same worker process explains a capture, and beside it an
event loop answers each byte of its terminal with a line, and does nothing else.

Usage: python open_control.py CAPTURE
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tty

from nanreplay.tui.engine import Engine, Explain


async def main(capture: str) -> None:
    """Answer keys until the terminal is closed."""
    tty.setraw(0)
    engine, presses = Engine(), itertools.count(1)

    def answer() -> None:
        os.read(0, 1)
        os.write(1, f"key {next(presses)}.".encode())

    asyncio.get_running_loop().add_reader(0, answer)
    os.write(1, b"ready")
    await engine.run(Explain(capture))
    os.write(1, b"done")
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
