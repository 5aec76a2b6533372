"""Rules by which a step's prompts are drawn: values that wrap each other (`data.sampler`)."""

from bandpo.data.sampling.difficulty import ByPassRate, Pools, Rest
from bandpo.data.sampling.rules import Epochs, Request, Rule

__all__ = ["ByPassRate", "Epochs", "Pools", "Request", "Rest", "Rule"]
