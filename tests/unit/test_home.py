"""The directory of one `headrace up`: lock, secret, variables, sockets."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from headrace.environment_file import environ_with_file
from headrace.errors import AlreadyRunningError, UsageError
from headrace.up.home import Home


def test_lock_is_exclusive(tmp_path: Path) -> None:
    """A second `up` is refused with the first one's process id; after the first has ended, it may run."""
    home = Home(tmp_path / ".headrace")
    with (
        home.locked() as abandoned,
        pytest.raises(AlreadyRunningError, match=rf"\(pid {os.getpid()}\)"),
        Home(home.path).locked(),
    ):
        pass
    assert not abandoned
    assert not (home.path / "lock").exists()
    with home.locked() as abandoned:
        assert not abandoned


def test_killed_holder_is_noticed(tmp_path: Path) -> None:
    """A lock file that nobody locks, left by an `up` that was killed, is taken over, and that is told."""
    (tmp_path / "lock").write_text("4711\n")
    with Home(tmp_path).locked() as abandoned:
        assert abandoned
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_git_ignores_the_directory(tmp_path: Path) -> None:
    """From the first moment on git ignores all of the directory, unless the user has decided what it ignores."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    home = Home(tmp_path / ".headrace")
    with home.locked():
        assert (home.path / ".gitignore").read_text() == "*\n"
        home.secret()
        untracked = subprocess.check_output(["git", "status", "--porcelain", "--untracked-files=all"], cwd=tmp_path)
        assert untracked == b""
    (home.path / ".gitignore").write_text("secret\n")
    with home.locked():
        assert (home.path / ".gitignore").read_text() == "secret\n"


def test_unusable_directory(tmp_path: Path) -> None:
    """A directory that cannot be made is the user's to correct."""
    (tmp_path / "file").write_text("")
    home = Home(tmp_path / "file" / ".headrace")
    with pytest.raises(UsageError, match="run headrace elsewhere"), home.locked():
        pass
    # As on a full disk, or when somebody has removed it meanwhile.
    for use in (home.secret, lambda: home.write_environ({}, {}), lambda: home.runtime_dir("n" * 100)):
        with pytest.raises(UsageError, match=r"cannot use '.*': Not a directory; run headrace elsewhere"):
            use()


def test_secret_is_kept(tmp_path: Path) -> None:
    """The secret is made once, and nobody else can read it."""
    secret = Home(tmp_path).secret()
    assert len(secret) >= 32
    assert Home(tmp_path).secret() == secret
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_environ_is_what_other_commands_read(tmp_path: Path) -> None:
    """The file `env` has one variable a line, is private, and is replaced whole."""
    home = Home(tmp_path)
    home.write_environ({"HEADRACE_NODE": "a"}, {"HEADRACE_SECRET": "x=y"})
    home.write_environ({}, {"HEADRACE_SECRET": "x=y"})
    # Nothing but variables, since shells read it in many ways.
    assert (tmp_path / "env").read_text() == "HEADRACE_SECRET=x=y\n"
    assert environ_with_file({}, tmp_path / "env") == {"HEADRACE_SECRET": "x=y"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["env", "made"]
    assert stat.S_IMODE((tmp_path / "env").stat().st_mode) == 0o600


def test_what_it_made_is_known_again(tmp_path: Path) -> None:
    """Of what a shell has read from `env`, the next `up` takes what it was given for the user's, and no more."""
    home = Home(tmp_path)
    made = {"HEADRACE_DATABASE_URL": "postgresql://headrace:a@127.0.0.1:20001/headrace", "HEADRACE_NODE": "n"}
    given = {"HEADRACE_REDIS_URL": "redis://redis.internal"}
    assert home.without_made(made | given) == made | given
    home.write_environ(made, given)
    environ = environ_with_file({"PATH": "/bin"}, tmp_path / "env")
    assert home.without_made(environ) == {"PATH": "/bin", **given}
    # Pointed elsewhere since.
    elsewhere = environ | {"HEADRACE_DATABASE_URL": "postgresql://db.internal/app"}
    assert home.without_made(elsewhere)["HEADRACE_DATABASE_URL"] == "postgresql://db.internal/app"


def test_sockets_below(tmp_path: Path) -> None:
    """Sockets have a private directory beside the rest, or the one that the user chose."""
    home = Home(tmp_path / ".headrace")
    home.path.mkdir()
    assert home.runtime_dir("a-999") == home.path / "run"
    assert stat.S_IMODE((home.path / "run").stat().st_mode) == 0o700
    assert home.runtime_dir("a-999", "sockets") == tmp_path / "sockets"
    assert home.runtime_dir("a-999", str(tmp_path / "x")) == tmp_path / "x"


def test_long_socket_paths_move(tmp_path: Path) -> None:
    """Where a socket's path would be too long, the directory is a short one elsewhere, the same until the end."""
    home = Home(tmp_path / ("d" * 120))
    home.path.mkdir()
    directory = home.runtime_dir("node-999")
    assert len(str(directory)) < 40
    assert Home(home.path).runtime_dir("node-999") == directory
    (directory / "node-0.sock").write_text("")
    home.remove_sockets([directory / "node-0.sock", directory / "node-1.sock"])
    assert not directory.exists()
    assert not (home.path / "run.location").exists()
    with pytest.raises(UsageError, match="HEADRACE_RUNTIME_DIR"):
        home.runtime_dir("node-999", "y" * 120)
