"""Help pages name everything that the registries have."""

from __future__ import annotations

import pytest

from moe_local.formats.registry import dense_names, packable_names
from moe_local.policies import POLICIES
from moe_local.prediction import PREDICTORS
from tests.processes import python

from .conftest import Run

LOADING = ("chat", "generate", "batch", "inspect", "eval", "bench live")


@pytest.mark.parametrize("command", LOADING)
def test_policies_and_predictors(run: Run, command: str) -> None:
    for _ in range(2):
        said = run(*command.split(), "--help").stdout
        assert all(name in said for name in (*POLICIES, *PREDICTORS))
        assert "{p" not in said


@pytest.mark.parametrize("command", ["pack", "plan"])
def test_formats(run: Run, command: str) -> None:
    said = run(command, "--help").stdout
    assert all(name in said for name in (*packable_names(), *dense_names()))


def test_what_is_heavy_is_not_imported() -> None:
    python("import sys, cli.app; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()")
