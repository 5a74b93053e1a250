"""The house: imports go down the floors, files and functions stay short, contacts with others have one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top; a file may import from its own floor and from those below.
FLOORS = [
    {"cli"},
    {"bench", "jobs", "serve"},
    {"engine", "evaluation", "paging"},
    {"generation"},
    {"planning"},
    {"model"},
    {"experts"},
    {"kernels", "store"},
    {"formats"},
    {"memory"},
    {"policies", "prediction"},
    {"demo"},
    {"checkpoint"},
    {"telemetry", "threads", "files", "paths", "units", "keys", "version", "registry"},
    {"errors"},
]
HEIGHT = {room: -height for height, rooms in enumerate(FLOORS) for room in rooms}
ABOVE_ALL = {"testing", "__init__"}  # may import anything; nothing but tests imports them


def _files() -> list[Path]:
    return sorted((ROOT / "moe_local").rglob("*.py")) + sorted((ROOT / "cli").glob("*.py"))


def _room(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return "cli" if parts[0] == "cli" else parts[1]


def _imported_rooms(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "moe_local" and rest:
                yield rest.split(".")[0]


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down(file: Path) -> None:
    room = _room(file)
    if room in ABOVE_ALL:
        return
    assert room in HEIGHT, f"{room} has no floor"
    for imported in _imported_rooms(file):
        if imported in HEIGHT:
            assert HEIGHT[imported] <= HEIGHT[room], f"{file.name} on floor {room} imports {imported} above it"
        else:
            assert imported.startswith("__"), f"{file.name} imports {imported}, which only tests may"


def test_every_room_has_a_floor() -> None:
    assert {_room(file) for file in _files()} - ABOVE_ALL <= HEIGHT.keys()


# And what tests put in a device's place.
ASK_OF_DEVICES = {"accelerator.py", "device_graphs.py", "pretend_cuda.py", "pretend_device.py", "pretend_mps.py"}
_OF_DEVICES = re.compile(
    r"device\.type|\btorch\.(cuda|mps|xpu|backends|accelerator)\b|(?<!accelerator)\.is_(cuda|cpu|mps)\b"
)


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_one_place_asks_torch_about_devices(file: Path) -> None:
    found = _OF_DEVICES.findall(file.read_text())
    assert bool(found) == (file.name in ASK_OF_DEVICES)


LOOPS = {("simulate.py", "_run")}  # compiled as one


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and (file.name, node.name) not in LOOPS:
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


_OF_TRANSFORMERS = re.compile(
    r"_is_hf_initialized|_get_dtype_plan|_attn_implementation|all_tied_weights_keys|ALL_ATTENTION_FUNCTIONS"
    r"|_get_logits_processor|_prepare_generation_config|_prepare_special_tokens"
)


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_one_place_reaches_into_transformers(file: Path) -> None:
    if _room(file) == "testing":
        return
    assert bool(_OF_TRANSFORMERS.search(file.read_text())) == (file.name == "transformers_api.py")
