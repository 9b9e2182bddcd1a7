"""What to do next: resume from the last healthy checkpoint with the recorder on."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from nanreplay.logs.log_answer import LogAnswer
from nanreplay.logs.log_places import steps_per_epoch
from nanreplay.logs.log_sentence import checkpoint_place
from nanreplay.logs.logged_run import Checkpoint

_LEAST_WINDOW, _MOST_WINDOW = 32, 1024


@dataclass(frozen=True)
class NextStep:
    """Lines that record what the logs do not tell."""

    advice: str
    """One sentence: from where, and how long it takes until it happens."""
    shell: str
    """The command for an unchanged program; "" where the recorder has nothing to record."""
    python: str
    """The lines that do the same in the program."""
    log_more: tuple[str, ...]
    """What to log besides, next time."""


def next_step(answer: LogAnswer, script: str = "train.py") -> NextStep | None:
    """What to do about a failure; None while all is finite.

    Args:
        answer: The answer of the run.
        script: The program, as the command line is to name it.
    """
    if answer.status != "nonfinite":
        return None
    kind = answer.found.kind if answer.found is not None else None
    if kind in ("validation", "metric"):
        return _beside_the_training(answer, kind)
    start = answer.weights.before_anomaly or answer.weights.last_healthy
    window = _window(answer)
    keyframes = max(window // 4, 1)
    shell = f"nanreplay run --window {window} --keyframe-every {keyframes} {shlex.quote(script)}"
    return NextStep(
        advice=_advice(answer, start),
        shell=shell,
        python="\n".join(_python(answer, start, window, keyframes)),
        log_more=tuple(_log_more(answer)),
    )


def _beside_the_training(answer: LogAnswer, kind: str) -> NextStep:
    """What to do where the training itself is healthy: the recorder would record nothing."""
    if kind == "metric":
        tag = "the metric" if answer.first is None else f"`{answer.first.tag}`"
        return NextStep(
            f"The training is healthy. Look at {tag}: a share of nothing is 0/0.",
            "",
            "keras.ops.divide_no_nan(total, count)  # in place of total / count",
            (),
        )
    return NextStep(
        "The training is healthy. Look for the batch of the validation data that does it.",
        "",
        "for number, (x, y) in enumerate(validation_data):\n"
        "    print(number, np.isfinite(x).all(), np.isfinite(y).all(), model.test_on_batch(x, y))",
        (),
    )


def _window(answer: LogAnswer) -> int:
    """Steps from where it began to the first non-finite value, and some more."""
    first, found = answer.first, answer.found
    if first is None or found is None or first.axis == "row":
        return _LEAST_WINDOW
    starts = []
    for each in (found.anomaly, *found.triggers):
        if each is not None:
            starts.append(each.value.step)
    distance = first.step - min(starts, default=first.step)
    if first.axis == "epoch":
        distance *= steps_per_epoch(answer.run) or 0
    wanted = int(1.25 * distance) + _LEAST_WINDOW
    return min(max(wanted, _LEAST_WINDOW), _MOST_WINDOW)


def _advice(answer: LogAnswer, start: Checkpoint | None) -> str:
    if start is None:
        reason = "no finite checkpoint lies before it"
        if not answer.run.checkpoints:
            reason = "no checkpoint was found"
        return f"Train from the beginning with the recorder on: {reason}."
    place = checkpoint_place(start)
    text = f"Resume from `{start.path}`{f' ({place})' if place else ''} with the recorder on"
    first = answer.first
    if first is not None and first.axis == "step" and start.step is not None:
        text += f"; it happens about {int(first.step - start.step)} steps later"
    return text + "."


def _python(answer: LogAnswer, start: Checkpoint | None, window: int, keyframes: int) -> list[str]:
    lines = ["from nanreplay import Recorder"]
    epoch = None
    if start is not None and start.kind == "TensorFlow checkpoint":
        lines.append(
            f"tf.train.Checkpoint(model=model, optimizer=optimizer).restore({start.path!r})"
        )
    elif start is not None and start.kind == "SavedModel":
        lines.append(f"reader = tf.train.load_checkpoint({start.path!r})  # variables by name")
    elif start is not None:
        lines.append(f"model.load_weights({start.path!r})")
        epoch = _epoch(answer, start)
    begin = f"initial_epoch={epoch}, " if epoch else ""
    recorder = f'Recorder("run.h5", window={window}, keyframe_every={keyframes})'
    lines.append(f"model.fit(data, {begin}callbacks=[{recorder}])")
    return lines


def _epoch(answer: LogAnswer, start: Checkpoint) -> int | None:
    if start.epoch is not None:
        return start.epoch
    length = steps_per_epoch(answer.run)
    if start.step is not None and length is not None:
        return int(start.step // length)
    return None


def _log_more(answer: LogAnswer) -> list[str]:
    run, series = answer.run, answer.series
    lines = []
    if series is not None and (series.axis == "epoch" or series.usual_gap > 1):
        lines.append("the loss of every step: `TensorBoard(update_freq=1)`")
    elif not run.of_role("loss"):
        lines.append("the loss of every step")
    if not run.of_role("gradient_norm"):
        lines.append("the norm of the gradients, which grows before the loss does")
    if not run.of_role("learning_rate"):
        lines.append("the learning rate, to see whether a schedule did it")
    if not run.checkpoints:
        lines.append(
            "checkpoints: `BackupAndRestore`, or `ModelCheckpoint` without `save_best_only`"
        )
    return lines
