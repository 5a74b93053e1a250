"""`moe-local generate`: one prompt, one answer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_local.errors import MoeLocalError
from moe_local.files import MOST_PROMPT, read_text

from . import options as opt
from .commands import is_prompt
from .output import echo_json, stderr, write

if TYPE_CHECKING:
    from moe_local.engine import Engine
    from moe_local.generation.generate import Generation


def generate(
    model: opt.Model = None,
    words: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", show_default=False, help="The prompt.")] = (
        None
    ),
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The same as PROMPT. Without one, stdin is read.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the prompt from a file; - is stdin.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Go on from the prompt as it is, without the model's chat template.")
    ] = False,
    source: Annotated[
        str | None, typer.Option(help="The prompt's language, like eng_Latn, for a model that translates.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The language to translate into, like fra_Latn.")] = None,
    as_json: opt.Json = False,
    pack: opt.Pack = True,
    *,
    flags: opt.LoadFlags,
    sampling: opt.SamplingFlags,
    template: opt.TemplateFlags,
) -> None:
    """Write one answer to a prompt, as it is generated.

    Examples: `moe-local generate "Why is the sky blue?"`, `moe-local generate Qwen/Qwen3-30B-A3B "Why?" --ram 16GiB`,
    `moe-local generate -f question.txt`, `echo "2+2?" | moe-local generate --json`,
    `moe-local generate facebook/nllb-moe-54b "The hen." --source eng_Latn --target fra_Latn`. A first word that has
    spaces and is no path is the prompt, for the demo model. What a model reasons before its answer is shown dimmed
    at a terminal, kept out of piped text, and `reasoning` in the JSON.
    """
    from .load import load
    from .session import interruptible, show_reasoning

    model, given = _told_apart(model, words or [], prompt)
    text = read_prompt(None if given is None else _typed(given), file)
    system = None if system is None else _typed(system)
    options, chosen, settings = flags.options(), sampling.options(), template.settings()
    with load(model, options, pack=pack, template=settings) as engine:
        with interruptible() as interrupt, show_reasoning(shown=not as_json) as reasoning:
            result = engine.generate(
                text,
                chosen,
                raw=raw,
                system=system,
                source=source,
                target=target,
                on_text=None if as_json else reasoning.then(write),
                on_reasoning=reasoning.piece,
                interrupt=interrupt,
            )
        _end(engine, result, as_json=as_json)
    if result.finish_reason == "interrupted":
        raise typer.Exit(130)


def _end(engine: Engine, result: Generation, *, as_json: bool) -> None:
    """What follows an answer that was written; or the answer, as JSON."""
    from .load import tell
    from .session import status

    if as_json:
        out = {**result.as_json(), "load_seconds": round(engine.load_seconds, 3), "ram_budget": engine.plan.ram}
        echo_json(out)
        return
    write("\n")
    if result.reasoning and not result.text and result.finish_reason == "length":
        tell("the answer ended while it was still reasoning: give more -n, or --think off")
    if stderr.is_terminal:
        stderr.print(status(engine, result), style="dim", soft_wrap=True)


def _told_apart(model: str | None, words: list[str], prompt: str | None) -> tuple[str | None, str | None]:
    """The model and the prompt among what was typed. Raises MoeLocalError for two prompts."""
    if model is not None and not words and is_prompt(model):
        words, model = [model], None
    if words and prompt is not None:
        raise MoeLocalError("both PROMPT and --prompt were given", remedy="give one of them")
    return model, " ".join(words) if words else prompt


def _typed(argument: str) -> str:
    """What was typed, in UTF-8 also where the locale is another."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeDecodeError:
        return argument


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from wherever it was given. Raises MoeLocalError when there is none, or two."""
    if prompt is not None and file is not None:
        raise MoeLocalError("both a prompt and --file were given", remedy="give one of them")
    if prompt is not None:
        return prompt
    if file is None and sys.stdin.isatty():
        raise MoeLocalError("there is no prompt", remedy="write it after MODEL, or give it with --file or on stdin")
    try:
        if file is not None and str(file) != "-":
            return read_text(file, most=MOST_PROMPT)
        text = sys.stdin.read(MOST_PROMPT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise MoeLocalError(f"cannot read the prompt from stdin: {error}") from error
    if len(text) > MOST_PROMPT:
        raise MoeLocalError(f"the prompt has more than {MOST_PROMPT} characters", remedy="give a smaller one")
    return text
