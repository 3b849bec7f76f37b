"""What `lint` refuses, in one clear line."""

import math

import pytest
import torch

from entreg.linting import lint
from tests.linting.losses import N, V, batch, sb3

BAD = [
    ({"skip": ["masks"]}, "skip: \\['masks'\\]; legal: ignored, detached"),
    ({"sense": "up"}, "sense, mean: 'up', 'items'"),
    ({"coef": 0.0}, "coef: 0.0; legal: a finite number that is not 0"),
    ({"coef": math.nan}, "coef: nan"),
    ({"denominator": -1.0}, "denominator"),
    ({"kl_coef": 0.1}, "kl_coef: needs a categorical policy and its reference="),
    ({"micro_batches": 13}, "micro_batches: 13; legal: 1 to 12"),
    ({"squashed": True}, "squashed: True"),
    ({"temperature": -1.0}, "temperature"),
    ({"coef": "auto"}, "coef: 'auto'; legal"),
    ({"target": "auto"}, "target: 'auto'; legal: nats"),
]


@pytest.mark.parametrize("wrong, message", BAD, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_bad_settings_are_one_clear_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        lint(sb3, batch(), **{"coef": 0.1, **wrong})


BATCHES = [
    ({"logits": None}, "batch: logits is NoneType"),
    ({"logits": torch.zeros(3)}, r"batch: logits is torch.float32 of shape \(3,\); legal is a floating tensor \[\*, V\]"),
    ({"log_probs": torch.zeros(N, V)}, r"batch: has \['logits', 'log_probs'\] of the policy's outputs"),
    ({"mask": torch.ones(N, 1)}, r"batch: mask is torch.float32 of shape \(12, 1\); legal is a tensor of shape \(12,\)"),
    ({"mask": torch.zeros(N)}, "batch: mask leaves no item"),
    ({"support": torch.ones(N, V)}, "legal is a boolean tensor"),
    ({"logits": torch.full((N, V), math.nan)}, "batch: logits hold NaN or infinity"),
    ({"logits": torch.full((N, V), math.inf)}, "batch: logits hold NaN or infinity"),
    ({"logits": torch.zeros(N, 1)}, "batch: no item has two classes"),
    ({"advantages": torch.ones(5)}, "batch: advantages has 5 rows; legal are 12"),
]


@pytest.mark.parametrize("wrong, message", BATCHES)
def test_a_bad_batch_is_one_clear_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        lint(sb3, {**batch(), **wrong}, coef=0.1)


def test_a_loss_that_is_no_number_is_one_clear_error():
    with pytest.raises(ValueError, match=r"loss: returned a tensor of shape \(12,\); legal is one floating number"):
        lint(lambda logits, coef: logits.sum(-1), {"logits": batch()["logits"]}, coef=0.1)
    with pytest.raises(ValueError, match="loss: returned float"):
        lint(lambda logits, coef: 1.0, {"logits": batch()["logits"]}, coef=0.1)
