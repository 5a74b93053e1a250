"""A text, changed in the user's editor."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from moe_local.errors import MoeLocalError
from moe_local.files import MOST_PROMPT, read_text

_REMEDY = "set EDITOR to one, such as nano"


def edited(text: str) -> str:
    """What the user's editor ($VISUAL, then $EDITOR) made of a text. Raises MoeLocalError where it fails."""
    command = _editor()
    with tempfile.TemporaryDirectory(prefix="moe-local-") as folder:
        file = Path(folder) / "message.md"
        try:
            file.write_text(text, encoding="utf-8")
            ended = subprocess.run([*command, str(file)], check=False).returncode
        except (OSError, ValueError) as error:
            raise MoeLocalError(f"the editor {command[0]} did not start ({error})", remedy=_REMEDY) from error
        if ended != 0:
            raise MoeLocalError(f"the editor {command[0]} ended with {ended}: nothing is taken from it")
        return read_text(file, most=MOST_PROMPT).rstrip("\n")


def _editor() -> list[str]:
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if chosen is None:
        usual = ("notepad",) if sys.platform == "win32" else ("editor", "nano", "vi")
        chosen = next((name for name in usual if shutil.which(name)), None)
    try:
        words = shlex.split(chosen or "", posix=sys.platform != "win32")
    except ValueError as error:
        raise MoeLocalError(f"the editor {chosen} cannot be read ({error})", remedy=_REMEDY) from error
    if not words:
        raise MoeLocalError("there is no editor", remedy=_REMEDY)
    return words
