"""Pure torch functions: tensors in, nats out, batch shape kept, nothing reduced or negated."""

from entreg.functional.attribution import Driver, advantage_covariance, entropy_change, entropy_drift, entropy_drivers
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
from entreg.functional.continuous import gaussian_entropy, gaussian_kl, multivariate_gaussian_entropy, tanh_gaussian_entropy, tanh_log_det
from entreg.functional.estimators import k1, k2, k3
from entreg.functional.families import SHANNON, Family, curvature, min_entropy, renyi, tsallis
from entreg.functional.losses import (
    policy_gradient,
    ppo_clip,
    pseudo_label,
    smoothed_cross_entropy,
    soft_actor,
    soft_cross_entropy,
    soft_target,
    squared_consistency,
)
from entreg.functional.marginal import Marginal, RunningMarginal, log_marginal, marginal_entropy, marginal_kl
from entreg.functional.reduce import Tally, tally
from entreg.functional.samples import knn_entropy, parzen, sampled, score_function_bonus
from entreg.functional.soft import soft_backup, soft_policy, soft_value
from entreg.functional.tokens import TokenStats, linear_token_loss, linear_token_stats, token_backend, token_stats
from entreg.functional.values import double_value, greedy_value, huber, munchausen_bonus, policy_value

__all__ = [
    "SHANNON",
    "Driver",
    "Family",
    "Marginal",
    "RunningMarginal",
    "Tally",
    "TokenStats",
    "advantage_covariance",
    "bernoulli_entropy",
    "categorical_entropy",
    "categorical_entropy_from_probs",
    "categorical_kl",
    "categorical_stats",
    "clamped_entropy",
    "curvature",
    "double_value",
    "entropy_change",
    "entropy_drift",
    "entropy_drivers",
    "gaussian_entropy",
    "gaussian_kl",
    "greedy_value",
    "huber",
    "k1",
    "k2",
    "k3",
    "knn_entropy",
    "linear_token_loss",
    "linear_token_stats",
    "log_marginal",
    "marginal_entropy",
    "marginal_kl",
    "min_entropy",
    "multivariate_gaussian_entropy",
    "munchausen_bonus",
    "parzen",
    "policy_gradient",
    "policy_value",
    "ppo_clip",
    "pseudo_label",
    "renyi",
    "renyi_divergence",
    "sampled",
    "score_function_bonus",
    "smoothed_cross_entropy",
    "soft_actor",
    "soft_backup",
    "soft_cross_entropy",
    "soft_policy",
    "soft_target",
    "soft_value",
    "squared_consistency",
    "tally",
    "tanh_gaussian_entropy",
    "tanh_log_det",
    "token_backend",
    "token_stats",
    "top_p_entropy",
    "tsallis",
]
