"""Which token comes next for one sequence of a batch, by transformers' own processors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from moe_local.generation.sampling import Sampling
from moe_local.model.transformers_api import logits_processors

Only = Callable[[Tensor], Tensor]  # scores [V] -> the same with -inf where a token may not come
_WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


class Choice:
    """The options of one sequence, the model's defaults beneath them, and its own random numbers."""

    def __init__(self, model: PreTrainedModel, sampling: Sampling, prompt_tokens: int) -> None:
        config, every = logits_processors(model, sampling.for_transformers(), prompt_tokens)
        self._samples = bool(config.do_sample)
        self._processors = LogitsProcessorList(each for each in every if not isinstance(each, _WARPERS))
        self._warpers = LogitsProcessorList(each for each in every if isinstance(each, _WARPERS))
        self._top_k: int = (config.top_k or 0) if self._samples else 0
        self._random = torch.Generator()
        if sampling.seed is not None:
            self._random.manual_seed(sampling.seed)
        else:
            self._random.seed()

    @property
    def plain(self) -> bool:
        """Whether it is the likeliest token, whatever came before."""
        return not self._samples and not self._processors

    def __call__(self, ids: Sequence[int], scores: Tensor, only: Only | None = None) -> int:
        """The next token after `ids`, of logits [V] float32: one that `only` leaves, whatever the options bar."""
        so_far = torch.tensor([list(ids)], device=scores.device)
        given, scores = scores, self._processors(so_far, scores[None])
        if only is not None:
            left = only(scores[0])
            scores = (left if bool(left.isfinite().any()) else only(given))[None]
        if not self._samples:
            return int(scores.argmax())
        among: Tensor | None = None
        if 0 < self._top_k < scores.shape[-1]:  # sorting the whole vocabulary takes longer than all the rest
            scores, among = scores.topk(self._top_k)
        chances = self._warpers(so_far, scores).softmax(dim=-1).cpu()
        drawn = torch.multinomial(chances[0], 1, generator=self._random)
        return int(drawn if among is None else among[0].cpu()[drawn])
