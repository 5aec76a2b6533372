"""`bandpo eval` from its arguments to its files, with a fake engine in vLLM's place."""

import json
import shutil
from datetime import datetime

import pytest
import torch
from eval_fakes import FakeEngine
from safetensors.torch import save_file

from bandpo.cli import main
from bandpo.evaluation.eval_config import dtype_on
from bandpo.evaluation.summary import read_summaries
from bandpo.model.embedded import build_tokenizer
from bandpo.model.files import weights_fingerprint
from bandpo.model.source import find_model


class Engine(FakeEngine):
    """Takes what `bandpo eval` tells every engine, and boxes its answers."""

    calls: list[dict] = []  # noqa: RUF012

    def __init__(self, spec, **options):
        super().__init__()
        self.calls.append({**vars(spec), **options})

    def sample(self, rng, prompt, sampling):
        completion = super().sample(rng, prompt, sampling)
        text = completion.text.removeprefix("so ")
        return completion.__class__(
            rf"\boxed{{{text}}}" if text != completion.text else "I do not know",
            completion.token_ids,
            completion.logprobs,
            completion.finish_reason,
        )

    def close(self):
        pass


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    build_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "qwen2", "max_position_embeddings": 512}')
    save_file({"w": torch.arange(4.0)}, folder / "model.safetensors")
    return folder


def evaluate(model, out, *overrides):
    engine = f"rollout.engine._target_={__name__}.Engine"
    small = ["benchmarks=[arithmetic]", "eval.max_tokens=6", "eval.n=4", "eval.limit=10"]
    return main(["eval", f"model={model}", f"out={out}", engine, *small, *overrides])


@pytest.fixture
def on_day(monkeypatch):
    """Sets the day that both a chat template and bandpo read from the clock."""

    def at(day):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2031, 5, day, 12)

        monkeypatch.setattr("bandpo.data.prompting.chat.datetime", Clock)
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)

    return at


def test_an_evaluation_that_goes_on_the_next_day_sends_the_same_prompts(
    model, tmp_path, capsys, on_day
):
    template = model / "chat_template.jinja"
    dated = "It is {{ strftime_now('%d %b %Y') }}. " + template.read_text()
    template.write_text(dated)
    out, whole = tmp_path / "out", tmp_path / "whole"
    on_day(6)
    assert evaluate(model, whole) == evaluate(model, out) == 0
    lines = (out / "arithmetic.jsonl").read_text().splitlines(keepends=True)
    (out / "arithmetic.jsonl").write_text("".join(lines[:12]))  # three problems' samples
    (out / "summary.json").unlink()
    on_day(7)
    assert evaluate(model, out) == 0
    samples = [json.loads(line) for line in (out / "arithmetic.jsonl").open()]
    assert len(samples) == 40
    assert all(s["prompt"].startswith("It is 06 May 2031. <|user|>") for s in samples)
    assert read_summaries(out) == read_summaries(whole)
    assert read_summaries(out)["arithmetic"].settings["prompt_date"] == "2031-05-06"

    assert evaluate(model, out, "eval.resume=false") == 0
    assert "It is 07 May 2031" in (out / "arithmetic.jsonl").read_text()
    # another day is another prompt, and never mixed
    sent = [read_summaries(folder)["arithmetic"].settings for folder in (whole, out)]
    assert sent[0]["prompt_sha256"] != sent[1]["prompt_sha256"]
    capsys.readouterr()
    template.write_text(dated.replace("It is", "This is"))
    assert evaluate(model, out) == 2
    assert "prompt_sha256: " in capsys.readouterr().err
    template.write_text("{{ raise_exception('no users here') }}")
    assert evaluate(model, tmp_path / "new") == 2
    assert "model fails on problem" in (said := capsys.readouterr().err)
    assert "TemplateError: no users here" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("own", "gpu", "computed"),
    [
        ("bfloat16", False, "float32"),
        ("bfloat16", True, "bfloat16"),
        ("float16", True, "bfloat16"),
        ("float32", True, "float32"),
        ("float64", True, "float32"),
    ],
)
def test_a_checkpoint_is_computed_in_its_own_dtype_on_a_gpu(own, gpu, computed):
    assert dtype_on(own, gpu) == computed


def test_another_dtype_than_the_checkpoints_is_said(model, tmp_path, capsys):
    half = tmp_path / "half"
    shutil.copytree(model, half)
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert evaluate(half, tmp_path / "out") == 0
    assert "the model's weights are bfloat16; it is computed in float32" in capsys.readouterr().err
    assert Engine.calls[-1]["dtype"] == "float32"
    assert evaluate(half, tmp_path / "asked", "dtype=bfloat16") == 0
    assert "it is computed in" not in capsys.readouterr().err
    assert Engine.calls[-1]["dtype"] == "bfloat16"


def test_settings_that_cannot_be_read_are_an_error(model, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "arithmetic.settings.json").write_text("{")
    assert evaluate(model, tmp_path / "out") == 2
    assert "arithmetic.settings.json: not the settings of an" in capsys.readouterr().err


def test_from_arguments_to_report(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(model, out) == 0
    output = capsys.readouterr().out
    summary = read_summaries(out)["arithmetic"]
    assert f"{100 * summary.metrics['mean@4'].value:.1f}" in output
    assert "only the first 10 of 200" in output
    assert summary.settings["model"] == {
        "path": str(model), "weights": weights_fingerprint(model), "dtype": "float32"
    }  # fmt: skip
    assert (out / "report.html").exists()
    prompts = [json.loads(line)["prompt"] for line in (out / "arithmetic.jsonl").open()]
    assert all("<|user|>Compute" in prompt and r"\boxed{}" in prompt for prompt in prompts)
    longest = max(len(build_tokenizer().encode(prompt)) for prompt in prompts)
    assert Engine.calls[-1]["max_model_len"] == longest + 6

    before = (out / "summary.json").read_text()
    assert evaluate(model, out) == 0
    assert (out / "summary.json").read_text() == before

    assert evaluate(model, out, "eval.temperature=0.5") == 2
    assert "temperature: 1.0 → 0.5" in capsys.readouterr().err
    save_file({"w": torch.zeros(4)}, model / "model.safetensors")
    assert evaluate(model, out) == 2
    assert "model: " in capsys.readouterr().err
    assert (out / "summary.json").read_text() == before
    assert evaluate(model, out, "eval.resume=false") == 0
    assert (out / "summary.json").read_text() != before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.temperature=0", "temperature=0 draws the same sample"),
        ("eval.temperature=2.1", "eval.temperature=2.1: Input should be less than or equal to 2"),
        ("eval.temperature=-0.1", "eval.temperature=-0.1"),
        ("eval.temperature=0.001", "vLLM would sample at 0.01"),
        ("eval.temperature=nan", "finite number"),
        ("eval.top_p=1.5", "eval.top_p=1.5"),
        ("eval.seed=4294967296", "eval.seed=4294967296"),
        ("rollout.temperature=0.5", "it is 1.0 by eval.temperature"),
        ("eval.n=0", "eval.n=0"),
        ("eval.nn=3", "eval.nn"),
        ("eval.max_tokens=500", "takes 512 tokens"),
        ("benchmarks=[amc99]", "no benchmark 'amc99'"),
        ("benchmarks=[]", "benchmarks"),
        ("benchmarks=[arithmetic,arithmetic]", "named twice"),
        ("data.root=/no/where", "no such folder"),
        ("eval.template=boxd", "'boxd' is none of boxed"),
        ("eval.max_prompt_tokens=5", "longer than 5 tokens"),
        ("model=/no/where", "model=/no/where: no such folder"),
    ],
)
def test_bad_input_is_one_message_and_writes_nothing(model, tmp_path, capsys, override, message):
    assert evaluate(model, tmp_path / "out", override) == 2
    error = capsys.readouterr().err
    assert message in error and len(error) < 700
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"problem": "a", "answer": "1"}'] * 29 + ['{"problem": "b", "answer": ""}'], "line 30"),
        (['{"frage": "a", "answer": "1"}'], "no column 'problem'"),
        ([], "no rows"),
    ],
)
def test_bad_data_is_one_message_and_writes_nothing(model, tmp_path, capsys, lines, message):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    assert evaluate(model, tmp_path / "out", f"benchmarks=['file:{path}']") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_move_in_their_middle_are_other_weights(model, tmp_path, capsys):
    """As those of a LoRA run do between two exports of one size."""
    weights = torch.zeros(1 << 20)
    save_file({"w": weights}, model / "model.safetensors")
    assert evaluate(model, tmp_path / "out") == 0
    weights[len(weights) // 2] = 1e-3
    save_file({"w": weights}, model / "model.safetensors")
    calls = len(Engine.calls)
    assert evaluate(model, tmp_path / "out") == 2
    assert "holds samples of another evaluation" in capsys.readouterr().err
    assert evaluate(model, tmp_path / "out", "eval.resume=false") == 0
    assert len(Engine.calls) > calls


def test_a_wrong_revision(model, tmp_path, capsys, monkeypatch):
    import datasets

    def missing(*args, **kwargs):
        raise ValueError(f"Revision {kwargs['revision']!r} doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    spec = "benchmarks=[{name: a, source: {hub: b/c, revision: v9}}]"
    assert evaluate(model, tmp_path / "out", spec) == 2
    assert "b/c (split train, revision v9): cannot load" in capsys.readouterr().err


def test_a_model_must_be_named(capsys):
    assert main(["eval", "benchmarks=[arithmetic]"]) == 2
    assert "name what to evaluate: model=" in capsys.readouterr().err


def test_what_a_model_argument_means(model, tmp_path):
    assert find_model(str(model)).path == str(model.resolve())
    run = tmp_path / "run"
    step = run / "checkpoints" / "step_000010"
    step.mkdir(parents=True)
    model.rename(step / "hf")
    (run / "checkpoints" / "latest").symlink_to("step_000010")
    hf = str((step / "hf").resolve())
    assert find_model(str(run)).path == find_model(str(step)).path == hf
    hub = find_model("org/name")
    assert (hub.path, hub.slug) == ("org/name", "org_name")


def test_a_preset_is_named_with_every_deviation(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(model, out, "eval.preset=r1", "eval.temperature=1.0") == 0
    deviations = [
        "eval.n=4 instead of 64",
        "eval.temperature=1.0 instead of 0.6",
        "eval.max_tokens=6 instead of 32768",
        "eval.limit=10 instead of all problems",
    ]
    output = capsys.readouterr().out
    for line in ("protocol r1 (README of deepseek-ai/DeepSeek-R1", *deviations):
        assert line in " ".join(output.split())
    summary = read_summaries(out)["arithmetic"]
    assert summary.protocol["name"] == "r1" and summary.protocol["deviations"] == deviations
    assert (summary.settings["template"], summary.settings["top_p"]) == ("step_by_step", 0.95)
    page = (out / "report.html").read_text()
    assert all(line in page for line in ("protocol r1 (README", *deviations))
    sent = json.loads((out / "arithmetic.jsonl").read_text().splitlines()[0])["prompt"]
    assert "put your final answer within" in sent
    # what is in the folder is continued by its settings, whatever they are called
    given = ["eval.template=step_by_step", "eval.top_p=0.95", "eval.temperature=1.0"]
    assert evaluate(model, out, *given) == 0
    assert read_summaries(out)["arithmetic"].protocol == {}
    assert "protocol" not in capsys.readouterr().out
    assert evaluate(model, out, "eval.preset=nonsense") == 2
    assert "eval.preset=nonsense: no such preset" in capsys.readouterr().err


def test_seeds_repeat_an_evaluation_and_show_its_spread(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(model, out, "eval.seeds=[0,1,5]") == 0
    output = capsys.readouterr().out
    found = json.loads((out / "seeds.json").read_text())["arithmetic"]
    values = []
    for seed in (0, 1, 5):
        summary = read_summaries(out / f"seed{seed}")["arithmetic"]
        assert summary.settings["seed"] == seed
        assert (out / f"seed{seed}" / "report.html").exists()
        values.append(summary.metrics["mean@4"].value)
    assert list(found["by_seed"].values()) == values and len(set(values)) > 1
    assert found["mean"] == pytest.approx(sum(values) / 3)
    assert f"{100 * found['deviation']:.1f}" in output and found["expected"] > 0
    assert len(Engine.calls) and not (out / "summary.json").exists()
    assert evaluate(model, tmp_path / "one", "eval.seed=5") == 0
    one = read_summaries(tmp_path / "one")["arithmetic"]
    assert one == read_summaries(out / "seed5")["arithmetic"]
    assert evaluate(model, out, "eval.seeds=[1,1]") == 2
    assert "the same seed twice" in capsys.readouterr().err


def test_a_multiple_choice_benchmark_has_its_own_template(model, tmp_path):
    rows = ({"problem": f"Which, {i}?", "answer": f"r{i}", "w": f"w{i}"} for i in range(3))
    (tmp_path / "mc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = f"{{name: mc, source: {{path: {tmp_path / 'mc.jsonl'}}}, choices: {{wrong: [w]}}}}"
    assert evaluate(model, tmp_path / "out", f"benchmarks=[{spec}]", "eval.limit=null") == 0
    summary = read_summaries(tmp_path / "out")["mc"]
    assert summary.settings["template"] == "choice"
    assert {problem.answer for problem in summary.problems} <= {"A", "B"}
    samples = [json.loads(line) for line in (tmp_path / "out/mc.jsonl").open()]
    assert all("\nA) " in s["prompt"] and "the letter of the right" in s["prompt"] for s in samples)
    assert {s["status"] for s in samples if s["extracted"] == s["answer"]} == {"correct"}


def test_the_table_has_the_errors_and_the_groups_of_equal_answers(model, tmp_path, capsys):
    assert evaluate(model, tmp_path / "a") == evaluate(model, tmp_path / "b", "eval.seed=3") == 0
    output = capsys.readouterr().out
    summary = read_summaries(tmp_path / "a")["arithmetic"]
    error = summary.standard_error
    assert f"{100 * error.total:.1f}, {100 * error.samples:.1f}" in output
    assert error.total > 0 and error.samples > 0
    for row in ("g-pass@2, τ = 0.5", "mg-pass@2", "maj@4", "cons@4"):
        assert row in output and row.replace(", τ = ", "_") in summary.metrics
    assert [p.marks.count("1") for p in summary.problems] == [p.correct for p in summary.problems]
    places = [str(tmp_path / name) for name in "ab"]
    assert main(["compare", "--force", *places]) == 0
    compared = capsys.readouterr().out
    assert "cons@4" in compared and "mg-pass@4" in compared
    # a summary of an earlier version has neither
    path = tmp_path / "a/summary.json"
    old = json.loads(path.read_text())
    entry = old["arithmetic"]
    entry["metrics"] = {
        k: v for k, v in entry["metrics"].items() if not k.startswith(("cons", "mg"))
    }
    for problem in entry["problems"]:
        del problem["marks"], problem["consensus"]
    del entry["standard_error"], entry["protocol"]
    path.write_text(json.dumps(old))
    assert main(["compare", "--force", *places]) == 0
    assert "cons@4" not in capsys.readouterr().out
