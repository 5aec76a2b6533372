"""Stops as a command line, a file and a saved configuration have them; refusals in training."""

import json

import pytest
import yaml

from bandpo.config.composition import compose
from bandpo.config.identity import config_hash
from bandpo.config.schema import Config
from bandpo.config.sections.sampling import stop_ids, stop_texts
from bandpo.errors import UserError
from bandpo.evaluation.eval_config import EvalCommand, sampling_in


def train(*overrides):
    return compose("train", overrides, Config)


def evaluation(*overrides):
    return compose("eval", ["model=m", *overrides], EvalCommand)


@pytest.mark.parametrize(
    ("given", "texts", "ids"),
    [
        (r'["\n\nQuestion:", 151643]', ("\n\nQuestion:",), (151643,)),
        ("Question:", ("Question:",), ()),
        ('["</answer>","a b"]', ("</answer>", "a b"), ()),
        ("151643", (), (151643,)),
        ("['7']", ("7",), ()),
        (r"'\boxed'", (r"\boxed",), ()),
        (r"'\\neq'", (r"\neq",), ()),
        ("[]", (), ()),
    ],
)
def test_texts_and_token_ids_in_one_list(given, texts, ids):
    for config, stop in (
        (train(f"rollout.stop={given}"), "rollout"),
        (train(f"eval.stop={given}"), "eval"),
        (evaluation(f"eval.stop={given}"), "eval"),
    ):
        found = getattr(config, stop).stop
        assert (stop_texts(found), stop_ids(found)) == (texts, ids)


def test_a_stop_is_the_same_once_it_was_saved():
    config = train(r'rollout.stop=["\n\nQ", "\\neq", 5]')
    again = Config.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again.rollout.stop == config.rollout.stop
    assert stop_texts(again.rollout.stop) == ("\n\nQ", r"\neq")
    assert config_hash(again) == config_hash(config) != config_hash(train())
    assert stop_texts(["\n"]) == ("\n",)  # of a YAML file, which has line breaks


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.stop=['a','']", "an empty text would end every completion"),
        ("rollout.stop=''", "an empty text would end every completion"),
        ("eval.stop=['']", "an empty text would end every completion"),
        ("rollout.stop=[-1]", "-1 is no token id"),
        ("rollout.stop=[1.5]", "1.5 is neither a text nor a token id"),
        ("rollout.stop=[true]", "True is neither a text nor a token id"),
        ("rollout.min_p=0.1", r"rollout\.min_p=0\.1 alter.*without min_p and penalties"),
        ("rollout.presence_penalty=1", r"rollout\.presence_penalty=1\.0 alter"),
        ("rollout.frequency_penalty=-1", r"rollout\.frequency_penalty=-1\.0 alter"),
        ("rollout.repetition_penalty=1.1", r"rollout\.repetition_penalty=1\.1 alter"),
        ("eval.min_p=2", r"eval\.min_p=2: .*or equal to 1"),
        ("eval.repetition_penalty=0", r"eval\.repetition_penalty=0: .*greater than 0"),
        ("eval.presence_penalty=3", r"eval\.presence_penalty=3: .*or equal to 2"),
    ],
)
def test_refusals(override, message):
    with pytest.raises(UserError, match=message):
        train(override)


def test_evaluations_of_a_run_stop_as_its_training_unless_they_say_otherwise():
    assert sampling_in(train("rollout.stop=[Q,7]")).stop == ("Q",)
    assert sampling_in(train("rollout.stop=[Q,7]")).stop_token_ids == (7,)
    assert sampling_in(train("rollout.stop=[Q,7]", "eval.stop=[]")).stop == ()
    keys = ("min_p=0.1", "repetition_penalty=1.2", "top_p=0.9", "top_k=20")
    found = sampling_in(train(*(f"eval.{key}" for key in keys)))
    assert (found.min_p, found.repetition_penalty) == (0.1, 1.2)
    assert (found.top_p, found.top_k) == (0.9, 20)


def test_an_evaluation_says_where_sampling_is_set():
    for name, value in {"stop": "[a]", "min_p": "0.1", "repetition_penalty": "1.5"}.items():
        with pytest.raises(UserError, match=rf"rollout\.{name}=.*by eval\.{name}"):
            evaluation(f"rollout.{name}={value}").engine()
    evaluation("eval.stop=[a]", "eval.min_p=0.1").engine()


def test_settings_of_an_evaluation_made_before_are_the_same():
    found = evaluation().eval.parameters.settings()
    assert json.loads(json.dumps(found)) == {
        "n": 32,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": 4096,
    }
