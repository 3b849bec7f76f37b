"""One entropy weight for TRL's DPOTrainer: DPO, H-DPO and SPL as one family.

    margin = c (log p_w - log p_l) - beta (log p_ref,w - log p_ref,l)          c = beta: DPO; c < beta: H-DPO, sharper; c > beta: SPL, more spread

That is DPO at temperature c against a reference whose log-probabilities are multiplied by beta / c, which is how it is put into the trainer.
"""

from __future__ import annotations

import math
from typing import Any

try:
    from trl import DPOTrainer
except ImportError as error:
    raise ImportError(f"integrations.trl_dpo needs {error.name}: pip install 'entreg[llm]'") from None

LOSSES = ("sigmoid", "sigmoid_norm")  # those in which beta multiplies the difference of log-ratios and nothing else


def set_entropy_weight(trainer: Any, coef: float) -> None:
    """Makes a DPOTrainer minimise `-log sigmoid(coef Dlogp - beta Dlogp_ref)`, its own beta staying the weight of the reference; `coef = beta` changes nothing.

    Call it before `trainer.train()`. Logged rewards become `coef log p - beta log p_ref`.

    Raises: `ValueError` for another trainer, a coefficient that is not above 0, a loss or divergence in which beta means something else, and a reference whose
    log-probabilities do not come from a model of its own (PEFT, `precompute_ref_log_probs`).
    """
    if not isinstance(trainer, DPOTrainer):
        raise ValueError(f"trainer: {type(trainer).__name__}; legal is TRL's DPOTrainer")
    if not 0 < coef < math.inf:
        raise ValueError(f"coef: got {coef}, legal is a finite number above 0")
    if coef == trainer.beta:
        return
    if any(loss not in LOSSES for loss in trainer.loss_types) or trainer.f_divergence_type != "reverse_kl" or trainer.use_weighting:
        given = f"{', '.join(trainer.loss_types)} with divergence {trainer.f_divergence_type}"
        raise ValueError(f"loss_type: {given}; legal beside coef != beta is {' or '.join(LOSSES)}, reverse_kl, no weighting")
    if trainer.ref_model is None or trainer.precompute_ref_logps:
        raise ValueError("ref_model: there is none of its own (PEFT, or precompute_ref_log_probs); legal beside coef != beta is a reference model")
    forward, factor = trainer.ref_model.forward, trainer.beta / coef

    def tempered(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        outputs.log_probs = outputs.log_probs * factor
        return outputs

    trainer.ref_model.forward, trainer.beta = tempered, coef
