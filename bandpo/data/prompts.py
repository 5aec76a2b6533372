"""How a problem is put to the model: a template around it, then the tokenizer's chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bandpo.errors import UserError
from bandpo.types import Completion, Group, Problem, Prompt

SLOT = "{problem}"


@dataclass(frozen=True)
class PromptTemplate:
    """The text of the one user turn, with `{problem}` where the problem goes."""

    name: str
    text: str

    def __post_init__(self) -> None:
        if self.text.count(SLOT) != 1:
            raise UserError(
                f"prompt template {self.name}: the text must contain {SLOT} exactly once, "
                f"it does {self.text.count(SLOT)} times"
            )

    def render(self, problem: Problem) -> str:
        """The user turn for a problem; braces of its LaTeX are left alone."""
        return self.text.replace(SLOT, problem.problem)


NONE = PromptTemplate("none", SLOT)

BOXED = PromptTemplate(
    "boxed",
    f"{SLOT}\n\nThink it through step by step and give the final answer inside \\boxed{{}}.",
)

ANSWER_LINE = PromptTemplate(
    "answer_line",
    "Work out the following math problem one step at a time. End your reply with a line "
    "of the form Answer: $Answer, without quotes, in which $Answer stands for your result."
    f"\n\n{SLOT}\n\n"
    'Do not forget: the result stands on a last line of its own that starts with "Answer:".',
)

TEMPLATES = {template.name: template for template in (BOXED, ANSWER_LINE, NONE)}


def prompt_template(name_or_file: str) -> PromptTemplate:
    """A template by its name, or the user's own from a text file that contains `{problem}`.

    Raises `UserError` if it is neither, or the file has not exactly one `{problem}`.
    """
    if name_or_file in TEMPLATES:
        return TEMPLATES[name_or_file]
    path = Path(name_or_file)
    try:
        return PromptTemplate(str(path), path.read_text(encoding="utf-8").rstrip("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prompt template {name_or_file!r} is none of {', '.join(TEMPLATES)} "
            f"and no readable text file: {error}"
        ) from error


def build_prompts(
    problems: Sequence[Problem],
    tokenizer: Any,
    template: PromptTemplate | str,
    max_prompt_tokens: int,
    overlong: Literal["drop", "error"] = "drop",
) -> tuple[list[Prompt], list[Problem]]:
    """Renders problems through template and chat template; seeds stay 0 for the caller to set.

    Returns the prompts and the problems dropped for being longer than `max_prompt_tokens`.
    Raises `UserError` if the tokenizer has no chat template, if `overlong="error"` and a prompt
    is too long, or if no prompt is left.
    """
    if isinstance(template, str):
        template = prompt_template(template)
    require_chat_template(tokenizer)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": template.render(problem)}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for problem in problems
    ]
    # The chat template has already written the special tokens that belong there.
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    prompts: list[Prompt] = []
    too_long: list[tuple[Problem, int]] = []
    for problem, text, ids in zip(problems, texts, encoded, strict=True):
        if len(ids) > max_prompt_tokens:
            too_long.append((problem, len(ids)))
        else:
            prompts.append(Prompt(problem, text, tuple(ids)))
    if too_long and (overlong == "error" or not prompts):
        raise _overlong_error(too_long, len(problems), max_prompt_tokens)
    return prompts, [problem for problem, _ in too_long]


def reference_answer(prompt: Prompt, tokenizer: Any) -> Group:
    """A group to try things on before there are samples: the problem's own answer."""
    tokens = tuple(tokenizer.encode(prompt.problem.answer, add_special_tokens=False))
    completion = Completion(prompt.problem.answer, tokens, (0.0,) * len(tokens), "stop")
    return Group(prompt, (completion,))


def require_chat_template(tokenizer: Any) -> None:
    """Raises `UserError` for a tokenizer that cannot render a conversation."""
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise UserError(
            f"the tokenizer of {name} has no chat template; use a model that has one, "
            "or put a chat_template.jinja beside its tokenizer files"
        )


def prompt_fingerprint(template: PromptTemplate, tokenizer: Any) -> str:
    """A short hash of everything that turns a problem into text: both templates."""
    parts = "\0".join((template.text, str(tokenizer.chat_template)))
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _overlong_error(too_long: list[tuple[Problem, int]], total: int, limit: int) -> UserError:
    shown = [f"problem {problem.id!r}: {length} tokens" for problem, length in too_long[:20]]
    if len(too_long) > len(shown):
        shown.append(f"… and {len(too_long) - len(shown)} more")
    heading = (
        f"{len(too_long)} of {total} prompts are longer than {limit} tokens; raise "
        "max_prompt_tokens, shorten them, or drop them with overlong_prompts=drop"
    )
    return UserError.join(heading, shown)
