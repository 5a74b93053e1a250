"""Which quantised checkpoints are taken, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.schemes import understood
from moe_local.errors import UnsupportedError


@pytest.mark.parametrize("config", [{"quant_method": "quip"}, "quip"])
def test_unknown_schemes_are_refused_by_name(config: object) -> None:
    with pytest.raises(UnsupportedError, match="quantised with 'quip'") as caught:
        understood(Checkpoint(Path("model"), {"quantization_config": config}, {}))
    assert caught.value.remedy


def test_without_quantisation_every_tensor_is_itself(qwen: Path) -> None:
    checkpoint = Checkpoint.open(qwen)
    assert understood(checkpoint) == checkpoint.tensors
