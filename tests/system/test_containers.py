"""deploy/'s container files: valid by the published schemas, and what they start, from a wheel, serves clients.

No container engine runs here: what an image would hold is installed into an environment of its own instead, and the
processes of a pod are started from there with the variables and directories that the manifest gives them.
"""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

import headrace
from headrace.schema.migrations import migrate
from headrace.settings import Settings
from tests.fixtures.client import Client
from tests.fixtures.deployment import DEPLOY, LIBC, PR_SET_PDEATHSIG, Host, get
from tests.fixtures.ports import free_port
from tests.fixtures.postgres import execute, scratch_postgres
from tests.fixtures.programs import tool
from tests.fixtures.redis import RedisServer
from tests.fixtures.router import SECRET
from tests.fixtures.shard import Database
from tests.fixtures.waiting import DEADLINE_S, wait_until

ROOT = DEPLOY.parent
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
OPS_TOKEN = "a-token-that-only-tests-use"
SCRIPTS = Path(sysconfig.get_path("scripts"))


def documents() -> list[dict[str, Any]]:
    return [document for file in MANIFESTS for document in yaml.safe_load_all(file.read_text())]


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents() if document["kind"] == kind]
    return found


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions with their arguments."""
    lines = re.sub(r"\\\n", " ", (DEPLOY / "Containerfile").read_text()).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word and word != "#"]


def succeeds(*command: str | Path) -> str:
    ran = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_compose_file_is_valid() -> None:
    """It follows the published compose specification."""
    succeeds(SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_the_manifests_are_valid() -> None:
    """They follow the published schemas of Kubernetes, without a field that those do not know."""
    for version in ("1.29.1", "1.37.0"):
        succeeds(SCRIPTS / "kubernetes-validate", "--strict", "-k", version, *MANIFESTS)


def test_the_linter_has_no_complaint() -> None:
    """hadolint finds nothing in the Containerfile."""
    assert succeeds(SCRIPTS / "hadolint", DEPLOY / "Containerfile") == ""


def test_what_the_files_set_are_settings() -> None:
    """Every variable of the manifests and of the compose file is a setting, and the operations page is off in both."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    without_variables = {
        name: re.sub(r"\$\{\w+(:-|:\?)[^}]*\}", lambda match: "" if match[1] == ":-" else "x" * 16, value)
        for name, value in services["router"]["environment"].items()
    }
    for given in (of_kind("ConfigMap")["data"] | of_kind("Secret")["stringData"], without_variables):
        settings = Settings.from_environ(given | {"HEADRACE_SECRET": SECRET})
        settings.require("database_url", "redis_url", "secret")
        assert "HEADRACE_OPS_TOKEN" in given
        assert settings.ops_token == ""


def test_headrace_connects_as_an_owner_who_is_no_superuser() -> None:
    """What PostgreSQL's image runs for the compose file makes the role of its URL, which can migrate and publish."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    url = services["router"]["environment"]["HEADRACE_DATABASE_URL"]
    assert url.startswith("postgresql://headrace:${OWNER_PASSWORD") and url.endswith("/headrace")
    assert "./owner.sh:/docker-entrypoint-initdb.d/owner.sh:ro" in services["postgres"]["volumes"]
    assert "./owner.sql:/owner.sql:ro" in services["postgres"]["volumes"]
    with scratch_postgres() as server:
        execute(server, "drop database headrace")
        execute(server, "drop role headrace_publisher")
        execute(server, "create role postgres superuser login password 'x'")
        image = psycopg.conninfo.conninfo_to_dict(server.database_url("postgres")) | {
            "user": "postgres",
            "password": "x",
        }
        with psycopg.connect(**image, autocommit=True) as connection:  # type: ignore[arg-type]
            connection.execute("alter role headrace rename to another")  # who would be in the way
        script = (DEPLOY / "owner.sh").read_text().replace("=/owner.sql", f"={DEPLOY / 'owner.sql'}")
        libpq = {"PGHOST": image["host"], "PGPORT": image["port"], "PGPASSWORD": "x", "PGDATABASE": "postgres"}
        environ = {name: str(value) for name, value in libpq.items()} | {"OWNER_PASSWORD": "it's"}
        programs = f"{tool('psql').rpartition('/')[0]}:/usr/bin:/bin"
        subprocess.run(["sh", "-c", script], env=environ | {"PATH": programs}, check=True, timeout=60)
        owner = psycopg.conninfo.make_conninfo(
            host=image["host"], port=image["port"], user="headrace", password="it's", dbname="headrace"
        )
        assert migrate(owner)
        with psycopg.connect(owner, autocommit=True) as connection:
            connection.execute("select headrace.publish('s', 'x'), headrace.prune(1)")
            asked = "select rolsuper or rolcreaterole or rolcreatedb from pg_roles where rolname = current_user"
            assert connection.execute(asked).fetchone() == (False,)


def test_selectors_and_names_meet() -> None:
    """Services, the budget and the set select the pods that there are, and what containers refer to is there."""
    pods = of_kind("StatefulSet")["spec"]["template"]
    labels = pods["metadata"]["labels"].items()
    for document in documents():
        selector = document.get("spec", {}).get("selector", {})
        assert selector.get("matchLabels", selector).items() <= labels
    names = {(document["kind"], document["metadata"]["name"]) for document in documents()}
    for container in pods["spec"]["containers"] + of_kind("Job")["spec"]["template"]["spec"]["containers"]:
        for source in container["envFrom"]:
            ((reference, of),) = source.items()
            assert ({"configMapRef": "ConfigMap", "secretRef": "Secret"}[reference], of["name"]) in names
        for mount in container.get("volumeMounts", []):
            assert mount["name"] in {volume["name"] for volume in pods["spec"]["volumes"]}
    assert ("Service", of_kind("StatefulSet")["spec"]["serviceName"]) in names


def test_what_the_kubelet_is_told() -> None:
    """No variable is made of the services' names, nothing is written into the image, and the stop has its time."""
    pods = of_kind("StatefulSet")["spec"]["template"]["spec"]
    for spec in (pods, of_kind("Job")["spec"]["template"]["spec"]):
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
    hooks = " ".join(word for each in pods["containers"] for word in each["lifecycle"]["preStop"]["exec"]["command"])
    over, rest, shards = (
        int(re.search(pattern, hooks)[1]) for pattern in (r"--over (\d+)", r"; sleep (\d+)", r"sleep (\d+)$")
    )  # type: ignore[index]
    # The drain has ended before a shard says goodbye, and both before the kubelet kills what is left.
    assert over + rest < shards
    assert shards + Settings().stop_deadline_s + 5 < pods["terminationGracePeriodSeconds"]


class Image:
    """An environment with what the Containerfile's first stage builds, from the files that it copies."""

    def __init__(self, directory: Path) -> None:
        source = directory / "src"
        source.mkdir()
        for word, rest in instructions():
            if word == "COPY" and not rest.startswith("--from"):
                *paths, target = rest.split()
                for path in paths:
                    if not target.startswith("/"):
                        succeeds("cp", "-r", ROOT / path, source / target)
        pip = (sys.executable, "-m", "pip", "--quiet")
        building = ("--no-deps", "--no-build-isolation", "--wheel-dir", directory)
        succeeds(*pip, "wheel", *building, source)
        venv.create(directory / "venv")
        self.bin = directory / "venv" / "bin"
        (wheel,) = directory.glob("*.whl")
        succeeds(*pip, "--python", self.bin / "python", "install", "--no-deps", "--no-index", wheel)
        # The dependencies, which the second stage installs from the index, are those of the checkout's environment.
        (packages,) = (directory / "venv").glob("lib/python*/site-packages")
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        used = succeeds(self.bin / "python", "-P", "-c", "import headrace; print(headrace.__file__)")
        assert Path(used.strip()).is_relative_to(packages)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image(tmp_path_factory.mktemp("image"))


CONTAINER = """
set -e
mount -t tmpfs tmpfs /run
mkdir /run/headrace
mount --bind "$1/run" /run/headrace
mount --bind "$1/tmp" "$1/tmp"
mount -o remount,bind,ro /
cd /run/headrace
shift
exec unshare --user --map-user=1000680000 --map-group=1000680000 -- setpriv --pdeathsig TERM -- "$@"
"""
"""Runs a command as a container of the manifest does: its root is read-only but for what is mounted, its user is a
number that has no name, as on clusters that give each project users of its own, and it has no capability."""


def service_links() -> dict[str, str]:
    """What a kubelet tells containers of the services that there are, unless it is told not to."""
    found = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    for service in documents():
        if service["kind"] == "Service" and service["spec"].get("clusterIP") != "None":
            name = service["metadata"]["name"].upper().replace("-", "_")
            (port,) = service["spec"]["ports"]
            link = f"{name}_PORT_{port['port']}_TCP"
            found |= {
                f"{name}_SERVICE_HOST": "10.96.0.17",
                f"{name}_SERVICE_PORT": str(port["port"]),
                f"{name}_SERVICE_PORT_{port['name'].upper()}": str(port["port"]),
                f"{name}_PORT": f"tcp://10.96.0.17:{port['port']}",
                link: f"tcp://10.96.0.17:{port['port']}",
                f"{link}_PROTO": "tcp",
                f"{link}_PORT": str(port["port"]),
                f"{link}_ADDR": "10.96.0.17",
            }
    return found


class Pod:
    """The containers of the set's first pod, as processes. Owned by the test thread; they die with it.

    Its name is as long as one of a StatefulSet may be, and it is told of all services.
    """

    NAME = f"headrace-{'x' * 52}-0"

    def __init__(self, image: Image, directory: Path, changes: dict[str, str]) -> None:
        self.port = free_port()
        self.directory = directory
        self.containers = of_kind("StatefulSet")["spec"]["template"]["spec"]["containers"]
        self.environ = of_kind("ConfigMap")["data"] | of_kind("Secret")["stringData"]
        assert changes.keys() <= self.environ.keys()
        self.environ |= (
            service_links()
            | {
                "HEADRACE_NODE": self.NAME,
                "HEADRACE_CANARY_URL": f"http://127.0.0.1:{self.port}",
            }
            | changes
        )
        self._fixed = dict(pair.split("=") for word, rest in instructions() if word == "ENV" for pair in rest.split())
        self._fixed |= {
            "ROUTER_BIND": f"127.0.0.1:{self.port}",
            "HEADRACE_HANDOFF_DEADLINE_S": "10",
        }
        self._image = image
        # The volume /tmp lies elsewhere here, since the image does below /tmp.
        place = {"PATH": f"{image.bin}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "TMPDIR": str(directory / "tmp")}
        self._environ = self.environ | self._fixed | place
        (directory / "run").mkdir()
        (directory / "tmp").mkdir()
        self._container = [tool("unshare"), "--user", "--map-root-user", "--mount", "--"]
        self._container += ["sh", "-c", CONTAINER, "sh", str(directory)]
        if subprocess.run([*self._container, "true"], capture_output=True, env=self._environ).returncode != 0:
            message = "this kernel lets nobody make a container's view of the file system (user_namespaces(7))"
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
        self.processes = {container["name"]: self._start(container) for container in self.containers}

    def _start(self, container: dict[str, Any]) -> "subprocess.Popen[bytes]":
        command = [
            re.sub(r"\$\((\w+)\)", lambda match: self.environ[match.group(1)], word).replace(
                "/etc/headrace", str(DEPLOY)
            )
            for word in container["command"]
        ]
        with self.log(container["name"]).open("ab") as log:
            return subprocess.Popen(
                [*self._container, str(self._image.bin / command[0]), *command[1:]],
                env=self._environ,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def probe(self, name: str) -> bool:
        """What the kubelet asks of the router."""
        (router,) = [container for container in self.containers if container["name"] == "router"]
        path = router[name]["httpGet"]["path"]
        try:
            with get(self.port, path) as client:
                return b" 200 " in client.recv(64)
        except OSError:
            return False

    def run(self, hook: str) -> str:
        """What the kubelet executes in the router's container, but for the time that it takes; returns its output."""
        (router,) = [container for container in self.containers if container["name"] == "router"]
        command = [
            word.replace("--over 20", "--over 1").replace("sleep 5", "true")
            for word in router["lifecycle"][hook]["exec"]["command"]
        ]
        ran = subprocess.run(
            [*self._container, *command], env=self._environ, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def operations(self) -> dict[str, Any]:
        """What the operations page shows to who has the token."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/ops/status")
        request.add_header("Authorization", f"Bearer {OPS_TOKEN}")
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def end(self) -> dict[str, int]:
        """What ends a pod; returns the exit statuses."""
        for process in self.processes.values():
            process.terminate()
        return {name: process.wait(DEADLINE_S) for name, process in self.processes.items()}


@pytest.fixture
def pod(image: Image, tmp_path: Path, deployed: Database, shared_redis: RedisServer) -> Iterator[Pod]:
    changes = {
        "HEADRACE_OPS_TOKEN": OPS_TOKEN,
        "HEADRACE_SECRET": SECRET,
        "HEADRACE_DATABASE_URL": deployed.url,
        "HEADRACE_LISTEN_DATABASE_URL": deployed.url,
        "HEADRACE_REDIS_URL": shared_redis.url,
    }
    made = Pod(image, tmp_path, changes)
    yield made
    made.end()
    print(*(file.read_text() for file in tmp_path.glob("*.log")), sep="\n")  # noqa: T201


def test_a_pod_serves_and_goes_in_order(pod: Pod, hosts: list[Host], deployed: Database) -> None:
    """The image's programs, started as the manifest says, are found ready by its probes, deliver, show, drain, end.

    They do so with a read-only root, under a user without a name, in a pod with the longest name, and beside variables
    that the kubelet makes of the service's name.
    """
    assert pod.run("postStart") == f"node {pod.NAME} is up\n"
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        wait_until(lambda name=name: pod.probe(name), f"the {name} succeeds; see {pod.directory}")
    client = Client(get(pod.port, headrace.sign("room:1", secrets=[pod.environ["HEADRACE_SECRET"]])))
    client.wait(lambda: client.last_id, "the cursor")
    deployed.publish("room:1", "hello")
    client.wait_for_data("hello")
    ids = {f"{pod.NAME}-0", f"{pod.NAME}-1"}
    wait_until(lambda: ids <= {shard["id"] for shard in pod.operations()["shards"]}, f"{ids} are shown")
    assert pod.run("preStop") == f"node {pod.NAME} is drained\n"
    wait_until(lambda: not pod.probe("readinessProbe"), "the router knows that it is drained")
    assert client.wait_for_sentinel("goodbye")
    client.close()
    assert set(pod.end().values()) == {0}


def test_compose_starts_what_the_pod_starts(image: Image, deployed: Database) -> None:
    """The services' commands are the manifest's, but for the names, and the one that migrates works from the image."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for container in of_kind("StatefulSet")["spec"]["template"]["spec"]["containers"]:
        command = [word.replace("$(HEADRACE_NODE)", "web1") for word in container["command"]]
        assert services[container["name"]]["command"] == command
    program, *arguments = services["migrate"]["command"]
    migrated = subprocess.run(
        [image.bin / program, *arguments],
        env={"HEADRACE_DATABASE_URL": deployed.url},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (migrated.returncode, migrated.stdout) == (0, "the schema is up to date\n"), migrated.stderr
