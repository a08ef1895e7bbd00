"""Modules that `import headrace` leaves out, and the error that says so."""

import subprocess
import sys

import pytest

import headrace


@pytest.mark.parametrize("name", ["asyncio", "django", "jinja", "sqlalchemy", "testing"])
def test_a_module_that_was_not_imported_is_named(name: str) -> None:
    """`import headrace` alone brings none of them; using one says which import is missing."""
    code = f"import headrace\ntry: headrace.{name}.publish\nexcept AttributeError as error: print(error)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"headrace.{name} is not imported; write `import headrace.{name}` first\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = headrace.nothing
