"""Architectures that cannot be run, and why. Each is shown to be refused with an error of ours."""

from __future__ import annotations

CANNOT = {
    "diffusion_gemma": "transformers checks while building it that its tied experts have parameters",
    "qwen3_omni_moe-Qwen3OmniMoeTalkerTextExperts": "a part of another model: its config.json names no model_type",
}
