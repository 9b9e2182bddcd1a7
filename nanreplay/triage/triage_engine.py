"""`triage`: find captures, take known answers from the cache, have the others bisected, group."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nanreplay.report.stored_answers import has_tensorflow
from nanreplay.triage.answer_cache import AnswerCache
from nanreplay.triage.capture_answer import CaptureAnswer, failed_answer, stored_answer_of
from nanreplay.triage.failure_groups import TriagedCapture, TriageResult, grouped
from nanreplay.triage.found_captures import FoundCapture, find_captures

TIMEOUT_S = 1800.0
"""Seconds that a capture may take unless told otherwise: a large model takes minutes."""
Progress = Callable[[int, int], None]
Answers = Callable[[Sequence[str]], Iterator[CaptureAnswer]]


@dataclass(frozen=True)
class WorkerOptions:
    """Who bisects, and what a capture may take."""

    workers: int | None = None
    """Processes of this machine; one a processor unless given."""
    scheduler: str | None = None
    """Address of a Dask scheduler, whose workers do the work then."""
    timeout_s: float = TIMEOUT_S
    """Seconds that a capture may take."""
    max_memory: str | None = None
    """Memory of each worker, such as `8GiB`; its share of the machine unless given."""
    trust: bool = False
    """Let ops that touch files, the network or processes run."""


def triage(
    paths: Sequence[str],
    *,
    options: WorkerOptions | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    answers: Answers | None = None,
) -> TriageResult:
    """Bisect all captures under the paths, and group those that failed alike.

    Args:
        paths: Files, folders, patterns, URLs.
        options: Who bisects; processes of this machine unless given.
        cache: A folder of answers, read and added to; None keeps none.
        progress: Called with (captures done, captures in all).
        answers: Bisects the captures that no cache knows, in any order; by `options` unless given.

    Raises:
        CaptureNotFoundError: There is no such path, or no capture under all of them.
        ClusterError: The Dask cluster cannot be used.
        OutputExistsError: The cache cannot be made.
        ModuleNotFoundError: The workers of this machine lack TensorFlow, and no capture holds its
            answer.
    """
    kept = AnswerCache(cache)
    found = find_captures(paths, kept.knows)
    done, keys = {}, {}
    for each in found:
        if each.error:
            done[each.name] = failed_answer(each.name, each.error)
        else:
            keys[each.name] = kept.key_of(each.where)
    for name, key in keys.items():
        known = kept.known(key, name)
        if known is not None:
            done[name] = known
    _tell(progress, done, found)
    copies = _copies({name: key for name, key in keys.items() if name not in done})
    if copies:
        bisected = answers or _workers(options or WorkerOptions())
        for answer in bisected([names[0] for names in copies.values()]):
            names = copies[keys[answer.path] or answer.path]
            if not answer.is_stored:
                kept.keep(keys[answer.path], answer)
            for name in names:
                done[name] = _as_copy(answer, name)
            _tell(progress, done, found)
    captures = [TriagedCapture(done[each.name], each.size_bytes) for each in found]
    return grouped(captures, notes=[kept.trouble] if kept.trouble else [])


def _copies(keys: dict[str, str | None]) -> dict[str, list[str]]:
    """The files of each content, so that copies are bisected once."""
    copies: dict[str, list[str]] = defaultdict(list)
    for name, key in keys.items():
        copies[key or name].append(name)
    return copies


def _as_copy(answer: CaptureAnswer, name: str) -> CaptureAnswer:
    """The answer for a file of the same content."""
    if name == answer.path:
        return answer
    sentence = answer.sentence.replace(f"{answer.path}: ", f"{name}: ", 1)
    return replace(answer, path=name, sentence=sentence)


def _tell(
    progress: Progress | None, done: dict[str, CaptureAnswer], captures: Sequence[FoundCapture]
) -> None:
    if progress is not None:
        progress(len(done), len(captures))


def _workers(options: WorkerOptions) -> Answers:
    """What bisects captures by these options."""

    def of_cluster(names: Sequence[str]) -> Iterator[CaptureAnswer]:
        from nanreplay.triage.dask_workers import answers_of_cluster

        assert options.scheduler is not None
        # workers run in folders of their own
        named = {}
        for name in names:
            named[name if "://" in name else os.path.abspath(name)] = name
        for answer in answers_of_cluster(
            list(named),
            scheduler=options.scheduler,
            trust=options.trust,
            timeout_s=options.timeout_s,
            max_memory=options.max_memory,
        ):
            yield _as_copy(answer, named[answer.path])

    def here(names: Sequence[str]) -> Iterator[CaptureAnswer]:
        from nanreplay.triage.local_workers import (
            answers_here,
            default_workers,
            memory_of_worker,
        )

        if not has_tensorflow():
            stored = [stored_answer_of(name) for name in names]
            if not any(answer.is_stored for answer in stored):
                raise ModuleNotFoundError("no TensorFlow", name="tensorflow")
            yield from stored
            return
        workers = min(options.workers or default_workers(len(names)), len(names))
        yield from answers_here(
            names,
            trust=options.trust,
            workers=workers,
            timeout_s=options.timeout_s,
            max_memory=options.max_memory or memory_of_worker(workers),
        )

    return here if options.scheduler is None else of_cluster
