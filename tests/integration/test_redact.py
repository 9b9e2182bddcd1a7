"""A redacted capture holds nothing of the data, the code and the machine, and says whether it still
reproduces."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import warm_python

from nanreplay import Capture
from nanreplay.commands import run_command_line

pytestmark = pytest.mark.xdist_group("redact")  # one worker makes what they share

NAME, HOST, VALUE = "mlovelace", "dgx-berlin-17", 1234.5678
CODE = "tf.reduce_mean(1.0 / x)"
SECRETS = (NAME, HOST, "private_study", CODE, "loss = tf.")
SCRIPT = Path(__file__).with_name("secret_training.py")
ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "sample_runs"
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of somebody's training in somebody's folder."""
    folder = tmp_path_factory.mktemp("secret") / "home" / NAME / "private_study"
    folder.mkdir(parents=True)
    script = folder / "train.py"
    script.write_text(SCRIPT.read_text())
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "USER": NAME,
        "HOSTNAME": HOST,
        "XLA_FLAGS": f"--xla_dump_to={folder}/dump",
    }
    arguments = [script, folder / "secret.h5", NAME, HOST, str(VALUE)]
    warm_python.run(arguments, env=environment, check=True)
    return folder / "secret.h5"


def everything(path: Path) -> Iterator[bytes]:
    """All bytes of a file: as they are, of each dataset unpacked, of each table unpacked, and all
    names and attributes."""
    yield path.read_bytes()
    with h5py.File(path) as file:
        names: list[str] = []
        file.visit(names.append)
        for name in ["/", *names]:
            item = file[name]
            yield name.encode()
            yield from (
                text.encode() + np.asarray(value).tobytes() for text, value in item.attrs.items()
            )
            if isinstance(item, h5py.Dataset):
                yield item[()].tobytes()
                with contextlib.suppress(zlib.error):
                    yield zlib.decompress(item[()].tobytes())


def found_in(path: Path) -> set[str]:
    """The secrets that a file holds."""
    numbers = {
        "the number": [
            np.float32(VALUE).tobytes(),
            np.float64(VALUE).tobytes(),
            str(VALUE).encode(),
        ]
    }
    texts = {
        secret: [secret.encode(), secret.encode("utf-16-le"), secret.encode().hex().encode()]
        for secret in SECRETS
    }
    parts = list(everything(path))
    return {
        secret
        for secret, forms in {**texts, **numbers}.items()
        if any(form in part for form in forms for part in parts)
    }


def test_no_secret_of_the_training_is_left(secret: Path, tmp_path: Path, command: Command) -> None:
    assert found_in(secret) >= {
        NAME,
        HOST,
        "private_study",
        CODE,
        "the number",
    }  # the search finds what is there
    child = command("redact", secret, "-o", tmp_path / "out.h5", "--json")
    assert child.returncode == 0, child.stderr
    told = json.loads(child.stdout)
    assert told["reproduces"] is True
    assert found_in(tmp_path / "out.h5") == set()
    assert told["report"]["origin"]["op_type"] == "RealDiv"
    assert any(
        note.startswith("Arrays that the program holds as constants were replaced")
        for note in told["notes"]
    )


def test_rows_that_fail_can_be_kept(
    secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command_line(
            ["redact", str(secret), "-o", str(tmp_path / "out.h5"), "--batches", "failing-rows"]
        )
        == 0
    )
    assert "reproduces  yes." in capsys.readouterr().out
    with Capture(secret) as before, Capture(tmp_path / "out.h5") as after:
        ((own,), (other,)) = before.batch(4).leaves, after.batch(4).leaves
        assert np.array_equal(own[2], other[2])
        assert not np.isin(own[[0, 1, 3]], other).any()
    assert found_in(tmp_path / "out.h5") == set()


@pytest.mark.parametrize("arguments", [["--batches", "none"], ["--weights", "none"]])
def test_what_cannot_be_replayed_says_so(
    arguments: list[str], secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command_line(
            ["redact", str(secret), "-o", str(tmp_path / "out.h5"), *arguments, "--json"]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert (told["reproduces"], told["batches"], told["report"]) == (False, "none", None)
    with Capture(tmp_path / "out.h5") as capture:
        assert capture.steps == ()
        assert len(capture.keyframe_steps) == (arguments[0] == "--batches")
        assert capture.state_steps == ()  # it holds weights, too
        assert len(capture.timeline()) == 5
    assert run_command_line(["bisect", str(tmp_path / "out.h5")]) == 3


@pytest.mark.slow
def test_random_numbers_that_do_not_fail_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.h5"
    assert (
        run_command_line(["redact", str(SAMPLES / "dead_relu.h5"), "-o", str(out), "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    with Capture(out) as capture:
        assert told["reproduces"] is bool(capture.steps)


def test_what_python_computes_is_redacted_without_a_replay(
    recorded_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command_line(
            ["redact", str(recorded_runs / "python.h5"), "-o", str(tmp_path / "out.h5"), "--json"]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["reproduces"] is None
    assert "cannot be replayed" in told["reason"]


def test_failing_rows_must_be_known(
    recorded_runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_command_line(
            [
                "redact",
                str(recorded_runs / "healthy.h5"),
                "-o",
                str(tmp_path / "out.h5"),
                "--batches",
                "failing-rows",
            ]
        )
        == 3
    )
    assert "the rows that fail are not known" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_capture_with_the_state_before_its_failing_step_is_made_small(
    secret: Path, tmp_path: Path
) -> None:
    with Capture(secret) as before:
        assert before.state_steps
    assert run_command_line(["minimize", str(secret), "-o", str(tmp_path / "small.h5")]) == 0
    with Capture(tmp_path / "small.h5") as after:
        assert after.state_steps == ()
        assert after.keyframe_steps == (after.incident.step,)
