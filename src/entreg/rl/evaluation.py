"""How well a searching policy plays: against others on a board, by its return in a toy-text task.

Shapes: M members, E games a member, member-major.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from entreg.rl import episodes, matches
from entreg.rl.games import Board, Game, State
from entreg.rl.population import Streams
from entreg.rl.search import Options, choose, search
from entreg.rl.search_rules import softmax
from entreg.rl.search_trees import Evaluate

Results = Sequence[Sequence[tuple[float, int]]]  # return and length of each member's games; empty lists where they were stopped


def searching(
    game: Game, evaluate: Evaluate, options: Options | None, seeds: Sequence[int], *, temperature: float = 0.0
) -> Callable[[Sequence[State]], np.ndarray]:
    """A player of states, member-major: by a search without noise, or with None by the network alone.

    Temperature 0 takes the best action; otherwise it is drawn from the search's or the network's policy to the power of 1 / temperature.
    """
    streams = Streams(seeds)

    def act(states: Sequence[State]) -> np.ndarray:
        per_member = len(states) // len(seeds)
        observation, legal = views(game, states)
        if options is not None:
            found = search(game, states, evaluate, streams.keys(per_member), options, explore=False)
            policy, best = found.policy, found.action
        else:
            policy = softmax(evaluate(observation)[0], legal)
            best = policy.argmax(-1)
        if temperature == 0:
            return best
        with np.errstate(divide="ignore"):
            sharpened = softmax(np.log(policy) / temperature, legal)
        return choose(sharpened, streams.noise((per_member,), "uniform").ravel().astype(np.float64))

    return act


def views(game: Game, states: Sequence[State]) -> tuple[np.ndarray, np.ndarray]:
    """What the movers see `[G, D]`, and their legal actions `[G, A]`."""
    observation, legal = np.empty((len(states), game.size), np.float32), np.empty((len(states), game.actions), bool)
    for row, state in enumerate(states):
        game.look(state, observation[row], legal[row])
    return observation, legal


def evaluate_board(
    game: Board, player: matches.Player, seeds: Sequence[int], count: int, simulations: int, stop: Callable[[], object]
) -> tuple[Results, np.ndarray]:
    """Each member's `count` games, half of them as the first player, against the strong opponent, and its results `[M, E]` of as many against a random one.

    The strong opponent is a perfect one where the game can be solved, else plain MCTS with so many simulations.
    """
    first = np.tile(np.arange(count) % 2 == 0, len(seeds))
    own = [seed * count + index for seed in seeds for index in range(count)]
    known: dict[str, float] = {}
    strong = [matches.Solver(seed, known) if matches.solvable(game) else matches.plain_mcts(game, simulations, seed) for seed in own]
    hard = matches.play(game, player, strong, first, stop)
    easy = None if hard is None else matches.play(game, player, [matches.Random(seed) for seed in own], first, stop)
    if hard is None or easy is None:
        return [[] for _ in seeds], np.empty((len(seeds), 0))
    pairs = list(zip(hard.result.tolist(), hard.length.tolist(), strict=True))
    return [pairs[at : at + count] for at in range(0, len(pairs), count)], easy.result.reshape(-1, count)


def evaluate_task(
    game: Game, player: Callable[[Sequence[State]], np.ndarray], seeds: Sequence[int], count: int, env_kwargs: Mapping[str, Any], stop: Callable[[], object]
) -> Results:
    """Each member's `count` episodes of Gymnasium's own environment, whose observation is the state's number."""
    return episodes.evaluate_members(
        game.name,
        lambda observation, mask: player(observation.argmax(1).tolist()),
        episodes=count,
        seeds=seeds,
        env_kwargs={"max_episode_steps": game.limit, **env_kwargs},
        stop=stop,
    )
