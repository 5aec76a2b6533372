import json

import pytest

from bandpo.cli import main
from bandpo.reward import verifier_version


def sample(problem, answer, completion, **other):
    return {
        "problem_id": problem,
        "answer": answer,
        "prompt": "What is 37+14?",
        "completion": completion,
        "truncated": False,
        **other,
    }


def write(path, *samples):
    path.write_text("".join(json.dumps(s) + "\n" for s in samples))
    return str(path)


def test_saved_samples_are_judged_by_both(tmp_path, capsys):
    samples = write(
        tmp_path / "step_000001.jsonl",
        sample("a", "51", "\\boxed{51}", status="correct"),
        sample("a", "51", "\\boxed{37+14}\nAnswer: 51"),
        sample("b", "\\frac{1}{2}", "Answer: 0.5"),
        sample("b", "\\frac{1}{2}", "cut o", truncated=True),
    )
    counts = tmp_path / "counts.json"
    assert main(["rescore", samples, "--json", str(counts)]) == 0
    text = capsys.readouterr().out
    assert "4 completions, 3 scored differently" in text
    assert json.loads(counts.read_text())["only_math_correct"] == 2


def test_scores_of_another_verifier_are_named(tmp_path, capsys):
    samples = write(tmp_path / "aime24.jsonl", sample("a", "51", "\\boxed{51}"))
    settings = tmp_path / "aime24.settings.json"
    for version, named in [(verifier_version()["version"], False), ("0.9.0", True)]:
        settings.write_text(json.dumps({"verifier": version}))
        assert main(["rescore", samples]) == 0
        assert ("saved scores of verifier 0.9.0" in capsys.readouterr().out) is named


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "step.jsonl:2: this line is no JSON object"),
        ("[]", "step.jsonl:2: not a saved sample: no problem_id"),
        ('{"problem_id": "a"}', "step.jsonl:2: not a saved sample: no answer, prompt"),
    ],
)
def test_a_bad_line_is_named(tmp_path, capsys, line, message):
    path = tmp_path / "step.jsonl"
    path.write_text(json.dumps(sample("a", "1", "\\boxed{1}")) + "\n" + line + "\n")
    assert main(["rescore", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path, capsys):
    assert main(["rescore", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err
