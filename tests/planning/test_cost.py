"""The cost model by hand-computed values, and against the one log that was published."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from document_cost import PERFECT, RELEASE_LOG, SHAPE, document, fitted_rates, release_workload
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from bandpo.cli import main
from bandpo.config.composition import compose
from bandpo.config.schema import Config, longest_sequence
from bandpo.config.sections.model import ModelConfig
from bandpo.errors import UserError
from bandpo.model import architecture
from bandpo.model.architecture import KNOWN, Shape, shape_of
from bandpo.planning.fit import fitted, fitted_without_gpu
from bandpo.planning.forecast import forecast
from bandpo.planning.gpus import GPUS, Cluster
from bandpo.planning.memory import checkpoint_disk, gpu_memory, learner_memory
from bandpo.planning.time import RATES, step_seconds, whole_step
from bandpo.planning.workload import Workload, trained_parameters

ROOT = Path(__file__).resolve().parents[2]
# As the models' own pages and checkpoint indices state them.
PARAMETERS = {
    "smollm2": 134_515_008,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
}
# 1e9 parameters, all multiplied with; no attention to speak of; 1e5 bytes of KV cache per token.
TOY = Shape(10**9, 10**9, 1000, 1, 1000, intermediate=4000, attention_width=0, kv_width=50_000)
GPU = dataclasses.replace(GPUS["H200"], flops=1e15, bandwidth=1e12, link=1e15)


def toy_work(**changes) -> Workload:
    work = Workload(
        samples=800, updates=4, prompt_tokens=100, mean_tokens=100, longest_tokens=1000,
        concurrency=100,
    )  # fmt: skip
    return dataclasses.replace(work, **changes)


def test_the_papers_models_have_their_published_sizes():
    assert PARAMETERS.keys() == KNOWN.keys()
    for path, parameters in PARAMETERS.items():
        shape = shape_of(ModelConfig(path=path))
        assert shape.parameters == parameters
        tied = path.startswith(("Qwen/", "smollm2"))
        embedding = 0 if tied else shape.vocabulary * shape.hidden
        assert shape.matmul_parameters == parameters - embedding


def test_a_step_by_hand():
    seconds = step_seconds(TOY, toy_work(), Cluster(8, GPU), PERFECT)
    # 160,000 tokens × 2e9 operations, over 8 × 1e15 a second.
    assert seconds["reference"] == pytest.approx(0.04)
    assert seconds["old_logprob"] == pytest.approx(0.04)
    assert seconds["update"] == pytest.approx(4 * 0.04)
    # 1,000 decoding steps read 2e9 bytes each; 100 samples × 100 tokens read 150 tokens of cache
    # on average; their arithmetic takes 2e9 operations each.
    assert seconds["generation"] == pytest.approx(1000 * 2e-3 + 100 * 100 * 150 * 1e5 / 1e12 + 0.02)


def test_more_samples_than_slots_wait():
    one = step_seconds(TOY, toy_work(), Cluster(8, GPU), PERFECT)["generation"]
    two = step_seconds(TOY, toy_work(samples=1600), Cluster(8, GPU), PERFECT)["generation"]
    # 100 further samples of 100 tokens in 100 slots: 100 decoding steps, and as much cache again.
    assert two - one == pytest.approx(100 * 2e-3 + 0.15 + 0.02)


def test_slow_links_bound_what_is_sharded():
    slow = Cluster(8, dataclasses.replace(GPU, link=1e9))
    seconds = step_seconds(TOY, toy_work(micro_batch_tokens=5000), slow, PERFECT)
    # 20,000 tokens per GPU are 4 micro-batches; 7/8 of 2e9 bytes are gathered in 1.75 s.
    assert seconds["reference"] == pytest.approx(4 * 1.75)
    assert seconds["update"] == pytest.approx(3 * 4 * 1.75)


def test_whole_weights_are_never_gathered_and_only_trained_ones_reduced():
    slow = Cluster(8, dataclasses.replace(GPU, link=1e9))
    whole = toy_work(micro_batch_tokens=5000, sharded=False)
    seconds = step_seconds(TOY, whole, slow, PERFECT)
    assert seconds["reference"] == pytest.approx(0.04)
    assert seconds["update"] == pytest.approx(2 * 4 * 1.75)  # 4 updates, an all-reduce each
    adapters = dataclasses.replace(whole, trained_share=0.01)
    assert step_seconds(TOY, adapters, slow, PERFECT)["update"] == pytest.approx(4 * 0.04)


def test_beside_servers_a_step_is_its_longer_half():
    phases = {"generation": 5.0, "reward": 1.0, "old_logprob": 2.0, "update": 7.0, "sync": 0.5}
    assert whole_step(toy_work(), phases) == 15.5
    assert whole_step(toy_work(lag=True), phases) == 9.5
    assert whole_step(toy_work(lag=True), {**phases, "generation": 20.0}) == 21.5


def test_epochs_repeat_the_update_and_adapters_save_a_backward_pass():
    settings = ["model.path=Qwen/Qwen2.5-3B-Instruct", "data=dapo_math", "learner.zero_stage=2"]

    def seconds(*overrides: str) -> float:
        config = compose("train", [*settings, *overrides], Config, 8)
        shape = shape_of(config.model)
        return forecast(config, shape, Cluster.of("8xH200"), 500.0).seconds["update"]

    kept, recomputed = (f"model.gradient_checkpointing={choice}" for choice in ("false", "true"))
    one = seconds(kept) / 3
    assert seconds(recomputed) == pytest.approx(4 * one)
    assert seconds(kept, "learner.epochs_per_rollout=3") == pytest.approx(9 * one)
    assert seconds(kept, "learner.lora.rank=16") == pytest.approx(2 * one)
    assert seconds(recomputed, "learner.lora.rank=16") == pytest.approx(3 * one)


def network(family: str, inner: int, layers: int) -> torch.nn.Module:
    """An untrained network whose layers outweigh its head."""
    config = AutoConfig.for_model(
        *(family,),
        vocab_size=64,
        hidden_size=128,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="sdpa",
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("rank", "passes"), [(0, 2), (2, 1)])
def test_a_backward_pass_has_the_work_that_the_plan_counts(rank, passes):
    """By PyTorch's count of operations."""
    lm = network("qwen2", inner=1000, layers=4)
    if rank:
        peft = pytest.importorskip("peft")
        lm = peft.get_peft_model(lm, peft.LoraConfig(r=rank, target_modules="all-linear"))
    with FlopCounterMode(display=False) as forward:
        loss = lm(input_ids=torch.zeros((1, 32), dtype=torch.long)).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert backward.get_total_flops() / forward.get_total_flops() == pytest.approx(passes, rel=0.1)


def test_the_rates_are_those_that_fit_the_log():
    assert release_workload().tokens == RELEASE_LOG.tokens
    fitted = fitted_rates()
    for field in dataclasses.fields(RATES):
        expected = getattr(fitted, field.name)
        assert getattr(RATES, field.name) == pytest.approx(expected, rel=2e-4), field.name


def test_fitted_phases_are_the_logs_and_the_others_come_near():
    log, work = RELEASE_LOG, release_workload()
    seconds = step_seconds(SHAPE, work, log.cluster)
    for phase in ("update", "generation", "reward"):
        assert seconds[phase] == pytest.approx(log.phases[phase], rel=2e-4), phase
    for phase in ("old_logprob", "reference"):  # not used in the fit
        assert seconds[phase] == pytest.approx(log.phases[phase], rel=0.2), phase
    assert sum(seconds.values()) == pytest.approx(log.step, rel=0.1)
    # Data sheets alone bound the log from below, in every phase.
    ideal = step_seconds(SHAPE, work, log.cluster, PERFECT)
    assert all(ideal[phase] < measured for phase, measured in log.phases.items())


def test_the_page_is_in_step_with_the_model():
    assert (ROOT / "docs/cost-model.md").read_text() == document()


def test_more_ranks_than_groups_are_refused():
    """As the page says of 1,024 GPUs."""
    with pytest.raises(UserError, match=r"256 is too few for 1024 rank"):
        config_on(1024)


def config_on(ranks: int, *overrides: str) -> Config:
    return compose("train", ["+protocol=paper32", *overrides], Config, ranks)


def test_memory_by_hand():
    share = "rollout.engine.gpu_memory_utilization=0.6"
    config = config_on(8, "model.path=Qwen/Qwen2.5-3B-Instruct", share)
    memory = gpu_memory(config, shape_of(config.model), Cluster.of("8xH200"))
    gib = 2**30
    n = PARAMETERS["Qwen/Qwen2.5-3B-Instruct"]
    assert memory.learner["weights"] == pytest.approx(2 * n / 8 / gib)
    assert memory.learner["gradients"] == pytest.approx(4 * n / 8 / gib)
    assert memory.learner["optimizer"] == pytest.approx(12 * n / 8 / gib)
    assert memory.learner["logits"] == pytest.approx(12 * 1024 * 151_936 / gib)
    in_layer = 2 * 2048 * 6 + 2 * (2 * 2048 + 2 * 2048 + 2 * 256 + 4 * 11_008)
    kept = 36 * 2048 * 2 + in_layer
    assert memory.learner["activations"] == pytest.approx(16_384 * kept / gib)
    assert memory.learner["head's gradient"] == pytest.approx(8 * 151_936 * 2048 / gib)
    assert memory.learner["buffers"] == pytest.approx(2 * (min(0.5e9, n) + 1e9) / gib)
    live = (
        8192 * (2 * 11_008 + 4 * 2048) * 2 + config.rollout.engine["max_num_seqs"] * 151_936 * 12
    ) / gib
    assert memory.engine["KV cache"] == pytest.approx(0.6 * 140 - 2 * n / gib - live - 1)
    assert memory.engine["probe"] == pytest.approx(8 * 1024 * 151_936 / gib)
    # 36 layers × 2 × 2 heads × 128 × 2 bytes a token.
    assert memory.sequences(5120) == pytest.approx(memory.engine["KV cache"] * gib / 5120 / 36_864)


def test_open_settings_follow_from_the_gpus_memory():
    model = "model.path=Qwen/Qwen2.5-3B-Instruct"
    shape = shape_of(ModelConfig(path="Qwen/Qwen2.5-3B-Instruct"))
    for name, gpu in GPUS.items():
        config = fitted(config_on(8, model), shape, gpu.memory_gib, 8)
        memory = gpu_memory(config, shape, Cluster(8, gpu))
        assert memory.shortage(longest_sequence(config)) is None, name
        share = config.rollout.engine["gpu_memory_utilization"]
        assert memory.peak > 0.9 * memory.usable or share == 0.9  # little is left unused
    small = config_on(
        *(1, "model.path=deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
        *("model.gradient_checkpointing=false", "learner.zero_stage=2"),
    )
    sizes = [fitted(small, shape_of(small.model), gib, 1) for gib in (80, 140)]
    assert [size.learner.micro_batch_tokens for size in sizes] == [8192, 32_768]


def test_settings_that_the_user_chose_stay():
    chosen = ["learner.micro_batch_tokens=5000", "rollout.engine.gpu_memory_utilization=0.4"]
    config = config_on(8, "model.path=Qwen/Qwen2.5-3B-Instruct", *chosen)
    assert fitted(config, shape_of(config.model), 80, 8) == config
    servers = config_on(8, chosen[0], "model.path=Qwen/Qwen2.5-3B-Instruct", "rollout=vllm_server")
    assert fitted(servers, shape_of(servers.model), 80, 8) == servers


def test_a_model_that_fits_nowhere_gets_the_smallest_micro_batches_that_take_a_sequence():
    config = config_on(1, "model.path=deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    small = fitted(config, shape_of(config.model), 24, 1)
    assert small.learner.micro_batch_tokens == 8192 > longest_sequence(config) > 4096


def test_state_that_rests_leaves_its_memory_to_the_engine():
    shape = shape_of(ModelConfig(path="Qwen/Qwen2.5-3B-Instruct"))
    settings = ["model.path=Qwen/Qwen2.5-3B-Instruct", "learner.zero_stage=2"]
    stays, rests = (
        gpu_memory(fitted(config, shape, 140, 1), shape, Cluster.of("1xH200"))
        for config in (
            config_on(1, *settings),
            config_on(1, *settings, "learner.offload=between_updates"),
        )
    )
    assert stays.learner == rests.learner
    freed = rests.engine["KV cache"] - stays.engine["KV cache"]
    assert freed == pytest.approx(stays.learner["optimizer"], abs=1.5)  # shares are whole percent


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 2), (torch.float32, 4)])
@pytest.mark.parametrize("inner", [352, 1000])
def test_activations_are_those_that_autograd_keeps(family, dtype, width, inner):
    """Measured by hooks on every saved tensor, as the difference of one more layer."""

    def kept(layers: int, tokens: int = 128) -> tuple[float, Shape]:
        lm = network(family, inner, layers).to(dtype)
        weights = {p.untyped_storage().data_ptr() for p in lm.parameters()}
        saved, alive = {}, []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no other tensor comes to stand where this one did
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            lm.model(input_ids=torch.zeros((1, tokens), dtype=torch.long), use_cache=False)
        return sum(saved.values()) / tokens, architecture._shape(lm)

    (two, shape), (three, _) = kept(2), kept(3)
    assert shape.layer_bytes(width) == pytest.approx(three - two, rel=0.02)


def test_servers_share_no_gpu_with_the_learner():
    config = config_on(8, "model.path=Qwen/Qwen2.5-3B-Instruct", "rollout=vllm_server")
    memory = gpu_memory(config, shape_of(config.model), Cluster.of("8xH200"))
    assert memory.resident == 0 and memory.peak == sum(memory.engine.values()) < memory.usable
    assert memory.shortage(5120) is None


@pytest.mark.parametrize(
    ("cluster", "overrides", "fragments"),
    [
        ("8xA100-40", ["learner.zero_stage=0"], ["the learner needs", "learner.zero_stage=3"]),
        (
            "8xH200",
            ["rollout.engine.gpu_memory_utilization=0.95"],
            ["while the engine generates", "gpu_memory_utilization=0.7"],
        ),
        ("8xL40S", ["rollout.engine.gpu_memory_utilization=0.32"], ["not hold one", "=0.5"]),
        ("1xL40S", [], ["the learner needs", "take more or larger GPUs"]),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(cluster, overrides, fragments, capsys):
    model = "model.path=deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    command = ["plan", "+protocol=paper32", model, "--cluster", cluster, *overrides]
    assert main(command) == 2
    plan, told = capsys.readouterr()
    assert all(fragment in told for fragment in fragments), told
    assert "-" not in re.sub(r"[A-Za-z]-|-[A-Za-z]", "", plan.partition("memory per GPU")[2]), plan


def test_the_settings_advised_do_fit():
    cluster = Cluster.of("8xA100-40")
    model = "model.path=deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    config = config_on(8, model, "learner.zero_stage=0")
    shape = shape_of(config.model)
    shortage = forecast(config, shape, cluster).shortage
    advised = shortage.partition("it would fit with ")[2].split()
    better = config_on(8, model, *advised)
    assert forecast(better, shape, cluster).shortage is None


@pytest.mark.parametrize("text", ["8", "8xQ1", "0xH200", "H200", "8xH200x"])
def test_a_cluster_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(UserError, match="such as 8xH200"):
        Cluster.of(text)


def test_adapters_take_memory_for_themselves_alone():
    settings = ["model.path=Qwen/Qwen2.5-3B-Instruct", "data=dapo_math", "model.dtype=bfloat16"]
    whole, lora = (
        compose("train", [*settings, f"learner.lora.rank={rank}"], Config) for rank in (0, 16)
    )
    shape = shape_of(whole.model)
    # As peft counts them: 16 × (inputs + outputs) of the seven matrices of each of 36 layers.
    kv, hidden, inner = 256, 2048, 11_008
    sides = 2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + inner)
    assert 1 < trained_parameters(lora, shape) / (36 * 16 * sides) < 1.5
    before, after = (learner_memory(config, shape, 1, "cuda") for config in (whole, lora))
    assert "reference" in before and "reference" not in after
    assert after["weights"] == before["weights"]
    assert sum(after[part] / before[part] for part in ("gradients", "optimizer")) < 0.05
    assert checkpoint_disk(lora, shape).gib < 0.2 * checkpoint_disk(whole, shape).gib


def test_activations_are_recomputed_where_memory_asks_for_it():
    settings = ["model.path=deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "data=dapo_math"]
    model, learner = "model.gradient_checkpointing", "learner.micro_batch_tokens"

    def on(gib: int, *overrides: str) -> bool | None:
        config = compose("train", [*settings, *overrides], Config, gpu=True)
        return fitted(config, shape_of(config.model), gib, 1).model.gradient_checkpointing

    assert (on(40), on(80)) == (True, False)
    assert on(80, f"{learner}=32768") is True
    assert (on(40, f"{model}=false"), on(140, f"{model}=true")) == (False, True)
    config = compose("train", settings, Config, gpu=False)
    shape = shape_of(config.model)
    found = [fitted_without_gpu(config, shape, gib, 1) for gib in (40, 80)]
    assert [c.model.gradient_checkpointing for c in found] == [True, False]
    fixed = compose("train", [*settings, f"{model}=false"], Config, gpu=False)
    assert fitted_without_gpu(fixed, shape, 40, 1) == fixed
