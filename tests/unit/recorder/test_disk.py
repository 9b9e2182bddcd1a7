"""What is left out of a file that may not be larger: first what a replay gives again, never the way
to the failing step."""

from __future__ import annotations

from nanreplay.recorder.snapshot import Share, Sizes, fit_disk

MIB = 2**20


def share(limit_mib: int) -> Share:
    """Keyframes at 0, 4 and 8, batches 0 to 9, weights and gradients of the last three: 30 + 10 + 6
    MiB."""
    sizes = Sizes(
        0,
        {0: 10 * MIB, 4: 10 * MIB, 8: 10 * MIB},
        dict.fromkeys(range(10), MIB),
        {7: 2 * MIB, 8: 2 * MIB, 9: 2 * MIB},
    )
    return fit_disk(sizes, limit_mib * MIB)


def test_all_of_it_fits() -> None:
    assert share(46) == Share(frozenset([0, 4, 8]), frozenset(range(10)), frozenset([7, 8, 9]), [])


def test_weights_and_gradients_go_first_and_the_failing_step_keeps_its_own_longest() -> None:
    assert share(43).full == {9}
    assert share(43).batches == frozenset(range(10))
    assert share(43).left_out == [
        "disk_limit of 43.0 MiB: the weights and gradients of 2 steps (7 to 8) were left out."
    ]


def test_the_oldest_keyframe_goes_with_the_batches_that_only_it_reaches() -> None:
    found = share(30)
    assert found.keyframes == {4, 8}
    assert found.batches == frozenset(range(4, 10))
    assert found.left_out[0].endswith(
        "the keyframes at step 0, the batches of 4 steps (0 to 3) were left out."
    )


def test_the_newest_keyframe_and_the_way_from_it_to_the_failing_step_stay() -> None:
    assert share(12).keyframes == {8}
    assert share(12).batches == {8, 9}


def test_of_a_large_state_one_keyframe_stays_and_what_the_failing_step_had() -> None:
    """A state of 100 MiB, of which weights and gradients have two thirds; keyframes 0 and 32."""
    sizes = Sizes(
        MIB, {0: 100 * MIB, 32: 100 * MIB}, dict.fromkeys(range(50), MIB // 8), {49: 66 * MIB}
    )
    found = fit_disk(sizes, 175 * MIB)
    assert (found.keyframes, found.full) == ({32}, {49})
    assert found.batches == frozenset(range(32, 50))
    assert "the keyframes at step 0" in found.left_out[0]


def test_a_single_keyframe_leaves_some_steps_before_the_failing_one() -> None:
    sizes = Sizes(0, {0: 10 * MIB, 32: 10 * MIB}, dict.fromkeys(range(34), 1), {})
    assert fit_disk(sizes, 12 * MIB).keyframes == {0}


def test_what_cannot_be_replayed_is_said_with_what_would_be_enough() -> None:
    found = share(5)
    assert not found.keyframes
    assert found.batches == {5, 6, 7, 8, 9}
    assert (
        found.left_out[1]
        == 'The capture cannot be replayed; with disk_limit="12MiB" the failing step could.'
    )
