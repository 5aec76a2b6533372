"""The chat template of a tokenizer: which one it is, and what it makes of a conversation."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bandpo.config.sections.prompting import PLAIN
from bandpo.errors import UserError
from bandpo.types import Turn

DEFAULT = "default"
"""transformers' name of the chat template that is used where none is named."""


def name_of(tokenizer: Any) -> str:
    """The tokenizer's name in messages."""
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def chat_templates_of(tokenizer: Any) -> dict[str, str]:
    """The tokenizer's chat templates by their names; most have one, base models often none."""
    own = getattr(tokenizer, "chat_template", None)
    return dict(own) if isinstance(own, Mapping) else {DEFAULT: own} if own else {}


def set_chat_template(tokenizer: Any, chosen: str | None) -> None:
    """Makes a chat template the tokenizer's own, which an export then carries.

    `chosen` is `none`, the name of one of its templates, or a jinja file; None changes nothing.
    Raises UserError where it is none of these, or a file that reads no messages.
    """
    if chosen is None:
        return
    own = chat_templates_of(tokenizer)
    tokenizer.chat_template = None if chosen == PLAIN else own.get(chosen) or _read(chosen, own)


def _read(file: str, own: Mapping[str, str]) -> str:
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        names = f" (it has {', '.join(sorted(own))})" if own.keys() - {DEFAULT} else ""
        raise UserError(
            f"chat_template={file} is neither none, nor one of the tokenizer's chat templates"
            f"{names}, nor a readable jinja file: {error}"
        ) from error
    if not _mentions(text, "messages"):
        raise UserError(
            f"chat_template={file}: this file is no chat template, since it never reads "
            "`messages`; a text with {problem} belongs to template=FILE"
        )
    return text


def require_chat_template(tokenizer: Any) -> str:
    """The source of the chat template that renders prompts; raises UserError if there is none."""
    own = chat_templates_of(tokenizer)
    if not own:
        raise UserError(
            f"the tokenizer of {name_of(tokenizer)} has no chat template. A base model is prompted "
            "with text alone by data.chat_template=none (bandpo eval: eval.chat_template=none), "
            "for a chat model data.chat_template=FILE names a jinja file"
        )
    if DEFAULT not in own:
        raise UserError(
            f"the tokenizer of {name_of(tokenizer)} has several chat templates and none is the "
            f"default: choose data.chat_template={' or '.join(sorted(own))} (bandpo eval: "
            "eval.chat_template)"
        )
    return own[DEFAULT]


def date_of(tokenizer: Any, earlier: str | None = None) -> str | None:
    """The date that a chat template shows, in ISO format; None if it does not ask for one.

    `earlier` is the date of a run that resumes: all prompts of a run show the same one.
    """
    if not any("strftime_now" in source for source in chat_templates_of(tokenizer).values()):
        return None
    return earlier or datetime.now().date().isoformat()


def unread(tokenizer: Any, variables: Mapping[str, Any]) -> list[str]:
    """The names of variables that the chat template never mentions."""
    sources = chat_templates_of(tokenizer).values()
    return [name for name in variables if not any(_mentions(text, name) for text in sources)]


def conversation(
    tokenizer: Any, id: str, turns: Sequence[Turn], variables: Mapping[str, Any]
) -> str:
    """The text of a conversation up to the assistant's next turn, by the chat template.

    A template that draws at random always draws the same for a problem `id`. Raises UserError where
    it fails.
    """
    try:
        return rendered(tokenizer, id, turns, variables)
    except Exception as error:  # a template is somebody else's program
        roles = [turn.role for turn in turns]
        reason = f"{type(error).__name__}: {str(error).rstrip('.')}"
        what = f"the chat template of {name_of(tokenizer)} fails on problem {id!r}: {reason}. "
        if "system" in roles and _renders_without_system(tokenizer, id, turns, variables):
            raise UserError(
                f"{what}It takes no system turn: write the text of data.system_prompt before "
                "{problem} in a file that data.template names, which makes it a part of the user "
                "turn, and remove data.system_prompt (bandpo eval: eval.…); or use another "
                "data.chat_template; system turns of the data itself have to go"
            ) from error
        given = "one user message" if roles == ["user"] else f"the messages {', '.join(roles)}"
        raise UserError(
            f"{what}It was given {given}; fix chat_template.jinja (or tokenizer_config.json) "
            "beside the tokenizer's files, or name another file as data.chat_template"
        ) from error


def rendered(tokenizer: Any, id: str, turns: Sequence[Turn], variables: Mapping[str, Any]) -> str:
    """As `conversation`, with the template's own errors."""
    random.seed(f"prompt/{id}")
    text: str = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns],
        add_generation_prompt=True,
        tokenize=False,
        **variables,
    )
    return text


def without_system(turns: Sequence[Turn]) -> list[Turn]:
    """The turns of user and assistant."""
    return [turn for turn in turns if turn.role != "system"]


def _renders_without_system(
    tokenizer: Any, id: str, turns: Sequence[Turn], variables: Mapping[str, Any]
) -> bool:
    try:
        rendered(tokenizer, id, without_system(turns), variables)
    except Exception:  # as in `conversation`
        return False
    return True


def _mentions(source: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def opening_tokens(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before a text, such as its BOS.

    Those that it may put behind one, such as an EOS, would end a prompt before its completion.
    """
    text = "1 + 1"  # one that every tokenizer has tokens for, `bandpo.model.source`
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    full = list(tokenizer(text)["input_ids"])
    starts = range(len(full) - len(bare) + 1)
    found = next((start for start in starts if full[start : start + len(bare)] == bare), 0)
    return full[:found]
