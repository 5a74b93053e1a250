"""The checkpoint that a model of the hub will be, from the headers of its weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from moe_local.checkpoint.files import Checkpoint
from moe_local.checkpoint.header import TensorEntry, header_length, parse_header, read_header
from moe_local.checkpoint.offer import HubFile, Offer

_AT_ONCE = 8  # headers
_USUAL = 1 << 18  # bytes of a header


def promised(offer: Offer) -> Checkpoint:
    """The checkpoint that it will be, from the headers of its weights: of those that are not here, only these are
    fetched.

    Raises CheckpointError as `Checkpoint.open` does, and what the hub's client raises.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        headers = list(pool.map(lambda file: _header(offer, file), offer.weights))
    names = [offer.place(file).name for file in offer.weights]
    versions = {offer.place(file).name: file.version for file in (*offer.small, *offer.weights)}
    return Checkpoint.promised(offer.folder, dict(zip(names, headers, strict=True)), versions)


def _header(offer: Offer, file: HubFile) -> dict[str, TensorEntry]:
    place = offer.place(file)
    if place.exists():
        return read_header(place)
    begin = _beginning(offer, file, min(_USUAL, file.size))
    length = header_length(place, begin[:8], file.size)
    if len(begin) < 8 + length:
        begin = _beginning(offer, file, 8 + length)
    return parse_header(place, begin[8 : 8 + length], length, file.size)


def _beginning(offer: Offer, file: HubFile, count: int) -> bytes:
    """The first `count` bytes of a file of the hub, or all of it where it is shorter."""
    found = bytearray()
    with _asked(offer, file, count) as response:
        for piece in response.iter_bytes():
            found += piece
            if len(found) >= count:  # a server may send more than it was asked for
                break
    return bytes(found[:count])


@contextmanager
def _asked(offer: Offer, file: HubFile, count: int) -> Iterator[Any]:
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public in all but its stubs
        build_hf_headers,
        hf_raise_for_status,
    )

    url = hf_hub_url(offer.name.repo, file.path, revision=offer.snapshot.name)
    headers = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    patience = constants.HF_HUB_DOWNLOAD_TIMEOUT  # seconds of silence; the session itself has none
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=patience) as response:
        hf_raise_for_status(response)
        yield response
