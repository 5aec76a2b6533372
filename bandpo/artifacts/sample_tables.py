"""A step's completions as a table in the trackers, cut to a readable size and escaped for pages."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

from bandpo.redaction import redact

NAME = "samples"
LONGEST = 2000
"""Characters of a text; of a longer one its beginning and its end are shown."""

_MARKED = {ord(mark): f"&#{ord(mark)};" for mark in string.punctuation}


@dataclass(frozen=True)
class SampleTable:
    """Rows of numbers and of plain text without secrets and control characters."""

    columns: tuple[str, ...]
    rows: list[list[Any]]

    @property
    def escaped(self) -> list[list[Any]]:
        """The rows with texts that Markdown and HTML show as they are."""
        return [[_escaped(v) if isinstance(v, str) else v for v in row] for row in self.rows]

    def markdown(self) -> str:
        """The table in Markdown."""
        head = [list(map(_escaped, self.columns)), ["---"] * len(self.columns)]
        rows = [[str(cell).replace("\n", "<br>") for cell in row] for row in head + self.escaped]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def sample_table(groups: Sequence[bytes], most: int) -> SampleTable:
    """At most so many completions of a step: the first of each group, then the second, …

    A group is its lines of samples/, a JSON object for each completion.
    """
    rounds = zip_longest(*(group.splitlines() for group in groups))
    lines = (line for members in rounds for line in members if line is not None)
    found = [json.loads(line) for line in islice(lines, most)]
    parts = list(dict.fromkeys(name for record in found for name in record.get("parts", {})))
    columns = ("step", "problem_id", "prompt", "completion", "answer", "reward")
    rows = [list(_cells(record, parts)) for record in found]
    return SampleTable((*columns, *(f"reward/{n}" for n in parts), "verdict", "tokens"), rows)


def _cells(record: Mapping[str, Any], parts: Sequence[str]) -> Iterator[Any]:
    yield record["step"]
    yield from (_plain(record[key]) for key in ("problem_id", "prompt", "completion", "answer"))
    yield record["value"]
    yield from (record.get("parts", {}).get(name, 0.0) for name in parts)
    yield f"{record['status']} ({record['detail']})" if record["detail"] else record["status"]
    yield record["tokens"]


def _plain(text: str) -> str:
    """The text without secrets and control characters, and without its middle if it is long."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in redact(text))
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters …\n{text[-half:]}"


def _escaped(text: str) -> str:
    return text.translate(_MARKED)


def _to_wandb(tracker: Any, table: SampleTable, step: int) -> None:
    tracker.log_table(NAME, columns=list(table.columns), data=table.rows, step=step)


def _to_tensorboard(tracker: Any, table: SampleTable, step: int) -> None:
    tracker.log({NAME: table.markdown()}, step=step)


def _to_trackio(tracker: Any, table: SampleTable, step: int) -> None:
    import pandas
    import trackio

    frame = pandas.DataFrame(table.escaped, columns=list(table.columns))  # shown as Markdown
    tracker.log({NAME: trackio.Table(dataframe=frame)}, step=step)


_SENDERS: Mapping[str, Callable[[Any, SampleTable, int], None]] = {
    "wandb": _to_wandb,
    "tensorboard": _to_tensorboard,
    "trackio": _to_trackio,
}


def takes_tables(tracker: Any) -> bool:
    """Whether tables are sent to this tracker of accelerate's."""
    return tracker.name in _SENDERS


def send_table(tracker: Any, table: SampleTable, step: int) -> None:
    """Sends a step's table to a tracker that takes tables."""
    _SENDERS[tracker.name](tracker, table, step)
