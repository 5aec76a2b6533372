"""An evaluation's numbers follow from its settings alone: not from kills, ranks or order."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from eval_fakes import SAMPLING, FakeEngine, FakeReward, evaluate_into, fake_task, run
from small_runs import FIXTURES

from bandpo.errors import UserError
from bandpo.evaluation.evaluate import Evaluator
from bandpo.evaluation.metrics import best_per_problem, pass_per_problem
from bandpo.evaluation.samples import differences, read_samples
from bandpo.evaluation.store import SampleLog, Store
from bandpo.evaluation.summary import (
    per_problem_values,
    read_summaries,
    summarize,
    write_summaries,
)
from bandpo.reward.score import WorkerDied
from bandpo.rollout.engine import Sampling
from bandpo.rollout.scoring import RewardDied, RewardFailed


def lines(folder, name="toy"):
    return (folder / f"{name}.jsonl").read_text().splitlines()


def test_samples_and_summary_agree(tmp_path):
    summary = run(tmp_path)
    samples = read_samples(tmp_path / "toy.jsonl")
    assert len(samples) == 12 * 4
    table = np.array([[s.correct for s in samples if s.problem_id == f"p{i}"] for i in range(12)])
    assert summary.metrics["mean@4"].value == pytest.approx(table.mean())
    assert summary.metrics["pass@2"].value == pytest.approx(pass_per_problem(table, 2).mean())
    assert summary.metrics["best@4"].value == pytest.approx(best_per_problem(table, 4).mean())
    assert summary.metrics["length/mean"].value == np.mean([s.tokens for s in samples])
    truncated = np.mean([s.truncated for s in samples])
    assert 0 < truncated < 1
    assert summary.metrics["length/truncated_frac"].value == pytest.approx(truncated)
    for estimate in summary.metrics.values():
        assert estimate.low is None or estimate.low <= estimate.value <= estimate.high
    assert [p.id for p in summary.problems] == [f"p{i}" for i in range(12)]
    assert summary.problems[3].correct == table[3].sum()
    assert summary.scalars()["eval/toy/mean@4"] == summary.metrics["mean@4"].value
    one = json.loads(lines(tmp_path)[0])
    assert one["prompt"].startswith("<u>What is") and one["seed"] > 0
    for key in ("n", "temperature", "top_p", "max_tokens", "template", "dataset_sha256"):
        assert key in summary.settings
    assert summary.settings["engine"] == "fake"
    assert summary.settings["versions"]["torch"]


def test_seeds_follow_the_evaluation_seed_and_the_problem(tmp_path):
    first, second = FakeEngine(order_seed=1), FakeEngine(order_seed=2)
    a = run(tmp_path / "a", engine=first)
    b = run(tmp_path / "b", engine=second)
    assert first.seen != second.seen and a == b
    seeds = {prompt.seed for prompt in first.seen}
    assert len(seeds) == 12 and len({seed % 2**32 // 4 for seed in seeds}) == 12
    assert run(tmp_path / "c", seed=1).problems != a.problems


def test_benchmarks_of_one_evaluation_share_no_seeds(tmp_path):
    one = fake_task()
    tasks = [
        dataclasses.replace(one, benchmark=dataclasses.replace(one.benchmark, name=name))
        for name in ("a", "b")
    ]
    engine, reward = FakeEngine(), FakeReward()
    Evaluator(engine, reward, SAMPLING, 0, {}, {}).run(tasks, Store(tmp_path / "both"))
    together = [prompt.seed for prompt in engine.seen]
    assert len({seed % 2**32 // 4 for seed in together}) == 24
    alone = FakeEngine()
    Evaluator(alone, reward, SAMPLING, 0, {}, {}).run(tasks[1:], Store(tmp_path / "b"))
    assert {prompt.seed for prompt in alone.seen} == set(together[12:])


def test_killed_five_times_the_summary_is_the_same(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    folder = tmp_path / "killed"
    rng = random.Random(0)
    paths = (str(FIXTURES), *filter(None, [os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    processes = multiprocessing.get_context("forkserver")  # which imports for all of them
    processes.set_forkserver_preload(["eval_fakes"])
    kills, sizes = 0, [0]
    while kills < 5:
        process = processes.Process(target=evaluate_into, args=(folder, 0.05))
        process.start()
        grown = sizes[-1] + rng.randint(1, 2)  # killed as soon as one or two more groups are there
        while process.is_alive():
            done = len(lines(folder)) // 4 if (folder / "toy.jsonl").exists() else 0
            if done >= grown:
                process.kill()
                break
        process.join()
        assert process.exitcode == -signal.SIGKILL
        sizes.append(len(lines(folder)) // 4)
        with (folder / "toy.jsonl").open("a") as file:  # what a torn write would leave
            file.write('{"problem_id": "p3", "sam' if kills % 2 else lines(folder)[0] + "\n")
        kills += 1
    assert not (folder / "summary.json").exists()
    assert sizes == sorted(sizes) and sizes[-1] < 12
    last = processes.Process(target=evaluate_into, args=(folder, 0.0))
    last.start()
    last.join()
    assert last.exitcode == 0
    assert (
        read_summaries(folder)["toy"] == read_summaries(write_summaries(tmp_path, [whole]))["toy"]
    )
    assert sorted(lines(folder)) == sorted(lines(tmp_path / "whole"))


def test_a_finished_evaluation_generates_nothing_again(tmp_path):
    first = run(tmp_path)
    engine = FakeEngine()
    assert run(tmp_path, engine=engine) == first and engine.seen == []
    run(tmp_path, engine=engine, resume=False)
    assert len(engine.seen) == 12 and len(lines(tmp_path)) == 48


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": Sampling(n=8, max_tokens=6)},
        {"sampling": dataclasses.replace(SAMPLING, temperature=0.6)},
        {"sampling": dataclasses.replace(SAMPLING, top_p=0.95)},
        {"seed": 1},
        {"task": fake_task(11)},
        {"model": {"path": "another"}},
        {"scoring": {"rule": "another"}},
        {"task": dataclasses.replace(fake_task(), prompt_sha256="4567")},
    ],
)
def test_changed_settings_are_refused_and_nothing_is_lost(tmp_path, change):
    run(tmp_path)
    before = lines(tmp_path)
    with pytest.raises(UserError, match=r"another evaluation.*What differs:\n  - .* → "):
        run(tmp_path, **change)
    assert lines(tmp_path) == before


def test_samples_kept_under_an_id_that_now_means_another_problem_are_refused(tmp_path):
    """Neither the hash of the problems nor that of the templates looks at ids."""
    run(tmp_path)
    task = fake_task()
    a, b = task.prompts[2:4]
    relabelled = [
        dataclasses.replace(p, problem=dataclasses.replace(p.problem, id=q.problem.id))
        for p, q in ((a, b), (b, a))
    ]
    prompts = (*task.prompts[:2], *relabelled, *task.prompts[4:])
    with pytest.raises(UserError, match=r"toy\.jsonl holds samples of another problem .* 'p3'"):
        run(tmp_path, task=dataclasses.replace(task, prompts=prompts))


def test_where_the_data_lies_may_change(tmp_path):
    run(tmp_path)
    task = fake_task()
    moved = dataclasses.replace(task, benchmark=dataclasses.replace(task.benchmark, origin="b"))
    run(tmp_path, task=moved)
    assert differences({"n": 1, "a": 2}, {"n": 1, "a": 3, "b": 4}) == ["a: 2 → 3", "b: None → 4"]


class ThreadRank:
    """One of several ranks that are threads of this process."""

    def __init__(self, rank, slots, barrier):
        self.rank, self.size, self.slots, self.barrier = rank, len(slots), slots, barrier

    def gather(self, value):
        self.slots[self.rank] = value
        self.barrier.wait(60)
        everything = list(self.slots)
        self.barrier.wait(60)
        return everything

    def gather_to_first(self, value):
        everything = self.gather(value)
        return everything if self.rank == 0 else []


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_work_and_agree(tmp_path, size):
    alone = run(tmp_path / "alone")
    barrier, slots = threading.Barrier(size), [None] * size
    engines = [FakeEngine() for _ in range(size)]
    with ThreadPoolExecutor(size) as pool:
        futures = [
            pool.submit(
                run, tmp_path / "split", engine=engine, ranks=ThreadRank(rank, slots, barrier)
            )
            for rank, engine in enumerate(engines)
        ]
        first, *others = [future.result(60) for future in futures]
    assert first == alone and others == [None] * (size - 1)  # the first alone summarizes
    assert [len(engine.seen) for engine in engines] == [12 // size] * size
    assert sorted(lines(tmp_path / "split")) == sorted(lines(tmp_path / "alone"))
    names = [path.name for path in sorted((tmp_path / "split").iterdir())]
    assert names == ["summary.json", "toy.jsonl", "toy.settings.json"]


def test_what_other_ranks_left_is_kept(tmp_path):
    whole = run(tmp_path / "whole")
    folder = tmp_path / "left"
    folder.mkdir()
    samples = read_samples(tmp_path / "whole" / "toy.jsonl")
    groups = [samples[i : i + 4] for i in range(0, 48, 4)]
    (folder / "toy.settings.json").write_text((tmp_path / "whole/toy.settings.json").read_text())
    log = SampleLog(folder / "toy.jsonl")
    for group in groups[:3]:
        log.append(group)
    for group in groups[2:6]:  # the third was taken over just before the kill
        log.of_rank(1).append(group)
    engine = FakeEngine()
    assert run(folder, engine=engine) == whole
    assert len(engine.seen) == 6
    by_problem = sorted(read_samples(folder / "toy.jsonl"), key=lambda s: (s.problem_id, s.sample))
    assert by_problem == sorted(samples, key=lambda s: (s.problem_id, s.sample))
    assert not list(folder.glob("*.rank*"))


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("the pool is gone"), RewardFailed),
        (WorkerDied("the pool is gone"), RewardDied),
    ],
)
def test_a_failing_reward_stops_with_its_error_and_keeps_what_is_written(error, raised, tmp_path):
    class Failing(FakeReward):
        def judge(self, group):
            if group.problem.id == "p7":
                raise error
            return super().judge(group)

    with pytest.raises(raised, match="pool is gone"):
        run(tmp_path, reward=Failing())
    whole = run(tmp_path / "whole")
    assert run(tmp_path) == whole


def test_a_full_disk_costs_the_samples_and_not_the_numbers(tmp_path, at_most):
    whole, losses = run(tmp_path / "whole"), []
    with at_most(6000), pytest.raises(OSError):
        run(tmp_path / "alone")
    with at_most(6000):
        assert run(tmp_path / "training", resume=False, on_loss=losses.append) == whole
    samples, summary = losses
    assert "toy.jsonl is not kept" in samples and "the summary in" in summary
    assert not (tmp_path / "training/toy.jsonl").exists()


def test_progress_counts_the_ranks_own_problems(tmp_path):
    calls = []
    run(tmp_path, on_progress=lambda *call: calls.append(call))
    assert calls == [("toy", i, 12) for i in range(1, 13)]


def test_majority_ignores_space_and_unreadable_references_are_named(tmp_path):
    run(tmp_path)
    samples = read_samples(tmp_path / "toy.jsonl")[:4]
    texts = [("wrong", "1 /2"), ("wrong", "1/2"), ("correct", "3"), ("no_answer", None)]
    group = [
        dataclasses.replace(s, status=status, extracted=text)
        for s, (status, text) in zip(samples, texts, strict=True)
    ]
    settings = {"n": 4}
    assert summarize("toy", settings, [group]).metrics["maj@4"].value == 0
    group[1] = dataclasses.replace(group[1], extracted="2")
    summary = summarize("toy", settings, [group])
    assert summary.metrics["maj@4"].value == pytest.approx(1 / 3)
    assert per_problem_values(summary, "maj@4") == {group[0].problem_id: pytest.approx(1 / 3)}
    assert per_problem_values(summary, "pass@2") == {group[0].problem_id: 0.5}
    bad = [dataclasses.replace(s, status="bad_gold") for s in group]
    assert group[0].problem_id in summarize("toy", settings, [bad]).warnings[-1]


def test_wrong_samples_of_a_reward_that_names_no_answer_are_rivals(tmp_path):
    """One right of four is no majority, though the wrong ones are not known by name."""
    run(tmp_path)
    samples = read_samples(tmp_path / "toy.jsonl")[:4]

    def majority(*statuses):
        group = [
            dataclasses.replace(sample, status=status, extracted=None)
            for sample, status in zip(samples, statuses, strict=True)
        ]
        return summarize("toy", {"n": 4}, [group]).metrics["maj@4"].value

    assert majority("correct", "wrong", "wrong", "wrong") == 0
    assert majority("correct", "correct", "wrong", "wrong") == 0.5
    assert majority("correct", "wrong", "no_answer", "truncated") == 0.5
    assert majority("correct", "no_answer", "no_answer", "truncated") == 1


def test_unreadable_summaries_and_samples(tmp_path):
    with pytest.raises(UserError, match=r"summary\.json: no summary"):
        read_summaries(tmp_path)
    (tmp_path / "summary.json").write_text('{"toy": []}')
    with pytest.raises(UserError, match="no summary"):
        read_summaries(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="no readable samples"):
        read_samples(tmp_path / "a.jsonl")
