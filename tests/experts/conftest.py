"""The file that caches of these tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moe_local.memory.files import FileReader
from tests.experts.caches import EXPERTS, LAYERS, RECORD


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every element of expert e of layer l is 100 * l + e."""
    path = tmp_path_factory.mktemp("cache") / "experts.bin"
    values = [100.0 * layer + expert for layer in range(LAYERS) for expert in range(EXPERTS)]
    with path.open("wb") as stream:
        for value in values:
            stream.write(torch.full((RECORD // 4,), value).numpy().tobytes())
    return path


@pytest.fixture
def files(file: Path) -> FileReader:
    reader = FileReader()
    reader.open([file])
    yield reader
    reader.close()
