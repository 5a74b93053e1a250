"""Options that several commands share, each written once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moe_local.config import parse_share, parse_size

if TYPE_CHECKING:
    from moe_local.engine import Options
    from moe_local.generation.sampling import Sampling

MODEL = "Model"
MEMORY = "Memory"
SAMPLING = "Sampling"

Model = Annotated[
    str | None,
    typer.Argument(
        help="A checkpoint directory or a hub id like Qwen/Qwen3-30B-A3B; without one, a small demo model.",
        show_default=False,
    ),
]
Ram = Annotated[
    str | None,
    typer.Option(
        help="Most RAM that the whole process may use, like 6GiB. Default: what is free.",
        rich_help_panel=MEMORY,
    ),
]
Vram = Annotated[
    str | None,
    typer.Option(
        help="Most GPU memory, like 8GiB. Default: what is free. With --device cpu it bounds a device tier in RAM"
        " (RAM is then the tier below).",
        rich_help_panel=MEMORY,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        help="Tokens of context to reserve memory for. Default: 4096, or the model's.", rich_help_panel=MEMORY
    ),
]
Experts = Annotated[
    str,
    typer.Option(
        help="Keep at most this share of the experts in the fastest memory, like 50%.", rich_help_panel=MEMORY
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=MODEL)]
Dtype = Annotated[
    str, typer.Option(help="auto (the checkpoint's), bfloat16, float16 or float32.", rich_help_panel=MODEL)
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        "-n",
        help="Most tokens to write. Default: the model's, or to the end of the context.",
        rich_help_panel=SAMPLING,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="0 is greedy; higher is more random. Default: the model's.", rich_help_panel=SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(help="Sample from the likeliest tokens of this total probability.", rich_help_panel=SAMPLING),
]
TopK = Annotated[int | None, typer.Option(help="Sample from this many likeliest tokens.", rich_help_panel=SAMPLING)]
MinP = Annotated[
    float | None,
    typer.Option(help="Drop tokens less likely than this share of the likeliest.", rich_help_panel=SAMPLING),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1 discourages what was said already.", rich_help_panel=SAMPLING)
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.", rich_help_panel=SAMPLING)]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End before this text appears; may be given again.", rich_help_panel=SAMPLING),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts instead of text.")]


def load_options(
    *,
    ram: str | None,
    vram: str | None,
    context: int | None,
    experts: str = "100%",
    device: str = "auto",
    dtype: str = "auto",
) -> Options:
    """Options of loading from what was typed. Raises MoeLocalError naming what is wrong."""
    from moe_local.engine import Options

    return Options(
        device=device,
        ram=parse_size(ram) if ram is not None else None,
        vram=parse_size(vram) if vram is not None else None,
        context=context,
        dtype=dtype,
        experts=parse_share(experts),
    )


def sampling_options(
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    min_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
    stop: list[str] | None,
) -> Sampling:
    from moe_local.generation.sampling import Sampling

    return Sampling(max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, tuple(stop or ()))
