"""What a user can get wrong: each kind ends with a message in words, exit code 2, no traceback."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

SMALL = [
    *("rollout=hf", "trainer.steps=1", "eval.benchmarks=[]", "rollout.prompts_per_step=4"),
    *("rollout.group_size=2", "rollout.max_tokens=4", "learner.updates_per_rollout=2"),
    *("data.max_prompt_tokens=64", "run.dir=run"),
]


def problem(i, **changes):
    return {"id": f"p{i}", "problem": f"Compute {i}+1.", "answer": str(i + 1), **changes}


def write(path, rows):
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )


class Runs:
    """What unpickling it would do shows in `ran`."""

    ran: list[str] = []  # noqa: RUF012

    def __reduce__(self):
        return (Runs.ran.append, ("code",))


# --- What the cases need on disk: functions of the folder and of a good model's folder -----------


def rows(*bad, good=6):
    def make(folder, model):
        write(folder / "data.jsonl", [*bad, *map(problem, range(good))])

    return make


def raw(name, content):
    def make(folder, model):
        (folder / name).write_bytes(content)

    return make


def model_without(*names):
    def make(folder, model):
        shutil.copytree(model, folder / "model")
        for name in names:
            (folder / "model" / name).unlink()

    return make


def model_with(name, text):
    def make(folder, model):
        shutil.copytree(model, folder / "model")
        (folder / "model" / name).write_text(text)

    return make


def pickled(content):
    def make(folder, model):
        model_without("model.safetensors")(folder, model)
        content(folder / "model/pytorch_model.bin")

    return make


def tensors(path):
    torch.save({"lm_head.weight": torch.zeros(2, 2)}, path)


def code(path):
    path.write_bytes(pickle.dumps(Runs()))


def model_changed(name, change):
    """The good model with one of its files as `change` makes it."""

    def make(folder, model):
        shutil.copytree(model, folder / "model")
        change(folder / "model" / name)

    return make


def less(path, tensor="model.layers.1.mlp.up_proj.weight"):
    save_file({k: v for k, v in load_file(path).items() if k != tensor}, path, {"format": "pt"})


def shorter(path):
    path.write_bytes(path.read_bytes()[:-10])


def quantised(path):
    settings = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    path.write_text(json.dumps(settings))


def capped(path):
    settings = json.loads(path.read_text()) | {"attn_logit_softcapping": 30.0}
    path.write_text(json.dumps(settings))


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"


def subfolder(name):
    def make(folder, model):
        (folder / name).mkdir()

    return make


DATA = "data.train=data.jsonl"
MODEL = "model.path=model"

# name: (overrides or a whole command, what it needs, fragments of the message)
CASES = {
    # the configuration
    "no such method": ("method=nonsense", None, ["method=nonsense", "band_kl"]),
    "no such key": ("learner.learning_rate=1", None, ["learner.learning_rate"]),
    "a key added": ("+learner.momentum=0.9", None, ["learner.momentum: no such key"]),
    "no syntax": ("=3", None, ["=3"]),
    "a negative rate": ("learner.lr=-1", None, ["learner.lr=-1", "greater than 0"]),
    "a word for a number": ("trainer.steps=many", None, ["trainer.steps='many'", "integer"]),
    "a group of one": ("rollout.group_size=1", None, ["rollout.group_size=1", "equal to 2"]),
    "too few prompts": ("rollout.prompts_per_step=1", None, ["=1 is too few for", "per_rollout=2"]),
    "a cut distribution": ("rollout.top_p=0.9", None, ["top_p=0.9", "top_p=1 and top_k=0"]),
    "no such stage": ("learner.zero_stage=7", None, ["learner.zero_stage=7"]),
    "offload without ZeRO": ("learner.offload=parameters", None, ["needs learner.zero_stage=3"]),
    "no such type": ("model.dtype=float8", None, ["model.dtype='float8'", "bfloat16"]),
    "bfloat16 for the small policy": (
        ["model.path=embedded", "model.dtype=bfloat16"],
        None,
        ["model.dtype=bfloat16", "float32"],
    ),
    "no such variant": ("model.path=embedded:depth=3", None, ["embedded:depth=3", "depth"]),
    "a negative radius": ("method.delta=-0.1", None, ["method=band_kl", "delta"]),
    "no such class": (
        "method.loss._target_=bandpo.loss.Missing",
        None,
        ["method=band_kl cannot be built", "Missing"],
    ),
    "a buffer that does not fit": ("method=dapo", None, ["reward cannot be built", "512"]),
    "a negative time": ("reward.timeout=-1", None, ["reward cannot be built", "timeout"]),
    "no engine": ("rollout.engine=null", None, ["rollout.engine=None"]),
    "servers that are no list": (
        ["rollout=vllm_server", "rollout.engine.urls=localhost"],
        None,
        ["rollout.engine.urls", "[http://127.0.0.1:8000]"],
    ),
    "a server that is no URL": (
        ["rollout=vllm_server", "rollout.engine.urls=[localhost:8000]"],
        None,
        ["localhost:8000 is not like http://"],
    ),
    "an alarm that shouts": (
        "alarms=[{_target_: bandpo.alarms.Below, metric: policy/entropy, limit: 1, action: shout}]",
        None,
        ["alarms cannot be built", "warn or stop", "shout"],
    ),
    "no such alarm": (
        "alarms=[{_target_: bandpo.alarms.Beneath}]",
        None,
        ["alarms cannot be built", "Beneath"],
    ),
    "no time at all": ("trainer.max_hours=0", None, ["trainer.max_hours=0", "greater than 0"]),
    "no such tracker": ("tracking.trackers=[nonsense]", None, ["nonsense", "tensorboard"]),
    "no such benchmark": ("eval.benchmarks=[amc99]", None, ["amc99", "amc23"]),
    "no such checkpoint": ("trainer.resume=/nowhere", None, ["trainer.resume=/nowhere", "auto"]),
    "an empty checkpoint": ("trainer.resume=empty", subfolder("empty"), ["empty", "checkpoint"]),
    "a file for a folder": ("run.dir=taken", raw("taken", b""), ["run.dir=taken", "not a folder"]),
    # the data
    "no such file": ("data.train=nowhere.jsonl", None, ["nowhere.jsonl"]),
    "no rows": (DATA, rows(good=0), ["data.jsonl", "no rows"]),
    "no answer": (DATA, rows({"id": "x", "problem": "?"}), ["data.jsonl", "line 1", "answer"]),
    "broken JSON": (DATA, rows("{broken"), ["data.jsonl", "line 1"]),
    "not UTF-8": (
        DATA,
        raw("data.jsonl", b'{"problem": "\xff\xfe"}\n'),
        ["data.jsonl", "line 1", "utf-8"],
    ),
    "the same id twice": (DATA, rows(problem(0)), ["data.jsonl", "line 2", "duplicate id 'p0'"]),
    "too few rows": (DATA, rows(good=1), ["4 prompts per step", "only 1"]),
    "no parquet": ("data.train=d.parquet", raw("d.parquet", b"text"), ["d.parquet"]),
    "no columns": ("data.train=d.csv", raw("d.csv", b"a,b\n1,2\n"), ["d.csv", "problem"]),
    "a long prompt": (
        [DATA, "data.overlong_prompts=error"],
        rows(problem(9, problem="x" * 500)),
        ["p9", "64"],
    ),
    "only long prompts": (
        [DATA, "data.max_prompt_tokens=2"],
        rows(),
        ["6 of 6 prompts", "max_prompt_tokens"],
    ),
    "no such template": ("data.template=boxd", None, ["template 'boxd'", "answer_line"]),
    # the model
    "no such model": ("model.path=./nowhere", None, ["./nowhere", "no such folder"]),
    "a folder without a model": ("model.path=empty", subfolder("empty"), ["empty", "config.json"]),
    "no weights": (MODEL, model_without("model.safetensors"), ["model", "safetensors"]),
    "broken settings": (MODEL, model_with("config.json", "{"), ["model", "config"]),
    "no tokenizer": (
        MODEL,
        model_without("tokenizer.json", "tokenizer_config.json"),
        ["model", "tokenizer"],
    ),
    "no chat template": (MODEL, model_without("chat_template.jinja"), ["model", "chat template"]),
    "a missing tensor": (
        MODEL,
        model_changed("model.safetensors", less),
        ["model.layers.1.mlp.up_proj.weight", "drawn at random"],
    ),
    "a pointer for weights": (
        MODEL,
        model_with("model.safetensors", POINTER),
        ["model.safetensors is a git-lfs pointer", "git lfs pull"],
    ),
    "a pointer for a tokenizer": (
        MODEL,
        model_with("tokenizer.json", POINTER),
        ["tokenizer.json is a git-lfs pointer"],
    ),
    "weights cut short": (
        MODEL,
        model_changed("model.safetensors", shorter),
        ["model.safetensors is truncated"],
    ),
    "quantised weights": (MODEL, model_changed("config.json", quantised), ["quantised", "gptq"]),
    "capped attention": (
        MODEL,
        model_changed("config.json", capped),
        ["attn_logit_softcapping=30.0", "model.attention=eager"],
    ),
    "attention that it has not": (
        "model.attention=flash_attention_2",
        None,
        ["FlashAttention2", "model.attention=sdpa"],
    ),
    "pickled weights": (MODEL, pickled(tensors), ["pytorch_model.bin", "model.allow_pickle=true"]),
    "pickled code": (
        [MODEL, "model.allow_pickle=true"],
        pickled(code),
        ["pytorch_model.bin", "more than tensors"],
    ),
    # other commands
    "no such command": (["!", "trian"], None, ["no command 'trian'", "train"]),
    "nothing to evaluate": (["!", "eval"], None, ["model=<folder"]),
    "no run to plot": (["!", "plot", "training", "nowhere"], None, ["nowhere"]),
    "no tokens to replay": (["!", "replay", "empty"], subfolder("empty"), ["dump_tokens_every"]),
    "no such problems": (["!", "data", "check", "nowhere.jsonl"], None, ["nowhere.jsonl"]),
    "no such token": (["!", "explain", "logp=x"], None, ["logp=x"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_in_words(case, command, untrained, tmp_path, monkeypatch, capsys):
    given, make, fragments = CASES[case]
    monkeypatch.chdir(tmp_path)
    if make is not None:
        make(tmp_path, untrained())
    given = [given] if isinstance(given, str) else given
    if given[0] == "!":
        arguments = given[1:]
    else:
        keys = {override.split("=")[0].lstrip("+") for override in given}
        settings = ["policy=embedded", f"model.path={untrained()}", *SMALL]
        arguments = ["train", *(s for s in settings if s.split("=")[0] not in keys), *given]
    assert command(*arguments) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    for fragment in fragments:
        assert fragment in told, told
    assert Runs.ran == []


def test_there_are_enough_kinds():
    assert len(CASES) >= 40


def test_long_prompts_are_dropped_and_counted_and_equal_groups_warned_of(
    command, untrained, tmp_path, monkeypatch, capsys
):
    rows = [problem(0, problem="x" * 500), *map(problem, range(1, 6))]
    write(tmp_path / "data.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "train",
        *SMALL,
        "data.train=data.jsonl",
        "policy=embedded",
        f"model.path={untrained()}",
    ]
    assert command(*arguments) == 0
    told = capsys.readouterr().out
    assert "dropped 1 prompts longer than 64 tokens" in told
    # The untrained policy answers nothing: every reward is 0.
    assert "rewards of every group are equal" in " ".join(told.split())
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert line["reward/zero_std_groups"] == line["rollout/groups"] == 4
    assert json.loads((tmp_path / "run/run.json").read_text())["dropped_prompts"] == 1
