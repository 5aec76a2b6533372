"""Beyond a mean accuracy: votes by equality, errors, repeated seeds."""
