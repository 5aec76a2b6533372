"""Generation with transformers, for places without vLLM. Slow; chosen with `rollout=hf`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bandpo.rollout.engine import Sampling
from bandpo.types import Completion, Group, Prompt


class HFGenerate:
    """An engine that keeps its own copy of the model and samples a group at a time."""

    name = "hf"
    replicas = 1
    samples_apart = False

    def __init__(
        self,
        model_path: str,
        *,
        dtype: str = "float32",
        seed: int = 0,
        trust_remote_code: bool = False,
        max_model_len: int = 2048,
        threads: int = 1,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        del seed, max_model_len, threads  # the prompts carry their seeds; nothing is preallocated
        self.weight_version = 0
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model_path,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
        self._model.to(self._device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(
            model_path, trust_remote_code=trust_remote_code
        )

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yields the groups in the order of the prompts."""
        devices = [self._device] if self._device.type == "cuda" else []
        for prompt in prompts:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(prompt.seed)
                ids = torch.tensor([prompt.token_ids] * sampling.n, device=self._device)
                tokens = self._model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    **_decoding(sampling),
                    max_new_tokens=sampling.max_tokens,
                    pad_token_id=self._tokenizer.eos_token_id,
                    return_dict_in_generate=True,
                    output_scores=True,
                )
            yield self._group(prompt, tokens)

    def _group(self, prompt: Prompt, output: Any) -> Group:
        ends = self._end_tokens()
        # scores are processed logits: after temperature, top-p and top-k
        logprobs = torch.stack([s.float().log_softmax(-1) for s in output.scores], dim=1)
        rows = output.sequences[:, len(prompt.token_ids) :]
        picked = logprobs.gather(-1, rows.unsqueeze(-1)).squeeze(-1).tolist()
        completions = []
        for tokens, values in zip(rows.tolist(), picked, strict=True):
            end = next((i for i, token in enumerate(tokens) if token in ends), None)
            length = len(tokens) if end is None else end + 1
            completions.append(
                Completion(
                    text=self._tokenizer.decode(tokens[:length], skip_special_tokens=True),
                    token_ids=tuple(tokens[:length]),
                    logprobs=tuple(values[:length]),
                    finish_reason="length" if end is None else "stop",
                    weight_version=self.weight_version,
                )
            )
        return Group(prompt, tuple(completions))

    def _end_tokens(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return {token for token in (*ends, self._tokenizer.eos_token_id) if token is not None}

    @torch.no_grad()
    def logprobs(self, prompt: Prompt, completions: Sequence[Completion]) -> list[list[float]]:
        """Teacher-forced log-probabilities at temperature 1 under the engine's own weights."""
        start = len(prompt.token_ids)
        found = []
        for completion in completions:
            tokens = torch.tensor([prompt.token_ids + completion.token_ids], device=self._device)
            logits = self._model(tokens).logits[0, start - 1 : -1].float()
            chosen = tokens[0, start:, None]
            found.append(logits.log_softmax(-1).gather(-1, chosen).squeeze(-1).tolist())
        return found

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies the stream into the model; raises RuntimeError when it is not complete."""
        own = dict(self._model.named_parameters(remove_duplicate=False))
        missing = set(own)
        for name, tensor in weights:
            own[name].copy_(tensor)
            missing.discard(name)
        if missing:
            raise RuntimeError(f"the weight stream lacks {sorted(missing)[:5]}")
        self.weight_version = version

    def sleep(self) -> None:
        """Nothing: the copy stays where it is."""

    def wake(self) -> None:
        """Nothing: the copy stays where it is."""

    def close(self) -> None:
        """Drops the model."""
        self._model = None


def _decoding(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }
