"""Small files that only their owner may read: passwords, secrets, ports and paths that outlive one run."""

import contextlib
import os
import tempfile
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Replace the file, mode 0600, in one step: a reader sees the old text or the new one, also after a crash."""
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
    """The file's text without blanks around it; None if there is no file or nothing in it."""
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
