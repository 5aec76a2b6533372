"""The DeepSpeed learner: log-probabilities, updates, and the state that a checkpoint keeps."""
