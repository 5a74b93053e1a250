"""Jobs: every line answered exactly once, whatever happens in between."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.errors import MoeLocalError, StorageError
from moe_local.generation.batch import Answer, Request
from moe_local.generation.sampling import Sampling
from moe_local.jobs.files import AnswerFile, Source, Terms
from moe_local.jobs.job import Job
from moe_local.jobs.line import Defaults
from moe_local.jobs.lines import FORMATS
from tests.processes import small_disk


def _terms(source: Source, **options: Any) -> Terms:
    return Terms(source.digest, "model", {"seed": 1, **options})


def _echo(requests: Iterable[Request]) -> Iterator[Answer]:
    """Answers in pairs, the later first."""
    held: list[Answer] = []
    for request in requests:
        held.append(Answer(request, f"to {request.prompt}", (1, 2), 3, "stop"))
        if len(held) == 2:
            yield from reversed(held)
            held = []
    yield from held


def _killed(after: int) -> Any:
    def answering(requests: Iterable[Request]) -> Iterator[Answer]:
        for number, answer in enumerate(_echo(requests)):
            if number == after:
                raise KeyboardInterrupt
            yield answer

    return answering


def _job(folder: Path, **options: Any) -> tuple[Job, AnswerFile]:
    source = Source(str(folder / "in.jsonl"), io.BytesIO())
    target = AnswerFile(folder / "out.jsonl", _terms(source), restart=options.pop("restart", False))
    return Job(source, target, FORMATS["jsonl"](), Defaults(Sampling()), **options), target


def _write(folder: Path, count: int, bad: Iterable[int] = ()) -> None:
    lines = ["broken {" if n in bad else json.dumps({"id": f"q{n}", "prompt": f"p{n}"}) for n in range(count)]
    (folder / "in.jsonl").write_text("\n\n".join(lines))


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("ordered", [False, True])
@given(stops=st.lists(st.integers(0, 6), max_size=8), torn=st.integers(0, 40), bad=st.sets(st.integers(0, 19)))
def test_killed_and_resumed_it_answers_each_line_once(
    tmp_path_factory: pytest.TempPathFactory, ordered: bool, stops: list[int], torn: int, bad: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("job")
    _write(folder, 20, bad)
    for after in stops:
        job, target = _job(folder, ordered=ordered)
        try:
            job.run(_killed(after))
        except KeyboardInterrupt:
            pass
        finally:
            target.close()
        content = (folder / "out.jsonl").read_bytes()
        (folder / "out.jsonl").write_bytes(content[: len(content) - torn])  # half a line, and perhaps some whole ones
    job, target = _job(folder, ordered=ordered)
    job.run(_echo)
    target.close()
    records = _records(folder)
    assert sorted(record["line"] for record in records) == list(range(1, 40, 2))
    assert job.left == 0
    assert job.failed + job.failed_before == len(bad) == sum("error" in record for record in records)
    if ordered:
        assert [record["line"] for record in records] == list(range(1, 40, 2))


@pytest.mark.parametrize("change", ["input", "options"])
def test_another_job_is_refused(tmp_path: Path, change: str) -> None:
    _write(tmp_path, 3)
    job, target = _job(tmp_path)
    job.run(_echo)
    target.close()
    before = (tmp_path / "out.jsonl").read_bytes()
    if change == "input":
        _write(tmp_path, 4)
    source = Source(str(tmp_path / "in.jsonl"), io.BytesIO())
    terms = _terms(source, **({"seed": 2} if change == "options" else {}))
    with pytest.raises(MoeLocalError, match=r"another (input|seed); choose another -o, or give --restart"):
        AnswerFile(tmp_path / "out.jsonl", terms, restart=False)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    target = AnswerFile(tmp_path / "out.jsonl", terms, restart=True)
    assert target.done == frozenset()
    target.close()


def test_a_file_that_no_job_wrote_is_kept(tmp_path: Path) -> None:
    _write(tmp_path, 2)
    (tmp_path / "out.jsonl").write_text("precious")
    with pytest.raises(MoeLocalError, match="was not written by a job"):
        _job(tmp_path)
    assert (tmp_path / "out.jsonl").read_text() == "precious"


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, 2)
    _, target = _job(tmp_path)
    with pytest.raises(MoeLocalError, match="another job writes"):
        _job(tmp_path)
    target.close()
    _job(tmp_path)[1].close()


def test_ids_are_answered_once(tmp_path: Path) -> None:
    lines = [{"id": "a", "prompt": "1"}, {"id": "a", "prompt": "2"}, {"id": 3, "prompt": "3"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    job, target = _job(tmp_path, ordered=True)
    job.run(_echo)
    target.close()
    assert [record.get("error") for record in _records(tmp_path)] == [
        None,
        "the id 'a' is that of line 1 already",
        None,
    ]


def test_fail_fast_names_the_line(tmp_path: Path) -> None:
    _write(tmp_path, 4, bad={2})
    job, target = _job(tmp_path, fail_fast=True)
    with pytest.raises(MoeLocalError, match="line 5: the line is not JSON"):
        job.run(_echo)
    target.close()


def test_stdin_is_read_once(tmp_path: Path) -> None:
    source = Source("-", io.BytesIO(b'{"prompt": "a"}\n\n{"prompt": "b"}'))
    assert [number for number, _ in source] == [number for number, _ in source] == [1, 3]
    assert source.count == 2
    source.close()


@pytest.mark.parametrize("added", ['{"id": "note", "line": 99, "text": "mine"}', "# a note", ""])
def test_answers_that_the_job_did_not_write_are_refused(tmp_path: Path, added: str) -> None:
    _write(tmp_path, 3)
    job, target = _job(tmp_path)
    job.run(_echo)
    target.close()
    before = (tmp_path / "out.jsonl").read_text() + added + "\n"
    (tmp_path / "out.jsonl").write_text(before)
    with pytest.raises(MoeLocalError, match=r"--restart"):
        _job(tmp_path)
    assert (tmp_path / "out.jsonl").read_text() == before


def test_lines_that_move_are_another_input(tmp_path: Path) -> None:
    _write(tmp_path, 3)
    _job(tmp_path)[1].close()
    (tmp_path / "in.jsonl").write_text("\n" + (tmp_path / "in.jsonl").read_text())
    with pytest.raises(MoeLocalError, match="another input"):
        _job(tmp_path)


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    terms = Terms("", "", {})
    for path in (tmp_path, Path(), Path("/dev/null")):
        with pytest.raises(MoeLocalError, match="is not a file"):
            AnswerFile(path, terms, restart=True)


def test_a_byte_order_mark_and_a_pipe(tmp_path: Path) -> None:
    import os

    reading, writing = os.pipe()
    os.write(writing, b'\xef\xbb\xbf{"prompt": "a"}\n')
    os.close(writing)
    source = Source(f"/dev/fd/{reading}", io.BytesIO())
    assert list(source) == [(1, b'{"prompt": "a"}\n')]
    source.close()


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    """What it says then is true: with room, the same job goes on, whether or not the output is there already."""
    _write(tmp_path, 3)
    with small_disk(tmp_path / "small", 4096) as disk:
        (disk / "other").write_bytes(bytes(4096))
        source = Source(str(tmp_path / "in.jsonl"), io.BytesIO())
        for _ in range(2):
            with pytest.raises(StorageError, match=r"no room to write .*it goes on"):
                AnswerFile(disk / "out.jsonl", _terms(source), restart=False)
        (disk / "out.jsonl").touch()
        with pytest.raises(StorageError, match="no room to write"):
            AnswerFile(disk / "out.jsonl", _terms(source), restart=False)
        (disk / "other").unlink()
        target = AnswerFile(disk / "out.jsonl", _terms(source), restart=False)
        assert target.done == frozenset()
        target.close()
        source.close()


def test_a_restart_that_fails_leaves_no_old_answers(tmp_path: Path) -> None:
    """Answers of other terms must never pass for those of the new ones."""
    _write(tmp_path, 3)
    job, target = _job(tmp_path)
    job.run(_echo)
    target.close()
    note = tmp_path / "out.jsonl.job"
    note.unlink()
    note.mkdir()  # nothing can be written there
    source = Source(str(tmp_path / "in.jsonl"), io.BytesIO())
    with pytest.raises(StorageError):
        AnswerFile(tmp_path / "out.jsonl", _terms(source, seed=2), restart=True)
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    source.close()
