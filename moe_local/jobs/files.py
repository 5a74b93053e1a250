"""A job's files: input that is read once to know it, output that is only added to, and the note that binds them.

Beside OUT lies OUT.job: what the job was begun with. The same command again reads which lines OUT already answers and
goes on; a line that was half written when the process ended is taken away. Anything else is refused.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from moe_local.errors import MoeLocalError, StorageError, is_disk_full
from moe_local.files import atomic_write, locked
from moe_local.jobs.lines import MOST_LINE

STDIO = "-"
_IN_MEMORY = 1 << 24  # bytes of stdin; more goes to a temporary file


class Source:
    """Lines of a file, or of stdin; blank ones are left out."""

    def __init__(self, name: str, stdin: IO[bytes]) -> None:
        self.name = name
        try:
            self._file = stdin if name == STDIO else Path(name).open("rb")  # noqa: SIM115 - closed with us
            if name == STDIO or not self._file.seekable():
                self._file = _kept(self._file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MoeLocalError(f"cannot read {name}: {reason}", remedy="check the name") from error
        self.first, self.count, self.bytes, digest = b"", 0, 0, hashlib.sha256()
        for number, line in self:
            self.first = self.first or line
            self.count += 1
            self.bytes += len(line)
            digest.update(b"%d:%b" % (number, line))
        self.digest = digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """(number from 1, line) of every line that is not blank."""
        self._file.seek(0)
        try:
            for number, line in enumerate(_lines(self._file), start=1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield number, text
        except OSError as error:
            raise StorageError(f"reading {self.name} failed: {error.strerror}", remedy="check the disk") from error

    def close(self) -> None:
        self._file.close()


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines, of which those that are too long are cut: they are told from others by their length."""
    while line := file.readline(MOST_LINE + 1):
        yield line
        while len(line) > MOST_LINE and not line.endswith(b"\n"):
            line = file.readline(MOST_LINE + 1)


def _kept(stream: IO[bytes]) -> IO[bytes]:
    """What can be read once, as a file that can be read again."""
    kept: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
    while piece := stream.read(1 << 20):
        kept.write(piece)
    return kept


class Target(Protocol):
    """Where answers go."""

    done: frozenset[int]  # numbers of the lines that are answered already
    failed: int  # how many of those with an error

    def write(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Stream:
    """Answers to stdout: nothing is remembered."""

    done: frozenset[int] = frozenset()
    failed = 0

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, record: Mapping[str, Any]) -> None:
        try:
            self._stream.write(_encoded(record))
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StorageError(f"stdout cannot be written: {error.strerror}", remedy="give a file with -o") from error

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Terms:
    """What a job is: with the same terms it goes on."""

    input: str  # sha256 of its lines
    model: str
    options: Mapping[str, Any]

    def differ(self, other: Mapping[str, Any]) -> list[str]:
        """What is not the same there: input, model, or options by name."""
        ours = json.loads(json.dumps(vars(self)))
        before = other.get("options")
        theirs = before if isinstance(before, dict) else {}
        found = [name for name in ("input", "model") if other.get(name) != ours[name]]
        return found + [name for name, value in ours["options"].items() if theirs.get(name, None) != value]


class AnswerFile:
    """OUT, opened to be added to."""

    def __init__(self, path: Path, terms: Terms, *, restart: bool) -> None:
        _assert_place(path)
        self._path = path
        self._lock = ExitStack()
        try:
            self._lock.enter_context(locked(path.with_name(f"{path.name}.lock")))
        except BlockingIOError as error:
            raise MoeLocalError(f"another job writes {path}", remedy="wait for it, or choose another -o") from error
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            self._take_up(terms, restart=restart)
        except BaseException:
            self._lock.close()
            raise

    def _take_up(self, terms: Terms, *, restart: bool) -> None:
        path, note = self._path, self._path.with_name(f"{self._path.name}.job")
        if restart or not (_has_answers(path) or note.exists()):
            self._begin(note, terms)
        else:
            _assert_same(path, note, terms)
        self.done, self.failed, end = _answered(path)
        self._file = self._open()
        self._file.truncate(end)
        self._file.seek(end)

    def _begin(self, note: Path, terms: Terms) -> None:
        try:
            # Empty before the note is there: whatever ends us in between, no answer passes for one of this job.
            if self._path.exists():
                os.truncate(self._path, 0)
            with atomic_write(note) as stream:
                stream.write(json.dumps(vars(terms), indent=2).encode())
        except (OSError, ValueError) as error:
            raise _unwritable(self._path, error) from error

    def _open(self) -> IO[bytes]:
        try:
            return os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        except (OSError, ValueError) as error:
            raise _unwritable(self._path, error) from error

    def write(self, record: Mapping[str, Any]) -> None:
        """A whole line or none. Raises StorageError where there is no room."""
        line, start = _encoded(record), self._file.tell()
        try:
            done = 0
            while done < len(line):
                done += self._file.write(line[done:])
        except OSError as error:
            self._file.truncate(start)
            raise _unwritable(self._path, error) from error

    def close(self) -> None:
        self._file.close()
        self._lock.close()


def _assert_place(path: Path) -> None:
    if not path.name or (path.exists() and not path.is_file()):
        raise StorageError(f"cannot write {path}: it is not a file", remedy="choose another -o, or - for stdout")
    if not path.parent.is_dir():
        raise StorageError(f"cannot write {path}: there is no folder {path.parent}", remedy="make it first")


def _has_answers(path: Path) -> bool:
    """Whether there is something to go on with, or to lose."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _assert_same(path: Path, note: Path, terms: Terms) -> None:
    remedy = "choose another -o, or give --restart to begin anew"
    if not note.exists():
        raise MoeLocalError(f"{path} exists and was not written by a job ({note.name} is not there)", remedy=remedy)
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MoeLocalError(f"{note} cannot be read ({error})", remedy=remedy) from error
    if changed := terms.differ(found if isinstance(found, dict) else {}):
        raise MoeLocalError(f"{path} was begun with another {', '.join(changed)}", remedy=remedy)


def _answered(path: Path) -> tuple[frozenset[int], int, int]:
    """Numbers of the lines that are answered, how many with an error, and where the last whole answer ends.

    Raises MoeLocalError for what no job writes: only an unfinished last line may be there.
    """
    done, failed, end = set(), 0, 0
    if path.exists():
        with path.open("rb") as file:
            for place, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                number, error = _line_number(line)
                if number is None or number in done:
                    raise MoeLocalError(
                        f"line {place} of {path} is not one that this job wrote",
                        remedy="take it out, or give --restart to begin anew",
                    )
                done.add(number)
                failed += error
                end += len(line)
    return frozenset(done), failed, end


def _line_number(line: bytes) -> tuple[int | None, bool]:
    """The number of the line that a record answers, and whether with an error; None for what is no record."""
    try:
        record = json.loads(line)
        number = record["line"] if "line" in record else str(record["id"]).removeprefix("batch_req_")
        return int(number), record.get("error") is not None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None, False


def _encoded(record: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, given as an escape
        return (json.dumps(record) + "\n").encode()


def _unwritable(path: Path, error: Exception) -> MoeLocalError:
    if is_disk_full(error):
        return StorageError(
            f"no room to write {path}", remedy="free some, and run the same command again: it goes on"
        )
    return StorageError(f"cannot write {path} ({error})", remedy="choose another place, or check the disk")
