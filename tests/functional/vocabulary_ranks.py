"""What a spawned gloo rank runs in test_token_ranks.py: its own file, so that a rank imports no more than it needs."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist

from entreg.functional import linear_token_loss, linear_token_stats, renyi, token_stats

TOKENS, CLASSES, SIZE = 6, 1200, 5
FIELDS = ("log_prob", "entropy", "shannon", "varentropy", "collision", "lse")
OPTIONS = {"fields": FIELDS, "family": renyi(1.5), "temperature": 0.8, "softcap": 9.0}


def inputs() -> tuple[torch.Tensor, ...]:
    """Hidden states, weight, targets, support and pulls, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, SIZE, generator=generator, dtype=torch.float64)
    weight = torch.randn(CLASSES, SIZE, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (TOKENS,), generator=generator)
    targets[0], targets[1] = CLASSES - 1, -100
    support = torch.rand(TOKENS, CLASSES, generator=generator) < 0.9
    support[2, : CLASSES // 2] = False  # a shard without any class
    return hidden, weight, targets, support, torch.randn(len(FIELDS), TOKENS, generator=generator, dtype=torch.float64)


def results(group: object, mine: slice) -> dict[str, torch.Tensor]:
    """Statistics and gradients from logits, from the head and from the closure, for the classes of one process."""
    hidden, weight, targets, support, pulls = inputs()
    hidden, weight, support = hidden.requires_grad_(), weight[mine].clone().requires_grad_(), support[:, mine]
    found = {}
    stats = token_stats(hidden @ weight.T, targets, support=support, group=group, backend="blocks", inplace=True, **OPTIONS)
    found["logits"], found["logits_weight"] = torch.stack(stats).detach(), torch.autograd.grad((torch.stack(stats) * pulls).sum(), weight)[0]
    stats = linear_token_stats(hidden, weight, targets, support=support, group=group, chunk=2, **OPTIONS)
    found["head_hidden"], found["head_weight"] = torch.autograd.grad((torch.stack(stats) * pulls).sum(), (hidden, weight))
    loss, _ = linear_token_loss(hidden, weight, targets, lambda s, at: (torch.stack(s) * pulls[:, at]).sum(), support=support, group=group, chunk=4, **OPTIONS)
    found["loss_hidden"], found["loss_weight"] = torch.autograd.grad(loss, (hidden, weight))
    return found | {"head": torch.stack(stats).detach(), "loss": loss.detach()}


def work(rank: int, ranks: int, folder: str) -> None:
    """Writes what this rank finds, and how many gathers the first call took."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    share = CLASSES // ranks
    counted, gather = [], dist.all_gather_into_tensor

    def counting(*arguments: object, **options: object) -> object:
        counted.append(1)
        return gather(*arguments, **options)

    dist.all_gather_into_tensor = counting
    token_stats(torch.zeros(2, share), torch.tensor([0, CLASSES - 1]), group=dist.group.WORLD)
    calls = len(counted)
    found = results(dist.group.WORLD, slice(rank * share, (rank + 1) * share))
    alone = [dist.new_group([one]) for one in range(ranks)][rank]  # in which its number is 0
    found["alone"] = results(alone, slice(None))["logits"]
    try:
        token_stats(torch.zeros(1, 3 + rank), fields=["entropy"], group=dist.group.WORLD)
        refused = ""
    except ValueError as error:
        refused = str(error)
    Path(folder, f"{rank}.json").write_text(json.dumps({**{name: value.tolist() for name, value in found.items()}, "calls": calls, "refused": refused}))
    dist.destroy_process_group()
