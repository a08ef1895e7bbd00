"""The compiled tools, built from their sources for one run.

`ssebench` is the load client, `rawfan` the floor, and `subscriber` a load client with the checks of subscriber.c.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from loadtests.bench.writers import SESSIONS

BESIDE_CHECKOUT: Final = Path(__file__).parents[3] / "shared" / "bench"

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
_SUBSCRIBER: Final = Path(__file__).with_name("subscriber.c")

# What is put in the place of text of ssebench.c. The client's own paths differ in a number only, and signed paths in
# everything: `--path @FILE` reads them, one a line.
_PATHS: Final = {
    "static void on_writable(": _PATH_OF + "static void on_writable(",
    "snprintf(path, sizeof path, opt.path,": "path_of(path, sizeof path, opt.path,",
}
_CHECKS: Final = {
    "static void end_of_block(": f'#include "{_SUBSCRIBER}"\n\nstatic void end_of_block(',
    "        c->has_data = 1;\n": "        c->has_data = 1;\n        check_number(c, p + 4, end);\n",
    "    int n = epoll_wait(ep, ev, 512, timeout_ms);\n": (
        "    int n = epoll_wait(ep, ev, 512, timeout_ms);\n    answer_questions();\n"
    ),
    '    printf("\\"client_cpu_s\\"': '    report_numbers();\n    printf("\\"client_cpu_s\\"',
}


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs, ready to run."""

    ssebench: Path
    rawfan: Path
    subscriber: Path

    @classmethod
    def build(cls, sources: Path | None, into: Path) -> "Tools":
        """Compile them from the directory sources (None: BENCH_TOOLS, else beside the checkout) into another.

        Raises click.ClickException, which says what is missing and how to get it.
        """
        directory = sources or Path(os.environ.get("BENCH_TOOLS") or BESIDE_CHECKOUT)
        for name in ("ssebench.c", "rawfan.c"):
            if not (directory / name).is_file():
                raise click.ClickException(
                    f"the bench's tools are not part of this repository, and there is no {name} in {directory}; "
                    "name the directory that has ssebench.c and rawfan.c with --tools or in BENCH_TOOLS"
                )
        original = directory / "ssebench.c"
        tools = cls(into / "ssebench", into / "rawfan", into / "subscriber")
        _compile(_extended(original, into / "ssebench.c", _PATHS), tools.ssebench)
        checking = _extended(original, into / "subscriber.c", _PATHS | _CHECKS)
        _compile(checking, tools.subscriber, f"-DSESSIONS={SESSIONS}")
        _compile(directory / "rawfan.c", tools.rawfan, "-luring")
        return tools


def _extended(original: Path, copy: Path, replaced: Mapping[str, str]) -> Path:
    """Write a copy of a source in which each text is replaced by another.

    Raises click.ClickException unless each of them is there once.
    """
    source = original.read_text()
    for text, by in replaced.items():
        if source.count(text) != 1:
            raise click.ClickException(f"{original} is of another version; tools.py replaces {text.strip()!r} in it")
        source = source.replace(text, by)
    copy.write_text(source)
    return copy


def _compile(source: Path, program: Path, *options: str) -> None:
    try:
        done = subprocess.run(
            ["cc", "-O2", "-o", str(program), str(source), *options], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise click.ClickException("there is no C compiler `cc`; apt-get install gcc libc6-dev liburing-dev") from None
    if done.returncode:
        raise click.ClickException(
            f"{source.name} does not compile (apt-get install gcc libc6-dev liburing-dev):\n{done.stderr[-1000:]}"
        )
