"""Files that are read whole or written whole, and locks that the system takes back."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from moe_local.errors import MoeLocalError

MOST_PROMPT = 1 << 24  # characters: several times what the longest contexts hold


def read_text(file: Path, *, most: int, whole: bool = True) -> str:
    """A text file of UTF-8, of at most so many characters; unless `whole`, its first ones.

    Raises MoeLocalError, naming it.
    """
    try:
        if file.exists() and not file.is_file():
            raise MoeLocalError(f"{file} is not a file")
        with file.open("rb") as stream:
            data = stream.read(min(4 * most, os.fstat(stream.fileno()).st_size) + 1)
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=whole)
    except UnicodeDecodeError as error:
        raise MoeLocalError(f"{file} is not UTF-8 (byte {error.start})", remedy="convert it to UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise MoeLocalError(f"cannot read {file} ({getattr(error, 'strerror', None) or error})") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not whole:
        return text[:most]
    if len(text) > most:
        raise MoeLocalError(f"{file} has more than {most} characters", remedy="give a smaller one")
    return text


@contextlib.contextmanager
def atomic_write(file: Path) -> Iterator[IO[bytes]]:
    """A file to write, that appears when all of it was written, or not at all.

    Raises OSError, and ValueError for a name that no file can have.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
        partial.replace(file)
    finally:
        with contextlib.suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(file: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a lock that the system takes back when the process ends, however it does. The file is gone afterwards.

    Where another process holds it, calls `waiting` and waits; raises BlockingIOError at once where that is None.
    Raises OSError where the file cannot be made, or is a link.
    """
    if sys.platform == "win32":
        with _locked_on_windows(file, waiting):
            yield
        return
    descriptor = _take(file, waiting)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who waits for it finds it gone, and makes another
        os.close(descriptor)


def _take(file: Path, waiting: Callable[[], None] | None) -> int:
    """The descriptor of the lock's file, locked."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            _wait_for(descriptor, waiting)
            if _is_at(file, os.fstat(descriptor)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _wait_for(descriptor: int, waiting: Callable[[], None] | None) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is None:
            raise
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(file: Path, opened: os.stat_result) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(opened, file.lstat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked_on_windows(file: Path, waiting: Callable[[], None] | None) -> Iterator[None]:
    """The same with filelock, which takes its file away itself there: an open file cannot be removed."""
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise BlockingIOError(f"{file} is locked") from None
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
