"""The ways to complete a word, whatever the shell."""

import pytest

from bandpo.cli import COMMANDS
from bandpo.completion.candidate import Candidate, Paths
from bandpo.completion.commands import complete
from bandpo.completion.line import Line, read_line
from bandpo.disk.shipped import shipped


def ways(text):
    line = read_line(text)
    return complete(line.before, line.word)


def texts(text):
    return [way.text for way in ways(text) if isinstance(way, Candidate)]


def stems(group):
    return sorted(path.stem for path in (shipped("configs") / group).glob("[!_]*.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bandpo tr", ["train"]),
        ("bandpo --ins", ["--install-completion"]),
        ("bandpo --install-completion ", ["bash", "zsh", "fish"]),
        ("bandpo help expl", ["explain"]),
        ("bandpo data ", ["check", "overlap", "build", "show"]),
        ("bandpo data check --f", ["--fast"]),
        ("bandpo plot training --", ["--help"]),
        ("bandpo nonsense ", []),
        ("bandpo train --cfg ", ["job", "hydra", "all"]),
        ("bandpo train --cfg=h", ["--cfg=hydra"]),
        ("bandpo train --cfg job --package learner.", ["learner.lora"]),
        ("bandpo train model.dty", ["model.dtype="]),
        ("bandpo plan learner.offload=o", ["learner.offload=optimizer"]),
        ("bandpo table small ++data.overl", ["++data.overlong_prompts="]),
        ("bandpo train rollout.filter_groups=", [f"rollout.filter_groups={word}" for word in
                                                ("false", "accuracy", "reward")]),
        ("bandpo train ~trainer.max_h", ["~trainer.max_hours"]),
        ("bandpo train model.gradient_checkpointing=n", ["model.gradient_checkpointing=null"]),
        ("bandpo train model.path=", ["model.path=embedded", "model.path=smollm2"]),
        ("bandpo train trainer.resume=n", ["trainer.resume=never"]),
        ("bandpo eval eval.preset=q", ["eval.preset=qwen3", "eval.preset=qwen3-thinking"]),
        ("bandpo eval eval.template=bo", ["eval.template=boxed"]),
        ("bandpo eval benchmarks=gs", ["benchmarks=gsm8k"]),
        ("bandpo train -m method=grpo,gsp", ["method=grpo,gspo"]),
        ("bandpo train sampler=n", ["sampler=null"]),
        ("bandpo explain --methods grpo,band_tv,band_c", ["grpo,band_tv,band_chi2"]),
        ("bandpo explain --methods=grpo,band_t", ["--methods=grpo,band_tv"]),
        ("bandpo train learner.lr=", []),
    ],
)  # fmt: skip
def test_a_word_is_completed(text, expected):
    assert texts(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bandpo launch --nproc 8 ", ["train", "eval"]),
        ("bandpo launch --nproc 8 -- method=gr", ["method=grpo"]),
        ("bandpo launch -- trainer.steps=5 method=gr", ["method=grpo"]),
        ("bandpo launch eval benchmarks=gs", ["benchmarks=gsm8k"]),
        ("bandpo launch eval --c", ["--cfg"]),
    ],
)
@pytest.mark.skipif("launch" not in COMMANDS, reason="bandpo launch is not there")
def test_the_words_of_a_launch_are_those_of_its_job(text, expected):
    assert texts(text) == expected


def test_a_list_is_completed_by_what_it_lacks():
    (way,) = ways("bandpo train eval.benchmarks=[aime24,aime25,aim")
    assert way.text == "eval.benchmarks=[aime24,aime25,aime26" and not way.ends


def test_options_come_with_their_meanings():
    found = {way.text: way.about for way in ways("bandpo table small --")}
    assert found["--smoke"] == "a small version, to see it work" and "--only" in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bandpo compare out", Paths()),
        ("bandpo compare outputs/a out", Paths()),
        ("bandpo compare --step ", None),
        ("bandpo compare a b ", None),
        ("bandpo replay a b ", Paths()),
        ("bandpo plot timeline ", Paths()),
        ("bandpo plan data.train=", Paths("data.train=")),
        ("bandpo train model.path=out", Paths("model.path=", folders_only=True)),
        ("bandpo eval model=", Paths("model=", folders_only=True)),
        ("bandpo eval benchmarks=[amc23,file:my", Paths("benchmarks=[amc23,file:")),
        ("bandpo rescore --json ", Paths()),
        ("bandpo train learner.lr=", None),
    ],
)
def test_paths_are_asked_for_where_they_are_meant(text, expected):
    assert [way for way in ways(text) if isinstance(way, Paths)] == [expected] * bool(expected)


@pytest.mark.parametrize("group", ["method", "rollout", "reward", "data", "sampler"])
def test_every_file_of_a_group_is_a_value(group):
    assert {text.partition("=")[2] for text in texts(f"bandpo train {group}=")} - {"null"} == set(
        stems(group)
    )


def test_recipes_and_benchmarks_are_those_that_there_are(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "recipes" / "mine" / "recipe.yaml").write_text("title: Mine\n")
    monkeypatch.chdir(tmp_path)
    assert {"mine", "small"} <= set(texts("bandpo table "))
    assert Candidate("mine", "Mine") in ways("bandpo table mi")
    named = {text.removeprefix("benchmarks=") for text in texts("bandpo eval benchmarks=")}
    assert named == {*stems("benchmark"), "all", "math", "file:"}


def test_keys_come_level_by_level_with_their_meanings():
    top = {way.text: way for way in ways("bandpo train ")}
    assert {"method=", "+protocol=", "learner.", "data.", "data=", "seed="} <= top.keys()
    assert not any("lr" in text for text in top)
    assert not top["learner."].ends and top["learner."].about == "The optimizer side"
    (rate,) = ways("bandpo train learner.lr")
    assert rate == Candidate("learner.lr=", "AdamW's learning rate after the warm-up", ends=False)
    # A section that is the only one is opened.
    assert "learner.lr=" in texts("bandpo train lea")
    assert texts("bandpo train +") == ["+protocol="]
    assert "+protocol=paper32" in texts("bandpo train +protocol=")


def test_keys_of_a_group_are_those_of_its_file():
    assert "method.delta=" in texts("bandpo train method.")  # band_kl
    assert "method.delta=" not in texts("bandpo train method=grpo method.")
    assert "method.eps_low=" in texts("bandpo train method=grpo method.")
    assert {"method.delta=", "method.eps_low="} <= set(
        texts("bandpo train -m method=grpo,band_kl method.")
    )
    assert "rollout.engine.cache_gib=" in texts("bandpo eval rollout=hf rollout.engine.")
    assert "rollout.engine.cache_gib=" not in texts("bandpo eval rollout.engine.")


def test_methods_have_the_comment_at_the_head_of_their_files():
    about = {way.text: way.about for way in ways("bandpo train method=")}
    assert about["method=grpo"] == "GRPO with canonical symmetric clipping"
    assert about["method=dr_grpo"].startswith("Dr. GRPO: no division by")
    assert all(len(text) > 10 for text in about.values())


@pytest.mark.parametrize("option", ["--configs {}", "--configs={}"])
def test_methods_of_ones_own_are_found(option, tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# Of my own.\ndefaults: [_clip]\n")
    assert texts(f"bandpo explain {option.format(tmp_path)} --methods mi") == ["mine"]
    searched = f"hydra.searchpath=[file://{tmp_path}]"
    assert ways(f"bandpo train {searched} method=mi") == [Candidate("method=mine", "Of my own")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a b", Line(("a",), "b")),
        ("a b ", Line(("a", "b"), "")),
        ("a x=y", Line(("a",), "x=y", "x=")),
        (r"a x\=y", Line(("a",), "x=y")),
        (r"a my\ run/e", Line(("a",), "my run/e")),
        ("a 'x=y z", Line(("a",), "x=y z", "", True)),
        ("a x='y z", Line(("a",), "x=y z", "x=", True)),
        ("a x='y z'/", Line(("a",), "x=y z/", "x=")),
        ('a "b \\" c\\d', Line(("a",), 'b " c\\d', "", True)),
        ("a ''", Line(("a",), "")),
        ("a '' b", Line(("a", ""), "b")),
        ("a b\\", Line(("a",), "b")),
    ],
)
def test_a_line_is_taken_apart_as_bash_does(text, line):
    assert read_line(text, "=:") == line
