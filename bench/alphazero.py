"""What AlphaZero's searches cost and what they learn.

    python -m bench.alphazero speed | tic_tac_toe | connect_four | frozen_lake [--quick | --table] [--out FOLDER]

`speed`: cloning and stepping open_spiel's states, and simulations a CPU second of one game and of many. The others train one population (the seeds as
one stacked network) a search, all with the same settings, and write `bench/results/alphazero-<study>.csv`, one line a member, after each search; what
stands there is not trained again. `--quick` runs a tenth of the moves with two seeds and writes nothing. Tables: means over seeds with 95 % bootstrap
intervals. Intervals that overlap rank nothing.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.common import RESULTS, append, interval, machine, read, write

from entreg.policy import load
from entreg.recipes import alphazero
from entreg.record import read_records
from entreg.rl import evaluation, games, matches, population
from entreg.rl.networks import ActorCritic, Architecture
from entreg.rl.search import Options, search
from entreg.rl.search_rules import KINDS
from entreg.run import Run, RunSettings, exit_status
from entreg.statistics import mean_interval

SEEDS = 5
STUDIES: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]] = {  # settings, and the columns of the table
    "tic_tac_toe": ({"steps": 8_192, "simulations": 25}, ("eval_return", "random", "lost_network", "lost_search")),
    "connect_four": ({"env": "connect_four", "steps": 4_096, "eval_episodes": 40}, ("eval_return", "won", "random")),
    "frozen_lake": (
        {"env": "FrozenLake-v1", "steps": 4_096, "gamma": 0.99, "eval_episodes": 50, "search_temperature": 0.02, "video": False},
        ("eval_return", "training"),
    ),
}
WORDS = {
    "eval_return": "evaluation",
    "random": "against random",
    "won": "won",
    "lost_network": "lost ends, network alone",
    "lost_search": "lost ends, 200 simulations",
    "training": "last 100 episodes",
}


def rows_of(name: str, kind: str, quick: bool) -> list[dict[str, Any]]:
    """Train one population with this search: a row a seed."""
    settings = dict(STUDIES[name][0])
    if quick:
        settings["steps"] //= 10
    config = alphazero.Config(search=kind, seeds=2 if quick else SEEDS, **settings)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        summary = alphazero.train(config, Run(RunSettings(out=Path(folder), quiet=True, checkpoint_every=3600)))
        if summary.stopped is not None:
            raise SystemExit(exit_status(summary))
        seconds = time.process_time() - start
        lines = read_records(summary.folder).lines
        result = []
        for member in json.loads((summary.folder / "config.json").read_text(encoding="utf-8"))["members"]:
            mine = [line for line in lines if line.get("member") == member["member"]]
            final = next(line for line in reversed(mine) if "eval/return" in line)
            training = [line for line in mine if "coef" in line]
            row = {"study": name, "search": kind, "seed": member["seed"], "moves": training[-1]["step"], "eval_return": final["eval/return"]}
            row |= {"eval_episodes": final["eval/episodes"], "training": training[-1].get("return", float("nan")), "entropy": training[-1]["entropy"]}
            row |= {key: final[f"eval/{key}"] for key in ("won", "drawn", "lost", "random") if f"eval/{key}" in final}
            if name == "tic_tac_toe":
                row |= lost_ends(summary.folder, member["member"], kind)
            result.append(row | {"seconds": seconds / config.seeds})
    return result


def studied(name: str, file: Path, quick: bool) -> list[dict[str, Any]]:
    """The rows of all searches: those of the file, and those that are trained now and added to it."""
    rows: list[dict[str, Any]] = [] if quick else list(read(file))
    for kind in [kind for kind in KINDS if kind not in {row["search"] for row in rows}]:
        new = rows_of(name, kind, quick)
        rows += new
        if not quick:
            append(file, new, machine("torch", "numpy", "open-spiel"))
    return rows


def lost_ends(folder: Path, member: int, kind: str) -> dict[str, int]:
    """Distinct lost final positions over all lines of perfect play from both sides: 0 means that the player never loses to it."""
    game, policy, perfect = games.Board("tic_tac_toe", {}), load(folder, member), matches.Solver(0)

    @torch.no_grad()
    def evaluate(observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs, value = policy.network.both(torch.from_numpy(observation)[None])
        return outputs[0].numpy(), value[0].numpy()

    found = {}
    for name, options in (("lost_network", None), ("lost_search", Options(kind, simulations=200))):  # type: ignore[arg-type]
        player = evaluation.searching(game, evaluate, options, [0])
        found[name] = sum(len(matches.losing_lines(game, player, first, perfect.best)[0]) for first in (True, False))
    return found


def table(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The study as a markdown table."""
    columns = STUDIES[name][1]
    lines = ["| search | seeds | " + " | ".join(WORDS[column] for column in columns) + " | CPU s a member |", "|" + "---|" * (len(columns) + 3)]
    for kind in dict.fromkeys(row["search"] for row in rows):
        mine = [row for row in rows if row["search"] == kind]
        cells = [interval(mean_interval([float(row[column]) for row in mine])) for column in columns]
        lines.append(f"| `{kind}` | {len(mine)} | " + " | ".join(cells) + f" | {np.mean([float(row['seconds']) for row in mine]):.0f} |")
    return "\n".join(lines)


def cpu_time(call: Callable[[], object], number: int, repeats: int = 5) -> float:
    """CPU seconds of one call, which other work on the machine disturbs least: the median of `repeats` times `number`."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(number):
            call()
        times.append((time.process_time() - start) / number)
    return float(np.median(times))


def speed() -> list[dict[str, Any]]:
    """Cloning and stepping, and simulations a second with a network of two layers of 128."""
    rows = []
    for name in ("tic_tac_toe", "connect_four", "FrozenLake-v1"):
        game = games.make(name)
        if isinstance(game, games.Board):
            state = game.start(0.0)

            def cloned(state: Any = state) -> None:
                state.clone().apply_action(3)

            rows.append({"game": name, "what": "clone and apply, us", "games": 1, "value": 1e6 * cpu_time(cloned, 20_000)})
        network = ActorCritic(Architecture((game.size,), False, game.actions, (128, 128), "relu"), population.weight_generators([0]))

        @torch.no_grad()
        def evaluate(observation: np.ndarray, network: ActorCritic = network) -> tuple[np.ndarray, np.ndarray]:
            outputs, value = network.both(torch.from_numpy(observation)[None])
            return outputs[0].numpy(), value[0].numpy()

        for kind in KINDS:
            for count in (1, 64, 256):
                roots, keys, options = [game.start(0.0)] * count, np.arange(count, dtype=np.uint64), Options(kind, 32, gamma=0.99)
                seconds = cpu_time(lambda g=game, r=roots, k=keys, o=options, e=evaluate: search(g, r, e, k, o), max(1, 8 // count))  # type: ignore[misc]
                rows.append({"game": name, "what": f"{kind}, simulations/s", "games": count, "value": 32 * count / seconds})
    return rows


def speed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a game and measured thing, one column a number of games."""
    counts = sorted({int(row["games"]) for row in rows})
    lines = ["| game | | " + " | ".join(f"{count} games" for count in counts) + " | ratio |", "|" + "---|" * (len(counts) + 3)]
    for game, what in dict.fromkeys((row["game"], row["what"]) for row in rows):
        values = {int(row["games"]): float(row["value"]) for row in rows if (row["game"], row["what"]) == (game, what)}
        cells = [f"{values[count]:.3g}" if count in values else "" for count in counts]
        ratio = f"{values[counts[-1]] / values[1]:.0f}" if counts[-1] in values else ""
        lines.append(f"| {game} | {what} | " + " | ".join(cells) + f" | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=["speed", *STUDIES])
    parser.add_argument("--quick", action="store_true", help="a tenth of the moves, two seeds, nothing written")
    parser.add_argument("--table", action="store_true", help="run nothing: print the table of what was written")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = arguments.out / f"alphazero-{arguments.study}.csv"
    if arguments.table:
        rows: Sequence[Mapping[str, Any]] = read(file)
    elif arguments.study == "speed":
        rows = speed()
        if not arguments.quick:
            write(file, rows, machine("torch", "numpy", "open-spiel"))
    else:
        rows = studied(arguments.study, file, arguments.quick)
    print(speed_table(rows) if arguments.study == "speed" else table(arguments.study, rows))


if __name__ == "__main__":
    main()
