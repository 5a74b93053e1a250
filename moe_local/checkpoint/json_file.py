"""JSON files that belong to a checkpoint. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moe_local.errors import CheckpointError


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError naming the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing", remedy="name a complete checkpoint directory") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}", remedy="check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON ({error})", remedy="download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object", remedy="download it again")
    return content
