"""On each of two ranks that share one engine: generate, score, load, against transformers."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from bandpo.ranks.collectives import Ranks
from bandpo.rollout.engine import EngineSpec, Sampling
from bandpo.types import Problem, Prompt
from bandpo.weight_sync import weight_stream

model = sys.argv[1]
ranks = Ranks()
rank = ranks.rank

from bandpo.rollout.vllm_local import VLLMLocal  # noqa: E402

spec = EngineSpec(model, max_model_len=64, ranks=ranks)
engine = VLLMLocal(spec, max_num_seqs=32, enforce_eager=True, tensor_parallel_size=2)
lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
# The ranks ask for different numbers of prompts.
prompts = [
    Prompt(
        Problem(f"p{rank}{i}", "", ""), "", (3, 20 + rank, *range(30 + i, 36 + i), 1, 4), 4096 * i
    )
    for i in range(2 + rank)
]


def gap() -> float:
    """Largest difference to transformers over this rank's samples."""
    largest = 0.0
    groups = list(engine.generate(prompts, Sampling(n=3, max_tokens=8)))
    assert sorted(g.problem.id for g in groups) == [p.problem.id for p in prompts]
    for group in groups:
        start = len(group.prompt.token_ids)
        scored = engine.logprobs(group.prompt, group.completions) if group is groups[0] else None
        for index, completion in enumerate(group.completions):
            ids = torch.tensor([[*group.prompt.token_ids, *completion.token_ids]])
            with torch.no_grad():
                logp = lm(ids).logits[0, start - 1 : -1].log_softmax(-1)
            expected = logp.gather(-1, ids[0, start:, None]).squeeze(-1)
            found = [completion.logprobs.tolist(), *([scored[index]] if scored else [])]
            largest = max(
                largest, *(float((expected - torch.tensor(f)).abs().max()) for f in found)
            )
    return largest


before = gap()
# A rank without prompts takes part in those of the other.
none = list(engine.generate(prompts if rank else [], Sampling(n=3, max_tokens=8)))
assert len(none) == (len(prompts) if rank else 0)
with torch.no_grad():
    for parameter in lm.parameters():
        parameter.mul_(1.3)
stale = gap()
engine.load_weights(weight_stream(lm), 1)
after = gap()
maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
mapped = [line.split(maxsplit=5)[-1] for line in maps]
shared = sorted({name for name in mapped if "cpushm" in name})
result = {"before": before, "stale": stale, "after": after, "shared": shared}
print("RESULT", json.dumps(result), flush=True)
engine.close()
