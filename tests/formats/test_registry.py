"""What formats declare is what they do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_local.checkpoint.encoding import Encoding
from moe_local.errors import MoeLocalError
from moe_local.formats.base import Format, Packable
from moe_local.formats.registry import (
    FORMATS,
    GROUP_SIZES,
    dense_names,
    fits,
    packable,
    packable_names,
    packed_bytes,
    packed_encoding,
)
from tests.processes import python

SIZES = st.integers(1, 300) | st.sampled_from([32, 64, 96, 128, 256, 384, 640])


@given(st.sampled_from(packable_names()), SIZES, SIZES, st.sampled_from(GROUP_SIZES))
def test_a_matrix_takes_what_is_declared(name: str, out: int, width: int, group: int) -> None:
    encoding = packed_encoding(name, group)
    size = packed_bytes(name, (out, width), group)
    assert fits(encoding, (out, width)) == (size is not None)
    if size is not None:
        arrays = packable(encoding).encode(torch.empty(out, width, device="meta")).values()
        assert sum(array.numel() * array.element_size() for array in arrays) == size


@pytest.mark.parametrize("block", [32, 64, 256])
def test_options_that_are_kept_count(block: int) -> None:
    assert fits(Encoding("nf4", (("block", block),)), (2, 32)) == (64 % block == 0)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_at_home(name: str) -> None:
    made = FORMATS[name].load()
    made = made if isinstance(made, type) else type(made())
    assert issubclass(made, Format)
    assert issubclass(made, Packable) == (FORMATS[name].size is not None)


def test_names() -> None:
    assert set(dense_names()) <= set(packable_names())
    with pytest.raises(MoeLocalError, match="there is no format 'int5'") as refused:
        packed_encoding("int5")
    assert all(name in str(refused.value) for name in packable_names())
    with pytest.raises(MoeLocalError, match="a group of 48"):
        packed_encoding("int4", 48)


def test_declarations_need_no_torch() -> None:
    python(
        "import sys; from moe_local.formats.registry import packable_names, packed_bytes;"
        "assert packed_bytes('int4', (64, 64)) and packed_bytes('fp8', (64, 64)) and packable_names();"
        "assert not {'torch', 'numpy'} & sys.modules.keys()"
    )
