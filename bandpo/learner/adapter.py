"""Low-rank adapters (LoRA) through peft: trained beside frozen weights, merged for the engine.

Source: LoRA: Low-Rank Adaptation of Large Language Models, section 4.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bandpo.config.sections.learner import LoraConfig
from bandpo.errors import UserError
from bandpo.weight_sync import gathered

ALL_LINEAR = "all-linear"


def add_adapter(lm: Any, config: LoraConfig, seed: int) -> None:
    """Freezes a transformers model and gives its linear layers W + (alpha/rank)·B·A, with B = 0.

    A is drawn from the seed alone, the same on every rank. Embeddings and head stay as they are.
    Raises UserError where peft is missing or a target names
    no layer.
    """
    try:
        import peft
    except ImportError:
        raise UserError(
            f"learner.lora.rank={config.rank}: peft is not installed; "
            "pip install 'bandpo[lora]', or set learner.lora.rank=0"
        ) from None
    targets = config.targets if config.targets == ALL_LINEAR else list(config.targets)
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            lm.add_adapter(settings)
    except ValueError as error:
        raise UserError(f"learner.lora.targets={config.targets}: {error}") from None


def save_adapter(lm: Any, folder: Path, writes: bool) -> None:
    """Writes the adapter as `peft.PeftModel.from_pretrained` reads it; collective under ZeRO-3."""
    from safetensors.torch import save_file

    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    with gathered(trained):
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        # peft's own names are those of a model that it wraps.
        weights = {
            f"base_model.model.{name}": tensor.detach().cpu().contiguous()
            for name, tensor in lm.get_adapter_state_dict().items()
        }
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        lm.peft_config[lm.active_adapters()[0]].save_pretrained(str(folder))
