"""The embedded task and policy: no leak, no restated answer, the same from the same seed."""

import random
import re

import pytest
import torch

from bandpo.data import arithmetic
from bandpo.errors import UserError
from bandpo.evaluation.model import embedded_recipe
from bandpo.model import embedded
from bandpo.model.embedded import Recipe
from bandpo.reward import MathVerifier


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
    tokenizer = embedded.build_tokenizer()
    text = "7+2=9;\\boxed{9} — ∫ π 数 🙂"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids("\\boxed{") in ids
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|user|>hi<|end|><|assistant|>"


def test_the_warm_up_is_determined_by_the_recipe_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("BANDPO_CACHE", str(tmp_path))
    recipe = embedded.Recipe(hidden_size=32, heads=1, layers=1, warmup_steps=3, batch_size=4)
    folder = embedded.ensure(recipe)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert embedded.ensure(recipe) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    model, _ = embedded.warm_up(recipe)
    again, _ = embedded.warm_up(recipe)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert re.fullmatch(r"embedded-0-[0-9a-f]{12}", folder.name)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    other = embedded.Recipe(hidden_size=32, heads=1, layers=1, warmup_steps=3, seed=1)
    assert embedded.ensure(other) != folder


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
