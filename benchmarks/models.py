"""Which architectures of transformers work, each tried on a small model with random weights.

    python benchmarks/models.py [KIND ...] [--vllm]

Without `--vllm` all but the engine vLLM, some ten seconds per architecture; with it that alone, a
process of its own and a minute per architecture. Both keep what they find in results/models.json
with the versions, from which `python scripts/document_models.py` writes docs/models.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bandpo.batching import Sample  # noqa: E402
from bandpo.config.sections.learner import LearnerConfig, LoraConfig  # noqa: E402
from bandpo.config.sections.model import ModelConfig  # noqa: E402
from bandpo.environment import versions  # noqa: E402
from bandpo.errors import UserError  # noqa: E402
from bandpo.loss import Clip, Fixed, PolicyLoss, TokenMean, TokenRatio  # noqa: E402
from bandpo.model.agreement import TOLERANCE, gap_between, own_logprobs  # noqa: E402
from bandpo.model.naming import named_tensors  # noqa: E402
from bandpo.types import Completion, Problem, Prompt  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "models.json"
VOCABULARY = 262  # of the embedded tokenizer
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
_LATENT = {
    "num_key_value_heads": 2,
    "head_dim": 64,
    "kv_lora_rank": 512,  # with the next the one size that vLLM computes
    "qk_rope_head_dim": 64,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_MAMBA = {
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}


@dataclass(frozen=True)
class Architecture:
    """A model_type of transformers, the models that have it, and settings of a small one."""

    models: str
    settings: Mapping[str, Any]


ARCHITECTURES: dict[str, Architecture] = {
    "qwen2": Architecture("Qwen2, Qwen2.5, R1-Distill-Qwen", {"tie_word_embeddings": True}),
    "qwen3": Architecture("Qwen3", {}),
    "qwen3_moe": Architecture("Qwen3-MoE (30B-A3B)", _EXPERTS),
    "qwen3_5_text": Architecture("Qwen3.5 (text)", _DELTA),
    "qwen3_next": Architecture(
        "Qwen3-Next", {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 32}
    ),
    "llama": Architecture("Llama 2 and 3, R1-Distill-Llama, SmolLM2", {}),
    "mistral": Architecture("Mistral 7B", {}),
    "ministral3": Architecture("Ministral 3", {}),
    "gemma2": Architecture("Gemma 2", {"query_pre_attn_scalar": 1, "attn_logit_softcapping": 1.0}),
    "gemma3_text": Architecture("Gemma 3 (text)", {"query_pre_attn_scalar": 32}),
    "phi": Architecture("Phi-1.5, Phi-2", {}),
    "phi3": Architecture("Phi-3, Phi-4", {"num_key_value_heads": 2}),
    "granite": Architecture(
        "Granite 3",
        {"logits_scaling": 8.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1},
    ),
    "granitemoehybrid": Architecture(
        "Granite 4",
        {
            **_MAMBA,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
            "logits_scaling": 4.0,
        },
    ),
    "cohere": Architecture("Command R", {"logit_scale": 0.25}),
    "cohere2": Architecture("Command R7B, Command A", {"logit_scale": 0.25}),
    "olmo2": Architecture("OLMo 2", {}),
    "olmo3": Architecture("OLMo 3", {}),
    "smollm3": Architecture("SmolLM3", {"no_rope_layer_interval": 2}),
    "gpt2": Architecture("GPT-2", {}),
    "deepseek_v2": Architecture("DeepSeek-V2", _LATENT),
    "deepseek_v3": Architecture(
        "DeepSeek-V3, R1", {**_LATENT, "num_mtp_layers": 0, "topk_method": "noaux_tc"}
    ),
    "gpt_oss": Architecture("gpt-oss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "glm4": Architecture("GLM-4 (0414)", {}),
    "glm4_moe": Architecture(
        "GLM-4.5",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "num_mtp_layers": 0,
        },
    ),
    "falcon_h1": Architecture("Falcon-H1", {**_MAMBA, "lm_head_multiplier": 0.5}),
    "mamba2": Architecture(
        "Mamba 2", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "expand": 2}
    ),
}
WAYS: tuple[Mapping[str, Any], ...] = (
    {},
    {"learner.packing": False},
    {"model.attention": "eager", "learner.packing": False},
)
"""Settings in which a learner is tried until one takes the model."""


@dataclass(frozen=True)
class Verdict:
    """Whether something works, the settings that it takes, or the product's reason against it."""

    works: bool
    settings: str = ""
    reason: str = ""


def make(kind: str, folder: Path) -> Path:
    """Writes a small model with random weights and the embedded tokenizer into the folder.

    Weights are larger than those of a fresh model, whose logits hardly differ between tokens.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from bandpo.model import embedded

    settings = {**SIZES, **ARCHITECTURES[kind].settings}
    if kind == "gpt2":
        settings = {k: v for k, v in settings.items() if k not in ("intermediate_size", "head_dim")}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).float()
        for parameter in lm.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
        for _, tensor in named_tensors(lm):
            if not isinstance(tensor, torch.nn.Parameter):
                tensor.normal_(std=0.1)  # a router's bias, which is 0 in a fresh model
    lm.save_pretrained(folder)
    embedded.build_tokenizer().save_pretrained(folder)
    return folder


def samples() -> list[Sample]:
    """Three, of which two share a prompt, as an update takes them."""
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, VOCABULARY - 5, (count,), generator=generator).tolist())

    first, other = drawn(6), drawn(4)
    found = []
    for prompt, length, advantage in ((first, 17, 1.0), (first, 9, -1.0), (other, 24, 0.5)):
        # About a random policy's log(1/262).
        logp = -5.5 + 0.1 * torch.randn(length, generator=generator)
        found.append(Sample(prompt, drawn(length), advantage, rollout_logp=logp))
    return found


def transformers_logprobs(folder: Path, dtype: str = "float32") -> list[list[float]]:
    """The samples' log-probabilities by the model of transformers alone, with eager attention."""
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", use_safetensors=True
    ).eval()
    return [own_logprobs(lm, s.prompt_ids, s.completion_ids) for s in samples()]


class Trial:
    """One architecture, tried in this process."""

    def __init__(self, folder: Path, ranks: Any) -> None:
        self.folder, self.ranks = folder, ranks
        self.way: Mapping[str, Any] = {}

    def tried(self, attempt: Callable[[], Verdict]) -> Verdict:
        """The attempt's verdict, or the product's reason why it refuses the model."""
        try:
            return attempt()
        except UserError as error:
            return self._refused(str(error))

    def _refused(self, reason: str) -> Verdict:
        return Verdict(False, reason=reason.replace(str(self.folder), "MODEL"))

    def generates(self) -> Verdict:
        """`rollout=hf` samples it, with the log-probabilities of transformers."""
        from bandpo.rollout.engine import EngineSpec, Sampling
        from bandpo.rollout.hf import HFGenerate

        engine = HFGenerate(EngineSpec(str(self.folder)))
        prompt = Prompt(Problem("p", "", ""), "", samples()[0].prompt_ids, seed=1)
        (group,) = engine.generate([prompt], Sampling(n=3, max_tokens=20))
        lm = engine._model
        own = [own_logprobs(lm, prompt.token_ids, c.token_ids) for c in group.completions]
        self._agree(own, [c.logprobs.tolist() for c in group.completions])
        return Verdict(True)

    def learns(self, dtype: str) -> Verdict:
        """The learner's log-probabilities are those of transformers, in the first way taken."""
        wanted = transformers_logprobs(self.folder, dtype)
        refused = ""
        for way in WAYS:
            try:
                learner = self._learner(way, dtype=dtype)
                self._agree(wanted, learner.logprobs(samples()), dtype)
            except UserError as error:
                refused = refused or str(error)
                continue
            if dtype == "float32":
                self.way = way
            return Verdict(True, _spelled(way))
        return self._refused(refused)

    def packs(self) -> Verdict:
        """Sequences share a row, and those of a prompt its tokens, without another result."""
        from bandpo.learner.layouts import SharedPromptBatch

        learner = self._learner({})
        row = learner.layout.of(samples())
        assert isinstance(row, SharedPromptBatch) and row.rows.gather is not None
        alone = [learner.logprobs([sample])[0] for sample in samples()]
        self._agree(alone, learner.logprobs(samples()))
        return Verdict(True)

    def exports(self, rank: int = 0) -> Verdict:
        """After an update hf/ loads in transformers as what the learner has."""
        from transformers import AutoTokenizer

        learner = self._learner(self.way, rank)
        before = learner.logprobs(samples())
        batch = samples()
        learner.prepare([batch, batch])
        learner.update(batch, 0)
        own = learner.logprobs(samples())
        moved = gap_between(before, own).largest
        assert moved > 1e-3, f"an update moved log-probabilities by {moved:g}"
        with tempfile.TemporaryDirectory() as place:
            learner.save_hf(Path(place) / "hf", AutoTokenizer.from_pretrained(self.folder))
            self._agree(own, transformers_logprobs(Path(place) / "hf"))
        return Verdict(True)

    def syncs(self) -> Verdict:
        """vLLM's log-probabilities are the learner's, before and after an update and a sync."""
        from bandpo.rollout.engine import EngineSpec
        from bandpo.rollout.vllm_local import VLLMLocal

        learner = self._learner(self.way)
        spec = EngineSpec(str(self.folder), max_model_len=128, ranks=self.ranks)
        engine = VLLMLocal(spec, max_num_seqs=8, enforce_eager=True)
        try:
            self._follows(learner, engine)
        finally:
            engine.close()
        return Verdict(True)

    def _follows(self, learner: Any, engine: Any) -> None:
        from bandpo.rollout.engine import Sampling

        prompt = Prompt(Problem("p", "", ""), "", samples()[0].prompt_ids, seed=1)
        (group,) = engine.generate([prompt], Sampling(n=3, max_tokens=20))
        drawn = [Sample.of(group, index, 0.0) for index in range(3)]
        self._probe(learner.logprobs(drawn), [c.logprobs.tolist() for c in group.completions])
        before = learner.logprobs(samples())
        for step in range(2):
            batch = samples()
            learner.prepare([batch, batch])
            learner.update(batch, step)
        assert gap_between(before, learner.logprobs(samples())).mean > 10 * TOLERANCE["float32"]
        engine.load_weights(learner.weights(), 1)
        theirs = [
            engine.logprobs(
                Prompt(Problem("p", "", ""), "", sample.prompt_ids),
                [Completion("", sample.completion_ids, [0.0] * len(sample.completion_ids), "stop")],
            )[0]
            for sample in samples()
        ]
        self._probe(learner.logprobs(samples()), theirs)

    def _probe(self, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> None:
        """As a run does after every sync (`bandpo.run.probe`)."""
        gap = gap_between(ours, theirs).mean
        if gap > TOLERANCE["float32"]:
            raise UserError(
                f"its log-probabilities differ from the learner's by {gap:.2g}: the probe of a run "
                "refuses it"
            )

    def _learner(self, way: Mapping[str, Any], rank: int = 0, dtype: str = "float32") -> Any:
        from transformers import AutoConfig

        from bandpo.learner.learner import DeepSpeedLearner
        from bandpo.model.features import refuse_softcap, refuse_state

        attention = way.get("model.attention", "sdpa")
        packing = way.get("learner.packing", True)
        lm_config = AutoConfig.from_pretrained(self.folder)
        refuse_softcap(lm_config, attention)  # as `examine` does before a run
        if packing:
            refuse_state(lm_config, attention)
        config = LearnerConfig(
            lr=1e-2,
            lora=LoraConfig(rank=rank, alpha=16, targets="all-linear"),
            packing=packing,
        )
        model = ModelConfig(path=str(self.folder), dtype=dtype, attention=attention)
        loss = PolicyLoss(TokenRatio(), Clip(Fixed(0.2, 0.2)), TokenMean())
        return DeepSpeedLearner(config, model, self.folder, loss, self.ranks)

    @staticmethod
    def _agree(
        wanted: Sequence[Sequence[float]], found: Sequence[Sequence[float]], dtype: str = "float32"
    ) -> None:
        gap = gap_between(wanted, found).mean
        assert gap <= TOLERANCE[dtype], f"log-probabilities differ by {gap:.3g}"


def measured(kind: str, folder: Path, ranks: Any) -> dict[str, Verdict]:
    """Every column but vLLM's; what crashes raises."""
    trial = Trial(make(kind, folder), ranks)
    found = {
        "generates": trial.tried(trial.generates),
        "float32": trial.learns("float32"),
        "bfloat16": trial.learns("bfloat16"),
        "packs": trial.tried(trial.packs),
    }
    learns = found["float32"]
    for name, rank in (("exports", 0), ("lora", 2)):
        found[name] = trial.tried(partial(trial.exports, rank)) if learns.works else learns
    return found


def synced(kind: str, folder: Path, ranks: Any) -> dict[str, Verdict]:
    """The column of vLLM."""
    trial = Trial(make(kind, folder), ranks)
    learns = trial.learns("float32")
    return {"vllm": trial.tried(trial.syncs) if learns.works else learns}


def _spelled(way: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={str(value).lower()}" for key, value in way.items())


def _alone(kind: str, vllm: bool) -> dict[str, Any]:
    """The verdicts of one kind, found in a process of its own; raises where that fails."""
    words = [sys.executable, __file__, "--work", kind, *(["--vllm"] if vllm else [])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1200, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind}: {done.stderr[-3000:]}")
    found, _ = json.JSONDecoder().raw_decode(done.stdout.split("RESULT ")[1])
    return found


def _keep(kind: str, found: Mapping[str, Any]) -> None:
    record = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    record["versions"] = versions()
    models = record.setdefault("models", {})
    models[kind] = {**models.get(kind, {}), **found}
    record["models"] = {k: models[k] for k in ARCHITECTURES if k in models}
    RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Tries the kinds one after another; 1 where one of them crashed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    parser.add_argument("--vllm", action="store_true", help="vLLM's column alone")
    parser.add_argument("--work", metavar="KIND", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        from bandpo.ranks.collectives import Ranks

        with Ranks() as ranks, tempfile.TemporaryDirectory() as folder:
            try_all = synced if arguments.vllm else measured
            found = try_all(arguments.work, Path(folder), ranks)
            verdicts = {name: asdict(verdict) for name, verdict in found.items()}
            print("RESULT " + json.dumps(verdicts), flush=True)
        return 0
    crashed = 0
    for kind in arguments.kinds or ARCHITECTURES:
        try:
            found = _alone(kind, arguments.vllm)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{kind}: crashed: {error}", flush=True)
            crashed = 1
            continue
        _keep(kind, found)
        for name, verdict in found.items():
            said = verdict["settings"] or verdict["reason"]
            print(f"{kind}: {name}: {'yes' if verdict['works'] else 'no'} {said}", flush=True)
    return crashed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
