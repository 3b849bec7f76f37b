"""Tokens over a large vocabulary on one GPU, beside other formulas and the card's own limits, in one run.

    python -m bench.gpu_tokens [--n 16384] [--d 4096] [--v 151936] [--repeats 10] [--quick] [--out bench/results/gpu_tokens.csv]

`logits`: forward and backward of log-probability and entropy from bfloat16 logits, in place and out of place, Shannon and Rényi, beside
TRL's pair (entropy by softmax and log-softmax in chunks, log-probability row by row), verl's (log-sum-exp minus the mean logit; log-softmax gather) and
Liger's kind of loss (cross-entropy; it has no entropy), each written from its formula in plain torch; the limit is the time of moving the logits three times,
one and a half copies. `head`: the closure `linear_token_loss` beside four products (recomputed), verl's formula and the limit of three bare products. Results
are first checked against float64 on a few rows. Sides take turns; medians of CUDA events. What was measured is written after each part. `--quick` is a small
shape without a file, `--cpu` runs it without a GPU (to see that it runs).
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from bench.common import RESULTS, machine, write
from torch import Tensor

from entreg.functional import SHANNON, linear_token_loss, linear_token_stats, renyi, token_stats

Side = Callable[[], object]
Prepare = Callable[[], object]
FIELDS = ("log_prob", "entropy")


def milliseconds(side: Side, device: str) -> float:
    """One turn."""
    if device == "cpu":
        import time

        start = time.perf_counter()
        side()
        return 1000 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    side()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def medians(sides: Mapping[str, Side], repeats: int, device: str, prepare: Prepare = lambda: None) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each side and its peak memory in bytes beside what was there; the first two turns do not count. `prepare` is not timed."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    memory = dict.fromkeys(sides, 0.0)
    for turn in range(repeats + 2):
        for name, side in sides.items():
            prepare()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            try:
                took = milliseconds(side, device)
            except torch.OutOfMemoryError:
                took = float("nan")
                torch.cuda.empty_cache()  # the next side needs what this one had got
            if device == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() - before
            if turn >= 2:
                found[name].append(took)
    return {name: (statistics.median(values), memory[name]) for name, values in found.items()}


def verls(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy by verl's formulas."""
    entropy = torch.logsumexp(logits, -1) - (torch.softmax(logits, -1) * logits).sum(-1)
    return torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0], entropy


def logits_sides(logits: Tensor, targets: Tensor, pull: Tensor) -> dict[str, Side]:
    """Forward and backward of `sum(pull * (log_prob + .01 entropy))`."""

    def both(log_prob: Tensor, entropy: Tensor) -> Tensor:
        return (pull * (log_prob + 0.01 * entropy)).sum()

    def ours(family=SHANNON, inplace=False) -> Side:
        def side() -> object:
            leaf = logits.detach().requires_grad_()
            z = leaf.view_as(leaf)  # no leaf, and no copy
            stats = token_stats(z, targets, fields=FIELDS, family=family, inplace=inplace)
            return torch.autograd.grad(both(stats.log_prob, stats.entropy), leaf)

        return side

    def trl() -> object:
        z = logits.detach().requires_grad_()
        entropy = []
        for chunk in z.split(128):
            log_p = torch.log_softmax(chunk, -1)
            entropy.append(-(log_p.exp() * log_p).sum(-1))
        log_prob = torch.stack([torch.log_softmax(row, -1)[target] for row, target in zip(z, targets, strict=True)])
        return torch.autograd.grad(both(log_prob, torch.cat(entropy)), z)

    def verl() -> object:
        z = logits.detach().requires_grad_()
        return torch.autograd.grad(both(*verls(z, targets)), z)

    def cross_entropy() -> object:
        z = logits.detach().requires_grad_()
        return torch.autograd.grad(torch.nn.functional.cross_entropy(z, targets, reduction="sum"), z)

    return {
        "copy": lambda: torch.empty_like(logits).copy_(logits),
        "entreg": ours(),
        "entreg, in place": ours(inplace=True),
        "entreg, renyi(2), in place": ours(renyi(2), True),
        "entreg, renyi(0.7), in place": ours(renyi(0.7), True),
        "TRL's formula": trl,
        "verl's formula": verl,
        "cross-entropy of torch, no entropy": cross_entropy,
    }


def head_sides(hidden: Tensor, weight: Tensor, targets: Tensor, pull: Tensor) -> dict[str, Side]:
    """Forward and backward of the same loss from hidden states and the head."""

    def three() -> object:
        chunk = 2048
        for rows in range(0, len(hidden), chunk):
            some = hidden[rows : rows + chunk]
            z = some @ weight.T
            z @ weight, z.T @ some
        return None

    def closure() -> object:
        states, head = (x.detach().requires_grad_() for x in (hidden, weight))
        loss, _ = linear_token_loss(states, head, targets, lambda stats, tokens: (pull[tokens] * (stats.log_prob + 0.01 * stats.entropy)).sum(), fields=FIELDS)
        return torch.autograd.grad(loss, (states, head))

    def recomputed() -> object:
        states, head = (x.detach().requires_grad_() for x in (hidden, weight))
        stats = linear_token_stats(states, head, targets, fields=FIELDS)
        return torch.autograd.grad((pull * (stats.log_prob + 0.01 * stats.entropy)).sum(), (states, head))

    def whole() -> object:
        states, head = (x.detach().requires_grad_() for x in (hidden, weight))
        log_prob, entropy = verls(states @ head.T, targets)
        return torch.autograd.grad((pull * (log_prob + 0.01 * entropy)).sum(), (states, head))

    return {"limit: three products": three, "entreg, closure": closure, "entreg, recomputed (four products)": recomputed, "verl's formula": whole}


def check(logits: Tensor, targets: Tensor) -> float:
    """The largest error of entropy, log-probability and gradient on four rows, in units of 1 + |value|, against float64 of the same bfloat16 logits."""
    errors = []
    for family, inplace in ((SHANNON, False), (SHANNON, True), (renyi(2), True), (renyi(0.7), True)):
        some, right = logits[:4].detach().clone().requires_grad_(), logits[:4].detach().double().requires_grad_()
        leaf = some.view_as(some)
        mine = token_stats(leaf, targets[:4], fields=FIELDS, family=family, inplace=inplace)
        theirs = token_stats(right, targets[:4], fields=FIELDS, family=family, backend="reference")
        for a, b in ((mine.log_prob, theirs.log_prob), (mine.entropy, theirs.entropy)):
            errors.append(float(((a.detach().double() - b.detach()).abs() / (1 + b.detach().abs())).max()))
        (grad,), (slope,) = (torch.autograd.grad((x.log_prob + x.entropy).sum(), z) for x, z in ((mine, some), (theirs, right)))
        errors.append(float((grad.double() - slope).abs().max() / slope.abs().max()) / 100)  # the gradient is rounded to bfloat16
    return max(errors)


def check_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    """ValueError unless the closure's loss and gradients for some tokens, in two chunks, are those of plain torch (`debug`)."""
    some, head = hidden[:64].detach().requires_grad_(), weight.detach().requires_grad_()
    linear_token_loss(some, head, targets[:64], lambda stats, _: (stats.log_prob + 0.01 * stats.entropy).sum(), fields=FIELDS, chunk=40, debug=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=16384, help="tokens")
    parser.add_argument("--d", type=int, default=4096, help="hidden size")
    parser.add_argument("--v", type=int, default=151_936, help="classes")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="a small shape, nothing written")
    parser.add_argument("--cpu", action="store_true", help="on the processor, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_tokens.csv")
    args = parser.parse_args()
    device = "cpu" if args.cpu else "cuda"
    n, d, v = (64, 32, 1000) if args.quick else (args.n, args.d, args.v)
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(n, v, device=device, dtype=torch.bfloat16, generator=generator) * 3
    targets, pull = torch.randint(v, (n,), device=device, generator=generator), torch.randn(n, device=device, generator=generator)
    error = check(logits, targets)
    print(f"largest error against float64: {error:.1e}", flush=True)
    if not error < 1e-4:
        raise SystemExit(1)
    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    common = {"n": n, "d": d, "v": v, "repeats": args.repeats, "error": error, "card": card}
    rows: list[dict[str, object]] = []

    def report(what: str, found: dict[str, tuple[float, float]], limit: float, moved: int | None) -> None:
        for side, (took, peak) in found.items():
            speed = "" if moved is None else (2 if side == "copy" else 3) * moved / took / 1e6
            rows.append({"what": what, "side": side, "ms": took, "gigabytes_per_second": speed, "to_limit": took / limit, "peak_mb": peak / 1e6, **common})
            print(f"{what:7} {side:40} {took:9.3f} ms  {took / limit:6.2f} of the limit  {peak / 1e6:9.1f} MB", flush=True)
        if not args.quick and device == "cuda":
            write(args.out, rows, machine("torch", "triton", "numpy"))

    source = logits.clone()
    found = medians(logits_sides(logits, targets, pull), args.repeats, device, partial(logits.copy_, source))
    report("logits", found, 1.5 * found["copy"][0], logits.nbytes)
    del logits, source
    hidden, weight = (torch.randn(*shape, device=device, dtype=torch.bfloat16, generator=generator) / d**0.5 for shape in ((n, d), (v, d)))
    check_head(hidden, weight, targets)
    found = medians(head_sides(hidden, weight, targets, pull), args.repeats, device)
    report("head", found, found["limit: three products"][0], None)


if __name__ == "__main__":
    main()
