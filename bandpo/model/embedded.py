"""The embedded policy: a small Qwen2 that a laptop trains in minutes.

It knows two ways to answer the embedded task (`bandpo.data.arithmetic`): usually the bare answer,
by mental arithmetic that is mostly wrong, and rarely a worked solution, which is mostly right.
Reinforcement learning has to find a strategy of low probability: the case that BandPO's bounds are
made for.

The default policy ships with the package, so that every machine starts from the same bits. Others
are made at first use by `bandpo.model.warm_up`, and proved to have their recipe's properties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Recipe:
    """Everything that determines an embedded policy, but for the machine's rounding."""

    seed: int = 0
    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 2
    heads: int = 3
    tied: bool = True
    batch_size: int = 64
    lr: float = 4e-3
    max_steps: int = 6000
    worked_share: float = 0.2
    # Shares of worked solutions that begin with the second, third, … of arithmetic.OPENINGS.
    openings: tuple[float, ...] = ()


def build_tokenizer() -> Any:
    r"""A byte-level tokenizer of 262 entries: every byte, `\boxed{`, and the chat markers.

    It is of the class that transformers makes from the saved files of a Qwen2 model, and names all
    special tokens of that class: missing ones would be added beyond the model's vocabulary.
    """
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate((*SPECIAL_TOKENS, *alphabet))},
        merges=[],
        unk_token="<|pad|>",
        pad_token="<|pad|>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.add_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(r"\boxed{", normalized=False)])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(recipe: Recipe, vocabulary: int) -> torch.nn.Module:
    """The untrained network, initialised from the recipe's seed."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        tie_word_embeddings=recipe.tied,
        pad_token_id=SPECIAL_TOKENS.index("<|pad|>"),
        eos_token_id=SPECIAL_TOKENS.index("<|end|>"),
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return Qwen2ForCausalLM(config).float()
