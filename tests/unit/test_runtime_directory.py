"""headrace/node/runtime_directory.py"""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.errors import SettingsError
from headrace.node import runtime_directory

ROOT = Path(__file__).parents[2]
ENVIRON = {
    "PATH": os.defpath,
    "PYTHONPATH": str(ROOT),
    "HEADRACE_SECRET": "s" * 32,
    "HEADRACE_REDIS_URL": "redis://127.0.0.1:1",
    "HEADRACE_DATABASE_URL": "postgresql://127.0.0.1:1/none",
}
SHARD = ["headrace.shard", "--id", "n-0"]
ROUTER = [
    "gunicorn",
    "-c",
    "python:headrace.router.gunicorn_conf",
    "--bind",
    "127.0.0.1:0",
    "headrace.router.app:create_application()",
]


def test_it_is_made_and_private(tmp_path: Path) -> None:
    """The directory is made, with what is above it, for its owner alone; one that is there stays as it is."""
    runtime_directory.prepare(tmp_path / "a" / "run", "n-0")
    assert stat.S_IMODE((tmp_path / "a" / "run").stat().st_mode) == 0o700
    assert not list((tmp_path / "a" / "run").iterdir())
    (tmp_path / "a" / "run").chmod(0o770)
    runtime_directory.prepare(tmp_path / "a" / "run", "n-0")
    assert stat.S_IMODE((tmp_path / "a" / "run").stat().st_mode) == 0o770


def test_what_fits_can_be_bound() -> None:
    """The longest path that is taken for short enough is one that the system binds, and one byte more is not."""
    directory = Path("/tmp")
    name = "n" * (107 - len(str(runtime_directory.longest_path(directory, ""))))
    assert runtime_directory.fits(directory, name)
    assert not runtime_directory.fits(directory, name + "n")
    path = runtime_directory.longest_path(directory, name)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(str(path))
    path.unlink()


def test_a_pod_of_any_name_fits() -> None:
    """Names of pods have at most 63 characters, and the image's directory has room for sockets named after them."""
    assert runtime_directory.fits(Path("/run/headrace"), f"{'p' * 63}-99")


@pytest.mark.parametrize("command", [SHARD, ROUTER], ids=["shard", "router"])
def test_processes_say_what_is_wrong(command: list[str], tmp_path: Path) -> None:
    """A shard and a router that can make nothing there, or nothing as long, end with a sentence and no traceback."""
    (tmp_path / "file").write_text("")
    for directory, said in ((tmp_path / "file" / "run", "Not a directory"), (tmp_path / ("d" * 100), "107 bytes")):
        ran = subprocess.run(
            [sys.executable, "-P", "-m", *command],
            cwd=tmp_path,
            env=ENVIRON | {"HEADRACE_RUNTIME_DIR": str(directory)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 1
        assert "HEADRACE_RUNTIME_DIR is" in ran.stderr
        assert said in ran.stderr
        assert "Traceback" not in ran.stderr


def test_any_wrong_setting_of_a_router_is_one_sentence(tmp_path: Path) -> None:
    """gunicorn ends with the sentence that the settings have for it."""
    environ = ENVIRON | {"HEADRACE_RUNTIME_DIR": str(tmp_path), "HEADRACE_RETRY_MS": "soon"}
    for config in ("python:headrace.router.gunicorn_conf", str(ROOT / "deploy" / "gunicorn.conf.py")):
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "gunicorn", "-c", config, "headrace.router.app:create_application()"],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 1
        assert ran.stderr.startswith("headrace: HEADRACE_RETRY_MS is 'soon'; allowed is")
        assert len(ran.stderr.splitlines()) == 1


def test_a_read_only_or_full_place_is_told(tmp_path: Path) -> None:
    """Where nothing can be made the sentence has the system's reason."""
    with pytest.raises(SettingsError, match=r"which cannot be used: .*; choose a directory in which user \d+ may make"):
        runtime_directory.prepare(Path("/proc/self/run"), "n-0")
