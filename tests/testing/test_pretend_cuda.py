"""The pretend device says, refuses and counts what a CUDA device would."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_local.testing.pretend_cuda import PretendCuda, can_pretend, pretend_cuda

pytestmark = pytest.mark.skipif(not can_pretend(), reason="torch has CUDA kernels of its own")
MIB = 1 << 20


@pytest.fixture
def gpu():
    with pretend_cuda(memory=64 * MIB, others=0) as device:
        yield device


def run_python(*lines: str) -> str:
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True).stdout.strip()


def _on_device(*shape: int) -> Tensor:
    return torch.arange(0, 1, 1 / torch.Size(shape).numel()).view(shape).to("cuda")


def test_it_says_that_it_is_one(gpu: PretendCuda) -> None:
    made = [
        torch.zeros(2, device="cuda"),
        torch.tensor([[1, 2]], device="cuda"),
        torch.ones(2).cuda(),
        torch.arange(3, device="cuda"),
        nn.Linear(2, 2).to("cuda").weight,
        torch.ones(2, device=torch.device("cuda", 0))[0],
        torch.zeros_like(torch.ones(2), device="cuda"),
    ]
    assert {each.device for each in made} == {torch.device("cuda", 0)}
    assert all(each.is_cuda for each in made)
    assert isinstance(made[4], nn.Parameter)
    assert made[3].shape == (3,)


def test_it_computes_as_the_cpu_does(gpu: PretendCuda) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    wanted = layer(x).softmax(-1)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = layer.to("cuda")(x.to("cuda")).softmax(-1)
        assert torch.equal(found.cpu(), wanted)


def test_it_is_there_in_every_thread(gpu: PretendCuda) -> None:
    found: list[Tensor] = []
    worker = threading.Thread(target=lambda: found.append(torch.ones(2).to("cuda") + torch.ones(2, device="cuda")))
    worker.start()
    worker.join()
    assert found[0].tolist() == [2, 2]


@pytest.mark.parametrize(
    "mixed",
    [
        lambda a, b: a + b,
        lambda a, b: b + a,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: F.linear(a, b),
        lambda a, b: F.scaled_dot_product_attention(a, b, b),
        lambda a, b: b[a.long()],
        lambda a, b: a.masked_fill(b.bool(), 0),
    ],
)
def test_it_refuses_tensors_of_the_cpu(gpu: PretendCuda, mixed) -> None:
    with pytest.raises(RuntimeError, match=r"device|cpu"):
        mixed(_on_device(2, 2), torch.ones(2, 2))


def test_single_numbers_may_mix(gpu: PretendCuda) -> None:
    assert (_on_device(2) + torch.tensor(1.0)).tolist() == [1, 1.5]


def test_it_gives_numpy_nothing(gpu: PretendCuda) -> None:
    with pytest.raises(TypeError, match="numpy"):
        _on_device(2).numpy()


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x[0, 0].item(),
        lambda x: bool(x[0, 0] > 0),
        lambda x: int(x[0, 0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0.5],
        lambda x: x.unique(),
        lambda x: x.long().flatten().bincount(),
        lambda x: x.repeat_interleave(x.long()[0], 0),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[[0, 1]],
        lambda x: torch.zeros(2, 2).copy_(x),
        lambda x: x.copy_(torch.zeros(2, 2)),
        lambda x: torch.cuda.synchronize(),
    ],
)
def test_it_counts_what_waits(gpu: PretendCuda, waits) -> None:
    x = _on_device(2, 2)
    with gpu.watch() as seen:
        waits(x)
    assert seen.syncs == 1, seen.told()
    assert all(line.startswith("testing/test_pretend_cuda.py:") for line, _ in seen.by_sync)


@pytest.mark.parametrize(
    ("computes", "launches"),
    [
        (lambda x: x[0].view(2, 1).T.unsqueeze(0).expand(3, 1, 2), 0),
        (lambda x: x.detach().flatten().to("cuda"), 0),
        (lambda x: x + 1, 1),
        (lambda x: x.add_(1).mul_(2), 2),
        (lambda x: x[0].fill_(3), 1),
        (lambda x: F.linear(x, x), 1),
        (lambda x: x.softmax(-1), 1),
        (lambda x: F.scaled_dot_product_attention(x, x, x), 1),
        (lambda x: torch.empty(5, device=x.device), 0),
        (lambda x: torch.zeros(5, device=x.device), 1),
        (lambda x: x.to(torch.bfloat16), 1),
        (lambda x: x.index_select(0, x[0].long()), 2),
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_counts_launches(gpu: PretendCuda, mode, computes, launches: int) -> None:
    x = _on_device(2, 2)
    with gpu.watch() as seen, mode():
        computes(x)
    assert (seen.launches, seen.syncs) == (launches, 0), seen.told()


def test_it_counts_bytes_by_storage(gpu: PretendCuda) -> None:
    memory = gpu.memory
    held = torch.empty(MIB, device="cuda")
    assert memory.live == 4 * MIB
    view = held[: MIB // 2].view(-1, 2)
    assert memory.live == 4 * MIB
    del held
    assert memory.live == 4 * MIB
    copy = view.clone()
    assert (memory.live, torch.cuda.mem_get_info()) == (6 * MIB, (58 * MIB, 64 * MIB))
    del copy, view
    assert (memory.live, memory.peak) == (0, 6 * MIB)


def test_it_runs_out_of_memory(gpu: PretendCuda) -> None:
    held = torch.empty(40 * MIB, dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        torch.empty(40 * MIB, dtype=torch.uint8, device="cuda")
    assert gpu.memory.live == held.nbytes


def test_nothing_stays_behind() -> None:
    before = dict(vars(torch.cuda)), torch.tensor, torch.Tensor.to
    with pretend_cuda() as gpu:
        held = torch.ones(2, device="cuda")
    assert (dict(vars(torch.cuda)), torch.tensor, torch.Tensor.to) == before
    assert not torch.cuda.is_available()
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        torch.ones(2, device="cuda")
    assert held.cpu().tolist() == [1, 1] and gpu.memory.live == 512


def test_contexts_of_a_device_know_torchs_own_functions() -> None:
    """In a process that has never used one before."""
    said = run_python(
        "import torch",
        "from moe_local.testing.pretend_cuda import pretend_cuda",
        "with pretend_cuda(), torch.device('meta'): pass",
        "with torch.device('meta'): print(torch.tensor([1]).device)",
    )
    assert said == "meta"


def _pinned(gpu: PretendCuda, *shape: int) -> Tensor:
    made = torch.ones(shape)
    assert torch.cuda.cudart().cudaHostRegister(made.data_ptr(), made.nbytes, 0) == 0
    return made


def test_a_copy_in_a_stream_is_late(gpu: PretendCuda) -> None:
    source, target, stream = _pinned(gpu, 64), torch.zeros(64, device="cuda"), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with gpu.watch() as seen, torch.cuda.stream(stream):
        target.copy_(source, non_blocking=True)
    assert seen.syncs == 0
    assert target.numbers.isnan().all()  # type: ignore[attr-defined]
    torch.cuda.current_stream().wait_event(stream.record_event())
    assert target.tolist() == [1] * 64


def test_a_source_that_changes_is_found(gpu: PretendCuda) -> None:
    source, target, stream = _pinned(gpu, 64), torch.zeros(64, device="cuda"), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        target.copy_(source, non_blocking=True)
    source.zero_()
    with pytest.raises(AssertionError, match="written to before its event"):
        stream.synchronize()


def test_a_copy_that_overtakes_compute_is_found(gpu: PretendCuda) -> None:
    source, target, stream = _pinned(gpu, 64), torch.zeros(64, device="cuda"), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    _ = target * 2
    with torch.cuda.stream(stream), pytest.raises(AssertionError, match="overtake"):
        target.copy_(source, non_blocking=True)


def test_unpinned_memory_waits(gpu: PretendCuda) -> None:
    target, stream = torch.zeros(64, device="cuda"), torch.cuda.Stream()
    with gpu.watch() as seen, torch.cuda.stream(stream):
        target.copy_(torch.ones(64), non_blocking=True)
    assert seen.syncs == 1
