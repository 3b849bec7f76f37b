"""AlphaZero: a network learns from games that a search with that network plays, here for several searches and with an entropy bonus of any family.

Source: Silver et al. 2018 (doi:10.1126/science.aar6404); MENTS of Xiao et al. 2019; RENTS and TENTS of Dam et al. 2021 (arXiv:2007.00391); Gumbel
improvement of Danihelka et al. 2022. Page: docs/recipes/alphazero.md.
Shapes: M members, n games of each played at once, B positions of a batch, A actions, D observation size.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entreg import stacked
from entreg.rl import acting, advantages, evaluation, games, population, ranks
from entreg.rl.actor_critic import ActorCriticStudy
from entreg.rl.config import ActorCriticConfig, check_study, require
from entreg.rl.heads import head_for
from entreg.rl.networks import Activation, ActorCritic, Architecture
from entreg.rl.search import Options
from entreg.rl.search_rules import Kind
from entreg.rl.selfplay import Finished, Positions, SelfPlay, Window
from entreg.rl.spaces import ActionSpec
from entreg.run import Run, Summary
from entreg.several import Several

STATUS = "experimental"
SUMMARY = "AlphaZero: search and network, on boards and toy text"


@dataclass(frozen=True)
class Config(ActorCriticConfig):
    """AlphaZero on boards of open_spiel and toy-text tasks of Gymnasium."""

    env: str = "tic_tac_toe"
    """tic_tac_toe, connect_four or another two-player board of open_spiel; or a toy-text id such as FrozenLake-v1."""
    search: Kind = "puct"
    """puct, the soft searches ments, rents and tents, or gumbel."""
    simulations: int = 32
    """Simulations a move."""
    search_temperature: float = 0.1
    """Temperature of the soft searches, in units of the reward."""
    epsilon: float = 0.1
    """Exploration of the soft searches inside the tree."""
    c_puct: float = 1.25
    """Exploration of puct, for values in [-1, 1] on boards and in [0, 1] elsewhere."""
    dirichlet_alpha: float = 1.0
    """Concentration of puct's noise at the root."""
    dirichlet_fraction: float = 0.25
    """Share of the noise in the root's prior."""
    considered: int = 16
    """Actions that gumbel considers at the root, at most."""
    opening: int | None = None
    """Moves of a game that are drawn from the search's policy; its best one comes after. None: all. gumbel always plays what it found."""
    coef: Several[str] = ()
    """Coefficient of the network policy's entropy: a number or a controller; several to compare. Default: 0."""
    steps: int = 20_000
    """Moves of each member."""
    environments: int = 64
    """Games of each member that are played at once."""
    rollout: int = 2
    """Moves in each of them between two updates."""
    updates: int = 16
    """Gradient steps of an update."""
    batch_size: int = 128
    """Positions of a gradient step."""
    window: int = 10_000
    """Newest positions of finished games that are learnt from."""
    gamma: float = 1.0
    """Discount; toy text without a price for time wants one below 1."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this before search and network see them."""
    learning_rate: str = "linear(0.003, 0)"
    """A number or a schedule over the run."""
    value_coef: float = 1.0
    """Weight of the squared error of the value."""
    max_grad_norm: float = 1.0
    """Each member's gradient is clipped to this Euclidean norm."""
    coef_lr: float = 0.03
    """Learning rate of a learned coefficient that names none, an update."""
    coef_init: float = 0.01
    """Start of a learned coefficient that names none."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of policy and value."""
    activation: Activation = "relu"
    """Between the layers."""
    eval_episodes: int = 20
    """Games or episodes an evaluation, a member and opponent."""
    eval_simulations: int | None = None
    """Simulations a move in evaluations; 0: the network alone. None: as in self-play."""
    opponent_simulations: int = 100
    """Simulations a move of the plain MCTS that is played against where a board is too large to be solved."""


def train(config: Config, run: Run | None = None) -> Summary:
    """Train the population that `config` describes; records, checkpoints and policies go to the run's folder."""
    with AlphaZero(config, run) as learner:
        for batch, active in learner.batches():
            outputs, value = learner.network.both(batch.observation)
            log_prob = torch.log_softmax(outputs.masked_fill(~batch.legal, -math.inf), -1).masked_fill(~batch.legal, 0.0)
            policy_loss = -(batch.target * log_prob).sum(-1)
            entropy = learner.families.entropy(learner.head, outputs, batch.legal)
            learner.gradient_step(outputs, policy_loss, (value - batch.value).square(), entropy, active)
        return learner.finish()


class AlphaZero(ActorCriticStudy):
    """The population, its games and the window of positions it learns from."""

    config: Config
    UNGUARDED = "in a game against itself the return does not say how good a policy is"

    def __init__(self, config: Config, run: Run | None) -> None:
        check(config)
        ranks.alone("alphazero", "games are played in one process; members of a population are the way to use it fully")
        run = run if run is not None else Run()
        updates = 2 if run.settings.dry_run else math.ceil(config.steps / (config.environments * config.rollout))
        rate = {"learning_rate": config.learning_rate}
        super().__init__("alphazero", config, run, head=head_for, coef=lambda _: ("0",), updates=updates, schedules=rate)
        architecture = Architecture((self.game.size,), False, self.game.actions, config.hidden, config.activation)
        self.network = ActorCritic(architecture, population.weight_generators([member.seed for member in self.members]))
        self.optimizer = stacked.StackedAdam(self.network.parameters)
        self.self_play = SelfPlay(self.game, config, options(config), self.ask, self.streams)
        self.window = Window(len(self.members), config.window, self.game.size, self.game.actions)
        self.against_random = np.empty((len(self.members), 0))

    def _make(self, seeds: Sequence[int]) -> games.Described:
        self.game = games.make(self.config.env, self.config.env_kwargs, reward_scale=self.config.reward_scale)
        return games.Described(ActionSpec("discrete", (self.game.actions,)), self.game.notes)

    def _guarded(self) -> float | None:
        return super()._guarded() if self.game.players == 1 else None

    @torch.no_grad()
    def ask(self, observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the network says, `(M n, D) -> (M n, A), (M n,)`, member-major."""
        outputs, value = self.network.both(torch.from_numpy(observation).unflatten(0, (len(self.members), -1)))
        self.check(logits=outputs, value=value)
        return outputs.flatten(0, 1).numpy(), value.flatten().numpy()

    def batches(self) -> Iterator[tuple[Positions, Tensor]]:
        """Batches, and the members `[M]` that have enough positions for one, until the run is complete or stopped.

        Between updates games are played, controllers step, and records and checkpoints are written.
        """
        if self.evaluation_due:  # a signal cut it short
            self.evaluate()
        while self.update < self.updates and self.going:
            finished = self._play()
            first, active = self.window.sample(self.streams, self.config.batch_size)
            before = self._begin_update(first, [(game.game, game.total, game.length) for game in finished])
            if active.any():
                yield first, active
                for _ in range(self.config.updates - 1):
                    yield self.window.sample(self.streams, self.config.batch_size)
            self._end_update(first, active.tolist(), before)

    def _play(self) -> list[Finished]:
        """A rollout of moves; in a dry run as many as fill the first batch, so that it takes gradient steps. The games that ended are in the window."""
        finished: list[Finished] = []
        rollouts = 0
        while rollouts == 0 or (self.run.settings.dry_run and self.going and self.window.added.min() < self.config.batch_size):
            for game in (game for _ in range(self.config.rollout) for game in self.self_play.move()):
                self.window.add(game.game // self.config.environments, game.positions)
                finished.append(game)
            rollouts += 1
        return finished

    @torch.no_grad()
    def _begin_update(self, first: Positions, ended: Sequence[tuple[int, float, int]]) -> Tensor:
        """What the policy says of the first batch before the update."""
        outputs, value = self.network.both(first.observation)
        self.books.begin(ended, self.config.environments, advantages.explained_variance(value.numpy(), first.value.numpy()))
        self.books.columns["search/entropy"] = -torch.xlogy(first.target, first.target).sum(-1).mean(1).numpy()
        return outputs

    @torch.no_grad()
    def _end_update(self, first: Positions, active: Sequence[bool], before: Tensor) -> None:
        """Measure how far the policies moved, step the controllers of those who learnt, and write what is due."""
        start = self.step
        if any(active):
            after = self.network.actor(first.observation)
            self.books.end(self.head.kl(before, after, first.legal).mean(1).numpy())
            self.step_controllers(active)
        self.update += 1
        if any(active) and self.recording:
            self.write(self.books.rows(after, first.legal, self.step), active)
        self.schedules["learning_rate"].step()
        self.evaluate_and_save(start)

    def _played(self, stop: Callable[[], object]) -> evaluation.Results:
        """Games against the strong opponent of a board, or episodes of a task."""
        config = self.config
        seeds = [member.seed + acting.EVALUATION_SEED for member in self.members]
        simulations = config.simulations if config.eval_simulations is None else config.eval_simulations
        searched = None if simulations == 0 else options(config, simulations)
        player = evaluation.searching(self.game, self.ask, searched, seeds, temperature=config.eval_temperature)
        if not isinstance(self.game, games.Board):
            return evaluation.evaluate_task(self.game, player, seeds, config.eval_episodes, config.env_kwargs, stop)
        played, self.against_random = evaluation.evaluate_board(self.game, player, seeds, config.eval_episodes, config.opponent_simulations, stop)
        return played

    def _also(self, member: int, returns: np.ndarray) -> Mapping[str, float]:
        if not isinstance(self.game, games.Board):
            return {}
        shares = {"eval/won": (returns > 0).mean(), "eval/drawn": (returns == 0).mean(), "eval/lost": (returns < 0).mean()}
        return {name: float(value) for name, value in (shares | {"eval/random": self.against_random[member].mean()}).items()}

    def _film(self) -> None:
        if not isinstance(self.game, games.Board):  # boards draw no pictures
            super()._film()

    def state_dict(self) -> dict[str, Any]:
        own = {"self_play": self.self_play.state_dict(), "window": self.window.state_dict()}
        return {**super().state_dict(), **own, "collector": {"moments": None}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.self_play.load_state_dict(state["self_play"])
        self.window.load_state_dict(state["window"])


def options(config: Config, simulations: int | None = None) -> Options:
    """How this configuration searches."""
    return Options(
        kind=config.search,
        simulations=config.simulations if simulations is None else simulations,
        gamma=config.gamma,
        temperature=config.search_temperature,
        epsilon=config.epsilon,
        c_puct=config.c_puct,
        dirichlet_alpha=config.dirichlet_alpha,
        dirichlet_fraction=config.dirichlet_fraction,
        considered=config.considered,
    )


def check(config: Config) -> None:
    """Raise `ValueError` for the first setting that cannot be meant, before anything is made."""
    check_study(config)
    options(config)
    for name in ("rollout", "updates", "batch_size", "opponent_simulations"):
        require(config, name, lambda value: value >= 1, "at least 1")
    for name in ("reward_scale", "max_grad_norm"):
        require(config, name, lambda value: value > 0, "positive and finite")
    for name in ("opening", "eval_simulations"):
        if getattr(config, name) is not None:
            require(config, name, lambda value: value >= 0, "at least 0, or None")
    require(config, "value_coef", lambda value: value >= 0, "finite and not negative")
    if config.vectorise != "auto":
        raise ValueError(f"vectorise must be auto, got {config.vectorise!r}: games are no environments, and are stepped together in one process")
    require(config, "steps", lambda value: value >= config.batch_size, f"at least batch_size ({config.batch_size}): nothing is learnt from fewer moves")
    require(config, "window", lambda value: value >= config.batch_size, f"at least batch_size ({config.batch_size})")
