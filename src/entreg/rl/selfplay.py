"""Self-play in lockstep and the window of positions that networks learn from.

Shapes: M members, n games of each played at once, G = M n games member-major, T positions of a finished game, W of the window, B of a batch; D and A
as in `games`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from entreg.rl.games import Game, drawn
from entreg.rl.population import Streams
from entreg.rl.search import Options, choose, search
from entreg.rl.search_trees import Evaluate


class Positions(NamedTuple):
    """What is learnt from: the mover's views `[..., D]`, legal actions and search policies `[..., A]`, and the mover's returns `[...]`."""

    observation: Any
    legal: Any
    target: Any
    value: Any


class Finished(NamedTuple):
    """A game that has ended: which of the G, its positions, return (of the first player, in the game's own unit) and length."""

    game: int
    positions: Positions
    total: float
    length: int


class Settings(Protocol):
    """How games are played: games of a member at once, moves that are drawn (None: all), and what rewards were multiplied by."""

    @property
    def environments(self) -> int: ...

    @property
    def opening(self) -> int | None: ...

    @property
    def reward_scale(self) -> float: ...


class _Open:
    """A game that is being played: one entry a move in every list."""

    def __init__(self) -> None:
        self.observation: list[np.ndarray] = []
        self.legal: list[np.ndarray] = []
        self.target: list[np.ndarray] = []
        self.reward: list[float] = []  # the mover's
        self.turn: list[int] = []  # the mover: 1 the first player, -1 the second

    def total(self) -> float:
        return float(np.dot(self.reward, self.turn))

    def positions(self, gamma: float, last: float, last_turn: int) -> Positions:
        """Positions with returns z_t = r_t + gamma z_{t+1} of each mover; `last` continues a game that was cut."""
        value = np.empty(len(self.reward), np.float32)
        following, whose = last, last_turn
        for t in range(len(value) - 1, -1, -1):
            following = self.reward[t] + gamma * (following if whose == self.turn[t] else -following)
            value[t], whose = following, self.turn[t]
        return Positions(np.stack(self.observation), np.stack(self.legal), np.stack(self.target), value)


class SelfPlay:
    """G games that are always being played; one that ends is followed by a new one. Each member draws from its own stream."""

    def __init__(self, game: Game, settings: Settings, options: Options, evaluate: Evaluate, streams: Streams) -> None:
        self.game, self.options, self.evaluate, self.streams = game, options, evaluate, streams
        self.opening, self.scale, self.per_member = settings.opening, settings.reward_scale, settings.environments
        per_member = self.per_member
        self.count = per_member * len(streams.generators)
        self.states = [game.start(uniform) for uniform in streams.noise((per_member,), "uniform").ravel().tolist()]
        self.open = [_Open() for _ in self.states]

    def move(self) -> list[Finished]:
        """One move in every game, and what has ended with it."""
        game, streams = self.game, self.streams
        keys = streams.keys(self.per_member)
        action_noise, chance_noise, start_noise = streams.noise((3, self.per_member), "uniform").astype(np.float64).transpose(1, 0, 2).reshape(3, -1)
        found = search(game, self.states, self.evaluate, keys, self.options)
        lengths = np.array([len(one.reward) for one in self.open])
        free = np.full(self.count, True) if self.opening is None else lengths < self.opening
        actions = np.where(free & (self.options.kind != "gumbel"), choose(found.policy, action_noise), found.action)
        ended: list[tuple[int, bool]] = []
        for index, (one, action) in enumerate(zip(self.open, actions.tolist(), strict=True)):
            if self._play(one, index, action, float(chance_noise[index]), found.policy[index]):
                ended.append((index, False))
            elif len(one.reward) == game.limit:
                ended.append((index, True))
        return self._close(ended, start_noise)

    def _play(self, one: _Open, index: int, action: int, uniform: float, target: np.ndarray) -> bool:
        """Record a position, follow its action, and say whether the game is over."""
        game, state = self.game, self.states[index]
        observation, legal = np.empty(game.size, np.float32), np.empty(game.actions, bool)
        game.look(state, observation, legal)
        move = game.advance(state, action, drawn(game.chance(state), action, uniform))
        one.observation.append(observation)
        one.legal.append(legal)
        one.target.append(target.astype(np.float32))
        one.reward.append(move.reward)
        one.turn.append(1 - 2 * game.mover(state))
        self.states[index] = move.state
        return move.terminal

    def _close(self, ended: Sequence[tuple[int, bool]], start_noise: np.ndarray) -> list[Finished]:
        game, last = self.game, np.zeros(self.count)
        cut = [index for index, early in ended if early]
        if cut:  # the network says how a game would have gone on
            observation, legal = np.zeros((self.count, game.size), np.float32), np.empty(game.actions, bool)
            for index in cut:
                game.look(self.states[index], observation[index], legal)
            last[cut] = self.evaluate(observation)[1][cut]
        finished = []
        for index, early in ended:
            one = self.open[index]
            turn = 1 - 2 * game.mover(self.states[index]) if early else 1
            positions = one.positions(self.options.gamma, float(last[index]), turn)
            finished.append(Finished(index, positions, one.total() / self.scale, len(one.reward)))
            self.states[index], self.open[index] = game.start(float(start_noise[index])), _Open()
        return finished

    def state_dict(self) -> dict[str, Any]:
        parts = {name: [row for one in self.open for row in getattr(one, name)] for name in ("observation", "legal", "target")}
        return {
            "states": [self.game.pack(state) for state in self.states],
            "lengths": [len(one.reward) for one in self.open],
            "reward": [one.reward for one in self.open],
            "turn": [one.turn for one in self.open],
            **{name: np.stack(rows) if rows else None for name, rows in parts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.states = [self.game.unpack(numbers) for numbers in state["states"]]
        self.open = [_Open() for _ in self.states]
        at = 0
        for one, length, reward, turn in zip(self.open, state["lengths"], state["reward"], state["turn"], strict=True):
            one.reward, one.turn = list(reward), list(turn)
            if length:
                one.observation, one.legal, one.target = (list(state[name][at : at + length]) for name in ("observation", "legal", "target"))
            at += length


class Window:
    """The last `size` positions of each member: a ring a member."""

    def __init__(self, members: int, size: int, observation: int, actions: int) -> None:
        self.size = size
        self.added = np.zeros(members, np.int64)
        self.rows = Positions(
            np.zeros((members, size, observation), np.float32),
            np.ones((members, size, actions), bool),
            np.zeros((members, size, actions), np.float32),
            np.zeros((members, size), np.float32),
        )

    def add(self, member: int, positions: Positions) -> None:
        """Put a game's positions in, over the oldest where the window is full."""
        at = (self.added[member] + np.arange(len(positions.value))) % self.size
        for kept, new in zip(self.rows, positions, strict=True):
            kept[member, at] = new
        self.added[member] += len(at)

    def sample(self, streams: Streams, batch: int) -> tuple[Positions, Tensor]:
        """A batch `[M, B, ...]` with replacement, and which members `[M]` have a batch's worth of positions yet; the others' rows mean nothing."""
        ready = self.added >= batch
        at = np.zeros((len(ready), batch), np.int64)
        for member, generator in enumerate(streams.generators):
            if ready[member]:
                at[member] = generator.integers(0, min(self.added[member], self.size), batch)
        rows = np.arange(len(ready))[:, None], at
        return Positions(*(torch.from_numpy(kept[rows]) for kept in self.rows)), torch.from_numpy(ready)

    def state_dict(self) -> dict[str, Any]:
        used = int(min(self.added.max(), self.size))
        return {"added": self.added.copy(), **{name: part[:, :used] for name, part in self.rows._asdict().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.added = np.array(state["added"])
        for name, part in self.rows._asdict().items():
            part[:, : state[name].shape[1]] = state[name]
