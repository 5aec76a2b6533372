"""Checks between settings: each takes the sections that it needs and returns a problem or None."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from hydra.utils import get_object, instantiate
from pydantic import BaseModel, TypeAdapter, ValidationError

from bandpo.config.rollout_correction import AUTO, NONE, is_to_the_sampler
from bandpo.config.schema import MethodConfig, is_corrected
from bandpo.config.sections.data import DataConfig
from bandpo.config.sections.learner import OFFLOAD_STAGES, LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.config.sections.sampling import AlteredSection
from bandpo.config.sections.trainer import RunConfig, TrainerConfig
from bandpo.config.targets import why_not_built, why_not_imported
from bandpo.disk.space import nearest_existing
from bandpo.errors import UserError
from bandpo.types import TokenBatch


def _prompts_suffice(rollout: RolloutConfig, learner: LearnerConfig, ranks: int) -> str | None:
    """Every rank samples a prompt and every update has a group; shares need not be equal."""
    needs = {
        f"{ranks} rank(s), each of which samples at least one prompt": ranks,
        f"learner.updates_per_rollout={learner.updates_per_rollout}": learner.updates_per_rollout,
    }
    what, least = max(needs.items(), key=lambda item: item[1])
    if rollout.prompts_per_step >= least:
        return None
    return f"rollout.prompts_per_step={rollout.prompts_per_step} is too few for {what}"


def _ratios_need_the_full_distribution(rollout: RolloutConfig) -> str | None:
    names = ("top_p", "top_k", *AlteredSection.model_fields)
    whole = {name: RolloutConfig.model_fields[name].default for name in names}
    found = {name: getattr(rollout, name) for name in names}
    altered = [f"rollout.{k}={v}" for k, v in found.items() if v != whole[k]]
    if not altered:
        return None
    return (
        f"{', '.join(altered)} alter the sampling distribution while the importance ratios are "
        "those of the whole one: train with top_p=1 and top_k=0, without min_p and penalties "
        "(evaluation may use them: eval.top_p)"
    )


def _offload_fits_stage(learner: LearnerConfig) -> str | None:
    stages = OFFLOAD_STAGES[learner.offload]
    if learner.zero_stage in stages:
        return None
    return (
        f"learner.offload={learner.offload} needs learner.zero_stage="
        f"{' or '.join(map(str, stages))}, not {learner.zero_stage}"
    )


def _engine_has_target(rollout: RolloutConfig) -> str | None:
    if "_target_" in rollout.engine:
        problem = why_not_imported(rollout.engine["_target_"])
        return problem and f"rollout.engine._target_: {problem}"
    return "rollout.engine names no _target_: choose rollout=vllm_local, vllm_server or hf"


def _engine_trains(rollout: RolloutConfig) -> str | None:
    target = rollout.engine.get("_target_")
    if target is None or why_not_imported(target):  # reported by _engine_has_target
        return None
    if not getattr(get_object(target), "name_only", False):
        return None
    return (
        f"rollout.engine._target_={target} is for evaluation only (bandpo eval): an endpoint "
        "neither takes weights nor reports log-probabilities as training needs them; choose "
        "rollout=vllm_local, vllm_server or hf"
    )


def _lag_needs_servers(rollout: RolloutConfig) -> str | None:
    if rollout.lag == 0 or "_target_" not in rollout.engine:
        return None
    if why_not_imported(rollout.engine["_target_"]):  # told by _engine_has_target
        return None
    if getattr(get_object(rollout.engine["_target_"]), "samples_apart", False):
        return None
    return (
        f"rollout.lag={rollout.lag} needs an engine that samples in other processes while the "
        "learner updates: choose rollout=vllm_server (docs/servers.md), or rollout.lag=0"
    )


def _engine_dtype_is_known(rollout: RolloutConfig) -> str | None:
    dtype = rollout.engine.get("dtype")
    if dtype in (None, "float32", "bfloat16"):
        return None
    return f"rollout.engine.dtype={dtype}: there are float32 and bfloat16; null is model.dtype"


def _correction_is_one(method: MethodConfig) -> str | None:
    """Named by `method.correction` or given in the loss, and one that can be built."""
    if method.correction in (AUTO, NONE):
        return None
    if method.loss.get("correction") is not None:
        return f"method.correction={method.correction} and method.loss.correction: remove one"
    if is_to_the_sampler(method.loss):
        return (
            f"method.correction={method.correction}: the ratio of method={method.name} is to the "
            "policy that sampled already, which would be weighed twice; remove it"
        )
    own = method.correction
    problem = why_not_built(own) if isinstance(own, dict) else None
    return problem and f"method.correction cannot be built: {problem}"


def _loss_takes_the_correction(
    rollout: RolloutConfig, model: ModelConfig, method: MethodConfig
) -> str | None:
    if why_not_built(method.loss) or not is_corrected(method, rollout, model):
        return None
    if hasattr(instantiate(method.loss), "correction"):
        return None
    return (
        f"method.loss._target_={method.loss.get('_target_')} has no `correction`, which a "
        "bandpo.loss.PolicyLoss has: add method.correction=none (docs/mismatch.md)"
    )


def _lag_gives_what_the_loss_reads(
    rollout: RolloutConfig, model: ModelConfig, method: MethodConfig
) -> str | None:
    if rollout.lag == 0 or why_not_built(method.loss) or is_corrected(method, rollout, model):
        return None
    value = torch.zeros(1, 1)
    try:
        names = ("ref_logp", "new_entropy", "pass_rate", "dual", "number")
        known = dict.fromkeys(names, value)
        instantiate(method.loss)(TokenBatch(value, value, value, value + 1, **known))
    except Exception as error:  # shown to the user, whose own class may have raised it
        return (
            f"rollout.lag={rollout.lag} has no more of the policy that sampled than its tokens' "
            f"log-probabilities, and method={method.name} needs more ({error}): choose a "
            "method.correction such as token_tis, another method, or rollout.lag=0"
        )
    return None


def _method_instantiates(method: MethodConfig) -> str | None:
    if problem := why_not_built(method.loss) or why_not_built(method.advantage):
        return f"method={method.name} cannot be built: {problem}"
    problem = _contract_broken(method)
    return problem and f"method={method.name} cannot be trained with: {problem}"


def _dual_is_solved(method: MethodConfig) -> str | None:
    """A loss that reads `dual` has an estimator of advantages that gives it."""
    if why_not_built(method.loss) or why_not_built(method.advantage):
        return None
    estimator = instantiate(method.advantage)
    if hasattr(getattr(estimator, "func", estimator), "dual"):
        try:
            estimator(torch.tensor([[0.0, 1.0]]))
        except UserError as error:
            return f"method={method.name}: {error}"
        return None
    loss = instantiate(method.loss)
    if _takes(loss, dual=False) or not _takes(loss, dual=True):
        return None
    return (
        f"method={method.name} reads TokenBatch.dual, which method.advantage does not give: take "
        "bandpo.advantage.query_kl_advantages"
    )


def _takes(loss: Any, dual: bool) -> bool:
    """Whether a loss takes a batch with all that there may be, with or without dual variables."""
    value = torch.zeros(1, 1)
    known = {f.name: value for f in fields(TokenBatch) if f.name != "step"}
    known |= {"mask": value + 1} | ({} if dual else {"dual": None})
    try:
        loss(TokenBatch(**known))
    except Exception:  # whatever a user's class raises: others report it
        return False
    return True


def _reward_instantiates(reward: dict[str, Any]) -> str | None:
    problem = why_not_built(reward)  # worker processes start with the first completion, not here
    return problem and f"reward cannot be built: {problem}"


def _alarms_instantiate(alarms: tuple[dict[str, Any], ...]) -> str | None:
    problems = [problem for problem in map(why_not_built, alarms) if problem]
    return f"alarms cannot be built: {'; '.join(problems)}" if problems else None


def _contract_broken(method: MethodConfig) -> str | None:
    """The property that bounds or a divergence of the loss lack, with their class."""
    check = getattr(instantiate(method.loss), "check", None)
    try:
        if check is not None:
            check()
    except UserError as error:
        return str(error)
    return None


def _sampler_instantiates(data: DataConfig) -> str | None:
    problem = why_not_built(data.sampler) if data.sampler else None
    return problem and f"data.sampler cannot be built: {problem}"


def _baseline_is_of_what_is_masked(rollout: RolloutConfig, method: MethodConfig) -> str | None:
    if rollout.truncated_in_baseline:
        return None
    if rollout.truncated != "mask":
        return (
            "rollout.truncated_in_baseline=false needs rollout.truncated=mask, not "
            f"{rollout.truncated}"
        )
    if why_not_built(method.advantage):
        return None
    group = torch.tensor([[0.0, 1.0]])
    try:
        instantiate(method.advantage)(group, valid=group > 0)
    except Exception as error:  # shown to the user, whose own function may have raised it
        return (
            "rollout.truncated_in_baseline=false needs an advantage that takes the valid samples "
            f"(valid=…, as bandpo.advantage.group_advantages does): {error}"
        )
    return None


def _resume_exists(trainer: TrainerConfig) -> str | None:
    if trainer.resume in ("auto", "never") or Path(trainer.resume).is_dir():
        return None
    return f"trainer.resume={trainer.resume} is neither auto, never nor a checkpoint folder"


def _run_dir_is_usable(run: RunConfig) -> str | None:
    nearest = nearest_existing(Path(run.dir))
    if not nearest.is_dir():
        return f"run.dir={run.dir}: {nearest} is a file, not a folder"
    return None if os.access(nearest, os.W_OK) else f"run.dir={run.dir}: no right to write there"


def _dtype_fits_model(model: ModelConfig) -> str | None:
    if model.path.partition(":")[0] != "embedded" or model.dtype == "float32":
        return None
    return f"model.dtype={model.dtype}: the embedded policy is made for float32"


CROSS_CHECKS: tuple[Callable[..., str | None], ...] = (
    _prompts_suffice,
    _ratios_need_the_full_distribution,
    _offload_fits_stage,
    _engine_has_target,
    _engine_trains,
    _lag_needs_servers,
    _engine_dtype_is_known,
    _correction_is_one,
    _loss_takes_the_correction,
    _lag_gives_what_the_loss_reads,
    _method_instantiates,
    _dual_is_solved,
    _reward_instantiates,
    _alarms_instantiate,
    _sampler_instantiates,
    _baseline_is_of_what_is_masked,
    _resume_exists,
    _dtype_fits_model,
    _run_dir_is_usable,
)


def cross_problems(raw: Mapping[str, Any], schema: type[BaseModel], ranks: int = 1) -> list[str]:
    """The problems found by all checks whose sections the schema has and that are valid by
    themselves, for a job of so many `ranks`."""
    valid: dict[tuple[str, Any], Any] = {("ranks", int): ranks}
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
