"""What people paste as a model's name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.checkpoint.names import HubName, parse_hub_name
from moe_local.errors import CheckpointError

HUB = "https://huggingface.co"
PLAIN = HubName("owner/name")
Q4 = HubName("owner/name", None, "Q4_K_M")
FILE = HubName("owner/name", None, None, "Q4/name-Q4_K_M.gguf")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("owner/name", PLAIN),
        (" owner/name\n", PLAIN),
        ("'owner/name'", PLAIN),
        ('"owner/name"', PLAIN),
        ("<https://huggingface.co/owner/name>", PLAIN),
        ("owner/name.git", PLAIN),
        ("owner/name.v1.5", HubName("owner/name.v1.5")),
        ("owner/name@v1", HubName("owner/name", "v1")),
        ("owner/name@feature/x", HubName("owner/name", "feature/x")),
        ("owner/name@refs/pr/1", HubName("owner/name", "refs/pr/1")),
        ("owner/name:Q4_K_M", Q4),
        ("owner/name@v1:q4_k_m", HubName("owner/name", "v1", "q4_k_m")),
        ("owner/name:q4_k_m@v1", HubName("owner/name", "v1", "q4_k_m")),
        ("owner/name/Q4/name-Q4_K_M.gguf", FILE),
        ("owner/name:Q4/name-Q4_K_M.gguf", FILE),
        ("owner/name/name.gguf@v1", HubName("owner/name", "v1", None, "name.gguf")),
        ("owner/name@v1/name.gguf", HubName("owner/name", "v1", None, "name.gguf")),
        (f"{HUB}/owner/name", PLAIN),
        (f"{HUB}/owner/name/", PLAIN),
        (f"{HUB}/owner/name.git", PLAIN),
        (f"{HUB}/owner/name?library=transformers#how-to", PLAIN),
        (f"{HUB}/owner/name/discussions/4", PLAIN),
        (f"{HUB}/owner/name/commits/main", HubName("owner/name", "main")),
        (f"{HUB}/owner/name/commit/0123abc", HubName("owner/name", "0123abc")),
        (f"{HUB}/owner/name/tree/main", HubName("owner/name", "main")),
        (f"{HUB}/owner/name/tree/v1/", HubName("owner/name", "v1")),
        (f"{HUB}/owner/name/tree/refs%2Fpr%2F1", HubName("owner/name", "refs/pr/1")),
        (f"{HUB}/owner/name/tree/refs/pr/1", HubName("owner/name", "refs/pr/1")),
        (f"{HUB}/owner/name/tree/main/UD-Q4_K_XL", HubName("owner/name", "main", None, "UD-Q4_K_XL")),
        (f"{HUB}/owner/name/blob/main/a%20b-Q8_0.gguf", HubName("owner/name", "main", None, "a b-Q8_0.gguf")),
        (f"{HUB}/owner/name/resolve/v1/x.gguf?download=true", HubName("owner/name", "v1", None, "x.gguf")),
        (f"{HUB}/owner/name/blob/main/config.json", HubName("owner/name", "main")),
        (f"{HUB}/owner/name/blob/main/bf16/model.safetensors", HubName("owner/name", "main", None, "bf16")),
        (f"{HUB}/owner/name?show_file_info=Q4%2Fname-Q4_K_M.gguf", FILE),
        (f"{HUB}/owner/name:Q4_K_M", Q4),
        (f"{HUB}/api/models/owner/name", PLAIN),
        (f"{HUB}/api/models/owner/name/revision/v1", HubName("owner/name", "v1")),
        (f"{HUB}:443/owner/name", PLAIN),
        ("http://huggingface.co/owner/name", PLAIN),
        ("HTTPS://HuggingFace.co/owner/name", PLAIN),
        ("https://www.huggingface.co/owner/name", PLAIN),
        ("https:/huggingface.co/owner/name", PLAIN),
        ("www.huggingface.co/owner/name", PLAIN),
        ("huggingface.co/owner/name", PLAIN),
        ("hf.co/owner/name:Q4_K_M", Q4),
        ("https://hf.co/owner/name/", PLAIN),
        ("https://hf-mirror.com/owner/name", PLAIN),
        ("https://user:hf_secret@huggingface.co/owner/name", PLAIN),
        ("git@hf.co:owner/name", PLAIN),
        ("git@hf.co:owner/name.git", PLAIN),
        ("ssh://git@hf.co/owner/name", PLAIN),
        ("hf://owner/name", PLAIN),
        ("hf://models/owner/name", PLAIN),
        ("hf://owner/name/Q4/name-Q4_K_M.gguf", FILE),
        ("hf://owner/name@v1/name.gguf", HubName("owner/name", "v1", None, "name.gguf")),
    ],
)
def test_names(text: str, found: HubName) -> None:
    assert parse_hub_name(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "", "name", "owner/", "/owner/name", "./owner/name", "../owner/name", "~/owner/name", "owner/name/other",
        "owner/na me", "C:\\models\\name", "C:/models/name", "qwen3:30b", "owner/name@a@b", "owner/a--b",
        "owner/a..b", "owner/name\x00", "-owner/name-", "owner/" + "n" * 200,
    ],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    assert parse_hub_name(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://github.com/owner/name", "leads to github.com"),
        ("https://ollama.com/library/qwen3", "leads to ollama.com"),
        ("https:///owner/name", "leads to no host"),
        ("https://[owner/name", "leads to no host"),
        ("https://huggingface.co.evil.example/owner/name", "leads to huggingface.co.evil.example"),
        (f"{HUB}/datasets/owner/name", "is a data set"),
        (f"{HUB}/spaces/owner/name", "is a space"),
        ("hf://datasets/owner/name", "is a data set"),
        (f"{HUB}/owner", "names no model"),
        (f"{HUB}/", "names no model"),
        ("owner/name:", "ends where"),
        ("owner/name@", "ends where"),
        ("owner/name@../../other", "no sound path"),
        (f"{HUB}/owner/name/tree/main/..%2F..%2Fother", "no sound path"),
        (f"{HUB}/owner/name/blob/main/../../x.gguf", "no sound path"),
    ],
)
def test_links_to_something_else(text: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        parse_hub_name(text)


def test_links_to_a_hub_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.example:8443/mirror")
    assert parse_hub_name("https://hub.example:8443/mirror/owner/name/tree/v1") == HubName("owner/name", "v1")
    assert parse_hub_name("hub.example:8443/mirror/owner/name") == PLAIN


words = st.from_regex(r"[A-Za-z0-9_]{1,12}", fullmatch=True)


@given(words, words, st.none() | words, st.none() | words)
def test_what_a_name_says_of_itself_is_understood(
    owner: str, name: str, revision: str | None, quant: str | None
) -> None:
    known = HubName(f"{owner}/{name}", revision, quant)
    assert parse_hub_name(str(known)) == known


@given(st.text(max_size=60) | st.text("ow/n.:@?#[]%~-\\ ", max_size=30).map(lambda text: f"{HUB}/{text}"))
def test_anything_is_understood_or_refused(text: str) -> None:
    try:
        found = parse_hub_name(text)
    except CheckpointError:
        return
    if found is not None:
        assert found.repo.count("/") == 1
        assert not {"..", ""} & set(found.repo.split("/"))
        assert ".." not in (found.revision or "").split("/") + found.path.split("/")
