"""`method.correction`: its default by precision, its place in a run's identity, its errors."""

import pytest

from bandpo.config.composition import compose
from bandpo.config.identity import _complete, changes, config_hash
from bandpo.config.rollout_correction import by_precision, correction_in
from bandpo.config.schema import Config, coarsest_dtype, engine_dtype, is_corrected
from bandpo.errors import UserError
from bandpo.loss import DiscardByDivergence, Truncate
from bandpo.loss.correction import PRESETS
from bandpo.run.objective import loss_of
from bandpo.run.start_point import with_correction

MODEL = ["model.path=a/model", "data.train=my.jsonl"]
BFLOAT16 = [*MODEL, "model.dtype=bfloat16"]
OWN = "{_target_: bandpo.loss.Truncate, cap: 3.0, mismatch: {_target_: bandpo.loss.TokenMismatch}}"
SERVERS = ["rollout=vllm_server", "rollout.lag=1"]


def config(*overrides: str) -> Config:
    return compose("train", overrides, Config)


def written(made: Config) -> dict:
    """The config.yaml of a run."""
    return made.model_dump(mode="json")


def of_before(made: Config) -> dict:
    """The config.yaml that versions without the keys wrote."""
    tree = written(made)
    del tree["method"]["correction"]
    del tree["rollout"]["engine"]["dtype"]
    return tree


@pytest.mark.parametrize(
    ("overrides", "name", "reason"),
    [
        ([], "none", "float32"),
        (MODEL, "none", "float32"),
        (BFLOAT16, "token_tis", "model.dtype=bfloat16"),
        (
            ["rollout.engine.dtype=bfloat16"],
            "token_tis",
            "the engine computes in bfloat16, the learner in float32",
        ),
        (["rollout.engine.dtype=float32"], "none", "float32"),
        (["+rollout.engine.quantization=fp8"], "token_tis", "rollout.engine.quantization=fp8"),
        (["+rollout.engine.kv_cache_dtype=fp8"], "token_tis", "kv_cache_dtype=fp8"),
        (["+rollout.engine.kv_cache_dtype=auto"], "none", "float32"),
        ([*BFLOAT16, "method=prime_rl"], "none", "the ratio is to the policy that sampled"),
        ([*BFLOAT16, f"+method.loss.correction={OWN}"], "none", "method.loss.correction is set"),
    ],
)
def test_what_auto_means(overrides, name, reason):
    made = config(*overrides)
    assert made.method.correction == "auto"
    choice = by_precision(made.model.dtype, made.rollout.engine, made.method.loss)
    assert choice.name == name and reason in choice.reason
    settled, notes = with_correction(made, None)
    assert settled.method.correction == name
    assert is_corrected(made.method, made.rollout, made.model) == (
        name != "none" or "is set" in reason
    )
    told = f"correction: {name}, since {choice.reason}; method.correction=none turns it off"
    assert [note.startswith(told) for note in notes] == [True] * (name != "none")


def test_a_run_of_before_resumes_without_a_correction_and_a_new_one_with_its_own():
    made = config(*BFLOAT16)
    old = of_before(made)
    resumed, (note,) = with_correction(made, old)
    assert resumed.method.correction == "none" and note.startswith("correction: none, as before")
    assert changes(old, resumed) == ((), ())
    asked, notes = with_correction(config(*BFLOAT16, "method.correction=none"), old)
    assert changes(old, asked) == ((), ()) and notes == []
    begun, _ = with_correction(made, None)
    again, _ = with_correction(made, written(begun))
    assert again == begun
    other = config(*BFLOAT16, "method.correction=icepop")
    assert changes(written(begun), other).determining == ("method.correction: token_tis → icepop",)
    assert changes(old, begun).determining == ("method.correction: none → token_tis",)
    own, _ = with_correction(config(*BFLOAT16, f"method.correction={OWN}"), None)
    resumed, (note,) = with_correction(made, written(own))
    assert changes(written(own), resumed) == ((), ())
    assert note == "correction: bandpo.loss.Truncate, as before this run was resumed"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["rollout=hf", "method=grpo"],
        MODEL,
        SERVERS,
        ["+protocol=paper32", *MODEL[:1]],
        ["+protocol=release16", "method=dapo", *MODEL[:1]],
        ["+protocol=small"],
    ],
)
def test_configurations_of_before_keep_their_hash(overrides):
    made = config(*overrides)
    assert config_hash(made) == config_hash(written(made)) == config_hash(of_before(made))
    assert correction_in(written(made)) == "none"
    assert _complete(made)["method"] == {}  # which hashes have had from the first


def test_hashes_tell_corrections_apart():
    kinds = ([], ["method.correction=none"], ["method.correction=token_tis"])
    default, none, named = (config(*BFLOAT16, *kind) for kind in kinds)
    assert config_hash(default) == config_hash(named) != config_hash(none)
    assert config_hash(none) == config_hash(of_before(none))
    owns = [
        config(f"method.correction={OWN}"),
        config(f"method.correction={OWN}".replace("3", "4")),
    ]
    assert len({config_hash(own) for own in [*owns, config()]}) == 3
    assert config_hash(config("rollout.engine.dtype=bfloat16")) != config_hash(config())


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_gets_the_correction_that_is_named(name):
    assert loss_of(config(f"method.correction={name}")).correction == PRESETS[name]


def test_a_run_gets_a_correction_of_ones_own():
    loss = loss_of(config(f"method.correction={OWN}"))
    assert isinstance(loss.correction, Truncate) and loss.correction.cap == 3
    kpop = "{_target_: bandpo.loss.DiscardByDivergence, limit: 0.1}"
    assert loss_of(config(f"method.correction={kpop}")).correction == DiscardByDivergence(0.1)
    in_loss, _ = with_correction(config(*BFLOAT16, f"+method.loss.correction={OWN}"), None)
    assert loss_of(in_loss).correction.cap == 3
    assert loss_of(config("method.correction=null")).correction is None


def test_lag_truncates_ratios_only_without_a_correction():
    plain, corrected = (
        loss_of(config(*SERVERS, f"method.correction={name}")) for name in ("none", "icepop")
    )
    assert (plain.correction, plain.max_weight) == (None, 2.0)
    assert (corrected.correction, corrected.max_weight) == (PRESETS["icepop"], None)


@pytest.mark.parametrize(
    "more", [["method.correction=token_tis"], [f"+method.loss.correction={OWN}"]]
)
def test_lag_takes_a_correction_and_then_methods_that_need_the_old_policy(more):
    assert config(*SERVERS, "method=band_kl_entropy", *more).rollout.lag == 1
    with pytest.raises(UserError, match=r"choose a method\.correction such as token_tis"):
        config(*SERVERS, "method=band_kl_entropy")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.correction=ice_pop"], "method.correction='ice_pop': there are auto, none, "),
        (["method.correction=ice_pop"], "did you mean icepop?"),
        (["method.correction=3"], "there are auto, none"),
        (
            ["method.correction=icepop", f"+method.loss.correction={OWN}"],
            "method.correction=icepop and method.loss.correction: remove one",
        ),
        (["method=prime_rl", "method.correction=icepop"], "would be weighed twice"),
        (
            ["method.correction={_target_: bandpo.loss.Truncat}"],
            "method.correction cannot be built: .*Truncate",
        ),
        (
            [
                "~method.loss",
                "+method.loss={_target_: bandpo.loss.K3}",
                "rollout.engine.dtype=bfloat16",
            ],
            "_target_=bandpo.loss.K3 has no `correction`.*add method.correction=none",
        ),
        (["rollout.engine.dtype=float16"], "dtype=float16: there are float32 and bfloat16"),
    ],
)
def test_bad_settings_are_refused_in_words(overrides, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        config(*overrides)


def test_the_dtype_of_the_engine():
    for overrides, engine, coarsest in (
        ([], "float32", "float32"),
        (["rollout.engine.dtype=bfloat16"], "bfloat16", "bfloat16"),
        ([*BFLOAT16, "rollout.engine.dtype=float32"], "float32", "bfloat16"),
        (["+rollout.engine.quantization=fp8"], "float32", "bfloat16"),
    ):
        made = config(*overrides)
        assert (engine_dtype(made), coarsest_dtype(made)) == (engine, coarsest)
