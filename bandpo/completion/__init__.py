"""Completion of command lines at TAB; the standard library alone, as it must answer at once."""
