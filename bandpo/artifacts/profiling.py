"""A torch profiler trace of one training step, for chrome://tracing and Perfetto."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def traced(steps: Sequence[int], target: Path | None) -> Iterable[int]:
    """The steps in turn; the second one (the first compiles) is traced into `target` if given."""
    return steps if target is None else _traced(steps, target)


def _traced(steps: Sequence[int], target: Path) -> Iterator[int]:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    chosen = steps[:2][-1:]
    for step in steps:
        if step not in chosen:
            yield step
            continue
        with profile(activities=activities, record_shapes=True) as profiler:
            yield step
        target.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(target))
