"""Rollout engines: vLLM in process, vLLM servers, and transformers as a fallback."""
