"""GPUs that the driver lists and torch cannot use stop a run, doctor and setup, with the reason."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bandpo import cli
from bandpo.commands import doctor
from bandpo.environment import broken_companions, unusable_gpus
from bandpo.errors import UserError
from bandpo.ranks import joining
from bandpo.rollout import vllm_installed

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees the GPU here")


@pytest.fixture
def two_listed_gpus(tmp_path, monkeypatch):
    """An nvidia-smi that lists two GPUs, one of them with a MIG instance."""
    program = tmp_path / "nvidia-smi"
    listed = "GPU 0: NVIDIA H100\\n  MIG 1g.10gb Device 0\\nGPU 1: NVIDIA H100\\n"
    program.write_text(f"#!/bin/sh\nprintf {shlex.quote(listed)}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_a_machine_without_a_driver_has_no_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unusable_gpus() is None


def test_listed_gpus_that_torch_cannot_use_are_reported_with_its_reason(
    two_listed_gpus, monkeypatch
):
    def too_old():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.cuda, "init", too_old)
    problem = unusable_gpus()
    assert problem.startswith("nvidia-smi lists 2 GPU(s), but torch")
    assert "too old (found version 11040)" in problem and "CUDA_VISIBLE_DEVICES=" in problem


def test_a_run_stops_and_doctor_names_the_reason(two_listed_gpus):
    with pytest.raises(UserError, match="lists 2 GPU"):
        joining.own_device()
    findings = {finding.what: finding for finding in (check() for check in doctor.CHECKS[:5])}
    assert "lists 2 GPU" in findings["machine"].remedy
    assert "uninstall" not in findings["vLLM"].remedy


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_hidden_on_purpose_are_no_problem(two_listed_gpus, monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert unusable_gpus() is None and joining.own_device() == torch.device("cpu")


def test_a_package_built_for_another_torch_is_named_with_the_command_that_removes_it(
    tmp_path, monkeypatch, capsys
):
    """As torchvision's CUDA build beside a CPU build of torch; transformers fails with it."""
    (tmp_path / "torchvision").mkdir()
    fault = 'raise RuntimeError("operator torchvision::nms does not exist")'
    (tmp_path / "torchvision/__init__.py").write_text(fault)
    (tmp_path / "torchvision-0.1.dist-info").mkdir()
    facts = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n"
    (tmp_path / "torchvision-0.1.dist-info/METADATA").write_text(facts)
    (tmp_path / "a_command.py").write_text("import torchvision")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(cli.COMMANDS, "train", ("a_command:main", ""))
    assert broken_companions().startswith("pip uninstall -y torchvision (")
    assert cli.main(["train"]) == 2
    told = capsys.readouterr().err
    assert "pip uninstall -y torchvision (" in told and "Traceback" not in told
    assert "pip uninstall -y torchvision (" in doctor._vllm().remedy
    # Without it the command's own fault is shown.
    (tmp_path / "torchvision/__init__.py").write_text("sound = True")
    (tmp_path / "a_command.py").write_text("import nowhere_to_be_found")
    assert broken_companions() is None
    assert cli.main(["train"]) == 1 and "nowhere_to_be_found" in capsys.readouterr().err
    sys.modules.pop("torchvision")


def setup(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """scripts/setup.sh with an environment whose pip does nothing but note its arguments."""
    (folder / "venv/bin").mkdir(parents=True, exist_ok=True)
    python = folder / "venv/bin/python"
    noted = folder / "pip.txt"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -m ] || exec {sys.executable} "$@"\necho "$*" >> {noted}\n'
    )
    python.chmod(0o755)
    return subprocess.run(
        ["bash", str(ROOT / "scripts/setup.sh")],
        env={
            **os.environ,
            "BANDPO_VENV": str(folder / "venv"),
            "BANDPO_PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_setup_says_why_the_gpu_build_cannot_use_the_gpus(two_listed_gpus):
    done = setup(two_listed_gpus)
    assert done.returncode == 2
    assert "lists 2 GPU" in done.stderr and "cannot use the GPUs" in done.stderr
    assert "[gpu,dev]" in (two_listed_gpus / "pip.txt").read_text()
    assert not (two_listed_gpus / "venv/.bandpo-setup").exists()  # the next call tries again


def test_setup_takes_the_cpu_build_where_the_gpus_are_hidden(two_listed_gpus):
    done = setup(two_listed_gpus, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert "[cpu,dev]" in (two_listed_gpus / "pip.txt").read_text()


def test_an_environment_in_a_path_with_a_space_is_refused_where_torch_would_fail_to_compile(
    tmp_path, monkeypatch
):
    done = setup(tmp_path / "my project")
    assert done.returncode == 2 and "BANDPO_VENV" in done.stderr
    assert not (tmp_path / "my project/pip.txt").exists()
    monkeypatch.setattr(vllm_installed, "vllm_version", lambda: "0.33.0")
    vllm_installed.require_vllm()
    monkeypatch.setattr(torch, "__file__", "/my project/.venv/torch/__init__.py")
    with pytest.raises(UserError, match=r"a space \(/my project/\.venv/torch\).*rollout=hf"):
        vllm_installed.require_vllm()


@pytest.mark.parametrize("key", ["VLLM_CACHE_ROOT", "XDG_CACHE_HOME", "HOME"])
def test_a_cache_in_a_path_with_a_space_is_refused_with_the_variable_to_set(key, monkeypatch):
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(vllm_installed, "vllm_version", lambda: "99.0.0")
    monkeypatch.setenv("HOME", "/home/stranger")
    vllm_installed.require_vllm()
    monkeypatch.setenv(key, "/a stranger/home")
    with pytest.raises(UserError, match=r"space \(/a stranger/home.*: set VLLM_CACHE_ROOT to a"):
        vllm_installed.require_vllm()


def test_setup_names_the_headers_that_kernels_need(tmp_path):
    python = tmp_path / "python3.12"
    python.write_text('#!/bin/sh\ncase "$*" in *Python.h*) exit 1;; esac\n')
    python.chmod(0o755)
    done = setup(tmp_path, BANDPO_PYTHON=str(python))
    assert done.returncode == 2 and "python3.12-dev" in done.stderr and "Python.h" in done.stderr


def test_doctor_names_missing_headers(monkeypatch):
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: "/nowhere")
    finding = doctor._compiler()
    assert "-dev" in finding.remedy and "/nowhere/Python.h" in finding.found
