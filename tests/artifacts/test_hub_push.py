"""A run's policy goes to a hub: whether it may shows at the start, and a failure does no harm."""

import json
import shlex

import hub_server
import pytest
from huggingface_hub import constants

from bandpo.artifacts.hub_push import check_hub, push_policies, pushes
from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.errors import UserError


@pytest.fixture
def hub(monkeypatch):
    with hub_server.served() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield hub


def config(folder, *overrides):
    return compose("train", [f"run.dir={folder}", "run.name=mine", *overrides], Config)


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run: two checkpoints, of which the first is the best."""
    checkpoints = tmp_path / "checkpoints"
    for step in (10, 20):
        files = {
            "hf/README.md": f"---\nlibrary_name: transformers\n---\n# mine, step {step}\n",
            "hf/config.json": "{}",
            "hf/model.safetensors": f"weights of {step}",
            "hf/tokenizer.json": "{}",
            "engine/optimizer.pt": "moments",
            "adapter/adapter_model.safetensors": "adapter",
            "state.json": json.dumps({"step": step}),
            "rollout-rank0.json": "samples",
        }
        for name, text in files.items():
            path = checkpoints / f"step_{step:06d}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (checkpoints / "latest").symlink_to("step_000020")
    (checkpoints / "best").symlink_to("step_000010")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/step_000020.jsonl").write_text("{}\n")
    return tmp_path


def content(run, step):
    folder = run / f"checkpoints/step_{step:06d}/hf"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pushed(settings):
    said = []
    push_policies(settings, lambda text, wrap=True: said.append(text))
    return said


def test_nothing_is_asked_or_pushed_unless_a_repository_is_named(hub, run):
    assert check_hub(config(run)) == [] and list(pushes(config(run))) == []
    assert pushed(config(run)) == [] and hub.requests == []


def test_exactly_the_files_of_hf_are_pushed(hub, run):
    settings = config(run, "run.push_to_hub=me/mine")
    (note,) = check_hub(settings)
    assert "me/mine (private), as me" in note
    assert pushed(settings) == [f"pushed step 20: {hub.endpoint}/me/mine/commit/{1:040x}"]
    assert hub.private == {"me/mine": True}
    assert hub.files("me/mine") == content(run, 20)
    assert hub.commits == [("me/mine", "main", "mine, step 20")]


def test_the_best_policy_goes_to_a_branch_of_its_own(hub, run):
    settings = config(run, "run.push_to_hub=me/mine", "trainer.keep_best=reward/mean")
    assert len(pushed(settings)) == 2
    assert hub.files("me/mine") == content(run, 20)
    assert hub.files("me/mine", "best") == content(run, 10)
    assert hub.commits[1] == ("me/mine", "best", "mine, step 10, best reward/mean")


@pytest.mark.parametrize("case", ["the best is the last", "the best has no hf/"])
def test_no_policy_is_pushed_twice_or_missing(case, hub, run):
    if case == "the best is the last":
        (run / "checkpoints/best").unlink()
        (run / "checkpoints/best").symlink_to("step_000020")
    else:
        (run / "checkpoints/step_000010/hf").rename(run / "moved")
    settings = config(run, "run.push_to_hub=me/mine", "trainer.keep_best=reward/mean")
    assert len(pushed(settings)) == 1 and [c[1] for c in hub.commits] == ["main"]


def test_a_repository_is_public_only_where_that_is_said(hub, run):
    settings = config(run, "run.push_to_hub=me/mine", "run.hub_private=false")
    (note,) = check_hub(settings)
    assert "(public)" in note and hub.private == {"me/mine": False}
    assert len(pushed(settings)) == 1
    with pytest.raises(UserError, match=r"me/mine is public.*run\.hub_private=false"):
        check_hub(config(run, "run.push_to_hub=me/mine"))


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no token", r"run\.push_to_hub=me/mine: there is no token.*HF_TOKEN.*hf auth login"),
        ("another token", r"does not let this token push there.*run\.push_to_hub=null"),
        ("may not create", r"does not let this token push there"),
        ("may not write", r"does not let this token push there"),
        ("no such owner", r"does not let this token push there"),
        ("offline", r"HF_HUB_OFFLINE is set, so nothing can be pushed"),
        ("no answer", r"does not answer.*try again later"),
        ("a broken server", r"does not answer.*try again later"),
        ("a name that no hub takes", r"run\.push_to_hub=me/a--b: "),
    ],
)
def test_a_push_that_cannot_succeed_is_an_error_at_the_start(
    case, said, hub, run, monkeypatch, tmp_path
):
    name = "me/mine"
    if case == "no token":
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    elif case == "another token":
        monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    elif case == "may not create":
        hub.refuses["/api/repos/create"] = 403
    elif case == "no such owner":
        hub.refuses["/api/repos/create"] = 404
    elif case == "may not write":
        hub.add("me/mine", private=True)
        hub.refuses["/api/models/me/mine/auth-check"] = 403
    elif case == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif case == "no answer":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    elif case == "a broken server":
        hub.refuses["/api"] = 500
    else:
        name = "me/a--b"
    with pytest.raises(UserError, match=said):
        check_hub(config(run, f"run.push_to_hub={name}"))


def test_a_resumed_run_does_not_wait_for_a_hub_that_is_down(hub, run):
    hub.refuses["/api"] = 503
    (note,) = check_hub(config(run, "run.push_to_hub=me/mine"), resumed=True)
    assert "does not answer" in note and "is tried nevertheless" in note
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        check_hub(config(run, "run.push_to_hub=me/mine"), resumed=True)


def test_a_hub_that_is_asked_too_often_who_we_are_refutes_no_token(hub, run):
    hub.refuses["/api/whoami-v2"] = 429
    (note,) = check_hub(config(run, "run.push_to_hub=me/mine"))
    assert "as the token's owner" in note


def test_nothing_private_is_pushed_to_a_repository_that_has_become_public(hub, run):
    hub.add("me/mine", private=False)
    said = pushed(config(run, "run.push_to_hub=me/mine"))
    assert "step 20 was not pushed to me/mine: me/mine is public" in said[0]
    assert hub.commits == []


@pytest.mark.parametrize("case", ["refused", "gone", "no hf/"])
def test_a_failed_push_is_reported_with_the_command_that_makes_up_for_it(case, hub, run):
    settings = config(run, "run.push_to_hub=me/mine", "trainer.keep_best=reward/mean")
    if case == "refused":
        hub.refuses["/api/models/me/mine/commit/main"] = 403
    elif case == "gone":
        constants.ENDPOINT = "http://127.0.0.1:9"  # put back by the fixture
    else:
        (run / "checkpoints/step_000020/hf").rename(run / "moved")
    said = pushed(settings)
    assert said[0].startswith("step 20 was not pushed to me/mine: ")
    assert said[0].endswith("Nothing is lost; this pushes it:")
    place = run / "checkpoints/step_000020/hf"
    words = ["hf", "upload", "me/mine", str(place), ".", "--private"]
    assert shlex.split(said[1]) == [*words, "--commit-message", "mine, step 20"]
    if case != "gone":  # the other one is pushed all the same
        assert said[2].startswith("pushed step 10") and len(hub.commits) == 1
    assert hub_server.TOKEN not in " ".join(said)


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/", "me/a b", "https://hub/me/mine"])
def test_a_repository_has_an_owner_and_a_name(name, tmp_path):
    with pytest.raises(UserError, match=r"run\.push_to_hub"):
        config(tmp_path, f"run.push_to_hub='{name}'")
