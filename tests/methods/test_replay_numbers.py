"""The replay against loops over tokens in Python floats, with the papers' formulas."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
import torch
from token_dumps import random_batch, sequences_of, write_dump

from bandpo.errors import UserError
from bandpo.loss.diagnostics import BINS, EDGES, SIGNS
from bandpo.methods.method import load_methods
from bandpo.methods.records import OF_SAMPLES, dump_path
from bandpo.methods.replay import Replay, replay
from bandpo.types import TokenBatch

BATCHES = [random_batch(seed, sequences=60) for seed in range(4)]


class Judged(NamedTuple):
    """∂objective/∂log π of a token, the bounds, and what removed the gradient if anything did."""

    gradient: float
    low: float
    high: float
    removed: str = ""


Rule = Callable[[float, float, float, float], Judged]  # p, ratio, advantage, entropy


def clip(p: float, r: float, a: float, low: float, high: float, dual: float = math.inf) -> Judged:
    """min(r·A, clip(r)·A), at least dual·A where A < 0."""
    removed = "high" if a > 0 and r > high else "low" if a < 0 and r < low else ""
    if a < 0 and max(r, low) > dual:
        removed = "dual"
    return Judged(0.0 if removed else r * a, low, high, removed)


def binary_kl(p: float, q: float) -> float:
    """KL(π_old ‖ π) of the token against all others."""
    rest = 0.0 if p == 1 else (1 - p) * math.log((1 - p) / (1 - q))
    return p * math.log(p / q) + rest


def grpo(p: float, r: float, a: float, h: float) -> Judged:
    return clip(p, r, a, 0.8, 1.2, 10)


def band_tv(p: float, r: float, a: float, h: float) -> Judged:
    return clip(p, r, a, max(0, 1 - 0.05 / p), min(1 + 0.05 / p, 1 / p, 10), 10)


def dcpo(p: float, r: float, a: float, h: float) -> Judged:
    low = 0.5 + 0.5 * math.sqrt(max(1 - 4 * 0.16 / p, 0))
    return clip(p, r, a, low, min(0.5 + 0.5 * math.sqrt(1 + 4 * 0.2 / p), 10), 10)


def dppo_kl(p: float, r: float, a: float, h: float) -> Judged:
    """The mask asks for the divergence itself; no bound is solved for."""
    outward = "high" if a > 0 and r > 1 else "low" if a < 0 and r < 1 else ""
    removed = outward if r * p < 1 and binary_kl(p, r * p) > 0.05 else ""
    return Judged(0.0 if removed else r * a, math.nan, math.nan, removed)


def cispo(p: float, r: float, a: float, h: float) -> Judged:
    return Judged(min(r, 5) * a, 0, 5)


def cfpo(p: float, r: float, a: float, h: float) -> Judged:
    return Judged(r * a - abs(a) * (r - 1) / 0.2 * r, 0.8, 1.2)


RULES: dict[str, Rule] = {
    "grpo": grpo,
    "band_tv": band_tv,
    "dcpo": dcpo,
    "dppo_kl": dppo_kl,
    "cispo": cispo,
    "cfpo": cfpo,
    "gspo": lambda p, r, a, h: clip(p, r, a, 1 - 3e-4, 1 + 4e-4, 10),
}
NAMES = ",".join(RULES)


def tokens_of(rule: Rule, sequence_level: bool) -> list[dict]:
    """A record for every token, all by definition."""
    records = []
    for sequence in sequences_of(BATCHES):
        log_ratios = [x - y for x, y in zip(sequence["logp"], sequence["old_logp"], strict=True)]
        mean = sum(log_ratios) / len(log_ratios)
        for k, log_ratio in enumerate(log_ratios):
            old, a = sequence["old_logp"][k], sequence["advantages"][k]
            r = math.exp(mean if sequence_level else log_ratio)
            judged = rule(math.exp(old), r, a, sequence["entropy"][k])
            records.append(
                {
                    "cell": (
                        BINS[sum(old >= math.log(edge) for edge in EDGES)],
                        SIGNS[(a > 0) - (a < 0) + 1],
                    ),
                    "unclipped": math.exp(log_ratio) * abs(a),
                    **judged._asdict(),
                    "reversed": abs(judged.gradient) if judged.gradient * a < 0 else 0.0,
                }
            )
    return records


def total(records: list[dict], key: str) -> float:
    return sum(abs(record[key]) for record in records)


def share(records: list[dict], kind: str) -> float:
    return sum(record["removed"] == kind for record in records) / len(records)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_dump(dump_path(tmp_path_factory.mktemp("run"), 10, 0), BATCHES)


@pytest.fixture(scope="module")
def replayed(path) -> Replay:
    return replay([path], load_methods(NAMES))


@pytest.mark.parametrize("name", RULES)
def test_every_cell_and_the_total(replayed, name):
    records = tokens_of(RULES[name], sequence_level=name == "gspo")
    part = next(part for part in replayed.methods if part.method.name == name)
    cells = part.cells()
    assert sum(cell["tokens"] for cell in cells) == replayed.tokens == len(records)
    for cell in cells:
        inside = [r for r in records if r["cell"] == (cell["bin"], cell["advantage"])]
        assert cell["tokens"] == len(inside)
        assert cell["clip_high_frac"] == pytest.approx(share(inside, "high"))
        assert cell["clip_low_frac"] == pytest.approx(share(inside, "low"))
        assert cell["dual_clip_frac"] == pytest.approx(share(inside, "dual"))
        if cell["advantage"] == "zero":
            assert cell["gradient_kept"] is None
            continue
        mass = total(inside, "unclipped")
        assert cell["gradient_kept"] == pytest.approx(total(inside, "gradient") / mass, rel=1e-4)
        assert cell["gradient_reversed"] == pytest.approx(
            total(inside, "reversed") / mass, rel=1e-4, abs=1e-9
        )
        if not math.isnan(inside[0]["low"]):
            for bound in ("low", "high"):
                mean = total(inside, bound) / len(inside)
                assert cell[f"{bound}_mean"] == pytest.approx(mean, rel=1e-4, abs=1e-7)
    mass = total(records, "unclipped")
    assert part.total()["gradient_kept"] == pytest.approx(total(records, "gradient") / mass, 1e-4)
    assert part.total()["clip/high_frac"] == pytest.approx(share(records, "high"))


def test_the_dump_reaches_every_case():
    """What the comparison above would otherwise pass over."""
    assert {r["removed"] for r in tokens_of(grpo, False)} == {"", "high", "low", "dual"}
    assert total(tokens_of(cfpo, False), "reversed") > 0
    assert share(tokens_of(dppo_kl, False), "high") > 0 < share(tokens_of(dppo_kl, False), "low")


def test_a_radius_that_follows_the_entropy(path):
    def masked(p: float, r: float, a: float, h: float) -> Judged:
        outward = "high" if a > 0 and r > 1 else "low" if a < 0 and r < 1 else ""
        outside = r * p < 1 and binary_kl(p, r * p) > 0.01 + 0.2 * min(h / 2, 1)
        return Judged(0.0, math.nan, math.nan, outward if outside else "")

    records = tokens_of(masked, sequence_level=False)
    name = "band_kl_entropy:delta_min=0.01:delta_max=0.21:entropy_scale=2"
    (part,) = replay([path], load_methods(name)).methods
    # Elsewhere the cap of 10 and the dual clip act as well.
    for cell in part.cells():
        place = (cell["bin"], cell["advantage"])
        if place in {("0.1_0.5", "positive"), ("0.5_0.9", "positive"), ("0.5_0.9", "negative")}:
            inside = [record for record in records if record["cell"] == place]
            removed = cell["clip_high_frac"] + cell["clip_low_frac"]
            assert removed == pytest.approx(1 - share(inside, "")) and removed > 0


@pytest.mark.parametrize("chunk", [50, 1000])
def test_chunks_and_files_do_not_show(replayed, tmp_path, chunk):
    files = [write_dump(tmp_path / f"step_{i}.parquet", [b]) for i, b in enumerate(BATCHES)]
    split = replay(files, load_methods(NAMES), chunk=chunk)
    assert (split.tokens, split.sequences) == (replayed.tokens, replayed.sequences)
    for a, b in zip(split.methods, replayed.methods, strict=True):
        torch.testing.assert_close(a.gradient, b.gradient, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.diagnostics.sums, b.diagnostics.sums, rtol=1e-5, atol=1e-5)


def of_samples(batch, first):
    """The batch with values of its samples, whose numbers begin with `first`."""
    rows = torch.arange(len(batch.mask), dtype=torch.float32)[:, None].expand_as(batch.mask)
    return dataclasses.replace(
        batch, number=rows + first, pass_rate=(rows % 5) / 4, dual=0.5 + rows % 3
    )


@pytest.mark.parametrize("chunk", [50, 1 << 18])
def test_rules_of_the_whole_batch_see_each_update_of_all_ranks_as_one(tmp_path, chunk):
    batches = [of_samples(batch, 60 * i) for i, batch in enumerate(BATCHES)]
    updates = [batches[:2], batches[2:]]  # each of two ranks
    files = [
        write_dump(dump_path(tmp_path, 10, rank), [update[rank] for update in updates])
        for rank in (0, 1)
    ]
    names = "m2po,kl_cov:loss.surrogate.share=0.05,clip_cov:loss.surrogate.share=0.05,bapo"
    methods = load_methods(f"{names},elastic,query_kl")
    found = replay(files, methods, chunk=chunk)
    assert not found.skipped
    alone = 0
    for part in found.methods:
        kept = 0.0
        for update in updates:
            whole = TokenBatch(
                **{
                    f.name: torch.cat([getattr(batch, f.name) for batch in update])
                    for f in dataclasses.fields(TokenBatch)
                    if isinstance(getattr(update[0], f.name), torch.Tensor)
                },
                step=10,
            )
            kept += part.method.judge(whole).gradient.abs().sum().item()
        assert part.gradient[..., 1].sum().item() == pytest.approx(kept, rel=1e-4)
        by_rank = sum(part.method.judge(b).gradient.abs().sum().item() for b in batches)
        alone += abs(by_rank - kept) > 1e-3 * kept
    assert alone >= 3  # what each rank would have done by itself is another thing


def test_records_of_earlier_versions_lack_what_rules_of_samples_read(tmp_path):
    path = write_dump(tmp_path / "now.parquet", [of_samples(BATCHES[0], 0)])
    table = pq.read_table(path).drop_columns(list(OF_SAMPLES))
    pq.write_table(table, tmp_path / "then.parquet")
    found = replay([tmp_path / "then.parquet"], load_methods("grpo,m2po,clip_cov,query_kl"))
    assert [part.method.name for part in found.methods] == ["grpo", "m2po"]
    assert "number" in found.skipped["clip_cov"] and "dual" in found.skipped["query_kl"]


def test_without_entropy_its_methods_are_left_out_in_words(tmp_path):
    bare = [dataclasses.replace(batch, entropy=None) for batch in BATCHES]
    path = write_dump(tmp_path / "bare.parquet", bare)
    result = replay([path], load_methods("grpo,band_kl_entropy"))
    assert [part.method.name for part in result.methods] == ["grpo"]
    assert "entropy" in result.skipped["band_kl_entropy"]
    with pytest.raises(UserError, match=r"no method can be replayed(.|\n)*entropy"):
        replay([path], load_methods("band_kl_entropy"))


def test_no_tokens_is_an_error(tmp_path):
    path = write_dump(tmp_path / "empty.parquet", [])
    with pytest.raises(UserError, match=r"empty\.parquet: no tokens"):
        replay([path], load_methods("grpo"))


PEAK = """
import json, sys, torch
from pathlib import Path
from bandpo.methods.method import load_methods
from bandpo.methods.records import count_tokens
from bandpo.methods.replay import replay
torch.set_num_threads(1)
path, methods = Path(sys.argv[1]), load_methods("grpo,gspo")
assert replay([path], methods).tokens == count_tokens(path)
heavy = {"vllm", "deepspeed", "transformers"} & sys.modules.keys()
# Not ru_maxrss, which a child takes over from its parent.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps([int(status["VmHWM"].split()[0]) / 1024, sorted(heavy)]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is Linux's")
def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak_mib(updates: int) -> float:
        batches = (random_batch(seed, sequences=512, tokens=1024) for seed in range(updates))
        path = write_dump(tmp_path / f"{updates}.parquet", batches)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(path)],
            # What is freed goes back at once, so that the peak is what was in use.
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=True,
        )
        peak, heavy = json.loads(done.stdout)
        assert heavy == []
        return float(peak)

    # 0.5 and 3.1 million tokens: 12 and 72 MiB of columns.
    small, large = peak_mib(2), peak_mib(12)
    assert large < small + 40
