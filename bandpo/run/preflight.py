"""Tries at its start all that a run needs at its end, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bandpo.artifacts.figures import plot_timeline, plot_training
from bandpo.artifacts.hub_push import check_hub
from bandpo.artifacts.model_card import model_card
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.learner.export import write_settings
from bandpo.model.source import ModelSource, load_tokenizer
from bandpo.ranks.collectives import Ranks
from bandpo.redaction import redact
from bandpo.reward import Reward
from bandpo.rollout.scoring import try_reward
from bandpo.types import Group

FOLDER = ".preflight"


def preflight(
    config: Config,
    model: ModelSource,
    tokenizer: Any,
    reward: Reward,
    answer: Group,
    command: str,
    ranks: Ranks,
    *,
    resumed: bool = False,
) -> list[str]:
    """Scores a group of `answer`, writes all that the end writes and asks the hub; collective.

    Returns notes for the user. Raises UserError on every rank for what fails on any.
    """
    notes: list[str] = []
    failure: UserError | None = None
    try:
        completions = answer.completions * config.rollout.group_size
        try_reward(reward, replace(answer, completions=completions))
        if ranks.is_first:
            notes = _write_everything(config, model, tokenizer, command)
            notes += check_hub(config, resumed)
    except UserError as error:
        failure = error
    ranks.raise_any(failure)
    return notes


def _write_everything(
    config: Config, model: ModelSource, tokenizer: Any, command: str
) -> list[str]:
    """Writes the files beside an exported policy and a figure of each kind; returns notes.

    It does so in the run's folder, which shows that it can be written, and leaves nothing there.
    Raises a UserError that names everything that failed.
    """
    folder = Path(config.run.dir) / FOLDER
    notes: list[str] = []
    trials: dict[str, Callable[[], None]] = {
        f"{model.spec}: its configuration or tokenizer cannot be written to a checkpoint's hf/": (
            lambda: notes.extend(_try_export(folder, config, model, tokenizer))
        ),
        "the model card cannot be written": lambda: _try_card(folder, config, command),
        "figures cannot be drawn": lambda: _try_figures(folder),
    }
    problems = []
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for what, attempt in trials.items():
            try:
                attempt()
            except Exception as error:  # whatever it is, it would be as fatal at the end
                reason = " ".join(str(error).split()) or type(error).__name__
                problems.append(f"{what}: {reason}")
    except OSError as error:
        problems.append(f"run.dir={config.run.dir} cannot be written: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if problems:
        raise UserError.join("this run would fail at its end:", problems)
    return notes


def _try_export(folder: Path, config: Config, model: ModelSource, tokenizer: Any) -> list[str]:
    trust = config.model.trust_remote_code
    generation = _generation_config(model)
    write_settings(folder, model.config(trust), generation, tokenizer)
    written = ModelSource(f"hf/ of {model.spec}", str(folder))
    written.config(trust)
    load_tokenizer(written, trust)
    if generation is None:
        return []
    try:
        generation.validate(strict=True)
    except ValueError as error:
        lines = [line.strip("- ") for line in str(error).splitlines() if line.startswith("- ")]
        return [
            f"{model.spec}: transformers finds its generation_config.json invalid "
            f"({' '.join(lines)}); hf/ gets it unchanged"
        ]
    return []


def _generation_config(model: ModelSource) -> Any:
    """The model's own, None if it has none; raises UserError where it cannot be used."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model.path)
    except OSError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"generation_config.json: {error}") from None


def _try_card(folder: Path, config: Config, command: str) -> None:
    card = model_card(config, config.trainer.steps, {}, command, {})
    (folder / "README.md").write_text(redact(card), encoding="utf-8")


def _try_figures(folder: Path) -> None:
    line = {"step": 1, "reward/mean": 0.0, "time/step_s": 1.0, "time/rollout_s": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    plot_training(folder)
    plot_timeline(folder)
