"""What a run asks its engine for."""

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.run.host import samples_at_a_time


def test_an_evaluation_asks_for_any_number_of_samples_and_a_step_for_its_own():
    asked = ["rollout.prompts_per_step=6", "rollout.group_size=8"]
    assert samples_at_a_time(compose("train", [*asked, "eval.benchmarks=[]"], Config)) == 48
    assert samples_at_a_time(compose("train", asked, Config)) is None
