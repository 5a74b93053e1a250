"""`moe-local serve`: a model behind the protocols of OpenAI and Anthropic, and a page to look at."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_local.errors import MoeLocalError
from moe_local.serve.running import clear
from moe_local.units import MIB, parse_size

from . import options as opt
from .loading import announced

if TYPE_CHECKING:
    from moe_local.serve.settings import ServeSettings

SERVER = "Server"
LIMITS = "Limits"
BESIDE = 128 * MIB  # for connections, answers on their way, grammars, and what threads' allocators keep
_SHARE = 4  # of a context: what a sequence has on average, so that this many fill one


@dataclass(frozen=True)
class ServerFlags:
    """Where to listen, for whom, and within which limits; as typed."""

    host: Annotated[
        str,
        typer.Option(
            help="Where to listen. Beyond this machine (0.0.0.0) a key is needed; one is made if none is given.",
            rich_help_panel=SERVER,
        ),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=SERVER)] = 8000
    api_key: Annotated[
        str | None, typer.Option(help="What clients have to say to be answered.", rich_help_panel=SERVER)
    ] = None
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name that the model goes by as well; * takes any. May be given again.",
            rich_help_panel=SERVER,
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name by which clients may call this machine. May be given again.",
            rich_help_panel=SERVER,
        ),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A web page's origin that may ask, like https://example.org. May be given again.",
            rich_help_panel=SERVER,
        ),
    ] = None
    ready_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Written with the URL once requests are answered.", rich_help_panel=SERVER),
    ] = None
    parallel: Annotated[
        int, typer.Option(min=1, help="Most answers at once; memory may allow fewer.", rich_help_panel=LIMITS)
    ] = 8
    queue: Annotated[
        int,
        typer.Option(min=1, help="Most requests that wait; others are told to try later.", rich_help_panel=LIMITS),
    ] = 128
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that a request may take.", rich_help_panel=LIMITS)
    ] = 600.0
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for the answers under way at the end.", rich_help_panel=LIMITS)
    ] = 30.0
    max_body: Annotated[str, typer.Option(help="Most bytes of a request.", rich_help_panel=LIMITS)] = "8MiB"

    def settings(self) -> ServeSettings:
        """What was typed, understood. Raises MoeLocalError naming what is wrong."""
        from moe_local.serve.settings import ServeSettings

        found = ServeSettings(
            host=self.host,
            port=self.port,
            api_key=self.api_key,
            aliases=tuple(self.alias or ()),
            hosts=tuple(self.allow_host or ()),
            origins=tuple(self.allow_origin or ()),
            queue=self.queue,
            seconds=self.timeout,
            grace=self.grace,
            body=parse_size(self.max_body),
        )
        if found.api_key == "":
            raise MoeLocalError("--api-key is empty", remedy="leave it out, or give one")
        return found if found.is_local or found.api_key else replace(found, api_key=secrets.token_urlsafe(24))


def serve(
    model: opt.Model = None,
    pack: opt.Pack = True,
    *,
    server: ServerFlags,
    flags: opt.LoadFlags,
    template: opt.TemplateFlags,
) -> None:
    """Serve a model to other programs: OpenAI's and Anthropic's protocols, and a page to look at.

    Many are answered at once, within the same memory: what does not fit waits, or is refused with the figures.
    Ctrl-C, SIGTERM or `moe-local stop` ends it after the answers under way.

    Examples: `moe-local serve Qwen/Qwen3-30B-A3B --ram 16GiB`, then
    `curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json'
    -d '{"messages": [{"role": "user", "content": "Hi"}]}'`, or open http://127.0.0.1:8000 in a browser.
    """
    with announced(f"loading {model or 'the demo model'} ..."):
        if server.ready_file is not None:
            clear(server.ready_file)
        settings, options, chosen = server.settings(), flags.options(), template.settings()
        from .serving import run

    context = options.context or 4096
    each = max(1, context // _SHARE)
    options = replace(options, max_sequences=server.parallel, tokens_per_sequence=each, beside=BESIDE)
    run(model, options, chosen, settings, pack=pack, ready_file=server.ready_file)
