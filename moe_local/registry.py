"""Things by the names that users type, each in a file of its own that is imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    def assert_named(self, name: str) -> None:
        """The same without importing what the name stands for."""
        if name not in self:
            raise _unknown(self, name, self._what, self._others)


def named(known: Mapping[str, T], name: str, what: str, *, others: Sequence[str] = ()) -> T:
    """What a user means by a name. Raises MoeLocalError saying what there is to choose from, and `others`."""
    if name not in known:
        raise _unknown(known, name, what, others)
    return known[name]


def _unknown(known: Iterable[str], name: str, what: str, others: Sequence[str]) -> MoeLocalError:
    return MoeLocalError(f"there is no {what} {name!r}", remedy=choice(name, [*others, *known], "choose one of"))


def choice(name: str, known: Iterable[str], use: str = "use") -> str:
    """A remedy for a name that is none of those known: the one that was meant, as far as letters tell, and all."""
    names = list(known)
    question = meant(name, names)
    return f"{f'{question} ' if question else ''}{use} {', '.join(names)}"


def meant(name: str, known: Iterable[str]) -> str | None:
    """A question for the name that was perhaps meant; None where no name is near."""
    close = closest(name, known)
    return f"did you mean {close[0]}?" if close else None


def closest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the names that differ little from one, the nearest first; whether in capitals is no matter."""
    from difflib import get_close_matches

    spelt = {each.lower(): each for each in known}
    return [spelt[each] for each in get_close_matches(name.lower(), spelt, n=3)]


def load(package: str, home: str) -> Any:
    """What `home`, like "lru.LRU", is in a package."""
    module, _, name = home.rpartition(".")
    return getattr(import_module(f"{package}.{module}"), name)
