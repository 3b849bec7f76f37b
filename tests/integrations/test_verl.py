"""What of the verl plugin needs no verl; the rest is in verl_worker.py, which `make test-verl` runs."""

import pytest

from entreg.control import TargetEntropy
from entreg.integrations.verl import controller_of


def test_a_controller_that_would_fail_in_the_first_step_is_refused_before():
    assert controller_of("TargetEntropy(0.3, lr=0.03, init_coef=0.001)") == TargetEntropy(0.3, lr=0.03, init_coef=0.001)
    for text, message in (
        ("Plateau(constant(0.1), 3)", "reads reward, which a loss of verl does not see; legal"),
        ("GradientShare(0.2, lr=0.1)", "reads grad_share"),
        ("linear(0.1, 0)", "steps"),
        ("TargetEntropy(fraction_of_max(0.5), lr=0.1, init_coef=0.1)", "fraction_of_max"),
        ("TargetEntropy(0.3)", "lr"),
    ):
        with pytest.raises(ValueError, match=message):
            controller_of(text)
