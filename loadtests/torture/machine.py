"""The machine as the tortured processes see it: a clock that can be set back and a data disk that can be full.

`preload.c` is compiled for the run and loaded into each of them; all have mapped one small file, which says
what it does.
"""

import mmap
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Final

from headrace.embedded import EmbeddedPostgres, EmbeddedRedis

_CONTROL: Final = struct.Struct("=qq")
_SOURCE: Final = Path(__file__).with_name("preload.c")


def can_compile() -> bool:
    """Whether there is a C compiler, without which neither the clock nor the disk can be made to fail."""
    return shutil.which("cc") is not None


class Machine:
    """Wall time and disk of all processes that are started with `environ`, which is empty without a compiler."""

    def __init__(self, directory: Path) -> None:
        self.environ: dict[str, str] = {}
        self._behind_s = 0.0
        self._disk_full = False
        self._control: mmap.mmap | None = None
        if not can_compile():
            return
        library, control = directory / "preload.so", directory / "preload.control"
        argv = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
        control.write_bytes(_CONTROL.pack(0, 0))
        # PostgreSQL and Redis run as another user.
        library.chmod(0o755)
        control.chmod(0o644)
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), _CONTROL.size)
        self.environ = {"LD_PRELOAD": str(library), "TORTURE_CONTROL": str(control)}

    def now(self) -> float:
        """The wall time that these processes see, in seconds since the epoch."""
        return time.time() - self._behind_s

    def set_back(self, by_s: float) -> None:
        """Set the clock back for all of them at once."""
        self._behind_s += by_s
        self._write()

    def set_right(self) -> None:
        """Set the clock to the real time again, for all of them."""
        self._behind_s = 0.0
        self._write()

    def fill_disk(self, full: bool) -> None:
        """Let no table or index grow, or let them again."""
        self._disk_full = full
        self._write()

    def _write(self) -> None:
        if self._control is None:
            raise RuntimeError("this takes a C compiler (`cc`)")
        _CONTROL.pack_into(self._control, 0, int(self._behind_s * 1e9), int(self._disk_full))


class Postgres(EmbeddedPostgres):
    """PostgreSQL on that machine."""

    def __init__(self, directory: Path, machine: Machine) -> None:
        super().__init__(directory, durable=False, max_connections=70)
        self._machine = machine

    def _environ(self) -> dict[str, str]:
        return super()._environ() | self._machine.environ


class Redis(EmbeddedRedis):
    """Redis on that machine."""

    def __init__(self, directory: Path, machine: Machine) -> None:
        super().__init__(directory)
        self._machine = machine

    def _environ(self) -> dict[str, str]:
        return super()._environ() | self._machine.environ
