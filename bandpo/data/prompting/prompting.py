"""The settings with which problems are put to a model, and the conversations that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bandpo.config.sections.prompting import PLAIN, PromptingKeys
from bandpo.data.prompting import chat
from bandpo.data.prompting.template import BOXED, PromptTemplate, prompt_template
from bandpo.errors import UserError
from bandpo.types import Problem, Prompt, Turn


@dataclass(frozen=True)
class Prompting:
    """How problems are put to a model.

    `template` stands around a problem in its user turn, and `system_prompt` before the turns, where
    the problem has no system turn of its own. `chat_template` is the user's choice, as
    `set_chat_template` takes it, and `variables` are given to the template.
    """

    template: PromptTemplate = BOXED
    system_prompt: str | None = None
    chat_template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: PromptingKeys | PromptTemplate | str) -> Prompting:
        """From a section of the configuration, or with a template alone.

        Raises UserError for a template that is none.
        """
        if isinstance(given, PromptTemplate):
            return cls(given)
        if isinstance(given, str):
            return cls(prompt_template(given))
        return cls(
            prompt_template(given.template),
            given.system_prompt,
            given.chat_template,
            given.chat_template_kwargs,
        )

    @property
    def is_plain(self) -> bool:
        """Whether the template's text is the prompt, without turns."""
        return self.chat_template == PLAIN

    def facts(self) -> dict[str, Any]:
        """The settings for records, by their keys; those that are not set are omitted."""
        further = {
            "system_prompt": self.system_prompt,
            "chat_template": self.chat_template,
            "chat_template_kwargs": dict(self.variables) or None,
        }
        given = {key: value for key, value in further.items() if value is not None}
        return {"template": self.template.name, **given}

    def sources(self, tokenizer: Any) -> str:
        """The texts whose control tokens are the tokenizer's: a chat template's, or else ours."""
        own = chat.chat_templates_of(tokenizer).values()
        return self.template.text if self.is_plain else "\n".join(own)

    def texts(self, tokenizer: Any) -> list[str]:
        """All that prompts are made of, besides the problems."""
        return [self.sources(tokenizer), self.template.text, self.system_prompt or ""]

    def turns(self, problem: Problem) -> list[Turn]:
        """The conversation that ends with the problem; its own system turn takes precedence."""
        before = [*problem.turns]
        if self.system_prompt is not None and not has_system(problem):
            before.insert(0, Turn("system", self.system_prompt))
        return [*before, Turn("user", self.template.render(problem))]

    def render(self, tokenizer: Any, problem: Problem, variables: Mapping[str, Any]) -> str:
        """The text of a problem's prompt; `variables` are given to the chat template too.

        Raises UserError where the chat template fails, or leaves the system prompt out, and for a
        conversation without a chat template.
        """
        if self.is_plain:
            if problem.turns:
                raise UserError(
                    f"problem {problem.id!r} has {len(problem.turns)} turn(s) of a conversation "
                    "before it, which only a chat template can render: chat_template=none has none"
                )
            return self.template.render(problem)
        return chat.conversation(
            tokenizer, problem.id, self.turns(problem), {**self.variables, **variables}
        )

    def require_system_prompt(
        self, tokenizer: Any, problems: Sequence[Problem], variables: Mapping[str, Any]
    ) -> None:
        """Raises UserError where the chat template renders the same without the system prompt."""
        asked = next((p for p in problems if not has_system(p)), None)
        if self.system_prompt is None or asked is None:
            return
        turns, given = self.turns(asked), {**self.variables, **variables}
        alone = chat.without_system(turns)
        texts = [chat.conversation(tokenizer, asked.id, t, given) for t in (turns, alone)]
        if texts[0] == texts[1]:
            raise UserError(
                f"the chat template of {chat.name_of(tokenizer)} leaves system turns out, so that "
                "data.system_prompt would have no effect: write its text before {problem} in a "
                "file that data.template names, or use another data.chat_template (bandpo eval: "
                "eval.…)"
            )

    def notes(self, tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
        """Lines for the user on settings without effect and on prompts without a first token."""
        notes = [
            f"chat_template_kwargs.{name} has no effect: the chat template of "
            f"{chat.name_of(tokenizer)} never reads it"
            for name in chat.unread(tokenizer, self.variables)
        ]
        own = sum(has_system(prompt.problem) for prompt in prompts)
        if own and self.system_prompt is not None:
            notes.append(
                f"{own} of {len(prompts)} problems have a system turn of their own, which takes "
                "the place of system_prompt"
            )
        opening = chat.opening_tokens(tokenizer)
        lacking = [p for p in prompts if list(p.token_ids[: len(opening)]) != opening]
        if lacking:
            names = "".join(tokenizer.convert_ids_to_tokens(opening))
            notes.append(
                f"{len(lacking)} of {len(prompts)} prompts do not begin with {names!r}, which the "
                f"tokenizer of {chat.name_of(tokenizer)} puts before a text: its chat template "
                "does not write it"
            )
        return notes


def has_system(problem: Problem) -> bool:
    """Whether the problem brings a system turn of its own."""
    return any(turn.role == "system" for turn in problem.turns)
