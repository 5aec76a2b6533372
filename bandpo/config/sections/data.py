"""The problems to train on, and how they become prompts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bandpo.config.section import HARMLESS, Section
from bandpo.config.sections.prompting import (
    ChatTemplate,
    ChatTemplateKwargs,
    SystemPrompt,
    turns_where_there_are_turns,
)


class ColumnsConfig(Section):
    """The columns of a file or hub dataset, where they have other names than those known."""

    id: str | None = Field(None, description="Unique id; rows without one get one.")
    problem: str | None = Field(None, description="The question, such as `prompt.0.content`.")
    answer: str | None = Field(None, description="The reference answer.")
    answer_pattern: str | None = Field(
        None, description="Regular expression whose first group is the answer in its column."
    )
    answer_in_box: bool | None = Field(
        None, description="The answer is the content of its column's last `\\boxed{}`."
    )

    def named(self) -> dict[str, Any]:
        """Those that are given."""
        return self.model_dump(exclude_none=True)


NO_COLUMNS = ColumnsConfig(
    id=None, problem=None, answer=None, answer_pattern=None, answer_in_box=None
)


class DataConfig(Section):
    """The problems to train on, and how they become prompts."""

    train: str | dict[str, Any] = Field(
        description="A data file, a folder of them, a pattern or a hub id; or a mapping with "
        "`path`, `hub` or `_target_` and their settings, or `sources` with weights (docs/data.md).",
    )
    columns: ColumnsConfig = NO_COLUMNS
    root: str | None = Field(
        None,
        description="Folder whose files take the place of benchmarks of the same name.",
        json_schema_extra=HARMLESS,
    )
    template: str = Field("boxed", description="`boxed`, `answer_line`, `none` or a file.")
    max_prompt_tokens: int = Field(1024, ge=1, description="Longest prompt that is trained on.")
    overlong_prompts: Literal["drop", "error"] = Field(
        "drop",
        description="Drop longer prompts (and count them), or end with an error.",
        json_schema_extra=HARMLESS,
    )
    sampler: dict[str, Any] | None = Field(
        None,
        description="hydra `_target_` of a rule by which prompts are drawn; null: shuffled epochs "
        "(docs/data.md).",
    )

    system_prompt: SystemPrompt = None
    chat_template: ChatTemplate = None
    chat_template_kwargs: ChatTemplateKwargs = Field({})

    _prompting = model_validator(mode="after")(turns_where_there_are_turns)

    @field_validator("train")
    @classmethod
    def _is_named(cls, train: str | dict[str, Any]) -> str | dict[str, Any]:
        if not train:
            raise ValueError(
                "name the problems to train on: data.train=my.jsonl (or .parquet, .csv, a hub id), "
                "data=dapo_math or data=arithmetic"
            )
        return train
