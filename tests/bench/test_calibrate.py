"""Calibration: measured on a device, kept, read again; a file that was damaged is as none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_local.bench.calibrate import ROWS, calibrate
from moe_local.errors import UnsupportedError
from moe_local.kernels import native
from moe_local.memory.accelerator import find
from moe_local.planning.calibration import Calibration, calibration_file, read_calibration, write_calibration
from moe_local.testing.pretend_cuda import can_pretend, pretend_cuda

FOUND = Calibration("a GPU", 2, upload=1e-10, round_trip=1e-4, multiply={1: 3e-11, 8: 5e-11})


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MOE_LOCAL_HOME", str(tmp_path / "home"))
    yield


@pytest.mark.skipif(not can_pretend() or native.missing() is not None, reason="needs a pretend device and kernels")
def test_it_is_measured() -> None:
    with pretend_cuda():
        found = calibrate(find("cuda"))
    assert tuple(found.multiply) == ROWS
    assert found.upload > 0 and found.round_trip > 0
    assert found.multiply[64] > found.multiply[1] > 0
    write_calibration(found)
    assert read_calibration(found.device, found.threads) == found


def test_without_a_gpu_there_is_nothing_to_choose_between() -> None:
    with pytest.raises(UnsupportedError, match="no GPU"):
        calibrate(find("cpu"))


def test_devices_are_kept_beside_each_other() -> None:
    other = replace(FOUND, device="another", round_trip=2e-4)
    for one in (FOUND, other, replace(FOUND, upload=2e-10)):
        write_calibration(one)
    assert read_calibration("a GPU", 2) == replace(FOUND, upload=2e-10)
    assert read_calibration("another", 2) == other
    assert read_calibration("a GPU", 4) is None


def test_costs_are_those_of_a_record() -> None:
    costs = FOUND.costs(1_000_000)
    assert (costs.upload, costs.round_trip) == (pytest.approx(1e-4), 1e-4)
    assert costs.at(1) == pytest.approx(3e-5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
FIELDS = st.sampled_from(["upload", "round_trip", "multiply"])


@given(FIELDS, JSON | st.dictionaries(st.sampled_from(["0", "-1", "1", "x", "1e400"]), JSON, max_size=3))
def test_a_damaged_file_is_as_none(field: str, value: object) -> None:
    write_calibration(FOUND)
    content = json.loads(calibration_file().read_text())
    content["a GPU, 2 threads"][field] = value
    calibration_file().write_text(json.dumps(content))
    found = read_calibration("a GPU", 2)
    assert found is None or (found.upload > 0 and found.round_trip > 0 and found.costs(1000).at(2.5) > 0)
    for text in ("", "[]", "{", '{"a GPU, 2 threads": 7}', "\0" * 9):
        calibration_file().write_text(text)
        assert read_calibration("a GPU", 2) is None
    write_calibration(FOUND)
    assert read_calibration("a GPU", 2) == FOUND
