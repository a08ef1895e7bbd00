"""Where an embedded server's data live: below the given directory if the server's user can get there.

    <directory>/<name>/             home of the data, of user root or ourselves, mode 0711
    <directory>/<name>.location     one line, the path of the home, when it had to be elsewhere
    /var/tmp/headrace-<hash>-…/     such a home; nothing removes it by itself, since it holds data

A home contains `data`, which belongs to the server's user (mode 0700), and `software`, copies of programs that this
user could not execute where they are installed.
"""

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

from headrace.embedded.account import Account
from headrace.errors import EmbeddedServerError
from headrace.node import private_file

logger = logging.getLogger(__name__)

_ELSEWHERE = Path("/var/tmp")  # noqa: S108  # outlives a reboot, unlike /tmp; the name below it is unguessable


def find_home(directory: Path, name: str, account: Account) -> Path:
    """The home of this server's data; made, and recorded if it is elsewhere, when there is none yet."""
    record = directory / f"{name}.location"
    recorded = private_file.read(record)
    if recorded is not None:
        if _is_ours(Path(recorded)):
            return Path(recorded)
        logger.warning("the data of %s recorded in %s are gone from %s; starting anew", name, record, recorded)
    home = directory / name
    fresh = not home.exists()
    if fresh:
        home.mkdir()
        home.chmod(0o711)
    if account.reaches(home):
        return home
    if (home / "data").exists():
        raise EmbeddedServerError(
            f"user {account.name!r} can no longer reach the data of {name} in {str(home)!r}; make every directory "
            "above searchable (chmod o+x), or remove that directory to start without data"
        )
    if fresh:
        with contextlib.suppress(OSError):
            home.rmdir()
    return _make_elsewhere(directory, name, account, record)


def _make_elsewhere(directory: Path, name: str, account: Account, record: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:8]
    parent = _ELSEWHERE if os.access(_ELSEWHERE, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    home = Path(tempfile.mkdtemp(prefix=f"headrace-{digest}-", dir=parent))
    home.chmod(0o711)
    if not account.reaches(home):
        home.rmdir()
        raise EmbeddedServerError(
            f"user {account.name!r} can reach neither {str(directory)!r} nor {str(parent)!r}; run headrace in a "
            "directory whose parents are searchable by others"
        )
    private_file.write(record, f"{home}\n")
    logger.warning("user %r cannot reach %s: the data of %s live in %s", account.name, directory, name, home)
    return home


def _is_ours(home: Path) -> bool:
    try:
        status = home.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
