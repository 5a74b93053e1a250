"""Where things are kept, and how sizes are written."""

from __future__ import annotations

import codecs
import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from moe_local.errors import MoeLocalError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MOST_PROMPT = 1 << 24  # characters: several times what the longest contexts hold

_UNITS = {
    "": 1,
    "b": 1,
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("k", "m", "g", "t"), start=1)},
}
_MOST = 1 << 60  # bytes: beyond any machine
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


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


def parse_size(text: str) -> int:
    """Bytes in a size such as `6GiB`, `500 MB`, `1.5g` or `1048576`. Raises MoeLocalError."""
    match = _SIZE.fullmatch(text)
    unit = match and _UNITS.get(match[2].lower())
    size = float(match[1]) * unit if match and unit else math.inf
    if size > _MOST:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise MoeLocalError(f"{shown!r} is not a size", remedy="write it like 6GiB, 500MB or 1.5g")
    return int(size)


def parse_share(text: str) -> float:
    """A share in (0, 1] written as `50%` or `0.5`. Raises MoeLocalError."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise MoeLocalError(f"{text!r} is not a share of the experts", remedy="write it like 50% or 0.5")
    return value


def format_size(count: float) -> str:
    """A size for people: binary units, three figures (`9.4 MiB`)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def home() -> Path:
    """The folder for everything moe-local keeps: `$MOE_LOCAL_HOME`, else the platform's cache folder."""
    if chosen := os.environ.get("MOE_LOCAL_HOME"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData/Local"))) / "moe-local"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/moe-local"
    return Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "moe-local"


@contextlib.contextmanager
def whole(file: Path) -> Iterator[IO[bytes]]:
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
