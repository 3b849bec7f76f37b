"""How well a searching policy plays: against others on a board, by its return in a toy-text task.

Shapes: M members, E games a member, member-major.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from entreg.rl import episodes, matches
from entreg.rl.games import Board, Game, State
from entreg.rl.population import Streams
from entreg.rl.search import Options, search
from entreg.rl.search_trees import Evaluate


def searching(game: Game, evaluate: Evaluate, options: Options | None, seeds: Sequence[int]) -> Callable[[Sequence[State]], np.ndarray]:
    """A player of states, member-major: the best action of a search without noise, or with None the most probable one of the network alone."""
    streams = Streams(seeds)

    def act(states: Sequence[State]) -> np.ndarray:
        if options is not None:
            keys = streams.keys(len(states) // len(seeds))
            return search(game, states, evaluate, keys, options, explore=False).action
        observation, legal = np.empty((len(states), game.size), np.float32), np.empty((len(states), game.actions), bool)
        for row, state in enumerate(states):
            game.look(state, observation[row], legal[row])
        best: np.ndarray = np.where(legal, evaluate(observation)[0], -np.inf).argmax(-1)
        return best

    return act


def evaluate_board(
    game: Board, player: matches.Player, seeds: Sequence[int], count: int, simulations: int, stop: Callable[[], object]
) -> list[dict[str, float]] | None:
    """Each member's records after `count` games, half of them as the first player, against the strong opponent, and as many against a random one.

    The strong opponent is a perfect one where the game can be solved, else plain MCTS with so many simulations. None where `stop()` ended it.
    """
    first = np.tile(np.arange(count) % 2 == 0, len(seeds))
    own = [seed * count + index for seed in seeds for index in range(count)]
    known: dict[str, float] = {}
    strong = [matches.Solver(seed, known) if matches.solvable(game) else matches.plain_mcts(game, simulations, seed) for seed in own]
    hard = matches.play(game, player, strong, first, stop)
    easy = None if hard is None else matches.play(game, player, [matches.Random(seed) for seed in own], first, stop)
    if hard is None or easy is None:
        return None
    result = []
    for results, lengths, random in zip(*(part.reshape(-1, count) for part in (hard.result, hard.length, easy.result)), strict=True):
        shares = {"eval/won": np.mean(results > 0), "eval/drawn": np.mean(results == 0), "eval/lost": np.mean(results < 0), "eval/random": random.mean()}
        result.append(_record(results, lengths) | {name: float(value) for name, value in shares.items()})
    return result


def evaluate_task(
    game: Game,
    player: Callable[[Sequence[State]], np.ndarray],
    seeds: Sequence[int],
    count: int,
    env_kwargs: Mapping[str, Any],
    stop: Callable[[], object],
) -> list[dict[str, float]] | None:
    """Each member's records after `count` episodes of Gymnasium's own environment, whose observation is the state's number."""
    every = episodes.evaluate_members(
        game.name,
        lambda observation, mask: player(observation.argmax(1).tolist()),
        episodes=count,
        seeds=seeds,
        env_kwargs={"max_episode_steps": game.limit, **env_kwargs},
        stop=stop,
    )
    if not every[0]:
        return None
    return [_record(np.array([total for total, _ in played]), np.array([length for _, length in played])) for played in every]


def _record(returns: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    return {
        "eval/return": float(returns.mean()),
        "eval/return_std": float(returns.std()),
        "eval/length": float(lengths.mean()),
        "eval/episodes": len(returns),
    }
