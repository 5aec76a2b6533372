"""Figures: of a run, and of the trust regions themselves."""

from bandpo.plots.training import plot_training

__all__ = ["plot_training"]
