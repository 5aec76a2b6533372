"""The policy as a transformers folder: written, and proved by loading what was written."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bandpo.batching import Sample
from bandpo.config.sections.model import ModelConfig
from bandpo.model.agreement import gap_between, own_logprobs
from bandpo.model.tying import repeated_names, shares_head


@contextmanager
def _failing_as_a_write() -> Iterator[None]:
    """Any error of a library becomes an OSError: it costs this folder alone, like a full disk."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def write_policy(
    lm: Any, weights: Iterable[tuple[str, Tensor]], folder: Path, tokenizer: Any, writes: bool
) -> None:
    """Writes config, generation config, tokenizer and safetensors where `writes` is true.

    `weights` are all of `lm`, a stream that every rank exhausts under ZeRO 3. Raises OSError,
    after that, for any error.
    """
    repeated = repeated_names(lm)
    kept = {
        name: tensor.cpu().clone() for name, tensor in weights if writes and name not in repeated
    }
    if not writes:
        return
    with _failing_as_a_write():
        from huggingface_hub import save_torch_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        save_torch_state_dict(kept, str(folder))
        config = copy.deepcopy(lm.config)
        config.tie_word_embeddings = shares_head(lm)
        write_settings(folder, config, lm.generation_config, tokenizer)


def write_settings(folder: Path, config: Any, generation_config: Any, tokenizer: Any) -> None:
    """Writes the files of an exported policy besides its weights.

    The generation config is the base model's, whether or not transformers would save it.
    """
    config.save_pretrained(folder)
    if generation_config is not None:
        generation_config.to_json_file(folder / "generation_config.json")
    tokenizer.save_pretrained(folder)


def prove_export(
    folder: Path,
    model: ModelConfig,
    samples: Sequence[Sample],
    expected: Sequence[Sequence[float]],
    tolerance: float,
) -> None:
    """Loads the folder and scores `samples` with it, on the CPU.

    `expected` are the learner's log-probabilities of their completions at temperature 1. Raises
    OSError where the folder does not load, or where they differ by more than `tolerance` (their
    mean, `bandpo.model.agreement`).
    """
    with _failing_as_a_write(), torch.random.fork_rng(devices=[]):
        lm = _loaded(folder, model)
        found = [own_logprobs(lm, sample.prompt_ids, sample.completion_ids) for sample in samples]
    gap = gap_between(found, expected).mean
    if not gap <= tolerance:
        raise OSError(
            "the exported policy is another model than the learner's: log-probabilities differ by "
            f"{gap:.3g}, more than {tolerance:g}"
        )


def _loaded(folder: Path, model: ModelConfig) -> Any:
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, model.dtype),
        attn_implementation="eager",
        trust_remote_code=model.trust_remote_code,
        use_safetensors=True,
    )
    return lm.eval()
