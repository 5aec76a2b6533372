"""The built wheel: its contents, its metadata, and what works where nothing else is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import bandpo

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = [
    line.split("==")[0]
    for path in (ROOT / "configs").glob("constraints*.txt")
    for line in path.read_text(encoding="utf-8").splitlines()
    if "==" in line and not line.startswith("#")
]
LOSS = """
import sys

import torch

from bandpo.loss import BandKL, Capped, Clip, PolicyLoss, SequenceMeanTokenMean, TokenBatch
from bandpo.loss import TokenRatio

loss = PolicyLoss(TokenRatio(), Clip(Capped(BandKL(delta=0.05), 10)), SequenceMeanTokenMean())
logp = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
old, advantages = torch.tensor([[-1.1, -2.5, -0.4]]), torch.ones(1, 3)
output = loss(TokenBatch(logp, old, advantages, torch.ones(1, 3)))
torch.autograd.backward(output.loss)
"""
"""A user's file: types and numbers."""


def build(target: str, folder: Path, source: Path = ROOT) -> Path:
    """The one file that hatchling makes of this checkout or of an unpacked sdist."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (made,) = folder.glob("bandpo-*")
    return made


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


def shipped_from(folder: str, *patterns: str) -> set[str]:
    """Paths in the wheel of files that lie beside the package here."""
    found = {path for pattern in patterns for path in (ROOT / folder).rglob(pattern)}
    kept = {p for p in found if not {"results", "history"} & set(p.parts)}
    return {f"bandpo/{path.relative_to(ROOT).as_posix()}" for path in kept}


def test_the_wheel_holds_the_package_and_what_it_reads_and_nothing_else(wheel):
    names = {name for name in names_in(wheel) if ".dist-info/" not in name}
    code = {p.relative_to(ROOT).as_posix() for p in (ROOT / "bandpo").rglob("*.py")}
    recipes = shipped_from("recipes", "*.py", "*.yaml", "README.md", "expected.json")
    configs = shipped_from("configs", "*.yaml", "*.txt")
    assert {"bandpo/recipes/small/recipe.yaml", "bandpo/configs/constraints-cpu.txt"} <= names
    must = {"bandpo/py.typed", "bandpo/scripts/launch.sh", "bandpo/model/shipped/model.safetensors"}
    assert code | recipes | configs | must <= names
    data = names - code - recipes - configs - must
    # Pages' styles and templates, and the files of the shipped policy.
    assert {"bandpo/evaluation/page.css", "bandpo/tables/table.md.j2"} <= data
    assert {name for name in data if not (ROOT / name).is_file()} == set()
    pages = {".css", ".html", ".j2", ".jinja", ".js", ".json", ".svg"}
    shells = {".bash", ".fish", ".zsh"}
    assert {Path(name).suffix for name in data if Path(name).name != "NOTICE"} <= pages | shells


def test_nothing_in_it_is_of_this_machine(wheel):
    own = re.compile(rf"{re.escape(str(ROOT))}|/home/\w|/root/|/work/|/Users/".encode())
    with zipfile.ZipFile(wheel) as archive:
        found = {n: m[0] for n in archive.namelist() if (m := own.search(archive.read(n)))}
    assert found == {}


def test_versions_agree(wheel, metadata):
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert metadata["Version"] == bandpo.__version__ == heading[1]
    assert "version" not in PROJECT and wheel.name == f"bandpo-{heading[1]}-py3-none-any.whl"


def test_the_metadata_is_what_an_index_shows(metadata):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == PROJECT["requires-python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    always = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert any(r.startswith("torch") for r in always)
    assert not [r for r in always if re.match(r"vllm|deepspeed", r)]
    assert "bandpo train" in metadata.get_payload()


def test_an_sdist_builds_the_same_wheel(wheel, tmp_path):
    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    for name in ("CHANGELOG.md", "tests/test_wheel.py", "scripts/setup.sh", "docs/releasing.md"):
        assert (source / name).is_file(), name
    assert names_in(build("wheel", tmp_path / "again", source)) == names_in(wheel)


def test_every_requirement_is_pinned():
    """Liger's kernels need a GPU, so no version of theirs has been tested."""
    extras = [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    named = {re.match(r"[\w-]+", r)[0] for r in (*PROJECT["dependencies"], *extras)}
    assert named - {"bandpo", "liger-kernel"} - set(PINS) == set()


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as pip does it, in a path with a space."""
    folder = tmp_path_factory.mktemp("an installed") / "site packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["plan", "method=band_tv"], "band_tv"),
        (["table", "small", "--plan", "--only", "method=grpo,seed=0"], "on the embedded policy"),
        (["launch", "--dry-run", "--nproc", "2", "--", "method=grpo"], "bandpo.cli train method"),
    ],
)
def test_an_installed_package_needs_no_checkout(site, tmp_path, arguments, shown):
    done = subprocess.run(
        [sys.executable, "-m", "bandpo.cli", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "LC_ALL": "C", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_the_loss_imports_nothing_but_torch(site, tmp_path):
    """NumPy is no requirement of torch; the slow test tries it where nothing else is installed."""
    missing = ["numpy", "scipy", "transformers", "hydra", "omegaconf", "pydantic", "yaml", "rich"]
    program = f"import sys\nsys.modules.update(dict.fromkeys({missing}))\n{LOSS}"
    program += f"import bandpo\nassert bandpo.__file__.startswith({str(site)!r})"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_installed_package_says_how_vllm_is_installed(site, tmp_path):
    code = "from bandpo.rollout.vllm_installed import install_command as c; print(c())"
    environment = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    constraints = site / "bandpo/configs/constraints-cpu.txt"
    assert done.stdout.startswith(f"pip install \"bandpo[cpu]\" -c '{constraints}' ")


def fresh_environment(folder: Path) -> Path:
    """The python of a new virtual environment."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin/python"


def pip(python: Path, *arguments: str | Path) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def run_outside(
    program: Path, *arguments: str, home: Path, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """A program of a fresh environment in an empty folder, with nothing of this one's settings."""
    folder = home / "some where"
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [str(program), *arguments],
        cwd=folder,
        env={"HOME": str(home), "LC_ALL": "C", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == code, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_loss_needs_torch_alone_and_is_typed(wheel, tmp_path):
    python = fresh_environment(tmp_path / "an environment")
    pip(python, "install", "-q", "torch", "-c", ROOT / "configs/constraints-cpu.txt")
    pip(python, "install", "-q", "--no-deps", wheel)
    user = tmp_path / "user.py"
    user.write_text(LOSS + "assert logp.grad is not None and 'numpy' not in sys.modules\n")
    run_outside(python, str(user), home=tmp_path)
    strict = ["--strict", "--python-executable", str(python), "--cache-dir", str(tmp_path / "mypy")]
    command = [sys.executable, "-m", "mypy", *strict, "--config-file=", "user.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    # Types are seen: a wrong one is an error.
    user.write_text(LOSS + "BandKL(delta='a lot')\n")
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert '"BandKL" has incompatible type "str"' in checked.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_cpu_extra_trains_outside_any_checkout(wheel, tmp_path):
    python = fresh_environment(tmp_path / "environment")
    command = python.with_name("bandpo")
    pip(python, "install", "-q", f"{wheel}[cpu]", "-c", ROOT / "configs/constraints-cpu.txt")
    found = run_outside(python, "-c", BROKEN, home=tmp_path).stdout.split()
    short = [
        *("trainer.steps=1", "eval.benchmarks=[]", "rollout.max_tokens=16"),
        *("rollout.prompts_per_step=4", "rollout.group_size=4", "learner.updates_per_rollout=1"),
    ]
    if found:  # an index without PyTorch's CPU builds gives others
        remedy = f"pip uninstall -y {' '.join(found)}"
        stopped = run_outside(command, "train", *short, home=tmp_path, code=2)
        assert remedy in stopped.stderr and "Traceback" not in stopped.stderr
        looked = run_outside(command, "doctor", home=tmp_path, code=1).stdout
        assert "pip uninstall -y" in looked
        pip(python, *remedy.split()[1:])
    run_outside(command, "doctor", home=tmp_path)
    run_outside(command, "train", *short, "run.name=first", home=tmp_path)
    run = tmp_path / "some where/outputs/first"
    assert '"engine": "vllm' in (run / "run.json").read_text(encoding="utf-8")
    assert (run / "plots/training.png").stat().st_size > 10_000
    assert '"step": 1' in (run / "metrics.jsonl").read_text(encoding="utf-8")
    planned = run_outside(command, "table", "small", "--plan", home=tmp_path)
    assert "70 runs" in planned.stdout


BROKEN = """
import importlib, importlib.util
for name in ("torchvision", "torchaudio", "torchcodec"):
    if importlib.util.find_spec(name):
        try:
            importlib.import_module(name)
        except Exception:
            print(name)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_gpu_extra_resolves(wheel, tmp_path):
    """As pip installs it into an empty environment of this Python; nothing is installed."""
    python, report = fresh_environment(tmp_path / "an environment"), tmp_path / "report.json"
    constraints = ("-c", ROOT / "configs/constraints.txt")
    pip(python, "install", "-q", "--dry-run", f"{wheel}[gpu]", *constraints, "--report", report)
    found = json.loads(report.read_text(encoding="utf-8"))["install"]
    versions = {package["metadata"]["name"]: package["metadata"]["version"] for package in found}
    pinned = (ROOT / "configs/constraints.txt").read_text(encoding="utf-8")
    assert f"\nvllm=={versions['vllm']}\n" in pinned and "deepspeed" in versions


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_builds_resolve_on_every_python_of_the_metadata(tmp_path):
    python = fresh_environment(tmp_path / "environment")
    pip(python, "install", "-q", "uv")
    search = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    command = ["bash", str(ROOT / "scripts/constraints.sh"), "--check"]
    done = subprocess.run(
        command, env={**os.environ, "PATH": search}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in PROJECT["classifiers"]
        for build_of in ("cpu", "gpu"):
            assert f"bandpo[{build_of}] resolves on Python 3.{minor}\n" in done.stdout
