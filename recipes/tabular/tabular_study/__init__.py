"""Tabular policies trained by the product's own losses: where probability-aware bounds matter."""

from tabular_study.bandit import Actions, Bandit, State, Streams, coverage
from tabular_study.methods import Below, ablations, applicable
from tabular_study.study import Setting, Study, Sweep
from tabular_study.training import Adam, Course, Optimizer, Sgd, Update, train

__all__ = [
    "Actions",
    "Adam",
    "Bandit",
    "Below",
    "Course",
    "Optimizer",
    "Setting",
    "Sgd",
    "State",
    "Streams",
    "Study",
    "Sweep",
    "Update",
    "ablations",
    "applicable",
    "coverage",
    "train",
]
