"""Completion in real shells, whose keys are typed on a terminal."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typed import PROMPT, Typed

ROOT = Path(__file__).resolve().parents[2]
LOADER = Path("/usr/share/bash-completion/bash_completion")
PROGRAM = f"""#!/bin/sh
case $1 in
    --*) PYTHONPATH={ROOT} exec {sys.executable} -m bandpo.cli "$@" ;;
    *) printf '%s\\n' "$@" > "$RECORD.new"; mv "$RECORD.new" "$RECORD" ;;
esac
"""
SHELLS = {
    "bash": ["bash", "--noprofile", "-i"],
    "zsh": ["zsh", "-i"],
    "fish": ["fish", "--interactive", "--private"],
}
# Keys, and the words that they become.
TYPED = {
    "pla\t--clu\t8xH200": ["plan", "--cluster", "8xH200"],
    "train method=gr\tlearner.offl\tbetw\t": [
        *("train", "method=grpo", "learner.offload=between_updates")
    ],
    "train +prot\tpaper\t": ["train", "+protocol=paper32"],
    "eval benchmarks=\\[amc23,gsm\t]": ["eval", "benchmarks=[amc23,gsm8k]"],
    "table sma\t--sm\t": ["table", "small", "--smoke"],
    "compare ~/outputs/my\tev\t": ["compare", "HOME/outputs/my run (1)/eval"],
    "plot training outputs/lr\tev\t": ["plot", "training", "outputs/lr=1e-6/eval"],
    "train data.train=own\tpro\t": ["train", "data.train=own data/problems.jsonl"],
    "train data.train=auf\t\t": ["train", "data.train=aufgaben/übung.jsonl"],
}


def usable(shell):
    reason = f"{shell} is not installed"
    return pytest.param(shell, marks=pytest.mark.skipif(not shutil.which(shell), reason=reason))


@pytest.fixture
def home(tmp_path):
    """A user's home and a folder of runs, some with awkward names."""
    for folder in ("outputs/my run (1)/eval", "outputs/lr=1e-6/eval", "own data", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "own data" / "problems.jsonl").touch()
    (tmp_path / "aufgaben").mkdir()
    (tmp_path / "aufgaben" / "übung.jsonl").touch()
    program = tmp_path / "bin" / "bandpo"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (tmp_path / ".bashrc").write_text(f"source {LOADER}\nPS1='{PROMPT} '\n")
    compinit = "autoload -Uz compinit; compinit -u -D"
    (tmp_path / ".zshrc").write_text(f"fpath=(~/.zfunc $fpath)\n{compinit}\nPS1='{PROMPT} '\n")
    config = tmp_path / ".config" / "fish" / "config.fish"
    config.parent.mkdir(parents=True)
    # Without this folder fish begins with the manual pages of all programs, in the background.
    (tmp_path / ".local/share/fish/generated_completions").mkdir(parents=True)
    config.write_text(f"function fish_prompt; echo '{PROMPT} '; end\nset -g fish_greeting\n")
    return tmp_path


def environment(home, locale="C.UTF-8"):
    return {
        "HOME": str(home),
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "RECORD": str(home / "record"),
        "LC_ALL": locale,
    }


def opened(shell, home, locale="C.UTF-8"):
    settings = environment(home, locale)
    subprocess.run(
        ["bandpo", "--install-completion", shell], env=settings, check=True, capture_output=True
    )
    return Typed(SHELLS[shell], settings, home / "record", home)


@pytest.mark.parametrize("shell", [usable(shell) for shell in SHELLS])
def test_a_tab_completes_the_word(shell, home):
    """In a locale without characters beyond ASCII, with names that have spaces and others."""
    with opened(shell, home, "C") as terminal:
        found = {keys: terminal.type(f"bandpo {keys}") for keys in TYPED}
    # Some shells leave a slash behind a folder.
    assert {keys: [word.rstrip("/") for word in words] for keys, words in found.items()} == {
        keys: [word.replace("HOME", str(home)) for word in words] for keys, words in TYPED.items()
    }


@pytest.mark.parametrize("shell", [usable(shell) for shell in ("zsh", "fish")])
def test_candidates_are_listed_with_descriptions(shell, home):
    with opened(shell, home) as terminal:
        about = "GRPO with canonical symmetric clipping"
        listed = terminal.shown("bandpo train method=g\t", about)
    assert any("grpo" in line and about in line for line in listed)


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_needs_no_package_and_parts_words_where_it_is_told(home):
    (home / ".bashrc").write_text(
        f"PS1='{PROMPT} '\nCOMP_WORDBREAKS=\"$COMP_WORDBREAKS,[\"\n"
        'eval "$(bandpo --show-completion bash)"\n'
    )
    with Typed(SHELLS["bash"], environment(home), home / "record", home) as terminal:
        typed = {
            "eval benchmarks=[amc23,gsm\t]": ["eval", "benchmarks=[amc23,gsm8k]"],
            "train 'method=gr\tseed=1": ["train", "method=grpo", "seed=1"],
            "train data.train='own data/pro\t": ["train", "data.train=own data/problems.jsonl"],
        }
        assert {keys: terminal.type(f"bandpo {keys}") for keys in typed} == typed
        listed = terminal.shown("bandpo train method=gm\t\t\t", "gmpo_band_kl")
        assert not any(line.startswith("method=") for line in listed)  # values alone
