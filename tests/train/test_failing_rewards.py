"""A reward that goes wrong is named with its sample: at the start, or with all that was trained."""

import json

import failing_rewards
import pytest
from small_runs import CONFIGS, few, metrics_of, timeless

SMALL = [
    *("rollout=hf", "trainer.steps=3", "rollout.prompts_per_step=2", "rollout.group_size=2"),
    *("rollout.max_tokens=4", "learner.updates_per_rollout=1", "eval.benchmarks=[]"),
    *("trainer.checkpoint_every=0", "run.dir=run", CONFIGS),
]
A_STEP = 4  # completions


def function(name):
    partial_ = f"{{_target_: failing_rewards.{name}, _partial_: true}}"
    return f"reward={{_target_: bandpo.reward.FunctionReward, function: {partial_}}}"


def late(fault):
    partial_ = f"{{_target_: failing_rewards.late, _partial_: true, fault: {fault}}}"
    return f"+reward={{_target_: bandpo.reward.FunctionReward, threads: 1, function: {partial_}}}"


def own(fault):
    return f"+reward={{_target_: failing_rewards.OfItsOwn, fault: {fault}}}"


@pytest.fixture
def trained(command, untrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*overrides, healthy=10**9):
        failing_rewards.calls.update(seen=-2, **{"healthy until": healthy})  # two at the start
        given = {o.split("=")[0] for o in overrides}
        settings = [s for s in SMALL if s.split("=")[0] not in given]
        return command(
            "train",
            *settings,
            "policy=embedded",
            f"model.path={untrained()}",
            "~reward",
            *overrides,
        )

    return run


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (function("nothing"), ["failing_rewards.nothing returned None", "sample p"]),
        (function("not_a_number"), ["failing_rewards.not_a_number returned nan", "sample p"]),
        (function("broken"), ["failing_rewards.broken raised ZeroDivisionError", "line "]),
        (own("'one too few'"), ["failing_rewards.OfItsOwn returned 1 scores for the 2 samples"]),
        (own("numbers"), ["failing_rewards.OfItsOwn returned", "bandpo.reward.Score"]),
        (own("sick"), ["failing_rewards.OfItsOwn returned the value nan", "/1"]),
        (own("raises"), ["failing_rewards.OfItsOwn failed", "LookupError: no such file"]),
        (own("'no future'"), ["failing_rewards.OfItsOwn returned", "concurrent.futures.Future"]),
    ],
)
def test_a_reward_is_tried_before_anything_is_loaded(
    reward, said, trained, tmp_path, capsys, monkeypatch
):
    def loads(*arguments, **settings):
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr("bandpo.run.job.DeepSpeedLearner", loads)
    (tmp_path / "data.jsonl").write_text(
        "".join(
            json.dumps({"id": f"p{i}", "problem": f"{i}+1?", "answer": "1"}) + "\n" for i in "12"
        )
    )
    assert trained("+" + reward.lstrip("+"), "data.train=data.jsonl") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in told and "tried on the reference answer" in told
    for fragment in said:
        assert fragment in told, told
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("fault", ["returns nothing", "raises"])
def test_what_was_trained_before_a_reward_fails_is_kept(fault, lag, trained, tmp_path, capsys):
    settings = [late(f"'{fault}'"), "rollout=in_a_thread", f"rollout.lag={lag}"]
    if lag == 0:
        settings[1] = "rollout=hf"
    assert trained(*settings, "run.dir=quiet") == 0
    assert trained(*settings, healthy=2 * A_STEP) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in told
    assert "failing_rewards.late" in told and "for sample " in told
    assert "step 3: the reward failing_rewards.late" in told
    assert "Training up to step 2 is saved" in told
    # The function's own last lines; it is not tried again.
    assert ("return 1 / 0" in told) == (fault == "raises")
    assert failing_rewards.calls["seen"] <= 3 * A_STEP
    assert (tmp_path / "run/checkpoints/step_000002/hf/model.safetensors").exists()
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 1, 2]

    assert trained(*settings) == 0  # mended
    whole, quiet = timeless(tmp_path / "run"), timeless(tmp_path / "quiet")
    assert [line["step"] for line in whole] == [0, 1, 2, 3]
    if lag == 0:  # else the step after the failure is sampled by newer weights
        assert whole == quiet


def test_nothing_is_saved_where_nothing_was_trained(trained, tmp_path, capsys):
    assert trained(late("none"), healthy=0) == 2
    told = capsys.readouterr().err
    assert "failing_rewards.late returned None" in told and "is saved" not in told
    assert not (tmp_path / "run/checkpoints").exists()


def test_what_was_trained_before_an_evaluation_fails_is_kept(trained, tmp_path, capsys):
    settings = [late("none"), few(2), "eval.n=2", "trainer.eval_every=2"]
    assert trained(*settings, healthy=4 + 2 * A_STEP) == 2  # the first evaluation has four
    told = " ".join(capsys.readouterr().err.split())
    assert "the evaluation of step 2: the reward failing_rewards.late returned None" in told
    assert "Training up to step 2 is saved" in told
    lines = metrics_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2] and "policy/entropy" in lines[2]
    assert trained(*settings) == 0
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 1, 2, 3]
