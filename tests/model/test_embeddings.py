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
from moe_local.generation.sampling import Sampling
from moe_local.model.modules import EmbeddingOnDisk
from moe_local.planning.needs import Needs
from moe_local.planning.options import Options
from moe_local.planning.plan_load import plan_load
from moe_local.store import first_use, pack
from moe_local.testing import FailingDisk, architecture, architectures, tiny_config, tiny_tokenizer
from moe_local.testing.pretend_cuda import pretend_cuda


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


def _ngrams(folder: Path, split: int = 3) -> Path:
    """A model with a table of n-grams larger than its vocabulary, published in parts."""
    found = architecture("qwen4_exp")
    config = tiny_config(found)
    text = config.get_text_config()
    text.ngram_vocab_size_base, text.split_ngram_parts = 300, split
    text.make_ngram_vocab_size_divisible_by = 6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = found.model_class(config).eval()
    model.save_pretrained(folder, max_shard_size=100_000)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _tables(engine: object) -> list[str]:
    modules = engine.model.named_modules()  # type: ignore[attr-defined]
    return [path.rpartition(".")[2] for path, module in modules if isinstance(module, EmbeddingOnDisk)]


needs_ngrams = pytest.mark.skipif(
    not any(found.name == "qwen4_exp" for found in architectures()),
    reason="this transformers has no model of n-grams",
)


@needs_ngrams
@pytest.mark.parametrize("packed", [False, True])
def test_tables_of_ngrams_are_read_by_rows_from_their_parts(tmp_path: Path, packed: bool) -> None:
    model = _ngrams(tmp_path / "model")
    if packed:
        model = pack(first_use.plan(model, first_use.choose("fp32", dense="keep")), tmp_path / "store")
    ids = torch.tensor([[3, 7, 9, 9, 11, 250, 4, 3, 7, 9]])
    with load(model, Options(context=128)) as engine, torch.no_grad():
        assert not _tables(engine)
        wanted = engine.model(ids).logits
    with load(model, _too_little(model)) as engine, torch.no_grad():
        assert sorted(_tables(engine)) == ["embed_tokens", "ngram_embedding"]
        torch.testing.assert_close(engine.model(ids).logits, wanted)
        generated = engine.generate([3, 7, 9], Sampling(max_new_tokens=6, temperature=0)).token_ids
    with load(model, Options(context=128)) as engine:
        assert engine.generate([3, 7, 9], Sampling(max_new_tokens=6, temperature=0)).token_ids == generated


def test_with_a_gpu_too(mixtral: Path) -> None:
    """What short VRAM does not hold of embeddings is read from the disk, and said the same."""
    sampling = Sampling(max_new_tokens=5, temperature=0)
    with load(mixtral, Options(context=128, device="cpu")) as engine:
        wanted = engine.generate([4, 8, 15], sampling).token_ids
    with pretend_cuda(), load(mixtral, Options(context=128, device="cuda", experts=1.0)) as engine:
        needs = engine.plan.needs
        assert not isinstance(_embedding(engine), EmbeddingOnDisk)
    with pretend_cuda():
        overhead = plan_load(mixtral, Options(context=128, device="cuda")).plan.vram_overhead
        short = needs.resident_bytes + needs.all_experts * needs.slot - 1 + overhead
        with load(mixtral, Options(context=128, device="cuda", vram=short)) as engine:
            assert isinstance(_embedding(engine), EmbeddingOnDisk)
            assert engine.generate([4, 8, 15], sampling).token_ids == wanted
