"""JSON that belongs to a checkpoint, bounded before it is parsed. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_local.checkpoint.regular import read_regular
from moe_local.errors import CheckpointError

# The index of a model of 60 layers of 384 experts, quantised into four tensors a matrix, has 35 MB.
MOST = 48_000_000  # bytes
# Parsed, text takes up to thirty times its size. What takes it is counted first: that index has 300,000 pairs; a
# header of the same tensors in one file 1,200,000 pairs, 900,000 lists and objects, and 2,500,000 commas.
_MOST_OF = {b":": 2_000_000, b"[{": 2_000_000, b",": 6_000_000}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError naming the file."""
    try:
        content = parse_json(read_regular(file, MOST))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing", remedy="name a complete checkpoint directory") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}", remedy="check its permissions") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error})", remedy="download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object", remedy="download it again")
    return content


def parse_json(data: bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What the text says; objects as `pairs` makes them. Raises ValueError for text that is not JSON, or too much."""
    for characters, most in _MOST_OF.items():
        if sum(data.count(character) for character in characters) > most:
            raise ValueError(f"it has more than {most} of {characters.decode()!r}")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
