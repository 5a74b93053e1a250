"""Runs every `sh` block of the pages named, in order, as a user would, with a question on stdin; stops at the first
that fails.

    python .ci/readme.py README.md docs/*.md

README's first block must end in a chat that answers the question. Pages without `sh` blocks are passed over.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

QUESTION, ANSWER = "What is the capital of France?", "Paris"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(page: Path) -> int:
    found = blocks(page)
    for number, block in enumerate(found):
        print(f"$ {block.strip()}", flush=True)
        # The tests print as they go; what a chat says is looked at.
        chats = "moe-local chat" in block
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            input=f"{QUESTION}\n/exit\n",
            stdout=subprocess.PIPE if chats else None,
            text=True,
            check=False,
        )
        if chats:
            print(done.stdout, flush=True)
        if done.returncode != 0:
            print(f"this command of {page} failed with {done.returncode}")
            return done.returncode
        if page.name == "README.md" and number == 0 and ANSWER not in done.stdout:
            print(f"the chat did not answer {ANSWER!r}")
            return 1
    if page.name == "README.md" and not found:
        print(f"{page} has no commands")
        return 1
    return 0


def main() -> int:
    for page in map(Path, sys.argv[1:]):
        print(f"-- {page}", flush=True)
        if code := run(page):
            return code
    return 0 if sys.argv[1:] else 2


if __name__ == "__main__":
    sys.exit(main())
