"""Token records of a run, and what every method would have done to the same tokens."""
