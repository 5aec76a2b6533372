"""Generation with a transformers model alone, for places without vLLM; chosen with `rollout=hf`."""

from bandpo.rollout.hf.engine import HFGenerate

__all__ = ["HFGenerate"]
