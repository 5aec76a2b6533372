"""Problems as prompts: rendered by template and chat template, and encoded."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

from bandpo.data.prompting.chat import (
    date_of,
    opening_tokens,
    require_chat_template,
    set_chat_template,
)
from bandpo.data.prompting.control_tokens import ControlTokens
from bandpo.data.prompting.prompting import Prompting
from bandpo.data.prompting.template import (
    ANSWER_LINE,
    BOXED,
    NONE,
    PromptTemplate,
    prompt_template,
)
from bandpo.errors import UserError
from bandpo.types import Completion, Group, Problem, Prompt, logprob_array, token_array

__all__ = [
    "ANSWER_LINE",
    "BOXED",
    "NONE",
    "PromptTemplate",
    "Prompting",
    "Rendering",
    "build_prompts",
    "date_of",
    "prompt_fingerprint",
    "prompt_template",
    "reference_answer",
    "set_chat_template",
]


class Rendering:
    """The prompts of problems, whatever their length; seeds stay 0 for the caller to set.

    Control tokens that a problem spells are text. A chat template that asks for the time gets
    `date`, as `date_of` returns it. Without turns (`chat_template: none`) a prompt begins with the
    tokens that the tokenizer puts before a text, once, also where the template spells them.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        tokenizer: Any,
        prompting: Prompting,
        date: str | None = None,
    ) -> None:
        """Raises `UserError` without a chat template, and where it fails on a problem."""
        if not prompting.is_plain:
            require_chat_template(tokenizer)
        told = [turn.content for problem in problems for turn in problem.turns]
        texts = [*prompting.texts(tokenizer), *(p.problem for p in problems), *told]
        self._control = ControlTokens(tokenizer, prompting.sources(tokenizer), texts)
        hidden = [self._hidden(problem) for problem in problems]
        date = date_of(tokenizer, date)
        variables = {"strftime_now": datetime.fromisoformat(date).strftime} if date else {}
        with _random_state_kept():
            prompting.require_system_prompt(tokenizer, hidden, variables)
            texts = [prompting.render(tokenizer, problem, variables) for problem in hidden]
        opening = opening_tokens(tokenizer) if prompting.is_plain else []
        self._opening = "".join(tokenizer.convert_ids_to_tokens(opening))
        self._rendered = [text.removeprefix(self._opening) for text in texts]
        self.prompts = [
            Prompt(problem, self._opening + self._control.shown(text), (*opening, *ids))
            for problem, text, ids in zip(
                problems, self._rendered, self._control.encode(self._rendered), strict=True
            )
        ]

    def parts(self, index: int) -> list[tuple[str, bool]]:
        """A prompt's text in parts, each with whether it is a control token."""
        opening = [(self._opening, True)] if self._opening else []
        return [*opening, *self._control.parts(self._rendered[index])]

    def is_control(self, token_id: int) -> bool:
        """Whether a token is one of the control tokens."""
        return self._control.is_control(token_id)

    def _hidden(self, problem: Problem) -> Problem:
        hide = self._control.hide
        turns = tuple(dataclasses.replace(t, content=hide(t.content)) for t in problem.turns)
        return dataclasses.replace(problem, problem=hide(problem.problem), turns=turns)


def build_prompts(
    problems: Sequence[Problem],
    tokenizer: Any,
    prompting: Prompting | PromptTemplate | str,
    max_prompt_tokens: int,
    overlong: Literal["drop", "error"] = "drop",
    date: str | None = None,
) -> tuple[list[Prompt], list[Problem]]:
    """The prompts of a `Rendering`, and the problems dropped for being longer than
    `max_prompt_tokens`.

    Raises `UserError` if the tokenizer has no chat template or it fails, if `overlong="error"` and
    a prompt is too long, or if no prompt is left.
    """
    if not isinstance(prompting, Prompting):
        prompting = Prompting.of(prompting)
    prompts: list[Prompt] = []
    too_long: list[Prompt] = []
    for prompt in Rendering(problems, tokenizer, prompting, date).prompts:
        (too_long if len(prompt.token_ids) > max_prompt_tokens else prompts).append(prompt)
    if too_long and (overlong == "error" or not prompts):
        raise _overlong_error(too_long, len(problems), max_prompt_tokens, overlong)
    return prompts, [prompt.problem for prompt in too_long]


def reference_answer(prompt: Prompt, tokenizer: Any) -> Group:
    """The problem's own answer as a group, to try reward and engine before there are samples."""
    tokens = token_array(tokenizer.encode(prompt.problem.answer, add_special_tokens=False))
    logprobs = logprob_array([0.0] * len(tokens))
    completion = Completion(prompt.problem.answer, tokens, logprobs, "stop")
    return Group(prompt, (completion,))


def prompt_fingerprint(prompts: Sequence[Prompt]) -> str:
    """A short hash of the text and tokens of all prompts, whatever their order."""
    sent = sorted(repr((prompt.text, prompt.token_ids)) for prompt in prompts)
    return hashlib.sha256("\n".join(sent).encode()).hexdigest()[:16]


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restores the state of Python's own generator, from which templates may draw."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _overlong_error(too_long: Sequence[Prompt], total: int, limit: int, overlong: str) -> UserError:
    lengths = [len(prompt.token_ids) for prompt in too_long]
    shown = [
        f"problem {prompt.problem.id!r}: {length} tokens"
        for prompt, length in zip(too_long[:20], lengths, strict=False)
    ]
    if len(too_long) > len(shown):
        shown.append(f"… and {len(too_long) - len(shown)} more")
    heading = (
        f"{len(too_long)} of {total} prompts are longer than {limit} tokens; "
        f"max_prompt_tokens={max(lengths)} keeps all"
    )
    if overlong == "error":
        heading += "; training can skip them (data.overlong_prompts=drop), a benchmark cannot"
    return UserError.join(heading, shown)
