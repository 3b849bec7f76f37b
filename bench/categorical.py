"""`categorical_stats` forward and backward against `torch.distributions.Categorical(...).log_prob` + `.entropy()`: one thread, both sides interleaved.

    python -m bench.categorical [--rounds 400] [--out bench/results/categorical.csv]

Every round times each side once; the ratio is that of the medians. The peer runs as people write it (arguments validated) and with `validate_args=False`;
both of ours check that no row is without a class. A ratio above 1 says that ours is faster.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from bench.common import RESULTS, machine, write
from torch import Tensor
from torch.distributions import Categorical

from entreg.functional import SHANNON, Family, categorical_stats, renyi

SHAPES = [(2048, classes) for classes in (4, 6, 9, 12, 15, 18)] + [(8, 256, 4), (8, 256, 18), (256, 2), (256, 6)]


def ours(logits: Tensor, index: Tensor, pulls: tuple[Tensor, Tensor], family: Family = SHANNON) -> None:
    torch.autograd.backward(categorical_stats(logits, index, family), pulls)


def peer(logits: Tensor, index: Tensor, pulls: tuple[Tensor, Tensor], validate: bool | None = None) -> None:
    distribution = Categorical(logits=logits, validate_args=validate)
    torch.autograd.backward((distribution.log_prob(index), distribution.entropy()), pulls)


SIDES = {
    "ours_us": ours,
    "ours_renyi2_us": lambda *inputs: ours(*inputs, renyi(2)),
    "torch_us": peer,
    "torch_unvalidated_us": lambda *inputs: peer(*inputs, False),
}


def measure(shape: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Median microseconds of each side."""
    torch.manual_seed(0)
    logits = torch.randn(shape, requires_grad=True)
    index = torch.randint(shape[-1], shape[:-1])
    pulls = (torch.randn(shape[:-1]), torch.randn(shape[:-1]))
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(rounds + 20):
        for name, side in SIDES.items():
            logits.grad = None
            start = time.perf_counter()
            side(logits, index, pulls)
            if turn >= 20:
                times[name].append(1e6 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--out", type=Path, default=RESULTS / "categorical.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for shape in SHAPES:
        medians = measure(shape, arguments.rounds)
        ratios = {
            "ratio": medians["torch_us"] / medians["ours_us"],
            "ratio_unvalidated": medians["torch_unvalidated_us"] / medians["ours_us"],
            "ratio_renyi2": medians["torch_us"] / medians["ours_renyi2_us"],
        }
        name = "x".join(map(str, shape))
        rows.append({"shape": name, **{key: round(value, 2) for key, value in (medians | ratios).items()}})
        print(f"{name:>10}  " + "  ".join(f"{key} {value:8.2f}" for key, value in (medians | ratios).items()), flush=True)
    write(arguments.out, rows, machine("torch"))
    print(f"wrote {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
