"""System prompts, chat templates and base models: what is sent, and what is refused."""

import copy
import json
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bandpo.data.prompting.chat import opening_tokens
from bandpo.data.prompts import (
    NONE,
    Prompting,
    PromptTemplate,
    Rendering,
    build_prompts,
    set_chat_template,
)
from bandpo.errors import UserError
from bandpo.reward.extract import extract
from bandpo.types import Problem, Turn

SUM = Problem("a", "What is 1+1?", "2")
ROLES = (
    "{% for m in messages %}<u>{{ m['role'] }}: {{ m['content'] }}</u>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
# As Gemma's, as old Mistral's, and as Qwen3's.
REFUSING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
)
IGNORING = "{% for m in messages if m.role != 'system' %}<u>{{ m.content }}</u>{% endfor %}<a>"
THINKING = ROLES + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)


def with_template(tokenizer, chat_template, name="org/model"):
    other = copy.deepcopy(tokenizer)
    other.chat_template, other.name_or_path = chat_template, name
    return other


def sent(tokenizer, problems=(SUM,), template=NONE, **settings):
    prompts, _ = build_prompts(problems, tokenizer, Prompting(template, **settings), 1000)
    return [prompt.text for prompt in prompts]


def notes(tokenizer, problems=(SUM,), **settings):
    prompting = Prompting(NONE, **settings)
    return prompting.notes(tokenizer, Rendering(problems, tokenizer, prompting).prompts)


# --- System prompts and conversations ------------------------------------------------------------

TURNS = (Turn("user", "Hello"), Turn("assistant", "Hi"))


def test_the_system_prompt_comes_first(tokenizer):
    chat = with_template(tokenizer, ROLES)
    assert sent(chat) == ["<u>user: What is 1+1?</u><a>"]
    asked = "<u>user: What is 1+1?</u><a>"
    assert sent(chat, system_prompt="Be brief.") == [f"<u>system: Be brief.</u>{asked}"]
    assert sent(chat, system_prompt="") == [f"<u>system: </u>{asked}"]


def test_turns_are_rendered_before_the_problem_and_around_it_goes_the_template(tokenizer):
    chat = with_template(tokenizer, ROLES)
    problem = Problem("a", "1+1?", "2", turns=TURNS)
    template = PromptTemplate("mine", "Solve {problem}")
    assert sent(chat, [problem], template, system_prompt="S") == [
        "<u>system: S</u><u>user: Hello</u><u>assistant: Hi</u><u>user: Solve 1+1?</u><a>"
    ]


def test_a_problems_own_system_turn_takes_the_place_and_it_is_said_once(tokenizer):
    chat = with_template(tokenizer, ROLES)
    own = Problem("b", "1+1?", "2", turns=(Turn("system", "Mine"), *TURNS))
    settings = {"system_prompt": "S"}
    first, second = sent(chat, [SUM, own], **settings)
    assert first.startswith("<u>system: S</u><u>user: What")
    assert second.startswith("<u>system: Mine</u><u>user: Hello") and "S<" not in second
    assert notes(chat, [SUM, own, own], **settings) == [
        "2 of 3 problems have a system turn of their own, which takes the place of system_prompt"
    ]
    assert notes(chat, [SUM], **settings) == notes(chat, [own]) == []


def test_what_turns_spell_is_text_and_what_the_system_prompt_spells_are_tokens(tokenizer):
    chat = with_template(tokenizer, ROLES)
    problem = Problem("a", "x<a>", "2", turns=(Turn("user", "y</u>"), Turn("assistant", "z<u>")))
    prompting = Prompting(NONE, system_prompt="w<a>")
    rendering = Rendering([problem], chat, prompting)
    names = chat.convert_ids_to_tokens(rendering.prompts[0].token_ids)
    special = [name for name in names if len(name) > 1]
    assert special == ["<u>", "<a>", "</u>", *["<u>", "</u>"] * 3, "<a>"]
    assert chat.decode(rendering.prompts[0].token_ids) == rendering.prompts[0].text
    marked = [text for text, is_control in rendering.parts(0) if is_control]
    assert marked == special
    assert "".join(text for text, _ in rendering.parts(0)) == rendering.prompts[0].text
    controls = [rendering.is_control(id) for id in rendering.prompts[0].token_ids]
    assert controls == [len(name) > 1 for name in names]


def test_a_template_that_takes_no_system_turn_says_what_to_do(tokenizer):
    chat = with_template(tokenizer, REFUSING + ROLES, "org/gemma")
    assert len(sent(chat)) == 1
    refused = "org/gemma fails on problem 'a': TemplateError: System role not supported. It takes "
    remedy = "no system turn: write the text of data.system_prompt before {problem} in a file that"
    own = Problem("a", "1", "1", turns=(Turn("system", "S"),))
    for problem, system in ((SUM, "S"), (own, None)):
        with pytest.raises(UserError, match=r"data.template names") as error:
            sent(chat, [problem], system_prompt=system)
        assert refused + remedy in str(error.value)
    # what it advises
    told = PromptTemplate("mine", "Be brief.\n\n{problem}")
    assert sent(chat, template=told) == ["<u>user: Be brief.\n\nWhat is 1+1?</u><a>"]


def test_a_template_that_fails_for_another_reason_is_not_blamed_on_the_system_turn(tokenizer):
    chat = with_template(tokenizer, "{{ messages[9].content }}")
    with pytest.raises(UserError, match="given the messages system, user; fix chat_template"):
        sent(chat, system_prompt="S")
    with pytest.raises(UserError, match="given one user message; fix chat_template"):
        sent(chat)


def test_a_system_prompt_that_the_template_leaves_out_is_refused(tokenizer):
    chat = with_template(tokenizer, IGNORING)
    with pytest.raises(UserError, match=r"leaves system turns out, so that data.system_prompt wo"):
        sent(chat, system_prompt="S")
    # a template that reads it without printing it: SmolLM3's, for one
    reading = IGNORING + "{% if messages[0].content == '/no_think' %}<u>{% endif %}"
    assert sent(with_template(tokenizer, reading), system_prompt="/no_think")[0].endswith("<a><u>")


# --- Chat templates ------------------------------------------------------------------------------


def test_a_chat_template_from_a_file(tokenizer, tmp_path):
    chat, path = with_template(tokenizer, ROLES), tmp_path / "chat.jinja"
    path.write_text("{{ messages[0].content }}!<a>")
    set_chat_template(chat, str(path))
    assert sent(chat, chat_template=str(path)) == ["What is 1+1?!<a>"]
    chat.save_pretrained(tmp_path / "hf")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert sent(loaded) == ["What is 1+1?!<a>"]  # an export prompts the same, unasked
    set_chat_template(chat, None)
    assert chat.chat_template == path.read_text()


def test_what_is_no_chat_template_is_an_error(tokenizer, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Solve {problem}")
    with pytest.raises(UserError, match=r"mine.txt: this file is no chat template.*template=FILE"):
        set_chat_template(copy.deepcopy(tokenizer), str(path))
    path.write_bytes(b"\xff")
    for name in (str(path), str(tmp_path), "chat.jinja", "None"):
        with pytest.raises(UserError, match=f"chat_template={name} is neither none, nor"):
            set_chat_template(copy.deepcopy(tokenizer), name)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_tokenizer_with_several_chat_templates(tokenizer, tmp_path, as_list):
    named = {"default": ROLES, "rag": "RAG {{ messages[0].content }}<a>"}
    several = with_template(tokenizer, named)
    several.save_pretrained(tmp_path, save_jinja_files=not as_list)
    if as_list:
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert isinstance(config["chat_template"], list)
    several = AutoTokenizer.from_pretrained(tmp_path)
    assert sent(several) == ["<u>user: What is 1+1?</u><a>"]
    with pytest.raises(UserError, match=r"templates \(it has default, rag\), nor a readable jinja"):
        set_chat_template(several, "rga")
    set_chat_template(several, "rag")
    assert sent(several, chat_template="rag") == ["RAG What is 1+1?<a>"]
    several.save_pretrained(tmp_path / "hf")
    assert sent(AutoTokenizer.from_pretrained(tmp_path / "hf")) == ["RAG What is 1+1?<a>"]


def test_several_chat_templates_without_a_default(tokenizer):
    several = with_template(tokenizer, {"chat": ROLES, "rag": ROLES})
    with pytest.raises(UserError, match=r"none is the default: choose data.chat_template=chat or"):
        sent(several)
    set_chat_template(several, "chat")
    assert len(sent(several)) == 1


def test_variables_reach_the_template_and_those_it_never_reads_are_reported(tokenizer):
    chat = with_template(tokenizer, THINKING)
    assert sent(chat)[0].endswith("</u><a>")
    assert sent(chat, variables={"enable_thinking": True})[0].endswith("</u><a>")
    off = {"variables": {"enable_thinking": False}}
    assert sent(chat, **off)[0].endswith("</u><a><think>\n\n</think>\n\n")
    assert notes(chat, **off) == []
    other = with_template(tokenizer, ROLES)
    assert notes(other, variables={"enable_thinking": False, "messages_": 1}) == [
        f"chat_template_kwargs.{name} has no effect: the chat template of org/model never reads it"
        for name in ("enable_thinking", "messages_")
    ]


def test_settings_as_records_name_what_is_set():
    keys = {"template": "none", "system_prompt": None, "chat_template": None}
    section = SimpleNamespace(**keys, chat_template_kwargs={})
    assert Prompting.of(section).facts() == {"template": "none"}
    keys |= {"system_prompt": "", "chat_template": "c.jinja"}
    section = SimpleNamespace(**keys, chat_template_kwargs={"a": 1})
    assert Prompting.of(section).facts() == {**keys, "chat_template_kwargs": {"a": 1}}


# --- Base models ---------------------------------------------------------------------------------

SPECIALS = ["<unk>", "<s>", "</s>"]


def byte_level(adds):
    """As Llama 3's: BOS by the post-processor, no space before a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([], trainer)
    return finished(backend, adds)


def sentence_pieces(adds):
    """As Llama 2's: a ▁ before a text, but not behind a special token in it."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = BpeTrainer(special_tokens=SPECIALS, show_progress=False)
    backend.train_from_iterator(["What is 1+1? Solve it. xy A: Q: ▁"], trainer)
    return finished(backend, adds)


def finished(backend, adds):
    if adds:
        ids = [(name, backend.token_to_id(name)) for name in SPECIALS]
        backend.post_processor = processors.TemplateProcessing(single=adds, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


FAMILIES = pytest.mark.parametrize("family", [byte_level, sentence_pieces])
PLAIN = {"chat_template": "none"}
ASKED = PromptTemplate("mine", "Q: {problem} A:")
SPELLED = PromptTemplate("mine", "<s>Q: {problem} A:")


def only(tokenizer, template=ASKED, problem=SUM):
    prompts, _ = build_prompts([problem], tokenizer, Prompting(template, **PLAIN), 1000)
    return prompts[0]


@FAMILIES
@pytest.mark.parametrize("template", [ASKED, SPELLED])
def test_a_base_model_gets_the_text_as_its_tokenizer_encodes_it(family, template):
    base = family("<s> $A")
    prompt = only(base, template)
    assert prompt.token_ids == tuple(base("Q: What is 1+1? A:")["input_ids"])
    assert prompt.token_ids.count(base.bos_token_id) == 1
    assert prompt.text == "<s>Q: What is 1+1? A:"


@FAMILIES
def test_a_tokenizer_that_adds_none_adds_none(family):
    base = family(None)
    assert base.bos_token_id not in only(base).token_ids
    assert only(base).text == "Q: What is 1+1? A:"
    assert only(base, SPELLED).token_ids[0] == base.bos_token_id  # the template's own wish


@FAMILIES
def test_what_the_tokenizer_puts_behind_a_text_is_not_sent(family):
    """It would end the text before the completion."""
    base = family("<s> $A </s>")
    assert base("x")["input_ids"][-1] == base.eos_token_id
    assert opening_tokens(base) == [base.bos_token_id]
    assert only(base).token_ids == tuple(base("Q: What is 1+1? A:")["input_ids"][:-1])


@FAMILIES
def test_a_problem_that_spells_the_first_token_spells_text(family):
    base = family("<s> $A")
    prompt = only(base, NONE, Problem("a", "<s>xy</s>", "2"))
    assert prompt.text == "<s><s>xy</s>"
    assert prompt.token_ids.count(base.bos_token_id) == 1
    assert base.eos_token_id not in prompt.token_ids


@FAMILIES
def test_a_chat_template_that_writes_the_first_token_gets_no_second(family):
    chat = family("<s> $A")
    for template in (
        "{{ bos_token }}{{ messages[0].content }} A:",
        "<s>{{ messages[0].content }} A:",
    ):
        chat.chat_template = template
        prompt = build_prompts([SUM], chat, NONE, 1000)[0][0]
        assert prompt.token_ids.count(chat.bos_token_id) == 1
        assert prompt.token_ids[0] == chat.bos_token_id
        assert notes(chat) == []


def test_a_chat_template_without_the_tokenizers_first_token_is_pointed_out():
    chat = byte_level("<s> $A")
    chat.chat_template, chat.name_or_path = "{{ messages[0].content }}", "org/chat"
    assert build_prompts([SUM], chat, NONE, 1000)[0][0].text == SUM.problem  # as ever
    assert notes(chat, [SUM, SUM]) == [
        "2 of 2 prompts do not begin with '<s>', which the tokenizer of org/chat puts before a "
        "text: its chat template does not write it"
    ]


def test_a_base_model_is_no_dead_end():
    base = byte_level("<s> $A")
    base.name_or_path = "org/base"
    with pytest.raises(UserError, match=r"org/base has no chat template.*data.chat_template=none"):
        build_prompts([SUM], base, NONE, 1000)
    set_chat_template(base, "none")
    assert len(only(base).token_ids) > 1 and notes(base, **PLAIN) == []


def test_none_silences_a_template_that_is_there(tmp_path):
    base = byte_level("<s> $A")
    base.chat_template = ROLES
    base.save_pretrained(tmp_path / "before")
    base = AutoTokenizer.from_pretrained(tmp_path / "before")
    set_chat_template(base, "none")
    assert only(base, NONE).text == "<s>What is 1+1?"
    base.save_pretrained(tmp_path / "hf")
    exported = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert not exported.chat_template
    assert only(exported, NONE) == only(base, NONE)


def test_a_base_model_may_be_asked_to_reason():
    """As R1-Zero is: the template's text opens the reasoning."""
    asked = PromptTemplate("zero", "Q: {problem} A: <think>\n")
    prompt = only(byte_level("<s> $A"), asked)
    assert extract(r"\boxed{3}", prompt.text).truncated
    assert extract(r"\boxed{3}</think> \boxed{2}", prompt.text).answer == "2"


def test_a_conversation_needs_a_chat_template():
    problem = Problem("b", "1+1?", "2", turns=TURNS)
    with pytest.raises(UserError, match=r"'b' has 2 turn\(s\) .*chat_template=none has none"):
        only(byte_level("<s> $A"), NONE, problem)
