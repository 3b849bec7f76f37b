"""The collapse guard of policies: entropy under 5 % of its maximum while the return is below its best. What it does is in `entreg.collapse`."""

from collections.abc import Mapping

from entreg import collapse
from entreg.collapse import Action, Watcher
from entreg.guard import Rule
from entreg.run import Run


class PolicyWatcher(Watcher):
    """Looks at the training records of a population whose policies have the largest entropy `largest`, nats; None: there is nothing to see.

    `records` and `updates` are how many there are in the whole run, of each member. `rescue` is the rule by which a coefficient is handed over.

    Raises: `ValueError` where the guard is to act and there is nothing to see, with the reason `because`.
    """

    def __init__(self, run: Run, action: Action, largest: float | None, members: int, *, records: int, updates: int, because: str) -> None:
        if largest is None and action in ("stop", "rescue"):
            raise ValueError(f"on_collapse must be off or warn, got {action!r}: {because}")
        rules = () if largest is None else (Rule("policy", largest, patience=max(2, records // 20), grace=records // 10),)
        super().__init__(run, [rules] * members, action)
        self.largest = largest
        self.rescue = Rule("policy", largest, **collapse.patience(updates)) if largest is not None and action == "rescue" else None

    def see(self, step: int, member: int, row: Mapping[str, float]) -> None:
        """Take in a record. Where actions are masked, entropy counts as its share of what the legal ones allow."""
        share = row.get("entropy/max")
        self.look(step, member, row, entropy=None if share is None or self.largest is None else share * self.largest, reward=row.get("return"))
