"""Puts the files of the repository that pages link to into the site, and points the links there.

On GitHub `../recipes/small/README.md` leads to a file outside `docs/`. The site has it under
`repository/`, so that it can be read offline: Markdown as a page, folders as lists of their files,
short sources with their syntax coloured, everything else as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ALWAYS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
# A target in Markdown, or in HTML within it.
LINK = re.compile(r'(\]\(|(?:src|srcset|href)=")([^)\s"#:]+)(?=[)\s"#])')
BADGE = re.compile(r"!\[([^]]*)\]\(https?:[^)]*\)")
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".toml": "toml", ".txt": "text"}
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what the pages link to, and what those files link to themselves."""
    texts = [(_origin(f.src_uri), f.content_string) for f in files.documentation_pages()]
    waiting = [ROOT / name for name in ALWAYS]
    waiting += [target for origin, text in texts for target in _outside(origin, text)]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        files.append(_file(path, config))
        if path.suffix == ".md":
            waiting += _outside(path, path.read_text(encoding="utf-8"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links at the site's copies, and leaves of pictures on other hosts their words."""
    origin = _origin(page.file.src_uri)
    folder = os.path.dirname(page.file.src_uri)

    def pointed(match: re.Match[str]) -> str:
        target = _target(origin, match[2])
        if target is None or (_in_docs(origin) and _in_docs(target)):
            return match[0]
        uri = _uri(target)
        if match[1].endswith('"') and (file := files.get_file_from_path(uri)):
            uri = file.dest_uri  # MkDocs leaves HTML alone
        return match[1] + os.path.relpath(uri, folder or ".")

    return LINK.sub(pointed, BADGE.sub(r"\1", markdown))


def _outside(origin: Path, text: str) -> Iterator[Path]:
    """The files outside docs/ that a text links to."""
    for match in LINK.finditer(text):
        target = _target(origin, match[2])
        if target and not _in_docs(target):
            yield target


def _in_docs(path: Path) -> bool:
    return path.is_relative_to(DOCS)


def _target(origin: Path, link: str) -> Path | None:
    """The file or folder of the repository that a link of a file leads to, if there is one."""
    path = Path(os.path.normpath(origin.parent / link))
    if not path.is_relative_to(ROOT) or path == ROOT or not path.exists():
        return None
    readme = path / "README.md"
    return readme if readme.exists() else path


def _uri(path: Path) -> str:
    """The name of a file's page in the site's sources."""
    if _in_docs(path):
        return path.relative_to(DOCS).as_posix()
    name = f"repository/{path.relative_to(ROOT).as_posix()}"
    if path.is_dir():
        return f"{name}/index.md"
    return f"{name}.md" if path.suffix in LANGUAGES else name


def _origin(uri: str) -> Path:
    """The file that `_uri` named so; of a source's page the source itself."""
    name = uri.removeprefix("repository/")
    if name == uri:
        return DOCS / uri
    path = ROOT / name
    return path if path.exists() else path.with_suffix("")


def _file(path: Path, config: MkDocsConfig) -> File:
    uri = _uri(path)
    if path.is_dir():
        return File.generated(config, uri, content="\n".join(_listing(path)))
    if path.suffix in LANGUAGES:
        return File.generated(config, uri, content=_source(path))
    return File.generated(config, uri, abs_src_path=str(path))


def _listing(folder: Path) -> Iterator[str]:
    yield f"{HIDDEN}# {folder.relative_to(ROOT).as_posix()}/\n"
    for path in sorted(folder.iterdir()):
        yield f"- `{path.name}{'/' if path.is_dir() else ''}`"


def _source(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    fence = "~~~~~~"
    name = path.relative_to(ROOT).as_posix()
    return f"{HIDDEN}# {name}\n\n{fence}{LANGUAGES[path.suffix]}\n{text}{fence}\n"
