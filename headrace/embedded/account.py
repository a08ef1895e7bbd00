"""The user that an embedded server runs as: ourselves, or for root an unprivileged one, as PostgreSQL insists."""

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import EmbeddedServerError

_TRIAL_DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class Account:
    """A user and its group. What it can reach is tried, not computed: mount options and ACLs count too."""

    name: str
    uid: int
    gid: int

    @classmethod
    def for_servers(cls) -> "Account":
        """Ourselves unless we are root; then `postgres` if there is such a user, else `nobody`."""
        if os.geteuid() != 0:
            return cls.of(os.geteuid())
        for name in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(name, entry.pw_uid, entry.pw_gid)
        raise EmbeddedServerError(
            "embedded servers do not run as root, and there is neither a user 'postgres' nor 'nobody'; add one, "
            "or run headrace as another user"
        )

    @classmethod
    def of(cls, uid: int) -> "Account":
        """The account with this user id, which need not have a name."""
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return cls(str(uid), uid, os.getegid() if uid == os.geteuid() else uid)
        return cls(entry.pw_name, uid, entry.pw_gid)

    @property
    def is_us(self) -> bool:
        """Whether this process already runs as this user."""
        return self.uid == os.geteuid()

    @property
    def ids(self) -> tuple[int, int] | None:
        """(user id, group id) to change to; None if there is nothing to change."""
        return None if self.is_us else (self.uid, self.gid)

    def own(self, path: Path) -> None:
        """Give path, and nothing below it, to this account."""
        if not self.is_us:
            os.chown(path, self.uid, self.gid)

    def reaches(self, directory: Path) -> bool:
        """Whether this user can enter the directory, which depends on every directory above it too."""
        return self._succeeds(["/bin/sh", "-c", 'cd -- "$1" && test -x .', "sh", str(directory)])

    def runs(self, program: Path) -> bool:
        """Whether this user can execute the program, with the libraries it needs (it is run with --version)."""
        return self._succeeds([str(program), "--version"])

    def run(self, argv: Sequence[str], directory: Path, environ: dict[str, str], **options: Any) -> int:
        """Run a command to its end as this user, in a session of its own; return its exit status.

        Raises EmbeddedServerError if it cannot be started or lasts longer than `timeout` seconds, when given.
        """
        change: dict[str, Any] = {} if self.is_us else {"user": self.uid, "group": self.gid, "extra_groups": []}
        try:
            done = subprocess.run(
                argv, cwd=directory, env=environ, start_new_session=True, check=False, **change, **options
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedServerError(f"cannot run {argv[0]!r} as user {self.name!r}: {error}") from error
        return done.returncode

    def _succeeds(self, argv: Sequence[str]) -> bool:
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            return self.run(argv, Path("/"), {"PATH": os.defpath}, timeout=_TRIAL_DEADLINE_S, **silent) == 0
        except EmbeddedServerError:
            return False
