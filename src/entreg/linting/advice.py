"""The rules of `lint` and what to do about each; one line a rule."""

from __future__ import annotations

from entreg.finding import Finding, Severity

ADVICE = {
    "ignored": "the value never arrives: pass it to the loss, and look for a config that is read once, copied or patched over",
    "detached": "compute the entropy from the policy's outputs under grad: no detach(), item() or no_grad() on the way",
    "sampled": "-log p of a sampled action, differentiated, pushes nowhere: take the exact entropy, or functional.score_function_bonus(log_prob)",
    "sign": "loss - coef * entropy keeps entropy up; sense='minimize' where it should fall. score_function_bonus is a loss already: add it",
    "nonlinear": "the coefficient is clamped, scheduled or squared inside the loss: what is set from outside does not arrive as it is",
    "temperature": "divide the logits by the sampling temperature once, before log-probability and entropy",
    "support": "leave illegal classes out of the entropy too: functional.categorical_entropy(logits, support=...)",
    "family": "name the family that is meant in both places: family= here, the entropy in the loss",
    "dimension": "sum over the last dimension (classes, action dimensions), then take the mean over items",
    "unnormalised": "normalise first: log_softmax(logits); log_std where a log is meant",
    "squash": "take the entropy of the action that is executed, functional.tanh_gaussian_entropy(mean, log_std); squashed= says which it is",
    "entropy": "functional.categorical_entropy is exact; family=, temperature= and `support` in the batch say which entropy is meant",
    "mask": "multiply by the mask of the same tokens and divide by its sum",
    "aggregation": "sum over the items that count, divide once by their number; mean= and denominator= say what else is meant",
    "micro_batches": "a mean of means: divide each micro-batch's SUM by the count of the whole window, and add up (denominator=)",
    "minus_inf": "p * log p is 0 * -inf there, and nan_to_num repairs the value only: functional.categorical_entropy takes -inf and support=",
    "epsilon": "an epsilon or a clamp inside a logarithm: log_softmax and functional.categorical_entropy(logits, family) need none",
    "precision": "take logits.float() before log_softmax, sum in float32 and return float32; no autocast around it",
    "k1": "log p - log q belongs into the reward; as a loss take functional.k2, or k1 times a differentiated importance ratio",
    "kl_direction": "k3 as a loss on the policy's own samples does this; functional.k2 has the gradient of KL(policy || reference)",
    "target": "targets.fraction_of_max(0.5) or targets.greedy_probability(0.9) for choices; for squashed policies what targets.feasible allows",
}


def finding(rule: str, severity: Severity, evidence: str) -> Finding:
    return Finding(rule, severity, 0, evidence, ADVICE[rule])
