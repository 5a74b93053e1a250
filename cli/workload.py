"""What `bench live` runs a model on, as typed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_local.errors import MoeLocalError

from .bench_output import OUTPUT

if TYPE_CHECKING:
    from moe_local.bench.live import Request


@dataclass(frozen=True)
class WorkloadFlags:
    """Prompts, how often they run, and where each token goes."""

    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts: JSON lines (.jsonl, .jsonl.gz) or plain text, one a line. Default: eight of ours."
        ),
    ] = None
    limit: Annotated[int | None, typer.Option(help="Use the first so many prompts.")] = None
    new_tokens: Annotated[int, typer.Option(help="Tokens to write to each prompt; answers do not stop sooner.")] = 64
    repeat: Annotated[int, typer.Option(help="Timed passes through all prompts, after one that is not.")] = 3
    by: Annotated[
        str | None, typer.Option(help="Compare the experts that prompts use by this field of theirs, like category.")
    ] = None
    record: Annotated[
        Path | None,
        typer.Option(help="Keep the warm-up pass's routing as a trace, to replay.", rich_help_panel=OUTPUT),
    ] = None
    route: Annotated[Path | None, typer.Option(help="Route as this trace says, in place of the model's routers.")] = (
        None
    )

    def request(self) -> Request:
        """What was typed, understood. Raises MoeLocalError naming what is wrong."""
        from moe_local.bench.live import Request
        from moe_local.bench.trace import read_trace
        from moe_local.bench.workload import OWN, read_prompts

        assert_some(self.limit)
        prompts = OWN[: self.limit] if self.prompts is None else read_prompts(self.prompts, self.limit)
        route = None if self.route is None else read_trace(self.route)
        request = Request(prompts, self.new_tokens, self.repeat, self.by, self.record, route)
        if self.by is not None:
            for prompt in prompts:
                prompt.group(self.by)
        return request

    def arguments(self) -> list[str]:
        """The same on the command line of a process that records nothing."""
        given = {
            "--prompts": self.prompts,
            "--limit": self.limit,
            "--new-tokens": self.new_tokens,
            "--repeat": self.repeat,
            "--by": self.by,
            "--route": self.route,
        }
        return [str(part) for name, value in given.items() if value is not None for part in (name, value)]


def assert_some(limit: int | None) -> None:
    """Raises MoeLocalError for a --limit that leaves no prompt."""
    if limit is not None and limit < 1:
        raise MoeLocalError(f"--limit {limit} leaves no prompt", remedy="give at least 1")
