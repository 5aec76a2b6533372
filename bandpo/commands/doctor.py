"""`bandpo doctor`: checks what this machine can run, and says why not."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bandpo.config.composition import config_dir
from bandpo.disk.cache import cache_dir
from bandpo.disk.space import free_gib, nearest_existing
from bandpo.environment import broken_companions, hardware, package_versions, unusable_gpus
from bandpo.errors import UserError
from bandpo.rollout.vllm_installed import require_vllm, vllm_version


@dataclass(frozen=True)
class Finding:
    """One check: what was found, and what to do where something is wrong."""

    what: str
    found: str
    remedy: str = ""


def _python() -> Finding:
    return Finding("Python", platform.python_version())


def _machine() -> Finding:
    facts = hardware()
    gpus = ", ".join(facts["gpus"]) or "no GPU"
    found = f"{facts['cores']} cores, {facts['memory_gib']} GiB, {gpus}"
    return Finding("machine", found, unusable_gpus() or "")


def _compiler() -> Finding:
    """vLLM, DeepSpeed and Triton compile small kernels at first use."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not shutil.which("g++"):
        return Finding("C++ compiler", "missing", "install g++: small kernels are compiled")
    if not headers.exists():
        remedy = f"install this Python's headers (python{platform.python_version()[:4]}-dev)"
        return Finding("C++ compiler", f"g++, but no {headers}", remedy)
    return Finding("C++ compiler", "g++, Python.h")


def _vllm() -> Finding:
    try:
        require_vllm()
    except UserError as error:
        return Finding("vLLM", vllm_version() or "missing", str(error))
    return Finding("vLLM", f"{vllm_version()} (rollout=vllm_local)", broken_companions() or "")


def _package(name: str, use: str) -> Callable[[], Finding]:
    def check() -> Finding:
        try:
            importlib.import_module(name)
        except Exception as error:  # an import may fail in any way; the message is what helps
            return Finding(name, "does not import", f"{type(error).__name__}: {error}")
        (found,) = package_versions([name]).values() or ["installed"]
        return Finding(name, f"{found} ({use})")

    return check


def _distributed() -> Finding:
    backends = [b for b in ("nccl", "gloo") if torch.distributed.is_backend_available(b)]
    usable = [b for b in backends if b != "nccl" or torch.cuda.is_available()]
    remedy = "" if usable else "this torch build has no distributed backend"
    return Finding("several ranks", ", ".join(usable) or "no", remedy)


def _disk() -> Finding:
    folder = cache_dir()
    writable = os.access(nearest_existing(folder), os.W_OK)
    remedy = "" if writable else "set BANDPO_CACHE to a folder that can be written"
    return Finding("cache", f"{folder}, {int(free_gib(folder))} GiB free", remedy)


def _configs() -> Finding:
    count = len(list(config_dir().rglob("*.yaml")))
    return Finding("configs", f"{count} files in {config_dir()}")


CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _machine,
    _compiler,
    _package("deepspeed", "learner"),
    _vllm,
    _package("math_verify", "reward"),
    _package("wandb", "WANDB_MODE=offline needs no account"),
    _distributed,
    _disk,
    _configs,
)


def main(argv: list[str]) -> int:
    """Prints every finding; returns 1 where something prevents `bandpo train` from running."""
    argparse.ArgumentParser(prog="bandpo doctor", description=__doc__).parse_args(argv)
    findings = [check() for check in CHECKS]
    table = Table(title="bandpo doctor", title_justify="left")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = "[red]✗[/]" if finding.remedy else "[green]✓[/]"
        table.add_row(mark, finding.what, finding.found, finding.remedy)
    Console().print(table)
    return 1 if any(finding.remedy for finding in findings) else 0
