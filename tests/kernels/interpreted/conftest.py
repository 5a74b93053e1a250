"""Tests that run in processes of their own (`test_triton_interpreted.py`): Triton interprets in all of one or none.

By hand: `TRITON_INTERPRET=1 pytest tests/kernels/interpreted`.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
