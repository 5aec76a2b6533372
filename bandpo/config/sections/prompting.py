"""The keys with which `data` and `eval` say how problems are put to the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import AfterValidator, Field

from bandpo.errors import listed

PLAIN = "none"
"""The `chat_template` of base models: there are no turns, the template's text is the prompt."""

_TEXT_FILES = (".txt", ".md", ".jinja", ".jinja2", ".j2")
# With a leading slash alone it is a text: some models read "/no_think" as their system prompt.
_PATH = re.compile(r"~\S*|\S+/\S+")

# Set by bandpo, arguments of transformers' apply_chat_template, or functions that it provides.
RESERVED = frozenset(
    (
        *("messages", "conversation", "conversations", "tools", "documents", "chat_template"),
        *("add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation"),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "strftime_now", "raise_exception"),
    )
)


class PromptingKeys(Protocol):
    """The four keys, as sections of the configuration have them."""

    @property
    def template(self) -> str: ...

    @property
    def system_prompt(self) -> str | None: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def chat_template_kwargs(self) -> Mapping[str, Any]: ...


def _file_named_by(text: str) -> str | None:
    """The file that a system prompt means instead of a text; None where it is the text."""
    if text.startswith("@"):
        return text[1:]
    is_file = "\n" not in text and text.lower().endswith(_TEXT_FILES)
    return text if is_file or _PATH.fullmatch(text) else None


def _system_text(given: str | None) -> str | None:
    """The text itself, or the content of the file that is named."""
    if given is None or (name := _file_named_by(given)) is None:
        return given
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8-sig").rstrip("\n")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"names a file that cannot be read ({error}); a text must neither start with @, nor "
            f"end in {', '.join(_TEXT_FILES)}, nor be one word with a slash in it"
        ) from None
    if _file_named_by(text) is not None:
        raise ValueError(f"the file's text, {text!r}, is itself read as a file's name: reword it")
    return text


def _readable_names(kwargs: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(RESERVED & kwargs.keys()):
        raise ValueError(f"{listed(taken)} cannot be set here: bandpo or transformers does")
    if odd := sorted(name for name in kwargs if not name.isidentifier()):
        raise ValueError(f"{odd[0]!r} is no name that a chat template can read")
    return kwargs


SystemPrompt = Annotated[
    str | None,
    AfterValidator(_system_text),
    Field(
        description="The system turn: a text, or `@FILE` (also a name that ends in `.txt`, `.md` "
        "or `.jinja`). `''` is an empty turn; null: none."
    ),
]
ChatTemplate = Annotated[
    str | None,
    Field(
        description="A jinja file, the name of one of the tokenizer's templates, or `none`: no "
        "turns, the template's text is the prompt (base models). Null: the tokenizer's own."
    ),
]
ChatTemplateKwargs = Annotated[
    dict[str, Any],
    AfterValidator(_readable_names),
    Field(description="Variables of the chat template, such as `{enable_thinking: false}`."),
]

SectionT = TypeVar("SectionT", bound=PromptingKeys)


def turns_where_there_are_turns(section: SectionT) -> SectionT:
    """Refuses what only a chat template could render beside `chat_template: none`."""
    if section.chat_template == PLAIN and section.system_prompt is not None:
        raise ValueError(
            "chat_template=none sends the template's text alone, without turns, so there is no "
            "place for system_prompt: write it into a text file with {problem} (template=FILE)"
        )
    if section.chat_template == PLAIN and section.chat_template_kwargs:
        raise ValueError("chat_template=none has no variables: remove chat_template_kwargs")
    return section
