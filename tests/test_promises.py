"""Names that users' scripts and configs rely on stay where they are, whatever moves around them."""

import importlib

import pytest
from hydra.utils import get_object

PROMISED = {
    "bandpo.loss": "Interval Fixed Band BandKL BandTV BandChi2 Union Capped DynamicAdaptive Clip "
    "Mask DualClip PolicyLoss TokenBatch Bounds Divergence TokenRatio SequenceMeanTokenMean",
    "bandpo.reward": "MathVerifier FunctionReward WeightedSum",
    "bandpo.advantage": "group_advantages centered_advantages",
    "bandpo.evaluation.metrics": "mean_at_k pass_at_k best_at_k maj_at_k",
    "bandpo.rollout.engine": "RolloutEngine",
    "bandpo.alarms": "Above Below StuckAt",
    "bandpo.tables.launch": "Processes Series",
}
# They are hashed into the identity of runs and of the runs of tables.
TARGETS = """
bandpo.data.arithmetic.problems bandpo.data.composite.composite bandpo.data.cleaning.Decontaminate
bandpo.data.sampling.Rest bandpo.data.sampling.Pools bandpo.data.sampling.ByPassRate
bandpo.data.sampling.Epochs bandpo.rollout.hf.HFGenerate bandpo.rollout.vllm_local.VLLMLocal
bandpo.rollout.vllm_server.VLLMServer bandpo.rollout.openai.OpenAICompatible
bandpo.reward.math_reward bandpo.reward.release_reward
bandpo.reward.both_rewards bandpo.advantage.group_advantages bandpo.alarms.Below
"""


@pytest.mark.parametrize("module", PROMISED)
def test_names_for_scripts(module):
    missing = set(PROMISED[module].split()) - set(dir(importlib.import_module(module)))
    assert missing == set()


@pytest.mark.parametrize("target", TARGETS.split())
def test_targets_of_configs(target):
    assert callable(get_object(target))
