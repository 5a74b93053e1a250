"""Things by the names that users type, each in a file of its own that is imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

from moe_local.errors import MoeLocalError

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Name -> what it stands for. Names are known without importing anything."""

    def __init__(self, what: str, package: str, homes: Mapping[str, str], *, others: Sequence[str] = ()) -> None:
        """`homes` says of each name the module of `package` and the name in it, like "lru.LRU".

        `what` they are, and which `others` a user may also type, is for errors.
        """
        self._what = what
        self._package = package
        self._homes = homes
        self._others = others

    def __getitem__(self, name: str) -> T:
        found: T = load(self._package, self._homes[name])
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def named(self, name: str) -> T:
        """Raises MoeLocalError saying what there is to choose from."""
        return named(self, name, self._what, others=self._others)


def named(known: Mapping[str, T], name: str, what: str, *, others: Sequence[str] = ()) -> T:
    """What a user means by a name. Raises MoeLocalError saying what there is to choose from, and `others`."""
    if name not in known:
        choice = ", ".join([*others, *known])
        raise MoeLocalError(f"there is no {what} {name!r}", remedy=f"choose one of {choice}")
    return known[name]


def load(package: str, home: str) -> Any:
    """What `home`, like "lru.LRU", is in a package."""
    module, _, name = home.rpartition(".")
    return getattr(import_module(f"{package}.{module}"), name)
