"""Verdicts from the sampled tokens to the report: nothing is lost, and they add up."""

import dataclasses
import json
import re
from itertools import pairwise

import pytest
import torch
from eval_fakes import fake_task, run
from rich.console import Console
from tokenizers import AddedToken
from transformers import Qwen2Config, Qwen2ForCausalLM

from bandpo.cli import main
from bandpo.evaluation.report import summary_table, write_report
from bandpo.evaluation.samples import Sample, read_samples
from bandpo.evaluation.summary import read_summaries, summarize, write_summaries
from bandpo.model.embedded import build_tokenizer
from bandpo.reward.score import STATUSES, VERDICTS

CHAIN = ["<|assistant|>", "<think>", "7", "</think>", r"\boxed{", "9", "}", "<|end|>"]


def write_reasoner(folder, special):
    """A model that writes `<think>7</think>\\boxed{9}` and ends.

    One layer that adds nothing, embeddings at right angles: each token says which one follows.
    """
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(tag, special=special) for tag in ("<think>", "</think>")])
    size = 8 * (len(tokenizer) // 8 + 1)
    config = Qwen2Config(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for before, after in pairwise(tokenizer.convert_tokens_to_ids(CHAIN)):
            model.lm_head.weight[after, before] = 10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("special", [True, False])
def test_reasoning_tags_reach_the_verifier_and_the_samples(tmp_path, capsys, special):
    write_reasoner(tmp_path / "model", special)
    problems, out = tmp_path / "nine.jsonl", tmp_path / "out"
    problems.write_text("".join(f'{{"problem": "4+5+{i}-{i}", "answer": "9"}}\n' for i in range(3)))
    command = ["eval", f"model={tmp_path / 'model'}", f"benchmarks=['file:{problems}']"]
    assert main([*command, f"out={out}", "rollout=hf", "eval.n=4", "eval.max_tokens=24"]) == 0
    shown = capsys.readouterr().out
    (summary,) = read_summaries(out).values()
    assert summary.metrics["mean@4"].value == 1.0
    texts = {sample.completion for sample in read_samples(out / "nine.jsonl")}
    assert texts == {r"<think>7</think>\boxed{9}"}
    assert re.search(r"correct\W+100\.0", shown) and re.search(r"truncated\W+0\.0", shown)


def with_verdicts(folder):
    """A benchmark of which every verdict is a part, of two problems with eight samples."""
    run(folder)
    first = read_samples(folder / "toy.jsonl")[0]
    statuses = [("wrong", "unparsed"), *((status, "") for status in STATUSES)]
    groups = [
        [
            dataclasses.replace(first, problem_id=id, sample=i, status=status, detail=detail)
            for i, (status, detail) in enumerate(order)
        ]
        for id, order in (("a", statuses), ("b", statuses[:4] * 2))
    ]
    return groups, summarize("toy", {"n": 8}, groups)


def test_every_verdict_has_a_share_and_they_add_up(tmp_path):
    groups, summary = with_verdicts(tmp_path)
    shares = {verdict: summary.metrics[f"{verdict}_frac"].value for verdict in VERDICTS}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert {sample.verdict for group in groups for sample in group} == set(VERDICTS)
    assert shares["correct"] == summary.metrics["mean@8"].value == pytest.approx(3 / 16)
    assert shares["unparsed"] == shares["wrong"] == shares["no_answer"] == pytest.approx(3 / 16)
    assert shares["bad_gold"] == shares["crashed"] == pytest.approx(1 / 16)
    for result in summary.problems:
        assert sum(result.statuses.values()) == result.n
    assert summary.scalars()["eval/toy/truncated_frac"] == shares["truncated"]


def test_table_and_report_show_every_verdict(tmp_path):
    groups, summary = with_verdicts(tmp_path)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table([summary]))
    rows = dict(re.findall(r"│ ([a-z ]+?)(?: \[%\])? +│ +([\d.]+)", console.export_text()))
    assert sum(float(rows[v.replace("_", " ")]) for v in VERDICTS) == pytest.approx(100, abs=0.5)
    summary = dataclasses.replace(summary, settings={"n": 8, "model": {}})
    write_summaries(tmp_path, [summary])
    lines = [json.dumps(dataclasses.asdict(s)) for group in groups for s in group]
    (tmp_path / "toy.jsonl").write_text("\n".join(lines) + "\n")
    page = write_report(tmp_path).read_text()
    for verdict in VERDICTS:
        assert f"<tr><td>{verdict.replace('_', ' ')}" in page
        assert f'<span class="{verdict}">{verdict.replace("_", " ")}</span>' in page


def test_samples_and_summaries_of_earlier_versions_are_read(tmp_path):
    run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "toy.jsonl").open()]
    old = [{key: value for key, value in row.items() if key != "detail"} for row in rows]
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    samples = read_samples(tmp_path / "toy.jsonl")
    assert [s.verdict for s in samples] == [row["status"] for row in rows]
    assert isinstance(samples[0], Sample) and run(tmp_path).problems == run(tmp_path).problems

    summary = run(tmp_path, task=fake_task(1), resume=False)
    path = write_summaries(tmp_path, [dataclasses.replace(summary, settings={"n": 4, "model": {}})])
    content = json.loads(path.read_text())
    metrics = content["toy"]["metrics"]
    for name in ("correct_frac", "wrong_frac", "unparsed_frac", "truncated_frac"):
        del metrics[name]
    metrics["mean@4"] |= {"low": 0.5, "high": 0.5}  # an interval of no width, from one problem
    path.write_text(json.dumps(content))
    (found,) = read_summaries(tmp_path).values()
    assert found.metrics["mean@4"].low is None
    assert "[?]" in write_report(tmp_path).read_text()
