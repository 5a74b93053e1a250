"""Embeddings left on the disk."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

from moe_local.engine import load
from moe_local.errors import StorageError
from moe_local.model.modules import EmbeddingOnDisk
from moe_local.planning.needs import Needs
from moe_local.planning.options import Options
from moe_local.planning.plan_load import plan_load
from moe_local.store import first_use, pack
from moe_local.testing import FailingDisk


def _too_little(model: Path, **options: int) -> Options:
    """A device tier one byte too small for everything."""
    needs = plan_load(model, Options(context=128)).plan.needs
    return Options(context=128, vram=needs.resident_bytes + needs.all_experts * needs.slot - 1, **options)  # type: ignore[arg-type]


def _embedding(engine: object) -> object:
    return engine.model.get_input_embeddings()  # type: ignore[attr-defined]


def test_it_says_what_it_says_with_embeddings_in_memory(mixtral: Path) -> None:
    with load(mixtral, Options(context=128)) as engine:
        assert not isinstance(_embedding(engine), EmbeddingOnDisk)
        needs, ids = engine.plan.needs, torch.randint(0, 200, (2, 9))
        with torch.no_grad():
            wanted = engine.model.get_input_embeddings()(ids)
    with load(mixtral, _too_little(mixtral)) as engine:
        embedding = _embedding(engine)
        assert isinstance(embedding, EmbeddingOnDisk) and embedding(ids).equal(wanted)
        tensors = {id(t): t for t in [*engine.model.parameters(), *engine.model.buffers()]}
        assert (
            sum(t.nbytes for t in tensors.values()) == engine.plan.needs.dense == needs.dense - needs.embedding_rows
        )


def test_a_store_s_rows_are_read_and_scaled(mixtral: Path, tmp_path: Path) -> None:
    store = pack(first_use.plan(mixtral, first_use.choose("int8")), tmp_path / "store")
    ids = torch.tensor([[5, 3, 5, 0]])
    with load(store, Options(context=128)) as engine:
        wanted = engine.model.get_input_embeddings()(ids)
        assert engine.plan.needs.embedding_rows > 0
    with load(store, _too_little(store)) as engine:
        embedding = _embedding(engine)
        assert isinstance(embedding, EmbeddingOnDisk) and embedding(ids).equal(wanted)


def test_a_tied_embedding_stays(mixtral: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(mixtral, tmp_path / "tied"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert plan_load(mixtral).plan.needs.embedding_rows > 0
    assert plan_load(copy).plan.needs.embedding_rows == 0


def test_a_row_that_cannot_be_read_is_an_error_and_no_more(mixtral: Path) -> None:
    broken = threading.Event()
    with load(
        mixtral,
        _too_little(mixtral),
        read_at=lambda reader: FailingDisk(reader, lambda number: broken.is_set()),
    ) as engine:
        ids = [4, 8, 15, 16]
        wanted = engine.model(torch.tensor([ids])).logits
        broken.set()
        with pytest.raises(StorageError, match=r"reading .* failed"):
            engine.model(torch.tensor([ids]))
        broken.clear()
        assert engine.model(torch.tensor([ids])).logits.equal(wanted)


def test_a_token_outside_the_vocabulary_is_refused(mixtral: Path) -> None:
    with load(mixtral, _too_little(mixtral)) as engine:
        embedding = engine.model.get_input_embeddings()
        for wrong in (-1, embedding.num_embeddings, 10**9):
            with pytest.raises(IndexError, match="token"):
                embedding(torch.tensor([[3, wrong]]))
        assert embedding(torch.zeros(1, 0, dtype=torch.long)).shape == (1, 0, embedding.embedding_dim)


def test_they_stay_in_memory_where_all_fits() -> None:
    needs = Needs(dense=100, kv_bytes=10, workspace=5, slot=10, experts=(8, 8), top_k=(2, 2), embedding_rows=40)
    assert needs.with_embeddings_on_disk(100 + 10 + 5 + 160) is needs
    short = needs.with_embeddings_on_disk(100 + 10 + 5 + 159)
    assert (short.dense, short.embedding_rows, short.embedding_rows_on_disk) == (60, 0, 40)
