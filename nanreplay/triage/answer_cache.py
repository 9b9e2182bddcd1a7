"""Answers of earlier runs, by what the captures hold: a second run bisects only what is new.

The key is a hash of the content, so that a copy or a renamed file is known. Of a large file it is
one of its ends, size and time of change; of a URL, of what the store says of the object. What
replays it (nanreplay, TensorFlow) is part of it. A file that nobody changed since its key was taken
is not read again to tell it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nanreplay import __version__
from nanreplay.capture.storage import Location, RemotePath, filesystem
from nanreplay.errors import OutputExistsError
from nanreplay.triage.capture_answer import CaptureAnswer, answer_from_json, answer_to_json

_SCHEME = 2
"""Raised when what is kept of an answer, or how it is found, changes."""
_WHOLE_BYTES = 64 * 2**20
"""Files up to this size are hashed whole."""
_END_BYTES = 2**20
_BLOCK_BYTES = 2**20
_SETTLED_NS = 2_000_000_000
"""How old a change of a file must be: a later one within one tick of its clock shows no other time.

The clock of a FAT disk ticks every 2 s.
"""
_SEEN = "seen"
"""The folder of keys by path and state of the file."""
_KEY = re.compile("[0-9a-f]{64}")
_LIBRARIES = ("tensorflow", "tensorflow-cpu", "tf-nightly", "keras")
_TAGS = frozenset((
    "etag", "content-md5", "content_md5", "md5hash", "md5", "crc32c", "generation", "last-modified",
    "lastmodified", "last_modified", "mtime", "modified", "updated", "versionid", "created",
))  # fmt: skip
"""What stores call what changes with an object, in lower case."""


class AnswerCache:
    """A folder of answers.

    Only what bisecting found is kept: a capture that could not be read, or whose worker ended, is
    tried again.

    Args:
        folder: Made when it is not there; None keeps nothing.

    Raises:
        OutputExistsError: It cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.trouble: str | None = None
        """Why answers could not be kept, which costs only the next run time; else None."""
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputExistsError(
                    f"Cannot keep answers in {folder}: {error.strerror}.",
                    hint="--cache DIR keeps them elsewhere, --no-cache keeps none",
                ) from error

    def known(self, key: str | None, path: str) -> CaptureAnswer | None:
        """The answer of an earlier run; None where there is none, or its file is damaged."""
        if self.folder is None or key is None:
            return None
        try:
            text = (self.folder / f"{key}.json").read_text(encoding="utf-8")
            digest, _, kept = text.partition("\n")
            if digest != _digest(kept):
                return None
            return answer_from_json({**json.loads(kept), "path": path, "is_cached": True})
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, key: str | None, answer: CaptureAnswer) -> None:
        """Keep an answer that bisecting gave; where that fails, `trouble` says why."""
        if key is not None and answer.report is not None:
            # in ASCII, for a name may hold bytes that are no text
            kept = json.dumps(answer_to_json(answer), allow_nan=False)
            self._write(f"{key}.json", f"{_digest(kept)}\n{kept}")

    def key_of(self, where: Location) -> str | None:
        """Return the `content_key` of a capture, that of its last reading where nothing changed."""
        seen = self._seen_name(where)
        if seen is None:
            return content_key(where)
        key = self._seen_key(seen) or content_key(where)
        if key is not None and seen == self._seen_name(where):
            self._write(seen, key)
        return key

    def knows(self, where: Location) -> bool:
        """Whether there is an answer for a capture, told without reading it."""
        if self.folder is None:
            return False
        if isinstance(where, RemotePath):
            key = content_key(where)
        else:
            seen = self._seen_name(where)
            key = None if seen is None else self._seen_key(seen)
        return key is not None and (self.folder / f"{key}.json").is_file()

    def _seen_name(self, where: Location) -> str | None:
        """The name that a file's key is kept under; None for one that changed just now, or a URL.

        It hangs on all that a change of the file changes: inode, size and times.
        """
        if self.folder is None or isinstance(where, RemotePath):
            return None
        try:
            status = where.stat()
        except OSError:
            return None
        changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
        if not 0 <= changed_ns < time.time_ns() - _SETTLED_NS:
            return None
        state = [status.st_dev, status.st_ino, status.st_size, changed_ns, status.st_mtime_ns]
        named = [_SCHEME, __version__, *_versions(), os.path.abspath(where), *state]
        return f"{_SEEN}/{_digest(json.dumps(named))}"

    def _seen_key(self, name: str) -> str | None:
        assert self.folder is not None
        try:
            key = (self.folder / name).read_text(encoding="ascii")
        except (OSError, ValueError):
            return None
        return key if _KEY.fullmatch(key) else None

    def _write(self, name: str, text: str) -> None:
        """Write a file of the cache; readers see all of it or nothing."""
        if self.folder is None:
            return
        target = self.folder / name
        try:
            if target.parent != self.folder:
                target.parent.mkdir(exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(temporary, target)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            self.trouble = f"Answers cannot be kept in {self.folder}: {error.strerror}."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def default_cache_folder() -> Path:
    """Where answers are kept unless told otherwise, by the custom of the system."""
    import platformdirs

    return platformdirs.user_cache_path("nanreplay") / "triage"


def content_key(where: Location) -> str | None:
    """The name of an answer: what a capture holds, and what replays it.

    None for a file that cannot be read, and for a URL whose store tells nothing that changes with
    the content.
    """
    digest = hashlib.sha256(json.dumps([_SCHEME, __version__, *_versions()]).encode())
    try:
        if isinstance(where, RemotePath):
            return digest.hexdigest() if _hash_remote(where, digest) else None
        _hash_file(where, digest)
        return digest.hexdigest()
    except Exception:  # a file system of fsspec has errors of its own; the worker will say it
        return None


@functools.cache
def _versions() -> tuple[str, ...]:
    """What replays captures here; asked for each of thousands of files."""
    found = []
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return tuple(found)


def _hash_file(path: Path, digest: hashlib._Hash) -> None:
    status = path.stat()
    with path.open("rb") as file:
        if status.st_size <= _WHOLE_BYTES:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
            return
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        digest.update(file.read(_END_BYTES))
        file.seek(-_END_BYTES, os.SEEK_END)
        digest.update(file.read())


def _hash_remote(where: RemotePath, digest: hashlib._Hash) -> bool:
    """Whether the store tells what changes with the content."""
    system, inner = filesystem(where)
    facts = {str(name).lower(): str(fact) for name, fact in system.info(inner).items()}
    tags = {name: fact for name, fact in facts.items() if name in _TAGS and fact != "None"}
    told = {"url": where.url, "size": facts.get("size"), **tags}
    digest.update(json.dumps(told, sort_keys=True).encode())
    return bool(tags)
