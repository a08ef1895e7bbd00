"""The compiled tools: the load client `ssebench` and the floor `rawfan`, built from their sources for one run."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

BESIDE_CHECKOUT: Final = Path(__file__).parents[3] / "shared" / "bench"

# The client's own paths differ in a number only, and signed paths in everything: `--path @FILE` reads them, one a line.
_CALL: Final = "snprintf(path, sizeof path, opt.path,"
_BEFORE: Final = "static void on_writable("
_PATH_OF: Final = r"""
static void path_of(char *out, size_t size, const char *path, int number)
{
    static char **lines;
    if (path[0] != '@') {
        snprintf(out, size, path, number);
        return;
    }
    if (!lines) {
        FILE *file = fopen(path + 1, "r");
        lines = calloc((size_t)opt.streams, sizeof *lines);
        for (int i = 0; file && lines && i < opt.streams; i++) {
            size_t cap = 0;
            ssize_t len = getline(&lines[i], &cap, file);
            if (len > 0 && lines[i][len - 1] == '\n')
                lines[i][len - 1] = 0;
        }
    }
    snprintf(out, size, "%s", lines && lines[number] ? lines[number] : "/");
}

"""


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs, ready to run."""

    ssebench: Path
    rawfan: Path

    @classmethod
    def build(cls, sources: Path | None, into: Path) -> "Tools":
        """Compile both from the directory sources (None: BENCH_TOOLS, else beside the checkout) into another.

        Raises click.ClickException, which says what is missing and how to get it.
        """
        directory = sources or Path(os.environ.get("BENCH_TOOLS") or BESIDE_CHECKOUT)
        for name in ("ssebench.c", "rawfan.c"):
            if not (directory / name).is_file():
                raise click.ClickException(
                    f"the bench's tools are not part of this repository, and there is no {name} in {directory}; "
                    "name the directory that has ssebench.c and rawfan.c with --tools or in BENCH_TOOLS"
                )
        client = (directory / "ssebench.c").read_text()
        if _CALL not in client or _BEFORE not in client:
            raise click.ClickException(f"{directory / 'ssebench.c'} is of another version; tools.py adds paths to it")
        client = client.replace(_CALL, "path_of(path, sizeof path, opt.path,").replace(_BEFORE, _PATH_OF + _BEFORE)
        source = into / "ssebench.c"
        source.write_text(client)
        tools = cls(into / "ssebench", into / "rawfan")
        _compile(source, tools.ssebench)
        _compile(directory / "rawfan.c", tools.rawfan, "-luring")
        return tools


def _compile(source: Path, program: Path, *libraries: str) -> None:
    try:
        done = subprocess.run(
            ["cc", "-O2", "-o", str(program), str(source), *libraries], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise click.ClickException("there is no C compiler `cc`; apt-get install gcc libc6-dev liburing-dev") from None
    if done.returncode:
        raise click.ClickException(
            f"{source.name} does not compile (apt-get install gcc libc6-dev liburing-dev):\n{done.stderr[-1000:]}"
        )
