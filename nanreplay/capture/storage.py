"""Where captures are: files of this machine, and what fsspec opens (s3://, gs://, http://, ...).

The reader opens captures here, and the recorder publishes remote ones. Reading takes the ranges
that are asked for, not the whole file. Writing goes to a local file first, which is uploaded whole,
again and again for a while when that fails, and kept when it never works.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import h5py

from nanreplay.errors import CaptureNotFoundError, FormatError, StorageError

UPLOAD_LIMIT_S = 120.0
"""Seconds that a training waits for its capture to be uploaded, retries included."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 20.0
_BLOCK_BYTES = 2**18
"""What one read of a remote file asks for: the tables of a capture are small and lie apart."""
_BLOCKS_KEPT = 64
_WHOLE_OR_NOT = frozenset("s3 s3a gs gcs abfs abfss az adl oci oss r2".split())
"""Object stores: an upload is there when it is complete, and renaming would copy it."""
_READ_ONLY = frozenset("http https github zip tar data git".split())
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
}
"""What to install for a protocol that fsspec knows and cannot open alone."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z0-9+.:-]+)?://")
_CUT_OFF = re.compile(r"truncated file: eof = (\d+), .*stored_eof = (\d+)")
"""What HDF5 says of a file that is shorter than its superblock says."""
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class RemotePath:
    """A capture that is no file of this machine."""

    url: str

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.url).name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The ending of the last part, such as `.h5`."""
        return PurePosixPath(self.name).suffix

    def with_name(self, name: str) -> RemotePath:
        """Another capture beside this one."""
        return RemotePath(self.url[: len(self.url) - len(self.name)] + name)

    @property
    def protocol(self) -> str:
        """`s3` of `s3://bucket/run.h5`."""
        return self.url.partition("://")[0].partition("::")[0]

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return self.url


Location: TypeAlias = Path | RemotePath


def location(path: str | os.PathLike[str]) -> Location:
    """The place that a path or URL names; `file://` URLs are files of this machine."""
    text = os.fspath(path)
    if _URL.match(text) is None:
        return Path(text)
    scheme, _, rest = text.partition("://")
    return Path(rest) if scheme in ("file", "local") else RemotePath(text)


def filesystem(where: RemotePath) -> tuple[Any, str]:
    """Fsspec's file system of a URL, and the path in it.

    Raises:
        StorageError: fsspec, or its part for this protocol, is not installed.
    """
    try:
        import fsspec
    except ImportError:
        raise StorageError(f"{where}: URLs need fsspec: pip install 'nanreplay[remote]'.") from None
    try:
        system, inner = fsspec.core.url_to_fs(where.url)
    except ImportError as error:
        package = _PACKAGES.get(where.protocol)
        needs = f"needs {package}: pip install {package}." if package else _one_line(error)
        raise StorageError(f"{where}: {needs}") from None
    # an unknown protocol, missing credentials, whatever the protocol's package raises
    except Exception as error:
        raise StorageError(f"{where}: {_one_line(error)}") from error
    return system, inner


def open_hdf5(where: Location) -> tuple[h5py.File, Any]:
    """Open a capture for reading; returns the HDF5 file, and the stream to close after it.

    The stream is None for a file of this machine.

    Raises:
        CaptureNotFoundError: There is none.
        FormatError: It is no HDF5 file, or may not be read.
        StorageError: It cannot be reached.
    """
    if isinstance(where, RemotePath):
        return _open_remote(where)
    if not where.exists():
        raise CaptureNotFoundError(f"{where}: no such file.")
    if where.is_dir():
        raise FormatError(
            f"{where}: is a folder, not a capture.", hint="nanreplay open and triage take folders"
        )
    if not where.is_file():
        raise FormatError(f"{where}: is no file.")
    if not os.access(where, os.R_OK):
        raise FormatError(f"{where}: no permission to read it.")
    if not where.stat().st_size:
        raise FormatError(f"{where}: is empty.")
    if not h5py.is_hdf5(where):
        raise _no_hdf5(where)
    return _opened(where, where), None


def _opened(where: Location, source: Any) -> h5py.File:
    """Open a path or a stream with h5py.

    Raises:
        FormatError: The file is shorter than it says that it is.
    """
    try:
        return h5py.File(source, "r")
    except OSError as error:
        shorter = cut_off(where, error)
        if shorter is None:
            raise
        raise shorter from error


def cut_off(where: Location, error: Exception) -> FormatError | None:
    """Say how much of an HDF5 file is missing; None when another error of h5py has come."""
    sizes = _CUT_OFF.search(str(error))
    if sizes is None:
        return None
    text = f"is cut off: {sizes[1]} of {sizes[2]} bytes are there. Copy it again."
    return FormatError(f"{where}: {text}")


def _open_remote(where: RemotePath) -> tuple[h5py.File, Any]:
    system, inner = filesystem(where)
    try:
        stream = system.open(
            inner,
            "rb",
            block_size=_BLOCK_BYTES,
            cache_type="blockcache",
            cache_options={"maxblocks": _BLOCKS_KEPT},
        )
        is_hdf5 = stream.read(len(_SIGNATURE)) == _SIGNATURE
    except FileNotFoundError as error:
        # fsspec raises this error for a host that does not answer too, with the reason as cause
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            raise StorageError(f"{where}: cannot be read: {_one_line(cause)}") from error
        raise CaptureNotFoundError(f"{where}: no such file.") from None
    except IsADirectoryError:
        raise FormatError(f"{where}: is a folder, not a capture.") from None
    except Exception as error:  # each file system has errors of its own
        raise StorageError(f"{where}: cannot be read: {_one_line(error)}") from error
    if not is_hdf5:
        stream.close()
        raise _no_hdf5(where)
    return _opened(where, stream), stream


def _no_hdf5(where: Location) -> FormatError:
    return FormatError(f"{where}: not an HDF5 file, so not a capture (or damaged at its start).")


def size_bytes(where: Location) -> int:
    """Size of a capture."""
    if isinstance(where, Path):
        return where.stat().st_size
    system, inner = filesystem(where)
    return int(system.size(inner))


def check_uploads(where: RemotePath) -> None:
    """Check of a target what can be checked without writing to it.

    Raises:
        StorageError: Its protocol is not installed, or cannot be written to.
    """
    if where.protocol in _READ_ONLY:
        raise StorageError(f"{where}: {where.protocol} can be read, not written.")
    filesystem(where)


def local_copy(where: RemotePath) -> Path:
    """Make an empty local file for a capture that is to be uploaded.

    It is in the working directory, where people look, if that can be written to.
    """
    folder = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path(tempfile.gettempdir())
    descriptor, name = tempfile.mkstemp(suffix=where.suffix, prefix=f"{where.stem}-", dir=folder)
    os.close(descriptor)
    return Path(name)


def publish(local: Path, where: RemotePath, *, within_s: float | None = None) -> None:
    """Upload a file; it is there whole under its name, or not at all.

    Tries again after growing pauses. An upload that hangs is left to itself when the time is over.

    Args:
        local: The file.
        where: Its target.
        within_s: Seconds for all attempts together; UPLOAD_LIMIT_S unless given.

    Raises:
        StorageError: It did not work in time; says what the last attempt met.
    """
    attempts = _UploadAttempts(local, where)
    # a thread, since a file system may hang for ever; a daemon, so that the process can still end
    worker = threading.Thread(target=attempts.run, daemon=True, name="nanreplay upload")
    began_s = time.monotonic()
    worker.start()
    worker.join(UPLOAD_LIMIT_S if within_s is None else within_s)
    attempts.is_over.set()
    error = attempts.last_error
    if error is not None:
        spent_s = time.monotonic() - began_s
        raise StorageError(
            f"{where}: could not be written within {spent_s:.0f} s: {_one_line(error)}"
        ) from error


class _UploadAttempts:
    """Uploads one file until that works, cannot work, or the time is over."""

    def __init__(self, local: Path, where: RemotePath) -> None:
        self._local = local
        self._where = where
        self.is_over = threading.Event()
        self.last_error: BaseException | None = StorageError("no attempt ended")

    def run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self.is_over.is_set():
            try:
                _upload(self._local, self._where)
                self.last_error = None
                return
            except Exception as error:  # each file system has errors of its own
                self.last_error = error
                if isinstance(error, (PermissionError, StorageError)):
                    return  # another attempt will meet the same
            self.is_over.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _upload(local: Path, where: RemotePath) -> None:
    system, inner = filesystem(where)
    # In an object store a name appears with its whole content. Other file systems would show half
    # an upload, so the file gets its name at the end.
    is_atomic = where.protocol in _WHOLE_OR_NOT
    folder, _, name = inner.rpartition("/")
    target = inner if is_atomic else f"{folder}/.{name}.{os.getpid()}.part"
    try:
        if not is_atomic and folder:
            system.makedirs(folder, exist_ok=True)
        system.put_file(str(local), target)
        system.invalidate_cache()  # else fsspec answers the size from before the upload
        size, wanted = int(system.size(target) or 0), local.stat().st_size
        if size != wanted:
            raise OSError(f"{size} of {wanted} bytes arrived")
        if not is_atomic:
            system.mv(target, inner)
    except BaseException:
        if not is_atomic:
            with contextlib.suppress(Exception):
                system.rm_file(target)
        raise


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
