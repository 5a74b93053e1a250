"""Writes docs/architectures.md from the code and the installed transformers: `python -m docs.make_architectures`.

A test holds the page's lines to it: those of architectures that the installed transformers has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import transformers

from moe_local.checkpoint.architecture import is_encoder_decoder
from moe_local.checkpoint.bindings import BINDINGS
from moe_local.checkpoint.gguf_architectures import KNOWN
from moe_local.testing import Architecture, architectures, whole_architectures
from moe_local.testing.tiny import tiny_config
from tests.model.refused import CANNOT

PAGE = Path(__file__).with_name("architectures.md")
_ALSO = {"deepseek_v3": "deepseek2"}  # which of the two a file holds is in its metadata
_HEAD = """# Architectures

Every model class with experts that transformers {version} has, made by `python -m docs.make_architectures`
from the code. Each that is run is read from safetensors under its published names, packed, and run from the
store, in tests that compare it with transformers' own forward pass. GGUF: llama.cpp's name of it where such files
are read. What is peculiar about some: [models](models.md#architectures).

| architecture | model class | GGUF | generates |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return _HEAD.format(version=transformers.__version__) + "\n".join(lines().values()) + "\n"


def lines() -> dict[str, str]:
    """A line of the table for each model class, by its name."""
    found = {each.model_class.__name__: each for each in (*architectures(), *whole_architectures())}
    read = dict(sorted(found.items(), key=lambda pair: (pair[1].name, pair[0])))
    return {name: f"| `{each.name}` | `{name}` | {_gguf(each)} | {_generates(each)} |" for name, each in read.items()}


def _gguf(found: Architecture) -> str:
    name, config = found.model_class.__name__, tiny_config(found).to_dict()
    types = {part.get("model_type") for part in (config, *config.values()) if isinstance(part, dict)}
    names = {own for own, known in KNOWN.items() if known.model_class == name or known.model_type in types}
    names |= {own for kind, own in _ALSO.items() if kind in types}
    return ", ".join(f"`{own}`" for own in sorted(names))


def _generates(found: Architecture) -> str:
    return "; ".join(_ways(found))


def _ways(found: Architecture) -> Iterator[str]:
    if (reason := CANNOT.get(found.id)) is not None:
        yield f"refused: {reason}"
    elif is_encoder_decoder(tiny_config(found).to_dict()):
        yield "one text of another"
    elif found.can_generate:
        yield "text"
    else:
        yield "forward passes only"
    if found.name in BINDINGS:
        yield "bound by us"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
