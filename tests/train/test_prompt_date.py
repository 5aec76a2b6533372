"""A run whose chat template prints the date goes on after midnight as the run that it was."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SMALL = [
    *("rollout=hf", "trainer.checkpoint_every=1", "trainer.sample_every=1", "trainer.eval_every=1"),
    *("rollout.prompts_per_step=2", "rollout.group_size=2", "rollout.max_tokens=4"),
    *("learner.updates_per_rollout=1", "data.max_prompt_tokens=128", "eval.n=2"),
    "eval.benchmarks=[{name: few, source: {_target_: bandpo.data.arithmetic.problems, "
    "split: heldout, count: 2}}]",
]


def trained(day: str, folder: Path, model: Path, steps: int) -> None:
    command = [sys.executable, str(HERE / "on_day.py"), day, "train", f"model.path={model}"]
    done = subprocess.run(
        [*command, *SMALL, f"run.dir={folder}", f"trainer.steps={steps}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_a_run_keeps_the_date_of_its_beginning(tmp_path, untrained):
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(untrained(), model)
    template = model / "chat_template.jinja"
    template.write_text("It is {{ strftime_now('%d %b %Y') }}. " + template.read_text())
    trained("2031-05-06", run, model, 1)
    trained("2031-05-07", run, model, 2)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    for file in [f"samples/step_00000{i}" for i in (1, 2)] + [f"eval/00000{i}/few" for i in (1, 2)]:
        prompts = [json.loads(line)["prompt"] for line in (run / f"{file}.jsonl").open()]
        assert all(prompt.startswith("It is 06 May 2031. <|user|>") for prompt in prompts), file
    assert json.loads((run / "run.json").read_text())["prompt_date"] == "2031-05-06"
