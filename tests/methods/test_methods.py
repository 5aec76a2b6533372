"""Every method of configs/method trains."""

import math
from pathlib import Path

from bandpo.config.composition import config_dir


def test_every_method_takes_updates(launch, untrained):
    worker = Path(__file__).with_name("method_worker.py")
    results = {r["method"]: r for r in launch(worker, 1, str(untrained()))}
    files = {p.stem for p in (config_dir() / "method").glob("*.yaml") if p.stem[0] != "_"}
    assert results.keys() == files
    for method, result in results.items():
        assert all(map(math.isfinite, result["losses"])), method
        assert result["grad_norm"] > 0 and result["moved"] > 1e-5, method
        assert {"policy/entropy", "clip/high_frac", "ratio/mean"} <= set(result["metrics"])
    # A reference model is held only where its coefficient is above 0.
    assert results["grpo"]["reference"] and not results["dapo"]["reference"]
