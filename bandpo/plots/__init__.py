"""Figures: of a run, and of the trust regions themselves."""

from bandpo.plots.timeline import plot_timeline
from bandpo.plots.training import plot_training

__all__ = ["plot_timeline", "plot_training"]
