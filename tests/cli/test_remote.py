"""`chat --server`: real servers, ours as a process and one that says what it is told to."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from moe_local.cli.remote_server import RemoteServer
from moe_local.cli.remote_session import RemoteSession
from moe_local.generation.sampling import Sampling
from moe_local.generation.template_settings import TemplateSettings
from tests.processes import MOE, Terminal, python, wait_until
from tests.processes import run as run_process
from tests.serve.conftest import Running, serving

from .conftest import Run, expect_error
from .test_chat import READS

GREEDY = ("--temperature", "0", "-n", "8")


@dataclass
class Said:
    """What a server replies: statuses with headers and bodies in turn, the last one ever after."""

    replies: list[tuple[int, dict[str, str], bytes]]
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


def events(*deltas: dict[str, Any], end: str = "stop", usage: dict[str, Any] | None = None) -> bytes:
    pieces: list[Any] = [{"choices": [{"index": 0, "delta": each, "finish_reason": None}]} for each in deltas]
    pieces.append({"choices": [{"index": 0, "delta": {}, "finish_reason": end}]})
    pieces.append({"choices": [], "usage": usage or {"prompt_tokens": 9, "completion_tokens": 3}})
    said = [f"data: {json.dumps(each, ensure_ascii=False)}\n\n" for each in pieces]
    return "".join([": here\n\n", *said, "data: [DONE]\n\n"]).encode()


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return status, headers, json.dumps({"error": {"message": message, "code": code}}).encode()


@contextmanager
def saying(*replies: bytes | tuple[int, dict[str, str], bytes]) -> Iterator[Said]:
    said = Said([(200, {}, each) if isinstance(each, bytes) else each for each in replies])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(200, {}, b'{"data": [{"id": "told"}]}')

        def do_POST(self) -> None:
            said.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._reply(*(said.replies.pop(0) if len(said.replies) > 1 else said.replies[0]))

        def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    said.url = f"127.0.0.1:{server.server_port}"
    try:
        yield said
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def server(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(qwen, tmp_path_factory.mktemp("remote"), "--dtype", "float32", "--api-key", "key") as running:
        yield running


def test_the_answer_is_the_one_of_a_chat_here(run: Run, server: Running, qwen: Path) -> None:
    lines = "hello\nand then?\n/regenerate\n"
    here = run("chat", qwen, "--dtype", "float32", *GREEDY, stdin=lines)
    there = run("chat", "--server", f"{server.url}/v1", "--api-key", "key", *GREEDY, stdin=lines)
    assert there.exit_code == 0, there.output
    assert there.stdout == here.stdout != ""


def test_run_talks_with_a_server_too(run: Run) -> None:
    with saying(events({"content": "A"})) as said:
        assert run("run", "--server", said.url, stdin="a\n").stdout == "A\n"


def test_what_is_said_is_sent_with_all_before_it(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    lines = f"one\ntwo\n/undo\n/set seed 3\n/think off\nthree\n/reasoning\n/save {file}\n/reset\n/load {file}\nfour\n"
    with saying(events({"reasoning_content": "hm"}, {"content": "A\u2028"}, {"content": "b"})) as said:
        done = run("chat", "--server", said.url, "--system", "Be brief.", "--top-k", "5", stdin=lines)
    assert done.exit_code == 0, done.output
    answers = [line for line in done.stdout.split("\n") if line == "A\u2028b"]
    assert len(answers) == 4 and "\nhm\n" in done.stdout
    system, answer = (
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "A\u2028b", "reasoning_content": "hm"},
    )
    user = [{"role": "user", "content": each} for each in ("one", "three", "four")]
    assert said.asked[2]["messages"] == [system, user[0], answer, user[1]]
    assert said.asked[3]["messages"] == [system, user[0], answer, user[1], answer, user[2]]
    assert (said.asked[2]["model"], said.asked[2]["top_k"], said.asked[2]["seed"]) == ("told", 5, 3)
    assert said.asked[2]["chat_template_kwargs"]["enable_thinking"] is False
    assert "chat_template_kwargs" not in said.asked[0] and "temperature" not in said.asked[0]


def test_a_file_of_a_chat_here_is_taken_up(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text(
        json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "c"}])
    )
    with saying(events({"content": "d"})) as said:
        assert run("chat", "--server", said.url, stdin=f"/load {file}\ne\n").exit_code == 0
    assert said.asked[0]["messages"][1] == {"role": "assistant", "content": "b", "reasoning_content": "c"}


@pytest.mark.parametrize("command", ["model", "stats", "vram 8GiB"])
def test_commands_about_a_model_here(run: Run, command: str) -> None:
    with saying(events({"content": "d"})) as said:
        expect_error(run("chat", "--server", said.url, stdin=f"/{command}\n"), "that is loaded here", code=1)
        helped = run("chat", "--server", said.url, stdin="/help\n").stdout
    assert "/undo" in helped and f"/{command.split()[0]} " not in helped


@pytest.mark.parametrize(
    ("typed", "named"),
    [(("some/model",), "MODEL"), (("-m", "x"), "MODEL"), (("--ram", "8GiB", "--no-pack"), "--pack, --ram")],
)
def test_options_of_a_model_here_are_refused(run: Run, typed: tuple[str, ...], named: str) -> None:
    expect_error(run("chat", *typed, "--server", "127.0.0.1:1"), f"{named} and --server were given", code=2)


def test_what_is_set_beforehand_is_not_typed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LOCAL_RAM", "8GiB")
    with saying(events({"content": "d"})) as said:
        monkeypatch.setenv("MOE_LOCAL_SERVER", said.url)
        assert run("chat", stdin="hello\n").stdout == "d\n"


def test_no_server(run: Run) -> None:
    expect_error(run("chat", "--server", "127.0.0.1:1", stdin="a\n"), "`moe-local ps` lists", code=1)
    expect_error(run("chat", "--server", "ftp://x", stdin="a\n"), "is no address", code=2)
    expect_error(run("chat", "--server", "", stdin="a\n"), "no server runs here", code=2)


def test_the_only_server_here_is_found(server: Running, tmp_path: Path) -> None:
    env = {"MOE_LOCAL_HOME": str(server.log.parent / "home"), "MOE_LOCAL_API_KEY": "key"}
    done = run_process(
        ["env", *(f"{k}={v}" for k, v in env.items()), *MOE, "chat", "--server", "", "-n", "2"], input="a\n"
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_a_key_that_is_wrong_or_missing(run: Run, server: Running) -> None:
    expect_error(run("chat", "--server", server.url, stdin="a\n"), "wants an API key; give it with --api-key", code=1)
    wrong = run("chat", "--server", server.url, "--api-key", "other", stdin="a\n")
    expect_error(wrong, "and not this one", code=1)
    expect_error(run("chat", "--server", server.url, "--api-key", "\u00fc", stdin="a\n"), "no key has", code=2)


def test_a_busy_server_is_asked_once_more_and_a_loading_one_until_it_answers(run: Run) -> None:
    busy = refusal(429, "128 requests wait already", Retry_After="0")
    loading = refusal(503, "the model is being loaded", "loading", Retry_After="0")
    with saying(loading, loading, loading, busy, events({"content": "d"})) as said:
        assert run("chat", "--server", said.url, stdin="a\n").stdout == "d\n"
    with saying(busy) as said:
        expect_error(run("chat", "--server", said.url, stdin="a\n"), "128 requests wait already; try again", code=1)
    assert len(said.asked) == 2
    with saying(refusal(503, "the server is ending", "ending")) as said:
        expect_error(run("chat", "--server", said.url, stdin="a\n"), "the server is ending", code=1)
    assert len(said.asked) == 1


def test_a_full_context(run: Run, server: Running) -> None:
    long = "word " * 20_000
    done = run("chat", "--server", server.url, "--api-key", "key", stdin=f"{long}\n")
    expect_error(done, "the context is full", code=1)
    assert "/clear" in done.stderr


@pytest.mark.parametrize(
    "body",
    [
        b"data: [1]\n\ndata: [DONE]\n\n",
        b"data: nonsense\n\n",
        b'data: {"choices": [{"delta": {"content": 7}}]}\n\n',
        b'data: {"choices": 3}\n\n',
    ],
)
def test_nonsense(run: Run, body: bytes) -> None:
    with saying(body) as said:
        expect_error(run("chat", "--server", said.url, stdin="a\n"), "no chat completion", code=1)


def test_an_answer_that_breaks_off(run: Run) -> None:
    with saying(events({"content": "half"}).replace(b"data: [DONE]\n\n", b"")) as said:
        done = run("chat", "--server", said.url, stdin="a\n")
    assert (done.exit_code, "went away in the middle" in done.stderr) == (1, True)


def test_it_needs_no_torch() -> None:
    python(
        "import sys\nfrom typer.testing import CliRunner\nfrom moe_local.cli.main import app\n"
        "done = CliRunner().invoke(app, ['chat', '--server', '127.0.0.1:1'], input='a')\n"
        "assert 'no server answers' in done.stderr, done.stderr\n"
        "found = {'torch', 'transformers', 'numpy'} & sys.modules.keys()\nassert not found, found"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs an alarm")
def test_ctrl_c_at_any_line_of_the_library_that_speaks_http() -> None:
    with saying(events(*[{"content": "A"}] * 3)) as said:
        lines = _interrupted_at(0, said.url)
        for number in range(1, lines, max(1, lines // 150)):
            _interrupted_at(number, said.url)


def _interrupted_at(number: int, url: str) -> int:
    """Ctrl-C at a line of httpcore, by number, ends the answer, and soon -> lines in all."""
    lines = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal lines
        if event == "line" and "httpcore" in frame.f_code.co_filename:
            lines += 1
            if lines == number:
                signal.raise_signal(signal.SIGINT)
        return trace

    def hangs(*_: Any) -> None:
        raise AssertionError(f"it hangs after Ctrl-C at line {number}")

    former, alarm = sys.gettrace(), signal.signal(signal.SIGALRM, hangs)
    session = RemoteSession(RemoteServer(f"http://{url}", None), "m", Sampling(), TemplateSettings(), None)
    signal.alarm(20)
    sys.settrace(trace)
    try:
        answer = session.send("a", on_text=lambda text: None, on_reasoning=lambda text: None)
    finally:
        sys.settrace(former)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
    # What comes in fewer pieces is read by fewer lines.
    assert answer.finish_reason == ("interrupted" if 0 < number <= lines else "stop"), number
    return lines


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_stops_the_answer_and_not_the_chat(endless: Path, tmp_path: Path) -> None:
    with serving(endless, tmp_path / "s", "--dtype", "float32") as running, running.client() as client:

        def told(line: str) -> bool:
            return re.search(f"^moe_local_{line}$", client.get("/metrics").text, re.MULTILINE) is not None

        terminal = Terminal(
            [*MOE, "chat", "--server", running.url, "--no-wrap"], env={"MOE_LOCAL_HOME": str(tmp_path / "home")}
        )
        terminal.wait_for("/exit to leave.")
        terminal.wait_for(READS)
        terminal.type("hello\r")
        wait_until(lambda: told("answers_running 1.0"), terminal.child, 60)
        terminal.type("\x03")
        terminal.wait_for(READS, 60)
        wait_until(lambda: told("requests_open 0.0"), terminal.child, 5)
        terminal.type("/set temperature\r")
        terminal.wait_for(r"temperature +\(the server's\)", 60)
        terminal.type("/exit\r")
        assert terminal.finish() == 0
