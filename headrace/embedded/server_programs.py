"""Programs of an embedded server: the trees they are installed in, and copies for a user who cannot get there."""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from headrace.embedded.account import Account
from headrace.errors import EmbeddedServerError


@dataclass(frozen=True, slots=True)
class ServerPrograms:
    """Programs in one directory; with a tree, the directories lib and share beside it are theirs too."""

    directory: Path
    programs: tuple[str, ...]
    has_tree: bool = False

    @property
    def complete(self) -> bool:
        """Whether every program is there."""
        return all(os.access(self.directory / program, os.X_OK) for program in self.programs)

    def path(self, program: str) -> Path:
        """Where the program is."""
        return self.directory / program

    def runs_for(self, account: Account) -> bool:
        """Whether the account can execute every program."""
        return all(account.runs(self.path(program)) for program in self.programs)

    def reachable(self, account: Account, home: Path) -> "ServerPrograms":
        """This software where the account can execute it: here, or a copy in `<home>/software`, made when missing.

        Raises EmbeddedServerError if the copy cannot be executed either.
        """
        if self.runs_for(account):
            return self
        copy = self._copied(home / "software" / self._digest())
        if not copy.runs_for(account):
            raise EmbeddedServerError(
                f"user {account.name!r} can execute {self.programs[0]!r} neither in {str(self.directory)!r} nor as a "
                f"copy in {str(copy.directory)!r}; install it where every user can execute it"
            )
        return copy

    def _digest(self) -> str:
        seen = [(program, self.path(program).stat()) for program in self.programs]
        text = repr([(str(self.path(program)), s.st_size, s.st_mtime_ns) for program, s in seen])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _copied(self, target: Path) -> "ServerPrograms":
        """Copy the programs, and of a tree lib, share and the libraries that wheels keep further up.

        Programs find all of these by the way there from their own directory, so the copy keeps its shape:
        `a/b/bin`, `a/b/lib`, `a/b/share`, `a.libs`.
        """
        installed = self.directory.resolve()
        prefix, package = installed.parent, installed.parent.parent
        copy = ServerPrograms(target / package.name / prefix.name / installed.name, self.programs, self.has_tree)
        if copy.complete:
            return copy
        target.parent.mkdir(mode=0o755, exist_ok=True)
        target.parent.chmod(0o755)
        unfinished = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            new = unfinished / package.name / prefix.name / installed.name
            new.mkdir(parents=True)
            for program in self.programs:
                shutil.copy(self.path(program), new / program)
            libraries = f"{package.name}.libs"
            trees = [(prefix / name, new.parent / name) for name in ("lib", "share")]
            trees.append((package.parent / libraries, unfinished / libraries))
            for source, copied in trees if self.has_tree else []:
                if source.is_dir():
                    shutil.copytree(source, copied)
            for path in [unfinished, *unfinished.rglob("*")]:
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
        except OSError as error:
            raise EmbeddedServerError(f"cannot copy {str(installed)!r} to {str(target)!r}: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return copy
