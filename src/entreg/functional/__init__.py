"""Pure torch functions: tensors in, nats out, batch shape kept, nothing reduced or negated."""

from entreg.functional.categorical import (
    bernoulli_entropy,
    categorical_entropy,
    categorical_entropy_from_probs,
    categorical_kl,
    categorical_stats,
    clamped_entropy,
    renyi_divergence,
    top_p_entropy,
)
from entreg.functional.estimators import k1, k2, k3
from entreg.functional.families import SHANNON, Family, curvature, min_entropy, renyi, tsallis
from entreg.functional.losses import policy_gradient, ppo_clip
from entreg.functional.reduce import Tally, tally

__all__ = [
    "SHANNON",
    "Family",
    "Tally",
    "bernoulli_entropy",
    "categorical_entropy",
    "categorical_entropy_from_probs",
    "categorical_kl",
    "categorical_stats",
    "clamped_entropy",
    "curvature",
    "k1",
    "k2",
    "k3",
    "min_entropy",
    "policy_gradient",
    "ppo_clip",
    "renyi",
    "renyi_divergence",
    "tally",
    "top_p_entropy",
    "tsallis",
]
from entreg.functional.continuous import gaussian_entropy, gaussian_kl, multivariate_gaussian_entropy, tanh_gaussian_entropy, tanh_log_det  # noqa: E402
