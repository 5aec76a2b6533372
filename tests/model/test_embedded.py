"""The embedded task and policy: no leak, no restated answer, the same from the same seed."""

import dataclasses
import hashlib
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bandpo.data import arithmetic
from bandpo.errors import UserError
from bandpo.model import warm_up
from bandpo.model.embedded import Recipe, build_model, build_tokenizer
from bandpo.model.source import embedded_recipe, find_model
from bandpo.model.warm_up import PROBED, SHIPPED, Proof, WarmUp, ensure, prove
from bandpo.reward import MathVerifier

SHIPPED_SHA256 = "04589f5836bcae92a331c3bdf2866fc728d501e946dad6fdbf08a13329ef1fdc"


def test_held_out_problems_never_occur_in_training():
    train = arithmetic.problems("train", 4096, seed=0)
    held_out = arithmetic.problems("heldout", 400, seed=3)
    assert len({p.id for p in train}) == 4096 and len({p.id for p in held_out}) == 400
    assert not {p.problem for p in train} & {p.problem for p in held_out}


def test_answers_and_solutions_are_right():
    rng = random.Random(0)
    for _ in range(200):
        terms = arithmetic.draw_terms(rng, "train")
        expression = arithmetic.expression_of(terms)
        answer = eval(expression)
        solution = arithmetic.worked_solution(terms)
        assert solution.endswith(rf"\boxed{{{answer}}}")
        for step in solution.split(";")[:-1]:
            left, right = step.split("=")
            assert eval(left) == int(right) >= 0
        for opening in arithmetic.OPENINGS:
            assert arithmetic.worked_solution(terms, opening) == opening + solution
        assert f"Compute {expression}." == arithmetic.statement_of(terms)


def test_the_verifier_takes_solutions_and_refuses_restatements():
    problems = arithmetic.problems("heldout", 8)
    expressions = [p.problem.removeprefix("Compute ").rstrip(".") for p in problems]
    pairs = [(rf"\boxed{{{p.answer}}}", p.answer) for p in problems]
    pairs += [(rf"\boxed{{{e}}}", p.answer) for p, e in zip(problems, expressions, strict=True)]
    with MathVerifier(workers=1) as verifier:
        scores = verifier.score(pairs, [p.problem for p in problems] * 2)
    assert [score.value for score in scores] == [1.0] * 8 + [0.0] * 8


def test_the_tokenizer_takes_any_text_and_gives_it_back():
    tokenizer = build_tokenizer()
    text = "7+2=9;\\boxed{9} — ∫ π 数 🙂"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids("\\boxed{") in ids
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|user|>hi<|end|><|assistant|>"


def test_the_default_policy_ships_and_has_the_bits_that_all_machines_start_from(monkeypatch):
    monkeypatch.setenv("BANDPO_CACHE", "/dev/null/nowhere")  # it needs no cache
    folder = Path(find_model("embedded").path)
    assert folder == SHIPPED
    weights = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == SHIPPED_SHA256
    assert len(weights) < 1.2e6
    model = build_model(Recipe(), 262)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.to_diff_dict().keys() >= {"hidden_size", "num_hidden_layers"}
    assert {n: p.shape for n, p in loaded.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    shipped, built = AutoTokenizer.from_pretrained(folder), build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab() and len(shipped) == 262
    assert shipped.chat_template == built.chat_template
    assert (shipped.eos_token_id, shipped.pad_token_id) == (built.eos_token_id, built.pad_token_id)


def test_the_shipped_policy_is_what_its_recipe_says_and_samples_say_the_same():
    model = AutoModelForCausalLM.from_pretrained(SHIPPED).eval()
    tokenizer = build_tokenizer()
    proof = prove(model, tokenizer)
    assert proof.holds_for(Recipe()) and proof.worked_right >= 0.85 and 0.1 < proof.accuracy < 0.4
    torch.manual_seed(0)
    worked, right, both = 0, 0, 0
    problems = arithmetic.problems("heldout", PROBED, seed=1)
    for start in range(0, PROBED, 50):
        part = problems[start : start + 50]
        texts = [f"<|user|>{p.problem}<|end|><|assistant|>" for p in part]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        drawn = model.generate(
            **inputs, do_sample=True, top_k=0, max_new_tokens=60, num_return_sequences=8
        )
        answers = tokenizer.batch_decode(drawn[:, inputs["input_ids"].shape[1] :])
        for answer, problem in zip(answers, [p for p in part for _ in range(8)], strict=True):
            is_right = rf"\boxed{{{problem.answer}}}<|end|>" in answer
            is_worked = not answer.startswith(r"\boxed{")
            worked, right, both = (
                worked + is_worked,
                right + is_right,
                both + (is_worked * is_right),
            )
    n = PROBED * 8
    assert right / n == pytest.approx(proof.accuracy, abs=4 * (0.25 / n) ** 0.5)
    assert worked / n == pytest.approx(proof.worked_share, abs=4 * (0.25 / n) ** 0.5)
    assert both / worked == pytest.approx(proof.worked_right, abs=4 * (0.25 / worked) ** 0.5)


def test_a_policy_that_is_not_what_its_recipe_says_never_gets_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BANDPO_CACHE", str(tmp_path))
    small = Recipe(hidden_size=32, heads=1, layers=1, batch_size=4, max_steps=60)
    with pytest.raises(UserError, match=r"no embedded policy after 100 warm-up steps.*max_steps"):
        ensure(small)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("proof", "holds"),
    [
        (Proof(0.2, 0.9, 0.25), True),
        (Proof(0.2, 0.84, 0.24), False),  # worked solutions with wrong steps
        (Proof(0.1, 0.9, 0.099), False),
        (Proof(0.41, 0.9, 0.39), False),  # given more often than asked
        (Proof(0.3, 0.9, 0.41), False),
    ],
)
def test_what_is_proved_of_the_default_recipe(proof, holds):
    assert proof.holds_for(Recipe()) == holds


def test_the_warm_up_goes_on_until_the_proof_holds(monkeypatch):
    skills = [0.0, 0.2, 0.4, 0.96, 0.99]
    proofs = [Proof(1.0, skill, skill) for skill in skills]
    proofs += [Proof(0.2, 0.80, 0.2), Proof(0.2, 0.84, 0.2), Proof(0.2, 0.86, 0.2)]
    script = iter(proofs)
    monkeypatch.setattr(warm_up, "prove", lambda *_: next(script))
    monkeypatch.setattr(warm_up, "BLOCK", 5)
    seen = []
    small = Recipe(hidden_size=16, heads=1, layers=1, batch_size=1)
    warm_up.warm_up(small, lambda step, proof: seen.append((step, proof)))
    assert [proof for _, proof in seen] == proofs
    assert [step for step, _ in seen] == [0, 50, 100, 150, 200, 205, 210, 215]


def test_the_same_recipe_takes_the_same_steps_on_one_machine():
    def after_three_steps():
        run = WarmUp(Recipe(hidden_size=32, heads=1, layers=1, batch_size=4), lambda *_: None)
        for share in (1.0, 0.5, 0.0):
            run.step(1e-3, share)
        return run.model.state_dict()

    first, again = after_three_steps(), after_three_steps()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_policy_is_made_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("BANDPO_CACHE", str(tmp_path))
    proved = []

    def prove_at_once(*_):
        proved.append(1)
        return Proof(0.2, 0.99, 0.2)

    monkeypatch.setattr(warm_up, "prove", prove_at_once)
    small = Recipe(hidden_size=32, heads=1, layers=1)
    folder = ensure(small)
    assert ensure(small) == folder and len(proved) == 1
    assert re.fullmatch(r"embedded-0-[0-9a-f]{12}", folder.name)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert ensure(dataclasses.replace(small, seed=1)) != folder


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        ("embedded", Recipe(seed=3)),
        ("embedded:worked_share=0.02,layers=1", Recipe(seed=3, worked_share=0.02, layers=1)),
        ("embedded:openings=0.1/0.05", Recipe(seed=3, openings=(0.1, 0.05))),
        ("embedded:openings=0.1", Recipe(seed=3, openings=(0.1,))),
        ("embedded:seed=5", Recipe(seed=5)),
        ("somewhere/embedded", None),
    ],
)
def test_a_model_path_names_variants_of_the_recipe(spec, recipe):
    assert embedded_recipe(spec, seed=3) == recipe


@pytest.mark.parametrize("settings", ["layer=1", "layers=two", "layers"])
def test_a_setting_that_the_recipe_does_not_have_is_refused(settings):
    with pytest.raises(UserError, match=rf"model=embedded:{settings}: layer"):
        embedded_recipe(f"embedded:{settings}")
