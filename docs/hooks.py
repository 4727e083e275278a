"""What the site adds to the plain Markdown of docs/: files of the repository, and docstrings.

- Some files outside docs/ are pages of the site too, under ``repository/``.
- Links are written as GitHub wants them, relative to the file. Those that leave docs/ are turned
  to these pages.
- In docs/api, an item that is one name becomes the documentation of that name.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PATTERNS = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "results/README.md",
    "results/*.svg",
    "examples/*.py",
    "examples/*.ipynb",
)

_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")
_NAME = re.compile(r"^- `(lmaas_tune[\w.]+)`$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository."""
    for path in sorted(found for pattern in PATTERNS for found in ROOT.glob(pattern)):
        uri = _site_uri(path.relative_to(ROOT).as_posix())
        if path.suffix in (".py", ".ipynb"):
            files.append(File.generated(config, uri, content=_page(path)))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def _page(path: Path) -> str:
    """A program or a notebook as Markdown."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return f"# {path.name}\n\n{_code(text)}"
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(_code(source) if kind == "code" else source for kind, source in cells)


def _code(text: str) -> str:
    return f"```python\n{text.rstrip()}\n```\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links, and names of the reference."""
    own = page.file.src_uri

    def turn(link: re.Match[str]) -> str:
        folder = posixpath.dirname(_repository_path(own))
        target = _site_uri(posixpath.normpath(posixpath.join(folder, link[2])))
        return link[1] + posixpath.relpath(target, posixpath.dirname(own) or ".")

    markdown = _LINK.sub(turn, markdown)
    return _NAME.sub(r"::: \1", markdown) if own.startswith("api/") else markdown


def _site_uri(path: str) -> str:
    """The place in the site of a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return "repository/" + re.sub(r"\.(py|ipynb)$", ".md", path)


def _repository_path(uri: str) -> str:
    """The file of the repository at a place in the site."""
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"
