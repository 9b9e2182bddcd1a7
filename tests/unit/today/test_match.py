"""Which variable of today's model a recorded one is."""

from __future__ import annotations

from nanreplay.records import VariableInfo
from nanreplay.rerun.variable_match import Match, match_variables, notes_of, problems, suggestion


def table(*rows: str) -> list[VariableInfo]:
    """`path shape role`, e.g. `dense/kernel 4,3 trainable`."""
    found = []
    for row in rows:
        path, shape, role = row.split()
        found.append(
            VariableInfo(path, tuple(map(int, filter(None, shape.split(",")))), "float32", role)
        )  # type: ignore[arg-type]
    return found


def paths(match: Match, recorded: list[VariableInfo], today: list[VariableInfo]) -> dict[str, str]:
    return {recorded[one].path: today[other].path for one, other in match.pairs.items()}


def test_names_that_keras_counts_from_another_number_are_matched_in_their_order() -> None:
    """By path alone, the first of today's two layers would get the weights of the recorded second
    one."""
    recorded = table("net/dense_1/kernel 4,4 trainable", "net/dense_2/kernel 4,4 trainable")
    today = table("net/dense/kernel 4,4 trainable", "net/dense_1/kernel 4,4 trainable")
    match = match_variables(recorded, today, {})
    assert paths(match, recorded, today) == {
        "net/dense_1/kernel": "net/dense/kernel",
        "net/dense_2/kernel": "net/dense_1/kernel",
    }
    (note,) = notes_of(match, recorded, today)
    assert (
        note == "Names that Keras counts were matched in the order of their numbers: "
        "dense_1 is dense and dense_2 is dense_1."
    )


def test_the_tenth_name_comes_after_the_ninth() -> None:
    recorded = table(*(f"dense_{n}/bias 2 trainable" for n in (9, 10)))
    today = table(*(f"dense_{n}/bias 2 trainable" for n in (10, 11)))
    assert paths(match_variables(recorded, today, {}), recorded, today) == {
        "dense_9/bias": "dense_10/bias",
        "dense_10/bias": "dense_11/bias",
    }


def test_a_group_that_gained_a_member_is_matched_by_path() -> None:
    recorded = table("dense/bias 2 trainable", "dense_1/bias 2 trainable")
    today = table("dense/bias 2 trainable", "dense_1/bias 2 trainable", "dense_2/bias 2 trainable")
    match = match_variables(recorded, today, {})
    assert [today[index].path for index in match.new] == ["dense_2/bias"]
    assert not match.renumbered
    assert problems(match, recorded, today) == ["the recording has no `dense_2/bias` [2]"]


def test_slots_follow_their_variables() -> None:
    recorded = table(
        "a/old/kernel 4 trainable",
        "adam/a_old_kernel_momentum 4 optimizer",
        "adam/learning_rate  optimizer".replace("  ", " , "),
    )
    today = table(
        "a/new/kernel 4 trainable",
        "adam/a_new_kernel_momentum 4 optimizer",
        "adam/learning_rate , optimizer",
    )
    match = match_variables(recorded, today, {"old": "new"})
    assert match.pairs == {0: 0, 1: 1}
    assert not problems(match, recorded, today)


def test_slots_of_another_optimizer_are_not_taken() -> None:
    """Both have a slot called momentum, which means other things; the count of updates goes on."""
    recorded = table(
        "w 4 trainable",
        "adam/iteration , optimizer",
        "adam/w_momentum 4 optimizer",
        "adam/w_velocity 4 optimizer",
    )
    today = table("w 4 trainable", "sgd/iteration , optimizer", "sgd/w_momentum 4 optimizer")
    match = match_variables(recorded, today, {})
    assert match.pairs == {0: 0, 1: 1}
    assert problems(match, recorded, today) == ["the recording has no `sgd/w_momentum` [4]"]
    assert not problems(match_variables(recorded, today, {}, with_optimizer=False), recorded, today)


def test_a_setting_that_adds_no_slot_is_no_problem() -> None:
    recorded = table(
        "w 4 trainable", "adam/w_momentum 4 optimizer", "adam/w_velocity_hat 4 optimizer"
    )
    today = table("w 4 trainable", "adam/w_momentum 4 optimizer")
    match = match_variables(recorded, today, {})
    assert not problems(match, recorded, today)
    assert notes_of(match, recorded, today) == [
        "Recorded state of the optimizer without a place today is left out: adam/w_velocity_hat."
    ]


def test_metrics_and_seeds_need_no_counterpart() -> None:
    recorded = table(
        "w 4 trainable", "loss/total , metric", "seed_generator/seed_generator_state 2 seed"
    )
    today = table("w 4 trainable", "mean/total , metric")
    assert not problems(match_variables(recorded, today, {}), recorded, today)


def test_renaming_takes_whole_parts_and_can_drop_them() -> None:
    recorded = table("model/enc/w 4 trainable", "model/encoder/w 5 trainable")
    today = table("front/w 4 trainable", "encoder/w 5 trainable")
    assert match_variables(recorded, today, {"model": "", "enc": "front"}).pairs == {0: 0, 1: 1}


def test_the_hint_names_the_shortest_renaming_between_variables_of_one_shape() -> None:
    recorded = table("sequential/hidden/kernel 4,3 trainable", "sequential/hidden/bias 3 trainable")
    today = table("sequential_1/first/kernel 4,3 trainable", "sequential_1/first/bias 3 trainable")
    match = match_variables(recorded, today, {})
    assert suggestion(match, recorded, today).startswith("renamed? --map hidden=first; ")


def test_two_shapes_of_one_path_are_both_named() -> None:
    recorded, today = table("w 4,3 trainable"), table("w 4,5 trainable")
    assert problems(match_variables(recorded, today, {}), recorded, today) == [
        "`w` is [4, 5] today, [4, 3] in the recording"
    ]
