"""Several sources with weights: what they are read to, and the shares in which they are drawn."""

import json
from collections import Counter

import pytest

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.data.composite import composite
from bandpo.data.sampling.history import History
from bandpo.data.sampling.ruled import sampler_of
from bandpo.data.sources import load_problems, mixture_of, weights_of
from bandpo.errors import UserError
from bandpo.types import Prompt


def rows(path, count):
    lines = [{"id": i, "problem": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(count)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def two(tmp_path):
    """Sources of 30 and 12 problems, as a configuration spells them."""
    return {
        "sources": [
            {"path": rows(tmp_path / "big.jsonl", 30), "weight": 3},
            {"path": rows(tmp_path / "small.jsonl", 12), "weight": 1},
        ]
    }


def sampler(spec, seed=5):
    problems = load_problems(spec)
    prompts = [Prompt(p, p.problem, (1,)) for p in problems]
    return sampler_of(None, weights_of(spec), prompts, seed, History(), 8)


def test_a_problem_has_its_sources_name(two):
    problems = load_problems(two)
    assert [p.source for p in problems] == ["big"] * 30 + ["small"] * 12
    assert problems[0].id == "big/0" and problems[30].id == "small/0"
    assert weights_of(two) == {"big": 3, "small": 1}


def test_sources_may_be_named_or_short_and_without_a_weight(tmp_path):
    path = rows(tmp_path / "a.jsonl", 3)
    made = {"_target_": "bandpo.data.arithmetic.problems", "split": "train", "count": 2, "seed": 0}
    named = {"sources": {"mine": path, "sums": {**made, "weight": 0.5}}}
    assert weights_of(named) == {"mine": 1.0, "sums": 0.5}
    assert [p.source for p in load_problems(named)] == ["mine"] * 3 + ["sums"] * 2
    # Files of one name in different folders are two sources.
    same = {"sources": [path, rows(tmp_path / "other/a.jsonl", 4)]}
    assert weights_of(same) == {"a": 1.0, "a-2": 1.0}
    assert len({p.id for p in load_problems(same)}) == 7


def test_one_source_has_no_weights(two):
    path = two["sources"][0]["path"]
    target = {"_target_": "bandpo.data.composite.composite", "sources": [path]}
    assert weights_of(path) == weights_of({"path": path}) == weights_of(target) == {}
    assert mixture_of(path) is None


def test_every_window_has_the_shares_of_the_weights(two):
    drawn_by = sampler(two)
    steps = [[p.problem.source for p in drawn_by.next(8)] for _ in range(50)]
    assert all(Counter(step) == {"big": 6, "small": 2} for step in steps)
    flat = [source for step in steps for source in step]
    for size in (4, 5, 12, 100):
        for start in range(len(flat) - size):
            assert abs(flat[start : start + size].count("big") - 0.75 * size) <= 1


def test_each_source_has_its_own_epochs_and_no_step_repeats(two):
    drawn_by = sampler(two)
    steps = [[p.problem.id for p in drawn_by.next(8)] for _ in range(60)]
    assert all(len(set(step)) == 8 for step in steps)
    for source, size in (("big", 30), ("small", 12)):
        order = [id for step in steps for id in step if id.startswith(source)]
        epochs = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        assert len(epochs) >= 10 and all(len(set(epoch)) == size for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_a_step_that_refills_keeps_to_the_shares_and_repeats_nothing(two):
    drawn_by, kept, counts = sampler(two), [], Counter()
    for _ in range(30):
        kept = kept[-5:]
        found = [p.problem.id for p in drawn_by.next(8, without=kept)]
        assert len(set(found)) == 8 and not set(found) & set(kept)
        counts += Counter(id.split("/")[0] for id in found)
        kept += found[:2]
    assert counts == {"big": 180, "small": 60}


def test_a_resumed_run_goes_on_with_the_same_draws(two):
    drawn_by = sampler(two)
    for _ in range(7):
        drawn_by.next(5)
    again = sampler(two)
    again.load_state_dict(json.loads(json.dumps(drawn_by.state_dict())))
    assert [again.next(5) for _ in range(20)] == [drawn_by.next(5) for _ in range(20)]


def test_a_source_too_small_for_its_share_is_refused(tmp_path):
    few, many = rows(tmp_path / "few.jsonl", 3), rows(tmp_path / "many.jsonl", 40)
    spec = {"sources": [{"path": few, "weight": 1}, {"path": many, "weight": 1}]}
    sampler(spec).require(6)
    with pytest.raises(
        UserError, match=r"few has 3 problems that fit, .* 4 different ones of the 8"
    ):
        sampler(spec).require(8)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"sources": []}, "sources: "),
        ({"sources": {}}, "sources: "),
        ({"sources": [{"path": "a.jsonl", "weight": 0}]}, "weight: Input should be greater than 0"),
        ({"sources": [{"path": "a.jsonl", "weight": float("nan")}]}, "weight: "),
        ({"sources": [{"weight": 2}]}, "exactly one of path, hub, _target_"),
        ({"sources": [{"path": "a.jsonl", "wieght": 2}]}, "wieght"),
        ({"sources": [{"sources": ["a.jsonl"]}]}, "exactly one of path, hub, _target_"),
        ({"sources": ["a.jsonl"], "weight": 1}, "weight: Extra inputs"),
        ({"sources": 3}, "sources: "),
    ],
)
def test_a_wrong_mixture_is_refused_with_its_key(spec, message):
    with pytest.raises(UserError, match=message):
        load_problems(spec)


def test_columns_belong_to_a_source(two):
    with pytest.raises(UserError, match=r"data\.columns\.problem: data\.train has several sources"):
        load_problems(two, {"problem": "question"})


def test_weights_are_not_lost_inside_a_composite(two):
    with pytest.raises(UserError, match="exactly one of path, hub, _target_"):
        composite([two])


def test_it_composes_from_the_command_line(two):
    sources = ",".join(f"{{path: {s['path']}, weight: {s['weight']}}}" for s in two["sources"])
    overrides = ["model.path=x", f"data.train={{sources: [{sources}]}}", "sampler=rest"]
    data = compose("train", overrides, Config).data
    assert weights_of(data.train) == {"big": 3, "small": 1}
    assert data.sampler["_target_"] == "bandpo.data.sampling.Rest"
