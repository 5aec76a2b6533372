"""The configuration of `bandpo eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.utils import get_object
from pydantic import Field, ValidationInfo, field_validator, model_validator

from bandpo.config.schema import MAX_SEED, Config
from bandpo.config.section import Section
from bandpo.config.sections.data import NO_COLUMNS, ColumnsConfig
from bandpo.config.sections.prompting import (
    ChatTemplate,
    ChatTemplateKwargs,
    SystemPrompt,
    turns_where_there_are_turns,
)
from bandpo.config.sections.rollout import MAX_SAMPLES, MAX_TEMPERATURE, MIN_TEMPERATURE
from bandpo.config.sections.sampling import (
    STOP_DESCRIPTION,
    AlteredSection,
    Stops,
    stop_ids,
    stop_texts,
)
from bandpo.config.sections.trainer import EvalConfig
from bandpo.config.targets import why_not_imported
from bandpo.errors import UserError
from bandpo.rollout.engine import Sampling

SHARED = ("temperature", "top_p", "top_k", "max_tokens", "stop", *AlteredSection.model_fields)
"""Keys that rollout and eval both have."""
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class EvalDataSection(Section):
    """The place of local benchmarks."""

    root: Path | None = Field(
        None, description="Folder whose files take the place of benchmarks of the same name."
    )
    columns: ColumnsConfig = NO_COLUMNS


class EvalSection(AlteredSection):
    """How completions are sampled and reported."""

    temperature: float = Field(
        1.0, ge=0.0, le=MAX_TEMPERATURE, description="0 is greedy; else from 0.01, vLLM's range."
    )
    n: int = Field(32, ge=1, le=MAX_SAMPLES, description="Samples per problem.")
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0, description="0 samples from the whole vocabulary.")
    max_tokens: int = Field(4096, ge=1, description="Longest completion.")
    seed: int = Field(
        0, ge=0, le=MAX_SEED, description="Sampling seeds derive from it and the problem's id."
    )
    template: str = Field(
        "boxed", description="`boxed`, `answer_line`, `none`, one of configs/template, or a file."
    )
    max_prompt_tokens: int = Field(2048, ge=1, description="A longer prompt is an error.")
    limit: int | None = Field(None, ge=1, description="Only the first problems of each benchmark.")
    resume: bool = Field(True, description="Continue what is in `out`; false starts afresh.")
    lowest_form: Literal["off", "restated", "strict"] = Field(
        "off", description="Which answers equal to the reference count: see docs/verifier.md."
    )
    report_samples: int = Field(8, ge=1, description="Completions per problem in report.html.")
    stop: Stops = Field((), description=STOP_DESCRIPTION)
    sampling: Literal["model"] | None = Field(
        None,
        description="model: temperature, top_p, top_k, min_p and repetition_penalty come from the "
        "model's generation_config.json where no argument sets them; null: from eval alone.",
    )
    system_prompt: SystemPrompt = None
    chat_template: ChatTemplate = None
    chat_template_kwargs: ChatTemplateKwargs = Field({})
    preset: str | None = Field(
        None, description="Protocol of configs/preset, whose settings are used unless named here."
    )
    choice_template: str = Field(
        "choice", description="`template` of multiple-choice benchmarks, answered by a letter."
    )
    seeds: tuple[Seed, ...] = Field(
        (), description="Repeats everything with each; empty: once, with `seed`."
    )

    _prompting = model_validator(mode="after")(turns_where_there_are_turns)

    @field_validator("temperature")
    @classmethod
    def _is_sampled_as_it_is(cls, temperature: float) -> float:
        if 0.0 < temperature < MIN_TEMPERATURE:
            raise ValueError(f"vLLM would sample at {MIN_TEMPERATURE}; 0 is greedy")
        return temperature

    @field_validator("n")
    @classmethod
    def _greedy_is_one_sample(cls, n: int, info: ValidationInfo) -> int:
        if info.data.get("temperature") == 0.0 and n > 1:
            raise ValueError("temperature=0 draws the same sample every time; use n=1")
        return n

    @field_validator("seeds")
    @classmethod
    def _are_different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("the same seed twice would draw the same samples twice")
        return seeds

    def folders(self, out: Path) -> dict[int, Path]:
        """The folder of the results of each seed."""
        return {seed: out / f"seed{seed}" for seed in self.seeds} or {self.seed: out}

    @property
    def parameters(self) -> Sampling:
        """The engine's sampling parameters."""
        return _sampling(self, self.stop)


def sampling_in(config: Config) -> Sampling:
    """The sampling parameters of the evaluations inside a run."""
    section = config.eval
    return _sampling(section, config.rollout.stop if section.stop is None else section.stop)


def _sampling(section: EvalSection | EvalConfig, stops: Sequence[str | int]) -> Sampling:
    return Sampling(
        n=section.n,
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        max_tokens=section.max_tokens,
        stop=stop_texts(stops),
        stop_token_ids=stop_ids(stops),
        **section.altered(),
    )


def dtype_on(own: str, gpu: bool) -> str:
    """How a checkpoint of dtype `own` is computed: as it is on a GPU, in float32 on a CPU.

    A CPU is no faster in half precision; float16 becomes bfloat16.
    """
    return "bfloat16" if gpu and own in ("bfloat16", "float16") else "float32"


class EvalCommand(Section):
    """Everything `bandpo eval` reads."""

    model: str = Field(
        min_length=1,
        description="`embedded`, a folder, a run or one of its checkpoints, a hub id, or with "
        "rollout=openai an endpoint's name of it.",
    )
    benchmarks: tuple[str | dict[str, Any], ...] = Field(
        min_length=1,
        description="Names of configs/benchmark, `math`, `all`, file:…, or a mapping.",
    )
    out: Path | None = Field(None, description="Folder of the results; null: outputs/eval/<model>.")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="Of the engine's weights; null: the model's own on a GPU, float32 on a CPU.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code that a model brings.")
    allow_pickle: bool = Field(False, description="Convert weights that are pickles.")
    data: EvalDataSection = EvalDataSection(root=None, columns=NO_COLUMNS)
    eval: EvalSection
    rollout: dict[str, Any] = Field(description="The rollout group; only `engine` is used.")
    reward: dict[str, Any] = Field(description="hydra `_target_` of the reward.")

    @model_validator(mode="before")
    @classmethod
    def _is_named_by_the_engine(cls, values: Any) -> Any:
        """An endpoint's model is `rollout.engine.model` where `model` is not set."""
        rollout = values.get("rollout")
        engine = rollout.get("engine") if isinstance(rollout, dict) else None
        if values.get("model") is not None or not isinstance(engine, dict):
            return values
        return values | {"model": engine.get("model") if engine.get("url") else None}

    @field_validator("model", mode="before")
    @classmethod
    def _is_named(cls, model: Any) -> Any:
        if model is None:
            raise ValueError(
                "name what to evaluate: model=<folder, run, hub id or embedded>, or with "
                "rollout=openai the endpoint's name of it"
            )
        return model

    @field_validator("rollout")
    @classmethod
    def _has_an_engine(cls, rollout: dict[str, Any]) -> dict[str, Any]:
        if "_target_" not in rollout.get("engine", {}):
            raise ValueError("no engine: choose rollout=vllm_local, vllm_server, hf or openai")
        if problem := why_not_imported(rollout["engine"]["_target_"]):
            raise ValueError(problem)
        return rollout

    @property
    def by_name_only(self) -> bool:
        """Whether the engine knows the model by its name alone, as an endpoint's."""
        return bool(getattr(get_object(self.rollout["engine"]["_target_"]), "name_only", False))

    def engine(self) -> dict[str, Any]:
        """The engine's `_target_` and arguments.

        Raises `UserError` if the rollout group sets how to sample, which has no effect here.
        """
        own = self.eval.model_dump(mode="json")
        same = {"group_size": own["n"]} | {name: own[name] for name in SHARED}
        faults = [
            f"rollout.{name}={self.rollout[name]}; it is {value} by eval."
            f"{'n' if name == 'group_size' else name}"
            for name, value in same.items()
            if self.rollout.get(name, value) != value
        ]
        if faults:
            raise UserError.join("sampling is set under eval here, not under rollout:", faults)
        engine: dict[str, Any] = self.rollout["engine"]
        return engine
