"""Who drives the entropy of a language model that TRL trains by policy gradients: the tokens and prompts of one micro-batch that pull it down most.

Shapes: B completions of T tokens. First order, token by token, in the logits: networks share parameters, so that it tells who drives, not how far.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entreg.functional import Driver, advantage_covariance, entropy_drivers
from entreg.integrations.trl_head import Seen


class Drive(NamedTuple):
    """Cov(advantage, log-prob) over the tokens, the predicted change of their mean entropy, nats a unit of step, and the tokens (ids) and completions (rows of
    the micro-batch) that pull it down most."""

    covariance: float
    drift: float
    tokens: list[Driver]
    completions: list[Driver]


@torch.no_grad()
def drive(one: Seen, mask: Tensor, inputs: Mapping[str, Any], count: int = 10) -> Drive:
    """From a pass in which pulls were measured: `drift = A <d log p/dz, dH/dz>` of each token, as `functional.entropy_drift`."""
    assert one.pull is not None
    keep = mask.bool()
    advantage = inputs["advantages"]
    advantage = (advantage[:, None] if advantage.ndim == 1 else advantage).expand(mask.shape).to(one.log_prob)
    drift = advantage * one.pull.cross.view(mask.shape)
    rows = torch.arange(len(mask), device=mask.device)[:, None].expand(mask.shape)
    return Drive(
        float(advantage_covariance(one.log_prob, advantage, keep)[keep].mean()) if keep.any() else 0.0,
        float(drift[keep].mean()) if keep.any() else 0.0,
        entropy_drivers(drift, inputs["completion_ids"], count=count, mask=keep),
        entropy_drivers(drift, rows, count=count, mask=keep),
    )
