"""The one sentence, for every kind of origin and verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sample_report import FINDINGS, INCIDENT, INF, LOOP, NAN, OPERAND, OUTPUT, VERDICT, say

from nanreplay.findings import Evidence, Findings, Verdict
from nanreplay.records import Frame, KerasPart, Trigger


def test_it_says_step_phase_layer_op_operand_sample_consequence_source_and_exactness() -> None:
    assert say() == (
        "step 48112 · forward · layer `encoder/block_2/norm` · `Rsqrt` of 0.0 at [17, 3] "
        "(sample 17 of the batch) gave inf, "
        "which became NaN in `Mul` and reached the loss. train.py:88 `x / tf.sqrt(var)`. "
        "Replays bit for bit."
    )


def test_a_loop_names_its_iteration() -> None:
    assert "layer `encoder/block_2/norm` · iteration 4 of `while` · `Rsqrt`" in say(loop=LOOP)


def test_a_backward_op_is_the_gradient_of_its_layer() -> None:
    assert "· backward · gradient of layer `encoder/block_2/norm` · `Rsqrt`" in say(
        phase="backward"
    )
    assert "· backward · gradient of the loss · `Rsqrt`" in say(
        phase="backward", where="loss", layer=None, layer_path=None
    )


def test_an_update_is_the_optimizer() -> None:
    assert "· update · optimizer · `Rsqrt`" in say(
        phase="update", where="optimizer", layer=None, layer_path=None
    )


def test_a_loss_outside_of_layers_is_the_loss() -> None:
    assert say(phase="loss", where="loss", layer=None, layer_path=None).startswith(
        "step 48112 · loss · `Rsqrt` of 0.0"
    )


def test_a_bad_batch_is_the_input() -> None:
    bad = replace(OUTPUT, indices=((3, 5),), value=NAN)
    text = say(
        phase="input",
        where="input",
        layer=None,
        layer_path=None,
        op_type=None,
        op_name="x",
        source=None,
        outputs=(bad,),
        operands=(),
        rows=(3,),
    )
    assert text.startswith(
        "step 48112 · input · `x` holds NaN at [3, 5] (sample 3 of the batch), which became NaN"
    )


def test_two_operands_read_as_one_would_say_them() -> None:
    one = replace(OPERAND, value=1.0)
    assert "`RealDiv` of 1.0 by 0.0 at" in say(op_type="RealDiv", operands=(one, OPERAND))
    assert "`Pow` of -2.0 to the power 0.5 at" in say(
        op_type="Pow", operands=(replace(OPERAND, value=-2.0), replace(OPERAND, value=0.5))
    )
    assert "`SqrtGrad` of 0.0 and 1.0 at" in say(op_type="SqrtGrad", operands=(OPERAND, one))


def test_indices_and_axes_are_no_operands_to_speak_of() -> None:
    axis = replace(OPERAND, name="axis", dtype="int32", value=1)
    assert "`Rsqrt` of 0.0 at" in say(operands=(OPERAND, axis))


def test_many_operands_are_told_by_their_range() -> None:
    many = replace(OPERAND, value=None, min=-1.5, max=3e38)
    assert "`MatMul` of values from -1.5 to 3e+38 at" in say(
        op_type="MatMul", operands=(many, many)
    )
    assert "`Sum` of values that are all 0.0 at" in say(
        op_type="Sum", operands=(replace(many, min=0.0, max=0.0),)
    )


def test_samples_are_left_out_when_no_rows_were_proved() -> None:
    assert "at [17, 3] gave inf" in say(rows=None)
    assert "(samples 3, 4 and 9 of the batch)" in say(rows=(3, 4, 9))
    assert "(samples 0, 1, 2, 3, 4 and 5 more of the batch)" in say(rows=tuple(range(10)))


def test_a_scalar_has_no_index() -> None:
    assert "`Rsqrt` of 0.0 gave NaN" in say(
        rows=None, outputs=(replace(OUTPUT, shape=(), indices=((),), value=NAN),)
    )


def test_the_output_that_is_bad_is_the_one_told() -> None:
    healthy = replace(OUTPUT, nonfinite=0, indices=(), value=None)
    assert "at [17, 3] (sample 17 of the batch) gave inf" in say(outputs=(healthy, OUTPUT))


def test_an_op_that_raises_says_so() -> None:
    assert "is refused op by op and gives inf when compiled" in say(kind="raised")
    stopped = replace(
        INCIDENT, trigger=Trigger("exception", "InvalidArgumentError", "Input is not invertible.")
    )
    assert "raised InvalidArgumentError: Input is not invertible. train.py:88" in say(
        kind="raised", incident=stopped
    )


def test_a_long_line_of_code_is_cut() -> None:
    frame = FINDINGS.origin.source if FINDINGS.origin else None
    assert frame is not None
    assert "aaa ...`. Replays" in say(source=replace(frame, code="a" * 500))
    assert "train.py:88. Replays" in say(source=replace(frame, code=None))


@pytest.mark.parametrize(
    ("verdict", "end"),
    [
        (
            Verdict("reproduced", False, (Evidence("recorded", False, False, 3),)),
            "Replays within 3 ulp of the recording.",
        ),
        (
            Verdict("reproduced", False, (Evidence("recorded", False, False, 2**62),)),
            "Replays, though not bit for bit.",
        ),
        (Verdict("reproduced", None), "`x / tf.sqrt(var)`."),
        (
            Verdict("xla_only", True),
            "Replays bit for bit. Only the step compiled with XLA is non-finite; op by op it is "
            "finite.",
        ),
        (Verdict("precision_only", True), "Replays bit for bit. In float64 it is finite."),
        (Verdict("precision_only", None), "`x / tf.sqrt(var)`. In float64 it is finite."),
    ],
)
def test_it_ends_with_how_sure_it_is(verdict: Verdict, end: str) -> None:
    assert say(verdict).endswith(end)


@pytest.mark.parametrize(
    ("verdict", "trigger", "text"),
    [
        (
            Verdict("healthy", True),
            Trigger("manual", "dump", "on demand"),
            "steps 48100 to 48112 · nothing non-finite. Replays bit for bit.",
        ),
        (
            Verdict("transient", True),
            INCIDENT.trigger,
            "step 48112 · loss was NaN in training, but replaying the program gives "
            "finite values: a race or a hardware fault.",
        ),
        (
            Verdict(
                "transient",
                False,
                reason="A bit of `dense/kernel` [3, 1] flipped between steps 4 and 5.",
            ),
            INCIDENT.trigger,
            "step 48112 · loss was NaN in training, but replaying the program gives "
            "finite values: a race or a hardware fault. "
            "A bit of `dense/kernel` [3, 1] flipped between steps 4 and 5.",
        ),
        (
            Verdict("inconclusive", None, reason="No keyframe reaches step 3."),
            Trigger("gradient", "dense/kernel", "inf"),
            "step 48112 · gradient `dense/kernel` was inf in training; what made it could not "
            "be decided. No keyframe reaches step 3.",
        ),
        (
            Verdict("inconclusive", None, reason="Why."),
            Trigger(
                "exception",
                "InvalidArgumentError",
                "{{function_node __wrapped__X}} bad : Inf [Op:CheckNumerics] name: ",
            ),
            "step 48112 · InvalidArgumentError: bad : Inf; what made it could not be decided. Why.",
        ),
        (
            VERDICT,
            INCIDENT.trigger,
            "step 48112 · loss was NaN in training, and is so again when replayed. Lost. "
            "Replays bit for bit.",
        ),
    ],
)
def test_without_an_origin_the_verdict_is_told(
    verdict: Verdict, trigger: Trigger, text: str
) -> None:
    assert say(verdict, Findings(reason="Lost."), replace(INCIDENT, trigger=trigger)) == text


def test_an_infinity_is_told_by_its_sign() -> None:
    assert "gave -inf" in say(outputs=(replace(OUTPUT, value=-INF),))


NORM = KerasPart("layer", "norm", "keras.layers.LayerNormalization", ("epsilon=0.0",))


def test_a_line_that_calls_a_layer_of_keras_is_marked_with_its_settings() -> None:
    marked = "Inside of Keras, called from train.py:88 `x / tf.sqrt(var)`; the layer is "
    assert f"{marked}`LayerNormalization(epsilon=0.0)`." in say(part=NORM)
    lambda_layer = replace(NORM, kind="keras.layers.Lambda", settings=())
    with_function = replace(NORM, kind="keras.layers.Dense", settings=('activation="call"',))
    for part in (None, replace(NORM, kind="MyNorm"), lambda_layer, with_function):
        assert "Inside of Keras" not in say(part=part)


def test_a_line_that_starts_a_training_has_the_settings_of_its_loss() -> None:
    fit = Frame("train.py", 9, "<module>", "model.fit(x, y)")
    loss = KerasPart("loss", "", "keras.losses.Huber", ("delta=2.0",))
    said = say(part=loss, source=fit, phase="loss", where="loss", layer=None, layer_path=None)
    assert "called from train.py:9 `model.fit(x, y)`; the loss is `Huber(delta=2.0)`." in said
