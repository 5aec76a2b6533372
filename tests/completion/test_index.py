"""The index of commands and keys is in step with them."""

import json

import document_completion

from bandpo.cli import COMMANDS
from bandpo.completion.commands import INDEX, OPTIONS, complete


def test_the_index_is_in_step_with_commands_and_schema():
    assert INDEX.read_text(encoding="utf-8") == document_completion.document(), (
        "run python scripts/document_completion.py"
    )


def test_every_command_has_words_or_none_on_purpose():
    """A new argument that is no path and has no choices wants a line in ARGUMENTS."""
    index = json.loads(INDEX.read_text(encoding="utf-8"))
    assert list(index["commands"]) == list(COMMANDS)
    without = {
        name
        for name, command in index["commands"].items()
        if "commands" not in command and not any(command["words"])
    }
    assert without == {"doctor", "explain"}  # explain's is a free text


def test_values_are_given_for_keys_that_there_are():
    index = json.loads(INDEX.read_text(encoding="utf-8"))
    known = {key for keys in index["keys"].values() for key in keys}
    assert set(document_completion.VALUES) <= known


def test_the_options_are_those_of_the_command_line():
    from bandpo import cli

    assert {*cli.OPTIONS, "--help", "--version"} == set(OPTIONS)
    assert {*COMMANDS, "help"} == {way.text for way in complete(("bandpo",), "")}
