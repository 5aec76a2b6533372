"""GRPO on tabular policies, thousands of seeds at a time, by the losses of `bandpo.loss`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss import BatchTotals, LossOutput
from bandpo.methods.method import Method
from bandpo.types import TokenBatch
from tabular_study.bandit import Bandit, State, Streams


class Optimizer(ABC):
    """An elementwise optimizer: a row of the logits [S, K] moves as if it were alone."""

    @abstractmethod
    def over(self, logits: Tensor, lr: float) -> torch.optim.Optimizer:
        """The optimizer of these logits."""

    @abstractmethod
    def push(self, group_size: int) -> float:
        """How far one inner update at lr 1 moves the logit of a group's only success, at ratio 1.

        To first order in the learning rate, for an action of small probability.
        """


@dataclass(frozen=True)
class Sgd(Optimizer):
    """Gradient descent: the only success of G has advantage A = (G − 1)/√G and moves by A/G."""

    def over(self, logits: Tensor, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD([logits], lr=lr)

    def push(self, group_size: int) -> float:
        return (group_size - 1) / group_size**1.5


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam divides by the gradient's own size: whatever it is, a logit moves by about lr."""

    betas: tuple[float, float] = (0.9, 0.999)

    def over(self, logits: Tensor, lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam([logits], lr=lr, betas=self.betas)

    def push(self, group_size: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Update:
    """How a rollout becomes a step: `inner` updates over the same group of `group_size` samples.

    `reach` = lr · inner · push: the log-ratio that a rare success would gain in a rollout if the
    gradient stayed what it is at ratio 1. Raises UserError for what is not positive.
    """

    optimizer: Optimizer
    reach: float = 1.0
    inner: int = 8
    group_size: int = 32

    def __post_init__(self) -> None:
        if not (self.reach > 0 and self.inner >= 1 and self.group_size >= 2):
            raise UserError(f"{self}: needs reach > 0, inner >= 1 and group_size >= 2.")

    @property
    def lr(self) -> float:
        """The learning rate that gives this reach."""
        return self.reach / (self.inner * self.optimizer.push(self.group_size))


@dataclass(frozen=True)
class Course:
    """The state of S policies before training and after each rollout, every tensor [R + 1, S]."""

    states: State

    def last(self) -> State:
        """After the last rollout, [S]."""
        return State(*(values[-1] for values in self.states))

    def when(self, accuracy: float) -> Tensor:
        """The first rollout after which each policy is this accurate, [S]; the last if none is."""
        reached = self.states.accuracy >= accuracy
        reached[-1] = True
        return reached.int().argmax(0)

    def at(self, accuracy: float) -> State:
        """Each policy when it first is this accurate, [S].

        At equal accuracy no difference in entropy comes from one method learning faster.
        """
        index = self.when(accuracy)[None]
        return State(*(values.gather(0, index)[0] for values in self.states))


def train(
    bandit: Bandit,
    method: Method,
    update: Update,
    seed: int,
    count: int,
    rollouts: int,
    accuracy: float = 1.0,
    stop: bool = False,
    observe: Sequence[Callable[[LossOutput], None]] = (),
) -> Course:
    """Trains a policy for each of `count` seeds, independently of each other.

    A rollout is one group of G samples a policy; each inner update is an optimizer step on all of
    them. Until every policy has been this accurate each loss is passed to `observe`, with S·G
    sequences of one token; with `stop` training then ends, otherwise after `rollouts`. In float64:
    the gradient of an action that was not sampled is 0 at ratio 1, and Adam would make steps of
    its rounding errors.
    """
    streams = Streams(seed, count)
    logits = bandit.start(streams).requires_grad_()
    optimizer = update.optimizer.over(logits, update.lr)
    # Each seed's loss is the mean over its group; their sum keeps the seeds' gradients apart.
    totals = BatchTotals(sequences=update.group_size, tokens=update.group_size)
    states = [bandit.state(logits.detach())]
    learned = states[0].accuracy >= accuracy
    for _ in range(rollouts):
        done = bool(learned.all())
        if done and stop:
            break
        old = logits.detach().log_softmax(-1)
        actions = bandit.sample(old.exp(), streams.uniform(update.group_size))
        advantages = method.advantage(bandit.rewards(actions))
        entropy = -(old.exp() * old).sum(-1, keepdim=True).expand_as(advantages)
        for _ in range(update.inner):
            batch = one_token_sequences(
                logits.log_softmax(-1).gather(-1, actions),
                old_logp=old.gather(-1, actions),
                advantages=advantages,
                entropy=entropy,
            )
            output = method.loss(batch, totals)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            for see in () if done else observe:
                see(output)
        states.append(bandit.state(logits.detach()))
        learned |= states[-1].accuracy >= accuracy
    return Course(State(*map(torch.stack, zip(*states, strict=True))))


def one_token_sequences(logp: Tensor, **values: Tensor) -> TokenBatch:
    """Per-sample tensors of any shape as a batch of sequences of one token."""
    flat = {name: value.reshape(-1, 1) for name, value in values.items()}
    logp = logp.reshape(-1, 1)
    return TokenBatch(logp=logp, mask=torch.ones_like(logp), **flat)
