"""The page at `/`: files of this package, under a policy that lets the browser fetch from nowhere but here."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_HTML, _CSS = "text/html; charset=utf-8", "text/css; charset=utf-8"
_SCRIPT, _IMAGE = "text/javascript; charset=utf-8", "image/svg+xml"
_INDEX = "index.html"
_FILES = {
    _INDEX: _HTML,
    "style.css": _CSS,
    "icon.svg": _IMAGE,
    "theme.js": _SCRIPT,
    "app.js": _SCRIPT,
    "dom.js": _SCRIPT,
    "numbers.js": _SCRIPT,
    "server.js": _SCRIPT,
    "key.js": _SCRIPT,
    "chat.js": _SCRIPT,
    "conversation.js": _SCRIPT,
    "message.js": _SCRIPT,
    "markdown.js": _SCRIPT,
    "blocks.js": _SCRIPT,
    "inline.js": _SCRIPT,
    "experts.js": _SCRIPT,
    "heat.js": _SCRIPT,
    "heatmap.js": _SCRIPT,
    "rates.js": _SCRIPT,
    "chart.js": _SCRIPT,
    "memory.js": _SCRIPT,
    "table.js": _SCRIPT,
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and answered in a line where nothing has changed
}


class PageFile:
    """One file of the page, read once; answers requests for it."""

    def __init__(self, content: bytes, media_type: str) -> None:
        self._content = content
        self._media_type = media_type
        self._headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def answer(self, request: Request) -> Response:
        if self._headers["ETag"] in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, media_type=self._media_type, headers=self._headers)


def page_routes() -> list[Route]:
    """`/`, and `/page/NAME` for each file of the page: no path of a request reaches the file system."""
    folder = files("moe_local.serve") / "page"
    found = {name: PageFile((folder / name).read_bytes(), media_type) for name, media_type in _FILES.items()}
    own = [Route(f"/page/{name}", file.answer, include_in_schema=False) for name, file in found.items()]
    return [Route("/", found[_INDEX].answer, include_in_schema=False), *own]
