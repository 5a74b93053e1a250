"""From what a user types to a model on this machine: a name, its end after the owner, or the beginning of either."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from moe_local.checkpoint.hub import cached_folder, local_path
from moe_local.checkpoint.names import EXAMPLE, HubName, parse_hub_name
from moe_local.errors import CheckpointError
from moe_local.registry import closest
from moe_local.store.known import STORE, Known, known_models
from moe_local.store.store_index import stores as all_stores


def find_model(text: str, *, stores: bool = True, elsewhere: Callable[[], Iterable[str]] = tuple) -> str | Path:
    """What a user means by MODEL: a path that is here, a hub's name as it is, or what of this machine's models it
    is short for. A hub's model of which only stores are left is the one used last, unless `stores` is False.

    Raises CheckpointError that lists them where there are several, and for what is nothing; it may then suggest one
    of the hub's models that are known `elsewhere`.
    """
    if local_path(text) is not None:
        return text
    name = parse_hub_name(text)
    known = known_models()
    if name is not None:
        left = _left_of(name, known) if stores else None
        same = next((each.name for each in known if each.name.casefold() == str(name).casefold()), text)
        return left or same
    found = matching(text, known)
    if not found:
        raise CheckpointError(f"{text} does not exist", remedy=_remedy(text, known, elsewhere()))
    if len({each.model for each in found}) > 1:
        raise CheckpointError(f"{text} may be {listed(found)}", remedy="write more of the name")
    originals = [each for each in found if each.kind != STORE]
    chosen = (originals or found)[0]
    return chosen.name if parse_hub_name(chosen.name) is not None else chosen.where


def find_known(text: str) -> Known:
    """The one of this machine's models that is meant, a store of it being another. Raises CheckpointError."""
    known = known_models()
    found = matching(text, known)
    if not found:
        raise CheckpointError(f"there is no model {text!r} here", remedy=_remedy(text, known))
    if len(found) > 1:
        raise CheckpointError(f"{text} may be {listed(found)}", remedy="write the whole name")
    return found[0]


def find_left_store(name: HubName) -> Path | None:
    """The whole store of a hub's model, the one used last; None where its download is here."""
    return _left_of(name, known_models())


def _left_of(name: HubName, known: Sequence[Known]) -> Path | None:
    """The store of the revision and folder that are meant, else of a model that was named without either."""
    whole = [each.where for each in known if each.kind == STORE and each.whole]
    if (exact := _packed_from(name)) & set(whole):
        return next(store for store in whole if store in exact)
    of_it = [each for each in known if each.model == str(name)]
    left = [each.where for each in of_it if each.whole] if all(each.kind == STORE for each in of_it) else []
    return left[0] if left else None


def _packed_from(name: HubName) -> set[Path]:
    """The stores of a folder or file of the hub's cache; none where its weights are still there."""
    snapshot = cached_folder(name)
    source = None if snapshot is None else (snapshot / name.path).resolve()
    if source is None or source.is_file() or any(source.glob("*.safetensors")):
        return set()
    return {stored.directory for stored in all_stores() if stored.source == str(source)}


def matching(text: str, known: Iterable[Known]) -> list[Known]:
    """Those of exactly this name; else those that are called so without their owner; else those that begin so."""
    wanted, models = text.casefold(), list(known)
    for matches in (
        lambda each: each.name == text,
        lambda each: wanted in (each.name.casefold(), each.short.casefold()),
        lambda each: each.name.casefold().startswith(wanted) or each.short.casefold().startswith(wanted),
    ):
        if found := [each for each in models if matches(each)]:
            return found
    return []


def listed(found: Sequence[Known]) -> str:
    """Names for an error: at most six."""
    names = [each.name for each in found[:6]] + (["others"] if len(found) > 6 else [])
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _remedy(text: str, known: Iterable[Known], elsewhere: Iterable[str] = ()) -> str:
    full = {short: name for name in elsewhere for short in (name, name.rpartition("/")[2])}
    close = closest(text, [*(name for each in known for name in (each.name, each.short)), *full])
    begin = f"did you mean {full.get(close[0], close[0])}? " if close else ""
    return f"{begin}name a directory, a hub id like {EXAMPLE}, or a model that `moe-local list` shows"
