"""Runs of `bandpo train` from end to end, and what vLLM does between their steps."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bandpo.model.source import find_model
from bandpo.rollout.engine import EngineSpec, Sampling
from bandpo.rollout.vllm_local import VLLMLocal
from bandpo.types import Problem, Prompt
from benchmarks.gpu.check import Figure, Lab
from benchmarks.gpu.networks import learner_on

ROOT = Path(__file__).parents[2]
# A run that shows that it runs; `few` is a benchmark of four problems.
TOY = (
    "rollout.prompts_per_step=2",
    "rollout.group_size=4",
    "rollout.max_tokens=24",
    "learner.updates_per_rollout=2",
    "eval.n=2",
    "eval.benchmarks=[{name: arithmetic, source: {_target_: bandpo.data.arithmetic.problems, "
    "split: heldout, count: 4}}]",
)
TOY_VLLM = ("rollout.engine.enforce_eager=true", "rollout.engine.max_num_seqs=32")
PROBE = "sync/probe_logprob_max"


def train(lab: Lab, name: str, *overrides: str) -> tuple[list[dict[str, float]], float]:
    """A run's metrics, a mapping a step, and its seconds; raises RuntimeError where it fails."""
    folder = lab.folder / "runs" / name
    small = [*TOY, "trainer.steps=2"] if lab.tiny else []
    arguments = ["train", *overrides, *small, f"run.dir={folder}", "trainer.resume=never"]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "bandpo.cli", *arguments],
        env={**os.environ, "PYTHONPATH": _importable()},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"bandpo {' '.join(arguments)}: {done.stderr[-3000:]}")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], seconds


def _importable() -> str:
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def _learned(lab: Lab, name: str, *overrides: str) -> Mapping[str, Figure]:
    """The quickstart: held-out accuracy before and after, seconds, the probe after each sync."""
    steps, seconds = train(lab, name, *overrides)
    means = [value for step in steps for key, value in step.items() if "/mean@" in key]
    middle = sorted(step["time/step_s"] for step in steps[1:])[(len(steps) - 1) // 2]
    return {
        "seconds": Figure(seconds),
        "steps": Figure(len(steps) - 1),
        "seconds_of_a_step": Figure(middle),
        "mean_at_n_before": Figure(means[0]),
        "mean_at_n_after": Figure(means[-1], at_least=None if lab.tiny else 0.55),
        "largest_probe_gap": Figure(_largest_gap(steps), at_most=1e-3),
    }


def _largest_gap(steps: list[dict[str, float]]) -> float:
    return max((step[PROBE] for step in steps if PROBE in step), default=math.nan)


def quickstart_hf(lab: Lab) -> Mapping[str, Figure]:
    """The quickstart without vLLM."""
    return _learned(lab, "hf", "rollout=hf")


def quickstart_vllm(lab: Lab) -> Mapping[str, Figure]:
    """The quickstart as it is."""
    return _learned(lab, "vllm", *_vllm(lab))


def _vllm(lab: Lab) -> tuple[str, ...]:
    return ("rollout=vllm_local", *(TOY_VLLM if lab.tiny else ()))


def probe_bfloat16(lab: Lab) -> Mapping[str, Figure]:
    """Engine against learner in bfloat16 after a few syncs: the embedded policy, local models.

    By its name the embedded policy is refused in bfloat16: it does not learn well there.
    """
    figures = {}
    for model in (find_model("embedded").path, *lab.models):
        overrides = (
            "policy=embedded",
            f"model.path={model}",
            "model.dtype=bfloat16",
            "trainer.steps=4",
        )
        steps, _ = train(lab, f"bfloat16-{Path(model).name}", *_vllm(lab), *overrides)
        figures[f"{Path(model).name}_largest_gap"] = Figure(_largest_gap(steps), at_most=0.3)
    return figures


def lora(lab: Lab) -> Mapping[str, Figure]:
    """Weights merged with their adapters arrive in the engine."""
    overrides = ("learner.lora.rank=8", "trainer.steps=4")
    steps, _ = train(lab, "lora", *_vllm(lab), *overrides)
    return {"largest_probe_gap": Figure(_largest_gap(steps), at_most=1e-3)}


def sleep_and_wake(lab: Lab) -> Mapping[str, Figure]:
    """Memory that a sleeping engine gives back, and its log-probabilities before and after."""
    folder = find_model("embedded").path
    learner = learner_on(Path(folder), {"dtype": "float32"})
    spec = EngineSpec(str(folder), max_model_len=256, ranks=learner.ranks)
    engine = VLLMLocal(spec, max_num_seqs=32, gpu_memory_utilization=0.3)
    prompt = Prompt(Problem("p", "1+1", "2"), "1+1", (5, 6, 7, 8), seed=1)
    answer = next(iter(engine.generate([prompt], Sampling(n=4, max_tokens=16))))
    engine.load_weights(learner.weights(), 1)
    before, used = engine.logprobs(prompt, answer.completions), _used_gib()
    engine.sleep()
    asleep = _used_gib()
    engine.wake()
    engine.load_weights(learner.weights(), 2)
    after = engine.logprobs(prompt, answer.completions)
    gap = max(
        abs(a - b) for rows in zip(before, after, strict=True) for a, b in zip(*rows, strict=True)
    )
    engine.close()
    return {
        "gib_awake": Figure(used),
        "gib_asleep": Figure(asleep),
        "gib_awake_again": Figure(_used_gib()),
        "gib_given_back": Figure(used - asleep, at_least=1.0 if lab.on_gpu else None),
        "gap_after_waking": Figure(gap, at_most=1e-6),
    }


def _used_gib() -> float:
    """Of the card, by all processes."""
    if not torch.cuda.is_available():
        return 0.0
    free, whole = torch.cuda.mem_get_info()
    return (whole - free) / 2**30


def ipc(lab: Lab) -> Mapping[str, Figure]:
    """Weights handed to a server on the same GPU; through a folder on a CPU."""
    with _server(lab) as url:
        steps, _ = train(
            lab,
            "ipc",
            *("rollout=vllm_server", f"rollout.engine.urls=[{url}]", "trainer.steps=4"),
            f"rollout.engine.transfer={'ipc' if lab.on_gpu else 'folder'}",
        )
    return {"largest_probe_gap": Figure(_largest_gap(steps), at_most=1e-3)}


@contextmanager
def _server(lab: Lab) -> Iterator[str]:
    """A vLLM server of the embedded policy as docs/servers.md says, until it is no longer used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += ["--model", str(find_model("embedded").path), "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "64"]
    command += ["--logprobs-mode", "processed_logprobs", "--enable-scale-out", "--enforce-eager"]
    own = {"VLLM_SERVER_DEV_MODE": "1", "TRITON_F32_DEFAULT": "ieee"}
    if lab.on_gpu:
        own["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        command += ["--gpu-memory-utilization", "0.3"]
        command += ["--weight-transfer-config", '{"backend": "ipc"}']
    else:
        own |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]
    log = lab.folder / "server.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **own}, stdout=output, stderr=output, process_group=0
        )
    try:
        _await(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _await(url: str, process: Any, log: Path, patience: float = 240) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < patience and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8')[-3000:]}")
