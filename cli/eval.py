"""`moe-local eval`: perplexity of a text, and how far a model is from another."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_local.errors import MoeLocalError
from moe_local.files import read_text
from moe_local.paths import cache_dir
from moe_local.units import format_size

from . import options as opt
from .output import echo, echo_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from moe_local.engine import Engine
    from moe_local.evaluation.perplexity import Evaluation
    from moe_local.evaluation.reference import Reference
    from moe_local.planning.options import Options

_PURPOSE = "perplexity"
_CHARACTERS = 256  # of a text for each token of --limit: more than any tokenizer puts into one, on average
_MOST = 1 << 30  # characters of a text that is used whole
_TOKENIZING = 200  # bytes of memory for a character that is turned into tokens, measured


def evaluate(
    model: opt.Model = None,
    *,
    text: Annotated[Path, typer.Option("--text", "-f", help="A UTF-8 text to predict.")],
    against: Annotated[
        str | None,
        typer.Option(
            help="A reference model, read as it is and with activations that are not rounded: also measure how far"
            " MODEL's predictions are from this one's. The same MODEL: what packing it and rounding cost."
        ),
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens that the model sees at once. Default: 512, or the model's context.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window to the next. Default: half the window.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use this many tokens of the text only.")] = None,
    as_json: opt.Json = False,
    pack: opt.Pack = True,
    flags: opt.LoadFlags,
) -> None:
    """Measure the perplexity of a text, and the divergence from another model over it.

    What is measured is what `chat` runs: MODEL packed, unless it is a store, or --no-pack is given.

    Examples: `moe-local eval Qwen/Qwen3-30B-A3B --text wiki.test.raw --limit 20000`, `moe-local eval ./packed
    --against Qwen/Qwen3-30B-A3B --text wiki.test.raw --limit 5000`.
    """
    from .output import stderr

    if limit is not None and limit < 2:
        raise MoeLocalError(f"--limit {limit} is too few tokens to score one", remedy="give at least 2")
    content = _read(text, None if limit is None else min(limit, _MOST) * _CHARACTERS)
    request = _Request(content, window, stride, limit, pack, flags.options())
    named = None if model is None else _named(model, request)
    with ExitStack() as stack:
        reference = None if against is None else _run_reference(against, request, stack)
        out = _run(named, request, reference)
    if as_json:
        echo_json(out)
    else:
        echo("\n".join(_lines(out)))
        if stderr.is_terminal:
            stderr.print(_status(out), style="dim", soft_wrap=True)


@dataclass(frozen=True)
class _Request:
    """What was asked for, the same for both models."""

    text: str
    window: int | None
    stride: int | None
    limit: int | None
    pack: bool  # MODEL on first use, as `chat` does; the reference is never packed
    options: Options

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 2:
            raise MoeLocalError(f"--window {self.window} is too small to score a token", remedy="give at least 2")

    def to_load(self) -> Options:
        from moe_local.evaluation.perplexity import DEFAULT_WINDOW

        return replace(self.options, logits_per_pass=self.window or DEFAULT_WINDOW)

    def sizes(self, engine: Engine) -> tuple[int, int]:
        """(window, stride) for a model."""
        from moe_local.evaluation.perplexity import DEFAULT_WINDOW

        context = engine.load_plan.context
        window = self.window or min(context, DEFAULT_WINDOW)
        if window > context:
            raise MoeLocalError(
                f"--window {window} is more than the context of {context}",
                remedy="give a smaller one, or a larger --context if the model has it",
            )
        return window, self.stride if self.stride is not None else max(1, window // 2)

    def ids(self, engine: Engine) -> list[int]:
        """The text in a model's tokens. Before any expert is in memory: it is theirs afterwards."""
        from moe_local.memory.limits import process_memory

        needed = len(self.text) * _TOKENIZING
        if self.limit is None and process_memory() + needed > engine.plan.ram:
            raise MoeLocalError(
                f"turning this text into tokens takes about {format_size(needed)}, of {format_size(engine.plan.ram)}",
                remedy="give --limit for a part of it, or more --ram",
            )
        return engine.generator.encoder.encode_text(self.text, self.limit)


@dataclass(frozen=True)
class _Kept:
    """What is left of the reference model once it is closed."""

    name: str
    result: Evaluation
    format: str
    ids: list[int]
    sizes: tuple[int, int]  # window, stride
    tokenizer: PreTrainedTokenizerBase
    predictions: Reference


def _named(model: str, request: _Request) -> str:
    """Where MODEL is, downloaded if need be: before the reference is run, which may take long."""
    from .load import located, refusing

    return located(model, request.options, refusing(_PURPOSE), pack=request.pack)


def _run_reference(model: str, request: _Request, stack: ExitStack) -> _Kept:
    from moe_local.evaluation.perplexity import evaluate, vocabulary_size
    from moe_local.evaluation.reference import reference_bytes, reference_file
    from moe_local.evaluation.windows import windows

    from .load import load, progress
    from .output import stderr

    with load(model, replace(request.to_load(), activations="bf16"), pack=False, purpose=_PURPOSE) as engine:
        ids, (window, stride) = request.ids(engine), request.sizes(engine)
        windows(len(ids), window, stride)  # refuses before anything is written
        vocabulary = vocabulary_size(engine.model)
        predictions = stack.enter_context(reference_file(cache_dir(), len(ids) - 1, vocabulary))
        size = format_size(reference_bytes(len(ids) - 1, vocabulary))
        stderr.print(f"the reference's predictions take {size} in {cache_dir()} while this runs", style="dim")
        with progress() as report:
            result = evaluate(
                engine.model,
                ids,
                window,
                stride,
                keep=predictions,
                chunk=engine.load_plan.prefill_chunk,
                report=lambda done: report("reference", done),
            )
        predictions.rewind()
        tokenizer = engine.generator.tokenizer
        return _Kept(model, result, engine.load_plan.expert_format, ids, (window, stride), tokenizer, predictions)


def _run(model: str | None, request: _Request, reference: _Kept | None) -> dict[str, Any]:
    """The fields of `--json`."""
    from moe_local.evaluation.perplexity import check_comparable, evaluate, vocabulary_size

    from .load import load, progress

    with load(model, request.to_load(), pack=request.pack, purpose=_PURPOSE) as engine:
        ids = request.ids(engine)
        window, stride = request.sizes(engine) if reference is None else reference.sizes
        if reference is not None:
            sizes = (reference.predictions.vocabulary, vocabulary_size(engine.model))
            check_comparable(reference.tokenizer, engine.generator.tokenizer, sizes)
            _check_same(ids, window, reference, engine)
        with progress() as report:
            result = evaluate(
                engine.model,
                ids,
                window,
                stride,
                against=None if reference is None else reference.predictions,
                chunk=engine.load_plan.prefill_chunk,
                report=lambda done: report("evaluating", done),
            )
        return _fields(engine, result, (window, stride), reference)


def _check_same(ids: list[int], window: int, reference: _Kept, engine: Engine) -> None:
    if ids != reference.ids:
        raise MoeLocalError(
            "the models' tokenizers split the text differently", remedy="compare models that share a tokenizer"
        )
    if window > engine.load_plan.context:
        raise MoeLocalError(
            f"the reference's window of {window} is more than the context of {engine.load_plan.context}",
            remedy="give a smaller --window",
        )


def _fields(engine: Engine, result: Evaluation, sizes: tuple[int, int], reference: _Kept | None) -> dict[str, Any]:
    stats = engine.stats()
    fields: dict[str, Any] = {
        "model": str(engine.load_plan.checkpoint.directory),
        "perplexity": result.perplexity,
        "perplexity_error": result.perplexity_error,
        "nll": result.nll,
        "nll_error": result.nll_error,
        "tokens": result.tokens,
        "windows": result.windows,
        "window": sizes[0],
        "stride": sizes[1],
        "expert_format": engine.load_plan.expert_format,
        "dtype": str(engine.load_plan.dtype).removeprefix("torch."),
        "seconds": round(result.seconds, 4),
        "tokens_per_second": round(result.tokens_per_second, 3),
        "hit_rate": round(stats["hit_rate"], 4),
        "bytes_read": stats["bytes_read"],
        "peak_memory": stats["peak_memory"],
        "load_seconds": stats["load_seconds"],
        "ram_budget": engine.plan.ram,
    }
    if reference is not None and result.divergence is not None:
        fields |= {
            "kl_divergence": result.divergence.kl,
            "kl_divergence_error": result.divergence.kl_error,
            "top1_agreement": result.divergence.agreement,
            "reference": reference.name,
            "reference_perplexity": reference.result.perplexity,
            "reference_expert_format": reference.format,
        }
    return fields


def _lines(out: dict[str, Any]) -> list[str]:
    lines = [
        f"perplexity {out['perplexity']:.4f} ± {out['perplexity_error']:.4f} over {out['tokens']} tokens"
        f" (windows of {out['window']}, stride {out['stride']}), experts in {out['expert_format']}"
    ]
    if "reference" in out:
        lines += [
            f"reference perplexity {out['reference_perplexity']:.4f}, experts in {out['reference_expert_format']}",
            f"KL divergence {out['kl_divergence']:.6f} ± {out['kl_divergence_error']:.6f} nats,"
            f" same likeliest token {out['top1_agreement']:.2%}",
        ]
    return lines


def _status(out: dict[str, Any]) -> str:
    return (
        f"{out['tokens_per_second']:.1f} tokens/s · hits {out['hit_rate']:.1%} ·"
        f" {format_size(out['bytes_read'])} read · peak {format_size(out['peak_memory'])} of"
        f" {format_size(out['ram_budget'])}"
    )


def _read(file: Path, characters: int | None) -> str:
    """The text, or its beginning. Raises MoeLocalError for one that is empty, or cannot be read."""
    text = read_text(file, most=_MOST if characters is None else characters, whole=characters is None)
    if not text:
        raise MoeLocalError(f"{file} is empty", remedy="give a text to predict")
    return text
