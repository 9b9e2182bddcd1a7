"""Trains the sample runs again, each in a process of its own, stores their answers in them, and prints what `nanreplay bisect` says of them.

Usage: python sample_runs/regenerate.py [--answers] [NAME...]

With --answers nothing is trained: the answers of the captures that are there are made and stored anew. Their data stay as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.name != Path(__file__).name)
RUN = "import runpy, sys; del sys.argv[0]; sys.path.insert(0, ''); runpy.run_path(sys.argv[0], run_name='__main__')"
"""Runs a script under its bare name, so that a capture does not hold the folder of the machine that made it."""
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    **os.environ,
    "CUDA_VISIBLE_DEVICES": "-1",
    "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]),
}
LARGEST_BYTES = 500_000


def train(name: str, folder: Path = FOLDER) -> Path:
    """Run one script so that its capture lands in `folder`.

    Raises:
        RuntimeError: The script failed or wrote no capture.
    """
    capture = folder / f"{name}.h5"
    capture.unlink(missing_ok=True)
    script = f"{name}.py"
    if folder != FOLDER:
        (folder / script).write_text((FOLDER / script).read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", RUN, script], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode or not capture.exists():
        raise RuntimeError(f"{name} wrote no capture (exit {done.returncode}):\n{done.stdout}{done.stderr}")
    return capture


def describe(capture: Path) -> tuple[int, str, str]:
    """Step, trigger and sentence, as `nanreplay bisect` finds them; stores the answer in the capture."""
    # named from its own folder, so that the answer does not hold the folder of the machine that made it
    command = [sys.executable, "-m", "nanreplay", "bisect", capture.name, "--json", "--store"]
    done = subprocess.run(command, cwd=capture.parent, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        return -1, "", done.stderr.strip()
    report = json.loads(done.stdout)
    trigger = report["capture"]["trigger"]
    return report["capture"]["incident_step"], f"{trigger['what']} {trigger['name']} {trigger['value']}", report["sentence"]


def main(arguments: list[str]) -> int:
    """Train and describe; 1 when something went wrong."""
    names = [argument for argument in arguments if argument != "--answers"]
    trains = names == arguments
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"No such sample run: {', '.join(unknown)}. There are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    failed = False
    print("| run | kB | step | trigger | sentence |\n|---|---:|---:|---|---|")
    for name in names or NAMES:
        try:
            capture = train(name) if trains else FOLDER / f"{name}.h5"
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        step, trigger, sentence = describe(capture)
        size = capture.stat().st_size
        failed |= step < 0 or size > LARGEST_BYTES
        print(f"| {name} | {size / 1000:.0f} | {step} | {trigger[:60]} | {sentence} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
