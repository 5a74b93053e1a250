"""Perplexity of a text, and the divergence from a reference model over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe_local.errors import CheckpointError, MoeLocalError
from moe_local.evaluation.reference import Reference
from moe_local.evaluation.scoring import log_probabilities
from moe_local.evaluation.windows import windows
from moe_local.generation.encoder_decoder import assert_goes_on
from moe_local.planning.formulas import PREFILL_CHUNK

DEFAULT_WINDOW = 512


@dataclass(frozen=True)
class Divergence:
    """How far a model is from a reference, averaged over the scored tokens."""

    kl: float  # KL(reference || model), nats
    kl_error: float  # its standard error
    agreement: float  # share of tokens for which both find the same token likeliest


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text."""

    nll: float  # mean negative log-likelihood of a token, nats
    nll_error: float  # its standard error, tokens taken as independent
    tokens: int  # scored
    windows: int
    seconds: float
    divergence: Divergence | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll) if self.nll < 709 else math.inf  # where float64 ends

    @property
    def perplexity_error(self) -> float:
        """Its standard error, to first order."""
        return self.perplexity * self.nll_error

    @property
    def tokens_per_second(self) -> float:
        """Scored tokens a second: what overlaps of windows cost is in it."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def evaluate(
    model: PreTrainedModel,
    ids: Sequence[int],
    window: int,
    stride: int,
    *,
    keep: Reference | None = None,
    against: Reference | None = None,
    chunk: int = PREFILL_CHUNK,
    report: Callable[[float], None] = lambda fraction: None,
) -> Evaluation:
    """Scores every token of `ids` but the first.

    The model's log-probabilities are written to `keep`; with `against`, which another model wrote over the same
    windows, the divergence from it is found. At most `chunk` tokens go through the model at once. `report` is told
    the fraction done.
    """
    assert_goes_on(model, "perplexity")
    check_tokens(model, ids)
    parts = windows(len(ids), window, stride)
    targets = torch.tensor(list(ids))
    totals = torch.zeros(5, dtype=torch.float64)  # -log p, KL, their squares, agreements
    done = 0
    began = perf_counter()
    for part in parts:
        for position, rows in log_probabilities(model, ids, part, chunk):
            scored = -rows.gather(1, targets[position : position + len(rows), None]).double()
            totals[0] += scored.sum()
            totals[2] += scored.square().sum()
            if keep is not None:
                keep.write(rows)
            if against is not None:
                terms, agreed = _compare(against.read(len(rows)), rows)
                totals[1] += terms.sum()
                totals[3] += terms.square().sum()
                totals[4] += agreed
            done += len(rows)
        report(done / (len(ids) - 1))
    seconds = perf_counter() - began
    means = totals[:2] / done
    variances = (totals[2:4] / done - means.square()).clamp(min=0)
    (nll, kl), (nll_error, kl_error) = means.tolist(), (variances / done).sqrt().tolist()
    divergence = None if against is None else Divergence(kl, kl_error, float(totals[4]) / done)
    return Evaluation(nll, nll_error, done, len(parts), seconds, divergence)


def _compare(reference: Tensor, rows: Tensor) -> tuple[Tensor, int]:
    """KL(reference || row) of rows of log-probabilities [n, vocabulary], float64 [n]; how many agree."""
    # 0 log 0 is 0: where a model masks a token, log p is -inf, and -inf - -inf is not a number
    terms = torch.where(reference == -math.inf, 0.0, reference.exp() * (reference - rows))
    agreed = reference.argmax(dim=1) == rows.argmax(dim=1)
    return terms.double().sum(dim=1), int(agreed.sum())


def vocabulary_size(model: PreTrainedModel) -> int:
    """Entries of the model's logits."""
    head = model.get_output_embeddings()
    if head is None:
        return int(model.config.get_text_config().vocab_size)
    return int(getattr(head, "out_features", None) or head.weight.shape[0])


def check_tokens(model: PreTrainedModel, ids: Sequence[int]) -> None:
    """Raises CheckpointError for tokens that the model does not have."""
    rows = model.get_input_embeddings().weight.shape[0]
    if ids and max(ids) >= rows:
        raise CheckpointError(
            f"the text has token {max(ids)} and the model {rows} of them",
            remedy="use the tokenizer that belongs to the model",
        )


def check_comparable(
    reference: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, sizes: tuple[int, int]
) -> None:
    """Raises MoeLocalError unless a token id means the same to both models; `sizes` are their vocabularies'.

    One of the vocabularies may have tokens that the other does not name: GGUF files name every unused row.
    """
    if sizes[0] != sizes[1]:
        raise MoeLocalError(
            f"the models' vocabularies differ: {sizes[0]} and {sizes[1]} tokens",
            remedy="compare models of one family",
        )
    vocabulary, known = tokenizer.get_vocab(), reference.get_vocab()  # each is made anew when it is asked for
    common = known.keys() & vocabulary.keys()
    different = next((token for token in sorted(common) if known[token] != vocabulary[token]), None)
    if not common or different is not None:
        raise MoeLocalError(
            "the models' vocabularies differ" + (f": {different!r} has two numbers" if different is not None else ""),
            remedy="compare models of one family",
        )
