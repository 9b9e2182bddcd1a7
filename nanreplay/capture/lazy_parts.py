"""Parts of a capture that are read, or made, whenever they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class LazyParts(Mapping[int, T], Generic[T]):
    """Parts by step or by index of a variable, each made when it is asked for and not kept.

    Args:
        keys: Those that there are, ascending.
        read: Makes the part of one of them.
    """

    def __init__(self, keys: Sequence[int], read: Callable[[int], T]) -> None:
        """Make nothing yet."""
        self._keys = dict.fromkeys(keys)
        self._read = read

    def __getitem__(self, key: int) -> T:
        """Make one part."""
        if key not in self._keys:
            raise KeyError(key)
        return self._read(key)

    def __contains__(self, key: object) -> bool:
        """Whether there is a part, which is not made."""
        return key in self._keys

    def __iter__(self) -> Iterator[int]:
        """The keys, ascending."""
        return iter(self._keys)

    def __len__(self) -> int:
        """How many parts there are."""
        return len(self._keys)
