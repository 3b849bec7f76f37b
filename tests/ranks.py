"""What a spawned gloo rank runs in test_regularizer.py: its own file, so that a rank imports no more than it needs."""

import json
from pathlib import Path

import torch
import torch.distributed as dist

from entreg.control import TargetEntropy
from entreg.regularizer import EntropyRegularizer

RANKS = 2


def policy() -> torch.nn.Linear:
    layer = torch.nn.Linear(3, 5, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(15.0).reshape(5, 3) / 15)
        layer.bias.zero_()
    return layer


def entropies(layer: torch.nn.Linear, observations: torch.Tensor) -> torch.Tensor:
    log_p = layer(observations).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def windows() -> list[torch.Tensor]:
    """Three windows of observations of unequal length."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 3, generator=generator, dtype=torch.float64) for length in (11, 7, 19)]


def controller() -> TargetEntropy:
    return TargetEntropy(1.2, lr=0.1, init_coef=0.5)


def total(tensor: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(tensor)
    return tensor


def work(rank: int, folder: str) -> None:
    """Trains nothing: writes the averaged gradient of each window and the regularizer's state."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    layer, regularizer = policy(), EntropyRegularizer(controller(), all_reduce=total)
    gradients = []
    for window in windows():
        mine = window[:4] if rank == 0 else window[4:]  # unequal parts
        layer.zero_grad()
        regularizer(entropies(layer, mine), denominator=len(window) / RANKS).loss.backward()
        dist.all_reduce(layer.weight.grad)
        gradients.append((layer.weight.grad / RANKS).tolist())  # as data-parallel training averages it
        regularizer.step()
    Path(folder, f"{rank}.json").write_text(json.dumps([gradients, regularizer.state_dict()]))
    dist.destroy_process_group()
