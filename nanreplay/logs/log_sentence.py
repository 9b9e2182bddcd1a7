"""The answer in words: one sentence first, then what speaks for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timezone

from nanreplay.logs.log_answer import LogAnswer
from nanreplay.logs.log_places import LoggedValue, step_text
from nanreplay.logs.logged_run import Checkpoint
from nanreplay.report.numbers import readable_list, readable_number


def log_sentence(answer: LogAnswer) -> str:
    """What happened, in one paragraph that begins with the first non-finite value."""
    if answer.status == "undecided":
        number = len(answer.run.checkpoints)
        if not number:
            return "Cannot decide: nothing was logged yet."
        what = "the checkpoint" if number == 1 else f"none of {number} checkpoints"
        verb = "cannot be read whole" if number == 1 else "can be read whole"
        return f"Cannot decide: nothing was logged, and {what} {verb}."
    if answer.status == "finite":
        return _finite(answer)
    return " ".join(_failed(answer))


def _finite(answer: LogAnswer) -> str:
    run = answer.run
    parts = []
    losses = run.of_role("loss")
    if answer.n_values:
        series = max(losses or run.series, key=len)
        last = step_text(float(series.steps.max()))
        bad = sum(int((~each.is_finite).sum()) for each in losses)
        if bad:
            parts.append(
                f"The logged losses are finite up to {series.axis} {last}, but for {bad} "
                "of updates that the loss scale skipped"
            )
        elif losses:
            parts.append(f"Every logged loss is finite, up to {series.axis} {last}")
        else:
            parts.append(
                f"No loss is in the log; its values are finite, up to {series.axis} {last}"
            )
    number, fine = len(run.checkpoints), sum(_is_fine(answer, each) for each in run.checkpoints)
    if fine:
        what = "its checkpoint is" if number == 1 else f"all {number} checkpoints are"
        if fine < number:
            what = f"{fine} of {number} checkpoints, all that can be read, are"
        parts.append(f"{what} finite" if parts else f"{what[0].upper()}{what[1:]} finite")
    return ", and ".join(parts) + "."


def _is_fine(answer: LogAnswer, checkpoint: Checkpoint) -> bool:
    """Whether all of a checkpoint was read, and is finite but for what is meant to be infinite."""
    if checkpoint.error is not None:
        return False
    for variable in checkpoint.variables:
        is_meant = variable.name in answer.weights.meant and not variable.nan
        if not variable.is_finite and not is_meant:
            return False
    return True


def _failed(answer: LogAnswer) -> Iterator[str]:
    yield _first(answer)
    found = answer.found
    if found is not None:
        yield _kind(answer)
        for trigger in found.triggers:
            yield f"{trigger.sentence[0].upper()}{trigger.sentence[1:]}."
        if found.doubt is not None and (found.evidence or found.kind != "cannot_tell"):
            yield f"Cannot tell for sure: {found.doubt}."
    if answer.resumed_at is not None and answer.series is not None:
        place = f"{answer.series.axis} {step_text(answer.resumed_at)}"
        yield f"The training was resumed at {place} and is finite since."
    yield from _checkpoints(answer)


def _first(answer: LogAnswer) -> str:
    first = answer.first
    if first is None:
        broken = answer.weights.first_broken
        if broken is None:
            return "No non-finite value was logged."
        logged = "No non-finite value was logged, but " if answer.n_values else ""
        text = f"{logged}the checkpoint `{broken.path}`{_written(broken)} is not finite."
        return text[0].upper() + text[1:]
    value = readable_number(first.value)
    place = place_text(first)
    if answer.is_passing:
        return f"`{first.tag}` was {value} at {place}, and finite again afterwards."
    verb = "is" if _is_first_of_series(answer) else "becomes"
    return f"`{first.tag}` {verb} {value} at {place}{_then(answer)}."


def _is_first_of_series(answer: LogAnswer) -> bool:
    return answer.position == 0


def _then(answer: LogAnswer) -> str:
    """The loss, where something else was not finite before it."""
    first, series = answer.first, answer.series
    if first is None or series is None or first.tag == series.tag:
        return ""
    return f", `{series.tag}` at {series.axis} {step_text(float(series.steps[answer.position]))}"


def place_text(value: LoggedValue) -> str:
    """Step, epoch and time of a value: `step 1200 (epoch 3, 2026-11-26 10:00:03 UTC)`."""
    more = []
    if value.epoch is not None and value.axis != "epoch":
        more.append(f"epoch {value.epoch}")
    if value.time_s is not None and math.isfinite(value.time_s):
        try:
            moment = datetime.fromtimestamp(value.time_s, timezone.utc)
            more.append(f"{moment:%Y-%m-%d %H:%M:%S} UTC")
        except (OverflowError, ValueError, OSError):
            pass
    return value.place + (f" ({', '.join(more)})" if more else "")


def _kind(answer: LogAnswer) -> str:
    found = answer.found
    assert found is not None
    evidence = _sentences(found.evidence[:1])
    if found.kind == "divergence":
        return f"It looks like a divergence: {evidence}."
    if found.kind == "sudden":
        return f"It came suddenly: {evidence}."
    if found.kind == "from_start":
        return f"It was so from the start: {evidence}."
    if found.kind == "half_precision":
        return f"The range of half precision was reached: {evidence}."
    if found.kind == "loss_scale":
        return f"{evidence[0].upper()}{evidence[1:]}."
    if found.kind == "validation":
        return f"Only the validation is hit: {evidence}." if evidence else "A validation is hit."
    if found.kind == "metric":
        return f"Only a metric is hit: {evidence}." if evidence else "A metric is hit."
    if found.kind == "weights":
        return (
            f"{evidence[0].upper()}{evidence[1:]}." if evidence else "The logged losses are finite."
        )
    return f"What kind it is cannot be told: {evidence or found.doubt}."


def _sentences(lines: tuple[str, ...]) -> str:
    return "; ".join(lines)


# Checkpoints.


def checkpoint_place(checkpoint: Checkpoint) -> str:
    """What is known of when a checkpoint was written: `step 1100`, `epoch 5`, `number 3`."""
    if checkpoint.step is not None:
        return f"step {checkpoint.step}"
    if checkpoint.epoch is not None:
        return f"epoch {checkpoint.epoch}"
    return f"number {checkpoint.number}" if checkpoint.number is not None else ""


def _written(checkpoint: Checkpoint) -> str:
    place = checkpoint_place(checkpoint)
    return f" ({place})" if place else ""


def _checkpoints(answer: LogAnswer) -> Iterator[str]:
    weights = answer.weights
    read = []
    for each in answer.run.checkpoints:
        if each.variables:
            read.append(each)
    if not read:
        return
    healthy, before = weights.last_healthy, weights.before_anomaly
    if healthy is None:
        yield (
            f"Which checkpoint is healthy cannot be told: {weights.order}."
            if weights.order
            else "No checkpoint before it is finite."
        )
    else:
        text = f"The last healthy checkpoint is `{healthy.path}`{_written(healthy)}"
        if before is not None and before is not healthy:
            text += f"; the last one before that began is `{before.path}`{_written(before)}"
        elif before is None and answer.found is not None and answer.found.anomaly is not None:
            text += ", written after that began"
        if weights.order:
            text += f" ({weights.order})"
        yield f"{text}."
    if weights.first_broken is not None:
        yield _hit(answer)
    elif weights.later_finite:
        number = weights.later_finite
        what = "The one checkpoint" if number == 1 else f"The {number} checkpoints"
        yield f"{what} written after that value {'is' if number == 1 else 'are'} finite too."


def _hit(answer: LogAnswer) -> str:
    weights = answer.weights
    broken = weights.first_broken
    assert broken is not None
    name = "It holds" if answer.first is None else f"In `{broken.path}`{_written(broken)}"
    hit, spared = weights.hit_layers, weights.spared_layers
    n_layers = len(hit) + len(spared)
    if not hit:
        slots = readable_list([f"`{each.name}`" for each in weights.hit], 3)
        return f"{name} only variables that are no weights are hit: {slots}."
    if not spared:
        what = "all its layers are hit" if n_layers > 1 else "its only layer is hit"
        return (
            f"{name} {what}, as by an update or by data."
            if answer.first
            else (f"{what.capitalize()}, as by an update or by data.")
        )
    layers = readable_list([f"`{layer}`" for layer in hit], 5)
    verb = "is" if len(hit) == 1 else "are"
    layer = "layer" if len(hit) == 1 else "layers"
    text = f"of {n_layers} layers only {layer} {layers} {verb} hit."
    return f"{name} {text}" if answer.first else text[0].upper() + text[1:]
