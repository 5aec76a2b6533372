"""`bandpo --install-completion` and `--show-completion`: files written, and messages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bandpo import cli
from bandpo.completion import installation
from bandpo.completion.shells import script

ROOT = Path(__file__).resolve().parents[2]
PLACES = {
    "bash": ".local/share/bash-completion/completions/bandpo",
    "zsh": ".zfunc/_bandpo",
    "fish": ".config/fish/completions/bandpo.fish",
}
VARIABLES = ("BASH_COMPLETION_USER_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("shell", PLACES)
def test_one_file_is_written_where_the_shell_loads_it(shell, home, capsys):
    place = PLACES[shell]
    for _ in range(2):
        assert cli.main(["--install-completion", shell]) == 0
        said = capsys.readouterr().out
        assert files(home) == {place}
        assert (home / place).read_text() == script(shell)
        assert f"undo: rm {home / place}" in said
    assert said.startswith("already there")
    assert cli.main(["--show-completion", shell]) == 0
    assert capsys.readouterr().out == script(shell)


def test_a_script_of_another_version_is_replaced(home, capsys):
    file = home / PLACES["fish"]
    assert cli.main(["--install-completion", "fish"]) == 0
    file.write_text(file.read_text() + "# older\n")
    assert cli.main(["--install-completion", "fish"]) == 0
    assert file.read_text() == script("fish") and "written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shell", "variable", "place"),
    [
        ("bash", "BASH_COMPLETION_USER_DIR", "completions/bandpo"),
        ("bash", "XDG_DATA_HOME", "bash-completion/completions/bandpo"),
        ("zsh", "ZDOTDIR", ".zfunc/_bandpo"),
        ("fish", "XDG_CONFIG_HOME", "fish/completions/bandpo.fish"),
    ],
)
def test_the_users_own_folders_are_kept_to(shell, variable, place, home, monkeypatch):
    monkeypatch.setenv(variable, str(home / "own"))
    assert cli.main(["--install-completion", shell]) == 0
    assert files(home) == {f"own/{place}"}
    monkeypatch.setenv(variable, "relative")  # the XDG's rule: as if it were not set
    assert cli.main(["--install-completion", shell]) == 0
    assert PLACES[shell] in files(home)


def test_zsh_is_told_of_the_folder_unless_its_settings_name_it(home, capsys):
    line = f"fpath=({home}/.zfunc $fpath)"
    assert cli.main(["--install-completion", "zsh"]) == 0
    assert line in capsys.readouterr().out
    (home / ".zshrc").write_text("fpath=(~/.zfunc $fpath)\n")
    assert cli.main(["--install-completion", "zsh"]) == 0
    assert "fpath" not in capsys.readouterr().out


@pytest.mark.parametrize("has_loader", [True, False])
def test_bash_is_told_to_source_the_file_where_nothing_loads_it(
    has_loader, home, monkeypatch, capsys
):
    monkeypatch.setattr(installation, "LOADERS", (str(ROOT if has_loader else home / "none"),))
    assert cli.main(["--install-completion", "bash"]) == 0
    said = capsys.readouterr().out
    assert (f"source {home / PLACES['bash']}" in said) != has_loader


def test_a_file_of_the_users_is_left_alone(home, capsys):
    file = home / PLACES["zsh"]
    file.parent.mkdir()
    file.write_text("#compdef bandpo\n# my own\n")
    assert cli.main(["--install-completion", "zsh"]) == 2
    said = capsys.readouterr().err
    assert str(file) in said and "--show-completion zsh" in said
    assert file.read_text() == "#compdef bandpo\n# my own\n"


def test_what_cannot_be_written_is_said(home, capsys):
    (home / ".zfunc").touch()
    assert cli.main(["--install-completion", "zsh"]) == 2
    said = capsys.readouterr().err
    assert f"{home}/.zfunc" in said and "Traceback" not in said


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_home_that_may_not_be_written_to_is_named(home, capsys):
    home.chmod(0o500)
    assert cli.main(["--install-completion", "fish"]) == 2
    said = capsys.readouterr().err
    assert f"{home}/.config" in said and "Permission denied" in said and "Traceback" not in said
    home.chmod(0o700)


def test_a_place_that_may_not_be_written_to_is_named(home, capsys, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nobody")
    assert cli.main(["--install-completion", "fish"]) == 2
    said = capsys.readouterr().err
    assert "/proc/nobody" in said and "Traceback" not in said


@pytest.mark.parametrize("option", cli.OPTIONS)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tcsh"], "no completion for 'tcsh'"),
        (["fishh"], "did you mean fish?"),
        (["bash", "x"], "x"),
    ],
)
def test_other_shells_are_refused(option, words, said, home, capsys):
    assert cli.main([option, *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and "bash, zsh, fish" in captured.err
    assert not captured.out and files(home) == set()


def test_the_shell_is_the_one_in_use_else_that_of_the_user(home, monkeypatch, capsys):
    for names, usual, shell in (
        (("uv", "-zsh", "bash"), "/bin/fish", "zsh"),
        (("make",), "/usr/bin/fish", "fish"),
    ):
        monkeypatch.setenv("SHELL", usual)
        monkeypatch.setattr(installation, "_programs_above", lambda names=names: names)
        assert cli.main(["--show-completion"]) == 0
        assert capsys.readouterr().out == script(shell)
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert cli.main(["--show-completion"]) == 2
    assert "name it: bash, zsh, fish" in capsys.readouterr().err


def test_the_processes_above_are_asked():
    code = "from bandpo.completion.installation import shell_in_use; print(shell_in_use())"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{code}'; true"],
        env={**os.environ, "SHELL": "/bin/fish", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "bash\n"
