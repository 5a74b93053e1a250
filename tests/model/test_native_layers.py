"""Native norms, rotary embedding and routers in the place of transformers' own, in every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

from moe_local.engine import load
from moe_local.kernels import native
from moe_local.model import attention, build
from moe_local.model.transformers_api import CACHE, kv_cache
from moe_local.planning.options import Options
from moe_local.testing import Architecture, architecture, architectures, tiny_inputs, write_tiny_checkpoint

if native.missing() is not None:
    pytest.skip("the native kernels are not built", allow_module_level=True)

from moe_local.model.native_norms import use_native_norms
from moe_local.model.native_rotary import _faster
from moe_local.model.native_routers import use_native_routers

# Refused, or too odd to be run: see test_parity.py.
CANNOT = {"diffusion_gemma", "qwen3_omni_moe-Qwen3OmniMoeTalkerTextExperts"}
# Whose norms have a mean, or gates.
OTHER_NORMS = {"cohere2_moe", "dbrx", "nllb_moe", "phimoe"}
# transformers' own deepseek_v4 mixes types in bf16 there, and granitemoe's router was another.
OLDER = Version(transformers.__version__) < Version("5.24")
BF16 = torch.bfloat16


@pytest.mark.parametrize(
    "found", [each for each in architectures() if each.id not in CANNOT], ids=lambda found: found.id
)
def test_every_architecture_computes_the_same(
    found: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if found.id == "deepseek_v4" and OLDER:
        pytest.skip("this transformers does not run it in bf16")
    write_tiny_checkpoint(found, tmp_path, dtype=BF16)
    ours, used = _logits(found, tmp_path)
    monkeypatch.setattr(build, "_use_native", lambda model: None)
    monkeypatch.setattr(attention, "takes", lambda *given: False)
    theirs, _ = _logits(found, tmp_path)
    (prompt, *tokens), (wanted, *others) = ours, theirs
    torch.testing.assert_close(prompt, wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item())
    # Attention of one query rounds less than torch's; now and then another expert is chosen for it.
    apart = [((a - b).norm() / b.norm()).item() for a, b in zip(tokens, others, strict=True)]
    assert min(apart, default=0) < 0.05
    assert used or found.id in OTHER_NORMS


def _logits(found: Architecture, directory: Path) -> tuple[list[Tensor], int]:
    """Those of a prompt and, where it goes on, of three more tokens; and how many norms are ours."""
    with load(directory, Options(device="cpu", context=64, experts=1.0)) as engine, torch.no_grad():
        outputs = [engine.model(**tiny_inputs(found))]
        for _ in range(3 if found.can_generate and kv_cache(outputs[0]) is not None else 0):
            outputs.append(engine.model(torch.tensor([[9]]), **{CACHE: kv_cache(outputs[-1])}))
        used = sum("_moe_local_norm" in vars(module) for module in engine.model.modules())
        logits = [output.logits if hasattr(output, "logits") else output.last_hidden_state for output in outputs]
        return [each.float() for each in logits], used


@pytest.mark.parametrize(
    "name", ["qwen3_moe", "mixtral", "olmoe", "glm4_moe", "deepseek_v3", "minimax_m2", "granitemoe", "gpt_oss"]
)
def test_a_token_is_decoded_by_native_kernels(name: str, tmp_path: Path) -> None:
    if name == "granitemoe" and OLDER:
        pytest.skip("this transformers has another router for it")
    found = architecture(name)
    write_tiny_checkpoint(found, tmp_path, dtype=BF16)
    with load(tmp_path, Options(device="cpu", context=64, experts=1.0)) as engine, torch.no_grad():
        cache = kv_cache(engine.model(**tiny_inputs(found)))
        token: dict[str, Any] = {"input_ids": torch.tensor([[9]]), CACHE: cache}
        engine.model(**token)  # what is found at first use is found
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            engine.model(**token)
    names = {event.key for event in profile.key_averages()}
    assert "aten::empty" in names
    assert not names & {"aten::rsqrt", "aten::neg", "aten::topk", "aten::_softmax"}


class _Norm(nn.Module):
    """An RMS norm of a name that says nothing."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48).to(BF16))
        self.eps = 1e-6
        self._compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self._compute(self, x)


def _scaled(x: Tensor) -> Tensor:
    return x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    ("compute", "taken"),
    [
        (lambda self, x: self.weight * _scaled(x).to(x.dtype), True),
        (lambda self, x: (self.weight * _scaled(x)).to(x.dtype), True),
        (lambda self, x: (_scaled(x) * (1 + self.weight.float())).to(x.dtype), True),
        (lambda self, x: (_scaled(x) * (2 + self.weight.float())).to(x.dtype), False),
        (lambda self, x: (_scaled(x - x.mean(-1, keepdim=True)) * self.weight).to(x.dtype), False),
        (lambda self, x: _scaled(x) * self.weight, False),  # another type comes out
    ],
)
def test_a_norm_is_taken_for_what_it_computes(compute: Callable[[Any, Tensor], Tensor], taken: bool) -> None:
    norm = _Norm(compute)
    x = torch.randn(2, 5, 48).to(BF16)
    wanted = norm(x)
    use_native_norms(nn.ModuleList([norm]))
    assert isinstance(norm, _Norm) and ("_moe_local_norm" in vars(norm)) == taken
    torch.testing.assert_close(norm(x), wanted, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(norm(x.float()), compute(norm, x.float()))
    y = x.clone().requires_grad_()
    norm(y).sum().backward()
    assert y.grad is not None


class _Router(nn.Module):
    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 48).to(BF16))
        self.top_k, self.sharpness = 4, sharpness

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = nn.functional.linear(hidden_states, self.weight)
        weights, index = (logits * self.sharpness).float().softmax(-1).topk(self.top_k, dim=-1)
        return logits, (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), index


@pytest.mark.parametrize(("sharpness", "taken"), [(1.0, True), (1.5, False)])
def test_a_router_is_taken_for_what_it_computes(sharpness: float, taken: bool) -> None:
    router, x = _Router(sharpness), torch.randn(40, 48).to(BF16)
    wanted = router(x)
    use_native_routers(nn.ModuleList([router]))
    got = router(x)
    assert ("_moe_local_router" in vars(router)) == taken
    same = (got[0] == wanted[0]).all(-1)
    assert same.float().mean() > 0.5 and torch.equal(got[2][same], wanted[2][same])
    one = router(x[7:8])
    assert all(torch.equal(a, b[7:8]) for a, b in zip(one, got, strict=True))  # whatever lies beside it


def test_rotary_embedding_is_left_where_it_does_not_fit() -> None:
    calls = []

    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        calls.append(q.shape)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        a, b = q.chunk(2, -1)
        c, d = k.chunk(2, -1)
        return q * cos + torch.cat([-b, a], -1) * sin, k * cos + torch.cat([-d, c], -1) * sin

    ours = _faster(turn, 2)
    q, k = torch.randn(2, 4, 3, 32).to(BF16), torch.randn(2, 2, 3, 32).to(BF16)
    for batch in (1, 2):
        cos, sin = torch.randn(2, batch, 3, 32).to(BF16).unbind()
        assert all(torch.equal(a, b) for a, b in zip(ours(q, k, cos, sin), turn(q, k, cos, sin), strict=True))
        q2, k2 = q.transpose(1, 2), k.transpose(1, 2)
        pairs = zip(ours(q2, k2, cos, sin, unsqueeze_dim=2), turn(q2, k2, cos, sin, unsqueeze_dim=2), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    calls.clear()
    ours(q, k, cos, sin)
    assert not calls
    ours(q.float(), k.float(), cos.float(), sin.float())
    ours(q.clone().requires_grad_(), k, cos, sin)
    ours(q.to("meta"), k.to("meta"), cos.to("meta"), sin.to("meta"))
    assert len(calls) == 3
