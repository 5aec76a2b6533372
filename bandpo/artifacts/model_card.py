"""The README.md of a trained policy: origin, training, and scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bandpo.config.identity import config_hash
from bandpo.config.rollout_correction import AUTO, NONE, name_of
from bandpo.config.schema import Config, MethodConfig
from bandpo.config.sections.data import DataConfig
from bandpo.config.sections.prompting import PLAIN
from bandpo.model import smollm2


def model_card(
    config: Config, step: int, scores: Mapping[str, float], command: str, facts: Mapping[str, Any]
) -> str:
    """Markdown under the front matter that model hubs read.

    `scores` are metrics of this step; `facts` are further rows of the table, such as the commit.
    """
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **_base(config.model.path),
        "tags": ["bandpo", "reinforcement-learning", config.method.name],
    }
    rollout, learner = config.rollout, config.learner
    rows = {
        "method": config.method.name,
        **_correction(config.method),
        "base model": config.model.path,
        "data": _source(config.data.train),
        "prompt template": config.data.template,
        **_prompting(config.data),
        "reward": config.reward["_target_"],
        "steps": f"{step} of {config.trainer.steps}",
        "samples per step": f"{rollout.prompts_per_step} prompts × {rollout.group_size}",
        "sampling temperature": rollout.temperature,
        "learning rate": learner.lr,
        "updates per step": learner.updates_per_rollout * learner.epochs_per_rollout,
        "precision": config.model.dtype,
        "seed": config.seed,
        "configuration": f"`{config_hash(config)}`",
        **facts,
    }
    measured = {name: value for name, value in scores.items() if name.startswith("eval/")}
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
            f"# {config.run.name}, step {step}\n",
            "A policy trained with bandpo by reinforcement learning on verifiable rewards.\n",
            *_table(("", ""), rows),
            "\n## Loss\n",
            f"```yaml\n{yaml.safe_dump(config.method.loss, sort_keys=False)}```",
            "\n## Scores\n",
            *(
                _table(("metric", "value"), {k: f"{v:.4f}" for k, v in measured.items()})
                if measured
                else ["This step was not evaluated."]
            ),
            *(["\n## Command\n", f"```bash\n{command}\n```"] if command else []),
            "",
        ]
    )


def _correction(method: MethodConfig) -> dict[str, str]:
    found = method.correction
    if found in (AUTO, NONE):
        return {}
    return {"rollout correction": name_of(found)}


def _base(path: str) -> dict[str, str]:
    """The hub's link to the base model, if the path is one of its ids."""
    if path == smollm2.NAME:
        return {"base_model": smollm2.ORIGIN}
    embedded = path.partition(":")[0] == "embedded"
    return {} if embedded or Path(path).exists() else {"base_model": path}


def _prompting(data: DataConfig) -> dict[str, str]:
    """The rows on how prompts are made, of settings that are not the default."""
    rows = {}
    if data.system_prompt is not None:
        rows["system prompt"] = data.system_prompt or "(empty)"
    if data.chat_template == PLAIN:
        rows["chat template"] = "none: prompts are text without turns"
    elif data.chat_template is not None:
        rows["chat template"] = "`chat_template.jinja` in this folder"
    if data.chat_template_kwargs:
        rows["chat template's variables"] = f"`{json.dumps(data.chat_template_kwargs)}`"
    return rows


def _source(train: str | dict[str, Any]) -> str:
    return train if isinstance(train, str) else f"`{json.dumps(train)}`"


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> list[str]:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    cells = {name: str(value).replace("|", "\\|") for name, value in rows.items()}
    return [*lines, *(f"| {name} | {' '.join(v.split())} |" for name, v in cells.items())]
