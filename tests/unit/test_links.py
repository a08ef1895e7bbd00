"""Every link of every document leads to a file, and to a heading in it, that is there."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/headrace/headrace/blob/main/"
MADE_WHEN_BUILT = ("node_modules", "_build", "build")
DOCUMENTS = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not any(part in MADE_WHEN_BUILT or part.startswith(".") for part in path.relative_to(ROOT).parts)
]
CODE = re.compile(r"^(`{3,})(?!\{)[^\n]*\n.*?^\1$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """What a link can lead to within a document, by the names that GitHub and MyST give to headings."""
    text = re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 0
        while (name if not number else f"{name}-{number}") in found:
            number += 1
        found.add(name if not number else f"{name}-{number}")
    return found


def links(path: Path) -> list[str]:
    """The targets of a document's links and pictures, of either way to write them."""
    text = CODE.sub("code", path.read_text())
    return [
        *re.findall(r"\[[^]]*\]\(([^)\s]+)(?: \"[^\"]*\")?\)", text),
        *re.findall(r"^\[[^]]+\]: (\S+)$", text, re.MULTILINE),
        *re.findall(r"<(?:img|a)\b[^>]*\b(?:src|href)=\"([^\"]+)\"", text),
    ]


def test_there_are_documents_and_links() -> None:
    """The patterns find what is there."""
    assert {ROOT / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "deploy" / "README.md"} <= set(DOCUMENTS)
    assert "guide/install.md" in links(ROOT / "docs" / "quickstart.md")
    assert "how-long-events-are-kept" in anchors(ROOT / "docs" / "guide" / "publish.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Each link within the repository, written as a path or as the address of the repository's page, has its target."""
    for link in links(document):
        target, _, anchor = unquote(link).partition("#")
        if target.startswith(REPOSITORY):
            path = ROOT / target.removeprefix(REPOSITORY)
        elif re.match(r"[a-z]+:", target):
            continue
        else:
            path = (document.parent / target) if target else document
        assert path.exists(), f"{link} leads nowhere"
        assert not anchor or path.suffix != ".md" or anchor in anchors(path), f"{link}: no such heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_have_words(document: Path) -> None:
    """No link is empty: only Sphinx would put a title into it."""
    text = CODE.sub("code", document.read_text())
    assert not re.search(r"(?<!!)\[\]\(", text)
