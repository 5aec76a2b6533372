"""Per-token objectives: ratio × advantage under a trust region."""

from bandpo.loss.surrogate.clipped import Clip, GeometricMean, GradientPreservingClip, Mask
from bandpo.loss.surrogate.interface import Surrogate, SurrogateOutput, require_surrogate
from bandpo.loss.surrogate.soft import QuadraticPenalty, SoftGate
from bandpo.loss.surrogate.weighted import GammaWeight, TruncatedWeight
from bandpo.loss.surrogate.wrapped import DualClip, OffPolicySequenceMask, SquaredLogRatio

__all__ = [
    "Clip",
    "DualClip",
    "GammaWeight",
    "GeometricMean",
    "GradientPreservingClip",
    "Mask",
    "OffPolicySequenceMask",
    "QuadraticPenalty",
    "SoftGate",
    "SquaredLogRatio",
    "Surrogate",
    "SurrogateOutput",
    "TruncatedWeight",
    "require_surrogate",
]
