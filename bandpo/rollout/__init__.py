"""Sampling groups: engines (vLLM in process or in servers, transformers) and their scoring."""
