"""The text around a problem in its user turn, or all of the prompt where there are no turns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bandpo.config.composition import config_dir
from bandpo.errors import UserError
from bandpo.types import Problem

SLOT = "{problem}"


@dataclass(frozen=True)
class PromptTemplate:
    """The text of the last user turn, with `{problem}` where the problem goes."""

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
