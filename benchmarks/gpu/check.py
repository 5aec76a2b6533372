"""A check: a question about this machine, the figures that answer it, and the bars they meet."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch


@dataclass(frozen=True)
class Figure:
    """A number that was found, and the bar it is held to, if any."""

    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def passes(self) -> bool:
        """Whether it meets its bar; NaN meets none."""
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)


@dataclass
class Lab:
    """Where checks run: the device, toy sizes or real ones, and a folder that goes afterwards."""

    tiny: bool = False
    models: Sequence[str] = ()
    folder: Path = field(default_factory=lambda: Path(_SCRATCH.name))
    device: torch.device = field(
        default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def bar(self, value: float) -> float | None:
        """A bar of speed, which toys and CPUs are not held to."""
        return value if self.on_gpu and not self.tiny else None

    def seconds(self, work: Callable[[], object], repeats: int = 3) -> float:
        """The fastest of some runs after one that warms up, the device's work included."""
        best = float("inf")
        for run in range(repeats + 1):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            if run:
                best = min(best, time.perf_counter() - begun)
        return best

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def peak_bytes(self, work: Callable[[], object]) -> float:
        """The most memory of the device allocated during `work`; 0 on a CPU."""
        if not self.on_gpu:
            work()
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        return float(torch.cuda.max_memory_allocated())


_SCRATCH: TemporaryDirectory[str] = TemporaryDirectory(prefix="bandpo-gpu-")


@dataclass(frozen=True)
class Check:
    """`run` answers `question` with figures; `seconds` is about what it takes on an H200.

    needs   modules that must be importable, and `cuda`
    fresh   whether it wants a process in which nothing has run
    """

    name: str
    question: str
    run: Callable[[Lab], Mapping[str, Figure]]
    seconds: float
    needs: tuple[str, ...] = ()
    fresh: bool = False

    def missing(self) -> list[str]:
        """Its requirements that this machine does not meet."""
        return [need for need in self.needs if not _has(need)]


def _has(need: str) -> bool:
    return torch.cuda.is_available() if need == "cuda" else find_spec(need) is not None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check: `passed`, `failed` or `not run`, with figures or a reason."""

    verdict: str
    seconds: float = 0.0
    reason: str = ""
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, check: Check, lab: Lab) -> Outcome:
        """Runs a check; whatever it raises is its failure."""
        begun = time.perf_counter()
        try:
            figures = check.run(lab)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return cls("failed", time.perf_counter() - begun, reason)
        missed = [name for name, figure in figures.items() if not figure.passes]
        return cls(
            "failed" if missed else "passed",
            time.perf_counter() - begun,
            f"misses its bar: {', '.join(missed)}" if missed else "",
            {name: _plain(figure) for name, figure in figures.items()},
        )


def _plain(figure: Figure) -> dict[str, float]:
    return {key: value for key, value in asdict(figure).items() if value is not None}
