"""What recording costs: `fit` with the recorder, and with TensorFlow's own tools, against bare
`fit`.

Each measurement is a process of its own. Rounds alternate the modes; the best epoch of a process
counts; the ratio to bare
`fit` is taken within a round, and the median of the rounds' ratios is the figure. The first epoch,
with tracing and compiling,
is told apart. "loop" is a loop over a `tf.function`, bare and recorded.

Usage: python benchmarks/overhead.py [--rounds 5] [--models mlp,cnn] [--modes recorder,...]
[--xla off|on|both] [--epochs 3]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from measuring import last_json, machine, machine_line, run, table, write_results

MODELS = ("mlp", "cnn", "transformer", "loop")
MODES = {
    "bare": "bare `fit`",
    "recorder": "`Recorder`",
    "terminate_on_nan": "`TerminateOnNaN`",
    "check_numerics": "`enable_check_numerics`",
    "curt_health": "`enable_dump_debug_info` CURT_HEALTH",
    "full_health": "`enable_dump_debug_info` FULL_HEALTH",
}
WORKER = Path(__file__).with_name("fit_once.py")
Key = tuple[str, str, str]
"""Model, XLA, mode."""


def measure(
    models: list[str], xla: list[str], modes: list[str], rounds: int, epochs: int
) -> dict[Key, list[dict[str, Any]]]:
    """All measurements, one entry a round. A mode that failed in the first round is not tried
    again."""
    found: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for turn, model, jit in itertools.product(range(rounds), models, xla):
        shift = turn % len(modes)
        for mode in modes_of(model, modes[shift:] + modes[:shift]):
            key = (model, jit, mode)
            if found[key] and "error" in found[key][-1]:
                continue
            with tempfile.TemporaryDirectory() as folder:
                _, done = run([WORKER, model, mode, jit, str(epochs), folder])
            found[key].append(last_json(done))
            seconds = [f"{each:.3f}" for each in found[key][-1].get("epochs_s", [])]
            print(
                f"round {turn + 1}: {model}, XLA {jit}, {mode}: "
                + (" ".join(seconds) or found[key][-1]["error"]),
                file=sys.stderr,
                flush=True,
            )
    return found


def modes_of(model: str, modes: list[str]) -> list[str]:
    """The modes that can be measured: `TerminateOnNaN` is of no use to a loop, and the tools of
    TensorFlow are measured in `fit`."""
    return [mode for mode in modes if model != "loop" or mode in ("bare", "recorder")]


def best(one: dict[str, Any]) -> float:
    """Seconds of the best epoch after the warm-up."""
    return min(one["epochs_s"][1:])


def ratios(found: dict[Key, list[dict[str, Any]]], key: Key) -> list[float]:
    """Ratio to bare `fit`, round by round."""
    bare = found[(key[0], key[1], "bare")]
    return [
        best(one) / best(base)
        for one, base in zip(found[key], bare, strict=False)
        if "error" not in one and "error" not in base
    ]


def first_ratio(found: dict[Key, list[dict[str, Any]]], key: Key) -> float:
    """First epoch, tracing and compiling included, to that of bare `fit`; the median of the
    rounds."""
    bare = found[(key[0], key[1], "bare")]
    return statistics.median(
        one["epochs_s"][0] / base["epochs_s"][0] for one, base in zip(found[key], bare, strict=True)
    )


def summary(found: dict[Key, list[dict[str, Any]]], key: Key) -> dict[str, Any]:
    """The figures of one row."""
    failed = next((one["error"] for one in found[key] if "error" in one), None)
    if failed is not None:
        return {"model": key[0], "xla": key[1], "mode": key[2], "error": failed}
    from_bare = ratios(found, key)
    weights = {one["weights"] for one in found[key]}
    return {
        "model": key[0], "xla": key[1], "mode": key[2], "ratio": statistics.median(from_bare),
        "ratios": from_bare,
        "first_ratio": first_ratio(found, key),
        "first_s": statistics.median(one["epochs_s"][0] for one in found[key]),
        "epoch_s": statistics.median(best(one) for one in found[key]),
        "peak_mib": statistics.median(one["peak_mib"] for one in found[key]),
        "same_weights": len(weights) == 1 and weights == {one["weights"] for one in found[(key[0],
        key[1], "bare")]},
    }  # fmt: skip


def row(facts: dict[str, Any]) -> list[str]:
    """One line of the table."""
    first = [facts["model"], facts["xla"], MODES[facts["mode"]]]
    if "error" in facts:
        return [*first, "fails", "", "", "", "", ""]
    spread = f"{min(facts['ratios']):.3f} to {max(facts['ratios']):.3f}"
    same = "yes" if facts["same_weights"] else "**no**"
    begin = f"{facts['first_ratio']:.2f} ({facts['first_s']:.1f} s)"
    return [
        *first,
        f"**{facts['ratio']:.3f}**",
        spread,
        begin,
        f"{facts['epoch_s']:.2f}",
        f"{facts['peak_mib']:.0f}",
        same,
    ]


def chosen(text: str, known: list[str]) -> list[str]:
    """Names out of a comma-separated list."""
    names = [name for name in known if name in text.split(",")]
    unknown = set(text.split(",")) - set(known)
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--models", type=lambda text: chosen(text, list(MODELS)), default=list(MODELS)
    )
    parser.add_argument(
        "--modes",
        type=lambda text: chosen(text, list(MODES)),
        default=list(MODES),
        help="bare is always measured",
    )
    parser.add_argument("--xla", choices=("off", "on", "both"), default="both")
    parser.add_argument("--epochs", type=int, default=3, help="measured epochs of each process")
    given = parser.parse_args()
    xla = ["off", "on"] if given.xla == "both" else [given.xla]
    modes = ["bare", *(mode for mode in given.modes if mode != "bare")]
    facts = machine()
    found = measure(given.models, xla, modes, given.rounds, given.epochs)
    rows = [
        summary(found, key)
        for key in itertools.product(given.models, xla, modes)
        if key[2] in modes_of(key[0], modes)
    ]
    header = [
        "model",
        "XLA",
        "mode",
        "time / bare",
        "rounds",
        "first epoch / bare",
        "s / epoch",
        "peak MiB",
        "weights as bare",
    ]
    measured = f"Median of {given.rounds} rounds, best of {given.epochs} epochs in each process."
    intro = f"{machine_line(facts)} {measured}"
    failures = [
        f"- {each['model']}, XLA {each['xla']}, {MODES[each['mode']]}: `{each['error']}`"
        for each in rows
        if "error" in each
    ]
    text = "\n".join(
        [
            intro,
            "",
            table(header, [row(each) for each in rows]),
            *(["", "Failures:", "", *failures] if failures else []),
        ]
    )
    write_results("overhead", text, {"machine": facts, "rows": rows})


if __name__ == "__main__":
    main()
