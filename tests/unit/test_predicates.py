"""headrace/predicates.py: where the module of HEADRACE_FILTERS is found"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = "from headrace import predicates; print(*predicates.load('ours')); import uuid; print(uuid.__file__)"
OURS = "from headrace import predicate\n\n@predicate({label!r})\ndef shown(context, stream):\n    return True\n"


def load(directory: Path, *path: Path, program: str = PROGRAM) -> "subprocess.CompletedProcess[str]":
    """What a process that runs in the directory says, with these places besides where Python looks for modules."""
    environ = {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    return subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=directory, env=environ, capture_output=True, text=True
    )


def test_the_working_directory_is_the_last_place(tmp_path: Path) -> None:
    """A module there is found, hides no other one, and is itself hidden by one that Python finds elsewhere."""
    (tmp_path / "ours.py").write_text(OURS.format(label="here"))
    (tmp_path / "uuid.py").write_text("")
    label, imported = load(tmp_path).stdout.splitlines()
    assert label == "here"
    assert not Path(imported).is_relative_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "ours.py").write_text(OURS.format(label="elsewhere"))
    assert load(tmp_path, tmp_path / "elsewhere").stdout.splitlines()[0] == "elsewhere"


def test_no_module_and_no_directory_are_told(tmp_path: Path) -> None:
    """Where it is not found, or the working directory is gone, the error names the setting."""
    assert "HEADRACE_FILTERS is 'ours', which cannot be imported" in load(tmp_path).stderr
    gone = tmp_path / "gone"
    gone.mkdir()
    ran = load(gone, program=f"import os; os.rmdir({str(gone)!r}); {PROGRAM}")
    assert "HEADRACE_FILTERS is 'ours', which cannot be imported: [Errno 2]" in ran.stderr
