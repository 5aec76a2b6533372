"""The embedded policy: a small Qwen2 that a laptop trains in minutes, made from a seed.

The warm-up teaches two ways to answer the embedded task (`bandpo.data.arithmetic`): mostly the
bare answer, which takes mental arithmetic that the model does badly, and rarely the worked
solution, which it does well. What reinforcement learning then has to find is a strategy that
the policy holds at a low probability: the situation that BandPO's bounds are about.
"""

from __future__ import annotations

import hashlib
import inspect
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from bandpo.cache import cache_dir, made_aside
from bandpo.data import arithmetic

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the embedded policy."""

    seed: int = 0
    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 2
    heads: int = 3
    tied: bool = True
    warmup_steps: int = 700
    batch_size: int = 64
    lr: float = 5e-3
    worked_share: float = 0.2
    # Shares of worked solutions that begin with the second, third, … of arithmetic.OPENINGS.
    openings: tuple[float, ...] = ()


def build_tokenizer() -> Any:
    r"""A byte-level tokenizer of 262 entries: every byte, `\boxed{`, and the chat markers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(r"\boxed{", normalized=False)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


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


def _examples(
    recipe: Recipe, tokenizer: Any, rng: random.Random, worked_share: float
) -> tuple[Any, Any]:
    """One warm-up batch: padded input ids and labels, [B, T]."""
    rows = []
    for _ in range(recipe.batch_size):
        terms = arithmetic.draw_terms(rng, "train")
        if rng.random() < worked_share:
            solution = arithmetic.worked_solution(terms, _opening(recipe.openings, rng))
        else:
            solution = arithmetic.direct_solution(terms)
        prompt = f"<|user|>{arithmetic.statement_of(terms)}<|end|><|assistant|>"
        rows.append((tokenizer.encode(prompt), tokenizer.encode(solution + "<|end|>")))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def _opening(shares: Sequence[float], rng: random.Random) -> str:
    """How a worked solution begins; draws nothing where there is but one way."""
    if not shares:
        return arithmetic.OPENINGS[0]
    weights = (1 - sum(shares), *shares)
    return rng.choices(arithmetic.OPENINGS[: len(weights)], weights)[0]


def warm_up(
    recipe: Recipe, report: Callable[[int, float], None] = lambda step, loss: None
) -> tuple[Any, Any]:
    """Supervised warm-up; returns (model, tokenizer), the same for the same recipe."""
    tokenizer = build_tokenizer()
    model = build_model(recipe, len(tokenizer))
    rng = random.Random(f"embedded-{recipe.seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=recipe.warmup_steps, pct_start=0.1
    )
    for step in range(recipe.warmup_steps):
        # Worked solutions come first: a model drilled on bare answers learns the steps much later.
        progress = min(1.0, max(0.0, 3 * step / recipe.warmup_steps - 1.5))
        share = 1 + progress * (recipe.worked_share - 1)
        ids, labels = _examples(recipe, tokenizer, rng, share)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report(step, loss.item())
    return model.eval(), tokenizer


def _fingerprint(recipe: Recipe) -> str:
    """Changes with the recipe and with the code that it runs through."""
    from bandpo import embedded

    source = inspect.getsource(arithmetic) + inspect.getsource(embedded)
    return hashlib.sha256(f"{asdict(recipe)}{source}".encode()).hexdigest()[:12]


def ensure(recipe: Recipe) -> Path:
    """The folder of the embedded policy, made on first use and complete whenever it exists."""
    folder = cache_dir() / f"embedded-{recipe.seed}-{_fingerprint(recipe)}"
    if folder.is_dir():
        return folder
    with Progress(disable=not sys.stderr.isatty()) as progress:
        progress.print(f"making the embedded policy, once: {recipe.warmup_steps} warm-up steps")
        task = progress.add_task("warm-up", total=recipe.warmup_steps)
        model, tokenizer = warm_up(recipe, lambda step, loss: progress.advance(task))
    with made_aside(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    return folder
