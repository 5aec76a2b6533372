"""A torch profiler trace of one training step, for chrome://tracing and Perfetto."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def traced(steps: Sequence[int], target: Path | None) -> Iterator[int]:
    """Yields the steps; the second one (the first compiles) is traced into `target` if given."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    chosen = steps[:2][-1:]
    for step in steps:
        if target is None or step not in chosen:
            yield step
            continue
        with profile(activities=activities, record_shapes=True) as profiler:
            yield step
        target.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(target))
