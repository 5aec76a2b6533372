"""System prompt, chat template and its variables from training to the export and its evaluation."""

import json
import shutil

import pytest
import yaml
from base_models import FIRST, as_base_model
from small_runs import few, metrics_of, timeless
from transformers import AutoTokenizer

from bandpo.cli import main
from bandpo.evaluation.samples import differences
from bandpo.evaluation.summary import read_summaries
from bandpo.model.source import find_model

SMALL = [
    *("rollout=hf", "trainer.checkpoint_every=1", "trainer.sample_every=1", "trainer.eval_every=1"),
    *("rollout.prompts_per_step=2", "rollout.group_size=2", "rollout.max_tokens=8"),
    *("learner.updates_per_rollout=1", "data.max_prompt_tokens=160", "eval.n=2"),
    *("policy=embedded", few(2)),
]
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "<|assistant|>{% if think is defined and think %}<think>{% endif %}"
)
SYSTEM = "Answer ${x}, 'well' \\ and\n\"soon\"."
QUESTION = "{problem}<|end|><|assistant|>"


def prompts_of(path):
    return [json.loads(line)["prompt"] for line in path.open()]


@pytest.fixture(scope="module")
def chat_run(command, untrained, tmp_path_factory):
    """A run with all three, and the words that started it."""
    place = tmp_path_factory.mktemp("chat")
    (place / "chat.jinja").write_text(CHAT)
    (place / "system.txt").write_text(f"{SYSTEM}\n")
    words = [
        *(*SMALL, f"model.path={untrained()}", f"run.dir={place}/run", "trainer.steps=1"),
        *(f"data.chat_template={place}/chat.jinja", f"data.system_prompt=@{place}/system.txt"),
        *("data.chat_template_kwargs.think=true", "data.chat_template_kwargs.unread=1"),
    ]
    assert command("train", *words) == 0
    return place, words


def test_what_is_sent_is_saved_and_named(chat_run):
    place, _ = chat_run
    run = place / "run"
    begins = f"<|system|>{SYSTEM}<|end|><|user|>"
    for file in ("samples/step_000001.jsonl", "eval/000001/few.jsonl", "eval/000000/few.jsonl"):
        for prompt in prompts_of(run / file):
            assert prompt.startswith(begins) and prompt.endswith("<|end|><|assistant|><think>")
    facts = {
        "template": "none",
        "system_prompt": SYSTEM,
        "chat_template": f"{place}/chat.jinja",
        "chat_template_kwargs": {"think": True, "unread": 1},
    }
    assert json.loads((run / "run.json").read_text())["prompting"] == facts
    settings = read_summaries(run / "eval/000001")["few"].settings
    assert {key: settings[key] for key in facts} == facts
    # the text itself: the file may go
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["system_prompt"] == SYSTEM
    output = (run / "run.log").read_text()
    assert "chat_template_kwargs.unread has no effect: the chat template of" in output


def test_the_export_prompts_as_the_run_did_and_says_how(chat_run):
    hf = chat_run[0] / "run/checkpoints/latest/hf"
    assert (hf / "chat_template.jinja").read_text() == CHAT
    assert AutoTokenizer.from_pretrained(hf).chat_template == CHAT
    card = (hf / "README.md").read_text()
    assert f"| system prompt | {' '.join(SYSTEM.split())} |" in card
    assert "| chat template | `chat_template.jinja` in this folder |" in card
    assert '| chat template\'s variables | `{"think": true, "unread": 1}` |' in card


def test_its_evaluation_inherits_them_and_says_so(chat_run, tmp_path, capsys):
    place, _ = chat_run
    run, out = place / "run", tmp_path / "out"
    words = ["rollout=hf", "eval.n=2", few(2).removeprefix("eval."), f"out={out}"]
    assert main(["eval", f"model={run}", *words]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"eval.system_prompt={SYSTEM!r}" in told
    assert "eval.chat_template_kwargs={'think': True, 'unread': 1}" in told
    assert f"chat template {place}/chat.jinja (in hf/)" in told and "! eval" not in told
    ours, theirs = (read_summaries(folder)["few"] for folder in (out, run / "eval/000001"))
    assert ours.settings["prompt_sha256"] == theirs.settings["prompt_sha256"]
    # the template is the same, wherever it lies
    changed = [line.split(":")[0] for line in differences(theirs.settings, ours.settings)]
    assert set(changed) <= {"model", "scoring"}
    assert ours.settings["system_prompt"] == SYSTEM
    assert {n: ours.scalars()[n] for n in theirs.scalars()} == pytest.approx(theirs.scalars())

    other = ["eval.system_prompt=null", "eval.chat_template_kwargs.think=false"]
    assert main(["eval", f"model={run}", *words[:-1], f"out={out}2", *other]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"! eval.system_prompt=null, while {run} was trained and evaluated with" in told
    assert "! eval.chat_template_kwargs=" in told
    for prompt in prompts_of(tmp_path / "out2/few.jsonl"):
        assert prompt.startswith("<|user|>") and prompt.endswith("<|assistant|>")


def test_it_resumes_only_as_what_it_was(chat_run, command, tmp_path, capsys):
    place, words = chat_run
    shutil.copytree(place / "run", tmp_path / "run", symlinks=True)
    again = [*words, f"run.dir={tmp_path}/run", "trainer.steps=2"]
    for change, message in (
        ("data.system_prompt=Other", "data.system_prompt: Answer"),
        ("data.chat_template=null", "data.chat_template: "),
        ("data.chat_template_kwargs={think: true}", "data.chat_template_kwargs.unread: 1 → not"),
    ):
        assert command("train", *again, change) == 2
        assert message in capsys.readouterr().err
    text = CHAT.replace("<|end|>", "<|end|> ")
    (place / "chat.jinja").write_text(text)
    try:
        assert command("train", *again) == 2
        assert "training data or its prompts changed" in capsys.readouterr().err
    finally:
        (place / "chat.jinja").write_text(CHAT)
    (place / "system.txt").unlink()
    # without the file, whose text the run has kept
    kept = [word for word in again if not word.startswith("data.system_prompt")]
    assert command("train", *kept, "data.system_prompt=@" + str(place / "copy.txt")) == 2
    (place / "copy.txt").write_text(SYSTEM)
    assert command("train", *kept, f"data.system_prompt=@{place}/copy.txt") == 0
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 1, 2]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The embedded policy as a base model."""
    folder = tmp_path_factory.mktemp("base") / "model"
    return as_base_model(find_model("embedded").path, folder)


@pytest.fixture
def question(tmp_path):
    """The template that a base model is prompted with, in place of a chat template."""
    path = tmp_path / "question.txt"
    path.write_text(QUESTION)
    return path


def test_a_base_model_trains_as_a_chat_model_with_the_same_tokens(
    base, question, command, tmp_path, capsys
):
    run, chat = tmp_path / "run", tmp_path / "chat"
    words = [*SMALL, "trainer.steps=2", "rollout.max_tokens=48", "rollout.group_size=8"]
    assert command("train", *words, f"run.dir={chat}", "data.template=none") == 0
    words += [f"model.path={base}", f"run.dir={run}"]
    assert command("train", *words) == 2
    assert "has no chat template" in capsys.readouterr().err
    assert command("train", *words, "data.chat_template=none", f"data.template={question}") == 0
    assert timeless(run) == timeless(chat)
    for file in ("samples/step_000001.jsonl", "eval/000002/few.jsonl"):
        assert prompts_of(run / file) == prompts_of(chat / file)
        assert all(prompt.startswith(f"{FIRST}Compute") for prompt in prompts_of(run / file))
    hf = run / "checkpoints/latest/hf"
    assert not list(hf.glob("*.jinja")) and not AutoTokenizer.from_pretrained(hf).chat_template
    card = (hf / "README.md").read_text()
    assert "| chat template | none: prompts are text without turns |" in card

    evaluated = ["rollout=hf", "eval.n=2", few(2).removeprefix("eval.")]
    assert main(["eval", f"model={run}", *evaluated, f"out={tmp_path}/out"]) == 0
    assert "eval.chat_template=none" in " ".join(capsys.readouterr().out.split())
    assert prompts_of(tmp_path / "out/few.jsonl") == prompts_of(run / "eval/000002/few.jsonl")
    # a copy elsewhere is a base model again
    shutil.copytree(hf, tmp_path / "copy")
    assert main(["eval", f"model={tmp_path}/copy", *evaluated, f"out={tmp_path}/2"]) == 2
    assert "eval.chat_template=none" in capsys.readouterr().err


@pytest.mark.slow
def test_a_base_model_learns_with_vllm(base, question, bandpo, tmp_path):
    run = tmp_path / "run"
    words = [
        *("policy=embedded", f"model.path={base}", f"run.dir={run}", "trainer.steps=12"),
        *("data.chat_template=none", f"data.template={question}", "trainer.eval_every=12"),
        *("rollout.prompts_per_step=32", "rollout.group_size=16", "eval.n=8", few(64)),
    ]
    bandpo("train", *words)
    first, *_, last = metrics_of(run)
    assert last["eval/few/mean@8"] > first["eval/few/mean@8"] + 0.1


@pytest.mark.slow
def test_a_base_model_trains_on_two_ranks_and_resumes(base, question, bandpo, tmp_path):
    run = tmp_path / "run"
    words = [
        *(*SMALL, f"model.path={base}", f"run.dir={run}"),
        *("data.chat_template=none", f"data.template={question}"),
    ]
    for steps in (1, 2):
        bandpo("train", *words, f"trainer.steps={steps}", ranks=2)
    assert [line["step"] for line in metrics_of(run)] == [0, 1, 2]
    assert json.loads((run / "run.json").read_text())["prompting"]["chat_template"] == "none"
    for file in ("samples/step_000002.jsonl", "eval/000002/few.jsonl"):
        assert all(prompt.startswith(FIRST) for prompt in prompts_of(run / file))
