"""`moe-local bench`: where the hits, the bytes and the time go, on your model, your prompts and your memory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from moe_local import __version__
from moe_local.errors import MoeLocalError
from moe_local.units import parse_share

from . import options as opt
from .failure import guarded
from .naming import NamingCommand
from .options import spread
from .output import echo_json

if TYPE_CHECKING:
    from moe_local.bench.live import Request
    from moe_local.planning.options import Options

_LIVE = "live"
_SWEPT = ("ram", "vram", "experts", "policy", "prefetch", "io")
OUTPUT = "Output"

Plot = Annotated[
    Path | None, typer.Option(help="Draw pictures (PNG and SVG) into this folder.", rich_help_panel=OUTPUT)
]
Html = Annotated[
    Path | None, typer.Option(help="Write one page with all tables and pictures.", rich_help_panel=OUTPUT)
]
Csv = Annotated[Path | None, typer.Option(help="Write a table of the results.", rich_help_panel=OUTPUT)]


class _LiveByDefault(TyperGroup):
    """`bench MODEL` is `bench live MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = [_LIVE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_LiveByDefault,
    help="Measure where the hits, the bytes and the time go. `bench MODEL` is `bench live MODEL`.",
)


def live(
    model: opt.Model = None,
    *,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts: JSON lines (.jsonl, .jsonl.gz) or plain text, one a line. Default: eight of ours."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many prompts.")] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens to write to each prompt; answers do not stop sooner.")] = 64,
    repeat: Annotated[int, typer.Option(help="Timed passes through all prompts, after one that is not.")] = 3,
    by: Annotated[
        str | None, typer.Option(help="Compare the experts that prompts use by this field of theirs, like category.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Keep the warm-up pass's routing as a trace, to replay.", rich_help_panel=OUTPUT),
    ] = None,
    route: Annotated[
        Path | None, typer.Option(help="Route as this trace says, in place of the model's routers.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Pack the model into int4, int8, nf4 ... first; may be a list.")
    ] = None,
    plot: Plot = None,
    html: Html = None,
    csv: Csv = None,
    as_json: opt.Json = False,
    pack: opt.Pack = True,
    flags: opt.LoadFlags,
) -> None:
    """Run a model on some prompts and measure: tokens/s, latencies, hits by tier and layer, bytes over each link,
    stalls, memory against its budget.

    One pass warms up from a cold cache, then --repeat passes are timed; figures are medians with their range. --ram,
    --vram, --experts, --policy and --format take lists, like `--ram 4GiB,8GiB --policy lru,lfru`: each combination is
    measured in a process of its own. Examples: `moe-local bench --experts 25%,50%,100%`, `moe-local bench
    Qwen/Qwen3-30B-A3B --prompts questions.jsonl --by category --html report.html`.
    """
    asked = _Asked(model, prompts, limit, new_tokens, repeat, by, record, route, pack)
    configurations = _configurations(flags, format)
    if len(configurations) == 1:
        report = _measured(asked, *configurations[0])
    elif record is not None:
        raise MoeLocalError("--record takes one configuration, and this is a sweep", remedy="record one of them")
    else:
        report = _swept(asked, configurations)
    _write(report, plot, html, csv)
    if as_json:
        echo_json(report)
    else:
        from .bench_tables import show

        show(report)
    if failed := [run["error"] for run in report["runs"] if "error" in run]:
        raise MoeLocalError(f"{len(failed)} of {len(report['runs'])} configurations failed", remedy=failed[0])


@dataclass(frozen=True)
class _Asked:
    """What every configuration of a sweep shares, as typed."""

    model: str | None
    prompts: Path | None
    limit: int | None
    new_tokens: int
    repeat: int
    by: str | None
    record: Path | None
    route: Path | None
    pack: bool

    def request(self) -> Request:
        from moe_local.bench.live import Request
        from moe_local.bench.trace import read_trace
        from moe_local.bench.workload import OWN, read_prompts

        if self.limit is not None and self.limit < 1:
            raise MoeLocalError(f"--limit {self.limit} leaves no prompt", remedy="give at least 1")
        prompts = OWN[: self.limit] if self.prompts is None else read_prompts(self.prompts, self.limit)
        route = None if self.route is None else read_trace(self.route)
        request = Request(prompts, self.new_tokens, self.repeat, self.by, self.record, route)
        if self.by is not None:
            for prompt in prompts:
                prompt.group(self.by)
        return request

    def arguments(self) -> list[str]:
        """The same on a command line."""
        given = {
            "--prompts": self.prompts,
            "--limit": self.limit,
            "--new-tokens": self.new_tokens,
            "--repeat": self.repeat,
            "--by": self.by,
            "--route": self.route,
        }
        options = [str(part) for name, value in given.items() if value is not None for part in (name, value)]
        return [*([self.model] if self.model else []), *options, "--pack" if self.pack else "--no-pack"]


_Configuration = tuple[opt.LoadFlags, str | None]


def _configurations(flags: opt.LoadFlags, format: str | None) -> list[_Configuration]:
    """Every combination of what was given as lists."""
    lists = [(getattr(flags, name) or "").split(",") for name in _SWEPT]
    combined: list[dict[str, Any]] = [
        {name: value.strip() or None for name, value in zip(_SWEPT, values, strict=True)}
        for values in itertools.product(*lists)
    ]
    found = [replace(flags, **values) for values in combined]
    formats = [None] if format is None else [name.strip() for name in format.split(",")]
    for one in found:
        one.options()  # refuses what makes no sense before anything runs
    return list(itertools.product(found, formats))


def _measured(asked: _Asked, flags: opt.LoadFlags, format: str | None) -> dict[str, Any]:
    """The report of one configuration, run here."""
    from moe_local.bench.live import measure
    from moe_local.bench.report import live_report

    from .session import load, progress

    request, options = asked.request(), flags.options()
    with load(asked.model, options, pack=asked.pack, format=format) as engine:
        with progress() as report:
            run = measure(engine, request, report)
        needs = engine.plan.needs
        model = {
            "name": engine.load_plan.checkpoint.directory.name,
            "layers": len(needs.experts),
            "experts": list(needs.experts),
            "top_k": max(needs.top_k),
            "record_bytes": needs.slot,
            "format": engine.load_plan.expert_format,
            "config_hash": engine.load_plan.config_hash,
        }
    config = {**_config(options), "format": format}
    workload = {
        "prompts": len(request.prompts),
        "new_tokens": request.new_tokens,
        "repeat": request.repeat,
        "route": None if asked.route is None else asked.route.name,
    }
    return live_report(__version__, {**model, "workload": workload}, [{"config": config, **run}])


def _config(options: Options) -> dict[str, Any]:
    return {
        "ram": options.ram,
        "vram": options.vram,
        "experts": options.experts,
        "policy": options.policy,
        "prefetch": options.prefetch,
        "io": options.io,
        "context": options.context,
        "device": options.device,
        "dtype": options.dtype,
    }


def _swept(asked: _Asked, configurations: list[_Configuration]) -> dict[str, Any]:
    """The report of several, each in a process of its own: so that each has its own peak of memory."""
    from .session import progress

    asked.request()  # refuses what makes no sense before anything runs
    head: dict[str, Any] | None = None  # the first report that there is
    runs: list[dict[str, Any]] = []
    with progress() as show:
        for number, (flags, format) in enumerate(configurations):
            arguments = _arguments(flags, format)
            show(" ".join(arguments), number / len(configurations))
            report, error = _child([*asked.arguments(), *arguments])
            if report is None:
                runs.append({"config": {**_config(flags.options()), "format": format}, "error": error})
            else:
                head = head or report
                runs += report["runs"]
    if head is None:
        raise MoeLocalError(f"every configuration failed; the first: {runs[0]['error']}")
    return {**head, "runs": runs}


def _arguments(flags: opt.LoadFlags, format: str | None) -> list[str]:
    given = {f"--{name}": value for name, value in vars(flags).items() if not isinstance(value, bool)}
    if format is not None:
        given["--format"] = format
    switches = [f"--{name}" for name, value in vars(flags).items() if value is True]
    return [str(part) for name, value in given.items() if value is not None for part in (name, value)] + switches


def _child(arguments: list[str]) -> tuple[dict[str, Any] | None, str]:
    """A report, or the error that there was instead."""
    command = [sys.executable, "-m", "moe_local.cli.main", "bench", _LIVE, *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            out, err = child.communicate()
        except BaseException:
            child.terminate()
            raise
    if child.returncode == 0:
        return json.loads(out), ""
    errors = [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]
    return None, errors[-1] if errors else f"exit code {child.returncode}"


def _write(report: Mapping[str, Any], plot: Path | None, html: Path | None, csv: Path | None) -> None:
    from .session import stderr

    if csv is not None:
        from moe_local.bench.report import write_csv

        write_csv(report, csv)
    if html is not None:
        from moe_local.bench.page import html as page
        from moe_local.bench.report import write_text

        write_text(html, page(report))
    if plot is not None:
        from moe_local.bench.pictures import draw

        drawn = draw(report, plot)
        stderr.print(f"{len(drawn)} pictures in {plot}", markup=False)


def replay(
    trace: Annotated[Path, typer.Argument(help="A trace: .npz, .npz.xz, or the .part of a recording.")],
    capacity: Annotated[
        str, typer.Option(help="Shares of the experts that the fastest tier holds.")
    ] = "12.5%,25%,50%,75%",
    policy: Annotated[str, typer.Option(help="A list, or all; Belady's optimum is always there.")] = "all",
    scope: Annotated[
        str, typer.Option(help="layer: each layer has its share; global: all share one; or both.")
    ] = "layer",
    host: Annotated[str | None, typer.Option(help="Share of the experts in a RAM tier below, like 80%.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many prompts.")] = None,
    predictor: Annotated[
        str | None,
        typer.Option(help="Also how right these were about the next layer's experts: a list, or all."),
    ] = None,
    by: Annotated[
        bool, typer.Option("--by-name", help="Compare prompts by the part of their names before the first / or |.")
    ] = False,
    profile: Annotated[
        str | None, typer.Option(help="Predict tokens/s on this machine (`moe-local doctor` lists them).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Whose sizes to predict with, as in `moe-local plan`. Default: the trace's model."),
    ] = None,
    plot: Plot = None,
    html: Html = None,
    csv: Csv = None,
    as_json: opt.Json = False,
) -> None:
    """Replay a trace under every policy and capacity, and Belady's optimum: what more memory or another policy buys.

    Example: `moe-local bench replay trace.npz --capacity 10%,25%,50% --policy lru,lfru --plot pictures`.
    """
    from moe_local.bench.replay_report import Question, replay_report
    from moe_local.bench.trace import read_trace

    from .session import progress

    question = Question(
        capacities=tuple(parse_share(share.strip()) for share in capacity.split(",")),
        policies=tuple(name.strip() for name in policy.split(",")),
        scopes=("layer", "global") if scope == "both" else (scope,),
        host=None if host is None else parse_share(host),
        predictors=() if predictor is None else tuple(name.strip() for name in predictor.split(",")),
        by_name=by,
        profile=profile,
        model=model,
    )
    if limit is not None and limit < 1:
        raise MoeLocalError(f"--limit {limit} leaves no prompt", remedy="give at least 1")
    found = read_trace(trace)
    with progress() as bar:
        report = replay_report(found if limit is None else found.first(limit), question, __version__, bar)
    _write(report, plot, html, csv)
    if as_json:
        echo_json(report)
    else:
        from .bench_tables import show

        show(report)


def compare(
    before: Annotated[Path, typer.Argument(help="What `bench --json` printed.")],
    after: Annotated[Path, typer.Argument(help="And what it printed later.")],
    as_json: opt.Json = False,
) -> None:
    """Compare two reports: ratios of medians, and whether they are more than noise (the trials' ranges do not touch).

    Example: `moe-local bench compare before.json after.json`.
    """
    from moe_local.bench.compare import compare as compared
    from moe_local.bench.report import read_report

    found = compared(read_report(before), read_report(after))
    if as_json:
        echo_json([{**vars(one), "ratio": one.ratio} for one in found])
    else:
        from .bench_tables import show_comparison

        show_comparison(found)


for command in (live, replay, compare):
    app.command(cls=NamingCommand)(guarded(spread(command)))
