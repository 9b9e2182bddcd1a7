"""How long verdict, origin and cause take against an eager step of the same training,
how that grows with the number of ops,
and what trying fixes costs.

The bar: at most ten eager steps, and TensorFlow's import; a fix at most its window in
compiled steps, and tracing.

Usage: python benchmarks/bisect_time.py [--layers 4,8,16,32] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import last_json, machine, machine_line, run, table, write_results

WORKER = Path(__file__).with_name("bisect_once.py")


def measure(layers: int, rounds: int) -> dict[str, Any]:
    """Figures of one depth."""
    with tempfile.TemporaryDirectory() as folder:
        capture = Path(folder) / "run.h5"
        trained = checked(last_json(run([WORKER, "record", str(layers), capture])[1]))
        found = [checked(last_json(run([WORKER, "bisect", capture])[1])) for _ in range(rounds)]
        walls = [
            run(["-m", "nanreplay", "bisect", str(capture), "--json"])[0] for _ in range(rounds)
        ]
    facts = {
        name: statistics.median(each[name] for each in found)
        for name in ("import_s", "bisect_s", "whatif_s", "compiled_step_s")
    }
    facts |= {name: found[0][name] for name in ("fixes", "steps")}
    print(f"{layers} layers: {facts}", file=sys.stderr, flush=True)
    return {
        "layers": layers,
        "ops": found[0]["ops"],
        "op": found[0]["op"],
        **trained,
        **facts,
        "command_s": statistics.median(walls),
    }


def checked(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts, unless they are an error."""
    if "error" in facts:
        sys.exit(facts["error"])
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", default="4,8,16,32")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    facts = machine()
    found = [measure(int(layers), given.rounds) for layers in given.layers.split(",")]
    rows = [
        [
            str(each["layers"]), str(each["ops"]), f"{each['eager_step_s'] * 1e3:.0f} ms",
            f"{each['bisect_s']:.2f} s",
            f"**{each['bisect_s'] / each['eager_step_s']:.1f}**",
            f"{each['bisect_s'] / each['ops'] * 1e3:.2f} ms",
            f"{each['import_s']:.1f} s", f"{each['command_s']:.1f} s", str(each["op"]),
            f"{each['whatif_s'] / each['fixes']:.2f} s",
            f"{each['steps']} x {each['compiled_step_s'] * 1e3:.0f} ms",
        ]
        for each in found
    ]  # fmt: skip
    header = [
        "layers",
        "ops",
        "eager step",
        "bisect",
        "bisect / eager step (bar 10)",
        "per op",
        "import",
        "whole command",
        "found",
        "a fix",
        "its steps",
    ]
    text = f"{machine_line(facts)} Median of {given.rounds} processes.\n\n" + table(header, rows)
    write_results("bisect_time", text, {"machine": facts, "rows": found})


if __name__ == "__main__":
    main()
