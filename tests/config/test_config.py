"""Every configuration that ships composes; bad ones are refused in words, all problems at once."""

import os
import re
import subprocess
import sys

import pytest
from hydra.utils import instantiate

from bandpo.commands import train
from bandpo.config.composition import compose, config_dir
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.loss import PolicyLoss


def names(group: str) -> list[str]:
    files = sorted((config_dir() / group).glob("*.yaml"))
    return [file.stem for file in files if not file.stem.startswith("_")]


def problems_of(*overrides: str, ranks: int = 1) -> str:
    with pytest.raises(UserError) as caught:
        compose("train", overrides, Config, ranks)
    return str(caught.value)


@pytest.mark.parametrize("method", names("method"))
def test_every_method_composes_and_instantiates(method):
    # The overlong buffer of DAPO wants completions longer than the embedded task's.
    config = compose("train", [f"method={method}", "rollout.max_tokens=4608"], Config)
    assert config.method.name == method
    assert isinstance(instantiate(config.method.loss), PolicyLoss)
    assert callable(instantiate(config.method.advantage))


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={name}"
        for group in ("rollout", "reward", "data", "sampler")
        for name in names(group)
        if name != "openai"  # evaluates alone
    ],
)
def test_every_other_group_composes(override):
    assert compose("train", ["model.path=embedded", override], Config).rollout.group_size == 32


def test_the_default_is_band_kl_on_the_embedded_policy():
    config = compose("train", [], Config)
    assert (config.method.name, config.model.path) == ("band_kl", "embedded")
    assert config.rollout.group_size == 32


def test_a_method_may_set_other_groups():
    config = compose("train", ["method=dapo", "rollout.max_tokens=4608"], Config)
    assert config.reward["overlong"] == {"buffer": 512, "penalty": 1.0}
    assert config.rollout.filter_groups and config.learner.weight_decay == 0.1
    again = compose(
        "train", ["method=dapo", "rollout.max_tokens=4608", "learner.weight_decay=0"], Config
    )
    assert again.learner.weight_decay == 0


def test_all_problems_are_told_together():
    text = problems_of(
        "method=nonsense",
        "learner.learning_rate=1",
        "learner.zero_stage=7",
        "rollout.top_p=0.9",
    )
    for fragment in ("method=nonsense", "learning_rate", "zero_stage=7", "top_p=0.9"):
        assert fragment in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.lr=-1"], r"learner\.lr=-1.*greater than 0"),
        (["rollout.group_size=1"], r"rollout\.group_size=1.*greater than or equal to 2"),
        (["rollout.prompts_per_step=3"], r"3 is too few for learner\.updates_per_rollout=4"),
        (["rollout.top_p=0.9"], "top_p=1 and top_k=0"),
        (["rollout.top_k=5"], "top_p=1 and top_k=0"),
        (["+learner.momentum=0.9"], r"learner\.momentum: no such key"),
        (["learner.momentum=0.9"], "learner.momentum"),
        (
            ["learner.warmup_steps=9"],
            r"warmup_steps=9: it counted updates.*learner\.warmup_updates",
        ),
        (["+learner.warmup_steps=9"], r"warmup_steps: no such key; it counted.*warmup_rollouts"),
        (["trainer.steps=many"], r"trainer\.steps='many'"),
        (["learner.offload=parameters"], "offload=parameters needs learner.zero_stage=3, not 0"),
        (
            ["learner.offload=between_updates", "learner.zero_stage=3"],
            "between_updates needs learner.zero_stage=1 or 2, not 3",
        ),
        (["rollout.lag=1"], "rollout.lag=1 needs an engine that samples in other processes"),
        (["rollout.lag=1", "rollout=hf"], "choose rollout=vllm_server"),
        (
            ["rollout.lag=1", "rollout=vllm_server", "method=band_kl_entropy"],
            r"method=band_kl_entropy needs more \(.*the old policy's entropy.*rollout\.lag=0",
        ),
        (["trainer.resume=/nowhere"], "neither auto, never nor a checkpoint"),
        (["method.delta=-0.1"], "method=band_kl cannot be built: .*delta"),
        (["method.delta=abc"], "method=band_kl cannot be built: .*delta must be positive"),
        (["model.dtype=bfloat16"], "made for float32"),
        (["model.dtype=float8"], r"model\.dtype='float8'"),
        (["rollout.engine=null"], r"rollout\.engine=None"),
        (["method.loss._target_=bandpo.loss.Missing"], "cannot be built"),
        (["method=query_kl", "method.delta=0"], "method=query_kl: method.delta must be positive"),
        (
            [
                *("method=query_kl", "~method.advantage.delta"),
                "method.advantage._target_=bandpo.advantage.centered_advantages",
            ],
            r"method=query_kl reads TokenBatch\.dual.*take bandpo\.advantage\.query_kl_advantages",
        ),
        (["learner.prune=1"], r"learner\.prune=1: .*less than 1"),
        (["seed=-1"], r"seed=-1"),
        (["method=dapo"], "reward cannot be built: .*512"),
        (["reward.timeout=-1"], "reward cannot be built: .*timeout"),
        (["data.overlong_prompts=cut"], "data.overlong_prompts='cut'"),
        (["=3"], "=3"),
        (["rollout.temperature=2.5"], r"rollout\.temperature=2\.5: .*less than or equal to 2"),
        (["rollout.temperature=0"], r"rollout\.temperature=0: .*or equal to 0\.01"),
        (["rollout.temperature=0.001"], r"rollout\.temperature=0\.001: .*or equal to 0\.01"),
        (["rollout.temperature=-1"], r"rollout\.temperature=-1: .*or equal to 0\.01"),
        (["rollout.temperature=nan"], r"rollout\.temperature=nan: .*finite number"),
        (["rollout.temperature=inf", "rollout=hf"], r"rollout\.temperature=inf: .*finite number"),
        (["eval.temperature=3"], r"eval\.temperature=3: .*less than or equal to 2"),
        (["eval.temperature=nan"], r"eval\.temperature=nan: .*finite number"),
        (["rollout.top_p=0"], r"rollout\.top_p=0: .*greater than 0"),
        (["eval.top_p=1.01"], r"eval\.top_p=1\.01: .*or equal to 1"),
        (["eval.top_p=nan"], r"eval\.top_p=nan: .*finite number"),
        (["rollout.top_k=-1"], r"rollout\.top_k=-1: .*or equal to 0"),
        (["rollout.group_size=5000"], r"rollout\.group_size=5000: .*or equal to 4096"),
        (["eval.n=5000"], r"eval\.n=5000: .*or equal to 4096"),
        (["rollout.max_tokens=0"], r"rollout\.max_tokens=0: .*or equal to 1"),
        (["learner.lr=nan"], r"learner\.lr=nan: .*finite number"),
        (["learner.betas=[0.9,1]"], r"learner\.betas\.1=1: .*less than 1"),
        (["seed=4294967296"], r"seed=4294967296: .*or equal to 4294967295"),
    ],
)
def test_bad_values_are_named_with_what_to_do(overrides, message):
    assert re.search(message, problems_of(*overrides), re.DOTALL)


@pytest.mark.parametrize("method", ["m2po", "clip_cov", "kl_cov", "bapo", "elastic", "query_kl"])
def test_methods_of_the_batch_and_the_group_take_samples_of_an_older_policy(method):
    config = compose("train", [f"method={method}", "rollout.lag=1", "rollout=vllm_server"], Config)
    assert (config.method.name, config.rollout.lag) == (method, 1)


def test_every_rank_needs_a_prompt(monkeypatch):
    for ranks in (17, 32):
        assert f"=16 is too few for {ranks} rank(s)" in problems_of(ranks=ranks)
    compose("train", [], Config, 7)  # uneven shares will do
    monkeypatch.setenv("WORLD_SIZE", "17")  # as a launcher announces them
    with pytest.raises(UserError, match=r"too few for 17 rank\(s\)"):
        train.main([])


def test_commands_exit_with_2_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bandpo.cli", "plan", "rollout.top_p=2", "nonsense=1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ),
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "rollout.top_p=2.0" in done.stderr or "rollout.top_p=2" in done.stderr
    assert "nonsense" in done.stderr


def test_plan_works_from_any_folder_and_writes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bandpo.cli", "plan", "method=grpo", "rollout.prompts_per_step=8"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "8 prompts × 32 samples = 256 samples" in done.stdout
    assert list(tmp_path.iterdir()) == []
