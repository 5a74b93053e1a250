"""Where things are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """The folder for everything moe-local keeps: `$MOE_LOCAL_HOME`, else the platform's cache folder."""
    if chosen := os.environ.get("MOE_LOCAL_HOME"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home() / "AppData/Local"))) / "moe-local"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/moe-local"
    return Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))) / "moe-local"
