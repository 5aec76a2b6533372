"""The DeepSpeed learner: log-probabilities, updates, checkpoints, and the ranks of a job."""
