"""How long to train, and what to write, evaluate and track meanwhile."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from bandpo.config.section import HARMLESS, Section
from bandpo.config.sections.rollout import MAX_SAMPLES, MAX_TEMPERATURE, MIN_TEMPERATURE
from bandpo.config.sections.sampling import LISTED, AlteredSection


class RunConfig(Section):
    """Where a run lives."""

    name: str = Field(min_length=1, description="Name of the run, also in trackers.")
    dir: str = Field(min_length=1, description="Folder of the run; see docs/run-folder.md.")
    push_to_hub: str | None = Field(
        None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="Hub repository, `user/name`, that gets the last checkpoint's `hf/` after the "
        "last step, and the best one's as its branch `best`; checked at the start.",
    )
    hub_private: bool = Field(
        True, description="Whether a repository that is made is private, and must be."
    )


class TrainerConfig(Section):
    """How long to train, and what to write when."""

    steps: int = Field(ge=1, description="Rollout steps.")
    checkpoint_every: int = Field(ge=0, description="Steps between checkpoints; 0: only the last.")
    keep_checkpoints: int = Field(2, ge=1, description="How many of the newest are kept.")
    keep_best: str | None = Field(
        None,
        description="A metric, such as `eval/arithmetic/mean@32`: the checkpoint where it is "
        "largest is kept as well; only steps that measure it count.",
    )
    save_hf_every: int = Field(
        1,
        ge=0,
        description="Steps between checkpoints with an `hf/` folder; 1: all, 0: only the last "
        "step's, which always has one.",
    )
    eval_every: int = Field(ge=0, description="Steps between evaluations; 0: first and last only.")
    sample_every: int = Field(10, ge=1, description="Steps between tables of sampled completions.")
    dump_tokens_every: int = Field(
        0, ge=0, description="Steps between parquet dumps of token records for `bandpo replay`."
    )
    profile: bool = Field(
        False,
        description="Trace the second step with torch's profiler into profile/rank0.json.gz.",
        json_schema_extra=HARMLESS,
    )
    max_hours: float | None = Field(
        None,
        gt=0.0,
        description="Hours since its start after which the run saves and ends; null: no limit.",
    )
    max_skipped_updates: int = Field(
        3,
        ge=1,
        description="Updates skipped in a row as nonfinite (loss or gradient) after which the run "
        "ends.",
    )
    resume: str = Field(
        "auto",
        description="`auto` (from the newest sound checkpoint of the folder), `never`, or a "
        "checkpoint folder.",
    )


class EvalConfig(AlteredSection):
    """Evaluation inside training; with no `benchmarks`, nothing is evaluated."""

    benchmarks: tuple[str | dict[str, Any], ...] = Field(
        (), description="Names of configs/benchmark, file:…, or a mapping with name and source."
    )
    n: int = Field(32, ge=1, le=MAX_SAMPLES, description="Samples per problem.")
    temperature: float = Field(
        1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="From 0.01 to 2, vLLM's range."
    )
    top_p: float = Field(
        1.0, gt=0.0, le=1.0, description="Share of probability of the tokens sampled from; 1: all."
    )
    top_k: int = Field(0, ge=0, description="0 samples from the whole vocabulary.")
    max_tokens: int = Field(ge=1, description="Longest completion.")
    seed: int = Field(0, ge=0, description="Evaluations at different steps share their seeds.")
    stop: Annotated[tuple[str | int, ...] | None, LISTED] = Field(
        None, description="Texts and token ids that end a completion; null: those of rollout.stop."
    )


class TrackingConfig(Section):
    """Besides metrics.jsonl, which is always written."""

    trackers: tuple[str, ...] = Field((), description="accelerate's: wandb, tensorboard, …")
    project: str = Field("bandpo", description="Project name in the trackers.")
    samples: int = Field(
        16,
        ge=0,
        le=1000,
        description="Completions in the table that wandb, tensorboard and trackio get every "
        "`trainer.sample_every` steps; 0: none.",
    )
