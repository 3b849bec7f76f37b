"""AlphaZero: a network learns from games that a search with that network plays, here for several searches and with an entropy bonus of any family.

Source: Silver et al. 2018 (doi:10.1126/science.aar6404); MENTS of Xiao et al. 2019; RENTS and TENTS of Dam et al. 2021 (arXiv:2007.00391); Gumbel
improvement of Danihelka et al. 2022. Page: docs/recipes/alphazero.md.
Shapes: M members, n games of each played at once, B positions of a batch, A actions, D observation size.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from entreg import spelling, stacked
from entreg.rl import acting, advantages, evaluation, games, population
from entreg.rl.books import Books
from entreg.rl.heads import Discrete
from entreg.rl.networks import Activation, ActorCritic, Architecture
from entreg.rl.schedule import Schedule
from entreg.rl.search import Options
from entreg.rl.search_rules import Kind
from entreg.rl.selfplay import Positions, Replay, SelfPlay
from entreg.rl.spaces import ActionSpec
from entreg.run import Run, Summary

STATUS = "experimental"
SUMMARY = "AlphaZero: search and network, on boards and toy text"
_LOG_LINES = 200  # training records a member and run, at most about twice as many


@dataclass(frozen=True)
class Config:
    """AlphaZero on boards of open_spiel and toy-text tasks of Gymnasium."""

    env: str = "tic_tac_toe"
    """tic_tac_toe, connect_four or another two-player board of open_spiel; or a toy-text id such as FrozenLake-v1."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the game or environment."""
    search: Kind = "puct"
    """puct, the soft searches ments, rents and tents, or gumbel."""
    simulations: int = 32
    """Simulations a move."""
    search_temperature: float = 0.1
    """Temperature of the soft searches, in units of the reward."""
    epsilon: float = 0.1
    """Exploration of the soft searches inside the tree."""
    c_puct: float = 1.25
    """Exploration of puct, for values in [-1, 1]."""
    dirichlet_alpha: float = 1.0
    """Concentration of puct's noise at the root."""
    dirichlet_fraction: float = 0.25
    """Share of the noise in the root's prior."""
    considered: int = 16
    """Actions that gumbel considers at the root, at most."""
    opening: int | None = None
    """Moves of a game that are drawn from the search's policy; its best one comes after. None: all. gumbel always plays what it found."""
    coef: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ("0",)
    """Coefficient of the network policy's entropy: a number or a controller; several to compare."""
    family: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ("shannon",)
    """Entropy family: shannon, renyi(order), tsallis(order) or min_entropy; several to compare."""
    seeds: int = 1
    """Members a setting, with seeds --seed, --seed + 1, ..."""
    steps: int = 20_000
    """Moves of each member."""
    games: int = 64
    """Games of each member that are played at once."""
    rollout: int = 2
    """Moves in each of them between two updates."""
    updates: int = 16
    """Gradient steps of an update."""
    batch_size: int = 128
    """Positions of a gradient step."""
    window: int = 10_000
    """Newest positions of finished games that are learnt from."""
    gamma: float | None = None
    """Discount. None: 1 on boards, .99 in toy text."""
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
    check(config)
    with AlphaZero(config, run if run is not None else Run()) as learner:
        for batch, active in learner.batches():
            outputs, value = learner.network.both(batch.observation)
            log_prob = torch.log_softmax(outputs.masked_fill(~batch.legal, -math.inf), -1)
            policy_loss = -(batch.target * log_prob.masked_fill(~batch.legal, 0.0)).sum(-1)
            entropy = learner.families.entropy(learner.head, outputs, batch.legal)
            learner.gradient_step(outputs, policy_loss, (value - batch.value).square(), entropy, active)
        return learner.finish()


class AlphaZero:
    """The population, its games and its books. A context: leaving it closes files and restores signal handlers."""

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        torch.set_num_threads(run.settings.threads)
        if run.settings.deterministic:
            torch.use_deterministic_algorithms(True)
        self.game = games.make(config.env, config.env_kwargs, reward_scale=config.reward_scale)
        self.options = options(config, self.game)
        self.head = Discrete(ActionSpec("discrete", (self.game.actions,)))
        self.updates = 2 if run.settings.dry_run else math.ceil(config.steps / (config.games * config.rollout))
        self.members = population.expand(config.coef, config.family, range(run.settings.seed, run.settings.seed + config.seeds))
        self.regularizers = population.regularizers(self.members, self.head, steps=self.updates, lr=config.coef_lr, init_coef=config.coef_init)
        self.families = population.Families([member.family for member in self.members])
        self.rate = Schedule("learning_rate", config.learning_rate, self.updates)
        seeds = [member.seed for member in self.members]
        self.streams = population.Streams(seeds)
        architecture = Architecture((self.game.size,), False, self.game.actions, config.hidden, config.activation)
        self.network = ActorCritic(architecture, population.weight_generators(seeds))
        self.optimizer = stacked.StackedAdam(self.network.parameters)
        self.play = SelfPlay(self.game, config.games, self.options, self.evaluate_positions, self.streams, opening=config.opening, scale=config.reward_scale)
        self.replay = Replay(len(seeds), config.window, self.game.size, self.game.actions)
        self.books = Books(self.members, self.head, self.regularizers)
        self.update = 0
        self.stopped: str | None = None
        self.complete = self.evaluation_due = False

    def __enter__(self) -> "AlphaZero":
        controllers = [spelling.spell(regularizer.controller) for regularizer in self.regularizers]
        members = [{"member": i, **member._asdict(), "controller": text} for i, (member, text) in enumerate(zip(self.members, controllers, strict=True))]
        self.run.start("alphazero", self.config.env, self.config, members=members, total=self.updates * self.config.games * self.config.rollout)
        self.run.__enter__()
        state = self.run.restore()
        if state is not None:
            self.load_state_dict(state)
        else:
            for note in self.game.notes:
                self.run.event(0, "note", note)
        return self

    def __exit__(self, *error: Any) -> None:
        self.run.__exit__(*error)

    @property
    def step(self) -> int:
        """Moves that each member has made."""
        return self.update * self.config.games * self.config.rollout

    @torch.no_grad()
    def evaluate_positions(self, observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the network says, `(M n, D) -> (M n, A), (M n,)`, member-major."""
        self.run.hurry()
        outputs, value = self.network.both(torch.from_numpy(observation).unflatten(0, (len(self.members), -1)))
        self.run.check_finite(self.step, logits=outputs, value=value)
        return outputs.flatten(0, 1).numpy(), value.flatten().numpy()

    def batches(self) -> Iterator[tuple[Positions, Tensor]]:
        """Batches until the run is complete or stopped; between them games are played, controllers step, and records and checkpoints are written."""
        every, config = self.run.settings.eval_every, self.config
        if self.evaluation_due:  # a signal cut it short
            self.evaluate()
        while self.update < self.updates and self.stopped is None:
            finished = [game for _ in range(config.rollout) for game in self.play.move()]
            for game in finished:
                self.replay.add(game.game // config.games, game.positions)
            yield from self._learn([(game.game, game.total, game.length) for game in finished])
            self.update += 1
            self.rate.step()
            before = self.step - config.games * config.rollout
            self.stopped = self.run.stopping()
            self.evaluation_due = every is not None and self.step // every > before // every and self.update < self.updates
            if self.evaluation_due and self.stopped is None:
                self.evaluate()
                self.stopped = self.run.stopping()
            self.run.checkpoint(self.step, self.state_dict)

    def _learn(self, ended: list[tuple[int, float, int]]) -> Iterator[tuple[Positions, Tensor]]:
        """The batches of one update; its records and the controllers' steps come after the last."""
        first, active = self.replay.sample(self.streams, self.config.batch_size)
        with torch.no_grad():
            before, value = self.network.both(first.observation)
        explained = advantages.explained_variance(value.numpy(), first.value.numpy())
        self.books.begin(ended, self.config.games, explained)
        if not active.any():
            return
        yield first, active
        for _ in range(self.config.updates - 1):
            yield self.replay.sample(self.streams, self.config.batch_size)
        with torch.no_grad():
            after = self.network.actor(first.observation)
        self.books.end(self.head.kl(before, after, first.legal).mean(1).numpy())
        target = first.target
        self.books.columns["search/entropy"] = -torch.xlogy(target, target).sum(-1).mean(1).numpy()
        for index, (regularizer, signals) in enumerate(zip(self.regularizers, self.books.signals((self.update + 1) / self.updates), strict=True)):
            if active[index] and ("reward" in signals or not population.needs_reward(regularizer)):
                regularizer.step(**signals)
        if (self.update + 1) % max(1, self.updates // _LOG_LINES) == 0 or self.update + 1 == self.updates:
            step = self.step + self.config.games * self.config.rollout
            for index, row in enumerate(self.books.rows(after, first.legal, step)):
                if active[index]:
                    self.run.log(step, member=index, **row, learning_rate=self.rate.value)

    def gradient_step(self, outputs: Tensor, policy_loss: Tensor, value_loss: Tensor, entropy: Tensor, active: Tensor) -> None:
        """One Adam step on mean policy loss + value_coef x mean value loss + bonus, each active member by itself; losses are `(M, B)`."""
        items = policy_loss.shape[1]
        means = torch.stack([part.detach() for part in (policy_loss, value_loss, entropy)]).mean(2)
        self.run.check_finite(self.step, loss=means)
        signed = population.observe(self.regularizers, means[2], items)
        policy = policy_loss, torch.full_like(policy_loss, 1 / items)
        value = value_loss, torch.full_like(value_loss, self.config.value_coef / items)
        bonus = entropy, (signed / items).expand_as(entropy)
        if self.books.share is None:
            self.books.share = population.gradient_shares(bonus, policy, outputs)
        self.network.parameters.backward(policy, value, bonus)
        stacked.clip_grad_norm(self.network.parameters, self.config.max_grad_norm)
        self.optimizer.step(self.rate.value, active)
        self.books.seen(means)

    def evaluate(self, stop: Callable[[], object] | None = None) -> bool:
        """Play each member's evaluation unless `stop()` (by default the run's) ends it; the best so far of each is kept."""
        config, ending = self.config, stop or self.run.stopping
        seeds = [member.seed + acting.EVALUATION_SEED for member in self.members]
        simulations = config.simulations if config.eval_simulations is None else config.eval_simulations
        searched = None if simulations == 0 else options(config, self.game, simulations)
        player = evaluation.searching(self.game, self.evaluate_positions, searched, seeds)
        if isinstance(self.game, games.Board):
            records = evaluation.evaluate_board(self.game, player, seeds, config.eval_episodes, config.opponent_simulations, ending)
        else:
            records = evaluation.evaluate_task(self.game, player, seeds, config.eval_episodes, config.env_kwargs, ending)
        if records is None:
            return False
        self.evaluation_due = False
        policy = acting.Policy(self.network, self.head, None)
        for index, record in enumerate(records):
            self.run.log(self.step, member=index, **record)
            self.books.evaluated[index] = record["eval/return"]
            self.run.save_best(index, record["eval/return"], policy.state(index), step=self.step)
        return True

    def finish(self) -> Summary:
        """Evaluate what was trained unless the run was told to stop, save, and say how it ended."""
        told = lambda: self.run.stopping() in ("SIGINT", "SIGTERM")  # noqa: E731
        if not self.complete and self.stopped in (None, "max_time") and self.evaluate(told):
            self.complete = self.update == self.updates
        if self.stopped is not None:
            self.run.stop(self.stopped)
        self.run.checkpoint(self.step, self.state_dict, force=True)
        if self.run.settings.dry_run:
            self.load_state_dict(self.run.reload() or {})
        return self.run.finish(self.step, self.books.summary())

    def state_dict(self) -> dict[str, Any]:
        return {
            "update": self.update,
            "complete": self.complete,
            "evaluation_due": self.evaluation_due,
            "network": self.network.parameters.data,
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state_dict(),
            "regularizers": {str(index): regularizer.state_dict() for index, regularizer in enumerate(self.regularizers)},
            "streams": self.streams.state_dict(),
            "play": self.play.state_dict(),
            "replay": self.replay.state_dict(),
            "books": self.books.state_dict(),
            "policy": acting.specification(self.network, self.head),
            "collector": {"moments": None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.update, self.complete, self.evaluation_due = state["update"], state["complete"], state["evaluation_due"]
        with torch.no_grad():
            self.network.parameters.data.copy_(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        for index, regularizer in enumerate(self.regularizers):
            regularizer.load_state_dict(state["regularizers"][str(index)])
        self.streams.load_state_dict(state["streams"])
        self.play.load_state_dict(state["play"])
        self.replay.load_state_dict(state["replay"])
        self.books.load_state_dict(state["books"], self.step)


def options(config: Config, game: games.Game, simulations: int | None = None) -> Options:
    """How this configuration searches."""
    gamma = (1.0 if game.players == 2 else 0.99) if config.gamma is None else config.gamma
    return Options(
        kind=config.search,
        simulations=config.simulations if simulations is None else simulations,
        gamma=gamma,
        temperature=config.search_temperature,
        epsilon=config.epsilon,
        c_puct=config.c_puct,
        dirichlet_alpha=config.dirichlet_alpha,
        dirichlet_fraction=config.dirichlet_fraction,
        considered=config.considered,
    )


_COUNTS = ("simulations", "considered", "seeds", "steps", "games", "rollout", "updates", "batch_size", "eval_episodes", "opponent_simulations")
_LEGAL: Mapping[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(_COUNTS, (lambda value: value >= 1, "at least 1")),
    **dict.fromkeys(("reward_scale", "max_grad_norm", "coef_lr", "coef_init"), (lambda value: 0 < value < math.inf, "positive and finite")),
    **dict.fromkeys(("opening", "eval_simulations"), (lambda value: value >= 0, "at least 0, or None")),
    "value_coef": (lambda value: 0 <= value < math.inf, "finite and not negative"),
    "gamma": (lambda value: 0 <= value <= 1, "between 0 and 1, or None"),
}


def check(config: Config) -> None:
    """Raise `ValueError` for the first setting that cannot be meant, before anything is made."""
    for name, parse in (("coef", spelling.parse_controller), ("family", spelling.parse_family)):
        if isinstance(getattr(config, name), str) or not getattr(config, name):
            raise ValueError(f"{name} must be a tuple of one or more texts, got {getattr(config, name)!r}")
        for text in getattr(config, name):
            parse(text)
    for name, (legal, words) in _LEGAL.items():
        value = getattr(config, name)
        if value is not None and not legal(value):
            raise ValueError(f"{name} must be {words}, got {value}")
    if config.window < config.batch_size:
        raise ValueError(f"window must be at least batch_size ({config.batch_size}), got {config.window}")
    if not config.hidden or min(config.hidden) < 1:
        raise ValueError(f"hidden must name at least one positive width, got {config.hidden}")
