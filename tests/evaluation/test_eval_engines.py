"""Every kind of engine gives the same samples from the same seeds, with real vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bandpo.model.source import find_model

ROOT = Path(__file__).parents[2]
pytest.importorskip("vllm")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_server_and_an_endpoint_sample_as_the_engine_in_process():
    script = [sys.executable, str(ROOT / "benchmarks" / "eval_engines.py")]
    chosen = ["--model", find_model("embedded").path, "benchmarks=[arithmetic]"]
    chosen += ["eval.template=none", "eval.limit=20", "eval.n=4", "eval.max_tokens=48"]
    done = subprocess.run([*script, *chosen], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    base = found.pop("vllm_local")
    assert set(found) == {"vllm_server", "openai, completions", "openai, chat"}
    assert 0.0 < base["mean@4"] < 1.0, "samples that could not differ would prove nothing"
    for way, values in found.items():
        assert values["equal completions"] == values["equal verdicts"] == 1.0, way
        # An endpoint counts the tokens of a prompt's samples together.
        same = base.keys() - {"equal lengths"}
        assert {k: values[k] for k in same} == pytest.approx({k: base[k] for k in same}), way
    for way in ("vllm_server", "openai, completions"):
        assert found[way]["equal lengths"] == 1.0, way
