"""Evaluation of a policy: samples on disk, metrics with intervals, reports and comparisons."""
