"""Tasks of the worker process that need no TensorFlow; in a module that the process can import."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import ClassVar

from nanreplay.errors import FormatError
from nanreplay.tui.worker import LOADING, Task, WorkerContext


@dataclass(frozen=True)
class Small(Task[int]):
    """Counts to `steps`."""

    steps: int = 1
    pause_s: float = 0.0
    deaf: bool = False
    """Whether it tells no progress, and so hears of no cancelling."""
    end: str = ""
    """How it ends: "" well, `error`, `bug` or `crash`."""
    label: ClassVar[str] = "counting"
    uses_tensorflow: ClassVar[bool] = False

    def run(self, context: WorkerContext) -> int:
        context.partial("begun")
        for done in range(self.steps):
            time.sleep(self.pause_s)
            if not self.deaf:
                context.progress(done + 1, self.steps)
        if self.end == "error":
            raise FormatError("x.h5: damaged.", hint="copy it again")
        if self.end == "bug":
            raise KeyError("lost")
        if self.end == "crash":
            os._exit(9)
        return os.getpid()


@dataclass(frozen=True)
class Pausing(Small):
    """The same, with a pause before each step for what goes first."""

    def run(self, context: WorkerContext) -> int:
        for done in range(self.steps):
            context.pause()
            time.sleep(self.pause_s)
            context.progress(done + 1, self.steps)
        return os.getpid()


@dataclass(frozen=True)
class Loading(Small):
    """Stands for the time in which TensorFlow is loaded, and nothing is heard."""

    def run(self, context: WorkerContext) -> int:
        context.say(LOADING)
        time.sleep(self.pause_s)
        context.say(self.label)
        return os.getpid()


@dataclass(frozen=True)
class Kept(Task[int]):
    """How often `kept` had to make something."""

    key: int = 0
    uses_tensorflow: ClassVar[bool] = False

    def run(self, context: WorkerContext) -> int:
        box = context.kept(self.key, lambda: [0])
        box[0] += 1
        return box[0]


@dataclass(frozen=True)
class GoesFirst(Small):
    """What somebody looks at now."""

    label: ClassVar[str] = "looking"
    goes_first: ClassVar[bool] = True


@dataclass(frozen=True)
class Ready(Kept):
    """The same, told while another task runs once there is something to tell of."""

    def is_ready(self, context: WorkerContext) -> bool:
        return context.peek(self.key) is not None
