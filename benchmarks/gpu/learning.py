"""The learner on one GPU: speed, memory, precision, determinism, ZeRO stages, offload."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bandpo.batching import Sample
from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.model.architecture import shape_of
from bandpo.planning.gpus import GIB, GPUS
from bandpo.planning.memory import learner_memory
from benchmarks.gpu.check import Figure, Lab
from benchmarks.gpu.networks import BOUNDS, forward_flops, learner_on, network, samples_for

LARGE_STEPS = 1e-4


def matmul_tflops(lab: Lab) -> float:
    """The rate of a large bfloat16 product (float32 on a CPU) of random matrices."""
    size, dtype = (256, torch.float32) if lab.tiny else (8192, torch.bfloat16)
    left, right = torch.randn(2, size, size, device=lab.device).to(dtype)
    return 2 * size**3 / lab.seconds(lambda: left @ right, 10) / 1e12


def speed(lab: Lab, size: str, **model: Any) -> Mapping[str, Figure]:
    """An update and the passes before it, against the rate of a large matrix product.

    Samples of up to 1,024 + 4,096 tokens, four of a prompt. An update counts as three forward
    passes.
    """
    rate = matmul_tflops(lab)
    folder = network(lab, size)
    settings = {"micro_batch_tokens": _micro_batch(lab), "logits_chunk": 4096}
    chosen = {"dtype": "float32" if lab.tiny else "bfloat16", **model}
    learner = learner_on(folder, chosen, **settings)
    shape = shape_of(ModelConfig(path=str(folder)))
    sizes = (2, 2, 16, 48) if lab.tiny else (8, 4, 1024, 4096)
    samples = samples_for(shape.vocabulary, *sizes)
    forward = forward_flops(shape, samples) / 1e12
    old_s = lab.seconds(lambda: learner.score(samples), 2)
    reference_s = lab.seconds(lambda: learner.score_reference(samples), 2)
    update_s: list[float] = []
    peak = lab.peak_bytes(lambda: update_s.append(lab.seconds(lambda: learner.update(samples, 0))))
    old_logp = torch.cat([s.old_logp for s in samples if s.old_logp is not None]).to(lab.device)
    bounds_s = lab.seconds(lambda: BOUNDS(old_logp), 10)
    reached = 3 * forward / update_s[0]
    figures = {
        "matmul_tflops": Figure(rate),
        "tokens": Figure(sum(map(len, samples))),
        "update_s": Figure(update_s[0]),
        "update_of_matmul": Figure(reached / rate, at_least=lab.bar(0.45)),
        "old_policy_of_matmul": Figure(forward / old_s / rate, at_least=lab.bar(0.45)),
        "reference_of_matmul": Figure(forward / reference_s / rate, at_least=lab.bar(0.45)),
        "bounds_share_of_update": Figure(bounds_s / update_s[0], at_most=lab.bar(0.02)),
        "micro_batch_tokens": Figure(learner.micro_batches.tokens),
    }
    if lab.on_gpu:
        figures |= _against_sheet(reached) | _against_plan(folder, chosen, settings, peak)
    return figures


def _micro_batch(lab: Lab) -> int:
    """Tokens whose activations the card holds."""
    if lab.tiny:
        return 128
    return 16_384 if torch.cuda.mem_get_info()[1] > 100 * GIB else 8192


def _against_sheet(reached: float) -> dict[str, Figure]:
    name = torch.cuda.get_device_name()
    # The longest name: H20 is a part of H200.
    sheet = max(
        (card for key, card in GPUS.items() if key in name),
        key=lambda c: len(c.name),
        default=None,
    )
    return {"update_mfu_of_data_sheet": Figure(reached * 1e12 / sheet.flops)} if sheet else {}


def _against_plan(
    folder: Any, model: dict[str, Any], settings: dict[str, Any], peak: float
) -> dict[str, Figure]:
    """The peak of an update against `bandpo plan`'s estimate of the learner's memory."""
    keys = {**{f"model.{k}": v for k, v in model.items()}, "model.path": folder}
    keys |= {f"learner.{k}": v for k, v in settings.items()}
    keys |= {"data.max_prompt_tokens": 1024, "rollout.max_tokens": 4096}
    overrides = ["rollout=hf", *(f"{key}={value}" for key, value in keys.items())]
    config = compose("train", overrides, Config)
    planned = sum(learner_memory(config, shape_of(config.model), 1, "cuda").values())
    ratio = Figure(peak / GIB / planned, at_least=0.75, at_most=1.1)
    return {"peak_gib": Figure(peak / GIB), "planned_gib": Figure(planned), "peak_over_plan": ratio}


def _short_samples(lab: Lab) -> list[Sample]:
    return samples_for(900, *((2, 4, 8, 24) if lab.tiny else (4, 4, 256, 768)))


def _moved(learner: DeepSpeedLearner, samples: list[Sample], updates: int) -> tuple[Tensor, Tensor]:
    """The losses of some updates on the same samples, and how far log-probabilities moved."""
    learner.score(samples)
    learner.score_reference(samples)
    before = torch.cat([s.old_logp for s in samples if s.old_logp is not None])
    losses = [taken.loss for taken in (learner.update(samples, i) for i in range(updates)) if taken]
    after = torch.cat([torch.tensor(row) for row in learner.logprobs(samples)])
    return torch.tensor(losses), after - before


def _trained(
    lab: Lab, model: dict[str, Any], updates: int, **settings: Any
) -> tuple[Tensor, Tensor]:
    learner = learner_on(network(lab, "wide"), model, **{"lr": 1e-5, **settings})
    found = _moved(learner, _short_samples(lab), updates)
    del learner
    free()
    return found


def free() -> None:
    """Gives back what dropped learners held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def precision(lab: Lab) -> Mapping[str, Figure]:
    """Six updates in bfloat16 against the same in float32: losses, and the policy's movement.

    Steps are large enough for bfloat16's own weights to follow each of them.
    """
    exact = _trained(lab, {"dtype": "float32"}, 6, lr=LARGE_STEPS)
    figures = {"movement_in_float32": Figure(float(exact[1].abs().mean()))}
    for stage in (0, 2):
        ours = _trained(lab, {"dtype": "bfloat16"}, 6, lr=LARGE_STEPS, zero_stage=stage)
        figures[f"loss_error_stage_{stage}"] = Figure(_relative(ours[0], exact[0]), at_most=0.1)
        figures[f"movement_error_stage_{stage}"] = Figure(
            _relative(ours[1], exact[1]), at_most=0.35
        )
    return figures


@contextmanager
def _deterministic() -> Iterator[None]:
    """PyTorch's deterministic algorithms, and an error where there is none.

    With warnings alone cuDNN's attention would go on as it is.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def determinism(lab: Lab) -> Mapping[str, Figure]:
    """The share of weights that are bitwise equal after the same two updates from one start."""
    figures = {"equal_share": Figure(_equal_share(lab))}
    with _deterministic():
        share = _equal_share(lab)
    return {**figures, "equal_share_where_only_deterministic": Figure(share, at_least=1.0)}


def _equal_share(lab: Lab) -> float:
    first, second = _weights_after(lab), _weights_after(lab)
    equal = sum(int((first[name] == second[name]).sum()) for name in first)
    return equal / sum(tensor.numel() for tensor in first.values())


def _weights_after(lab: Lab) -> dict[str, Tensor]:
    model = {"dtype": "float32" if lab.tiny else "bfloat16"}
    learner = learner_on(network(lab, "wide"), model, lr=1e-4)
    _moved(learner, _short_samples(lab), 2)
    found = {name: tensor.detach().cpu().clone() for name, tensor in learner.weights()}
    del learner
    free()
    return found


def zero_stages(lab: Lab) -> Mapping[str, Figure]:
    """Three updates under each ZeRO stage on one rank against stage 0, in float32."""
    exact = _trained(lab, {"dtype": "float32"}, 3)
    figures = {}
    for stage in (1, 2, 3):
        ours = _trained(lab, {"dtype": "float32"}, 3, zero_stage=stage)
        figures[f"loss_error_stage_{stage}"] = Figure(_relative(ours[0], exact[0]), at_most=1e-3)
        figures[f"movement_error_stage_{stage}"] = Figure(
            _relative(ours[1], exact[1]), at_most=1e-2
        )
    return figures


def offload(lab: Lab) -> Mapping[str, Figure]:
    """Three updates with the optimizer's state, and with parameters too, in the CPU's memory."""
    figures: dict[str, Figure] = {}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for place, stage in (("none", 0), ("optimizer", 2), ("parameters", 3)):

        def work(place: str = place, stage: int = stage) -> None:
            found[place] = _trained(lab, {"dtype": "float32"}, 3, zero_stage=stage, offload=place)

        figures[f"{place}_peak_gib"] = Figure(lab.peak_bytes(work) / GIB)
        if place != "none":
            for index, name in enumerate(("loss", "movement")):
                error = _relative(found[place][index], found["none"][index])
                figures[f"{place}_{name}_error"] = Figure(error, at_most=(1e-3, 1e-2)[index])
    return figures
