"""One measurement of `fixes_paired.py` in a process of its own: all fixes that fit one capture.

Usage: python fixes_once.py FILE
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

from nanreplay import Capture, Replay
from nanreplay.errors import NanreplayError
from nanreplay.replay.replay_programs import Program
from nanreplay.report.explain import explain_replay
from nanreplay.report.report_json import to_json

EAGER_RUNS = 3


def main() -> None:
    """Print seconds of processor time, the steps that ran, and what became of each fix."""
    executed = 0
    run_step = Program.step

    def counted(self: Program, *arguments: Any) -> Any:
        nonlocal executed
        executed += 1
        return run_step(self, *arguments)

    Program.step = counted  # type: ignore[method-assign]
    with Capture(sys.argv[1]) as capture, Replay(capture) as replay:
        explained = explain_replay(replay)
        eager_s = []
        for _ in range(EAGER_RUNS):
            began = time.process_time()
            with contextlib.suppress(NanreplayError):  # a step that raised in training raises
                replay.run(replay.incident.step)
            eager_s.append(time.process_time() - began)
        executed, began = 0, time.process_time()
        fixes = to_json(explained.report("all"))["fixes"]
        facts = {
            "fixes_s": time.process_time() - began,
            "eager_s": min(eager_s),
            "steps": executed,
            "outcomes": [[fix["name"], fix["params"], fix["outcome"]] for fix in fixes],
        }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
