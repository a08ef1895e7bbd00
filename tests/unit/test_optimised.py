"""`python -OO`, which drops docstrings: what headrace says to people does not rest on them."""

import os
import subprocess
import sys

SAYS = """
import pkgutil, importlib
import click
import headrace.errors
from headrace.cli import main

for name, command in [("headrace", main), *sorted(main.commands.items())]:
    print(command.get_help(click.Context(command, info_name=name)), command.get_short_help_str())
for found in pkgutil.walk_packages(headrace.__path__, "headrace."):
    if not found.name.startswith("headrace.django.") and not found.name.endswith(("__main__", "gunicorn_conf")):
        importlib.import_module(found.name)
kinds = [headrace.errors.HeadraceError]
for kind in kinds:
    kinds += kind.__subclasses__()
    print(kind.__name__, "says", kind() if "sentence" in vars(kind) else "nothing of its own")
"""


def test_errors_and_helps_say_the_same() -> None:
    """Each command has its help and each error its sentence, with docstrings and without."""
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    said, optimised = (
        subprocess.run(
            [sys.executable, *options, "-c", SAYS], capture_output=True, text=True, check=True, env=environ
        ).stdout
        for options in ([], ["-OO"])
    )
    assert optimised == said
    assert "nothing of its own" not in said
    assert "StreamNameError says a stream name must have 1 to 512 bytes" in said
    assert "Create or upgrade the SQL schema." in said
