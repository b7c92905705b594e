"""Makes the links of the pages work both on GitHub and in the site.

The README and other pages at the root become pages of the site; other linked files are copied as text.
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
    """Add the pages at the root of the project, and every file that a page links to."""
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
    """Return the folder of the repository to which the links of a page are relative."""
    return "" if page in PAGES.values() else "docs"


def _in_repository(home: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(home, link))


def _place(path: str) -> str:
    """Return the path in the site of a file of the repository; all pages are in one folder."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path, f"source/{path}.txt")
