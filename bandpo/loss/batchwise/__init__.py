"""Rules that depend on more than a token: on its whole optimizer batch, or on its group."""

from bandpo.loss.batchwise.balance import Balanced
from bandpo.loss.batchwise.covariance import ClipCovariance, KLCovariance
from bandpo.loss.batchwise.elastic import Elastic
from bandpo.loss.batchwise.query import QueryKL
from bandpo.loss.batchwise.second_moment import SecondMomentMask, Unclipped

__all__ = [
    "Balanced",
    "ClipCovariance",
    "Elastic",
    "KLCovariance",
    "QueryKL",
    "SecondMomentMask",
    "Unclipped",
]
