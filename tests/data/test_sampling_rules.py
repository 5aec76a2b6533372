"""Rules of drawing: what they choose, that no step repeats a problem, exact resume."""

import json
import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandpo.data.sampler import PromptSampler
from bandpo.data.sampling import ByPassRate, Epochs, Pools, Rest
from bandpo.data.sampling.history import RECENT, History, Results
from bandpo.data.sampling.ruled import RuledSampler, rule_of, sampler_of
from bandpo.data.sampling.rules import BySource
from bandpo.data.sampling.streams import Streams
from bandpo.errors import UserError
from bandpo.types import Problem, Prompt


def prompts_of(count, source="made"):
    return [
        Prompt(Problem(f"{source}{i}", f"q{i}", "1", source), f"<{source}{i}>", (i,))
        for i in range(count)
    ]


def ids(prompts):
    return [prompt.problem.id for prompt in prompts]


class Run:
    """A run as its sampler sees it: each step draws `n`, and then the results are known."""

    def __init__(self, rule, prompts, pass_rate=lambda id, step: 0.5, n=4, seed=3):
        self.history = History()
        self.sampler = RuledSampler(prompts, seed, rule, self.history, n)
        self.pass_rate, self.n = pass_rate, n

    def step(self):
        """The ids that a step draws."""
        step = self.history.step + 1
        drawn = ids(self.sampler.next(self.n))
        groups = [(id, [i < 8 * self.pass_rate(id, step) for i in range(8)]) for id in drawn]
        self.history.record(groups, step)
        return drawn

    def saved(self):
        """What a checkpoint keeps of it, by way of its files."""
        lines = self.history.lines(lambda id: {"state": self.sampler.state(self.history, id)})
        return json.loads(json.dumps(self.sampler.state_dict())), lines

    def resumed(self, saved, folder, prompts):
        """Another run that continues from what this one saved."""
        (folder / "problems.jsonl").write_text(saved[1])
        other = Run(self.sampler.rule, prompts, self.pass_rate, self.n, self.sampler.seed)
        other.sampler.load_state_dict(saved[0])
        other.history.restore(History.read(folder / "problems.jsonl"))
        return other


def fixed(id, step):
    """A third of the problems are always solved, a third never."""
    return (0.0, 0.5, 1.0)[int(id.removeprefix("made")) % 3]


def by_chance(id, step):
    return random.Random(f"{id}/{step}").choice((0.0, 0.125, 0.5, 1.0))


# --- Epochs ------------------------------------------------------------------------------------


def test_the_first_epoch_is_that_of_the_plain_sampler():
    prompts = prompts_of(24)
    plain, ruled = PromptSampler(prompts, 3), Run(Epochs(), prompts, n=4)
    assert [ids(plain.next(4)) for _ in range(12)] == [ruled.step() for _ in range(12)]


def test_an_epoch_has_every_problem_once_and_its_rest_is_not_lost():
    run = Run(Epochs(), prompts_of(10), n=4)
    drawn = [id for _ in range(10) for id in run.step()]
    assert set(Counter(drawn).values()) == {4}
    assert all(len(set(drawn[i : i + 4])) == 4 for i in range(0, 40, 4))
    assert drawn[:10] != drawn[10:20]


def test_what_is_excluded_is_not_drawn_and_all_of_the_others_may_be():
    sampler = Run(Epochs(), prompts_of(6)).sampler
    assert sorted(ids(sampler.next(4, without={"made0", "made1", "made2"}))) == [
        *("made3", "made4", "made5")
    ]
    assert sampler.next(4, without={f"made{i}" for i in range(6)}) == []


# --- Rest --------------------------------------------------------------------------------------


def test_a_problem_solved_or_failed_twice_rests_for_so_many_epochs():
    run = Run(Rest(in_a_row=2, epochs=3), prompts_of(30), fixed, n=6)
    drawn: dict[str, list[int]] = {}
    for step in range(1, 41):
        for id in run.step():
            drawn.setdefault(id, []).append(step)
    for id, steps in drawn.items():
        if fixed(id, 0) == 0.5:
            continue
        # The second time tells; from then on every time does.
        for before, after in pairwise(steps[1:]):
            assert after > before + 15, (id, steps)
    mixed = sum(len(steps) for id, steps in drawn.items() if fixed(id, 0) == 0.5)
    assert mixed > 0.55 * 40 * 6  # of a third of the problems


def test_what_rests_is_counted_by_its_reason_and_by_its_return():
    run = Run(Rest(in_a_row=1, epochs=2 / 3), prompts_of(12), fixed, n=4)
    assert run.sampler.states() == {"solved": 0, "failed": 0, "active": 12}
    first = run.step()
    expected = Counter({0.0: "failed", 0.5: "active", 1.0: "solved"}[fixed(id, 0)] for id in first)
    found = run.sampler.states()
    assert (found["solved"], found["failed"]) == (expected["solved"], expected["failed"])
    assert run.sampler.had_rested(first) == expected["solved"] + expected["failed"]
    assert sum(found.values()) == 12


def test_a_window_of_pass_rates_is_a_rest_after_one_group():
    rates = {"made0": 0.125, "made1": 0.25, "made2": 0.75, "made3": 0.875}
    run = Run(Rest(in_a_row=1, epochs=99, low=0.2, high=0.8), prompts_of(4), lambda i, _: rates[i])
    run.step()
    assert [run.sampler.state(run.history, f"made{i}") for i in range(4)] == [
        *("failed", "active", "active", "solved")
    ]


def test_where_too_few_are_left_the_longest_away_return_and_one_line_says_so():
    run = Run(Rest(in_a_row=1, epochs=100), prompts_of(10), lambda *_: 1.0, n=4)
    steps = [run.step() for _ in range(2)]
    assert run.sampler.take_notes() == []
    third = run.step()  # 2 of 10 are left
    assert set(third) - set(steps[0]) == {f"made{i}" for i in range(10)} - {*steps[0], *steps[1]}
    assert len(set(third) & set(steps[0])) == 2 and not set(third) & set(steps[1])
    (note,) = run.sampler.take_notes()
    assert "2 problems that rest (data.sampler) return early" in note
    assert run.sampler.take_notes() == []
    # The oldest of those that are away, again and again.
    fourth = run.step()
    assert set(fourth) <= {*steps[0], *steps[1]} - set(third)
    assert len(set(fourth)) == 4


# --- Pools and weights -------------------------------------------------------------------------


def test_pools_take_their_shares_exactly():
    rule = Pools(easy=0.9, hard=0.1, easy_share=0.25, hard_share=0.125)
    run = Run(rule, prompts_of(96), fixed, n=8)
    for _ in range(30):
        run.step()  # every problem at least once
    assert run.sampler.states() == {"easy": 32, "normal": 32, "hard": 32}
    for _ in range(20):
        assert Counter(fixed(id, 0) for id in run.step()) == {1.0: 2, 0.5: 5, 0.0: 1}


def test_unseen_problems_are_normal_and_an_empty_pool_leaves_its_share():
    run = Run(Pools(easy_share=0.5, hard_share=0.25), prompts_of(8), n=4)
    assert run.sampler.states() == {"easy": 0, "normal": 8, "hard": 0}
    assert len(set(run.step() + run.step())) == 8


def test_a_pool_without_a_share_is_drawn_only_when_the_others_are_empty():
    run = Run(Pools(easy_share=0, hard_share=0), prompts_of(12), fixed, n=4)
    for _ in range(3):
        run.step()
    assert {fixed(id, 0) for id in run.step()} == {0.5}
    run.n = 6
    assert Counter(fixed(id, 0) for id in run.step())[0.5] == 4


def test_draws_by_weight_follow_p_times_one_minus_p():
    rule = ByPassRate(unseen=0.5, least=0.01)
    rates = (0.0, 0.125, 0.5)
    history = History(
        {f"made{i}": Results(1, 8, int(8 * rates[i % 3]), 1, (rates[i % 3],)) for i in range(300)},
        1,
    )
    sampler = RuledSampler(prompts_of(300), 1, rule, history, 3)
    count: Counter[float] = Counter()
    for step in range(2, 2002):
        count.update(rates[int(id[4:]) % 3] for id in ids(sampler.next(3)))
        history.record([], step)
    weights = {rate: rate * (1 - rate) + 0.01 for rate in rates}
    for rate, weight in weights.items():
        expected = 6000 * weight / sum(weights.values())
        assert abs(count[rate] - expected) < 4 * expected**0.5 + 20, (rate, count)


def test_no_draw_by_weight_holds_a_problem_twice():
    run = Run(ByPassRate(), prompts_of(9), by_chance, n=7)
    assert all(len(set(run.step())) == 7 for _ in range(50))


def test_a_refill_prefers_problems_that_the_step_has_not_drawn():
    sampler = Run(ByPassRate(), prompts_of(10)).sampler
    first, second, third = (set(ids(sampler.next(4))) for _ in range(3))
    assert not first & second and len(third - first - second) == 2 and len(third) == 4


# --- Shares ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0, 7.5]), min_size=1, max_size=6), st.data())
def test_shares_hold_in_every_window(weights, data):
    named = {f"part{i}": weight for i, weight in enumerate(weights)}
    streams, drawn = Streams((), 0), []
    sizes = dict.fromkeys(named, 10**6)
    while len(drawn) < 300:
        drawn += streams.shares("", named, sizes, data.draw(st.integers(1, 40)))
    total, parts = sum(weights), len(weights)
    bound = 1 - 1 / (2 * parts - 2) if parts > 1 else 0
    for part, weight in named.items():
        counts = [0]
        for pick in drawn:
            counts.append(counts[-1] + (pick == part))
        gaps = [count - weight / total * t for t, count in enumerate(counts)]
        assert max(map(abs, gaps)) <= bound + 1e-9
        # A window is the difference of two beginnings.
        assert max(gaps) - min(gaps) < 2


def test_a_part_that_runs_out_leaves_its_draws_and_has_no_claim_to_them_later():
    streams = Streams((), 0)
    weights = {"a": 1.0, "b": 1.0, "c": 2.0}
    picks = streams.shares("", weights, {"a": 0, "b": 10, "c": 10}, 8)
    assert Counter(picks)["a"] == 0 and Counter(picks)["c"] > Counter(picks)["b"]
    later = streams.shares("", weights, {"a": 10, "b": 10, "c": 10}, 8)
    assert Counter(later) == {"a": 2, "b": 2, "c": 4}
    assert streams.shares("", weights, {"a": 1, "b": 0, "c": 1}, 8) == ["c", "a"]


# --- All of them -------------------------------------------------------------------------------

RULES = [
    Epochs(),
    Rest(in_a_row=1, epochs=0.7),
    Pools(Rest(in_a_row=1, epochs=0.5), easy_share=0.3, hard_share=0.2),
    ByPassRate(),
    Rest(ByPassRate(), in_a_row=2, epochs=1, low=0.1, high=0.9),
    BySource({"made": 3.0, "other": 1.0}, Rest(Pools(), in_a_row=2, epochs=0.6)),
]
MIXED = [*prompts_of(17), *prompts_of(8, "other")]


def prompts_for(rule):
    return MIXED if isinstance(rule, BySource) else MIXED[:17]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("taken", [0, 1, 7, 20])
def test_a_resumed_run_draws_what_the_other_one_does(rule, taken, tmp_path):
    run = Run(rule, prompts_for(rule), by_chance)
    for _ in range(taken):
        run.step()
    again = run.resumed(run.saved(), tmp_path, prompts_for(rule)[::-1])
    assert [again.step() for _ in range(25)] == [run.step() for _ in range(25)]
    assert again.saved() == run.saved()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_draws_are_of_the_seed_and_refuse_other_data(rule):
    prompts = prompts_for(rule)
    one, two = Run(rule, prompts, by_chance), Run(rule, prompts, by_chance, seed=4)
    assert [one.step() for _ in range(9)] != [two.step() for _ in range(9)]
    with pytest.raises(UserError, match="the seed changed"):
        two.sampler.load_state_dict(one.saved()[0])
    with pytest.raises(UserError, match="the training data or its prompts changed"):
        Run(rule, prompts[:-1]).sampler.load_state_dict(one.saved()[0])


@pytest.mark.parametrize("rule", RULES, ids=str)
@settings(max_examples=15)
@given(st.data())
def test_a_request_has_as_many_different_ones_as_there_are(rule, data):
    run = Run(rule, prompts_for(rule), by_chance)
    size = len(prompts_for(rule))
    for _ in range(12):
        left_out = data.draw(st.sets(st.sampled_from(ids(prompts_for(rule))), max_size=size))
        run.n = data.draw(st.integers(1, 8))
        found = ids(run.sampler.next(run.n, without=left_out))
        assert len(found) == len(set(found)) == min(run.n, size - len(left_out))
        assert not set(found) & left_out
        run.step()
        assert sum(run.sampler.states().values()) == size


# --- What is known of problems -----------------------------------------------------------------


def test_results_add_up_and_only_the_last_ones_are_kept():
    history = History()
    for step in range(1, 21):
        history.record([("a", [True] * (step % 4) + [False] * (4 - step % 4))], step)
    found = history.of("a")
    assert (found.seen, found.samples, found.correct, found.step) == (20, 80, 30, 20)
    assert found.mean_pass_rate == 30 / 80 and found.pass_rate == 0
    assert len(found.recent) == RECENT and found.recent[-4:] == (0.25, 0.5, 0.75, 0)
    assert found.in_a_row(lambda rate: rate < 0.8) == RECENT
    assert found.in_a_row(lambda rate: rate == 0) == 1
    assert history.of("b").pass_rate is None


def test_the_file_has_a_line_for_each_problem_seen_and_reads_back(tmp_path):
    history = History()
    history.record([("b", [True, False]), ("ä/1", [True, True])], 7)
    text = history.lines(lambda id: {"source": "s", "state": "active"})
    first, _ = (json.loads(line) for line in text.splitlines())
    assert first == {
        **{"id": "b", "source": "s", "state": "active", "seen": 1, "pass_rate": 0.5},
        **{"mean_pass_rate": 0.5, "step": 7, "samples": 2, "correct": 1, "recent": [0.5]},
    }
    (tmp_path / "problems.jsonl").write_text(text)
    again = History.read(tmp_path / "problems.jsonl")
    assert again.step == 7 and again.lines(lambda id: {"source": "s", "state": "active"}) == text
    assert History.read(tmp_path / "none").step == 0
    (tmp_path / "problems.jsonl").write_text(text + '{"id": "c"}\n')
    with pytest.raises(UserError, match=r"problems\.jsonl, line 3: not a problem's results"):
        History.read(tmp_path / "problems.jsonl")


# --- As a configuration spells them ------------------------------------------------------------


def test_a_configuration_wraps_rules_in_each_other():
    inner = {"_target_": "bandpo.data.sampling.ByPassRate", "least": 0.1}
    target = {"_target_": "bandpo.data.sampling.Rest", "epochs": 9, "inner": inner}
    assert rule_of(target) == Rest(ByPassRate(least=0.1), epochs=9)
    prompts = prompts_of(5)
    assert type(sampler_of(None, {}, prompts, 0, History(), 1)) is PromptSampler
    assert sampler_of(target, {}, prompts, 0, History(), 1).rule == rule_of(target)
    weighted = sampler_of(None, {"made": 1.0}, prompts, 0, History(), 1)
    assert weighted.rule == BySource({"made": 1.0}, Epochs())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "bandpo.data.sampling.Rest", "in_a_row": 17}, "in_a_row=17: must be from 1"),
        ({"_target_": "bandpo.data.sampling.Rest", "low": 0.9, "high": 0.1}, "low below high"),
        ({"_target_": "bandpo.data.sampling.Rest", "stepps": 1}, "unexpected keyword"),
        (
            {"_target_": "bandpo.data.sampling.Pools", "easy_share": 0.9, "hard_share": 0.2},
            "less th",
        ),
        ({"_target_": "bandpo.data.sampling.ByPassRate", "least": 0}, "never return"),
        ({"_target_": "bandpo.types.Turn", "role": "user", "content": ""}, "no rule of drawing"),
    ],
)
def test_what_is_no_rule_is_said(settings, message):
    with pytest.raises(UserError, match=message):
        rule_of(settings)
