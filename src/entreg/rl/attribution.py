"""What drives the entropy of on-policy learners, for their records: a few numbers of each rollout, before anything is learnt from it.

Shapes: M members, N items of a rollout, K outputs. Advantages are standardised over the rollout, so that the numbers compare between tasks.
"""

import numpy as np
import torch
from torch import Tensor

from entreg import functional
from entreg.rl.heads import Discrete, Head
from entreg.rl.ranks import Ranks


@torch.no_grad()
def columns(ranks: Ranks, head: Head, outputs: Tensor, action: Tensor, log_prob: Tensor, advantage: Tensor, mask: Tensor | None) -> dict[str, np.ndarray]:
    """`entropy/covariance`, Cov(advantage, log-prob) of what the policy did; for one discrete head `entropy/drift`, the predicted change of entropy, nats a
    unit of a policy-gradient step (`functional.entropy_drift`), and `entropy/driver`, the action that pulls it down most; `[M]` each."""
    both = ranks.mean(torch.stack([log_prob * advantage, log_prob, advantage]))
    found = {"entropy/covariance": (both[0] - both[1] * both[2]).numpy()}
    if isinstance(head, Discrete) and head.actions == 1:
        taken = action[..., 0]
        drift = functional.entropy_drift(outputs, taken, advantage, support=mask)
        by_action = ranks.sum(torch.zeros(len(outputs), head.outputs).scatter_add_(1, taken, drift))
        found |= {"entropy/drift": ranks.mean(drift).numpy(), "entropy/driver": by_action.argmin(1).numpy()}
    return found
