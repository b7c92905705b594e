"""Lets links of the pages work on GitHub and in the site: what they name outside of docs/ becomes part of the site.

The project's own pages become pages; of other files the site has a copy that a browser shows as text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent
PAGES = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(\]\(|^\[\w+\]: )(?![a-z]+:|#)([^)\s#]+)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the project's pages, and every file that a page links to."""
    for name, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    pages = [(_home(file.src_uri), file.content_string) for file in files.documentation_pages()]
    linked = {_in_repository(home, link) for home, text in pages for _, link in LINK.findall(text)}
    for path in sorted(path for path in linked if _place(path).startswith("source/") and (ROOT / path).is_file()):
        files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between files of the site."""
    home = _home(page.file.src_uri)
    return LINK.sub(lambda found: found[1] + _place(_in_repository(home, found[2])), markdown)


def _home(page: str) -> str:
    """Return the folder of the repository that a page's links start from."""
    return "" if page in PAGES.values() else "docs"


def _in_repository(home: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(home, link))


def _place(path: str) -> str:
    """Return where a file of the repository is in the site, whose pages all lie in one folder."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path, f"source/{path}.txt")
