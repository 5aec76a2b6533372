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
if [ "$1" = --complete ] || [ "$1" = --install-completion ]; then
    PYTHONPATH={ROOT} exec {sys.executable} -m bandpo.cli "$@"
fi
printf '%s\\n' "$@" > "$RECORD.new"
mv "$RECORD.new" "$RECORD"
"""
SHELLS = {
    "bash": ["bash", "--noprofile", "-i"],
    "zsh": ["zsh", "-i"],
    "fish": ["fish", "--interactive", "--private"],
}
TYPED = {
    "pla\t--clu\t8xH200": ["plan", "--cluster", "8xH200"],
    "train method=gr\tlearner.offl\tbetw\t": [
        *("train", "method=grpo", "learner.offload=between_updates")
    ],
    "train +prot\tpaper\t": ["train", "+protocol=paper32"],
    "eval benchmarks=\\[amc23,gsm\t]": ["eval", "benchmarks=[amc23,gsm8k]"],
    "table sma\t--sm\t": ["table", "small", "--smoke"],
    "compare outputs/my\tev\t": ["compare", "outputs/my run (1)/eval/"],
    "plot training outputs/lr\t": ["plot", "training", "outputs/lr=1e-6/"],
    "train data.train=own\tpro\t": ["train", "data.train=own data/problems.jsonl"],
}


def usable(shell):
    reason = f"{shell} is not installed"
    return pytest.param(shell, marks=pytest.mark.skipif(not shutil.which(shell), reason=reason))


@pytest.fixture
def home(tmp_path):
    """A user's home and a folder of runs, some with awkward names."""
    for folder in ("outputs/my run (1)/eval", "outputs/lr=1e-6", "own data", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "own data" / "problems.jsonl").touch()
    program = tmp_path / "bin" / "bandpo"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (tmp_path / ".bashrc").write_text(f"source {LOADER}\nPS1='{PROMPT} '\n")
    (tmp_path / ".zshrc").write_text(
        f"fpath=({tmp_path}/.zfunc $fpath)\nautoload -Uz compinit\ncompinit -u -D\nPS1='{PROMPT} '\n"
    )
    config = tmp_path / ".config" / "fish" / "config.fish"
    config.parent.mkdir(parents=True)
    config.write_text(f"function fish_prompt; echo '{PROMPT} '; end\nset -g fish_greeting\n")
    return tmp_path


def environment(home, locale="C.UTF-8"):
    return {
        "HOME": str(home),
        "PATH": f"{home}/bin:{os.environ['PATH']}",
        "RECORD": str(home / "record"),
        "LC_ALL": locale,
        "TERM": "xterm",
    }


def opened(shell, home, locale="C.UTF-8"):
    settings = environment(home, locale)
    subprocess.run(
        ["bandpo", "--install-completion", shell], env=settings, check=True, capture_output=True
    )
    return Typed(SHELLS[shell], settings, home / "record", home)


@pytest.mark.parametrize("shell", [usable(shell) for shell in SHELLS])
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_tab_completes_as_it_is_meant(shell, locale, home):
    with opened(shell, home, locale) as terminal:
        found = {keys: terminal.type(f"bandpo {keys}") for keys in TYPED}
    # Shells differ in the slash that they leave behind a folder.
    plain = {keys: [word.rstrip("/") for word in words] for keys, words in found.items()}
    assert plain == {k: [word.rstrip("/") for word in words] for k, words in TYPED.items()}
