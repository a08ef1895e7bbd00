"""The documentation as a site: what `make docs` builds."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD_S = 120


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Every page is read, every link and reference leads somewhere, and every page is in the contents."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "index.html").exists()
