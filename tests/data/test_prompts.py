"""What is sent to the model, and what happens to prompts that are too long."""

import copy
import dataclasses
import random
from datetime import datetime

import pytest

from bandpo.data.prompts import (
    ANSWER_LINE,
    BOXED,
    NONE,
    PromptTemplate,
    build_prompts,
    date_of,
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


def with_template(tokenizer, chat_template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = chat_template
    return other


def sent(tokenizer, template=NONE, problems=PROBLEMS, date=None):
    return build_prompts(problems, tokenizer, template, 1000, date=date)[0]


def test_the_fingerprint_is_of_what_is_sent(tokenizer):
    other = with_template(tokenizer, tokenizer.chat_template + " ")
    prompts = [sent(tokenizer), sent(other), sent(tokenizer, BOXED), sent(tokenizer)[:1]]
    moved = dataclasses.replace(prompts[0][0], token_ids=prompts[0][0].token_ids[::-1])
    prints = {*map(prompt_fingerprint, prompts), prompt_fingerprint([moved, prompts[0][1]])}
    assert len(prints) == 5
    # neither the names of templates, nor the order and the ids of problems
    renamed = [dataclasses.replace(p, id=f"x{p.id}") for p in reversed(PROBLEMS)]
    same = sent(tokenizer, PromptTemplate("same text", NONE.text), renamed)
    assert prompt_fingerprint(same) == prompt_fingerprint(prompts[0])


LLAMA = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = 'never' %}"
    "{% endif %}{% endif %}<u>Today: {{ date_string }}\n{{ messages[0].content }}</u><a>"
)


@pytest.fixture
def on_day(monkeypatch):
    """Sets the day that both a chat template and bandpo read from the clock."""

    def at(year, month, day):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(year, month, day, 23, 59, 59)

        monkeypatch.setattr("bandpo.data.prompting.chat.datetime", Clock)
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)

    return at


def test_a_template_is_told_the_date_that_the_run_began(tokenizer, on_day):
    llama = with_template(tokenizer, LLAMA)
    on_day(2031, 1, 2)
    date = date_of(llama)
    first = sent(llama, date=date)
    assert date == "2031-01-02" and first == sent(llama)
    assert first[0].text.startswith("<u>Today: 02 Jan 2031\n")
    on_day(2031, 1, 3)
    assert sent(llama, date=date) == first
    assert prompt_fingerprint(sent(llama)) != prompt_fingerprint(first)
    assert date_of(llama, date) == date and date_of(llama) == "2031-01-03"
    assert date_of(tokenizer) is date_of(tokenizer, date) is None  # it asks for none


def test_the_time_of_day_does_not_part_prompts(tokenizer):
    timed = with_template(tokenizer, "{{ strftime_now('%H:%M:%S.%f') }}{{ messages[0].content }}")
    assert sent(timed)[0].text.startswith("00:00:00.000000")


def test_a_template_that_draws_draws_the_same_for_a_problem(tokenizer):
    drawing = with_template(
        tokenizer, "{{ range(10**5) | random }} {{ lipsum(1, false) }} {{ messages[0].content }}"
    )
    random.seed(1)
    before = random.getstate()
    first = sent(drawing)
    assert random.getstate() == before
    random.seed(2)
    assert sent(drawing) == first
    assert [p.text for p in sent(drawing, problems=PROBLEMS[1:])] == [first[1].text]
    assert len({p.text.split()[0] for p in first}) == 2


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        ("{{ raise_exception('a system turn is needed') }}", "TemplateError: a system turn is ne"),
        ("{{ messages[0].tool.name }}", "UndefinedError: .* has no attribute 'tool'"),
        ("{{ messages[0].content + 1 }}", "TypeError: "),
        ("{% for m in messages %}", "TemplateSyntaxError: "),
        ("{{ messages[0].content | nothing }}", "TemplateAssertionError: No filter named 'noth"),
        ("{{ messages[1].content }}", "UndefinedError: list object has no element 1"),
        ("{{ 1 // 0 }}", "ZeroDivisionError: "),
    ],
)
def test_a_template_that_fails_is_named_with_its_reason(tokenizer, chat_template, message):
    failing = with_template(tokenizer, chat_template)
    failing.name_or_path = "org/model"
    with pytest.raises(UserError, match=f"template of org/model fails on problem 'a': {message}"):
        sent(failing)
