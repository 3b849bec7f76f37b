"""What every recipe for populations of policies shares: its members, controllers, records, evaluations, checkpoints and its end.

Shapes: M members, n environments of each, N items of a member. `actor_critic.py` learns from fresh experience, `off_policy.py` from a replay memory.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from entreg import collapse, spelling
from entreg.control import Plateau
from entreg.functional import SHANNON
from entreg.guard import unguarded
from entreg.rates import Schedule
from entreg.rl import acting, environments, episodes, population, ranks
from entreg.rl.acting import Policy
from entreg.rl.books import Books
from entreg.rl.config import StudyConfig
from entreg.rl.environments import ActionSpec
from entreg.rl.heads import Head
from entreg.rl.networks import ActorCritic
from entreg.rl.normalize import RunningMoments
from entreg.rl.part import Part
from entreg.rl.watching import PolicyWatcher
from entreg.run import Run, Summary

_Study = TypeVar("_Study", bound="Study")
LOG_LINES = 200  # training records a member and run, at most about twice as many


class Study(ABC):
    """The population and its books. A context: leaving it closes environments and files and restores signal handlers.

    `part` is what this process has of the environments, where the recipe starts processes itself; `over_ranks` says that it can run under torchrun.
    `head` and `coef` make the action distribution and the default coefficients; `updates` is how often the controllers step.
    """

    network: ActorCritic
    UNGUARDED = "continuous actions have no largest entropy"  # why there may be nothing for the guard to see
    OWN: tuple[str, ...] = ("collector",)  # of the state, what differs between ranks
    weight: Tensor | None = None  # [M, B], 1 for items of the last batch that count; None: all do

    def __init__(
        self,
        recipe: str,
        config: StudyConfig,
        run: Run,
        *,
        head: Callable[[ActionSpec], Head],
        coef: Callable[[Head], Sequence[str]],
        updates: int,
        schedules: Mapping[str, str] | None = None,
        part: Part | None = None,
        over_ranks: bool = False,
    ) -> None:
        if part is None and not over_ranks:
            ranks.alone(recipe, "ranks are for ppo, a2c, reinforce and sac")
        self.ranks = ranks.here() if part is None else ranks.Ranks()
        self.part = self.ranks.part if part is None else part
        self.recipe, self.config, self.run, self.updates = recipe, config, run, updates
        settings = run.settings
        torch.set_num_threads(settings.threads)
        if settings.deterministic:
            torch.use_deterministic_algorithms(True)
        seeds = range(settings.seed, settings.seed + config.seeds)
        settings_count = max(1, len(config.coef)) * len(config.family)
        self.environments = self._make([*seeds] * settings_count)
        self.head = head(self.environments.action_spec)
        self.members = population.expand(config.coef or coef(self.head), config.family, seeds)
        looks = min(updates, LOG_LINES)
        self.watcher = PolicyWatcher(run, config.on_collapse, self._guarded(), len(self.members), records=looks, updates=updates, because=self.UNGUARDED)
        self.regularizers = population.regularizers(
            self.members, self.head, steps=updates, lr=config.coef_lr, init_coef=config.coef_init, rescue=self.watcher.rescue
        )
        self.families = population.Families([member.family for member in self.members])
        texts = {"learning_rate": config.learning_rate, **(schedules or {})}
        self.schedules = {name: Schedule(name, text, updates) for name, text in texts.items()}
        self.streams = population.Streams([member.seed for member in self.members])
        self.update = 0
        self.stopped: str | None = None
        self.complete = self.evaluation_due = False
        self.books = Books(self.members, self.head, self.regularizers)

    def _make(self, seeds: Sequence[int]) -> Any:
        """The environments of all members, each by its seed."""
        config = self.config
        return environments.make(
            config.env,
            seeds=seeds,
            per_member=config.environments,
            first=self.part.rank * config.environments,
            mode=config.vectorise,
            env_kwargs=config.env_kwargs,
        )

    def _guarded(self) -> float | None:
        """The largest entropy of the policies, nats, where falling far below it is a sign of collapse; else None."""
        largest = self.head.max_entropy(SHANNON)
        return None if largest is None else float(largest)

    @property
    @abstractmethod
    def step(self) -> int:
        """Environment steps that each member has taken."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Environment steps that each member takes in the whole run."""

    @property
    def moments(self) -> RunningMoments | None:
        """What observations are normalised by."""
        return None

    def __enter__(self: _Study) -> _Study:
        controllers = [spelling.spell(unguarded(regularizer.controller)) for regularizer in self.regularizers]
        members = [{"member": i, **member._asdict(), "controller": text} for i, (member, text) in enumerate(zip(self.members, controllers, strict=True))]
        self.run.start(self.recipe, self.config.env, self.config, members=members, total=self.steps)
        self.run.__enter__()
        self.run.folder = self.ranks.first(self.run.folder)
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        state = self.ranks.first(self.run.restore())
        if state is not None:
            self.load_state_dict(self._own(state))
        else:
            for note in self.environments.notes:
                self.run.event(0, "note", note)

    def __exit__(self, *error: Any) -> None:
        self.environments.close()
        self.run.__exit__(*error)

    def step_controllers(self, active: Sequence[bool] | None = None) -> None:
        """One step of the controller of every member (or of the `active` ones), with what it may read besides entropy."""
        for index, signals in enumerate(self.books.signals((self.update + 1) / self.updates)):
            regularizer = self.regularizers[index]
            waits = "reward" not in signals and isinstance(unguarded(regularizer.controller), Plateau)  # a plateau begins with the first return
            if not waits and (active is None or active[index]):
                regularizer.step(**signals)

    def record(self, outputs: Tensor, mask: Tensor | None) -> None:
        """Write a training record of every member; `outputs (M, N, K)` are those of its policy, over ranks those of all."""
        self.write(self.books.lines(*self.books.measure(outputs, mask, lambda each: self.ranks.mean(each, self.weight)), self.step))

    def write(self, rows: Sequence[Mapping[str, float]], active: Sequence[bool] | None = None) -> None:
        """Write these rows, one a member (those of the `active` ones), with the rates of the schedules."""
        rate = {name: schedule.value for name, schedule in self.schedules.items()}
        if self.config.on_collapse == "rescue":
            rows = [{**row, "rescued": over} for row, over in zip(rows, collapse.rescued(self.regularizers), strict=True)]
        written = [index for index in range(len(rows)) if active is None or active[index]]
        for index in written:
            self.run.log(self.step, member=index, **rows[index], **rate)
        for index in written:
            self.watcher.see(self.step, index, rows[index])

    def evaluate_and_save(self, before: int) -> None:
        """Evaluate and write a checkpoint where they are due; `before` is the step at which this was called last."""
        every = self.run.settings.eval_every
        self.stopped, due = self.ranks.agree(self.run.stopping() or self._reached(), self.due())
        self.evaluation_due = every is not None and self.step // every > before // every and self.step < self.steps
        if self.evaluation_due and self.stopped is None:
            self.evaluate()
            self.stopped, due = self.ranks.agree(self.run.stopping(), self.due())
        if due:
            self.run.checkpoint(self.step, self._everyones, force=True)

    @property
    def going(self) -> bool:
        """Whether there is a reason neither to stop nor, in a resumed run, to begin."""
        return self.stopped is None and not self.complete

    def due(self) -> bool:
        """Whether a checkpoint is due."""
        return self.run.due()

    def _everyones(self) -> dict[str, Any]:
        """The state with that of all ranks' environments."""
        state = self.state_dict()
        every = self.ranks.gather({name: state[name] for name in self.OWN})
        return state if len(every) == 1 else {**state, "ranks": {str(rank): own for rank, own in enumerate(every)}}

    def _own(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """What this rank goes on from; `ValueError` where the state is of another number of ranks."""
        count = len(state.get("ranks", "1"))
        if count != self.ranks.part.of:
            raise ValueError(f"resume: the run has {count} ranks, and {self.ranks.part.of} were started; legal is the same number")
        return state if count == 1 else {**state, **state["ranks"][str(self.ranks.part.rank)]}

    def evaluate(self, stop: Callable[[], object] | None = None) -> bool:
        """Run each member's policy for `eval_episodes` episodes unless `stop()` (by default the run's) ends it; the best so far of each is kept."""
        policy, every = self._policy(), self._played(stop or self.run.stopping)
        if not every[0]:
            return False
        self.evaluation_due = False
        for index, played in enumerate(every):
            returns = np.array([total for total, _ in played])
            mean, length = float(returns.mean()), float(np.mean([length for _, length in played]))
            values = {"eval/return": mean, "eval/return_std": float(returns.std()), "eval/length": length, "eval/episodes": len(played)}
            self.run.log(self.step, member=index, **values, **self._also(index, returns))
            self.books.evaluated[index] = mean
            self.run.save_best(index, mean, policy.state(index), step=self.step)
        return True

    def _also(self, member: int, returns: np.ndarray) -> Mapping[str, float]:
        """What an evaluation records of a member besides."""
        return {}

    def _played(self, stop: Callable[[], object]) -> Sequence[Sequence[tuple[float, int]]]:
        """Return and length of every member's evaluated episodes; empty lists where `stop()` ended them."""
        config, policy = self.config, self._policy()
        return episodes.evaluate_members(
            config.env,
            lambda observation, mask: policy.act_all(observation, mask, temperature=config.eval_temperature),
            episodes=config.eval_episodes,
            seeds=[member.seed + acting.EVALUATION_SEED for member in self.members],
            mode=config.vectorise,
            env_kwargs=config.env_kwargs,
            stop=stop,
        )

    def finish(self) -> Summary:
        """Evaluate and film what was trained unless the run was told to stop, save, and say how it ended."""
        fresh = not self.complete and self.stopped in (None, "stop_at", "max_time") and self.evaluate(self._told)
        if fresh:
            self.complete = self.step >= self.steps or self.stopped == "stop_at"
        if self.stopped is not None:
            self.run.stop(self.stopped)
        self.run.checkpoint(self.step, self._everyones, force=True)
        if self.run.settings.dry_run:
            saved = self.ranks.first(self.run.reload())
            assert saved is not None
            self.load_state_dict(self._own(saved))
        if fresh and self.config.video and self.ranks.part.rank == 0:  # after the checkpoint: whatever a renderer does, the run is saved
            self._film()
        return self.run.finish(self.step, self.books.summary())

    def _film(self) -> None:
        best = int(np.nanargmax([*self.books.evaluated, -math.inf])) % len(self.members)
        policy, file = acting.from_checkpoint(self.state_dict(), best), self.run.folder / "media" / "episode.gif"
        seed = self.members[best].seed + acting.EVALUATION_SEED
        acting.film(policy, self.config.env, self.config.env_kwargs, file, seed=seed, stop=self._told)

    def _told(self) -> bool:
        return self.run.stopping() in ("SIGINT", "SIGTERM")

    def _reached(self) -> str | None:
        target = self.config.stop_at
        return "stop_at" if target is not None and self.books.lowest_return() >= target else None

    def _policy(self) -> Policy:
        return Policy(self.network, self.head, self.moments, seeds=[member.seed + acting.EVALUATION_SEED for member in self.members])

    def check(self, **values: Any) -> None:
        """Stop on what is not finite, and leave a phase that a signal has waited for too long."""
        self.run.hurry()
        self.run.check_finite(self.step, **values)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run goes on from; subclasses add theirs, `collector` among it."""
        return {
            "update": self.update,
            "complete": self.complete,
            "evaluation_due": self.evaluation_due,
            "network": self.network.parameters.data,
            "schedules": {name: schedule.state_dict() for name, schedule in self.schedules.items()},
            "regularizers": {str(index): regularizer.state_dict() for index, regularizer in enumerate(self.regularizers)},
            "streams": self.streams.state_dict(),
            "books": self.books.state_dict(),
            "watcher": self.watcher.state_dict(),
            "policy": acting.specification(self.network, self.head),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.update, self.complete, self.evaluation_due = state["update"], state["complete"], state["evaluation_due"]
        with torch.no_grad():
            self.network.parameters.data.copy_(state["network"])
        for name, schedule in self.schedules.items():
            schedule.load_state_dict(state["schedules"][name])
        for index, regularizer in enumerate(self.regularizers):
            regularizer.load_state_dict(state["regularizers"][str(index)])
        self.streams.load_state_dict(state["streams"])
        self.books.load_state_dict(state["books"], self.step)
        self.watcher.load_state_dict(state["watcher"])

    def episodes_restarted(self) -> None:
        """Say that open episodes were lost with the process."""
        self.run.event(self.step, "episodes_restarted", "this environment's state cannot be restored: open episodes began again")
