"""Who may ask: the key, the Host, the Origin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from moe_local.serve.settings import is_loopback
from tests.serve.conftest import Running, serving

KEY = "a-secret-of-ours"


@pytest.fixture(scope="module")
def locked(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    options = (
        "--api-key",
        KEY,
        "--alias",
        "gpt-4o",
        "--allow-host",
        "moe.example",
        "--allow-origin",
        "https://a.example",
    )
    with serving(qwen, tmp_path_factory.mktemp("locked"), *options) as server:
        yield server


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/api/facts", "/api/live", "/openapi.json", "/nope"])
def test_no_key_no_entry(path: str, locked: Running) -> None:
    url = locked.url + path
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"x-api-key": KEY + " "[:0] + "x"},
    ):
        reply = httpx.get(url, headers=headers)
        assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
        assert KEY not in reply.text
    assert httpx.get(f"{locked.url}/health").status_code == 200
    assert httpx.get(f"{locked.url}/").status_code == 200


def test_the_key_opens_by_either_header(locked: Running) -> None:
    for headers in ({"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"x-api-key": KEY}):
        reply = httpx.get(f"{locked.url}/v1/models", headers=headers)
        assert [each["id"] for each in reply.json()["data"]] == ["qwen3_moe", "gpt-4o"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "localhost.evil", "0.0.0.0"])
def test_a_name_that_is_not_ours_is_refused(host: str, locked: Running) -> None:
    reply = httpx.get(f"{locked.url}/health", headers={"Host": host})
    assert reply.status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000", "moe.example", "MOE.example:80"])
def test_names_that_are_ours_are_taken(host: str, locked: Running) -> None:
    assert httpx.get(f"{locked.url}/health", headers={"Host": host}).status_code == 200


def test_pages_of_other_origins_may_not_ask(locked: Running) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example"):
        reply = httpx.get(f"{locked.url}/v1/models", headers={**key, "Origin": origin})
        assert reply.status_code == 403 and "access-control-allow-origin" not in reply.headers
    own = httpx.get(f"{locked.url}/v1/models", headers={**key, "Origin": locked.url})
    assert own.status_code == 200
    allowed = httpx.get(f"{locked.url}/v1/models", headers={**key, "Origin": "https://a.example"})
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://a.example"
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{locked.url}/v1/models", headers=asked).status_code == 200


def test_nothing_of_this_machine_is_in_what_is_said(locked: Running, qwen: Path) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    for path in (
        "/v1/models",
        "/api/facts",
        "/metrics",
        "/openapi.json",
        "/page/../../../etc/passwd",
        "/page/%2e%2e/x",
    ):
        said = httpx.get(locked.url + path, headers=key).text
        assert str(qwen.parent) not in said and "root:" not in said


def test_budgets_need_the_key_and_change_while_it_runs(locked: Running, qwen_server: Running) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    assert httpx.post(f"{qwen_server.url}/budgets", json={"ram": "1GiB"}).status_code == 403
    assert httpx.post(f"{locked.url}/budgets", json={"ram": "1GiB"}).status_code == 401
    with locked.client(headers=key) as client:
        asked = {"messages": [{"role": "user", "content": "the hen"}], "max_tokens": 9, "temperature": 0}
        before = client.post("/v1/chat/completions", json=asked).json()["choices"]
        assert client.post("/budgets", json={"ram": "1MiB"}).status_code == 400
        assert client.post("/budgets", json={"vram": "1GiB"}).status_code == 400
        smaller = client.post("/budgets", json={"ram": "900MiB"})
        assert smaller.status_code == 200 and smaller.json()["ram"] == 900 << 20
        assert client.post("/v1/chat/completions", json=asked).json()["choices"] == before
        assert client.post("/budgets", json={"ram": "100%"}).json()["ram"] == 900 << 20


def test_where_others_reach_it_the_key_guards_it_by_whatever_name(qwen: Path, tmp_path: Path) -> None:
    with serving(qwen, tmp_path, "--host", "0.0.0.0") as server:
        key = next(line.split("API key ")[1] for line in server.said().splitlines() if "API key " in line)
        names = {"Host": "my-box.local:8000"}
        assert httpx.get(f"{server.url}/v1/models", headers=names).status_code == 401
        assert httpx.get(f"{server.url}/v1/models", headers={**names, "x-api-key": key}).status_code == 200
        assert httpx.get(f"{server.url}/health", headers=names).status_code == 200


def test_which_addresses_are_this_machines_own() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.2", "localhost.evil", "")))
