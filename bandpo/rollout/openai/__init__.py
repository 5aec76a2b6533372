"""OpenAI-compatible endpoints as an engine, for evaluation alone."""

from bandpo.rollout.openai.engine import OpenAICompatible

__all__ = ["OpenAICompatible"]
