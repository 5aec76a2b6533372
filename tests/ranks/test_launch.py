"""scripts/launch.sh: the command of every launcher, and two nodes of one machine for real."""

import json
import os
import pickle
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _RendezvousState

from bandpo import cli
from bandpo.ranks.head import RENDEZVOUS, problem_with

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/launch.sh"
TRAIN = ["-m", "bandpo.cli", "train"]
# A value that a shell would take apart.
OVERRIDES = ["method=grpo", "data.train={path: my problems.jsonl}"]


def launch(*arguments, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    bin_folder = Path(sys.executable).parent
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**clean, "BANDPO_VENV": str(bin_folder.parent), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def dry(*arguments, **environment):
    """The command's words, the interpreter left out."""
    done = launch("--dry-run", *arguments, "--", *OVERRIDES, **environment)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


@pytest.fixture
def programs(tmp_path):
    """Makes programs of a given output; returns a PATH on which they come first."""

    def make(**outputs):
        for name, output in outputs.items():
            program = tmp_path / name.replace("_", "-")
            program.write_text(f"#!/bin/sh\nprintf {shlex.quote(output)}\n")
            program.chmod(0o755)
        return os.pathsep.join([str(tmp_path), os.environ["PATH"]])

    return make


def test_one_machine():
    words = dry("--nproc", "2")
    assert words[0] == sys.executable
    assert words[1:] == [
        *("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
        *(*TRAIN, *OVERRIDES),
    ]


def test_the_command_becomes_the_script_with_its_own_python_and_leaves_cores_to_it(monkeypatch):
    became = []
    monkeypatch.setattr(os, "execvpe", lambda *given: became.append(given))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cli.main(["launch", "--nproc", "2", "--", *OVERRIDES])
    ((program, words, environment),) = became
    assert program == "bash" and words == ["bash", str(SCRIPT), "--nproc", "2", "--", *OVERRIDES]
    assert environment["BANDPO_VENV"] == sys.prefix and "OMP_NUM_THREADS" not in environment


@pytest.mark.parametrize("words", [["eval"], ["eval", "--"], ["train"]])
def test_another_command_takes_the_place_of_the_dashes(words):
    done = launch("--dry-run", "--nproc", "8", *words, "model=a b", "benchmarks=[math]")
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout)[3:] == [
        *("--nproc-per-node", "8", "--standalone", "-m", "bandpo.cli", words[0]),
        *("model=a b", "benchmarks=[math]"),
    ]


@pytest.mark.parametrize(("usable", "processes"), [(0, 1), (3, 3)])
def test_a_process_per_gpu_that_torch_can_use_and_one_without(
    tmp_path, programs, usable, processes
):
    """Neither hidden GPUs nor MIG instances, which nvidia-smi lists all the same, are counted."""
    listed = programs(nvidia_smi="GPU 0: H100\\n  MIG 1g.10gb Device 0\\nGPU 1: H100\\n")
    (tmp_path / "torch").mkdir()
    fake = f"class cuda:\n    device_count = staticmethod(lambda: {usable})\n"
    (tmp_path / "torch/__init__.py").write_text(fake)
    words = dry(PATH=listed, PYTHONPATH=str(tmp_path))
    assert f"--nproc-per-node {processes}" in shlex.join(words)


def test_several_nodes_by_torchrun():
    words = dry("--nodes", "4", "--head", "10.0.0.1", "--nproc", "8")
    assert words[1:] == [
        *("-m", "torch.distributed.run", "--nproc-per-node", "8", "--nnodes", "4"),
        *("--rdzv-backend", "c10d", "--rdzv-id", "bandpo", "--rdzv-endpoint", "10.0.0.1:29500"),
        *(*TRAIN, *OVERRIDES),
    ]
    assert "10.0.0.1:1234" in dry("--nodes", "4", "--head", "10.0.0.1:1234")


def test_several_nodes_by_deepspeed(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=8\nnode2 slots=8\n")
    words = dry("--hostfile", str(hosts))
    assert words[0] == str(Path(sys.executable).with_name("deepspeed"))
    assert words[1:] == ["--hostfile", str(hosts), "--module", *TRAIN[1:], *OVERRIDES]


def test_deepspeed_passes_settings_on_and_no_secrets(tmp_path):
    (tmp_path / "hosts").write_text("node1 slots=8\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    deepspeed = tmp_path / "bin/deepspeed"
    deepspeed.write_text('#!/bin/sh\necho "file $DS_ENV_FILE"; cat "$DS_ENV_FILE"; exit 3\n')
    deepspeed.chmod(0o755)
    done = launch(
        *("--hostfile", str(tmp_path / "hosts"), "--"),
        BANDPO_VENV=str(tmp_path),
        BANDPO_CACHE="/data/my cache",
        HF_HOME="/data/hub",
        HF_TOKEN="hidden1",
        VLLM_API_KEY="hidden2",
        GLOO_SOCKET_IFNAME="eth1",
    )
    assert done.returncode == 3  # the launcher's own
    lines = done.stdout.splitlines()
    assert {"BANDPO_CACHE=/data/my cache", "HF_HOME=/data/hub"} < set(lines)
    assert "GLOO_SOCKET_IFNAME=eth1" in lines and "hidden" not in done.stdout + done.stderr
    assert "not passed on, set them on each node: HF_TOKEN VLLM_API_KEY" in done.stderr
    assert not Path(lines[0].removeprefix("file ")).exists()


@pytest.mark.parametrize("cpus", [{}, {"SLURM_CPUS_PER_TASK": "96"}])
def test_several_nodes_under_slurm(programs, cpus):
    words = dry(
        "--slurm",
        PATH=programs(scontrol="gpu07\\ngpu08\\n"),
        SLURM_JOB_NODELIST="gpu[07-08]",
        SLURM_JOB_NUM_NODES="2",
        SLURM_GPUS_ON_NODE="8",
        **cpus,
    )
    assert words[:6] == [
        *("srun", "--nodes", "2", "--ntasks-per-node", "1", "--kill-on-bad-exit"),
    ]
    own = ["--cpus-per-task", "96"] if cpus else []
    assert words[6:] == [
        *own,
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "8", "--nnodes", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-id", "bandpo", "--rdzv-endpoint", "gpu07:29500"),
        *(*TRAIN, *OVERRIDES),
    ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["method=grpo"], "unknown option method=grpo; overrides come after --, or after train"),
        (["--nproc", "2"], "put -- before the overrides"),
        (["--nproc", "--"], "--nproc needs a value"),
        (["--nodes", "2", "--"], "--nodes needs --head"),
        (["--hostfile", "/not/there", "--"], "/not/there: no such file"),
        (["--slurm", "--"], "--slurm needs an allocation"),
        (["--slurm", "--nodes", "2", "--head", "a", "--"], "choose one of"),
    ],
)
def test_what_cannot_be_launched_is_said(arguments, reason):
    done = launch(*arguments)
    assert done.returncode == 2 and reason in done.stderr


@pytest.fixture
def busy():
    """A port of this machine at which a program listens that is none of torch's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_head_whose_port_is_taken_is_refused(busy):
    done = launch("--nodes", "2", "--head", f"127.0.0.1:{busy}", "--nproc", "1", "--", *OVERRIDES)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"launch: --head 127.0.0.1:{busy}: this port is taken by another program: choose another, "
        f"as in 127.0.0.1:{busy + 1}"
    ]


def test_nodes_of_this_run_may_wait_at_the_port_and_those_of_another_not():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = f"127.0.0.1:{store.port}"
    assert problem_with(place) is None
    state = _RendezvousState()
    C10dRendezvousBackend(store, RENDEZVOUS).set_state(pickle.dumps(state))
    assert problem_with(place) is None
    state.complete = True
    C10dRendezvousBackend(store, f"{RENDEZVOUS}-2").set_state(pickle.dumps(state))
    assert problem_with(place) is None
    store.delete_key(f"torch.rendezvous.{RENDEZVOUS}")
    C10dRendezvousBackend(store, RENDEZVOUS).set_state(pickle.dumps(state))
    assert "taken by another run" in problem_with(place)


def test_only_a_head_of_this_machine_is_looked_at():
    assert problem_with("192.0.2.1:29500") is None  # an address of documentation
    assert "must be a number" in problem_with("localhost:head")
    assert "has no address" in problem_with("no-such-host.invalid:29500")


def test_ranks_whose_port_is_taken_say_so(busy):
    code = (
        "import torch\n"
        "from bandpo.ranks.joining import join\n"
        "from bandpo.errors import UserError\n"
        "try:\n    join(torch.device('cpu'))\n"
        "except UserError as error:\n    print('told:', error)\n"
    )
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **ranks, "MASTER_PORT": str(busy)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"told: port {busy} of this machine" in done.stdout, done.stderr[-2000:]


def test_two_nodes_meet_and_train(untrained, tmp_path):
    """Two launches of one rank each on this machine, as on two nodes; shares are uneven."""
    pytest.importorskip("deepspeed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        head = f"127.0.0.1:{probe.getsockname()[1]}"
    few = (
        "{name: few, source: {_target_: bandpo.data.arithmetic.problems, split: heldout, count: 4}}"
    )
    command = ["bash", str(SCRIPT), "--nodes", "2", "--head", head, "--nproc", "1", "--"]
    command += [
        "rollout=hf",
        "policy=embedded",
        f"model.path={untrained()}",
        f"run.dir={tmp_path / 'run'}",
    ]
    command += ["trainer.steps=1", "rollout.prompts_per_step=3", "rollout.group_size=2"]
    command += ["rollout.max_tokens=4", "learner.updates_per_rollout=2", "learner.zero_stage=3"]
    command += [f"eval.benchmarks=[{few}]", "eval.n=2"]
    environment = {**os.environ, "BANDPO_VENV": str(Path(sys.executable).parents[1])}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    logs = [(tmp_path / f"node{i}").open("w+") for i in range(2)]
    nodes = [
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        for log in logs
    ]
    try:
        codes = [node.wait(500) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert codes == [0, 0], "\n".join((tmp_path / f"node{i}").read_text()[-3000:] for i in range(2))
    assert json.loads((tmp_path / "run/run.json").read_text())["ranks"] == 2
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    assert json.loads(lines[1])["rollout/groups"] == 3  # two of one rank, one of the other
