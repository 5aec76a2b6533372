"""Makes an embedded policy: supervised learning until its proof holds.

Over hundreds of steps a machine's rounding leads to another policy, so that no number of steps
gives the same one everywhere. Every machine can reach a policy with the same properties.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bandpo.data import arithmetic
from bandpo.disk.cache import cache_dir, made_aside
from bandpo.errors import UserError
from bandpo.model.embedded import Recipe, build_model, build_tokenizer

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "shipped"
"""The folder of the default policy, `Recipe()`, made by `scripts/make_embedded_policy.py`."""
REVISION = 2
"""Increased when the same recipe makes another policy, so that cached ones are made again."""
PROBED = 200
"""Held-out problems that a policy is proved on."""
LEAST_RIGHT = 0.85
"""Share of the worked solutions that must be right."""
SKILLED = 0.97
"""The same before bare answers are learned too, which costs some of it."""
CHECK_EVERY = 50
BLOCK = 600
"""Steps of a block in which both kinds of answer are learned."""


@dataclass(frozen=True)
class Proof:
    """A policy's answers to held-out problems, in exact probabilities.

    worked_share    of its answers that do not begin with the box
    worked_right    of those, the share that is a right solution, every step of it
    accuracy        of all answers, worked or bare
    """

    worked_share: float
    worked_right: float
    accuracy: float

    def holds_for(self, recipe: Recipe) -> bool:
        """Whether the policy has the recipe's properties.

        At least 85% of the worked solutions are right, they are given half to twice as often as
        the recipe asks, and the accuracy lies between half that share and 0.2 above it (0.1 to 0.4
        for the default).
        """
        share = recipe.worked_share
        return (
            self.worked_right >= LEAST_RIGHT
            and share / 2 <= self.worked_share <= 2 * share
            and share / 2 <= self.accuracy <= share + 0.2
        )

    def __str__(self) -> str:
        return (
            f"{self.worked_share:.0%} of the answers are worked out, {self.worked_right:.0%} of "
            f"these correctly; accuracy {self.accuracy:.3f}"
        )


Report = Callable[[int, Proof], None]


def ensure(recipe: Recipe) -> Path:
    """The folder of an embedded policy, made on first use and complete whenever it exists.

    Raises UserError where the warm-up does not reach the recipe's properties.
    """
    if recipe == Recipe():
        return SHIPPED
    name = hashlib.sha256(f"{REVISION}{asdict(recipe)}".encode()).hexdigest()[:12]
    folder = cache_dir() / f"embedded-{recipe.seed}-{name}"
    if not folder.is_dir():
        logger.info("making an embedded policy, once; this takes a few minutes")
        model = warm_up(recipe, lambda step, proof: logger.info("step %d: %s", step, proof))
        with made_aside(folder) as aside:
            model.save_pretrained(aside)
            build_tokenizer().save_pretrained(aside)
    return folder


def warm_up(recipe: Recipe, report: Report = lambda step, proof: None) -> Any:
    """A policy that is proved to have the recipe's properties, in float32.

    Worked solutions come first, at a high learning rate until a third of them are right, then at
    one that falls to a tenth: a policy drilled on bare answers learns the steps much later. Blocks
    of both kinds follow until the proof holds. `report` is called with each proof and its step.
    Raises UserError where that takes more than `recipe.max_steps`.
    """
    run = WarmUp(recipe, report)
    lr, proof = recipe.lr, run.prove()
    found = False
    while proof.worked_right < SKILLED:
        found = found or proof.worked_right >= 0.3
        for _ in range(CHECK_EVERY):
            if found:
                lr = max(recipe.lr / 10, lr * 0.1 ** (1 / 400))
            run.step(lr, worked_share=1.0)
        proof = run.prove()
    while not proof.holds_for(recipe):
        for step in range(BLOCK):
            progress = min(1.0, 1.5 * step / BLOCK)
            share = run.worked_share + progress * (recipe.worked_share - run.worked_share)
            run.step(recipe.lr / 10 * (1 - step / BLOCK), share)
        run.worked_share = recipe.worked_share
        proof = run.prove()
    return run.model.eval()


class WarmUp:
    """A warm-up in progress, which takes steps and proves the policy."""

    def __init__(self, recipe: Recipe, report: Report) -> None:
        self._recipe, self._report = recipe, report
        self._tokenizer = build_tokenizer()
        self.model: Any = build_model(recipe, len(self._tokenizer))
        self._rng = random.Random(f"embedded-{recipe.seed}")
        self._optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=0.01)
        self._steps = 0
        self.worked_share = 1.0

    def step(self, lr: float, worked_share: float) -> None:
        """One update on a fresh batch."""
        self._steps += 1
        for group in self._optimizer.param_groups:
            group["lr"] = lr * min(1.0, self._steps / 50)
        ids, labels = _padded([self._example(worked_share) for _ in range(self._recipe.batch_size)])
        self.model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def prove(self) -> Proof:
        """The policy's proof; raises UserError after more steps than the recipe allows."""
        proof = prove(self.model, self._tokenizer, self._openings)
        self._report(self._steps, proof)
        if self._steps > self._recipe.max_steps and not proof.holds_for(self._recipe):
            raise UserError(
                f"no embedded policy after {self._steps} warm-up steps: {proof}, where at least "
                f"{LEAST_RIGHT:.0%} right and a share of about {self._recipe.worked_share:.0%} are "
                "needed; choose another model.seed, a larger network or a higher "
                "model.path=embedded:max_steps=…"
            )
        return proof

    @property
    def _openings(self) -> tuple[str, ...]:
        return arithmetic.OPENINGS[: 1 + len(self._recipe.openings)]

    def _example(self, worked_share: float) -> tuple[list[int], list[int]]:
        """A problem and an answer, in tokens."""
        terms = arithmetic.draw_terms(self._rng, "train")
        if self._rng.random() < worked_share:
            shares = self._recipe.openings
            opening = self._rng.choices(self._openings, (1 - sum(shares), *shares))[0]
            answer = arithmetic.worked_solution(terms, opening)
        else:
            answer = arithmetic.direct_solution(terms)
        return _encoded(self._tokenizer, terms, answer)


@torch.no_grad()
def prove(model: Any, tokenizer: Any, openings: Sequence[str] = ("",)) -> Proof:
    """Computes the probabilities of right answers instead of sampling answers.

    π(answer | problem) = Π π(token | prefix): one pass over each right answer gives the accuracy at
    temperature 1 without sampling error. A worked solution with an error that still ends at the
    right number counts as wrong.
    """
    problems = [p.id for p in arithmetic.problems("heldout", PROBED, seed=1)]
    terms = [arithmetic.terms_of(id.removeprefix("arithmetic-")) for id in problems]
    ways: list[Callable[[list[int]], str]] = [arithmetic.direct_solution]
    ways += [partial(arithmetic.worked_solution, opening=opening) for opening in openings]
    probabilities = []
    for way in ways:
        ids, labels = _padded([_encoded(tokenizer, t, way(t)) for t in terms])
        logp = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        in_answer = labels[:, 1:] != -100
        tokens = logp.gather(-1, ids[:, 1:, None]).squeeze(-1) * in_answer
        probabilities.append(tokens.sum(-1).exp())
        if way is arithmetic.direct_solution:
            first = in_answer.int().argmax(-1, keepdim=True)
            boxed = tokens.gather(-1, first).squeeze(-1).exp()
    right, worked = sum(probabilities), 1 - boxed
    return Proof(
        worked_share=float(worked.mean()),
        worked_right=float((right - probabilities[0]).sum() / worked.sum()),
        accuracy=float(right.mean()),
    )


def _encoded(tokenizer: Any, terms: list[int], answer: str) -> tuple[list[int], list[int]]:
    prompt = f"<|user|>{arithmetic.statement_of(terms)}<|end|><|assistant|>"
    return tokenizer.encode(prompt), tokenizer.encode(answer + "<|end|>")


def _padded(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Input ids and labels of (prompt, answer) rows, [B, T]: padding is 0, no label is −100."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, labels = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.full((len(rows), width), -100),
    )
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels
