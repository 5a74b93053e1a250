"""Tests mirror the tree of moe_local and cli. They never reach a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
