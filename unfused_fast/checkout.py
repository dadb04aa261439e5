"""Which commit this is."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]


@cache
def commit(folder: Path = FOLDER) -> str:
    """That of the checkout that holds this code, with `+changes` where files differ from it, or the one that pip
    installed from git; `unknown` elsewhere.
    """
    if (folder / ".git").exists():  # else git would tell of a repository around it, such as that of an environment

        def git(*arguments: str) -> str:
            return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True).stdout.strip()

        with suppress(OSError):  # no git here
            changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
            return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+changes" if changed else "")
    try:
        origin = importlib.metadata.distribution("unfused-fast").read_text("direct_url.json")
        return str(json.loads(origin or "{}")["vcs_info"]["commit_id"])[:7]
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError):
        return "unknown"
