"""Small files that only their owner may read: passwords, secrets, ports and places that outlive one run."""

import contextlib
import os
import tempfile
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Replace the file at once, mode 0600: a reader sees the old text or the new one, also after a crash."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read(path: Path) -> str | None:
    """What the file holds, without space around it; None if there is no file or nothing in it."""
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
