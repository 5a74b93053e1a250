"""Versions of the libraries that moe-local stands on: what is installed, allowed, and was tested."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

PACKAGES = (
    "moe-local", "torch", "transformers", "tokenizers", "accelerate", "bitsandbytes", "safetensors",
    "huggingface-hub", "typer", "rich",
)  # fmt: skip
TESTED_UP_TO = {
    "torch": "2.13",
    "transformers": "5.24.0",
    "tokenizers": "0.23",
    "huggingface-hub": "2.4",
    "accelerate": "1.15",
    "safetensors": "0.8",
}


def installed(package: str) -> str | None:
    """The version of a package; None where it is missing."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def notes(versions: dict[str, str | None]) -> list[str]:
    """What is to be known about these versions: too old or too new to be allowed, or newer than what was tested."""
    found = (_note(name, number) for name, number in versions.items() if number is not None)
    return [note for note in found if note]


def _note(name: str, number: str) -> str | None:
    from packaging.version import InvalidVersion, Version

    try:
        given = Version(number)
    except InvalidVersion:
        return f"{name} {number} cannot be compared with what was tested"
    allowed = _allowed(name)
    if not allowed.contains(given, prereleases=True):
        return f"{name} {number} is not one that moe-local runs with ({allowed}): pip install '{name}{allowed}'"
    tested = Version(TESTED_UP_TO.get(name, number))
    if given.release[: len(tested.release)] > tested.release:
        return f"{name} {number} is newer than {tested}, the newest that was tested: if something fails, try that one"
    return None


def _allowed(name: str) -> SpecifierSet:
    """What our own package's metadata allows; everything where it is not installed, or does not say."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        given = [Requirement(line) for line in requires("moe-local") or []]
    except PackageNotFoundError:
        return SpecifierSet()
    ours = [one.specifier for one in given if one.name == name and not (one.marker and "extra" in str(one.marker))]
    return ours[0] if ours else SpecifierSet()
