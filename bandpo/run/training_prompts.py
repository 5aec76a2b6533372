"""The prompts that a run trains on, and the draws of each step from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bandpo.config.sections.data import DataConfig
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.data.prompts import Prompting, build_prompts
from bandpo.data.sampling.history import PROBLEMS, History
from bandpo.data.sampling.ruled import RuledSampler, sampler_of
from bandpo.data.sources import weights_of
from bandpo.ranks.collectives import Ranks
from bandpo.rollout.draws import Draws
from bandpo.rollout.groups.by_source import source_metrics
from bandpo.rollout.scoring import GroupSummary
from bandpo.rollout.seeds import Seeds
from bandpo.types import Problem, Prompt


class TrainingPrompts:
    """The prompts of the training problems, drawn step by step; the same on every rank.

    The results of a step are recorded when its last group is scored, before the next one is drawn.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        tokenizer: Any,
        data: DataConfig,
        rollout: RolloutConfig,
        seed: int,
        date: str | None,
    ) -> None:
        """Renders the problems, with `date` for a chat template that shows one.

        Raises UserError where fewer are short enough than a step needs.
        """
        self.prompting = how = Prompting.of(data)
        prompts, dropped = build_prompts(
            problems, tokenizer, how, data.max_prompt_tokens, data.overlong_prompts, date
        )
        self.dropped = len(dropped)
        self._weights = weights_of(data.train)
        self._history = History()
        per_step = rollout.prompts_per_step
        self._sampler = sampler_of(
            data.sampler, self._weights, prompts, seed, self._history, per_step
        )
        self._sampler.require(per_step)
        self._rollout, self._seed = rollout, seed
        self._drawn, self._before = 0, self._state()

    def __len__(self) -> int:
        return len(self._sampler)

    @property
    def all(self) -> tuple[Prompt, ...]:
        """Every prompt, in the order of the problems."""
        return self._sampler.prompts

    def draws(self, step: int, ranks: Ranks) -> Draws:
        """The prompts of a step, to be drawn and scored."""
        self._drawn, self._before = step, self._state()
        seeds = Seeds(self._seed, step, self._rollout.group_size)
        observe = partial(self._observe, step)
        return Draws(self._rollout, self._sampler, seeds, ranks, observe)

    def _observe(self, step: int, drawn: Sequence[GroupSummary]) -> dict[str, float]:
        """Records the results of a step; returns metrics of problems and sources."""
        sampler = self._sampler
        ids = [item.prompt.problem.id for item in drawn]
        returned = sampler.had_rested(ids) if isinstance(sampler, RuledSampler) else 0
        verdicts = ([score.correct for score in item.scores] for item in drawn)
        self._history.record(zip(ids, verdicts, strict=True), step)
        found = source_metrics(drawn, self._weights)
        if isinstance(sampler, RuledSampler):
            found |= {f"problems/{name}": float(n) for name, n in sampler.states().items()}
            found["problems/returned"] = float(returned)
        return found

    def _state(self) -> tuple[dict[str, Any], History]:
        return self._sampler.state_dict(), self._history.copy()

    def _state_after(self, step: int, waits: bool) -> tuple[dict[str, Any], History]:
        """The next step is drawn again if it was drawn already, unless its rollout waits."""
        return self._before if self._drawn == step + 1 and not waits else self._state()

    def state_after(self, step: int, waits: bool) -> dict[str, Any]:
        """The sampler's state for a run that resumes after a step."""
        return self._state_after(step, waits)[0]

    def problems_after(self, step: int, waits: bool) -> str:
        """The lines of problems.jsonl for a run that resumes after a step."""
        history = self._state_after(step, waits)[1]
        now = {prompt.problem.id: prompt.problem for prompt in self.all}

        def describe(id: str) -> dict[str, Any]:
            return {"source": now[id].source, "state": self._sampler.state(history, id)}

        return history.lines(describe)

    def resume(self, state: dict[str, Any], checkpoint: Path) -> None:
        """Continues from what a checkpoint keeps; raises UserError where data or seed changed."""
        self._sampler.load_state_dict(state)
        self._history.restore(History.read(checkpoint / PROBLEMS))
