"""Runs every `sh` block of a README as a user would, with a question on stdin; stops at the first that fails.

The first block must end in a chat that answers the question.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

QUESTION, ANSWER = "What is the capital of France?", "Paris"


def main() -> int:
    blocks = re.findall(r"^```sh\n(.*?)^```", Path(sys.argv[1]).read_text(), re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks):
        print(f"$ {block.strip()}", flush=True)
        stdin = f"{QUESTION}\n/exit\n"
        # The tests print as they go; what a chat says is looked at.
        chats = "moe-local chat" in block
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            input=stdin,
            stdout=subprocess.PIPE if chats else None,
            text=True,
            check=False,
        )
        if chats:
            print(done.stdout, flush=True)
        if done.returncode != 0:
            print(f"this command of README failed with {done.returncode}")
            return done.returncode
        if number == 0 and ANSWER not in done.stdout:
            print(f"the chat did not answer {ANSWER!r}")
            return 1
    return 0 if blocks else 1


if __name__ == "__main__":
    sys.exit(main())
