"""Which changes a run survives: the marks of the schema, the hash, and the list of differences."""

import pytest
import yaml

from bandpo.config.composition import compose
from bandpo.config.identity import UNCHANGED, _complete, changes, config_hash, effect_of
from bandpo.config.schema import Config


def config(*overrides: str) -> Config:
    return compose("train", overrides, Config)


@pytest.mark.parametrize(
    ("override", "effect"),
    [
        ("seed=1", "determining"),
        ("learner.lr=1e-3", "determining"),
        ("learner.zero_stage=2", "determining"),
        ("rollout.temperature=0.9", "determining"),
        ("data.train.count=64", "determining"),
        ("method.delta=0.1", "determining"),
        ("reward.timeout=5", "determining"),
        ("+rollout.engine.seed=3", "determining"),
        ("learner.micro_batch_tokens=512", "rounding"),
        ("rollout.engine.max_num_seqs=8", "rounding"),
        ("run.name=other", "harmless"),
        ("trainer.steps=99", "harmless"),
        ("eval.n=4", "harmless"),
        ("tracking.trackers=[tensorboard]", "harmless"),
        ("reward.workers=7", "harmless"),
        ("rollout.probe_tolerance=0.5", "harmless"),
    ],
)
def test_a_change_is_found_by_its_effect(override, effect):
    before, after = config(), config(override)
    found = changes(before, after)
    key = override.split("=")[0].lstrip("+")
    assert effect_of(key) == effect
    assert any(line.startswith(f"{key}: ") for line in found.determining) == (
        effect == "determining"
    )
    assert [line.split(":")[0] for line in found.rounding] == [key] * (effect == "rounding")
    assert (config_hash(before) != config_hash(after)) == (effect == "determining")


def test_a_value_that_others_take_over_is_listed_where_it_is_used():
    found = changes(config(), config("method.delta=0.1")).determining
    assert "method.delta: 0.05 → 0.1" in found
    assert any(line.startswith("method.loss.") for line in found)
    assert changes(config(), config("method=grpo")).determining[0].startswith("method.")


def test_a_file_of_a_run_says_the_same_as_the_configuration_it_was_written_from():
    now = config("learner.betas=[0.9,0.95]")
    written = yaml.safe_load(yaml.safe_dump(now.model_dump(mode="json")))
    assert config_hash(written) == config_hash(now)
    assert changes(written, now).determining == ()
    # A key that the schema did not have yet when the run began counts as at its default.
    del written["learner"]["weight_decay"]
    assert config_hash(written) == config_hash(now)
    assert (
        "learner.weight_decay: 0.0 → 0.1"
        in changes(
            written, config("learner.betas=[0.9,0.95]", "learner.weight_decay=0.1")
        ).determining
    )


def test_a_run_that_filtered_by_reward_goes_on_filtering_by_reward():
    old = config("rollout.filter_groups=reward").model_dump(mode="json")
    old["rollout"]["filter_groups"] = True  # its only meaning then
    assert config_hash(old) == config_hash(config("rollout.filter_groups=reward"))
    changed = changes(old, config("rollout.filter_groups=true")).determining
    assert changed == ("rollout.filter_groups: reward → accuracy",)
    old["rollout"]["filter_groups"] = False
    assert changes(old, config()).determining == ()


@pytest.mark.parametrize(("then", "now"), [(True, "strict"), (False, "off")])
def test_true_and_false_of_lowest_form_are_strict_and_off(then, now):
    old = config().model_dump(mode="json")
    assert old["reward"]["lowest_form"] == "restated"
    old["reward"]["lowest_form"] = then
    assert config_hash(old) == config_hash(config(f"reward.lowest_form={now}"))
    assert changes(old, config(f"reward.lowest_form={now}")) == ((), ())
    # the rewards of a run do not change under way
    assert changes(old, config()).determining == (f"reward.lowest_form: {then} → restated",)


def test_a_warm_up_that_was_counted_in_updates_goes_on_being_so():
    old = config().model_dump(mode="json")
    for key in ("warmup_updates", "warmup_rollouts"):
        del old["learner"][key]
    assert changes(old | {"learner": old["learner"] | {"warmup_steps": 0}}, config()) == ((), ())
    old["learner"]["warmup_steps"] = 10
    assert changes(old, config("learner.warmup_updates=10")).determining == ()
    assert changes(old, config("learner.warmup_rollouts=10")).determining == (
        "learner.warmup_rollouts: 0 → 10",
        "learner.warmup_updates: 10 → 0",
    )


def test_every_mark_is_one_that_means_something():
    def marks(schema):
        for field in schema.model_fields.values():
            extra = field.json_schema_extra or {}
            mark = extra.get("resume", {})
            yield from (mark.values() if isinstance(mark, dict) else [mark])
            if hasattr(field.annotation, "model_fields"):
                yield from marks(field.annotation)

    found = set(marks(Config))
    assert found == {"harmless", "rounding"}


@pytest.mark.parametrize("engine", ["hf", "vllm_local"])
def test_engines_without_a_setting_that_was_renamed_have_a_hash_too(engine):
    hashed = config_hash(compose("train", [f"rollout={engine}"], Config))
    assert len(hashed) == 16


def test_keys_that_came_later_at_their_neutral_values_are_in_no_hash():
    now = config()
    old = now.model_dump(mode="json")
    for key in ("schedule", "min_lr_ratio", "decay_share"):
        del old["learner"][key]
    for key in [key for key in old["method"] if key.startswith("entropy_")]:
        del old["method"][key]
    del old["method"]["loss"]["entropy"]
    assert config_hash(old) == config_hash(now)
    assert changes(old, now) == ((), ())
    assert not any(key in UNCHANGED for key in _complete(now))
    for override in (
        "learner.schedule=cosine",
        "method.entropy_coef=0.001",
        "method.entropy_floor=0.2",
    ):
        changed = config(override)
        assert config_hash(changed) != config_hash(now)
        key, _, value = override.partition("=")
        found = changes(old, changed).determining
        assert f"{key}: {UNCHANGED[key]} → {value}" in found
        assert not any("_target_" in line for line in found)


def test_the_number_of_steps_is_part_of_a_schedule():
    more = "trainer.steps=99"
    assert config_hash(config()) == config_hash(config(more))
    cosine = config("learner.schedule=cosine")
    assert config_hash(cosine) != config_hash(config("learner.schedule=cosine", more))
    assert changes(cosine, config("learner.schedule=cosine", more)) == ((), ())
