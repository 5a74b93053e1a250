"""`moe-local bench`: where the hits, the bytes and the time go, on your model, your prompts and your memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from moe_local import __version__
from moe_local.errors import MoeLocalError

from . import options as opt
from .bench_output import OutputFlags
from .commands import Command
from .completion import complete_model
from .failure import guarded
from .output import echo_json
from .replay_flags import ReplayFlags
from .routing_flags import RoutingFlags
from .serve_bench import serve
from .spread import spread
from .sweep import Asked, configurations, measured, swept
from .workload import WorkloadFlags

if TYPE_CHECKING:
    from moe_local.planning.options import Options

_LIVE = "live"


class _LiveByDefault(TyperGroup):
    """`bench MODEL` is `bench live MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [_LIVE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_LiveByDefault,
    help="Measure where the hits, the bytes and the time go. `bench MODEL` is `bench live MODEL`.",
)


def live(
    model: opt.Model = None,
    *,
    workload: WorkloadFlags,
    format: Annotated[
        str | None, typer.Option(help="Pack the model into int4, int8, nf4 ... first; may be a list.")
    ] = None,
    interleave: Annotated[
        bool,
        typer.Option(
            "--interleave", help="Of several configurations each has a process for each trial, and they take turns."
        ),
    ] = False,
    output: OutputFlags,
    pack: opt.Pack = True,
    flags: opt.LoadFlags,
) -> None:
    """Run a model on some prompts and measure: tokens/s, latencies, hits by tier and layer, bytes over each link,
    stalls, memory against its budget.

    One pass warms up from a cold cache, then --repeat passes are timed; figures are medians with their range. --ram,
    --vram, --experts, --policy, --misses and --format take lists, like `--ram 4GiB,8GiB --policy lru,lfru`: each
    combination is measured in a process of its own, one after the other; what else the machine does meanwhile is in
    their ratio then. With --interleave it is not, and from six trials on the ratio has an interval. Examples:
    `moe-local bench --experts 25%,50%,100%`, `moe-local bench Qwen/Qwen3-30B-A3B --prompts questions.jsonl --by
    category --html report.html`.
    """
    chosen = configurations(flags, format)
    if len(chosen) == 1 and interleave:
        raise MoeLocalError(
            "--interleave is for several configurations", remedy="give a list, like --policy lru,lfru"
        )
    if len(chosen) > 1 and workload.record is not None:
        raise MoeLocalError("--record takes one configuration, and this is a sweep", remedy="record one of them")
    named = None if model is None else _named(model, chosen[0][0].options(), workload, pack=pack and format is None)
    asked = Asked(named, workload, pack)
    one = len(chosen) == 1
    report = measured(asked, *chosen[0]) if one else swept(asked, chosen, interleaved=interleave)
    output.tell(report)
    if failed := [run["error"] for run in report["runs"] if "error" in run]:
        raise MoeLocalError(f"{len(failed)} of {len(report['runs'])} configurations failed", remedy=failed[0])


def _named(model: str, options: Options, workload: WorkloadFlags, *, pack: bool) -> str:
    """Where MODEL is, downloaded if need be: before that a workload that makes no sense is refused."""
    from .load import located

    def refuse(folder: Path) -> None:
        workload.request()

    return located(model, options, refuse, pack=pack)


def replay(
    trace: Annotated[Path, typer.Argument(help="A trace: .npz, .npz.xz, or the .part of a recording.")],
    *,
    asked: ReplayFlags,
    output: OutputFlags,
) -> None:
    """Replay a trace under every policy and capacity, and Belady's optimum: what more memory or another policy buys.

    Example: `moe-local bench replay trace.npz --capacity 10%,25%,50% --policy lru,lfru --plot pictures`.
    """
    from moe_local.bench.replay_report import replay_report
    from moe_local.bench.trace import read_trace

    from .load import progress

    question, found = asked.question(), read_trace(trace)
    with progress() as bar:
        report = replay_report(found if asked.limit is None else found.first(asked.limit), question, __version__, bar)
    output.tell(report)


def routing(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A model, or a file that --save made of one. Default: the demo model.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ] = None,
    *,
    asked: RoutingFlags,
    output: OutputFlags,
    pack: opt.Pack = True,
    flags: opt.LoadFlags,
) -> None:
    """Compare how routing strategies of the literature would page: what each makes of this model's router scores.

    Balance, tokens that no expert sees, different experts a token and a batch, and hits by capacity. The model was
    trained with its own routing: the figures say what a strategy does to memory, nothing of what it does to answers.
    Example: `moe-local bench routing --text wiki.test.raw --save scores.npz`.
    """
    from moe_local.bench.routing_report import routing_report
    from moe_local.bench.scores import read_scores, write_scores

    from .load import progress
    from .routing import record

    question = asked.question(flags.policy)
    scores = (
        read_scores(Path(model))
        if model is not None and Path(model).is_file() and Path(model).suffix == ".npz"
        else record(model, asked, flags.options(), pack=pack)
    )
    if asked.save is not None:
        write_scores(scores, asked.save)
    with progress() as report:
        found = routing_report(scores, question, __version__, report)
    output.tell(found)


def compare(
    before: Annotated[Path | None, typer.Argument(help="What `bench --json` printed.", show_default=False)] = None,
    after: Annotated[Path | None, typer.Argument(help="And what it printed later.", show_default=False)] = None,
    within: Annotated[Path | None, typer.Option(help="Compare the runs of this one report.")] = None,
    by: Annotated[str | None, typer.Option(help="The setting that they are to differ by, like policy.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Compare two reports, or the runs of one: ratios, and whether they are more than noise. They are where the
    trials' ranges do not touch; of trials that took turns (`bench --interleave`) where the ratio's 95% interval
    leaves out 1. What else differs between two reports is said first.

    Examples: `moe-local bench compare before.json after.json`, `moe-local bench compare --within sweep.json --by
    policy`.
    """
    if (within is None) != (by is None):
        raise MoeLocalError("--within and --by belong together", remedy="give both, or two reports")
    if (within is None) == (before is None) or (before is None) != (after is None):
        raise MoeLocalError("two reports are compared, or the runs of one", remedy="give two files, or --within FILE")
    from moe_local.bench.compare import Compared, compare_within
    from moe_local.bench.compare import compare as compared
    from moe_local.bench.report import read_report

    if before is not None and after is not None:
        found = compared(read_report(before), read_report(after))
    else:
        assert within is not None and by is not None
        found = Compared([], compare_within(read_report(within), by))
    if as_json:
        echo_json(
            {
                "differences": [one._asdict() for one in found.differences],
                "comparisons": [{**vars(one), "ratio": one.ratio} for one in found.comparisons],
            }
        )
        return
    from .bench_tables import show_comparison

    show_comparison(found)


for command in (live, replay, routing, serve, compare):
    app.command(cls=Command)(guarded(spread(command)))
