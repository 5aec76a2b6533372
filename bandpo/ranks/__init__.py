"""Processes that work on one job, and what they exchange; imports nothing by itself."""
