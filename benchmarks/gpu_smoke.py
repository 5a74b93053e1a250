"""Does it run on this GPU, how fast, and within its budget? In under three minutes, as one JSON line.

    python benchmarks/gpu_smoke.py [--vram 2GiB] [--device cuda]

Writes a random model of 1.3 GB (8 layers of 32 experts, 4 a token, bf16) into a temporary folder; loads it with half
of its experts on the device, the others in RAM; reads a prompt of 512 tokens, decodes 64, answers a batch of 8; and
compares the most device memory that torch took with the budget. `--device cpu --vram 2GiB` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from make_checkpoint import config, write

from moe_local import Engine, Options, Request, Sampling, load
from moe_local.memory.limits import peak_memory
from moe_local.units import parse_size

CONTEXT, PROMPT, DECODED = 1024, 512, 64
SMALL = {"hidden_size": 1024, "num_attention_heads": 16, "head_dim": 64, "vocab_size": 32768}
GREEDY = Sampling(max_new_tokens=DECODED, temperature=0)


def measure(engine: Engine) -> dict[str, Any]:
    ids = [(7 + i * 7919) % 250 for i in range(PROMPT)]
    engine.generate(ids[:32], GREEDY)
    engine.model.generation_config.eos_token_id = None
    began = perf_counter()
    result = engine.generate(ids, GREEDY)
    batch_began = perf_counter()
    answers = list(engine.batch(Request(ids[at : at + 48], GREEDY) for at in range(8)))
    batch_seconds = perf_counter() - batch_began
    steps = max(1, result.new_tokens - 1)
    return {
        "prefill_tokens_per_second": round(PROMPT / result.time_to_first_token, 1),
        "tokens_per_second": round(result.tokens_per_second, 2),
        "bytes_uploaded_per_token": round(result.decode.bytes_uploaded / steps),
        "bytes_read_per_token": round(result.bytes_read_per_token),
        "hit_rate": round(result.decode.hit_rate, 4),
        "stall_share": round(result.decode.stall_seconds / max(1e-9, batch_began - began), 4),
        "batch_tokens_per_second": round(sum(answer.new_tokens for answer in answers) / batch_seconds, 2),
        "batch_errors": [answer.error for answer in answers if answer.error],
    }


def device_memory(engine: Engine) -> dict[str, Any]:
    plan = engine.plan
    if engine.load_plan.device.type != "cuda":
        return {"device": "cpu", "peak_vram": None, "planned_vram": plan.vram_used, "vram_budget": plan.vram}
    _, total = torch.cuda.mem_get_info()
    return {
        "device": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "peak_vram": plan.vram_overhead + torch.cuda.max_memory_reserved(),
        "peak_vram_in_tensors": torch.cuda.max_memory_allocated(),
        "planned_vram": plan.vram_used,
        "vram_budget": plan.vram,
        "vram_of_card": total,
        "within_budget": plan.vram_overhead + torch.cuda.max_memory_reserved() <= (plan.vram or total),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--vram", type=parse_size, default=None, help="budget of the device")
    given = parser.parse_args()
    began = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), config(layers=8, experts=32, top_k=4, **SMALL))
        options = Options(device=given.device, vram=given.vram, context=CONTEXT, experts=0.5, max_sequences=8)
        with load(folder, options) as engine:
            out = {**measure(engine), **device_memory(engine), "load_seconds": round(engine.load_seconds, 2)}
    out |= {"torch": torch.__version__, "peak_ram": peak_memory(), "seconds": round(perf_counter() - began, 1)}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
