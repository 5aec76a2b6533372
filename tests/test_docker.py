"""Docker files, read and not built: one place for versions, files that exist, a private network."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.model.architecture import shape_of
from bandpo.planning.gpus import Cluster
from bandpo.planning.memory import gpu_memory

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = [ROOT / "docker/Dockerfile", ROOT / "docker/Dockerfile.cpu"]
COMPOSE = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
PINS = dict(
    line.split("==")
    for path in (ROOT / "configs").glob("constraints*.txt")
    for line in path.read_text().splitlines()
    if "==" in line
)
SERVERS = {name: s for name, s in COMPOSE["services"].items() if name.startswith("server")}
LEARNER = COMPOSE["services"]["learner"]


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continued lines joined and comments left out."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def arguments_of(path: Path) -> dict[str, str]:
    return dict(text.split("=", 1) for name, text in instructions(path) if name == "ARG")


def test_the_gpu_image_is_that_of_the_pinned_vllm():
    gpu = DOCKERFILES[0]
    assert arguments_of(gpu) == {"VLLM_VERSION": PINS["vllm"]}
    assert ("FROM", "vllm/vllm-openai:v${VLLM_VERSION}") in instructions(gpu)


def test_the_cpu_image_has_a_python_that_the_project_takes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least = tuple(map(int, re.findall(r"\d+", project["requires-python"])))
    version = arguments_of(DOCKERFILES[1])["PYTHON_VERSION"]
    assert tuple(map(int, version.split("."))) >= least
    assert ("RUN", "bash scripts/setup.sh") in instructions(DOCKERFILES[1])  # reads the pins


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_versions_come_from_the_constraints_alone(path):
    """Nothing is pinned beside the base image, and what pip takes is constrained."""
    for name, text in instructions(path):
        if name not in ("ARG", "FROM"):
            assert not re.search(r"[=:@]v?\d+\.\d+", text), text
        if "pip install" in text:
            assert "configs/constraints.txt" in text and "-c " in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_let_in(path):
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert allowed[0] == "*"
    copied = [text for name, text in instructions(path) if name == "COPY"]
    sources = [source for text in copied for source in shlex.split(text)[:-1]]
    assert {"pyproject.toml", "configs", "bandpo"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and f"!{source}" in allowed
    # What the build of the package reads is there before it is installed.
    names = [name for name, _ in instructions(path)]
    assert names.index("COPY") < max(i for i, name in enumerate(names) if name == "RUN")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_nothing_runs_as_root(path):
    users = [text for name, text in instructions(path) if name == "USER"]
    assert users == ["bandpo"]


def test_all_services_are_one_image_built_from_the_repository():
    assert len(SERVERS) == 2
    for service in COMPOSE["services"].values():
        assert service["image"] == "bandpo" and service["shm_size"] == "16gb"
        build = service["build"]
        assert (ROOT / "docker" / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
    devices = [
        s["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for s in COMPOSE["services"].values()
    ]
    assert sorted(devices) == [["0"], ["1"], ["2"]]


def test_servers_are_reached_by_the_learner_alone():
    assert COMPOSE["networks"]["rollout"]["internal"] is True
    for server in SERVERS.values():
        assert server["networks"] == ["rollout"] and "ports" not in server
        # Compose refuses to start without a key, and the file holds none.
        assert server["environment"]["VLLM_API_KEY"].startswith("${VLLM_API_KEY:?")
    assert "rollout" in LEARNER["networks"] and "ports" not in LEARNER


def test_the_learner_waits_for_healthy_servers():
    for name, server in SERVERS.items():
        assert "/health" in server["healthcheck"]["test"][-1]
        assert LEARNER["depends_on"][name] == {"condition": "service_healthy"}


def test_servers_start_as_the_documentation_says():
    told = (ROOT / "docs/servers.md").read_text()
    for server in SERVERS.values():
        for flag in server["command"][3:]:
            assert flag.split("=")[0] in told, flag
        for flag in ("--logprobs-mode=processed_logprobs", "--enable-scale-out"):
            assert flag in server["command"]
        assert server["environment"]["VLLM_SERVER_DEV_MODE"] == "1"


def test_the_learner_and_the_servers_agree():
    program, command, *overrides = LEARNER["command"]
    assert (program, command) == ("bandpo", "train")
    config = compose("train", [o.replace("${MODEL}", "a/model") for o in overrides], Config)
    ports = {name: next(f for f in s["command"] if "--port" in f) for name, s in SERVERS.items()}
    urls = {f"http://{name}:{port.split('=')[1]}" for name, port in ports.items()}
    assert set(config.rollout.engine["urls"]) == urls
    longest = config.data.max_prompt_tokens + max(config.rollout.max_tokens, config.eval.max_tokens)
    for server in SERVERS.values():
        assert f"--dtype={config.model.dtype}" in server["command"]
        assert f"--max-model-len={longest}" in server["command"]
        assert server["environment"]["VLLM_API_KEY"].startswith("${VLLM_API_KEY")
    exchange = config.rollout.engine["exchange"]
    for service in COMPOSE["services"].values():
        assert f"weights:{exchange}" in service["volumes"]


def test_the_learner_fits_on_one_gpu_of_80_gb():
    """With the model that the file's first lines name."""
    model = re.search(r"MODEL=(\S+)", (ROOT / "docker/compose.yaml").read_text())[1]
    overrides = [o.replace("${MODEL}", model) for o in LEARNER["command"][2:]]
    config = compose("train", overrides, Config)
    memory = gpu_memory(config, shape_of(config.model), Cluster.of("1xH100"))
    longest = config.data.max_prompt_tokens + config.rollout.max_tokens
    assert memory.shortage(longest) is None


def test_files_of_a_run_belong_to_who_started_it():
    for service in COMPOSE["services"].values():
        assert service["user"].startswith("${RUN_AS:?")
        assert service["environment"]["HOME"] == "/tmp"
        binds = [v for v in service["volumes"] if isinstance(v, dict)]
        assert [v["target"] for v in binds] == ["/runs/outputs"]
        assert all(v["bind"] == {"create_host_path": False} for v in binds)
