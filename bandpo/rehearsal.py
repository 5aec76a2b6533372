"""What the end of a run will need, tried at its beginning, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bandpo.config import Config
from bandpo.errors import UserError
from bandpo.evaluation.model import ModelSource, load_tokenizer
from bandpo.learner.export import write_settings
from bandpo.model_card import model_card
from bandpo.plots import plot_timeline, plot_training
from bandpo.redaction import redact

FOLDER = ".rehearsal"


def rehearse(config: Config, model: ModelSource, tokenizer: Any, command: str) -> list[str]:
    """Writes what comes with an exported policy, and a figure of each kind; returns notes.

    That is done in the run's folder, which shows that it can be written, and leaves nothing there.
    Raises UserError that names everything that failed.
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
            except Exception as error:  # it would be as fatal in the end, whatever it is
                reason = " ".join(str(error).split()) or type(error).__name__
                problems.append(f"{what}: {reason}")
    except OSError as error:
        problems.append(f"run.dir={config.run.dir} cannot be written: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if problems:
        raise UserError.join("what the end of this run needs does not work now:", problems)
    return notes


def _try_export(folder: Path, config: Config, model: ModelSource, tokenizer: Any) -> list[str]:
    trust = config.model.trust_remote_code
    generation = _generation_config(model)
    write_settings(folder, model.config(trust), generation, tokenizer)
    written = ModelSource(f"what {model.spec} writes", str(folder))
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
            f"({' '.join(lines)}); hf/ gets it as it is"
        ]
    return []


def _generation_config(model: ModelSource) -> Any:
    """The model's own; None where it has none. Raises UserError where it cannot be used."""
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
