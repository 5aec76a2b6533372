"""A step's scored groups: their samples that the limit cut off, and their metrics."""
