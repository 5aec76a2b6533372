"""The parts of a training run, from its start to its stop."""
