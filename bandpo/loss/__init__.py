"""Probability-aware trust regions for policy gradients: loss = ratio × bounds × surrogate.

Plain torch: nothing here knows transformers, vLLM, DeepSpeed or a configuration.
"""

from bandpo.loss.aggregate import (
    Aggregate,
    ConstantNorm,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    TokenMean,
    batch_totals,
)
from bandpo.loss.bounds import (
    Band,
    BandChi2,
    BandKL,
    BandTV,
    Bounds,
    Capped,
    Compiled,
    DynamicAdaptive,
    Fixed,
    Interval,
    Mixed,
    Union,
)
from bandpo.loss.correction import (
    Accept,
    Correction,
    Discard,
    DiscardByDivergence,
    GeometricMismatch,
    SequenceMismatch,
    TokenMismatch,
    Truncate,
)
from bandpo.loss.debug import debugging
from bandpo.loss.diagnostics import LossDiagnostics
from bandpo.loss.divergence import (
    KL,
    AlphaDivergence,
    ChiSquared,
    Divergence,
    JensenShannon,
    ReverseKL,
    SquaredHellinger,
    TotalVariation,
)
from bandpo.loss.entropy import EntropyBonus, EntropyFloor
from bandpo.loss.policy import (
    K1,
    K2,
    K3,
    KLEstimator,
    LossOutput,
    PolicyLoss,
    ReferenceKL,
)
from bandpo.loss.radius import EntropyRadius, LinearRadius, Radius
from bandpo.loss.ratio import Ratio, SequenceRatio, TokenRatio
from bandpo.loss.statistic import AsksForStatistic, Statistic, Total, Values
from bandpo.loss.surrogate import (
    Clip,
    DualClip,
    Mask,
    QuadraticPenalty,
    Surrogate,
    SurrogateOutput,
    TruncatedWeight,
)
from bandpo.loss.zero_advantage import vanishes_at_zero_advantage
from bandpo.types import BatchTotals, TokenBatch

__all__ = [
    "K1",
    "K2",
    "K3",
    "KL",
    "Accept",
    "Aggregate",
    "AlphaDivergence",
    "AsksForStatistic",
    "Band",
    "BandChi2",
    "BandKL",
    "BandTV",
    "BatchTotals",
    "Bounds",
    "Capped",
    "ChiSquared",
    "Clip",
    "Compiled",
    "ConstantNorm",
    "Correction",
    "Discard",
    "DiscardByDivergence",
    "Divergence",
    "DualClip",
    "DynamicAdaptive",
    "EntropyBonus",
    "EntropyFloor",
    "EntropyRadius",
    "Fixed",
    "GeometricMismatch",
    "Interval",
    "JensenShannon",
    "KLEstimator",
    "LinearRadius",
    "LossDiagnostics",
    "LossOutput",
    "Mask",
    "Mixed",
    "PolicyLoss",
    "QuadraticPenalty",
    "Radius",
    "Ratio",
    "ReferenceKL",
    "ReverseKL",
    "SequenceMeanTokenMean",
    "SequenceMeanTokenSum",
    "SequenceMismatch",
    "SequenceRatio",
    "SquaredHellinger",
    "Statistic",
    "Surrogate",
    "SurrogateOutput",
    "TokenBatch",
    "TokenMean",
    "TokenMismatch",
    "TokenRatio",
    "Total",
    "TotalVariation",
    "Truncate",
    "TruncatedWeight",
    "Union",
    "Values",
    "batch_totals",
    "debugging",
    "vanishes_at_zero_advantage",
]
