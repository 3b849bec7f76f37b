"""A learning rate or clip range that moves once a rollout, spelled like a coefficient; never below 0."""

from collections.abc import Mapping
from typing import Any

from entreg import spelling, targets
from entreg.control import Observed, piecewise

LARGEST = 3.4e38  # of a float32
_MOST = {"clip": 1.0, "epsilon": 1.0}  # a ratio cannot fall by more than all of it; a probability


class Schedule:
    """`value` follows an open-loop controller (a number, linear, exponential, cosine, piecewise) over `steps` steps."""

    def __init__(self, name: str, text: str, steps: int) -> None:
        try:
            self._controller = targets.resolve(spelling.parse_controller(text), steps=steps)
            self._state = self._controller.init()
            self._controller.update(self._state, Observed(entropy=float("nan")))
        except ValueError as error:
            raise ValueError(f"{name} must be a number or a schedule such as linear(0.001, 0), got {text!r}") from error
        most = _MOST.get(name, LARGEST)
        for value in self._extremes(steps):
            if not 0 <= value <= most:
                raise ValueError(f"{name} must stay {'at 0 or above' if value < 0 else f'at {most:g} or below'}, got {text!r}, which goes to {value:g}")

    def _extremes(self, steps: int) -> tuple[float, float]:
        """The least and the largest value, looked for at a thousand steps of the run and where a piecewise schedule bends."""
        controller: Any = self._controller
        bends = [int(step) for step, _ in controller.points] if isinstance(controller, piecewise) else []
        values = [controller.at(min(step, steps)) for step in (*range(0, steps, max(1, steps // 1000)), steps, *bends)]
        return min(values), max(values)

    @property
    def value(self) -> float:
        return self._controller.coef(self._state)

    def step(self) -> None:
        self._state = self._controller.update(self._state, Observed(entropy=float("nan")))

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state._asdict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._state = type(self._state)(**state)
