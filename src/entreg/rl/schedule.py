"""A learning rate or clip range that moves once a rollout, spelled like a coefficient."""

from collections.abc import Mapping
from typing import Any

from entreg import spelling, targets
from entreg.control import Observed


class Schedule:
    """`value` follows an open-loop controller (a number, linear, exponential, cosine, piecewise) over `steps` steps."""

    def __init__(self, name: str, text: str, steps: int) -> None:
        try:
            self._controller = targets.resolve(spelling.parse_controller(text), steps=steps)
            self._state = self._controller.init()
            self._controller.update(self._state, Observed(entropy=float("nan")))
        except ValueError as error:
            raise ValueError(f"{name} must be a number or a schedule such as linear(0.001, 0), got {text}") from error

    @property
    def value(self) -> float:
        return self._controller.coef(self._state)

    def step(self) -> None:
        self._state = self._controller.update(self._state, Observed(entropy=float("nan")))

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state._asdict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._state = type(self._state)(**state)
