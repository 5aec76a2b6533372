"""The host's share of a step: everything but the networks, from the engine's reply to the loss.

    python benchmarks/host_path.py [--column after]

A step of 256 prompts × 32 samples × 2,000 tokens (16.4 M) as one of 8 ranks has it, which makes
and trains on 1/8 of it: the other ranks' messages are made beforehand and unpickled or copied
where they would arrive, so that a network of no cost is between them. Then 1 and 2 real ranks
(gloo), each with the same share, and all of them again at four times the tokens. vLLM's replies are
synthetic, text costs nothing, and no network is computed. Gives wall-clock and CPU seconds and the
peak of memory above its start for each part, and writes them to a column of
results/host_path.json. CPU seconds say more where others share the machine. One thread.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import inspect
import io
import json
import multiprocessing
import os
import pickle
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from results import FOLDER, keep
from torch import Tensor

import bandpo.artifacts.saver as saver
from bandpo.advantage import group_advantages
from bandpo.artifacts.tracking import Tracker
from bandpo.batching import Sample
from bandpo.config.sections.learner import MICRO_BATCH_TOKENS
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.config.sections.trainer import TrackingConfig
from bandpo.environment import git_commit
from bandpo.evaluation import samples as evaluated
from bandpo.evaluation.summary import summarize
from bandpo.learner.layouts import SharedPromptBatch, micro_batches
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks
from bandpo.reward import Score
from bandpo.rollout.decoding import Decoder
from bandpo.rollout.draws import Draws
from bandpo.rollout.scoring import ScoredGroup
from bandpo.rollout.vllm_local import VLLMLocal
from bandpo.run.job import Job
from bandpo.types import Problem, Prompt

PROMPTS, SAMPLES, TOKENS, RANKS = 256, 32, 2000, 8
PROMPT_TOKENS, UPDATES, VOCABULARY, HIDDEN = 200, 4, 150_000, 3584
CHARACTERS = "the quick brown fox jumps over the lazy dog, " * 2000
EVALUATED = 1319  # problems of GSM8K's test set
SELDOM = ("samples/", "waiting groups of a checkpoint")  # every tenth step, or as configured

T = TypeVar("T")


class Meter:
    """Seconds and peak memory of each part."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        gc.collect()
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before, wall, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
        yield
        self.parts[part] = {
            "wall_s": round(time.perf_counter() - wall, 3),
            "cpu_s": round(time.process_time() - cpu, 3),
            "peak_mib": round((_memory("VmHWM") - before) / 1024, 1),
        }


def _memory(name: str) -> int:
    """KiB, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


# --- Ranks -------------------------------------------------------------------------------------


class Recorded(Exception):
    """A rank's message has been kept."""


class OneOfMany(Ranks):
    """A rank among others whose messages are there already; without them it keeps its own."""

    def __init__(self, rank: int, size: int, messages: Sequence[bytes] = ()) -> None:
        self.rank, self.size, self.device = rank, size, torch.device("cpu")
        self._messages, self.kept = messages, b""

    def gather(self, value: T) -> list[T]:
        """Pickles its own value and unpickles everyone's."""
        own = pickle.dumps(value)
        if not self._messages:
            self.kept = own
            raise Recorded
        others = iter(self._messages)
        return [pickle.loads(own if r == self.rank else next(others)) for r in range(self.size)]

    def gather_to_first(self, value: Any) -> list[Any]:
        """Its value, by place, and as much of the places of every other rank."""
        own = pickle.dumps(value)
        return [
            {place + rank: part for place, part in pickle.loads(own).items()}
            for rank in range(self.size)
        ]

    def exchange(
        self,
        pieces: Sequence[Tensor],
        leaving: Sequence[int],
        coming: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        """Packs what it sends, and receives as much as the others would send."""
        del leaving
        sent = torch.cat([torch.empty(0, dtype=dtype), *pieces])
        received = sent.new_zeros(sum(coming))
        shared = min(len(sent), len(received))
        received[:shared].copy_(sent[:shared])
        return received


class Gloo(Ranks):
    """Real ranks of this benchmark alone."""

    def __init__(self, rank: int, size: int, port: int) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        if size > 1:
            dist.init_process_group("gloo", rank=rank, world_size=size)
        self.rank, self.size, self.device = rank, size, torch.device("cpu")
        self._group, self._made_group = None, size > 1


# --- A step ------------------------------------------------------------------------------------


class Tokenizer:
    """Decodes at no cost."""

    all_special_ids = (0,)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Of special tokens."""
        return [f"<{token}>" for token in ids]

    def batch_decode(self, samples: Sequence[Any], **_: Any) -> list[str]:
        """Three and a half characters a token."""
        return [CHARACTERS[: len(sample) * 7 // 2] for sample in samples]


def replies(prompts: Sequence[Prompt], tokens: int) -> list[Any]:
    """vLLM's outputs: lists of Python's numbers in flat log-probabilities."""
    from vllm.logprobs import FlatLogprobs
    from vllm.outputs import CompletionOutput

    made = []
    for prompt in prompts:
        rng = np.random.default_rng(prompt.seed)
        outputs = []
        for index in range(SAMPLES):
            length = int(rng.integers(tokens // 2, tokens * 3 // 2))
            ids = rng.integers(300, VOCABULARY, length).tolist()
            flat = FlatLogprobs(
                token_ids=list(ids),
                logprobs=(-rng.random(length, np.float32)).tolist(),
                start_indices=list(range(length)),
                end_indices=list(range(1, length + 1)),
            )
            outputs.append(CompletionOutput(index, "", ids, 0.0, flat, finish_reason="stop"))
        made.append(SimpleNamespace(outputs=outputs))
    return made


def prompts_of(ranks: int) -> list[Prompt]:
    """The prompts of a step whose ranks have the paper's share each."""
    rng = random.Random(0)
    return [
        Prompt(
            Problem(f"problem-{i}", "How many?", str(i)),
            CHARACTERS[: PROMPT_TOKENS * 7 // 2],
            tuple(rng.randrange(300, VOCABULARY) for _ in range(PROMPT_TOKENS)),
            seed=i,
        )
        for i in range(PROMPTS // RANKS * ranks)
    ]


def groups_of(prompts: Sequence[Prompt], outputs: Sequence[Any]) -> list[ScoredGroup]:
    """A rank's groups, as the engine makes them of vLLM's outputs, with scores."""
    engine: Any = SimpleNamespace(_decode=Decoder(Tokenizer()), weight_version=1)
    found = []
    for prompt, output in zip(prompts, outputs, strict=True):
        rng = random.Random(prompt.seed)
        right = [rng.random() < 0.5 for _ in range(SAMPLES)]
        scores = tuple(
            Score(float(r), "correct" if r else "wrong", prompt.problem.answer, 0.01) for r in right
        )
        found.append(ScoredGroup(VLLMLocal._group(engine, prompt, output), scores))
    return found


def draws_of(prompts: Sequence[Prompt], ranks: Ranks) -> Draws:
    """A step's prompts, one batch of them."""
    settings = RolloutConfig(engine={}, prompts_per_step=len(prompts), max_tokens=1)
    return Draws(settings, SimpleNamespace(), SimpleNamespace(), ranks)  # type: ignore[arg-type]


def job_of(ranks: Ranks, groups: int) -> Any:
    """What `Job.batches` reads of a job, with lag 1."""
    learner: Any = SimpleNamespace(lm=SimpleNamespace(config=Config()), _hidden_size=HIDDEN)
    learner.cost = partial(DeepSpeedLearner.cost, learner)
    return SimpleNamespace(
        config=SimpleNamespace(
            rollout=RolloutConfig(
                engine={}, group_size=SAMPLES, prompts_per_step=groups, max_tokens=1
            ),
            learner=SimpleNamespace(updates_per_rollout=UPDATES, epochs_per_rollout=1, prune=0.0),
            seed=0,
        ),
        _advantages=group_advantages,
        ranks=ranks,
        actor=SimpleNamespace(weight_version=1),
        learner=learner,
    )


class Config:
    """A transformers configuration that takes its time."""

    def __init__(self) -> None:
        from transformers import Qwen2Config

        self._own = Qwen2Config(hidden_size=HIDDEN)

    def get_text_config(self) -> Any:
        """Its own."""
        return self._own.get_text_config()


def lay_out(meter: Meter, batches: list[list[Sample]]) -> None:
    """The passes of a step with a network of no cost, at the GPU's usual budget."""
    budget = MICRO_BATCH_TOKENS["cuda"]

    def laid_out(samples: Sequence[Sample]) -> Iterator[Any]:
        for chunk in micro_batches(samples, budget, SharedPromptBatch):
            yield SharedPromptBatch.of(chunk)

    with meter("layout, old pass"):
        for batch in laid_out([sample for samples in batches[1:] for sample in samples]):
            logp = torch.zeros(batch.mask.shape)
            for row, sample in enumerate(batch.samples):
                length = len(sample.completion_ids)
                sample.old_logp, sample.entropy = logp[row, :length], logp[row, :length]
    with meter("layout, reference pass"):
        for batch in laid_out([sample for samples in batches for sample in samples]):
            logp = torch.zeros(batch.mask.shape)
            for row, sample in enumerate(batch.samples):
                sample.ref_logp = logp[row, : len(sample.completion_ids)]
    with meter("layout, updates"):
        for samples in batches:
            for batch in laid_out(samples):
                batch.token_batch(torch.zeros(batch.mask.shape), torch.zeros(batch.mask.shape), 1)


def step(ranks: Ranks, outputs: list[Any], prompts: list[Prompt]) -> dict[str, Any]:
    """The parts of a step on this rank."""
    meter, job = Meter(), job_of(ranks, len(prompts))
    draws = draws_of(prompts, ranks)
    with meter("reply to completions"):
        scored = groups_of(prompts[ranks.rank :: ranks.size], outputs)
    outputs.clear()
    own = sum(len(c.token_ids) for item in scored for c in item.group.completions)
    with meter("exchange of groups, metrics"):
        draws.add(scored)
        rollout = draws.rollout()
    with meter("batches"):
        batches = Job.batches(job, rollout.groups, 1)
    trained = {id(s): len(s.completion_ids) for batch in batches for s in batch}
    lay_out(meter, batches)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        active = {"active": ranks.is_first, "steps": 1}
        tracker = Tracker(Path(folder), TrackingConfig(trackers=[]), **active)
        with meter("samples/"):
            takes_ranks = "ranks" in inspect.signature(tracker.log_samples).parameters
            tracker.log_samples(1, rollout.groups, **({"ranks": ranks} if takes_ranks else {}))
        with meter("waiting groups of a checkpoint"):
            saver.write_rollout(Path(folder), ranks, rollout)
    return {"own_tokens": own, "trained_tokens": sum(trained.values()), "parts": meter.parts}


def simulated(tokens: int) -> dict[str, Any]:
    """The first of eight ranks."""
    prompts, messages = prompts_of(RANKS), []
    for rank in range(1, RANKS):
        ranks = OneOfMany(rank, RANKS)
        mine = prompts[rank::RANKS]
        with contextlib.suppress(Recorded):
            draws_of(prompts, ranks).add(groups_of(mine, replies(mine, tokens)))
        messages.append(ranks.kept)
    mine = replies(prompts[::RANKS], tokens)
    return step(OneOfMany(0, RANKS, messages), mine, prompts)


def real(rank: int, size: int, tokens: int, port: int, found: Any) -> None:
    """One of `size` ranks."""
    torch.set_num_threads(1)
    prompts = prompts_of(size)
    with Gloo(rank, size, port) as ranks:
        mine = replies(prompts[rank::size], tokens)
        ranks.barrier()
        found.put((rank, step(ranks, mine, prompts)))
        ranks.barrier()


def started(size: int, tokens: int) -> dict[str, Any]:
    """The first of real ranks, each in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    processes = [
        context.Process(target=real, args=(rank, size, tokens, port, found)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    results = dict(found.get() for _ in processes)
    for process in processes:
        process.join()
    return results[0]


def evaluation() -> dict[str, float]:
    """The summary of a benchmark, on a rank that makes it."""
    rng = random.Random(0)
    groups = [
        [
            evaluated.Sample(
                problem_id=str(problem),
                sample=index,
                status="correct" if rng.random() < 0.5 else "wrong",
                extracted=str(rng.randrange(1000)),
                answer="7",
                tokens=rng.randrange(100, 300),
                truncated=False,
                seed=problem,
                prompt="",
                completion="",
            )
            for index in range(SAMPLES)
        ]
        for problem in range(EVALUATED)
    ]
    meter = Meter()
    with meter("summary"):
        summarize("gsm8k", {"n": SAMPLES}, groups)
    return meter.parts["summary"]


def totals(case: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The sums over the parts of every step, and over all parts."""

    def summed(left_out: tuple[str, ...] = ()) -> dict[str, float]:
        parts = [part for name, part in case["parts"].items() if name not in left_out]
        return {kind: round(sum(p[kind] for p in parts), 3) for kind in ("wall_s", "cpu_s")}

    return {"every step": summed(SELDOM), "with samples and checkpoint": summed()}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    f"{name}, {tokens} tokens": lambda make=make, tokens=tokens: make(tokens)
    for tokens in (TOKENS, 4 * TOKENS)
    for name, make in (
        ("one of 8 ranks (simulated)", simulated),
        ("1 rank", lambda tokens: started(1, tokens)),
        ("2 ranks (gloo)", lambda tokens: started(2, tokens)),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--column", default="after", choices=("before", "after"))
    parser.add_argument("--only", default="", help="a part of the names of cases")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = {}
    for name, measure in CASES.items():
        if arguments.only not in name:
            continue
        case = measure()
        cases[name] = {**case, "sums": totals(case)}
        print(name, json.dumps(cases[name], indent=1), file=sys.stderr)
    column = {
        "commit": git_commit() or "unknown",
        "cases": cases,
        f"summary of {EVALUATED} problems × {SAMPLES}": evaluation(),
    }
    path = FOLDER / "host_path.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    columns = {k: before[k] for k in ("before", "after") if k in before}
    keep(
        "host_path",
        {
            "step": f"{PROMPTS} prompts × {SAMPLES} samples × {TOKENS} tokens over {RANKS} ranks; "
            f"real ranks have the share of one of them each; {UPDATES} updates",
            **columns,
            arguments.column: column,
        },
    )


if __name__ == "__main__":
    main()
