"""The file `.headrace/env`, in which `headrace up` leaves its settings for other commands of the same directory."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

ENV_FILE = Path(".headrace/env")


def environ_with_file(environ: Mapping[str, str], path: Path = ENV_FILE) -> dict[str, str]:
    """Return environ, completed by the lines `NAME=value` of the file that `headrace up` writes, if it can be read.

    Variables of environ win, so that a command can be pointed elsewhere. A file that this user may not read counts as
    missing; `Settings.require` then tells which setting is missing for it.
    """
    merged: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            name, separator, value = line.partition("=")
            if separator and not line.startswith("#"):
                merged[name.strip()] = value
    merged.update(environ)
    return merged


def is_unreadable(path: Path) -> bool:
    """Whether this user may not read the file, or may not search the directory in which it would be."""
    try:
        path.read_bytes()
    except PermissionError:
        return True
    except OSError:
        return False
    return False
