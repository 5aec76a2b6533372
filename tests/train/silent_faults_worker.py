"""What tells a run, on real vLLM, of each fault that raises no error by itself.

Arguments: dtype of the learner, dtype of the engine. Prints, for every fault, what the probe or the
alarm says of it ("" where nothing does), the mean and the largest difference of log-probabilities
and the number of tokens; `moved` is how far the updates moved the learner's own.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp

import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer

from bandpo.alarms import AlarmPanel, Mismatch
from bandpo.batching import samples_of
from bandpo.config.sections.learner import LearnerConfig, LoraConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.data.arithmetic import problems
from bandpo.errors import RunHalted, UserError
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.loss import Clip, PolicyLoss, TokenMean, TokenRatio
from bandpo.loss.bounds import Fixed
from bandpo.model.agreement import TOLERANCE, gap_between
from bandpo.model.source import find_model
from bandpo.ranks.collectives import Ranks
from bandpo.rollout.engine import EngineSpec, Sampling
from bandpo.rollout.vllm_local import VLLMLocal
from bandpo.run.probe import prove_weights
from bandpo.types import Group, Prompt

DTYPE, ENGINE_DTYPE = sys.argv[1:]
LOSS = PolicyLoss(TokenRatio(), Clip(Fixed(0.2, 0.2)), TokenMean())
SAMPLING = Sampling(n=8, max_tokens=64)
EMBEDDED = find_model("embedded", 0, False).path
found: dict[str, dict] = {}


def untied() -> str:
    """The embedded policy with a head of its own."""
    folder = Path(mkdtemp())
    lm = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    lm.config.tie_word_embeddings = False
    lm.lm_head.weight = torch.nn.Parameter(lm.model.embed_tokens.weight.detach().clone())
    lm.save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder)
    return str(folder)


def prompts() -> list[Prompt]:
    """Prompts of more than the 128 tokens that vLLM caches together on a CPU."""
    asked = list(problems(split="train", count=64, seed=0))
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    texts = ["".join(f"{p.problem}\n" for p in asked[12 * i : 12 * i + 12]) for i in range(4)]
    return [
        Prompt(asked[i], text, tuple(tokenizer.encode(text))[-170:], 4096 * (i + 1))
        for i, text in enumerate(texts)
    ]


def score(learner: DeepSpeedLearner, groups: list[Group]) -> list[list[float]]:
    """The learner's log-probabilities of the groups' tokens."""
    return learner.logprobs([s for g in groups for s in samples_of(g, [0.0] * SAMPLING.n)])


def update(learner: DeepSpeedLearner, groups: list[Group]) -> None:
    """A few steps towards every other sample."""
    signs = [0.5 - i % 2 for i in range(SAMPLING.n)]
    samples = [s for g in groups for s in samples_of(g, signs)]
    for step in range(4):
        learner.update(list(samples), step)


def weights_of(learner: DeepSpeedLearner) -> dict[str, torch.Tensor]:
    """A copy of what the learner streams."""
    return {name: tensor.clone() for name, tensor in learner.weights()}


class Stack:
    """A learner and an engine of one model, before and after updates."""

    def __init__(self, folder: str, **settings) -> None:
        stage = 2 if DTYPE == "bfloat16" else 0
        config = LearnerConfig(**{"lr": 4e-4, "zero_stage": stage, **settings})
        model = ModelConfig(path=folder, dtype=DTYPE)
        self.learner = DeepSpeedLearner(config, model, folder, LOSS, ranks)
        spec = EngineSpec(folder, dtype=ENGINE_DTYPE, max_model_len=256, ranks=ranks)
        self.engine = VLLMLocal(spec, max_num_seqs=64, enforce_eager=True)
        self.old = weights_of(self.learner)
        self.load(self.old)
        self.groups = list(self.engine.generate(PROMPTS, SAMPLING))
        before = score(self.learner, self.groups)
        update(self.learner, self.groups)
        self.new = weights_of(self.learner)
        self.moved = gap_between(before, score(self.learner, self.groups)).mean

    def load(self, weights, version: int = 2) -> None:
        """Hands the engine these weights."""
        self.engine.load_weights(iter(weights.items()), version)

    def probe(self, name: str, version: int = 2) -> None:
        """What the probe says of what the engine holds."""
        self.engine.weight_version = version
        group = max(self.groups, key=lambda g: sum(len(c.token_ids) for c in g.completions))
        theirs = self.engine.logprobs(group.prompt, group.completions[:4])
        gap = gap_between(theirs, score(self.learner, [group])[:4])
        said = ""
        try:
            prove_weights(self.engine, self.learner, group, ranks, TOLERANCE[DTYPE])
        except (RuntimeError, UserError) as error:
            said = f"{type(error).__name__}: {error}"
        found[name] = {"said": said, **asdict(gap), "tokens": sum(map(len, theirs))}

    def stale(self, name: str, *beginnings: str) -> None:
        """The probe where parameters that begin so are of the step before."""
        self.load(self.old)
        self.load({n: (self.old if n.startswith(beginnings) else self.new)[n] for n in self.new})
        self.probe(name)

    def sample(self, name: str, sampling: Sampling = SAMPLING) -> None:
        """What the alarm says of samples that the engine draws now."""
        groups = list(self.engine.generate(PROMPTS, sampling))
        theirs = [c.logprobs.tolist() for g in groups for c in g.completions]
        pairs = zip(theirs, score(self.learner, groups), strict=True)
        gaps = [abs(a - b) for pair in pairs for a, b in zip(*pair, strict=True)]
        mean, said = sum(gaps) / len(gaps), []
        panel = AlarmPanel([Mismatch.in_dtype(DTYPE)], (), said.append)
        try:
            panel.check(1, {"learn/updates": 1.0, "mismatch/logprob_abs_mean": mean})
        except RunHalted as error:
            said.append(f"RunHalted: {error}")
        found[name] = {
            **{"said": "".join(said), "mean": mean, "largest": max(gaps), "tokens": len(gaps)}
        }


@contextmanager
def cache_kept(engine: VLLMLocal) -> Iterator[None]:
    """vLLM says that it forgot its prompts, and has not."""
    llm = engine._llm
    reset, llm.reset_prefix_cache = llm.reset_prefix_cache, lambda: True
    yield
    llm.reset_prefix_cache = reset


def emptied(model: torch.nn.Module) -> None:
    """What waking up leaves of the weights of an engine that slept."""
    for parameter in model.parameters():
        parameter.data.zero_()


def not_merged(learner: DeepSpeedLearner) -> dict[str, torch.Tensor]:
    """The stream of a learner that forgets its adapter."""
    with torch.no_grad():
        layers = [m for m in learner.lm.modules() if isinstance(m, LoraLayer)]
        learned = [m.lora_B["default"].weight.clone() for m in layers]
        for layer in layers:
            layer.lora_B["default"].weight.zero_()
        found = weights_of(learner)
        for layer, weight in zip(layers, learned, strict=True):
            layer.lora_B["default"].weight.copy_(weight)
    return found


with Ranks() as ranks:
    PROMPTS = prompts()
    stack = Stack(EMBEDDED)
    moved = stack.moved
    stack.load(stack.new)
    stack.probe("nothing")
    stack.sample("nothing, sampled")
    if DTYPE == ENGINE_DTYPE:
        for wrong in (0.7, 0.4):
            other = Sampling(n=SAMPLING.n, max_tokens=64, temperature=wrong)
            stack.sample(f"temperature {wrong}", other)
        stack.load(stack.old)
        stack.probe("weights of another step")
        list(stack.engine.generate(PROMPTS, Sampling(n=1, max_tokens=2)))  # fills the cache
        with cache_kept(stack.engine):
            stack.load(stack.new)
        stack.probe("prefix cache kept, probed")
        stack.sample("prefix cache kept")
        stack.stale("stale tied head", "lm_head")
        layers = {int(n.split(".")[2]) for n in stack.new if n.startswith("model.layers.")}
        stack.stale("one layer skipped", f"model.layers.{max(layers) // 2}.")
        stack.engine._llm.apply_model(emptied)
        stack.probe("woken without weights")
        stack.engine.close()
        apart = Stack(untied())
        apart.stale("stale embedding", "model.embed_tokens")
        apart.engine.close()
        adapted = Stack(EMBEDDED, lora=LoraConfig(rank=4, alpha=8), lr=5e-3)
        adapted.load(adapted.new)
        adapted.probe("LoRA merged")
        adapted.load(not_merged(adapted.learner))
        adapted.probe("LoRA not merged")
        adapted.engine.close()
    else:
        stack.probe("bfloat16 under float32", version=1)
        stack.engine.close()
    print("RESULT " + json.dumps({"moved": moved, "faults": found}), flush=True)
