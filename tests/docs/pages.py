"""The pages of the documentation, as their source has them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

_BLOCK = re.compile(r"(<!-- not run: .+ -->\n\n?)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(name: str) -> str:
    """The source of a page, given its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The code blocks of a page in a language; ``""`` are those without one.

    Those under a comment ``<!-- not run: the reason -->`` are left out.
    """
    found = _BLOCK.findall(text_of(name))
    return [code for mark, own, code in found if own == language and not mark]
