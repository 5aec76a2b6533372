"""vLLM and the learner in one process."""
