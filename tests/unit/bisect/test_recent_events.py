"""The ops before an op: how many are looked at, however many variables a model has."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from nanreplay.bisect.recent_events import RecentEvents, makers_of

VARIABLES = 1000


class Counted(list[Any]):
    """A list that counts what is taken out of it one after the other."""

    taken = 0

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            self.taken += 1
            yield item


def fact(serial: int, sources: list[int], outputs: int = 1) -> Any:
    return SimpleNamespace(
        serial=serial,
        sources=Counted(SimpleNamespace(serial=each) for each in sources),
        outputs=Counted([SimpleNamespace(size=8)] * outputs),
    )


def test_an_op_that_all_variables_hang_on_is_not_looked_at_as_a_whole_for_each() -> None:
    """As the `IdentityN` of gradients is, which comes before the update of each variable."""
    known = {serial: fact(serial, []) for serial in range(VARIABLES)}
    known[VARIABLES] = shared = fact(VARIABLES, list(known), VARIABLES)
    recent = RecentEvents()
    for each in known.values():
        recent.add(each, 8)
    updates = [fact(VARIABLES + 1 + each, [VARIABLES]) for each in range(10)]
    for update in updates:
        recent.pin(known, update)
    assert shared.outputs.taken == VARIABLES
    assert shared.sources.taken < 3 * VARIABLES
    nearest = [each.serial for each in makers_of(known, updates[0])]
    assert nearest[:3] == [VARIABLES, 0, 1]
    assert len(nearest) == len(set(nearest)) == 160
