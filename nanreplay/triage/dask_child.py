"""`python -m nanreplay.triage.dask_child`: bisects some captures for a Dask worker.

Reads one JSON object on stdin, and writes a line of JSON a capture to stdout.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from nanreplay.triage.capture_answer import answer_to_json
from nanreplay.triage.local_workers import answers_here

_LOOK_EVERY_S = 1.0


def main() -> None:
    """Answer one request."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    request = json.load(sys.stdin)
    answers = answers_here(
        request["paths"],
        trust=request["trust"],
        workers=1,
        timeout_s=request["timeout_s"],
        max_memory=request["max_memory"],
    )
    for answer in answers:
        print(json.dumps(answer_to_json(answer), allow_nan=False), flush=True)


def _end_with_parent(parent: int) -> None:
    """End this process when its Dask worker was killed: another does the work again."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)


if __name__ == "__main__":
    main()
