"""The symptoms of docs/troubleshooting.md, provoked: what is printed is what the page quotes."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from printed_commands import blocks
from transformers import Gemma2Config

from bandpo.batching import Sample
from bandpo.cli import main
from bandpo.disk.lock import only_one
from bandpo.errors import RunHalted, UserError
from bandpo.evaluation.standalone import cut_or_unanswered
from bandpo.learner.layouts import PackedBatch
from bandpo.learner.memory import MicroBatches, OutOfMemory
from bandpo.learner.updates.result import UpdateResult
from bandpo.reward import MathReward, MathVerifier
from bandpo.run.nonfinite_guard import NonfiniteGuard
from bandpo.run.probe import prove_weights
from bandpo.types import Completion, Group, Problem, Prompt

PAGE = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text(encoding="utf-8")
ALONE = SimpleNamespace(rank=0, size=1, is_first=True, device="cpu", max=lambda tensor: tensor)


def quoted(section: str, start: str) -> re.Pattern[str]:
    """The message of a section that begins so, as a pattern of what is printed."""
    text = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]
    lines = [line for block in blocks(text, "text") for line in block.splitlines()]
    (found,) = (line for line in lines if line.startswith(start))
    return re.compile(".*?".join(map(re.escape, found.split("…"))), re.DOTALL)


def is_said(section: str, start: str, text: str) -> bool:
    return bool(quoted(section, start).search(" ".join(text.split())))


@pytest.fixture
def small(command, untrained, tmp_path, capfd):
    """Trains an untrained policy for a step of 4 tokens each; the exit code and all output."""
    pytest.importorskip("deepspeed")
    rows = [{"problem": f"Compute {i}+1.", "answer": str(i + 1)} for i in range(4)]
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        *("rollout=hf", "policy=embedded", f"model.path={untrained()}", f"data.train={data}"),
        *("trainer.steps=1", "eval.benchmarks=[]", f"run.dir={tmp_path / 'run'}"),
        *("rollout.prompts_per_step=2", "rollout.group_size=2", "rollout.max_tokens=4"),
        "learner.updates_per_rollout=1",
    ]

    def train(*more):
        code = command("train", *settings, *more)
        return code, "".join(capfd.readouterr())

    train.data, train.folder = data, tmp_path / "run"
    return train


def test_a_run_that_learns_nothing_and_then_refuses_to_be_another(small):
    alarm = "{_target_: bandpo.alarms.Below, metric: policy/entropy, limit: 100, action: stop}"
    code, said = small(f"alarms=[{alarm}]")
    assert code == 1
    assert is_said("Loss is 0", "the rewards of every group", said)
    assert is_said("Reward is always 0", "nearly all completions", said)
    assert is_said("Entropy collapses", "stopped after step", said)
    code, said = small("trainer.resume=never", "rollout.truncated=mask")
    assert code == 0
    assert is_said("Loss is 0", "every completion was cut off", said)
    section = "Resume is refused"
    code, said = small("rollout.truncated=mask", "learner.lr=0.5")
    assert code == 2 and is_said(section, "… cannot resume from", said)
    assert "learner.lr: 0.0002 → 0.5" in said
    with small.data.open("a") as file:
        file.write('{"problem": "Compute 9+9.", "answer": "18"}\n')
    code, said = small("rollout.truncated=mask", "trainer.steps=2")
    assert code == 2 and is_said(section, "cannot continue", said)
    code, said = small("rollout.truncated=mask", f"trainer.resume={small.folder}")
    assert code == 2 and is_said(section, "trainer.resume=", said)
    with only_one(small.folder):
        code, said = small("rollout.truncated=mask")
    assert code == 2 and is_said("Hangs at start", "…: another process", said)


@pytest.mark.parametrize(("version", "start"), [(1, "before any update"), (2, "after weight sync")])
def test_the_probe(version, start):
    completion = Completion("", (3, 4, 5), (0.0,) * 3, "stop")
    group = Group(Prompt(Problem("q", "q", "1"), "q", (1, 2)), (completion,))
    engine = SimpleNamespace(
        replicas=1,
        name="some",
        weight_version=version,
        logprobs=lambda prompt, completions: [[-1.0] * 3] * len(completions),
    )
    lm = SimpleNamespace(config=Gemma2Config())
    learner = SimpleNamespace(lm=lm, logprobs=lambda samples: [[-2.0] * 3] * len(samples))
    with pytest.raises((UserError, RuntimeError)) as error:
        prove_weights(engine, learner, group, ALONE, 1e-3)
    assert is_said("The probe stops the run", start, str(error.value))


def test_memory(caplog):
    section = "Out of memory"
    samples = [Sample((1,) * 5, (index,) * 15, 0.0, torch.zeros(15)) for index in range(3)]
    ranks = SimpleNamespace(size=1, device="cpu", max=lambda tensor: tensor, any=bool)
    batches = MicroBatches(100, PackedBatch, ranks, 0)
    batches.halve(samples)
    assert is_said(section, "out of memory", caplog.text)
    with pytest.raises(RunHalted) as error:
        batches.halve(samples)
    assert is_said(section, "a single sample", str(error.value))
    sharded = MicroBatches(100, PackedBatch, SimpleNamespace(**{**vars(ranks), "size": 2}), 3)
    with pytest.raises(torch.OutOfMemoryError) as error, sharded.forward(last=True):
        raise torch.OutOfMemoryError("injected")
    assert not isinstance(error.value, OutOfMemory)
    assert is_said(section, "Micro-batches of", error.value.__notes__[0])


def test_a_plan_that_does_not_fit(capsys):
    model = "model.path=deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    assert main(["plan", "--cluster", "1xH100", model, "data.train=my.jsonl"]) == 2
    assert is_said("Out of memory", "it does not fit on", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("loss", "nonfinite", "cause"),
    [
        (float("nan"), ("p1/0",), "samples with nonfinite values: p1/0"),
        (1.0, (), "the values of every sample are finite: it overflowed on the way"),
    ],
)
def test_nonfinite_numbers(loss, nonfinite, cause, tmp_path):
    section, said = "NaN or nonfinite numbers", []
    ranks = SimpleNamespace(rank=0, is_first=True, barrier=lambda: None)
    guard = NonfiniteGuard(1, tmp_path, ranks, said.append)
    result = UpdateResult(loss, float("inf"), 1e-6, skipped=True, nonfinite=nonfinite)
    with pytest.raises(RunHalted) as error:
        guard.check(result, [], 7)
    assert is_said(section, "step …: update skipped", said[0]) and said[0].endswith(cause)
    assert is_said(section, "step …: … update(s)", str(error.value))
    assert cause.partition(":")[0] in PAGE


def test_an_evaluation_that_reads_no_answers():
    metrics = {"length/truncated_frac": 0.9, "no_answer_frac": 0.8}
    summary = SimpleNamespace(
        metrics={name: SimpleNamespace(value=value) for name, value in metrics.items()},
        settings={"max_tokens": 64, "template": "boxed"},
    )
    cut, silent = cut_or_unanswered(summary)
    section = "Accuracy differs from the paper or another framework"
    assert is_said(section, "… of the completions were", cut)
    assert is_said(section, "… of the completions hold", silent)


def test_a_reference_that_cannot_be_read(caplog):
    prompt = Prompt(Problem("p1", "1+1", r"\frac{"), "1+1", (1,))
    with MathReward(MathVerifier(workers=1)) as reward:
        scores = reward.submit(Group(prompt, (Completion(r"\boxed{2}", (1,), (0.0,), "stop"),)))
        assert [score.status for score in scores.result()] == ["bad_gold"]
    assert is_said("Reward is always 0", "problem …: the reference answer", caplog.text)
