"""Methods by name, outside a run: their ratio, bounds and surrogate on given tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from pydantic import BaseModel
from torch import Tensor

from bandpo.advantage import group_advantages
from bandpo.config.composition import compose, config_dir
from bandpo.config.schema import MethodConfig
from bandpo.errors import UserError
from bandpo.loss import (
    BatchTotals,
    Capped,
    Clip,
    Fixed,
    GeometricMean,
    Interval,
    LossOutput,
    Mask,
    OffPolicySequenceMask,
    PolicyLoss,
    SequenceMeanTokenSum,
    TokenBatch,
    TokenRatio,
)
from bandpo.loss.ratio import LARGEST_RATIO
from bandpo.loss.statistic import Statistic, asking_parts, with_statistics

ALL = "all"
FAMILIES = (
    "fixed bounds",
    "bounds that follow p",
    "masks",
    "no clip",
    "the ratio of whole sequences",
)
# With these totals SequenceMeanTokenSum is a plain sum over tokens.
_SUM = BatchTotals(sequences=1.0, tokens=1.0)
# The distance past a bound at which `Method.past` evaluates, as a log-ratio.
_STEP = 1e-2


class Verdict(NamedTuple):
    """A method's result on a batch; `gradient` [B, T] is ∂(Σ objective)/∂log π of each token."""

    output: LossOutput
    gradient: Tensor


@dataclass(frozen=True)
class Method:
    """A file of configs/method under the name that was asked for, such as `band_kl:delta=0.03`.

    Only ratio, bounds and surrogate count: aggregation, reference KL, correction and entropy bonus
    weigh tokens by other things than their trust region. A batch is taken for the whole.
    `advantage` maps rewards [P, G] to advantages. `config` is the file as composed, where there is
    one.
    """

    name: str
    loss: PolicyLoss
    advantage: Callable[[Tensor], Tensor] = group_advantages
    config: MethodConfig | None = None

    def statistics(self, batch: TokenBatch) -> list[Statistic]:
        """The statistics that the method's parts ask of a batch, to be merged with others'."""
        return [part.statistic(batch.neutral()) for part in asking_parts(self.loss)]

    def judge(self, batch: TokenBatch, whole: Sequence[Statistic] | None = None) -> Verdict:
        """The method on a batch, with gradients by autograd through ratio and surrogate.

        `whole` are the statistics of the optimizer batch of which this one is a part; without them
        it is the whole. Raises ValueError for a batch that lacks what the method reads (see
        `missing_inputs`).
        """
        logp = batch.logp.detach().requires_grad_()
        loss = with_statistics(self.loss, self.statistics(batch) if whole is None else whole)
        output = loss(dataclasses.replace(batch, logp=logp), _SUM)
        (gradient,) = torch.autograd.grad(-output.loss, logp)
        return Verdict(output, gradient)

    def weights(self, ratios: Tensor, p: float, advantage: float, entropy: float) -> Tensor:
        """∂objective/∂log π [N] of a token of old probability p at these ratios [N]."""
        tokens = single_tokens(torch.full_like(ratios, p), 1.0, advantage, entropy)
        moved = dataclasses.replace(tokens, logp=tokens.old_logp + ratios[:, None].log())
        return self.judge(moved).gradient[:, 0]

    def missing_inputs(self, batch: TokenBatch) -> str | None:
        """The method's message about inputs that such a batch lacks; None if it has them all."""
        try:
            self.judge(batch)
        except ValueError as error:
            return str(error)
        return None

    def interval(self, p: Tensor, entropy: float) -> Interval:
        """Ratio bounds [N] of tokens with old probabilities p [N] and an old-policy entropy.

        The upper one is that of A > 0, the lower one that of A < 0.
        """
        raised, lowered = (
            self.judge(single_tokens(p, 1.0, advantage, entropy)).output.interval
            for advantage in (1.0, -1.0)
        )
        return Interval(lowered.low[:, 0], raised.high[:, 0])

    @property
    def has_bounds(self) -> bool:
        """Whether the ratio of a token, or the weight of its gradient, has bounds."""
        high = self.interval(torch.tensor([0.05], dtype=torch.float64), 1.0).high
        return high.item() < LARGEST_RATIO

    def past(self, p: float, entropy: float) -> tuple[float, float]:
        """Shares of r·A that remain as gradient just past the lower and the upper bound.

        0 where the bound ends the gradient, negative where it pulls back, positive where the ratio
        may move further; 0 also for a lower bound of 0, past which there is nothing. 1 where there
        are no bounds.
        """
        if not self.has_bounds:
            return 1.0, 1.0
        probability = torch.tensor([p], dtype=torch.float64)
        low, high = (bound.item() for bound in self.interval(probability, entropy))
        below, above = low * math.exp(-_STEP), high * math.exp(_STEP)
        return (
            self._share(probability, below, -1.0, entropy) if below > 0 else 0.0,
            self._share(probability, above, 1.0, entropy),
        )

    def _share(self, p: Tensor, ratio: float, advantage: float, entropy: float) -> float:
        _, gradient = self.judge(single_tokens(p, ratio, advantage, entropy))
        return gradient.item() / (ratio * advantage)

    @property
    def depends_on_batch(self) -> bool:
        """Whether a token's trust region depends on the whole optimizer batch."""
        return bool(asking_parts(self.loss))

    @property
    def family(self) -> str:
        """The one of `FAMILIES` that the method is of."""
        surrogate = self._inner_surrogate
        bounds: Any = getattr(surrogate, "bounds", None)
        while isinstance(bounds, Capped):
            bounds = bounds.inner
        if not isinstance(self.loss.ratio, TokenRatio) or isinstance(surrogate, GeometricMean):
            return "the ratio of whole sequences"
        if isinstance(surrogate, Clip):
            return "fixed bounds" if isinstance(bounds, Fixed) else "bounds that follow p"
        return "masks" if isinstance(surrogate, Mask | OffPolicySequenceMask) else "no clip"

    @property
    def _inner_surrogate(self) -> Any:
        """The surrogate without those that add to it, down to one that says what is trained on."""
        surrogate: Any = self.loss.surrogate
        while hasattr(surrogate, "surrogate") and not isinstance(surrogate, OffPolicySequenceMask):
            surrogate = surrogate.surrogate
        return surrogate

    @property
    def note(self) -> str:
        """The kind of the bounds; empty for clip bounds of the token's own ratio."""
        if not isinstance(self.loss.ratio, TokenRatio):
            return "a sequence's ratio"
        if self.depends_on_batch:
            return "depends on the whole batch; shown for a token alone"
        if isinstance(self._inner_surrogate, GeometricMean):
            return "tokens of a sequence's mean"
        if not self.has_bounds:
            return "no clip: fades"
        _, above = self.past(0.05, 1.0)
        if abs(above) < 1e-6:
            return ""
        return "no clip: caps the weight" if above > 0 else "no clip: pulls back"


def single_tokens(
    p: Tensor,
    ratio: float,
    advantage: float,
    entropy: float | None = None,
    pass_rate: float | None = 0.5,
    dual: float | None = 1.0,
) -> TokenBatch:
    """Tokens with old probabilities p [N] as N sequences of one token, in p's dtype."""
    old_logp = p[:, None].log()
    ones = torch.ones_like(old_logp)
    return TokenBatch(
        logp=old_logp + torch.tensor(ratio, dtype=p.dtype).log(),
        old_logp=old_logp,
        advantages=advantage * ones,
        mask=ones,
        entropy=None if entropy is None else entropy * ones,
        pass_rate=None if pass_rate is None else pass_rate * ones,
        dual=None if dual is None else dual * ones,
        number=torch.arange(len(p), dtype=p.dtype)[:, None],
    )


class _MethodAlone(BaseModel):
    method: MethodConfig


def load_methods(names: str, configs: Path | None = None) -> list[Method]:
    """The methods of a list such as `grpo,band_kl:delta=0.03`, or `all`, in order, each once.

    `configs` is a folder like the shipped configs/, whose methods are found as well. Raises
    UserError with every problem of every name.
    """
    if configs and not (configs / "method").is_dir():
        raise UserError(f"--configs {configs}: no folder {configs / 'method'}")
    found: dict[str, Method] = {}
    problems: list[str] = []
    for name in _expanded(names, configs):
        try:
            found[name] = _load(name, configs)
        except UserError as error:
            problems.append(f"{name}: " + str(error).split("\n  - ", 1)[-1])
    if problems or not found:
        raise UserError.join("--methods:", problems or ["names no method; `all` names all"])
    return list(found.values())


def _expanded(names: str, configs: Path | None) -> Iterator[str]:
    folders = [config_dir(), *([configs] if configs else [])]
    for name in filter(None, (word.strip() for word in names.split(","))):
        if name == ALL:
            files = (file for folder in folders for file in (folder / "method").glob("[!_]*.yaml"))
            # Short names first: variants come after what they vary.
            yield from sorted((file.stem for file in files), key=lambda stem: (len(stem), stem))
        else:
            yield name


def _load(name: str, configs: Path | None) -> Method:
    method, *parameters = name.split(":")
    overrides = [f"hydra.searchpath=[file://{configs.resolve()}]"] if configs else []
    overrides.append(f"method={method}")
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if not (key.strip() and value.strip()):
            raise UserError(f"{parameter!r} is not key=value, such as delta=0.03")
        overrides.append(f"method.{key.strip()}={value.strip()}")
    config = compose("train", overrides, _MethodAlone).method
    loss: PolicyLoss = instantiate(config.loss)
    made = Method(
        name,
        dataclasses.replace(
            loss,
            aggregate=SequenceMeanTokenSum(),
            reference_kl=None,
            correction=None,
            entropy=None,
        ),
        instantiate(config.advantage),
        config,
    )
    try:
        made.judge(single_tokens(torch.tensor([0.5]), 1.0, 1.0, entropy=1.0))
    except Exception as error:  # a value of the wrong type fails only when it is used
        raise UserError(f"cannot be used: {type(error).__name__}: {error}") from None
    return made
