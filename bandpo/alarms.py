"""Alarms on a run's metrics; a configuration lists them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from bandpo.config.schema import Config, coarsest_dtype, is_corrected
from bandpo.errors import RunHalted, UserError

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Alarm(ABC):
    """Goes off when a metric has been wrong for `steps` steps in a row, and warns or stops the run.

    A nonfinite value is always wrong. Raises UserError for fewer than one step, a nonfinite limit,
    and another action than `warn` or `stop`.
    """

    meaning: ClassVar[str] = ""  # for the user, before the metric and its value

    metric: str
    limit: float
    steps: int = 1
    action: Literal["warn", "stop"] = "warn"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"an alarm on {self.metric} needs steps >= 1, not {self.steps}")
        if self.action not in ("warn", "stop"):
            raise UserError(f"an alarm on {self.metric} can warn or stop, not {self.action!r}")
        if not math.isfinite(self.limit):
            raise UserError(f"an alarm on {self.metric} needs a finite limit, not {self.limit}")

    @abstractmethod
    def is_right(self, value: float) -> bool:
        """Whether a value is as it should be; false for NaN."""

    @abstractmethod
    def wrong(self) -> str:
        """The fault as a predicate of the metric: `is below 0.1`."""

    def message(self, history: Sequence[Metrics]) -> str | None:
        """The alarm after the last of these steps, None if it is silent.

        Steps without the metric do not count.
        """
        values = [step[self.metric] for step in history if self.metric in step]
        last = values[-self.steps :]
        if len(last) < self.steps or any(self.is_right(v) and math.isfinite(v) for v in last):
            return None
        duration = f" for {self.steps} steps" if self.steps > 1 else ""
        found = f"{self.metric} {self.wrong()}{duration} (now {last[-1]:.4g})"
        return f"{self.meaning} ({found})" if self.meaning else found


@dataclass(frozen=True)
class Below(Alarm):
    """Goes off at `metric` < `limit`: an entropy that collapses."""

    def is_right(self, value: float) -> bool:
        return value >= self.limit

    def wrong(self) -> str:
        return f"is below {self.limit:g}"


@dataclass(frozen=True)
class Above(Alarm):
    """Goes off at `metric` > `limit`: a divergence or a mismatch that grows."""

    def is_right(self, value: float) -> bool:
        return value <= self.limit

    def wrong(self) -> str:
        return f"is above {self.limit:g}"


@dataclass(frozen=True)
class StuckAt(Alarm):
    """Goes off at `metric` = `limit`: a reward or a clip fraction that stays 0."""

    def is_right(self, value: float) -> bool:
        return value != self.limit

    def wrong(self) -> str:
        return f"is {self.limit:g}"


@dataclass(frozen=True)
class CutOff(Above):
    """Warns, in every run, that nearly all completions reach their limit."""

    meaning: ClassVar[str] = (
        "nearly all completions were cut off at rollout.max_tokens, so few answers can be read: "
        "raise it, or check that the token with which the model ends its answers is an "
        "eos_token_id of its generation_config.json"
    )

    metric: str = "length/truncated_frac"
    limit: float = 0.95


@dataclass(frozen=True)
class Mismatch(Above):
    """The engine drew its samples by other log-probabilities than the learner gives their tokens.

    It sees what the probe after a sync cannot: another temperature, or old keys and values of a
    prompt.
    """

    meaning: ClassVar[str] = (
        "the engine samples from another distribution than the learner computes: its temperature, "
        "its cache of prompts or its precision differs (see docs/silent-faults.md)"
    )

    metric: str = "mismatch/logprob_abs_mean"
    limit: float = 1e-3
    action: Literal["warn", "stop"] = "stop"

    @classmethod
    def in_dtype(cls, dtype: str) -> Mismatch:
        """It stops a run in float32; in bfloat16 rounding alone comes near its limit."""
        return cls() if dtype == "float32" else cls(limit=0.05, action="warn")


@dataclass(frozen=True)
class Masked(Above):
    """Warns that the rollout correction takes many tokens out of the loss."""

    meaning: ClassVar[str] = (
        "the rollout correction discards many tokens, which then teach nothing: the policy that "
        "samples is far from the one that learns for this method.correction, or its limits are "
        "too narrow (see docs/mismatch.md)"
    )

    metric: str = "mismatch/masked_frac"
    limit: float = 0.2


def always_on(config: Config) -> Iterator[Alarm]:
    """Alarms that no configuration has to name."""
    yield CutOff()
    rollout = config.rollout
    # Where the two are meant to be the same: the learner knows no top-p, and lag 1 no mismatch.
    if rollout.lag == 0 and rollout.top_p == 1 and rollout.top_k == 0:
        yield Mismatch.in_dtype(coarsest_dtype(config))
    if is_corrected(config.method, rollout, config.model):
        yield Masked()


class AlarmPanel:
    """The alarms of a run and the metrics of its steps so far."""

    def __init__(
        self, alarms: Iterable[Alarm], past: Iterable[Metrics], say: Callable[[str], None]
    ) -> None:
        """`past` are the steps before this one resumed: alarms go off as in an unbroken run."""
        self._alarms, self._say = tuple(alarms), say
        self._history = list(past)

    def check(self, step: int, metrics: Metrics) -> None:
        """Warns when an alarm goes off, and again only after it was silent.

        Raises RunHalted to stop the run, and for a metric that the step lacks but should have.
        """
        before, self._history = self._history, [*self._history, metrics]
        stops = []
        for alarm in self._alarms:
            if alarm.metric not in metrics and _is_complete(metrics, alarm.metric):
                raise RunHalted(
                    f"alarms: step {step} has no metric {alarm.metric!r}; the names are in "
                    "metrics.jsonl and docs/metrics.md"
                )
            message = alarm.message(self._history)
            if message and alarm.action == "stop":
                stops.append(message)
            elif message and not alarm.message(before):
                self._say(f"step {step}: alarm: {message}")
        if stops:
            raise RunHalted(f"stopped after step {step} by an alarm: {'; '.join(stops)}")


def _is_complete(metrics: Metrics, name: str) -> bool:
    """Whether a step should have the metric: few have evaluations, and only updates measure all."""
    return not name.startswith("eval/") and metrics.get("learn/updates", 0.0) > 0
