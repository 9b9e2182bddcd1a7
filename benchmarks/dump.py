"""How fast a dump is written: against plain h5py with the same arrays on the same disk, and what
compression would cost.

First the capture of a training (weights after some steps, Adam's slots, batches) is written, in
turns with plain h5py: one
contiguous dataset an array, closed and synced. Then its keyframe and its batches are written
with each of HDF5's own filters, and
with those of hdf5plugin where that is installed.

Usage: python benchmarks/dump.py [--mib 512] [--rounds 5] [--folder DIR] [--no-filters]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from measuring import machine, machine_line, table, write_results

from nanreplay import Capture, Recorder
from nanreplay.capture import writer
from nanreplay.records import CaptureContents

MIB = 2**20
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "lzf": {"compression": "lzf"},
    "lzf, shuffle": {"compression": "lzf", "shuffle": True},
    "gzip 1": {"compression": "gzip", "compression_opts": 1},
    "gzip 1, shuffle": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "gzip 4, shuffle": {"compression": "gzip", "compression_opts": 4, "shuffle": True},
    "gzip 9, shuffle": {"compression": "gzip", "compression_opts": 9, "shuffle": True},
}


def plugin_filters() -> dict[str, Any]:
    """Filters that h5py alone can neither write nor read."""
    try:
        import hdf5plugin
    except ImportError:
        return {}
    return {
        "plugin: lz4": hdf5plugin.LZ4(),
        "plugin: bitshuffle, lz4": hdf5plugin.Bitshuffle(cname="lz4"),
        "plugin: bitshuffle, zstd 3": hdf5plugin.Bitshuffle(cname="zstd", clevel=3),
        "plugin: blosc2, zstd 1": hdf5plugin.Blosc2(cname="zstd", clevel=1),
        "plugin: zstd 1": hdf5plugin.Zstd(clevel=1),
    }


def recorded(folder: Path, mib: int) -> tuple[CaptureContents, float]:
    """A real capture of about that size, and the seconds that `recorder.dump()` took."""
    units = max(
        8, mib * MIB // 3 // 3 // 4 // 1024
    )  # two keyframes, and three of weights and gradients
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((1024,)), keras.layers.Dense(units, activation="relu"), keras.layers.Dense(10)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(1)
    x, y = (
        random.integers(0, 256, (64 * 20, 1024)).astype("float32") / 255,
        random.integers(0, 10, 64 * 20),
    )
    recorder = Recorder(folder / "run.h5", disk_limit="16GiB", memory_limit="16GiB")
    model.fit(x, y, batch_size=64, epochs=2, verbose=0, callbacks=[recorder])
    began_s = time.perf_counter()
    recorder.dump()
    elapsed_s = time.perf_counter() - began_s
    with Capture(folder / "run.h5") as capture:
        return capture.contents(), elapsed_s


def arrays_of(contents: CaptureContents) -> list[Any]:
    """The arrays of a capture."""
    steps = [*contents.keyframes.values(), *contents.weights.values(), *contents.gradients.values()]
    found = [np.asarray(value) for values in steps for value in values.values()]
    return [
        *found,
        *(np.asarray(leaf) for batch in contents.batches.values() for leaf in batch.leaves),
    ]


def plain(path: Path, arrays: Sequence[Any], **options: Any) -> None:
    """Write arrays with h5py, and sync the file."""
    with h5py.File(path, "w") as file:
        for index, array in enumerate(arrays):
            file.create_dataset(str(index), data=array, **(options if array.ndim else {}))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def seconds(work: Callable[[], None]) -> float:
    """How long `work` takes."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def compare(
    contents: CaptureContents, arrays: Sequence[Any], folder: Path, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of the capture and of plain h5py, in turns."""
    found = []
    for turn in range(rounds):
        works = {
            "capture": lambda: writer.write_capture(folder / "capture.h5", contents),
            "plain": lambda: plain(folder / "plain.h5", arrays),
        }
        order = list(works) if turn % 2 else list(works)[::-1]
        taken = {name: seconds(works[name]) for name in order}
        found.append((taken["capture"], taken["plain"]))
    return found


def filter_rows(groups: dict[str, list[Any]], folder: Path) -> list[list[str]]:
    """Speed and size of each filter, for each group of arrays."""
    rows = []
    for name, options in {**FILTERS, **plugin_filters()}.items():
        row = [name]
        for arrays in groups.values():
            size = sum(array.nbytes for array in arrays)
            path = folder / "filter.h5"
            taken = min(
                seconds(
                    lambda path=path, arrays=arrays, options=options: plain(path, arrays, **options)
                )
                for _ in range(2)
            )
            row += [f"{size / taken / 1e6:.0f}", f"{path.stat().st_size / size:.2f}"]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-filters", action="store_true", help="leave the table of filters out")
    parser.add_argument("--folder", help="a folder on the disk to measure")
    given = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        contents, dump_s = recorded(folder, given.mib)
        arrays = arrays_of(contents)
        size = sum(array.nbytes for array in arrays)
        pairs = compare(contents, arrays, folder, given.rounds)
        last = max(contents.keyframes)
        groups = {
            "weights and slots": [
                np.asarray(value)
                for value in contents.keyframes[last].values()
                if np.asarray(value).nbytes > MIB
            ],
            "pixels as floats": [
                np.asarray(batch.leaves[0]) for batch in contents.batches.values()
            ],
            "token ids": [
                np.random.default_rng(step).integers(0, 30_000, (512, 512)) for step in range(8)
            ],
        }
        filters = [] if given.no_filters else filter_rows(groups, folder)
    speeds = [[f"{size / taken / 1e6:.0f}" for taken in pair] for pair in pairs]
    ratio = statistics.median(bare / capture for capture, bare in pairs)
    capture_s, plain_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    first = [
        [
            "capture",
            f"{size / capture_s / 1e6:.0f} MB/s",
            f"**{ratio:.0%}** of plain h5py (bar 70 %)",
        ],
        ["plain h5py", f"{size / plain_s / 1e6:.0f} MB/s", ""],
        [
            "`recorder.dump()` as a whole",
            f"{dump_s:.1f} s",
            "describing the program and re-executing the window included",
        ],
    ]
    header = ["filter", *(cell for name in groups for cell in (f"{name}: MB/s", "size"))]
    text = [
        f"{machine_line(facts)} h5py {facts['h5py']}, HDF5 {h5py.version.hdf5_version}. "
        f"{size / MIB:.0f} MiB, {len(arrays)} arrays, {given.rounds} rounds.",
        "", table(["written by", "speed", ""], first), "", table(header, filters),
    ]  # fmt: skip
    write_results(
        "dump",
        "\n".join(text),
        {"machine": facts, "bytes": size, "seconds": pairs, "speeds": speeds, "filters": filters},
    )


if __name__ == "__main__":
    main()
