"""A table as Markdown, LaTeX and HTML of the same blocks, and its numbers as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader

from bandpo.disk.whole import write_atomically
from bandpo.evaluation.intervals import Estimate
from bandpo.evaluation.report import PAGES
from bandpo.tables.results import Entry, Line
from bandpo.tables.statistics import Effect

ABOUT_ACCURACY = (
    "In percent, in brackets the 95% interval over seeds and problems; ? where the error is "
    "unknown, as with one seed. best@n draws with replacement and is what the paper calls "
    "pass@32; pass@n is unbiased. The paper's values have no interval: that of the difference is "
    "the interval of the obtained value alone.",
)
ABOUT_EFFECTS = (
    "Paired by seed and problem; p is Holm's over the methods of a model, for one benchmark and "
    "metric; in brackets the 95% interval, ? where the error is unknown. `better` and `worse` "
    "mean p < 0.05 and an interval without 0.",
)
ABOUT_TRAINING = (
    "Means over the last fifth of the steps, ± half of the 95% interval over seeds; in brackets "
    "the difference to the first row, paired by seed; p < 0.05 is after Holm's correction, and "
    "given only where it holds.",
)


@dataclass(frozen=True)
class Block:
    """A table with its notes."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def accuracy_blocks(lines: Sequence[Line]) -> Iterator[Block]:
    """For every model: paper | obtained | difference, then every method against the first."""
    for model in dict.fromkeys(line.model for line in lines):
        own = [line for line in lines if line.model == model]
        metrics = list(own[0].entries)
        columns = [
            (metric, what)
            for metric in metrics
            for what in ("paper", "obtained", "difference")
            if what == "obtained" or any(line.entries[metric].paper is not None for line in own)
        ]
        yield Block(
            title=model,
            header=("method", "benchmark", "seeds", *(f"{m} {w}" for m, w in columns)),
            rows=tuple(
                (*_place(line), *(_shown(line.entries[m], w) for m, w in columns)) for line in own
            ),
            notes=ABOUT_ACCURACY,
        )
        first = own[0].method
        others = [line for line in own if line.method != first]
        if others:
            yield Block(
                title=f"{model}: difference to {first}",
                header=("method", "benchmark", *metrics),
                rows=tuple(
                    (
                        line.method,
                        line.benchmark,
                        *(_claim(line.entries[m].effect) for m in metrics),
                    )
                    for line in others
                ),
                notes=ABOUT_EFFECTS,
            )


def training_blocks(lines: Sequence[Line]) -> Iterator[Block]:
    """For every model the training metrics of its methods."""
    for model in dict.fromkeys(line.model for line in lines):
        own = [line for line in lines if line.model == model]
        names = [n for n in own[0].entries if any(line.entries[n].obtained for line in own)]
        yield Block(
            title=f"{model}: training",
            header=("method", "seeds", *names),
            rows=tuple(
                (line.method, _seeds(line), *(_trained(line.entries[n]) for n in names))
                for line in own
            ),
            notes=ABOUT_TRAINING,
        )


def _place(line: Line) -> tuple[str, str, str]:
    return line.method, line.benchmark, _seeds(line)


def _seeds(line: Line) -> str:
    if line.finished == line.planned:
        return str(line.planned)
    return f"{line.finished} of {line.planned}"


def _shown(entry: Entry, what: str) -> str:
    if what == "paper":
        return "–" if entry.paper is None else f"{entry.paper:.2f}"
    estimate = entry.obtained if what == "obtained" else entry.to_paper
    return _with_interval(estimate, "+.1f" if what == "difference" else ".1f")


def _with_interval(estimate: Estimate | None, form: str) -> str:
    """`value [low, high]`; `?` where the error is unknown, `–` without an estimate."""
    if estimate is None:
        return "–"
    if estimate.low is None:
        return f"{estimate.value:{form}} [?]"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def with_half(estimate: Estimate | None, form: str) -> str:
    """`value ± half`; `?` where the error is unknown, `–` without an estimate."""
    if estimate is None:
        return "–"
    width = "?" if estimate.half is None else format(estimate.half, form.replace("+", ""))
    return f"{estimate.value:{form}} ± {width}"


def _claim(effect: Effect | None) -> str:
    if effect is None:
        return "–"
    p = "?" if effect.p is None else f"{effect.p:.2g}"
    text = f"{_with_interval(effect.difference.within(-100, 100), '+.1f')}, p {p}"
    return f"{text}, {effect.verdict}" if effect.verdict else text


def _trained(entry: Entry) -> str:
    text = with_half(entry.obtained, ".3g")
    if entry.effect is None:
        return text
    tested = ", p < 0.05" if entry.effect.verdict else ""
    return f"{text} ({entry.effect.difference.value:+.2g}{tested})"


# --------------------------------------------------------------------------- files

_LATEX = {
    **{c: rf"\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "–": "--", "−": "$-$", "χ": r"$\chi$", "²": r"\textsuperscript{2}"},
    **{"δ": r"$\delta$", "Δ": r"$\Delta$", "<": "$<$", ">": "$>$", "≤": r"$\leq$", "≥": r"$\geq$"},
    **{"×": r"$\times$", "→": r"$\rightarrow$", "…": r"\ldots{}"},
}


def latex(text: str) -> str:
    """Plain text as LaTeX: special characters escaped, the table's signs as commands."""
    return "".join(_LATEX.get(character, character) for character in text)


def write_report(
    folder: Path, title: str, blocks: Sequence[Block], figures: Sequence[Path] = ()
) -> list[Path]:
    """Writes table.md, table.tex and table.html; figures lie in the folder."""
    names = [figure.relative_to(folder).as_posix() for figure in figures]
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("bandpo.tables", "."), PAGES]),
        autoescape=lambda name: bool(name and ".html" in name),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["latex"] = latex
    written = []
    for kind in ("md", "tex", "html"):
        page = environment.get_template(f"table.{kind}.j2")
        path = folder / f"table.{kind}"
        write_atomically(path, page.render(title=title, blocks=blocks, figures=names))
        written.append(path)
    return written


def write_numbers(folder: Path, lines: Sequence[Line]) -> Path:
    """Every number of the table, unrounded, as results.json."""
    content = [{**asdict(line), "entries": _numbers(line.entries)} for line in lines]
    path = folder / "results.json"
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    return path


def _numbers(entries: Mapping[str, Entry]) -> dict[str, object]:
    return {
        name: {
            "paper": entry.paper,
            "obtained": _ends(entry.obtained),
            "difference_to_first": entry.effect
            and {**_ends(entry.effect.difference), "p": entry.effect.p},
        }
        for name, entry in entries.items()
    }


def _ends(estimate: Estimate | None) -> dict[str, float | None]:
    """An estimate for JSON, which has only finite numbers."""
    if estimate is None:
        return {}
    finite = {k: v for k, v in asdict(estimate).items() if v is not None and math.isfinite(v)}
    return dict.fromkeys(asdict(estimate)) | finite
