"""The configuration of a run: typed, documented and checked as a whole before anything loads.

Hydra composes the YAML files of `configs/`; the result is validated section by section against
the models below, then by the cross-checks at the end, and every problem found is reported in
one error.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.config import JsonDict

from bandpo.errors import UserError

# What a setting may do to a run that goes on from a checkpoint (`bandpo.resume`). An unmarked key
# decides what the run is; the keys of a mapping may be marked one by one.
HARMLESS: JsonDict = {"resume": "harmless"}  # the same rollouts, batches and weights, bitwise
ROUNDING: JsonDict = {"resume": "rounding"}  # the same up to floating-point rounding


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RunConfig(Section):
    """Where a run lives."""

    name: str = Field(min_length=1, description="Name of the run, also in trackers.")
    dir: str = Field(min_length=1, description="Folder of the run; see docs/run-folder.md.")


class ModelConfig(Section):
    """The policy before training."""

    path: str = Field(
        min_length=1,
        description="`embedded` (the small policy made from a seed; `embedded:worked_share=0.02` "
        "varies `bandpo.embedded.Recipe`), a folder or a hub id.",
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
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations backward.", json_schema_extra=HARMLESS
    )
    trust_remote_code: bool = Field(False, description="Run Python code that a model brings.")
    allow_pickle: bool = Field(
        False,
        description="Convert weights that are pickles; without it only safetensors are read.",
    )
    seed: int = Field(0, ge=0, description="Seed of the embedded policy's warm-up.")


class DataConfig(Section):
    """The problems to train on, and how they become prompts."""

    train: str | dict[str, Any] = Field(
        description="A JSONL/parquet/CSV file or a hub id; or a mapping with `path`, `hub` or "
        "`_target_` and their settings (`bandpo.data.sources`).",
    )
    root: str | None = Field(
        None,
        description="Folder whose files take the place of benchmarks of the same name.",
        json_schema_extra=HARMLESS,
    )
    template: str = Field("boxed", description="`boxed`, `answer_line`, `none` or a file.")
    max_prompt_tokens: int = Field(1024, ge=1, description="Longest prompt that is trained on.")
    overlong_prompts: Literal["drop", "error"] = Field(
        "drop",
        description="What happens to longer prompts; drops are counted.",
        json_schema_extra=HARMLESS,
    )


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
    group_size: int = Field(32, ge=2, description="G, samples a prompt.")
    prompts_per_step: int = Field(ge=1, description="P, prompts a step, over all ranks.")
    temperature: float = Field(1.0, gt=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0, description="0 samples from the whole vocabulary.")
    max_tokens: int = Field(ge=1, description="Longest completion.")
    filter_groups: bool = Field(
        False, description="Replace groups whose rewards are all equal (DAPO's dynamic sampling)."
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
        description="Largest |engine − learner| log-probability accepted after a weight sync; "
        "null: 1e-3 in float32, 0.3 in bfloat16 (its maximum; the mean is near 5e-3).",
        json_schema_extra=HARMLESS,
    )


class LoraConfig(Section):
    """Low-rank adapters instead of all weights; the reference policy is then the model without."""

    rank: int = Field(0, ge=0, description="Of the adapters; 0 trains all weights.")
    alpha: int = Field(16, ge=1, description="The adapters' output is scaled by alpha/rank.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Names of the layers that get one, such as [q_proj, v_proj]."
    )


class LearnerConfig(Section):
    """The optimizer side."""

    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage.")
    lr: float = Field(gt=0.0, le=1.0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0)
    warmup_steps: int = Field(0, ge=0, description="Optimizer updates of linear warm-up.")
    max_grad_norm: float = Field(1.0, ge=0.0, description="0 turns gradient clipping off.")
    updates_per_rollout: int = Field(1, ge=1, description="Minibatches a rollout is cut into.")
    epochs_per_rollout: int = Field(1, ge=1, description="Passes over each rollout.")
    lora: LoraConfig = LoraConfig(rank=0, alpha=16, targets="all-linear")
    packing: bool = Field(
        True,
        description="Sequences of a micro-batch share one row without padding, each attending to "
        "itself alone; false: a padded row each (quicker with model.attention=eager).",
        json_schema_extra=ROUNDING,
    )
    micro_batch_tokens: int = Field(
        16384,
        ge=1,
        description="Tokens, with padding, of one forward/backward pass on one rank; of a prompt "
        "that samples share, a repetition counts a quarter.",
        json_schema_extra=ROUNDING,
    )
    logits_chunk: int = Field(
        1024,
        ge=1,
        description="Tokens whose logits exist at one time; peak memory is chunk × V.",
        json_schema_extra=ROUNDING,
    )
    offload: Literal["none", "optimizer", "parameters"] = Field(
        "none", description="Move optimizer state (ZeRO ≥ 1) or parameters too (ZeRO 3) to the CPU."
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
        description="Updates skipped in a row, since loss or gradient was not finite, after which "
        "the run ends.",
    )
    resume: str = Field(
        "auto",
        description="`auto` (from the newest sound checkpoint of the folder), `never`, or a "
        "checkpoint folder.",
    )


class EvalConfig(Section):
    """Evaluation inside training; nothing is evaluated when `benchmarks` is empty."""

    benchmarks: tuple[str | dict[str, Any], ...] = Field(
        (), description="Names of configs/benchmark, file:…, or a mapping with name and source."
    )
    n: int = Field(32, ge=1, description="Samples a problem.")
    temperature: float = Field(1.0, gt=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(ge=1)
    seed: int = Field(0, ge=0, description="Evaluations at different steps share their seeds.")


class TrackingConfig(Section):
    """Besides metrics.jsonl, which is always written."""

    trackers: tuple[str, ...] = Field((), description="accelerate's: wandb, tensorboard, …")
    project: str = Field("bandpo", description="Project name in the trackers.")


class MethodConfig(BaseModel):
    """A row of a table of methods; further keys are parameters that `loss` interpolates."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    loss: dict[str, Any] = Field(description="hydra `_target_` tree of a PolicyLoss.")
    advantage: dict[str, Any] = Field(description="hydra `_target_` of rewards → advantages.")


class Config(Section):
    """Everything `bandpo train` reads."""

    seed: int = Field(ge=0, description="The seed that everything random is derived from.")
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


# --- Cross-checks: each names the sections it needs and yields problems in words ---------------


def _batch_divides(rollout: RolloutConfig, learner: LearnerConfig) -> str | None:
    ranks = world_size()
    pieces = ranks * learner.updates_per_rollout
    if rollout.prompts_per_step % pieces == 0:
        return None
    return (
        f"rollout.prompts_per_step={rollout.prompts_per_step} is not divisible by "
        f"learner.updates_per_rollout={learner.updates_per_rollout} × {ranks} rank(s) = {pieces}: "
        f"{rollout.prompts_per_step // pieces * pieces or pieces} would be"
    )


def _ratios_need_the_full_distribution(rollout: RolloutConfig) -> str | None:
    if rollout.top_p == 1.0 and rollout.top_k == 0:
        return None
    return (
        f"rollout.top_p={rollout.top_p}, rollout.top_k={rollout.top_k} cut the sampling "
        "distribution while the importance ratios are those of the whole one: train with "
        "top_p=1 and top_k=0 (evaluation may cut: eval.top_p)"
    )


def _offload_fits_stage(learner: LearnerConfig) -> str | None:
    least = {"none": 0, "optimizer": 1, "parameters": 3}[learner.offload]
    if learner.zero_stage >= least:
        return None
    return (
        f"learner.offload={learner.offload} needs learner.zero_stage >= {least}, "
        f"not {learner.zero_stage}"
    )


def _engine_has_target(rollout: RolloutConfig) -> str | None:
    if "_target_" in rollout.engine:
        return None
    return "rollout.engine names no _target_: choose rollout=vllm_local, vllm_server or hf"


def _lag_needs_servers(rollout: RolloutConfig) -> str | None:
    if rollout.lag == 0 or "_target_" not in rollout.engine:
        return None
    try:
        engine = get_object(rollout.engine["_target_"])
    except Exception as error:  # whatever a user's own module raises is the user's to read
        return f"rollout.engine._target_={rollout.engine['_target_']}: {error}"
    if getattr(engine, "samples_apart", False):
        return None
    return (
        f"rollout.lag={rollout.lag} needs an engine that samples in processes of its own while "
        "the learner updates: choose rollout=vllm_server (docs/servers.md), or rollout.lag=0"
    )


def _lag_knows_no_other_old_policy(rollout: RolloutConfig, method: MethodConfig) -> str | None:
    if rollout.lag == 0 or "correction" not in method.loss:
        return None
    return (
        f"rollout.lag={rollout.lag} takes ratios against the engine's own log-probabilities, which "
        "method.loss.correction compares with the learner's: leave it out"
    )


def _method_instantiates(method: MethodConfig) -> str | None:
    problem = _not_built(method.loss) or _not_built(method.advantage)
    return problem and f"method={method.name} cannot be built: {problem}"


def _reward_instantiates(reward: dict[str, Any]) -> str | None:
    problem = _not_built(reward)  # worker processes start with the first completion, not here
    return problem and f"reward cannot be built: {problem}"


def _alarms_instantiate(alarms: tuple[dict[str, Any], ...]) -> str | None:
    problems = [problem for problem in map(_not_built, alarms) if problem]
    return f"alarms cannot be built: {'; '.join(problems)}" if problems else None


def _not_built(target: Mapping[str, Any]) -> str | None:
    """Why hydra cannot build a `_target_` tree; None where it can."""
    try:
        instantiate(target)
    except Exception as error:  # whatever a user's own class raises is the user's to read
        cause = error.__cause__ or error
        lines = str(cause).splitlines()
        return " ".join(map(str.strip, lines)) if isinstance(cause, UserError) else lines[0]
    return None


def _resume_exists(trainer: TrainerConfig) -> str | None:
    if trainer.resume in ("auto", "never") or Path(trainer.resume).is_dir():
        return None
    return f"trainer.resume={trainer.resume} is neither auto, never nor a checkpoint folder"


def _best_is_measured(trainer: TrainerConfig, eval: EvalConfig) -> str | None:
    kind, _, rest = (trainer.keep_best or "").partition("/")
    names = [b if isinstance(b, str) else str(b.get("name")) for b in eval.benchmarks]
    if kind != "eval" or any(rest.startswith(f"{name}/") for name in names):
        return None
    return (
        f"trainer.keep_best={trainer.keep_best}: no such benchmark is evaluated "
        f"(eval.benchmarks: {', '.join(names) or 'none'})"
    )


def _run_dir_is_usable(run: RunConfig) -> str | None:
    folder = Path(run.dir).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return f"run.dir={run.dir}: {nearest} is a file, not a folder"
    return None if os.access(nearest, os.W_OK) else f"run.dir={run.dir}: no right to write there"


def _dtype_fits_model(model: ModelConfig) -> str | None:
    if model.path.partition(":")[0] != "embedded" or model.dtype == "float32":
        return None
    return f"model.dtype={model.dtype}: the embedded policy is made for float32"


CROSS_CHECKS: tuple[Callable[..., str | None], ...] = (
    _batch_divides,
    _ratios_need_the_full_distribution,
    _offload_fits_stage,
    _engine_has_target,
    _lag_needs_servers,
    _lag_knows_no_other_old_policy,
    _method_instantiates,
    _reward_instantiates,
    _alarms_instantiate,
    _resume_exists,
    _best_is_measured,
    _dtype_fits_model,
    _run_dir_is_usable,
)

# --- Composition and validation ----------------------------------------------------------------

SchemaT = TypeVar("SchemaT", bound=BaseModel)
# hydra refuses some overrides with a bare ValueError.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError)


def longest_sequence(config: Config) -> int:
    """Tokens of the longest prompt with the longest completion, in training or evaluation."""
    completion = max(config.rollout.max_tokens, config.eval.max_tokens)
    return config.data.max_prompt_tokens + completion


def world_size() -> int:
    """Ranks of this job, as the launcher announced them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def announced(ranks: int) -> Iterator[None]:
    """Configurations are checked as a launcher of so many ranks would have them checked."""
    before = os.environ.get("WORLD_SIZE")
    os.environ["WORLD_SIZE"] = str(ranks)
    try:
        yield
    finally:
        if before is None:
            del os.environ["WORLD_SIZE"]
        else:
            os.environ["WORLD_SIZE"] = before


def config_dir() -> Path:
    """The folder of the shipped YAML files, in a checkout as in an installed wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise UserError(f"no configs folder beside {package}: the installation is incomplete")


def defaults(schema: type[BaseModel]) -> dict[str, Any]:
    """The schema's default values as a tree, so that YAML files need not repeat them."""
    tree: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            tree[name] = defaults(field.annotation)
        elif not field.is_required():
            default = field.get_default(call_default_factory=True)
            tree[name] = list(default) if isinstance(default, tuple) else default
    return tree


def _compose(name: str, overrides: Sequence[str], schema: type[BaseModel]) -> dict[str, Any]:
    return _resolved(_composed(name, overrides, schema))


def _composed(name: str, overrides: Sequence[str], schema: type[BaseModel]) -> DictConfig:
    """The files of `name` over the schema's defaults, which they list as `<name>_defaults`."""
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(f"{name}_defaults", defaults(schema))
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra_compose(name, overrides=list(overrides))


def _resolved(composed: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # type: ignore


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = ("full_key", "object_type", "Config search path", "provider=")
    hints = [line for line in lines[1:] if not line.startswith(noise)]
    return " ".join([lines[0], *hints]) if lines else type(error).__name__


def _sorted_out(
    name: str, overrides: Sequence[str], schema: type[BaseModel]
) -> tuple[list[str], list[str]]:
    """The overrides that compose, and what is wrong with each of the others.

    Group choices (method=…) come first, since they decide which keys there are.
    """
    accepted: list[str] = []
    problems: list[str] = []
    keys = {override: override.split("=")[0].lstrip("+~") for override in overrides}
    # First where to look, then which groups to take, then values.
    order = {o: (k != "hydra.searchpath", not (config_dir() / k).is_dir()) for o, k in keys.items()}
    for override in sorted(overrides, key=lambda o: order[o]):
        try:
            _compose(name, [*accepted, override], schema)
            accepted.append(override)
        except COMPOSITION_ERRORS as error:
            problems.append(f"{override}: {_first_sentence(error)}")
    return accepted, problems


def compose(name: str, overrides: Sequence[str], schema: type[SchemaT]) -> SchemaT:
    """The configuration `name` with overrides, as `schema`; every problem in one UserError."""
    try:
        OverridesParser.create().parse_overrides(list(overrides))
        problems: list[str] = []
        raw = _compose(name, overrides, schema)
    except COMPOSITION_ERRORS:
        accepted, problems = _sorted_out(name, overrides, schema)
        raw = _compose(name, accepted, schema)
    return validate(raw, schema, problems)


def compose_seeds(
    name: str, overrides: Sequence[str], schema: type[SchemaT], seeds: Sequence[int]
) -> list[SchemaT]:
    """`compose` with each `seed` in turn, for little more than the time of one."""
    try:
        composed = _composed(name, overrides, schema)
        trees = [_resolved(OmegaConf.merge(composed, {"seed": seed})) for seed in seeds]  # type: ignore
    except COMPOSITION_ERRORS:
        return [compose(name, [*overrides, f"seed={seed}"], schema) for seed in seeds]
    return [validate(tree, schema) for tree in trees]


def validate(
    raw: Mapping[str, Any], schema: type[SchemaT], problems: Sequence[str] = ()
) -> SchemaT:
    """`raw` as `schema`; cross-checks are made for every section that is valid by itself.

    Raises UserError with `problems` found before and all that are found here.
    """
    found = list(problems)
    try:
        schema.model_validate(raw)
    except ValidationError as error:
        found += [_in_words(detail) for detail in error.errors()]
    found += _cross_problems(raw, schema)
    if found:
        raise UserError.join("the configuration has these problems:", found)
    return schema.model_validate(raw)


def _in_words(detail: Any) -> str:
    key = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        return f"{key}: no such key"
    if detail["type"] == "missing":
        return f"{key}: is missing"
    if isinstance(detail["input"], Mapping):  # the whole section: it would bury the message
        return f"{key}: {detail['msg']}"
    return f"{key}={detail['input']!r}: {detail['msg']}"


def _cross_problems(raw: Mapping[str, Any], schema: type[BaseModel]) -> list[str]:
    """What the checks find whose sections the schema has and that are valid by themselves."""
    valid: dict[tuple[str, Any], Any] = {}
    for name, field in schema.model_fields.items():
        annotation: Any = field.annotation
        try:
            valid[name, annotation] = TypeAdapter(annotation).validate_python(raw.get(name))
        except ValidationError:
            continue
    found = []
    for check in CROSS_CHECKS:
        needed = {n: hint for n, hint in get_type_hints(check).items() if n != "return"}
        if needed.items() <= valid.keys():
            found.append(check(**{name: valid[name, hint] for name, hint in needed.items()}))
    return [problem for problem in found if problem]
