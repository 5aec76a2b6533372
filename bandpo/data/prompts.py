"""How a problem is put to the model: a template around it, then the tokenizer's chat template."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from bandpo.config.composition import config_dir
from bandpo.data.control_tokens import ControlTokens
from bandpo.errors import UserError
from bandpo.types import Completion, Group, Problem, Prompt, logprob_array, token_array

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

    Names are those of `TEMPLATES` and of the files in `configs/template/`. Raises `UserError` if
    it is neither, or the file has not exactly one `{problem}`.
    """
    if name_or_file in TEMPLATES:
        return TEMPLATES[name_or_file]
    shipped = {path.stem: path for path in sorted((config_dir() / "template").glob("*.txt"))}
    path = shipped.get(name_or_file, Path(name_or_file))
    name = path.stem if name_or_file in shipped else str(path)
    try:
        return PromptTemplate(name, path.read_text(encoding="utf-8").rstrip("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prompt template {name_or_file!r} is none of {', '.join([*TEMPLATES, *shipped])} "
            f"and no readable text file: {error}"
        ) from error


def build_prompts(
    problems: Sequence[Problem],
    tokenizer: Any,
    template: PromptTemplate | str,
    max_prompt_tokens: int,
    overlong: Literal["drop", "error"] = "drop",
    date: str | None = None,
) -> tuple[list[Prompt], list[Problem]]:
    """Renders problems through template and chat template; seeds stay 0 for the caller to set.

    Control tokens that a problem spells are text. A chat template that asks for the time gets
    `date`, as `date_of` returns it, and one that draws at random always draws the same for a
    problem. Returns the prompts and the problems dropped for being longer than `max_prompt_tokens`.
    Raises `UserError` if the tokenizer has no chat template or it fails, if `overlong="error"` and
    a prompt is too long, or if no prompt is left.
    """
    if isinstance(template, str):
        template = prompt_template(template)
    require_chat_template(tokenizer)
    control = ControlTokens(tokenizer, [template.text, *(p.problem for p in problems)])
    hidden = [dataclasses.replace(p, problem=control.hide(p.problem)) for p in problems]
    date = date_of(tokenizer, date)
    variables = {"strftime_now": datetime.fromisoformat(date).strftime} if date else {}
    with _random_state_kept():
        rendered = [_conversation(tokenizer, p.id, template.render(p), variables) for p in hidden]
    texts = map(control.shown, rendered)
    prompts: list[Prompt] = []
    too_long: list[tuple[Problem, int]] = []
    for problem, text, ids in zip(problems, texts, control.encode(rendered), strict=True):
        if len(ids) > max_prompt_tokens:
            too_long.append((problem, len(ids)))
        else:
            prompts.append(Prompt(problem, text, tuple(ids)))
    if too_long and (overlong == "error" or not prompts):
        raise _overlong_error(too_long, len(problems), max_prompt_tokens, overlong)
    return prompts, [problem for problem, _ in too_long]


def reference_answer(prompt: Prompt, tokenizer: Any) -> Group:
    """The problem's own answer as a group, to try reward and engine before there are samples."""
    tokens = token_array(tokenizer.encode(prompt.problem.answer, add_special_tokens=False))
    logprobs = logprob_array([0.0] * len(tokens))
    completion = Completion(prompt.problem.answer, tokens, logprobs, "stop")
    return Group(prompt, (completion,))


def require_chat_template(tokenizer: Any) -> None:
    """Raises `UserError` for a tokenizer that cannot render a conversation."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"the tokenizer of {_name(tokenizer)} has no chat template; use a model that has one, "
            "or put a chat_template.jinja beside its tokenizer files"
        )


def date_of(tokenizer: Any, earlier: str | None = None) -> str | None:
    """The date that a chat template shows, in ISO format; None if it does not ask for one.

    `earlier` is the date of a run that resumes: all prompts of a run show the same one.
    """
    if "strftime_now" not in str(tokenizer.chat_template):
        return None
    return earlier or datetime.now().date().isoformat()


def prompt_fingerprint(prompts: Sequence[Prompt]) -> str:
    """A short hash of the text and tokens of all prompts, whatever their order."""
    sent = sorted(repr((prompt.text, prompt.token_ids)) for prompt in prompts)
    return hashlib.sha256("\n".join(sent).encode()).hexdigest()[:16]


def _conversation(tokenizer: Any, id: str, text: str, variables: Mapping[str, Any]) -> str:
    """The text of a conversation that begins with this one turn, by the chat template."""
    random.seed(f"prompt/{id}")
    try:
        rendered: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            tokenize=False,
            **variables,
        )
    except Exception as error:  # a template is somebody else's program
        raise UserError(
            f"the chat template of {_name(tokenizer)} fails on problem {id!r}: "
            f"{type(error).__name__}: {str(error).rstrip('.')}. It was given one user message; fix "
            "chat_template.jinja (or tokenizer_config.json) beside the tokenizer's files"
        ) from error
    return rendered


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restores the state of Python's own generator, from which templates may draw."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def _overlong_error(
    too_long: list[tuple[Problem, int]], total: int, limit: int, overlong: str
) -> UserError:
    shown = [f"problem {problem.id!r}: {length} tokens" for problem, length in too_long[:20]]
    if len(too_long) > len(shown):
        shown.append(f"… and {len(too_long) - len(shown)} more")
    longest = max(length for _, length in too_long)
    heading = (
        f"{len(too_long)} of {total} prompts are longer than {limit} tokens; "
        f"max_prompt_tokens={longest} keeps all"
    )
    if overlong == "error":
        heading += "; training can skip them (data.overlong_prompts=drop), a benchmark cannot"
    return UserError.join(heading, shown)
