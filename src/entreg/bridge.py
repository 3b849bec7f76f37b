"""Bridge: puts a controller into a trainer that somebody else wrote: a host's metric -> controller -> the host's attribute. Floats only, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from entreg.control import Controller, Observed, as_controller, current_target, pack, unpack
from entreg.guard import Guarded

SENSES = {"maximize": 1, "minimize": -1}


class Bridge:
    """Reads a host's mean entropy (nats) once a `step()` and writes the controller's coefficient; the first coefficient is written at once.

    `sense` "minimize" where the host's coefficient makes entropy fall when it grows. ValueError where what is read, or a signal that the controller reads, is
    not a finite number; nothing has changed then.

    >>> from entreg.control import Thermostat
    >>> host = {"entropy": 0.1, "coef": 0.0}
    >>> bridge = Bridge(Thermostat(0.2, 0.005), lambda: host["entropy"], lambda coef: host.update(coef=coef))
    >>> bridge.step()
    >>> host["coef"]
    0.005
    """

    def __init__(
        self,
        controller: Controller[Any] | float,
        read: Callable[[], float],
        write: Callable[[float], object],
        *,
        sense: Literal["maximize", "minimize"] = "maximize",
    ) -> None:
        if sense not in SENSES:
            raise ValueError(f"sense={sense!r}; legal: 'maximize' or 'minimize'")
        self.controller = as_controller(controller)
        self._read, self._write, self._sense = read, write, SENSES[sense]
        self._set(self.controller.init())

    def _set(self, state: Any) -> None:
        self._state = state
        self.coef: float = self.controller.coef(state)
        self._write(self.coef)

    def step(self, **signals: float) -> None:
        """One step of the controller on what the host measured and the named signals (`reward`, `kl`, `grad_share`, `progress`)."""
        self._set(self.controller.update(self._state, Observed(self._read(), self._sense, **signals)))

    @property
    def target(self) -> float | None:
        """The entropy that the controller wants now, nats; None where it has no single target."""
        return self.controller.target(self._state) if isinstance(self.controller, Guarded) else current_target(self.controller, self._state)

    def state_dict(self) -> dict[str, Any]:
        """The controller's state as plain JSON numbers."""
        return pack(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken, and writes its coefficient; ValueError where the state is another controller's."""
        self._set(unpack(self._state, state))
