"""The study `recipes/entropy`: the policy's entropy under every method of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from bandpo.errors import UserError
from bandpo.evaluation.intervals import Estimate, mean_of
from bandpo.tables.figures import ENTROPY, entropy_figure, metrics_of
from bandpo.tables.recipe import find_recipe
from bandpo.tables.report import Block, with_half, write_report
from bandpo.tables.results import LAST_SHARE
from bandpo.tables.runs import PlannedRun, by_cell, plan_runs


@dataclass(frozen=True)
class EntropyOfTable:
    """The entropy over steps of another recipe's runs, finished or not.

    `of` is that recipe, `runs` the folder of its runs where that is not its usual one; `published`
    has the paper's values by method, in nats.
    """

    of: str
    runs: str | None = None
    cards: int = 1
    published: Mapping[str, float] = field(default_factory=dict)

    def run(self, folder: Path, smoke: bool) -> None:
        """Writes plots/entropy.png and table.md, .tex, .html; launches nothing.

        Raises UserError where no run of the table has begun.
        """
        found = find_recipe(self.of)
        recipe = found.recipe().smoked() if smoke else found.recipe()
        name = f"{found.name}-smoke" if smoke else found.name
        place = Path(self.runs) if self.runs else folder.parent / name
        started = [run for run in plan_runs(recipe, place, ranks=self.cards) if metrics_of(run)]
        figure = entropy_figure(started, folder)
        if figure is None:
            raise UserError(
                f"{place}: no run of {found.name} has begun; start it with "
                f"`bandpo table {self.of}`, or name the folder of its runs: runs=FOLDER"
            )
        title = f"Entropy of the policy: {recipe.title}"
        for path in write_report(folder, title, [self._block(started)], [figure]):
            print(f"wrote {path}")

    def _block(self, started: Sequence[PlannedRun]) -> Block:
        return Block(
            title="mean entropy in nats",
            header=("model", "method", "seeds", "first fifth", "last fifth", "paper"),
            rows=tuple(
                (*cell, str(len(runs)), *map(_shown, _ends(runs)), self._paper(cell[1]))
                for cell, runs in by_cell(started).items()
            ),
            notes=("± half of the 95% interval over seeds; ? where it is unknown.",),
        )

    def _paper(self, method: str) -> str:
        value = self.published.get(method)
        return "–" if value is None else f"about {value:g}"


def _ends(runs: Sequence[PlannedRun]) -> tuple[Estimate, Estimate]:
    """Means over the first and the last fifth of each run's steps so far, over seeds."""
    early, late = [], []
    for run in runs:
        values = [line[ENTROPY] for line in metrics_of(run) if ENTROPY in line]
        fifth = max(1, round(LAST_SHARE * len(values)))
        early.append(fmean(values[:fifth]))
        late.append(fmean(values[-fifth:]))
    return mean_of(early).interval, mean_of(late).interval


def _shown(estimate: Estimate) -> str:
    return with_half(estimate, ".3f")
