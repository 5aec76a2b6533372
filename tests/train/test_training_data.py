"""Samplers, weights and truncation in whole runs: on ranks, on resume, and in what they report."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from small_runs import LOW_BYTES, metrics_of, timeless

pytest.importorskip("deepspeed")

SUMS = "_target_: bandpo.data.arithmetic.problems, split: train"
SOURCES = (
    f"data.train={{sources: {{one: {{{SUMS}, count: 12, seed: 1, weight: 3}}, "
    f"two: {{{SUMS}, count: 8, seed: 2, weight: 1}}}}}}"
)
SETTINGS = [
    *("policy=embedded", "data=_own", "data.template=none", "data.max_prompt_tokens=64", SOURCES),
    *("method=grpo", "trainer.steps=6", "trainer.sample_every=1", "trainer.checkpoint_every=1"),
    *("trainer.keep_checkpoints=9", "eval.benchmarks=[]", "learner.updates_per_rollout=2"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.max_tokens=6"),
    *("sampler=rest", "data.sampler.in_a_row=1", "data.sampler.epochs=0.4", "learner.lr=1e-3"),
    *("data.sampler.low=0.25", "data.sampler.high=0.75", *LOW_BYTES, "+reward.threshold=0.5"),
]
DRAWN = ("reward/", "rollout/", "length/", "problems/", "source/")


def samples_of(folder):
    """The lines of each step's samples."""
    files = sorted((folder / "samples").glob("*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in files]


def problems_of(folder):
    return (folder / "problems.jsonl").read_text()


def cut_back(whole, folder, step):
    """A copy of a run whose checkpoints after a step are lost."""
    shutil.copytree(whole, folder, symlinks=True)
    checkpoints = folder / "checkpoints"
    for path in checkpoints.glob("step_*"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    (checkpoints / "latest").unlink()
    (checkpoints / "latest").symlink_to(f"step_{step:06d}")
    return folder


@pytest.fixture(scope="module")
def train(command, untrained):
    """Trains into a folder, which is returned."""

    def run(folder, *overrides) -> Path:
        arguments = ("train", *SETTINGS, "rollout=hf", f"model.path={untrained()}")
        assert command(*arguments, f"run.dir={folder}", *overrides) == 0
        return folder

    return run


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "alone")


def test_the_file_of_problems_is_that_of_the_samples(alone):
    found = {row["id"]: row for row in map(json.loads, problems_of(alone).splitlines())}
    rates: dict[str, list] = {}
    for step, lines in enumerate(samples_of(alone), start=1):
        for first in range(0, len(lines), 4):
            group = lines[first : first + 4]
            right = sum(line["status"] == "correct" for line in group)
            rates.setdefault(group[0]["problem_id"], []).append((step, right / 4))
    assert set(found) == set(rates) and len(rates) > 10
    for id, groups in rates.items():
        row, (last, rate) = found[id], groups[-1]
        assert (row["seen"], row["step"], row["pass_rate"]) == (len(groups), last, rate)
        assert row["mean_pass_rate"] == pytest.approx(sum(r for _, r in groups) / len(groups))
        rests = last + 2 >= 7 and (rate >= 0.75 or rate <= 0.25)
        expected = ("solved" if rate >= 0.75 else "failed") if rests else "active"
        assert row["state"] == expected and row["source"] == id.split("/")[0]
    assert problems_of(alone) == problems_of(alone / "checkpoints/latest")


def test_every_step_has_the_shares_of_the_sources_and_says_so(alone):
    for line, lines in zip(metrics_of(alone)[1:], samples_of(alone), strict=True):
        problems = [sample["problem_id"] for sample in lines[::4]]
        assert len(set(problems)) == 4
        assert Counter(id.split("/")[0] for id in problems) == {"one": 3, "two": 1}
        assert (line["source/one/share"], line["source/two/share"]) == (0.75, 0.25)
        of_one = [sample for sample in lines if sample["problem_id"].startswith("one/")]
        accuracy = sum(s["status"] == "correct" for s in of_one) / len(of_one)
        reward = sum(s["value"] for s in of_one) / len(of_one)
        assert line["source/one/accuracy"] == pytest.approx(accuracy)
        assert line["source/one/reward"] == pytest.approx(reward)


def test_problems_rest_and_return(alone):
    lines = metrics_of(alone)[1:]
    for line in lines:
        assert sum(line[f"problems/{s}"] for s in ("active", "solved", "failed")) == 20
    assert max(line["problems/solved"] + line["problems/failed"] for line in lines) > 2
    assert sum(line["problems/returned"] for line in lines) > 0


def test_two_ranks_draw_what_one_draws(alone, bandpo, untrained, tmp_path):
    own = ("rollout=hf", f"model.path={untrained()}", f"run.dir={tmp_path}", "trainer.steps=3")
    bandpo("train", *SETTINGS, *own, ranks=2)
    assert samples_of(tmp_path) == samples_of(alone)[:3]
    assert problems_of(tmp_path) == problems_of(alone / "checkpoints/step_000003")
    for found, expected in zip(metrics_of(tmp_path)[1:], metrics_of(alone)[1:], strict=False):
        drawn = {k: v for k, v in expected.items() if k.startswith(DRAWN)}
        assert len([name for name in drawn if name.startswith(("problems/", "source/"))]) == 10
        assert {key: found[key] for key in drawn} == drawn


@pytest.mark.parametrize("step", [1, 4])
def test_a_resumed_run_knows_what_it_knew(train, alone, tmp_path, step):
    folder = train(cut_back(alone, tmp_path / "stopped", step))
    assert timeless(folder) == timeless(alone)
    assert samples_of(folder) == samples_of(alone)
    assert problems_of(folder) == problems_of(alone)
    for place in range(step, 7):
        name = f"checkpoints/step_{place:06d}"
        states = [json.loads((f / name / "state.json").read_text()) for f in (folder, alone)]
        assert states[0]["sampler"] == states[1]["sampler"]
        assert problems_of(folder / name) == problems_of(alone / name)


def test_a_run_one_step_off_policy_that_refills_resumes_exactly(train, tmp_path):
    more = ("rollout=in_a_thread", "rollout.lag=1", "rollout.filter_groups=true")
    more += ("rollout.max_refills=3", "data.sampler._target_=bandpo.data.sampling.Rest")
    whole = train(tmp_path / "whole", *more)
    expected = timeless(whole, "rollout/overlap_s")
    assert sum(line["rollout/groups"] for line in expected[1:]) > 6 * 4
    # The rollout that waits at a checkpoint is on record there: its results are known.
    rows = [json.loads(x) for x in problems_of(whole / "checkpoints/step_000002").splitlines()]
    assert max(row["step"] for row in rows) == 3
    for step in (2, 3):
        folder = train(cut_back(whole, tmp_path / f"stopped{step}", step), *more)
        assert timeless(folder, "rollout/overlap_s") == expected
        assert samples_of(folder) == samples_of(whole)
        assert problems_of(folder) == problems_of(whole)


@pytest.fixture(scope="module")
def plain(command, untrained):
    """Trains on one source in shuffled epochs."""

    def run(folder, *overrides) -> Path:
        settings = [s for s in SETTINGS if "sampler" not in s and s not in ("data=_own", SOURCES)]
        own = ("data.train.count=16", "rollout=hf", f"model.path={untrained()}", "trainer.steps=3")
        assert command("train", *settings, *own, f"run.dir={folder}", *overrides) == 0
        return folder

    return run


def test_a_checkpoint_from_before_problems_were_kept_resumes(plain, tmp_path):
    whole = plain(tmp_path / "whole")
    assert not any(
        name.startswith(("problems/", "source/", "rollout/masked"))
        for line in metrics_of(whole)
        for name in line
    )
    assert {json.loads(x)["state"] for x in problems_of(whole).splitlines()} == {"active"}
    state = json.loads((whole / "checkpoints/latest/state.json").read_text())
    assert set(state["sampler"]) == {"epoch", "position", "seed", "fingerprint", "tokens"}

    folder = cut_back(whole, tmp_path / "old", 2)
    checkpoint = folder / "checkpoints/step_000002"
    (checkpoint / "problems.jsonl").unlink()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    files = manifest.get("files", manifest)
    del files["problems.jsonl"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    plain(folder)
    assert timeless(folder) == timeless(whole)
    rows = [json.loads(line) for line in problems_of(folder).splitlines()]
    assert len(rows) == 4 and {(row["step"], row["seen"]) for row in rows} == {(3, 1)}


def test_a_run_whose_samples_are_all_masked_takes_no_step(plain, tmp_path, capsys):
    folder = plain(
        tmp_path / "masked", "rollout.max_tokens=2", "rollout.truncated=mask", "trainer.steps=2"
    )
    for line, lines in zip(metrics_of(folder)[1:], samples_of(folder), strict=True):
        cut = sum(sample["truncated"] for sample in lines)
        assert line["rollout/masked_samples"] == cut >= 15
        assert line["learn/updates"] + line["learn/skipped"] <= 16 - cut
        assert all(value == value for value in line.values())  # no NaN
    assert "every completion was cut off" in " ".join(capsys.readouterr().out.split())


def test_a_penalty_is_off_the_reward_of_what_was_cut_off(plain, tmp_path):
    kept = plain(tmp_path / "kept", "trainer.steps=1")
    penalised = plain(
        *(tmp_path / "penalised", "trainer.steps=1", "rollout.truncated=penalise"),
        "rollout.truncated_penalty=0.25",
    )
    before, after = (metrics_of(folder)[1] for folder in (kept, penalised))
    assert 0 < before["length/truncated_frac"] <= 1
    lost = 0.25 * before["length/truncated_frac"]
    assert before["reward/mean"] - after["reward/mean"] == pytest.approx(lost)
    for was, now in zip(samples_of(kept)[0], samples_of(penalised)[0], strict=True):
        assert now["value"] == was["value"] - 0.25 * was["truncated"]
        assert now["status"] == was["status"]
