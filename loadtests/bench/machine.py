"""The machine, the commit and the versions that a figure was measured with."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]


def described(postgres: str) -> dict[str, str]:
    """The machine, the commit (`+` where files differ from it) and the versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")), "?")
    return {
        "machine": f"{len(os.sched_getaffinity(0)) or '?'} of {os.cpu_count()} cores, {model}",
        "kernel": platform.release(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        "python": platform.python_version(),
        "postgresql": postgres,
        **{name: metadata.version(name) for name in ("headrace", "gevent", "psycopg", "gunicorn")},
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
