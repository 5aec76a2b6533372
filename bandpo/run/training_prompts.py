"""The prompts that a run trains on, and the draws of each step from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bandpo.config.sections.data import DataConfig
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.data.prompts import Prompting, build_prompts
from bandpo.data.sampler import PromptSampler
from bandpo.ranks.collectives import Ranks
from bandpo.rollout.draws import Draws
from bandpo.rollout.seeds import Seeds
from bandpo.types import Problem, Prompt


class TrainingPrompts:
    """The prompts of the training problems, drawn step by step; the same on every rank."""

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
        self._sampler = PromptSampler(prompts, seed)
        self._sampler.require(rollout.prompts_per_step)
        self._rollout, self._seed = rollout, seed
        # The step drawn last, and the sampler's state before it.
        self._drawn: tuple[int, dict[str, Any]] = (0, {})

    def __len__(self) -> int:
        return len(self._sampler)

    @property
    def all(self) -> tuple[Prompt, ...]:
        """Every prompt, in the order of the problems."""
        return self._sampler.prompts

    def draws(self, step: int, ranks: Ranks) -> Draws:
        """The prompts of a step, to be drawn and scored."""
        self._drawn = step, self._sampler.state_dict()
        seeds = Seeds(self._seed, step, self._rollout.group_size)
        return Draws(self._rollout, self._sampler, seeds, ranks)

    def state_after(self, step: int, waits: bool) -> dict[str, Any]:
        """The sampler's state for a run that resumes after a step.

        The next step is drawn again if it was drawn already, unless its rollout waits.
        """
        last, before = self._drawn
        return before if last == step + 1 and not waits else self._sampler.state_dict()

    def resume(self, state: dict[str, Any]) -> None:
        """Continues from `state_after`; raises UserError where data or seed have changed."""
        self._sampler.load_state_dict(state)
