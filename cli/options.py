"""Options that several commands share, each written once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_local.errors import MoeLocalError
from moe_local.files import read_text
from moe_local.policies import DEFAULT_POLICY, POLICIES
from moe_local.prediction import PREDICTORS
from moe_local.units import parse_budget, parse_share

from .completion import complete_model

if TYPE_CHECKING:
    from moe_local.generation.sampling import Sampling
    from moe_local.generation.template_settings import TemplateSettings
    from moe_local.planning.options import Options

MODEL = "Model"
MEMORY = "Memory"
SAMPLING = "Sampling"
TEMPLATE = "Chat template"
MOST_TEMPLATE = 1 << 20  # characters
_PYTHON = {"True": True, "False": False, "None": None}  # as documentations of models write them

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint directory, a GGUF file, or a hub's model: an id like Qwen/Qwen3-30B-A3B, with @REVISION or"
        " :QUANT if you like, or a link; or the beginning of a name that `list` shows. Without one, a small demo"
        " model.",
        show_default=False,
        autocompletion=complete_model,
    ),
]
NeededModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint directory, a GGUF file, or a hub's model: an id like Qwen/Qwen3-30B-A3B, or a link.",
        autocompletion=complete_model,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="The same as MODEL.", rich_help_panel=MODEL, autocompletion=complete_model),
]
Pack = Annotated[
    bool,
    typer.Option(
        "--pack/--no-pack",
        help="Pack MODEL on first use, into int4 in the cache folder; or read it as it is, as with --dtype float32.",
        rich_help_panel=MODEL,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts instead of text.")]


@dataclass(frozen=True)
class LoadFlags:
    """How to load a model, as typed."""

    ram: Annotated[
        str | None,
        typer.Option(
            help="Most RAM that the whole process may use, like 6GiB or 50% of the machine's. Default: what is free.",
            rich_help_panel=MEMORY,
        ),
    ] = None
    vram: Annotated[
        str | None,
        typer.Option(
            help="Most GPU memory, like 8GiB or 50% of the card's. Default: what is free. With --device cpu it bounds"
            " a device tier in RAM (RAM is then the tier below).",
            rich_help_panel=MEMORY,
        ),
    ] = None
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "--ctx-size",
            "-c",
            help="Tokens of context to reserve memory for. Default: 4096, or the model's.",
            rich_help_panel=MEMORY,
        ),
    ] = None
    experts: Annotated[
        str,
        typer.Option(
            help="Keep at most this share of the experts in the fastest memory, like 50%.", rich_help_panel=MEMORY
        ),
    ] = "100%"
    policy: Annotated[
        str,
        typer.Option(help=f"Which experts are kept: {', '.join(POLICIES)}.", rich_help_panel=MEMORY),
    ] = DEFAULT_POLICY
    prefetch: Annotated[
        str,
        typer.Option(
            help=f"What predicts the experts to read ahead: {', '.join(PREDICTORS)}; or off.",
            rich_help_panel=MEMORY,
        ),
    ] = "router"
    io: Annotated[
        str,
        typer.Option(
            help="How experts are read: direct (past the system's cache), buffered, or auto: what suits the memory.",
            rich_help_panel=MEMORY,
        ),
    ] = "auto"
    warm: Annotated[
        bool,
        typer.Option(
            "--warm", help="Begin with the experts that the last --warm run ended with.", rich_help_panel=MEMORY
        ),
    ] = False
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            "-t",
            help="Threads that compute. Default: one for each core; fewer where other programs need some.",
            rich_help_panel=MODEL,
        ),
    ] = None
    device: Annotated[
        str, typer.Option(help="auto, cpu, mps, cuda or, of several, cuda:1.", rich_help_panel=MODEL)
    ] = "auto"
    dtype: Annotated[
        str, typer.Option(help="auto (the checkpoint's), bfloat16, float16 or float32.", rich_help_panel=MODEL)
    ] = "auto"
    misses: Annotated[
        str,
        typer.Option(
            help="Experts that are in RAM and not on the GPU: upload them, multiply by them on the cpu, zero-copy"
            " (the GPU reads them there), or auto: upload or cpu, what costs less once `doctor --calibrate` has"
            " measured it.",
            rich_help_panel=MODEL,
        ),
    ] = "auto"
    activations: Annotated[
        str,
        typer.Option(
            help="How a CPU multiplies int4 and int8: by activations rounded to 8 bits (int8), or as they are (bf16):"
            " exact, and slower.",
            rich_help_panel=MODEL,
        ),
    ] = "int8"

    def options(self) -> Options:
        """What was typed, understood. Raises MoeLocalError naming what is wrong."""
        from moe_local.planning.options import Options

        return Options(
            device=self.device,
            ram=None if self.ram is None else parse_budget(self.ram, _all_ram),
            vram=None if self.vram is None else parse_budget(self.vram, lambda: _all_vram(self.device)),
            context=self.context,
            dtype=self.dtype,
            experts=parse_share(self.experts),
            policy=self.policy,
            prefetch=self.prefetch,
            io=self.io,
            misses=self.misses,
            activations=self.activations,
            warm=self.warm,
            threads=self.threads,
        )


def _all_ram() -> int:
    from moe_local.memory.limits import memory_limit

    return memory_limit()


def _all_vram(device: str) -> int:
    """Bytes of a device's memory; on a CPU of RAM, where its device tier is."""
    from moe_local.memory.accelerator import find

    accelerator = find(device)
    return accelerator.memory()[1] if accelerator.has_own_memory else _all_ram()


@dataclass(frozen=True)
class SamplingFlags:
    """How tokens are chosen, as typed."""

    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "--max-tokens",
            "-n",
            help="Most tokens to write. Default: the model's, or to the end of the context.",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            "--temp",
            help="0 is greedy; higher is more random. Default: the model's.",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the likeliest tokens of this total probability.", rich_help_panel=SAMPLING),
    ] = None
    top_k: Annotated[
        int | None, typer.Option(help="Sample from this many likeliest tokens.", rich_help_panel=SAMPLING)
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option(help="Drop tokens less likely than this share of the likeliest.", rich_help_panel=SAMPLING),
    ] = None
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 discourages what was said already.", rich_help_panel=SAMPLING)
    ] = None
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.", rich_help_panel=SAMPLING)] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this text appears; may be given again.", rich_help_panel=SAMPLING),
    ] = None

    def options(self) -> Sampling:
        """What was typed, checked. Raises MoeLocalError naming what makes no sense."""
        from moe_local.generation.sampling import Sampling

        return Sampling(**{**vars(self), "stop": tuple(self.stop or ())})


@dataclass(frozen=True)
class TemplateFlags:
    """What the chat template is told, as typed."""

    think: Annotated[
        str | None,
        typer.Option(
            help="How much to reason before an answer, where the model can be told: on, off, low, medium, high.",
            rich_help_panel=TEMPLATE,
        ),
    ] = None
    template_var: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A variable of the model's chat template; the value as JSON, else as text. May be given again.",
            rich_help_panel=TEMPLATE,
        ),
    ] = None
    chat_template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A Jinja chat template to use instead of the model's.", rich_help_panel=TEMPLATE
        ),
    ] = None

    def settings(self) -> TemplateSettings:
        """What was typed, understood. Raises MoeLocalError naming what is wrong."""
        from moe_local.generation.template_settings import TemplateSettings

        return TemplateSettings(
            source=None if self.chat_template is None else _read_template(self.chat_template),
            variables=dict(_variable(given) for given in self.template_var or ()),
            level=self.think,
        )


def _variable(given: str) -> tuple[str, Any]:
    name, equals, value = given.partition("=")
    if not equals or not name.isidentifier():
        raise MoeLocalError(f"--template-var {given} is no NAME=VALUE", remedy="write enable_thinking=false, say")
    if value in _PYTHON:
        return name, _PYTHON[value]
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _read_template(file: Path) -> str:
    text = read_text(file, most=MOST_TEMPLATE)
    if not text.strip():
        raise MoeLocalError(f"{file} is empty", remedy="give a Jinja chat template")
    return text
