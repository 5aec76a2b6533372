"""Values to choose from: words, files of configs/ and recipes/, paths."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from bandpo.completion.candidate import Candidate, Paths, Way
from bandpo.disk.shipped import shipped

TEMPLATES = ("boxed", "answer_line", "none")
"""Those of `bandpo.data.prompting.template`, beside the files."""
_ASIDES = re.compile(r"\s+\([^()]*\)")
_FIRST_CLAUSE = re.compile(r".*?\w{3}(?=[;.]( |$))")  # does not end at the dot of "Dr. GRPO"


def ways(
    sources: Iterable[str | Sequence[str]], before: str, item: str, words: Sequence[str]
) -> Iterator[Way]:
    """The values of some sources, behind the part `before` of the word.

    A source is a list of words or a name of `SOURCES`; `item` is the value so far, and `words` are
    the other arguments, which may name folders of configs.
    """
    folders = config_folders(words)
    for source in sources:
        if source in ("files", "folders"):
            yield Paths(before, folders_only=source == "folders")
        elif source == "benchmarks" and item.startswith("file:"):
            yield Paths(f"{before}file:")
        else:
            found = SOURCES[source](folders) if isinstance(source, str) else map(Candidate, source)
            for value in found:
                yield Candidate(before + value.text, value.about, value.ends)


def config_folders(words: Sequence[str]) -> list[Path]:
    """The shipped configs/, and those of the user that arguments name."""
    found = [str(shipped("configs"))]
    for word, following in pairwise([*words, ""]):
        if word.startswith("hydra.searchpath="):
            found += re.findall(r"file://([^],\"']+)", word)
        elif word == "--configs":
            found.append(following)
        elif word.startswith("--configs="):
            found.append(word.removeprefix("--configs="))
    return [Path(folder).expanduser() for folder in found]


def files_of(group: str, folders: Iterable[Path]) -> list[Candidate]:
    """The files of a group, with the first clause of the comment at their head."""
    files = {path.stem: path for folder in folders for path in (folder / group).glob("[!_]*.yaml")}
    return [Candidate(name, _head(path)) for name, path in sorted(files.items())]


def _head(path: Path) -> str:
    comment = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8", errors="replace"))
    lines = comment[0].splitlines() if comment else []
    text = " ".join(line.lstrip("# ") for line in lines if "@package" not in line)
    text = _ASIDES.sub("", text)
    found = _FIRST_CLAUSE.match(text)
    return (found[0] if found else text).rstrip(".")


def _benchmarks(folders: Iterable[Path]) -> list[Candidate]:
    groups = Candidate("all", "every benchmark on the hub"), Candidate("math", "without choices")
    own = Candidate("file:", "a file of your own", ends=False)
    return [*files_of("benchmark", folders), *groups, own]


def _templates(folders: Iterable[Path]) -> list[Candidate]:
    files = {path.stem for folder in folders for path in (folder / "template").glob("*.txt")}
    return [Candidate(name) for name in (*TEMPLATES, *sorted(files))]


def _recipes(folders: Iterable[Path]) -> list[Candidate]:
    found = {}
    for folder in (shipped("recipes"), Path("recipes")):
        for path in folder.glob("*/recipe.yaml"):
            title = re.search(r"^title: *(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            found[path.parent.name] = title[1].strip("\"'") if title else ""
    return [Candidate(name, title) for name, title in sorted(found.items())]


SOURCES: dict[str, Callable[[Iterable[Path]], list[Candidate]]] = {
    "benchmarks": _benchmarks,
    "methods": lambda folders: files_of("method", folders),
    "presets": lambda folders: files_of("preset", folders),
    "recipes": _recipes,
    "templates": _templates,
}
