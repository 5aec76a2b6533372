"""How problems are put to a model, as a configuration says it: a text or a file, never in doubt."""

import pytest
import yaml

from bandpo.config.composition import compose
from bandpo.config.identity import changes, config_hash
from bandpo.config.overrides import replaced, verbatim
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.tables.recipe import override_of

TEXT = (
    "You solve problems.\nBe brief: \\boxed{} and $x_{1}$, \"so\" or 'so', ${HOME} or \\${HOME}\\"
)


def trained(*overrides):
    return compose("train", overrides, Config).data


def evaluated(*overrides):
    return compose("eval", ["model=embedded", *overrides], EvalCommand).eval


@pytest.mark.parametrize(("section", "read"), [("data", trained), ("eval", evaluated)])
class TestBothSections:
    @pytest.mark.parametrize("name", ["sys.txt", "SYS.MD", "sub/sys.jinja", "my prompt.txt"])
    def test_a_file_is_its_text(self, section, read, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "sub").mkdir()
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + TEXT.encode() + b"\n\n")
        for given in (name, f"@{name}", f"@{tmp_path / name}"):
            key = f"{section}.system_prompt"
            assert read(verbatim(key, given)).system_prompt == TEXT

    def test_a_file_without_such_a_name_needs_the_sign(self, section, read, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "prompt").write_text("Be brief.")
        assert read(f"{section}.system_prompt=@prompt").system_prompt == "Be brief."
        assert read(f"{section}.system_prompt=prompt").system_prompt == "prompt"

    @pytest.mark.parametrize(
        "text",
        ["Be brief.", "/no_think", "", " ", "notes.md is yours.", "a/b or c", TEXT, "x\n.md"],
    )
    def test_a_text_is_itself_and_stays_so(self, section, read, text):
        """Also when a configuration is read again: a run's is inherited by its evaluations."""
        key = f"{section}.system_prompt"
        assert read(verbatim(key, text)).system_prompt == text

    @pytest.mark.parametrize("given", ["sys.txt", "prompts/system", "@sys", "~/sys", "a b.md", "@"])
    def test_a_mistyped_path_is_no_prompt(self, section, read, given, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        key = f"{section}.system_prompt"
        with pytest.raises(UserError, match=rf"{key}='.*names a file that cannot be read") as error:
            read(verbatim(key, given))
        assert given in str(error.value)

    def test_a_file_that_is_no_text_or_names_another(self, section, read, tmp_path):
        for content, message in (
            (b"\xff\xfe", "cannot be read"),
            (b"@other\n", "'@other', is its"),
        ):
            (tmp_path / "sys.txt").write_bytes(content)
            with pytest.raises(UserError, match=message):
                read(f"{section}.system_prompt=@{tmp_path}/sys.txt")

    def test_variables_are_set_one_by_one_or_together(self, section, read):
        key = f"{section}.chat_template_kwargs"
        assert read().chat_template_kwargs == {}
        one = read(f"{key}.enable_thinking=false", f"{key}.budget=7").chat_template_kwargs
        assert one == {"enable_thinking": False, "budget": 7}
        assert read(f"{key}={{enable_thinking: false, budget: 7}}").chat_template_kwargs == one
        again = read(f"{key}={{a: 1}}", f"{key}={{b: x}}", f"{key}.c=null").chat_template_kwargs
        assert again == {"b": "x", "c": None}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("messages", "messages cannot be set here"),
            ("tokenize", "tokenize cannot be set here"),
            ("strftime_now", "strftime_now cannot be set here"),
            ("a-b", "'a-b' is no name"),
        ],
    )
    def test_names_that_are_taken_are_refused(self, section, read, name, message):
        with pytest.raises(UserError, match=rf"{section}.chat_template_kwargs: {message}"):
            read(f"{section}.chat_template_kwargs={{{name}: 1}}")

    def test_without_turns_there_is_no_system_turn_and_nothing_to_set(self, section, read):
        plain = f"{section}.chat_template=none"
        assert read(plain).chat_template == "none"
        with pytest.raises(
            UserError, match=rf"{section}: chat_template=none sends .*template=FILE"
        ):
            read(plain, f"{section}.system_prompt=hello")
        with pytest.raises(UserError, match=rf"{section}: chat_template=none has no variables"):
            read(plain, f"{section}.chat_template_kwargs.a=1")


@pytest.mark.parametrize("value", [r"a\b", r"\d+'", '"x" \\', r"it's \'so\'", "two\nlines", r"\\"])
def test_an_override_that_is_written_for_a_text_is_read_as_it(value):
    for word in (override_of("data.system_prompt", value), verbatim("data.system_prompt", value)):
        assert trained(word).system_prompt == value


def test_keys_of_other_mappings_are_hydras_business():
    assert replaced("data.chat_template_kwargs.a=1") == ["++data.chat_template_kwargs.a=1"]
    assert replaced("rollout.engine.a=1") == ["rollout.engine.a=1"]


def test_runs_of_earlier_versions_had_none_of_them():
    now = compose("train", [], Config)
    old = yaml.safe_load(yaml.safe_dump(now.model_dump(mode="json")))
    for key in ("system_prompt", "chat_template", "chat_template_kwargs"):
        del old["data"][key]
    assert changes(old, now) == ((), ())
    assert config_hash(old) == config_hash(now)
    for override, line in {
        "data.system_prompt=Hello": "data.system_prompt: None → Hello",
        "data.chat_template=none": "data.chat_template: None → none",
        "data.chat_template_kwargs.a=1": "data.chat_template_kwargs.a: not set → 1",
    }.items():
        assert changes(old, compose("train", [override], Config)).determining == (line,)
