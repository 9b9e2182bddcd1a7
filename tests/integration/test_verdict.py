"""The verdict with its evidence: every fault of the machine is called transient, and no bug of the
program is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from fault_injection import Fault, inject
from trainings import BATCH, data, record, with_all_variables

from nanreplay import Capture, NonFiniteError, Recorder, Replay
from nanreplay.diagnose import judge
from nanreplay.findings import Verdict
from nanreplay.program.fingerprint import NOT_MEASURED
from nanreplay.records import Incident, Trigger
from nanreplay.report.explain import explain

STEPS = 12


def network(optimizer: Any, *, jit: bool = False) -> Any:
    """A small network without randomness."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.layers.Dense(6, name="hidden"),
            keras.layers.Dense(4, activation="softplus", name="middle"),
            keras.layers.Dense(1, name="out"),
        ]
    )
    model.compile(optimizer, "mse", jit_compile=jit)
    model.build((None, 3))
    return with_all_variables(model)


def judged(path: Path) -> tuple[Verdict, int]:
    with Capture(path) as capture, Replay(capture) as replay:
        return judge(replay), capture.incident.step


def modes(verdict: Verdict) -> dict[str, bool]:
    return {each.mode: each.finite for each in verdict.evidence}


FAULTS = [
    Fault("weight", 5, "hidden/kernel", 3, (30,)),
    Fault("weight", 0, "out/kernel", 1, (30,)),
    Fault("weight", 7, "out/bias", 0, (30, 29)),
    Fault("weight", 4, "middle/kernel", 9, (30,)),
    Fault("weight", 11, "hidden/bias", 2, (30,)),
    Fault("stored weight", 8, "hidden/kernel", 7, (30,)),
    Fault("stored weight", 4, "out/bias", 0, (30,)),
    Fault("stored weight", 8, "out/kernel", 2, (30, 22)),
    Fault("gradient", 5, "hidden/kernel", 4, (30,)),
    Fault("gradient", 2, "out/bias", 0, (30,)),
    Fault("gradient", 6, "middle/kernel", 2, (30,)),
    Fault("gradient", 9, "hidden/kernel", 2, (30,)),
    Fault("activation", 5, "Softplus", 3, (30,)),
    Fault("activation", 0, "MatMul", 5, (30,)),
    Fault("activation", 6, "BiasAdd", 8, (30,)),
    Fault("activation", 3, "Mean", 0, (30,)),
    Fault("batch", 5, "", 4, (30,)),
    Fault("batch", 1, "", 5, (30,)),
    Fault("batch", 8, "", 7, (30, 23)),
]


def of_fault(fault: Fault) -> str:
    name, bits = fault.name.replace("/", "."), ".".join(map(str, fault.bits))
    return f"{fault.place}-{name}-{fault.step}-{bits}"


def trained_with_fault(
    fault: Fault, model: Any, path: Path, monkeypatch: pytest.MonkeyPatch, *, keyframe_every: int
) -> None:
    happened = inject(fault, monkeypatch)
    x, y = data(None, steps=STEPS)
    step = record(path, model, x, y, recorder=Recorder(path, keyframe_every=keyframe_every))
    assert happened
    if step is None:
        pytest.skip("the fault did no harm")


XLA = 2
"""The fault of which the fast tests have the step compiled by XLA, which takes seconds."""
QUICK = (XLA, 7, 12, 18)
"""Faults of the fast tests: of each place one."""


def setting(number: int) -> tuple[str, bool, int]:
    """(optimizer, XLA, steps between keyframes) of a fault in the fast tests."""
    # Adam makes a step of the same size of any gradient, and no fingerprint holds its slots
    return (
        "sgd" if FAULTS[number].place == "gradient" else ("sgd", "adam")[number % 2],
        number == XLA,
        4 if FAULTS[number].place == "stored weight" or number % 4 < 2 else 32,
    )


EVERY = [
    (fault, (optimizer, jit, every))
    for fault in FAULTS
    for optimizer in ("sgd", "adam")
    for jit in (0, 1)
    for every in (4, 32)
]
# None in a gradient: no fingerprint holds gradients any more, and what a fault there leaves of
# itself in weights may be too little to tell.
FEW = [(FAULTS[number], setting(number)) for number in QUICK]
CASES = [
    *(pytest.param(*case, id=f"{of_fault(case[0])}-{case[1][0]}") for case in FEW),
    *(
        pytest.param(*case, id=f"{of_fault(case[0])}-{case[1]}", marks=pytest.mark.slow)
        for case in EVERY
        if case not in FEW
    ),
]


def test_the_faults_differ_in_place_step_and_bits() -> None:
    assert {fault.place for fault in FAULTS} == {
        "weight",
        "stored weight",
        "gradient",
        "activation",
        "batch",
    }
    assert len({fault.step for fault in FAULTS}) > 8
    assert len({fault.bits for fault in FAULTS}) > 3


@pytest.mark.parametrize(("fault", "setting"), CASES)
def test_a_fault_of_the_machine_is_transient(
    fault: Fault, setting: tuple[str, bool, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, jit, keyframe_every = setting
    if fault.place == "stored weight" and keyframe_every > fault.step:
        pytest.skip("there is no copy of the state that the fault could get into")
    model = network(keras.optimizers.SGD(0.05) if optimizer == "sgd" else optimizer, jit=bool(jit))
    trained_with_fault(
        fault, model, tmp_path / "run.h5", monkeypatch, keyframe_every=keyframe_every
    )

    verdict, _ = judged(tmp_path / "run.h5")
    assert all(each.finite for each in verdict.evidence)
    reason = verdict.reason or ""
    if fault.place == "gradient" and verdict.kind == "inconclusive":
        # no fingerprint holds the slots: of a fault in them, losses tell some ulps steps later
        assert "The steps before the incident differ from the recording" in reason
        return
    assert verdict.kind == "transient"
    if fault.place == "stored weight":
        assert fault.name in reason
        assert f"flipped between steps {fault.step - 1} and {fault.step}" in reason
    else:  # variables are not looked at after each step
        exactly = f"departs from every replay at step {fault.step}"
        about = f"departs from every replay at step {fault.step - 1} or {fault.step}"
        assert exactly in reason or about in reason


@dataclass(frozen=True)
class Bug:
    """A training that turns NaN by its own doing."""

    loss: Callable[[Any, Any], Any]
    x: Callable[[Any], Any] = lambda x: x
    verdict: str = "reproduced"
    learning_rate: float = 0.01
    policy: str = "float32"
    float64: bool | None = False
    """Whether it is finite in float64; None when it does not run."""


def spoilt(value: float, step: int = 5) -> Callable[[Any], Any]:
    """Put a value into sample 1 of a step."""

    def change(x: Any) -> Any:
        x = x.copy()
        x[step * BATCH + 1, 0] = value
        return x

    return change


def mean_square(y: Any, z: Any) -> Any:
    return tf.reduce_mean(tf.square(y - z))


BUGS = {
    "log of zero": Bug(
        lambda y, z: mean_square(y, z) + tf.reduce_mean(tf.math.log(tf.nn.relu(y + 100.0))),
        lambda x: x,
    ),
    "nan in the batch": Bug(mean_square, spoilt(np.nan)),
    "infinity in the batch": Bug(mean_square, spoilt(np.inf)),
    "gradient of sqrt at zero": Bug(
        lambda y, z: mean_square(y, z) + tf.reduce_mean(tf.sqrt(tf.square(z) * 0.0))
    ),
    "float32 overflow": Bug(mean_square, spoilt(1e30), "precision_only", float64=True),
    "float64 overflow too": Bug(lambda y, z: tf.reduce_mean(tf.exp(tf.abs(y - z))), spoilt(1e15)),
    "float16 overflow": Bug(
        mean_square, spoilt(3e4), "precision_only", policy="mixed_float16", float64=True
    ),
    "divergence": Bug(mean_square, verdict="reproduced", learning_rate=60.0, float64=None),
    "zero by zero": Bug(
        lambda y, z: mean_square(y, z) / tf.math.count_nonzero(y + 50.0, dtype=y.dtype), spoilt(1.0)
    ),
}


ALSO_XLA = ("float32 overflow",)
OF_A_SORT = (
    "infinity in the batch",
    "float64 overflow too",
    "zero by zero",
    "float16 overflow",
    "gradient of sqrt at zero",
)
"""Those that another one is like, and which are slow tests."""


@pytest.mark.parametrize(
    ("name", "jit"),
    [pytest.param(name, False, marks=[pytest.mark.slow] * (name in OF_A_SORT)) for name in BUGS]
    + [
        pytest.param(name, True, marks=[] if name in ALSO_XLA else [pytest.mark.slow])
        for name in BUGS
    ],
)
def test_a_bug_of_the_program_is_never_transient(name: str, jit: bool, tmp_path: Path) -> None:
    bug = BUGS[name]
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.layers.Dense(4, dtype=bug.policy), keras.layers.Dense(1, dtype=bug.policy)]
    )
    model.compile(keras.optimizers.SGD(bug.learning_rate), bug.loss, jit_compile=jit)
    model.build((None, 3))
    x, y = data(None, steps=40)
    if name == "log of zero":
        y[5 * BATCH + 2] = -100.0
    if name == "zero by zero":
        y[5 * BATCH : 6 * BATCH] = -50.0
    step = record(
        tmp_path / "run.h5",
        model,
        bug.x(x),
        y,
        recorder=Recorder(tmp_path / "run.h5", keyframe_every=4),
    )
    assert step is not None

    verdict, _ = judged(tmp_path / "run.h5")
    print(verdict)
    assert verdict.kind == bug.verdict
    assert verdict.bit_exact
    order = ["recorded", "graph", "ops", "float64"] if jit else ["recorded", "ops", "float64"]
    assert [each.mode for each in verdict.evidence] == order
    assert not any(modes(verdict)[mode] for mode in order[:-1])
    assert bug.float64 is None or modes(verdict)["float64"] == bug.float64
    if verdict.kind == "precision_only":
        assert verdict.difference is not None
        assert verdict.difference.first_nonfinite is not None
        assert verdict.difference.first_nonfinite.op_type in ("Square", "MatMul", "Sub")
    else:
        assert verdict.difference is None


@pytest.mark.slow  # test_bisect.py finds the op of such a NaN
def test_a_schedule_that_only_xla_rounds_below_zero_is_xla_only(tmp_path: Path) -> None:
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.layers.Dense(1)])
    schedule = keras.optimizers.schedules.PolynomialDecay(0.1, 20, 0.0, power=0.9)
    model.compile(keras.optimizers.SGD(schedule), "mse", jit_compile=True)
    x, y = data(None, steps=30)
    assert record(tmp_path / "run.h5", model, x, y) == 20

    report = explain(tmp_path / "run.h5", fixes="none")
    verdict = report.verdict
    assert verdict.kind == "xla_only"
    assert modes(verdict) == {"recorded": False, "graph": True, "ops": True, "float64": True}
    assert (
        "Replays bit for bit. Only the step compiled with XLA is non-finite; op by op it is finite."
        in report.sentence
    )
    assert verdict.difference is not None
    assert verdict.difference.modes == ("recorded", "ops")
    assert verdict.difference.first is not None
    assert verdict.difference.first_nonfinite is not None
    assert verdict.difference.first_nonfinite.op_type == "Pow"


def custom_loop(
    path: Path,
    *,
    after: Callable[[Any, int], None] = lambda weight, step: None,
    bad: int | None = 9,
    lr: float = 0.01,
) -> Any:
    """Train one weight in a loop; `after` runs between steps, outside of what is recorded."""
    weight = tf.Variable([[0.5], [0.25]], name="weight")
    optimizer = keras.optimizers.SGD(lr)

    @tf.function
    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x @ weight - 1.0))
        optimizer.apply_gradients([(tape.gradient(loss, weight), weight)])
        return loss

    recorder = Recorder(path, keyframe_every=5)
    recorded = recorder.wrap(step, optimizer=optimizer)
    batches = np.random.default_rng(0).uniform(1.0, 2.0, (16, 4, 2)).astype("float32")
    if bad is not None:
        batches[bad, 2, 1] = np.inf
    try:
        for number, batch in enumerate(batches):
            recorded(tf.constant(batch))
            after(weight, number)
    except NonFiniteError:
        pass
    return recorder


def test_a_dump_on_demand_is_healthy(tmp_path: Path) -> None:
    custom_loop(tmp_path / "run.h5", bad=None).dump()
    verdict, _ = judged(tmp_path / "run.h5")
    assert (verdict.kind, verdict.bit_exact) == ("healthy", True)
    assert modes(verdict) == {"recorded": True, "ops": True}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        pytest.param(
            lambda weight, step: tf.clip_by_value(weight, -0.3, 0.3),
            "reproduced",
            id="clipped in every step",
        ),
        pytest.param(
            lambda weight, step: weight * 1.5 if step in (2, 7) else None,
            "reproduced",
            id="changed twice",
        ),
        pytest.param(
            lambda weight, step: weight * 3e38 if step == 9 else None,
            "precision_only",
            id="kept by a keyframe",
        ),
    ],
)
def test_a_loop_that_changes_weights_between_steps_is_no_fault(
    change: Any, kind: str, tmp_path: Path
) -> None:
    """What a `tf.function` assigns between steps is in a keyframe, which the replay takes."""
    assign = tf.function(lambda weight, value: weight.assign(value))

    def after(weight: Any, step: int) -> None:
        value = change(weight, step)
        if step == 12 and kind == "reproduced":
            value = weight * np.nan
        if value is not None:
            assign(weight, value)

    custom_loop(tmp_path / "run.h5", after=after, bad=None)
    verdict, _ = judged(tmp_path / "run.h5")
    assert verdict.kind == kind, verdict


def test_a_weight_that_a_loop_makes_nan_between_steps_is_reproduced(tmp_path: Path) -> None:
    custom_loop(
        tmp_path / "run.h5",
        after=lambda weight, step: weight.assign(weight * np.nan) if step == 12 else None,
        bad=None,
    )
    verdict, _ = judged(tmp_path / "run.h5")
    assert (verdict.kind, verdict.bit_exact) == ("reproduced", True)


def test_a_capture_of_another_machine_that_differs_by_a_few_ulp_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fingerprint is a few ulp off, and the replay is finite: it cannot be told what made the
    NaN."""
    custom_loop(tmp_path / "run.h5", bad=None).dump()
    read = Capture.batch

    def elsewhere(self: Capture, step: int) -> Any:
        batch = read(self, step)
        recorded = np.asarray(batch.fingerprint)
        values = np.where(
            recorded == NOT_MEASURED, recorded, np.nextafter(recorded, np.float32(np.inf))
        )
        if step == self.incident.step:
            values[:] = np.nan
        return replace(batch, fingerprint=values)

    monkeypatch.setattr(Capture, "batch", elsewhere)
    with Capture(tmp_path / "run.h5") as capture:
        capture.incident = Incident(15, Trigger("loss", "loss", "nan"))
        with Replay(capture) as replay:
            verdict = judge(replay)
    assert verdict.kind == "inconclusive"
    assert (
        verdict.reason == "The steps before the incident differ from the recording by up to 1 ulp."
    )


def test_the_sentence_of_a_transient_fault_names_the_flipped_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault("stored weight", 8, "hidden/kernel", 7, (30,))
    trained_with_fault(fault, network("sgd"), tmp_path / "run.h5", monkeypatch, keyframe_every=4)
    sentence = explain(tmp_path / "run.h5", fixes="none").sentence
    assert "replaying the program gives finite values: a race or a hardware fault." in sentence
    assert "A bit of `" in sentence
    assert "hidden/kernel` [1, 1] flipped between steps 7 and 8." in sentence
