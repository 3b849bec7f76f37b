"""The fused PPO update against the same update in eager torch (stacked networks, autograd, stacked Adam): one thread, both sides interleaved.

    python -m bench.fused [--rounds 15] [--out bench/results/fused.csv]

Networks 4-64-64-2 and 4-64-64-1, tanh. Each round times each side once on whole updates, in processor time of the thread, which a busy machine disturbs
less than wall time; the ratio is that of the medians. A second table gives what the compilation costs: the first call with an empty cache, with a full one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench.common import RESULTS, machine, write

from entreg import functional, stacked
from entreg.rl import fused
from entreg.rl.networks import ActorCritic, Architecture

LAYOUT = fused.Layout((4, 64, 64, 2), (4, 64, 64, 1))
CASES = {"one member, rl-zoo": (1, 256, 256, 20), "one member, study": (1, 512, 128, 4), "48 members, study": (48, 512, 128, 4)}  # M, N, B, E
FIRST_CALL = """
import sys, time
sys.path.insert(0, {path!r})
from bench.fused import fused_side
update, start = fused_side(1, 64, 64, 1), time.process_time()
update()
print(time.process_time() - start)
"""


def rollout(members: int, items: int, epochs: int) -> tuple[np.ndarray, fused.Rollout, np.ndarray]:
    rng = np.random.default_rng(0)
    params = (0.15 * rng.standard_normal((members, LAYOUT.size))).astype(np.float32)
    normal = [rng.standard_normal((members, items)).astype(np.float32) for _ in range(3)]
    observation, action = rng.standard_normal((members, items, 4)).astype(np.float32), rng.integers(0, 2, (members, items))
    order = np.stack([[rng.permutation(items) for _ in range(epochs)] for _ in range(members)])
    return params, fused.Rollout(observation, action, 0.1 * normal[0] - 0.7, normal[1], normal[2]), order


def fused_side(members: int, items: int, batch: int, epochs: int) -> Callable[[], None]:
    params, data, order = rollout(members, items, epochs)
    adam = fused.Adam(np.zeros_like(params), np.zeros_like(params), np.zeros(members, np.int64))

    def update() -> None:
        fused.ppo_update(LAYOUT, params, adam, data, order, batch_size=batch, learning_rate=1e-3, clip=0.2, coef=0.01)

    return update


def eager_side(members: int, items: int, batch: int, epochs: int) -> Callable[[], None]:
    network = ActorCritic(Architecture((4,), False, 2), [torch.Generator().manual_seed(m) for m in range(members)])
    optimizer = stacked.StackedAdam(network.parameters)
    _, data, order = rollout(members, items, epochs)
    fields = [torch.from_numpy(np.asarray(field)) for field in data if field is not None]
    member, index = torch.arange(members)[:, None], torch.from_numpy(order)

    def update() -> None:
        for epoch in index.unbind(1):
            for start in range(0, items, batch):
                observation, action, old, advantage, returns = (field[member, epoch[:, start : start + batch]] for field in fields)
                outputs, value = network.both(observation)
                log_prob, entropy = functional.categorical_stats(outputs, action)
                advantage = (advantage - advantage.mean(1, keepdim=True)) / (advantage.std(1, keepdim=True) + 1e-8)
                ratio = (log_prob - old).exp()
                policy = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
                loss = policy + 0.5 * (value - returns).square() - 0.01 * entropy
                network.parameters.backward((loss, torch.full_like(loss, 1 / loss.shape[1])))
                stacked.clip_grad_norm(network.parameters, 0.5)
                optimizer.step(1e-3)

    return update


def measure(case: tuple[int, int, int, int], rounds: int) -> dict[str, float]:
    """Median milliseconds of a gradient step of all members, of each side."""
    members, items, batch, epochs = case
    sides = {"fused": fused_side(*case), "eager": eager_side(*case)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 2):
        for name, side in sides.items():
            start = time.thread_time()
            side()
            if turn >= 2:
                times[name].append(time.thread_time() - start)
    steps = epochs * -(-items // batch)
    row = {f"{name}_ms": 1e3 * statistics.median(values) / steps for name, values in times.items()}
    return {**row, "ratio": row["eager_ms"] / row["fused_ms"], "fused_env_steps_per_second": 1e3 * members * items / (row["fused_ms"] * steps)}


def acting(members: int, environments: int, rounds: int = 300) -> float:
    """Median microseconds of one `act` of all environments."""
    params, data, _ = rollout(members, environments, 1)
    uniform = np.random.default_rng(0).random((members, environments))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        fused.act(LAYOUT, params, data.observation, uniform)
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def first_calls() -> tuple[float, float]:
    """Seconds of processor time of the first update of a process, with an empty and a full cache."""
    code = FIRST_CALL.format(path=str(Path(__file__).resolve().parents[1]))
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        cold, cached = (float(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout) for _ in range(2))
    return cold, cached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "fused.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cold, cached = first_calls()
    rows = []
    for name, case in CASES.items():
        row = {key: round(value, 3) for key, value in measure(case, arguments.rounds).items()}
        row["act_us"] = round(acting(case[0], 8 if case[1] == 256 else 4), 1)
        rows.append({"case": name, **row, "compile_s": round(cold, 1), "cached_s": round(cached, 2)})
        print(f"{name:>20}  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    print(f"first update of a process: {cold:.1f} s compiling, {cached:.2f} s from the cache")
    write(arguments.out, rows, machine("torch", "numba"))
    print(f"wrote {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
