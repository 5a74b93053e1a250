"""`moe-local batch`: a file of prompts, answered together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_local.errors import MoeLocalError
from moe_local.registry import choice
from moe_local.units import format_size

from . import options as opt
from .output import binary_stdout, echo_json

if TYPE_CHECKING:
    from moe_local.engine import Engine
    from moe_local.generation.batch import Progress
    from moe_local.jobs.files import Source, Target
    from moe_local.jobs.job import Job
    from moe_local.jobs.line import Defaults, LineFormat
    from moe_local.jobs.ray_pool import Loading

Ran = tuple[dict[str, Any], float]  # figures, and the seconds that answering took
SOME_FAILED = 8  # exit code: there are error records among the answers
_GUESS = 256  # tokens of an answer, where no limit is given
_CHARACTERS = 3  # of text to a token, at least


@dataclass(frozen=True)
class JobFlags:
    """Where answers go, what stands on a line, and how the lines are worked off; as typed."""

    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Where answers go; - is stdout.")
    ] = "-"
    format: Annotated[
        str, typer.Option(help="What stands on a line: jsonl, openai, text; auto looks at the first.")
    ] = "auto"
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Write answers in the order of the input, not as they are finished.")
    ] = False
    batch_size: Annotated[
        int, typer.Option(min=1, help="Most sequences at once; memory may allow fewer.", rich_help_panel=opt.MEMORY)
    ] = 64
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="End at the first line that cannot be answered.")] = (
        False
    )
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, even if OUT is there.")] = False
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|ADDRESS", help="Share the lines among engines on a Ray cluster (needs moe-local\\[ray])."
        ),
    ] = None
    workers: Annotated[int | None, typer.Option(min=1, help="Engines on the cluster. Default: one a GPU.")] = None
    system: Annotated[str | None, typer.Option(help="A system message for lines that have none.")] = None
    raw: Annotated[
        bool, typer.Option("--raw", help="Go on from prompts as they are, without the model's chat template.")
    ] = False
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON summary at the end; on stderr if answers go to stdout."),
    ] = False


def batch(
    source: Annotated[str, typer.Argument(metavar="IN.jsonl", help="A request a line; - is stdin.")],
    model: opt.Model = None,
    *,
    asked: JobFlags,
    pack: opt.Pack = True,
    flags: opt.LoadFlags,
    sampling: opt.SamplingFlags,
    template: opt.TemplateFlags,
) -> None:
    """Answer a file of prompts, many at once: each expert that is read serves all of them.

    A line is `{"prompt": "..."}` or `{"messages": [...]}`, with `id` and sampling options of its own if you like; or
    a line of OpenAI's batch files; or plain text. Killed or interrupted, the same command goes on where it was: no
    line is lost, none is answered twice. A line that makes no sense becomes an error record; the exit code is then 8.

    Examples: `moe-local batch questions.jsonl -o answers.jsonl --ram 16GiB -n 200`, `moe-local batch prompts.txt`,
    `cat in.jsonl | moe-local batch - Qwen/Qwen3-30B-A3B > out.jsonl`.
    """
    from moe_local.jobs.files import Source
    from moe_local.jobs.job import Job
    from moe_local.jobs.line import Defaults
    from moe_local.jobs.ray_pool import Loading

    options, chosen, settings = flags.options(), sampling.options(), template.settings()
    with closing(Source(source, sys.stdin.buffer)) as given:
        name, form = _format(asked.format, given)
        defaults = Defaults(chosen, asked.system, asked.raw)
        each = given.bytes // max(1, given.count) // _CHARACTERS + (chosen.max_new_tokens or _GUESS)
        options = replace(options, max_sequences=asked.batch_size, tokens_per_sequence=each)
        loading = Loading(model, options, pack, settings)
        with closing(_target(asked, given, name, loading, defaults)) as target:
            job = Job(given, target, form, defaults, ordered=asked.ordered, fail_fast=asked.fail_fast)
            summary = _run(job, loading, ray=asked.ray, workers=asked.workers)
    _tell(summary, as_json=asked.as_json, on_stderr=asked.output == "-")


def _format(asked: str, source: Source) -> tuple[str, LineFormat]:
    """What stands on a line, by name and as what reads it. Raises MoeLocalError for a name that is none."""
    from moe_local.jobs.lines import FORMATS, guess_format

    name = guess_format(source.name, source.first) if asked == "auto" else asked
    if name not in FORMATS:
        raise MoeLocalError(f"--format {asked} is unknown", remedy=choice(asked, ["auto", *FORMATS]))
    return name, FORMATS[name]()


def _target(asked: JobFlags, source: Source, format: str, loading: Loading, defaults: Defaults) -> Target:
    """Where answers go; a file of earlier answers is gone on with, if they are of the same job."""
    from moe_local.jobs.files import STDIO, AnswerFile, Stream, Terms

    if asked.output == STDIO:
        if (stdout := binary_stdout()) is None:
            raise MoeLocalError("there is no stdout to write answers to", remedy="give a file with -o")
        return Stream(stdout)
    output = Path(asked.output)
    if output.exists() and Path(source.name).exists() and output.samefile(source.name):
        raise MoeLocalError(f"{asked.output} is both the input and the output", remedy="choose another -o")
    terms = Terms(
        input=source.digest,
        model=loading.model or "demo",
        options={
            "format": format,
            "dtype": loading.options.dtype,
            "context": loading.options.context,
            "system": defaults.system,
            "raw": defaults.raw,
            "template": vars(loading.template),
            **vars(defaults.sampling),
        },
    )
    return AnswerFile(output, terms, restart=asked.restart)


def _run(job: Job, loading: Loading, *, ray: str | None, workers: int | None) -> dict[str, Any]:
    from .session import interruptible

    if not job.left:
        return _summary(job, {}, 0.0, interrupted=False)
    with interruptible() as interrupt:
        if ray is not None:
            found, seconds = _run_on_ray(job, loading, address=ray, workers=workers, stop=interrupt)
        else:
            found, seconds = _run_here(job, loading, stop=interrupt)
    return _summary(job, found, seconds, interrupted=interrupt.is_set())


def _run_here(job: Job, loading: Loading, *, stop: Event) -> Ran:
    from .load import load

    with load(
        loading.model, loading.options, pack=loading.pack, template=loading.template, purpose="a batch"
    ) as engine:
        generator = engine.batch_generator()
        if generator.together == 1 < loading.options.max_sequences:
            _say("note: prompts are answered one at a time: memory is short, or this model's cache cannot be shared")
        began = perf_counter()
        with _bar(job) as show:
            generator.on_pass = lambda progress: show(progress, engine)
            job.run(lambda requests: generator.run(requests, stop))
        seconds = perf_counter() - began
        return _figures(generator.progress, engine), seconds


def _run_on_ray(job: Job, loading: Loading, *, address: str, workers: int | None, stop: Event) -> Ran:
    from moe_local.jobs.ray_pool import Pool

    with Pool(address, workers, loading, report=_say) as pool:
        began = perf_counter()
        job.run(lambda requests: pool.run(requests, stop))
        figures = {"workers": pool.size, "workers_lost": pool.lost, "new_tokens": pool.new_tokens}
        return figures, perf_counter() - began


def _say(text: str) -> None:
    from .output import stderr

    stderr.print(text, markup=False, soft_wrap=True)


def _figures(progress: Progress, engine: Engine) -> dict[str, Any]:
    from moe_local.memory.limits import peak_memory

    counters = engine.cache.counters
    return {
        "prompt_tokens": progress.prompt_tokens,
        "shared_prompt_tokens": progress.shared_tokens,
        "new_tokens": progress.new_tokens,
        "sequences": engine.load_plan.sequences,
        "hit_rate": round(counters.hit_rate, 4),
        "bytes_read": counters.bytes_read,
        "bytes_read_per_token": round(counters.bytes_read / max(1, progress.new_tokens)),
        "stall_seconds": round(counters.stall_seconds, 3),
        "peak_memory": peak_memory(),
        "ram_budget": engine.plan.ram,
        "load_seconds": round(engine.load_seconds, 3),
    }


def _summary(job: Job, found: dict[str, Any], seconds: float, *, interrupted: bool) -> dict[str, Any]:
    new = found.get("new_tokens", 0)
    return {
        "lines": job.lines,
        "answered_before": job.before,
        "written": job.written,
        "failed": job.failed + job.failed_before,
        "left": job.left,
        "interrupted": interrupted,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(new / seconds, 3) if seconds else 0.0,
        **found,
    }


@contextmanager
def _bar(job: Job) -> Iterator[Callable[[Progress, Engine], None]]:
    """Lines done, tokens/s, hits and an estimate on stderr; nothing where that is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from .output import stderr

    columns = (
        TextColumn("answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("", total=job.lines, completed=job.before, said="")
        began = perf_counter()

        def show(progress: Any, engine: Engine) -> None:
            speed = progress.new_tokens / (perf_counter() - began)
            said = f"{speed:.1f} tokens/s · {progress.active} at once · hits {engine.cache.counters.hit_rate:.0%}"
            bar.update(task, completed=job.before + job.written, said=said)

        yield show


def _tell(summary: dict[str, Any], *, as_json: bool, on_stderr: bool) -> None:
    if as_json:
        echo_json(summary, err=on_stderr)
    else:
        _say(_sentence(summary))
    if summary["interrupted"]:
        raise typer.Exit(130)
    if summary["failed"]:
        raise typer.Exit(SOME_FAILED)


def _sentence(summary: dict[str, Any]) -> str:
    before = f", {summary['answered_before']} of them earlier" if summary["answered_before"] else ""
    done = summary["answered_before"] + summary["written"]
    parts = [f"{done} of {summary['lines']} lines{before}"]
    if summary["failed"]:
        parts.append(f"{summary['failed']} with errors")
    if "new_tokens" in summary:
        parts.append(f"{summary['new_tokens']} tokens in {summary['seconds']:.1f} s")
        parts.append(f"{summary['tokens_per_second']:.1f} tokens/s")
    if "hit_rate" in summary:
        parts.append(f"hits {summary['hit_rate']:.1%}")
        parts.append(f"{format_size(summary['bytes_read_per_token'])} read a token")
    if summary["interrupted"]:
        parts.append("interrupted; the same command goes on")
    return " · ".join(parts)
