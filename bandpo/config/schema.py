"""The schema of a run's configuration: typed, documented and range-checked.

`bandpo.config.composition` makes it from the YAML files of `configs/` and a user's overrides;
`bandpo.config.cross_checks` checks settings against each other.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.config import JsonDict

from bandpo.config.section import Section

# The effect of a changed setting on a run that resumes (`bandpo.config.identity`). An unmarked key
# makes it another run; the keys of a mapping may be marked one by one.
HARMLESS: JsonDict = {"resume": "harmless"}  # the same rollouts, batches and weights, bitwise
ROUNDING: JsonDict = {"resume": "rounding"}  # the same up to floating-point rounding


# vLLM refuses higher temperatures, and silently raises lower ones to this.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0
# A prompt's samples have the seeds after the prompt's own (`bandpo.rollout.seeds`).
MAX_SAMPLES = 4096
MAX_SEED = 2**32 - 1  # NumPy's, which vLLM seeds too

MICRO_BATCH_TOKENS = {"cuda": 16384, "cpu": 1024}

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]  # of Adam's moving averages


# Keys of earlier versions and other spellings, and their replacements.
FORMER_KEYS = {
    "learner.warmup_steps": "it counted updates, as learner.warmup_updates does; "
    "learner.warmup_rollouts counts rollouts, which are the steps of trainer.steps",
    **{
        f"{place}columns.{role}": f"data.columns.{role}=… names it, whatever data.train is"
        for place in ("", "data.train.")
        for role in ("id", "problem", "answer", "answer_pattern")
    },
}


class RunConfig(Section):
    """Where a run lives."""

    name: str = Field(min_length=1, description="Name of the run, also in trackers.")
    dir: str = Field(min_length=1, description="Folder of the run; see docs/run-folder.md.")


class ModelConfig(Section):
    """The policy before training."""

    path: str = Field(
        min_length=1,
        description="`embedded` (the small policy that ships; `embedded:worked_share=0.02` "
        "varies `bandpo.model.embedded.Recipe`), a folder or a hub id.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the learner's compute and of the engine's weights."
    )
    attention: str = Field(
        "sdpa", description="transformers' attn_implementation.", json_schema_extra=ROUNDING
    )
    kernels: Literal["torch", "liger"] = Field(
        "torch",
        description="`liger`: its fused norms, rotary embeddings and MLPs (NVIDIA GPUs).",
        json_schema_extra=ROUNDING,
    )
    gradient_checkpointing: bool | None = Field(
        False,
        description="Recompute activations backward; null: where they would not fit otherwise.",
        json_schema_extra=HARMLESS,
    )
    trust_remote_code: bool = Field(False, description="Run Python code that a model brings.")
    allow_pickle: bool = Field(
        False,
        description="Convert weights that are pickles; without it only safetensors are read.",
    )
    seed: int = Field(
        0, ge=0, description="Seed of the embedded policy's warm-up; 0 is the one that ships."
    )

    @field_validator("path", mode="before")
    @classmethod
    def _is_named(cls, path: Any) -> Any:
        if path is None:
            raise ValueError("name the policy to train: model.path=<folder, hub id or embedded>")
        return path


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
        description="A JSONL/parquet/CSV file or a hub id; or a mapping with `path`, `hub` or "
        "`_target_` and their settings (`bandpo.data.sources`).",
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

    @field_validator("train")
    @classmethod
    def _is_named(cls, train: str | dict[str, Any]) -> str | dict[str, Any]:
        if not train:
            raise ValueError(
                "name the problems to train on: data.train=my.jsonl (or .parquet, .csv, a hub id), "
                "data=dapo_math or data=arithmetic"
            )
        return train


class RolloutConfig(Section):
    """Sampling groups of completions."""

    engine: dict[str, Any] = Field(
        description="hydra `_target_` of the engine and its arguments.",
        json_schema_extra={
            "resume": {
                "max_num_seqs": "rounding",
                "tensor_parallel_size": "rounding",
                "enforce_eager": "rounding",
                "gpu_memory_utilization": "rounding",
                "urls": "rounding",
                "model": "harmless",
                "transfer": "harmless",
                "exchange": "harmless",
                "timeout_s": "harmless",
            }
        },
    )
    group_size: int = Field(32, ge=2, le=MAX_SAMPLES, description="G, samples per prompt.")
    prompts_per_step: int = Field(ge=1, description="P, prompts per step, over all ranks.")
    temperature: float = Field(
        1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="From 0.01 to 2, vLLM's range."
    )
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0, description="0 samples from the whole vocabulary.")
    max_tokens: int = Field(
        ge=1, description="Longest completion; with the longest prompt it must fit the model."
    )
    filter_groups: Literal[False, "accuracy", "reward"] = Field(
        False,
        description="Replace groups whose answers are all right or all wrong (accuracy, or true: "
        "DAPO's dynamic sampling), or whose rewards are all equal (reward).",
    )
    max_refills: int = Field(100, ge=1, description="Extra batches that filter_groups may draw.")
    lag: Literal[0, 1] = Field(
        0, description="1: servers sample the next step while the learner updates (docs/scale.md)."
    )
    max_weight: float = Field(
        2.0, ge=1.0, description="Truncates the importance ratios of lag 1; unused with lag 0."
    )
    probe_tolerance: float | None = Field(
        None,
        gt=0.0,
        description="Largest mean |engine − learner| of a completion's log-probabilities that is "
        "accepted after a weight sync; null: 3e-4 in float32, 0.1 in bfloat16 (docs/silent-"
        "faults.md).",
        json_schema_extra=HARMLESS,
    )

    @field_validator("filter_groups", mode="before")
    @classmethod
    def _filter_by_accuracy(cls, value: Any) -> Any:
        return "accuracy" if value is True else value


class LoraConfig(Section):
    """Low-rank adapters instead of all weights; the reference policy is then the model without."""

    rank: int = Field(0, ge=0, description="Of the adapters; 0 trains all weights.")
    alpha: int = Field(16, ge=1, description="The adapters' output is scaled by alpha/rank.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Names of the layers that get one, such as [q_proj, v_proj]."
    )


OFFLOAD_STAGES = {
    "none": (0, 1, 2, 3),
    "between_updates": (1, 2),  # under ZeRO 3 DeepSpeed does it with its own Adam alone
    "optimizer": (1, 2, 3),
    "parameters": (3,),
}
"""The ZeRO stages at which `learner.offload` may have a value."""


class LearnerConfig(Section):
    """The optimizer side."""

    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage.")
    lr: float = Field(
        gt=0.0, le=1.0, description="AdamW's learning rate, constant after the warm-up."
    )
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0)
    warmup_rollouts: int = Field(
        0,
        ge=0,
        description="Rollouts (steps) of linear warm-up: updates on one have one learning rate.",
    )
    warmup_updates: int = Field(
        0,
        ge=0,
        description="Optimizer updates of linear warm-up; of both warm-ups the lower rate counts.",
    )
    max_grad_norm: float = Field(1.0, ge=0.0, description="0 turns gradient clipping off.")
    updates_per_rollout: int = Field(1, ge=1, description="Minibatches per rollout.")
    epochs_per_rollout: int = Field(1, ge=1, description="Passes over each rollout.")
    lora: LoraConfig = LoraConfig(rank=0, alpha=16, targets="all-linear")
    packing: bool = Field(
        True,
        description="Sequences of a micro-batch share one row without padding, each attending to "
        "itself alone; false: one padded row per sequence (faster with model.attention=eager).",
        json_schema_extra=ROUNDING,
    )
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens, with padding, of one forward/backward pass on one rank; of a prompt "
        "that samples share, a repetition counts a quarter. null: the largest of 2048 to 32768 "
        "that fits on the GPU; 1024 on a CPU, whose caches hold the activations of so many.",
        json_schema_extra=ROUNDING,
    )
    logits_chunk: int = Field(
        1024,
        ge=1,
        description="Tokens whose logits exist at one time; peak memory is chunk × V.",
        json_schema_extra=ROUNDING,
    )
    offload: Literal["none", "between_updates", "optimizer", "parameters"] = Field(
        "none",
        description="Optimizer state in the CPU's memory: between_updates (ZeRO 1 and 2: while the "
        "engine works), optimizer (ZeRO ≥ 1: always, and updated there), parameters (ZeRO 3: "
        "weights too).",
    )

    def micro_batch_on(self, device: Literal["cuda", "cpu"]) -> int:
        """Tokens of one forward/backward pass there."""
        return self.micro_batch_tokens or MICRO_BATCH_TOKENS[device]


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


class EvalConfig(Section):
    """Evaluation inside training; with no `benchmarks`, nothing is evaluated."""

    benchmarks: tuple[str | dict[str, Any], ...] = Field(
        (), description="Names of configs/benchmark, file:…, or a mapping with name and source."
    )
    n: int = Field(32, ge=1, le=MAX_SAMPLES, description="Samples per problem.")
    temperature: float = Field(
        1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="From 0.01 to 2, vLLM's range."
    )
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(ge=1)
    seed: int = Field(0, ge=0, description="Evaluations at different steps share their seeds.")


class TrackingConfig(Section):
    """Besides metrics.jsonl, which is always written."""

    trackers: tuple[str, ...] = Field((), description="accelerate's: wandb, tensorboard, …")
    project: str = Field("bandpo", description="Project name in the trackers.")


class MethodConfig(BaseModel):
    """A method; further keys are parameters that `loss` interpolates."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    loss: dict[str, Any] = Field(description="hydra `_target_` tree of a PolicyLoss.")
    advantage: dict[str, Any] = Field(description="hydra `_target_` of rewards → advantages.")


class Config(Section):
    """Everything `bandpo train` reads."""

    seed: int = Field(
        ge=0, le=MAX_SEED, description="The seed that everything random is derived from."
    )
    run: RunConfig = Field(json_schema_extra=HARMLESS)
    model: ModelConfig
    data: DataConfig
    method: MethodConfig
    rollout: RolloutConfig
    reward: dict[str, Any] = Field(
        json_schema_extra={"resume": {"workers": "harmless", "memory_mib": "harmless"}}
    )
    learner: LearnerConfig
    trainer: TrainerConfig = Field(json_schema_extra=HARMLESS)
    eval: EvalConfig = Field(json_schema_extra=HARMLESS)
    tracking: TrackingConfig = Field(json_schema_extra=HARMLESS)
    alarms: tuple[dict[str, Any], ...] = Field(
        (),
        description="hydra `_target_`s of `bandpo.alarms`: Below, Above, StuckAt.",
        json_schema_extra=HARMLESS,
    )


def longest_sequence(config: Config) -> int:
    """Tokens of the longest prompt with the longest completion, in training or evaluation."""
    completion = max(config.rollout.max_tokens, config.eval.max_tokens)
    return config.data.max_prompt_tokens + completion
