"""Entropies: one call for every distribution, one argument for the family."""

import math

import torch

from entreg import SHANNON, distributions, functional, min_entropy, renyi, tsallis

# --8<-- [start:functions]
logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, 0.0, -torch.inf, -torch.inf]], requires_grad=True)
for family in (SHANNON, renyi(0.5), renyi(2), tsallis(2), min_entropy):
    entropy = functional.categorical_entropy(logits, family)
    print(f"{family!r:12}", [round(value, 4) for value in entropy.tolist()])
functional.categorical_entropy(logits).sum().backward()
assert torch.isfinite(logits.grad).all()  # -inf is a class that does not exist: value 0, gradient 0
# --8<-- [end:functions]

# --8<-- [start:continuous]
mean, log_std = torch.zeros(1, 2), torch.zeros(1, 2)
print("Gaussian", functional.gaussian_entropy(log_std).item())
print("its tanh", functional.tanh_gaussian_entropy(mean, log_std).item())  # at most .6836 a dimension, whatever the std
# --8<-- [end:continuous]

# --8<-- [start:objects]
policy = distributions.MaskedCategorical(logits=torch.zeros(4), support=torch.tensor([True, True, True, False]))
assert math.isclose(policy.entropy().item(), math.log(3), rel_tol=1e-6)
action = distributions.TanhNormal(torch.zeros(2), torch.ones(2))
print("TanhNormal", distributions.entropy(action, renyi(2)).tolist())
# --8<-- [end:objects]

# --8<-- [start:matching]
classes = 50_000
for family in (SHANNON, renyi(2), tsallis(2)):
    print(
        f"{family!r:12} coef {0.01 * functional.curvature(SHANNON, classes) / functional.curvature(family, classes):g} pulls like Shannon at .01, near uniform"
    )
# --8<-- [end:matching]
