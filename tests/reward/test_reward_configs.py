from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bandpo.errors import UserError
from bandpo.reward import Compared, Shaped
from bandpo.types import Completion, Group, Problem, Prompt

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path.stem for path in (CONFIGS / "reward").glob("*.yaml"))


def reward(name, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(overrides=[f"+reward={name}", "+rollout.max_tokens=100", *overrides])
    OmegaConf.resolve(config)
    return instantiate(config.reward)


def values(reward, *texts, tokens=1):
    completions = tuple(Completion(t, (0,) * tokens, (0.0,) * tokens, "stop") for t in texts)
    with reward:
        scores = reward.submit(Group(Prompt(Problem("p", "?", "42"), "?", ()), completions))
        return [score.value for score in scores.result(timeout=60)]


RIGHT, WRONG = "\\boxed{42}\nAnswer: 42", "\\boxed{41}\nAnswer: 41"


@pytest.mark.parametrize("name", FILES)
def test_every_file_instantiates(name):
    right, wrong = values(reward(name), RIGHT, WRONG)
    assert right == 1.0 and wrong == (-1.0 if name == "release" else 0.0)


@pytest.mark.parametrize("name", FILES)
def test_values_and_the_overlong_penalty_compose(name):
    chosen = ["reward.correct=2", "reward.wrong=-3", "reward.format_bonus=0.5"]
    overlong = ["reward.overlong={buffer: 50, penalty: 1.0}"]
    assert values(reward(name, *chosen), RIGHT, WRONG) == [2.5, -2.5]
    assert values(reward(name, *chosen, *overlong), RIGHT, tokens=75) == [2.0]


@pytest.mark.parametrize(
    ("overrides", "form"),
    [
        ((), "restated"),
        (("+eval.lowest_form=off",), "off"),
        (("reward.lowest_form=strict",), "strict"),
        (("reward.lowest_form=true",), "strict"),
        (("reward.lowest_form=false",), "off"),
        (("reward.lowest_form=off", "+eval.lowest_form=strict"), "off"),
    ],
)
def test_what_counts_follows_from_training_or_evaluation_unless_it_is_set(overrides, form):
    with reward("math", *overrides) as made:
        assert made.verifier.lowest_form == form


def test_evaluations_count_every_equal_answer():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("eval", overrides=["model=embedded"])
        assert config.reward.lowest_form == "off"
        assert "lowest_form" not in compose("eval", overrides=["reward=release"]).reward


def test_both_reports():
    both = reward("both")
    assert isinstance(both, Compared)
    values(both, "\\boxed{42}")
    assert both.report.summary()["only_math_correct"] == 1


def test_the_limit_is_the_rollouts():
    shaped = reward("math", "reward.overlong={buffer: 50}")
    assert isinstance(shaped, Shaped)
    assert shaped.terms[0].max_tokens == 100 and shaped.terms[0].penalty == 1.0
    shaped.close()


@pytest.mark.parametrize(
    "override",
    [
        "reward.overlong={buffer: 500}",
        "reward.overlong={penalty: 1.0}",
        "reward.overlong={buffer: 5, size: 3}",
        "reward.timeout=0",
        "reward.lowest_form=loose",
        "reward.workers=0",
        "reward.memory_mib=16",
    ],
)
def test_impossible_values_are_user_errors(override):
    with pytest.raises(Exception, match="reward") as error:
        reward("math", override)
    causes = [error.value, error.value.__cause__]
    assert any(isinstance(cause, UserError) for cause in causes)
