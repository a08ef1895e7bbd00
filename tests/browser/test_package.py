"""The element as a package: the file that the server serves, its types, and what npm makes of the folder."""

import gzip
import json
import subprocess
import urllib.request
from importlib import metadata, resources
from pathlib import Path

from tests.browser.npm_packages import npm
from tests.fixtures.up import Up
from tests.fixtures.waiting import DEADLINE_S

FOLDER = Path(str(resources.files("headrace") / "static"))
MODULE = FOLDER / "headrace.js"
TS_CONFIG = {
    "compilerOptions": {
        "strict": True,
        "noEmit": True,
        "skipLibCheck": False,
        "target": "es2022",
        "module": "esnext",
        "moduleResolution": "bundler",
        "lib": ["es2022", "dom"],
        "types": [],
    },
    "include": ["*.ts"],
}


def test_the_module_is_small():
    """The module is under 6 kB gzipped, so that it costs a page nothing to speak of."""
    assert len(gzip.compress(MODULE.read_bytes(), mtime=0)) < 6_000


def test_the_package_has_just_the_module_and_its_description(node: None):
    """`npm pack` takes the module, its types, the README, the licence and package.json, and needs nothing else."""
    (packed,) = json.loads(npm("pack", "--dry-run", "--json", "--offline", cwd=FOLDER))
    expected = {"headrace.js", "headrace.d.ts", "README.md", "LICENSE", "package.json"}
    assert {each["path"] for each in packed["files"]} == expected
    described = json.loads((FOLDER / "package.json").read_text())
    assert not {"dependencies", "peerDependencies", "scripts"} & described.keys()


def test_the_package_can_be_installed_and_imported(node: None, tmp_path: Path):
    """A packed package, installed into an application, is the module that the server serves, byte by byte."""
    npm("pack", "--pack-destination", str(tmp_path), "--offline", cwd=FOLDER)
    (tarball,) = tmp_path.glob("*.tgz")
    (tmp_path / "package.json").write_text("{}")
    npm("install", "--offline", "--no-audit", "--no-fund", str(tarball), cwd=tmp_path)
    resolved = subprocess.run(
        ["node", "--input-type=module", "-e", "console.log(import.meta.resolve('headrace-stream'))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    installed = Path(resolved.stdout.strip().removeprefix("file://"))
    assert installed.is_relative_to(tmp_path), resolved.stderr
    assert installed.read_bytes() == MODULE.read_bytes()


def test_it_can_be_imported_without_a_dom(node: None):
    """A program of Node, as one that renders pages on the server, imports the module twice, and nothing is defined."""
    module = MODULE.as_uri()
    program = f"""
        const copies = [await import("{module}"), await import("{module}?copy")];
        console.log(...copies.map(({{ HeadraceStream }}) => typeof HeadraceStream), typeof globalThis.customElements);
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", program], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (done.stdout, done.stderr) == ("function function undefined\n", "")


def test_the_server_serves_the_packaged_file(running_up: Up):
    """`/headrace.js` is the packaged module."""
    with urllib.request.urlopen(f"{running_up.ready()}/headrace.js", timeout=DEADLINE_S) as response:
        assert response.read() == MODULE.read_bytes()


USE = """
import { HeadraceStream, type HeadraceEvent } from "headrace-stream";

const element = document.querySelector("headrace-stream")!;
element.addEventListener("event", ({ detail }) => {
  const id: string = detail.id;
  const stream: string | number | undefined = detail.stream;
  console.log(id, stream, detail.data, detail.type);
});
element.addEventListener("gap", ({ detail }) => detail.missed_to - detail.missed_from + 1);
element.addEventListener("error", ({ detail }) => detail.wait === null || detail.wait > 0);
element.addEventListener("shipped", ({ detail }) => detail.data.length);
const listener = function (this: HeadraceStream, event: CustomEvent<HeadraceEvent>) { this.src = event.detail.data; };
element.addEventListener("message", listener, { once: true });
element.removeEventListener("message", listener);
const made: HeadraceStream = document.createElement("headrace-stream");
made.src = "/streams/1.x?since=now";
const waiting: boolean = made.state === "waiting" && made.lastEventId === null;
document.body.append(made, String(waiting));
"""
MISUSE = """
// @ts-expect-error: a state that there is not
made.state === "opened";
// @ts-expect-error: a detail that there is not
made.addEventListener("gap", ({ detail }) => detail.from);
// @ts-expect-error: an id is text
made.addEventListener("event", ({ detail }) => detail.id + 1 > 2);
// @ts-expect-error: the cursor is the element's
made.lastEventId = "5";
"""


def compile_typescript(packages: Path, directory: Path, source: str) -> str:
    """Check a program against the package's types; what the compiler has to say."""
    modules = directory / "node_modules"
    modules.mkdir()
    (modules / "headrace-stream").symlink_to(FOLDER)
    (directory / "tsconfig.json").write_text(json.dumps(TS_CONFIG))
    (directory / "use.ts").write_text(source)
    tsc = packages / ".bin" / "tsc"
    done = subprocess.run([tsc, "-p", "."], cwd=directory, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 or done.stdout
    return done.stdout


def test_the_types_know_the_element(packages: Path, tmp_path: Path):
    """TypeScript, strict, knows the tag, the events with their details and types of one's own, and refuses misuse."""
    assert compile_typescript(packages, tmp_path, USE + MISUSE) == ""


def test_the_package_is_described_like_the_server():
    """Both are released together, from one repository, under one licence."""
    described = json.loads((FOLDER / "package.json").read_text())
    of_server = metadata.metadata("headrace")
    assert described["version"] == of_server["Version"]
    assert described["license"] == of_server["License-Expression"]
    assert f"Homepage, {described['homepage']}" in of_server.get_all("Project-URL", [])
    assert (FOLDER / "LICENSE").read_bytes() == (FOLDER.parents[1] / "LICENSE").read_bytes()
