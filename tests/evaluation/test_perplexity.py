"""Perplexity and divergence against plain transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from moe_local import Options
from moe_local.engine import load
from moe_local.errors import CheckpointError, MoeLocalError, StorageError
from moe_local.evaluation import reference as reference_module
from moe_local.evaluation.perplexity import check_comparable, check_tokens, evaluate
from moe_local.evaluation.reference import Reference, reference_file
from moe_local.testing import architecture, write_tiny_checkpoint
from moe_local.testing.tokenizer import tiny_tokenizer

VOCABULARY = 320
IDS = torch.randint(6, 270, (150,), generator=torch.Generator().manual_seed(3)).tolist()
OPTIONS = Options(device="cpu", context=128, experts=0.5)


def _plain(directory: Path, window: int, stride: int) -> Tensor:
    """Log-probabilities [tokens - 1, vocabulary] as the loop of transformers' documentation finds them."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    rows, previous = [], 1
    for begin in range(0, len(IDS), stride):
        end = min(begin + window, len(IDS))
        with torch.no_grad():
            logits = model(torch.tensor([IDS[begin:end]])).logits[0]
        rows.append(logits[previous - begin - 1 : end - begin - 1].log_softmax(-1))
        previous = end
        if end == len(IDS):
            break
    return torch.cat(rows)


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (32, 31), (128, 1), (500, 250)])
def test_perplexity_is_transformers(qwen: Path, window: int, stride: int) -> None:
    wanted = -_plain(qwen, window, stride).gather(1, torch.tensor(IDS[1:])[:, None]).mean().item()
    with load(qwen, OPTIONS) as engine:
        found = evaluate(engine.model, IDS, window, stride)
    assert found.tokens == len(IDS) - 1
    assert found.perplexity == pytest.approx(math.exp(wanted), rel=1e-4)
    assert found.divergence is None


def test_large_windows_in_chunks_are_the_same(qwen: Path) -> None:
    with load(qwen, OPTIONS) as engine:
        whole = evaluate(engine.model, IDS, 100, 50)
        for chunk in (7, 49, 50, 99):
            assert evaluate(engine.model, IDS, 100, 50, chunk=chunk).nll == pytest.approx(whole.nll, rel=1e-6)


def test_divergence_from_another_model(qwen: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(architecture("qwen3_moe"), tmp_path / "other", seed=1)
    with reference_file(tmp_path / "home", len(IDS) - 1, VOCABULARY) as kept:
        with load(other, OPTIONS) as engine:
            evaluate(engine.model, IDS, 64, 32, keep=kept)
        kept.rewind()
        with load(qwen, OPTIONS) as engine:
            found = evaluate(engine.model, IDS, 64, 32, against=kept).divergence
    p, q = _plain(other, 64, 32), _plain(qwen, 64, 32)
    assert found is not None
    assert found.kl == pytest.approx((p.exp() * (p - q)).sum(1).mean().item(), rel=1e-4)
    assert found.agreement == pytest.approx((p.argmax(1) == q.argmax(1)).double().mean().item())
    assert list((tmp_path / "home").iterdir()) == []


def test_a_model_does_not_diverge_from_itself(qwen: Path, tmp_path: Path) -> None:
    with reference_file(tmp_path, len(IDS) - 1, VOCABULARY) as kept, load(qwen, OPTIONS) as engine:
        evaluate(engine.model, IDS, 64, 32, keep=kept)
        kept.rewind()
        found = evaluate(engine.model, IDS, 64, 32, against=kept).divergence
    assert found is not None
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.agreement == 1


def test_masked_tokens_do_not_make_it_nan() -> None:
    from moe_local.evaluation.perplexity import _compare

    reference = torch.tensor([[0.0, 1.0, -math.inf]]).log_softmax(-1)
    terms, agreed = _compare(reference, reference)
    kl = float(terms.sum())
    assert (kl, agreed) == (0, 1)


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_module.shutil, "disk_usage", lambda folder: Usage(1 << 29))
    with pytest.raises(StorageError, match="--limit 26"), reference_file(tmp_path, 10_000, 2_500_000):
        pass


class Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_reference_cut_short_is_noticed(tmp_path: Path) -> None:
    with (tmp_path / "short").open("w+b") as file:
        kept = Reference(file, 8)
        kept.write(torch.zeros(2, 8))
        kept.rewind()
        assert kept.read(2).shape == (2, 8)
        with pytest.raises(StorageError):
            kept.read(1)


def test_damaged_weights_are_said_to_be(qwen: Path) -> None:
    with load(qwen, OPTIONS) as engine:
        with torch.no_grad():
            engine.model.get_input_embeddings().weight[IDS[0]] = math.nan
        with pytest.raises(CheckpointError, match="NaN"):
            evaluate(engine.model, IDS, 64, 32)


def test_tokens_the_model_does_not_have(qwen: Path) -> None:
    with load(qwen, OPTIONS) as engine, pytest.raises(CheckpointError, match="token 320"):
        check_tokens(engine.model, [1, 320])


def test_vocabularies_must_agree() -> None:
    one: Any = tiny_tokenizer()
    more: Any = tiny_tokenizer()
    more.add_tokens(["<|more|>"])
    check_comparable(one, more, (320, 320))
    check_comparable(more, one, (320, 320))
    with pytest.raises(MoeLocalError, match="320 and 321"):
        check_comparable(one, one, (320, 321))
    with pytest.raises(MoeLocalError, match="two numbers"):
        check_comparable(one, Swapped(one), (320, 320))


class Swapped:
    """A tokenizer with two ids exchanged."""

    def __init__(self, tokenizer: Any) -> None:
        self.vocabulary = dict(tokenizer.get_vocab())
        self.vocabulary["a"], self.vocabulary["b"] = self.vocabulary["b"], self.vocabulary["a"]

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def test_the_standard_error_is_that_of_the_tokens(qwen: Path) -> None:
    ids = list(range(5, 45))
    with load(qwen, Options(context=64, dtype="float32")) as engine:
        result = evaluate(engine.model, ids, 40, 20)
        logits = engine.model(torch.tensor([ids])).logits.detach()[0, :-1].float()
    scores = -logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).double()
    assert result.nll == pytest.approx(float(scores.mean()), rel=1e-4)
    assert result.nll_error == pytest.approx(float(scores.std(correction=0)) / len(scores) ** 0.5, rel=1e-3)
    assert result.perplexity_error == pytest.approx(result.perplexity * result.nll_error)
