"""headrace/settings.py"""

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.environment_file import environ_with_file
from headrace.errors import SettingsError
from headrace.settings import Settings

ROOT = Path(__file__).parents[2]


def test_defaults() -> None:
    """An empty environment gives settings that stand on their own."""
    settings = Settings.from_environ({})
    assert settings.heartbeat_interval_s == 15
    assert settings.node
    assert settings.connection_limit() > 0


def test_listen_url_follows() -> None:
    """The LISTEN URL is the database's unless it is given."""
    url, direct = "postgresql://pooler/x", "postgresql://direct/x"
    assert Settings.from_environ({"HEADRACE_DATABASE_URL": url}).listen_database_url == url
    both = {"HEADRACE_DATABASE_URL": url, "HEADRACE_LISTEN_DATABASE_URL": direct}
    assert Settings.from_environ(both).listen_database_url == direct


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("HEADRACE_HEARTBEAT_INTERVAL_S", "soon", "number of seconds from 0.1 to 3,600"),
        ("HEADRACE_HEARTBEAT_INTERVAL_S", "0", "number of seconds from 0.1 to 3,600"),
        ("HEADRACE_HEARTBEAT_INTERVAL_S", "nan", "number of seconds"),
        ("HEADRACE_READERS", "1.5", "whole number of database connections a shard from 1 to 16"),
        ("HEADRACE_REDIS_URL", "http://x", "redis://"),
        ("HEADRACE_SECRET", "short", "at least 16 characters"),
        ("HEADRACE_NODE", "a b", "letters"),
        ("HEADRACE_DEMO", "perhaps", "on or off"),
        ("HEADRACE_LOG_LEVEL", "loud", "debug, info"),
        ("HEADRACE_DIRECTORY_EXPIRY_S", "0.5", "at least twice"),
        ("HEADRACE_FORGET_AFTER_S", "3599", "at least 3600"),
        ("HEADRACE_FORGET_AFTER_S", "-1", "from 0"),
    ],
)
def test_wrong_values(variable: str, value: str, allowed: str) -> None:
    """A wrong value names the variable, the value and what is allowed."""
    with pytest.raises(SettingsError, match=allowed) as caught:
        Settings.from_environ({variable: value})
    assert variable in str(caught.value)
    # Secrets and URLs, which may hold a password, are not repeated.
    assert (value in str(caught.value)) is (variable not in ("HEADRACE_SECRET", "HEADRACE_REDIS_URL"))


def test_unknown_variable() -> None:
    """A misspelt variable is an error, not ignored in silence."""
    with pytest.raises(SettingsError, match="HEADRACE_SHARD"):
        Settings.from_environ({"HEADRACE_SHARD": "3"})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HEADRACE_PORT", "tcp://10.96.0.17:8000"),
        ("HEADRACE_PORT_8000_TCP", "tcp://10.96.0.17:8000"),
        ("HEADRACE_PORT_8000_TCP_PROTO", "tcp"),
        ("HEADRACE_PORT_8000_TCP_PORT", "8000"),
        ("HEADRACE_PORT_8000_TCP_ADDR", "10.96.0.17"),
        ("HEADRACE_SERVICE_HOST", "10.96.0.17"),
        ("HEADRACE_SERVICE_PORT", "8000"),
        ("HEADRACE_SERVICE_PORT_HTTP", "8000"),
        ("HEADRACE_WEB_CANARY_SERVICE_HOST", "fd00::1"),
        ("HEADRACE_WEB_CANARY_PORT", "tcp://[fd00::1]:8000"),
        ("HEADRACE_WEB_CANARY_PORT_53_UDP", "udp://10.96.0.17:53"),
    ],
)
def test_service_links_are_passed_over(variable: str, value: str) -> None:
    """What the kubelet tells every container of a service named headrace, or headrace-something, stops no process."""
    assert Settings.from_environ({variable: value}) == Settings.from_environ({})


@pytest.mark.parametrize(
    ("variable", "value"), [("HEADRACE_PORT", "8001"), ("HEADRACE_SERVICE", "x"), ("HEADRACE_PORT_8000", "8000")]
)
def test_what_only_resembles_a_service_link_is_refused(variable: str, value: str) -> None:
    """A setting that somebody has made up is told, though its name is nearly one of the kubelet's."""
    with pytest.raises(SettingsError, match=variable):
        Settings.from_environ({variable: value})


def test_misspelt_variable() -> None:
    """A variable that is nearly a setting is told that one, and not the fifty others."""
    with pytest.raises(SettingsError, match="perhaps HEADRACE_HEARTBEAT_INTERVAL_S") as caught:
        Settings.from_environ({"HEADRACE_HEARTBEET_INTERVAL_S": "3"})
    assert "HEADRACE_SECRET" not in str(caught.value)


def test_empty_is_unset() -> None:
    """An empty variable counts as unset."""
    assert Settings.from_environ({"HEADRACE_READERS": ""}).readers == 2


def test_secrets_are_not_shown() -> None:
    """Neither repr nor an error shows a secret or a URL with its password."""
    environ = {"HEADRACE_SECRET": "s" * 20, "HEADRACE_DATABASE_URL": "postgresql://u:hunter2@h/d"}
    assert "ssss" not in repr(Settings.from_environ(environ))
    assert "hunter2" not in repr(Settings.from_environ(environ))
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({"HEADRACE_DATABASE_URL": "mysql://u:hunter2@h/d"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("https://a.example, http://b.example:8080", ("https://a.example", "http://b.example:8080")),
        ("HTTPS://A.Example/", ("https://a.example",)),
        ("https://a.example:443,http://a.example:80", ("https://a.example", "http://a.example")),
        ("capacitor://localhost,http://[::1]:5000", ("capacitor://localhost", "http://[::1]:5000")),
    ],
)
def test_origins_are_as_browsers_send_them(text: str, origins: tuple[str, ...]) -> None:
    """What could never be equal to a browser's Origin is written as one."""
    assert Settings.from_environ({"HEADRACE_ALLOWED_ORIGINS": text}).allowed_origins == origins


@pytest.mark.parametrize(
    "text", ["null", "*", "https://a.example,null", "a.example", "https://a.example/page", "https://"]
)
def test_origins_of_anybody_are_refused(text: str) -> None:
    """`null` is sent by pages of anybody; `*` and what is no origin would be of no effect."""
    with pytest.raises(SettingsError, match="HEADRACE_ALLOWED_ORIGINS"):
        Settings.from_environ({"HEADRACE_ALLOWED_ORIGINS": text})


def test_secrets_that_everybody_knows_are_refused() -> None:
    """The examples' secret, alone or among others, signs nothing, and a token that can be guessed opens nothing."""
    for text in ("at-least-16-characters-of-your-own", f"{'s' * 20},at-least-16-characters-of-your-own"):
        with pytest.raises(SettingsError, match="of your own"):
            Settings.from_environ({"HEADRACE_SECRET": text})
    for text in ("at-least-16-characters-of-your-own", "changemechangeme", "1234512345123451"):
        with pytest.raises(SettingsError, match="nobody can guess"):
            Settings.from_environ({"HEADRACE_OPS_TOKEN": text})


def test_require() -> None:
    """A missing setting is an error that says how to set it."""
    with pytest.raises(SettingsError, match="HEADRACE_DATABASE_URL is not set"):
        Settings.from_environ({}).require("database_url")


def test_file_completes_environment(tmp_path: Path) -> None:
    """The file that `up` writes completes the environment, which wins."""
    file = tmp_path / "env"
    file.write_text("# comment\nHEADRACE_NODE=file\nHEADRACE_SECRET=a=b,c\n")
    merged = environ_with_file({"HEADRACE_NODE": "mine"}, file)
    assert merged == {"HEADRACE_NODE": "mine", "HEADRACE_SECRET": "a=b,c"}
    assert environ_with_file({}, tmp_path / "none") == {}


def test_a_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """A file that only another user may read is passed over, and told of where a variable is missing for it."""
    file = tmp_path / ".headrace" / "env"
    file.parent.mkdir()
    file.write_text("HEADRACE_SECRET=a\n")
    program = (
        "import os, sys; from pathlib import Path; from headrace.environment_file import environ_with_file\n"
        "from headrace.settings import Settings\n"
        "from headrace.errors import SettingsError; from headrace import sign; os.setuid(65534)\n"
        "print(environ_with_file({'HEADRACE_NODE': 'mine'}), bool(sign('room:1')))\n"
        "try: Settings.from_environ({}).require('database_url')\n"
        "except SettingsError as error: print(error)\n"
    )
    if os.geteuid() != 0:
        program = program.replace("os.setuid(65534)", "")
    for hidden in (file, file.parent):
        hidden.chmod(0)
        ran = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={"HEADRACE_SECRET": "s" * 32, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        hidden.chmod(0o700)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines()[0] == "{'HEADRACE_NODE': 'mine'} True"
        assert "cannot read '.headrace/env'" in ran.stdout


def test_connection_limit() -> None:
    """The descriptor limit bounds what a shard takes, whatever is set."""
    assert Settings(max_connections=7).connection_limit() == 7
    assert Settings(max_connections=10**6).connection_limit() < 10**6


def test_request_limit() -> None:
    """A router worker holds no more clients than its descriptors allow."""
    assert Settings(max_requests=7).request_limit() == 7
    assert Settings(max_requests=10**6).request_limit() < 10**6


def test_each_setting_explains_itself() -> None:
    """Each setting has a sentence, which begins with the unit, and a group, whose fields stand together."""
    described = [(field.name, field.metadata) for field in dataclasses.fields(Settings)]
    groups = [metadata["group"] for _, metadata in described]
    assert len(list(itertools.groupby(groups))) == len(set(groups)) > 5
    for name, metadata in described:
        assert re.fullmatch(r"[A-Z].*[.]", metadata["help"]), name
        assert metadata["parse"].allowed, name
        for end, unit in (("_per_s", ""), ("_s", "Seconds "), ("_ms", "Milliseconds "), ("_bytes", "Bytes ")):
            if name.endswith(end):
                assert metadata["help"].startswith(unit), name
                break
