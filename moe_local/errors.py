"""What can go wrong, said in one line with the remedy."""

from __future__ import annotations

import errno


class MoeLocalError(Exception):
    """Base of every error that moe-local raises on purpose.

    `message` names what is wrong and where (the file, the tensor, the figure); `remedy` says what to do.
    The command line prints both on one line and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        self.message = message
        self.remedy = remedy
        super().__init__(message if remedy is None else f"{message}; {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), self.args, vars(self))


def _again(kind: type[MoeLocalError], args: tuple[str, ...], state: dict[str, object]) -> MoeLocalError:
    """An error that another process raised."""
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


class CheckpointError(MoeLocalError):
    """A checkpoint's files are missing, damaged or disagree with each other."""

    exit_code = 3


class UnsupportedError(MoeLocalError):
    """A sound checkpoint, but of a kind that moe-local cannot run."""

    exit_code = 4


class BudgetError(MoeLocalError):
    """The model does not fit the memory it was given. `minimum` is the smallest budget in bytes that would do."""

    exit_code = 5

    def __init__(self, message: str, *, minimum: int, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.minimum = minimum


class StorageError(MoeLocalError):
    """The disk failed: a read came back short, an I/O error, no space left, no permission."""

    exit_code = 6


class DownloadError(MoeLocalError):
    """A hub or package index could not be reached, refused, or sent the wrong bytes."""

    exit_code = 7


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that the disk has no room. safetensors says so in words only."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    words = str(error).lower()
    return getattr(error, "errno", None) in codes or any(f"os error {code}" in words for code in codes)


def first_line(error: BaseException) -> str:
    """The first line of what an error of somebody else's says, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
