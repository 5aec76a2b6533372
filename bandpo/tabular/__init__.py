"""Tabular policies trained by the product's own losses: where probability-aware bounds matter."""

from bandpo.tabular.bandit import Actions, Bandit, State, Streams, coverage
from bandpo.tabular.methods import Below, ablations, applicable
from bandpo.tabular.study import Setting, Study, Sweep
from bandpo.tabular.training import Adam, Course, Optimizer, Sgd, Update, train

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
