"""Markers, and checkpoints that many tests share."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch
from transformers.utils import logging as transformers_logging

from moe_local.testing import architecture, write_tiny_checkpoint
from tests.processes import end_all


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_configure(config: pytest.Config) -> None:
    """A runner that is told to end, ends what its tests started."""

    def end(number: int, frame: FrameType | None) -> None:
        end_all()
        pytest.exit("terminated", returncode=128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    end_all()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models are faster without a thread pool, and do not fight others for the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _nothing_set_beforehand(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The settings of whoever runs the tests are not the tests'."""
    file = tmp_path_factory.mktemp("settings") / "config.toml"
    file.touch()
    os.environ["MOE_LOCAL_CONFIG"] = str(file)


class _Refuse(logging.Handler):
    """transformers says with its logger, too, that something is deprecated."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in record.getMessage():
            raise DeprecationWarning(record.getMessage())


@pytest.fixture(autouse=True, scope="session")
def _nothing_deprecated() -> Iterator[None]:
    transformers_logging.warning_once.cache_clear()
    handler = _Refuse()
    transformers_logging.add_handler(handler)
    yield
    transformers_logging.remove_handler(handler)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny qwen3_moe checkpoint in two or more shards. Do not change it: copy it."""
    directory = tmp_path_factory.mktemp("checkpoints") / "qwen3_moe"
    return write_tiny_checkpoint(architecture("qwen3_moe"), directory, max_shard_bytes=400_000)


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny mixtral checkpoint in one file. Do not change it: copy it."""
    directory = tmp_path_factory.mktemp("checkpoints") / "mixtral"
    return write_tiny_checkpoint(architecture("mixtral"), directory)
