"""A closed engine frees all that it held on its device, so that another can start."""

from pathlib import Path

import pytest

pytest.importorskip("vllm")


def test_nothing_of_an_engine_that_died_is_left_while_its_error_is_held(launch, untrained):
    (result,) = launch(Path(__file__).parent / "died_engine_worker.py", 1, str(untrained()))
    assert "fell off the bus" in result["cause"] and result["told"]  # where it happened, as text
    assert result["left"] == []
