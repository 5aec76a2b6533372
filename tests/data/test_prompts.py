"""What is sent to the model, and what happens to prompts that are too long."""

import copy

import pytest

from bandpo.data.prompts import (
    ANSWER_LINE,
    BOXED,
    NONE,
    PromptTemplate,
    build_prompts,
    prompt_fingerprint,
    prompt_template,
)
from bandpo.errors import UserError
from bandpo.types import Problem

PROBLEMS = [Problem("a", r"What is $\frac{1}{2}{problem}$?", "1"), Problem("b", "q" * 40, "2")]


def test_a_prompt_is_the_rendered_conversation(tokenizer):
    prompts, dropped = build_prompts(PROBLEMS, tokenizer, NONE, max_prompt_tokens=100)
    assert dropped == []
    assert prompts[0].text == "<u>" + PROBLEMS[0].problem + "</u><a>"
    # one token a byte and one for each special token: none was added or split
    assert len(prompts[0].token_ids) == len(PROBLEMS[0].problem) + 3
    assert tokenizer.decode(prompts[1].token_ids) == prompts[1].text
    assert [p.problem for p in prompts] == PROBLEMS


@pytest.mark.parametrize("template", [BOXED, ANSWER_LINE])
def test_named_templates_keep_the_problem_and_say_how_to_answer(template):
    text = template.render(PROBLEMS[0])
    assert PROBLEMS[0].problem in text
    assert (r"\boxed{}" in text) == (template is BOXED)
    assert ("Answer: $Answer" in text) == (template is ANSWER_LINE)
    assert prompt_template(template.name) is template


def test_a_template_from_a_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Solve {problem}!\n")
    assert prompt_template(str(path)).render(PROBLEMS[1]) == "Solve " + "q" * 40 + "!"
    path.write_text("Solve it")
    with pytest.raises(UserError, match=r"mine\.txt.*\{problem\} exactly once"):
        prompt_template(str(path))
    with pytest.raises(UserError, match="'boxd' is none of boxed, answer_line, none"):
        prompt_template("boxd")


def test_overlong_prompts_are_dropped_or_an_error(tokenizer):
    prompts, dropped = build_prompts(PROBLEMS, tokenizer, "none", 40, "drop")
    assert [p.problem.id for p in prompts] == ["a"] and dropped == [PROBLEMS[1]]
    with pytest.raises(UserError, match=r"1 of 2 prompts .* 40 tokens.*\n  - problem 'b': 43"):
        build_prompts(PROBLEMS, tokenizer, "none", 40, "error")
    with pytest.raises(UserError, match="2 of 2 prompts"):
        build_prompts(PROBLEMS, tokenizer, "none", 5, "drop")
    assert len(build_prompts(PROBLEMS, tokenizer, "none", 43)[0]) == 2


def test_a_tokenizer_without_chat_template_is_refused(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    bare.name_or_path = "org/base"
    with pytest.raises(UserError, match="org/base has no chat template"):
        build_prompts(PROBLEMS, bare, "none", 100)


def test_the_fingerprint_sees_both_templates(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template += " "
    prints = {
        prompt_fingerprint(NONE, tokenizer),
        prompt_fingerprint(NONE, other),
        prompt_fingerprint(BOXED, tokenizer),
    }
    assert len(prints) == 3
    renamed = PromptTemplate("same text", NONE.text)
    assert prompt_fingerprint(renamed, tokenizer) in prints
