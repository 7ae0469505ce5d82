"""A batch whose frames are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class ByFrame(Sequence[T]):
    """A sequence of frames that are kept together in the arrays of a batch. To be derived from, with `__len__`."""

    __slots__ = ()

    @abstractmethod
    def _frame(self, i: int) -> T:
        """The frame with number `i`, from 0."""

    @overload
    def __getitem__(self, frame: int) -> T: ...

    @overload
    def __getitem__(self, frame: slice) -> list[T]: ...

    def __getitem__(self, frame: int | slice) -> T | list[T]:
        """One frame, or some."""
        numbers = range(len(self))
        if isinstance(frame, slice):
            return [self._frame(i) for i in numbers[frame]]
        return self._frame(numbers[frame])

    def __iter__(self) -> Iterator[T]:
        """Frame by frame."""
        return map(self._frame, range(len(self)))
