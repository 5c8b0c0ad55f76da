"""Registry: things known by a name, in the order in which they were made known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from keras_qusec.checks import closest

T = TypeVar("T")


class Registry(Generic[T]):
    """A list of named things, of ours and of a user's.

    Args:
        expected: how an error about an unknown name begins, up to the list of names.
        others: what else might have been given, at the end of that list.
        remedy: a last sentence of the error.

    Example:

    >>> from keras_qusec.registry import Registry
    >>> colours = Registry("a colour, one of")
    >>> colours.add("red", "#ff0000")
    >>> colours.get("red"), colours.names()
    ('#ff0000', ('red',))
    """

    def __init__(self, expected: str, *, others: str = "", remedy: str = "") -> None:
        self._expected, self._others, self._remedy = expected, others, remedy
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> None:
        """Make a thing known; one of the same name is replaced, in its place."""
        self._things[name] = thing

    def remove(self, name: str) -> None:
        """Forget a name; one that is not known is forgotten already."""
        self._things.pop(name, None)

    def get(self, name: str) -> T:
        """The thing of a name.

        Raises:
            ValueError: for an unknown name; the nearest ones are suggested.
        """
        if name not in self._things:
            remedy = f" {self._remedy}" if self._remedy else ""
            raise ValueError(
                f"Expected {self._expected} {', '.join(self._things)}{self._others}. Received: "
                f"{name!r}.{closest(name, self._things)}{remedy}"
            )
        return self._things[name]

    def names(self) -> tuple[str, ...]:
        """All names, in order."""
        return tuple(self._things)

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._things.values()))
