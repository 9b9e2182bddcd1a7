"""What bisecting one capture gave, as it crosses processes and lies in the cache.

`answer_of` runs where TensorFlow is: in a worker. All else here needs none; `stored_answer_of` is
what there is without it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from nanreplay.errors import NanreplayError, first_line
from nanreplay.terminal import CODES, STATUS, UNDECIDED, Status, code_of, quiet_work

if TYPE_CHECKING:
    from nanreplay.capture import Capture
    from nanreplay.report.contents import Report

_NUMBERED = re.compile(r"(.+?)_(\d+)")
"""A layer's name with the number that Keras gave it: `dense_4`."""


@dataclass(frozen=True)
class CaptureAnswer:
    """What became of one capture."""

    path: str
    status: Status
    sentence: str
    """What happened in the capture, or why that cannot be said."""
    report: dict[str, Any] | None = None
    """The document of `nanreplay bisect --json`; None when bisecting did not end."""
    layer: str | None = None
    """The origin's layers, the numbers that Keras counts made those of this model alone."""
    script: str | None = None
    """The program that trained, as the capture names it."""
    recorded: str | None = None
    """When the capture was written: ISO 8601 with its zone."""
    workers: int | None = None
    """How many workers trained together, each with a capture of its own; None for a lone one."""
    elapsed_s: float = 0.0
    """Seconds that bisecting took."""
    is_cached: bool = False
    """Whether an earlier run found this."""
    is_stored: bool = False
    """Whether the capture itself holds it: TensorFlow is not installed to bisect it."""


def answer_to_json(answer: CaptureAnswer) -> dict[str, Any]:
    """An answer as plain JSON values."""
    return asdict(answer)


def answer_from_json(value: dict[str, Any]) -> CaptureAnswer:
    """The answer that `answer_to_json` wrote.

    Raises:
        TypeError: It wrote no such thing.
    """
    answer = CaptureAnswer(**value)
    if answer.status not in STATUS.values() or not isinstance(answer.sentence, str):
        raise TypeError("no answer")
    return answer


def failed_answer(path: str, error: NanreplayError) -> CaptureAnswer:
    """The answer for a capture that could not be read or replayed."""
    hint = f" ({error.hint})" if error.hint else ""
    return CaptureAnswer(path, STATUS[code_of(error)], " ".join(f"{error}{hint}".split()))


def undecided_answer(path: str, reason: str) -> CaptureAnswer:
    """The answer for a capture of which a worker could not tell anything.

    Args:
        path: The capture.
        reason: What happened to the worker; a whole sentence.
    """
    return CaptureAnswer(path, STATUS[UNDECIDED], f"{path}: {reason}")


def answer_of(path: str, trust: bool) -> CaptureAnswer:
    """Bisect one capture; whatever goes wrong is an answer too.

    Args:
        path: A file or a URL.
        trust: Let ops that touch files, the network or processes run.
    """
    try:
        with quiet_work():
            return bisected_answer(path, trust)
    except NanreplayError as error:
        return failed_answer(path, error)
    except MemoryError:
        return undecided_answer(path, "takes more memory than a worker has; see --max-memory.")
    except Exception as error:  # one capture must never cost the others
        reason = f"unexpected {type(error).__name__}: {first_line(error)}"
        return undecided_answer(path, reason)


def bisected_answer(
    path: str,
    trust: bool,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> CaptureAnswer:
    """Bisect one capture, as `answer_of` does.

    Args:
        path: A file or a URL.
        trust: Let ops that touch files, the network or processes run.
        progress: Called with (steps done, steps in all).
        say: Called with a line before each part of the work.

    Raises:
        NanreplayError: It cannot be read or replayed.
    """
    from nanreplay.report.explain import explain

    began_s = time.perf_counter()
    report = explain(path, trust=trust, fixes="none", progress=progress, say=say)
    return replace(answer_with(path, report), elapsed_s=round(time.perf_counter() - began_s, 3))


def stored_answer_of(path: str) -> CaptureAnswer:
    """The answer that a capture holds, where TensorFlow is not installed; why there is none, else.

    Args:
        path: A file or a URL.
    """
    from nanreplay.report.stored_answers import answer_without_tensorflow

    try:
        report = answer_without_tensorflow(path).report
        return replace(answer_with(path, report), is_stored=True)
    except NanreplayError as error:
        return failed_answer(path, error)


def answer_with(path: str, report: Report) -> CaptureAnswer:
    """Return the answer that a report is; the capture tells the rest of it.

    Args:
        path: A file or a URL.
        report: That of the capture.
    """
    from nanreplay.capture import Capture
    from nanreplay.report.explain import worker_of
    from nanreplay.report.report_json import to_json

    origin = report.findings.origin
    with Capture(path) as capture:
        metadata, worker = capture.metadata, worker_of(capture)
        layer = None
        if origin is not None and origin.layer_path:
            layer = counted_from_first(origin.layer_path, _layer_names(capture))
    return CaptureAnswer(
        path=path,
        status=STATUS[CODES.get(report.verdict.kind, UNDECIDED)],
        sentence=report.sentence,
        report=to_json(report),
        layer=layer,
        script=metadata.get("script"),
        recorded=metadata.get("created"),
        workers=None if worker is None else worker[1],
    )


def _layer_names(capture: Capture) -> set[str]:
    paths: set[str] = set()
    for name in capture.programs:
        paths.update(capture.ops(name)["layer_path"].unique())
    return {name for path in paths for name in path.split("/")}


def counted_from_first(layer_path: str, names: Iterable[str]) -> str:
    """A chain of layers with the numbers that Keras counts made those of this model alone.

    Keras counts over all models of a process, so that `dense_4` of one run is `dense_1` of
    another. Both are the second `dense` of their models.

    Args:
        layer_path: Names of layers, joined by "/".
        names: The names of all layers of the model.
    """
    numbers: dict[str, set[int]] = {}
    for name in {*names, *layer_path.split("/")}:
        base, number = _base_and_number(name)
        numbers.setdefault(base, set()).add(number)
    counted = []
    for name in layer_path.split("/"):
        base, number = _base_and_number(name)
        place = sorted(numbers[base]).index(number)
        counted.append(f"{base}_{place}" if place else base)
    return "/".join(counted)


def _base_and_number(name: str) -> tuple[str, int]:
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)


def begin_worker(max_memory: str | None) -> None:
    """Prepare a process for bisecting: its memory limit, and nothing on the user's terminal.

    Args:
        max_memory: What NANREPLAY_MAX_MEMORY is to be; None leaves it as it is.
    """
    from nanreplay import limits

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if max_memory is not None:
        os.environ[limits.VARIABLE] = max_memory
    # TensorFlow's C++ and recorded programs write to the descriptors, not to sys.stdout
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _end_with(parent: Any) -> None:
    """End this process when the one that asks was killed: nobody waits for an answer any more."""
    parent.join()
    os._exit(1)
