"""`token_stats` and `linear_token_loss`, 151,936 classes, one thread, against float32 `log_softmax` autograd, TRL's pair and bare products of matrices.

    python -m bench.tokens [--tokens 256] [--rounds 7] [--only logits head] [--out bench/results/tokens.csv]

Forward and backward of log-probability and entropy. All sides of a part are called in turn, `--rounds` times after one call that is not counted; times are
CPU time of this process, ratios those of medians. TRL's functions are timed where `trl` is installed (their rows are left out elsewhere). Our gradients are
compared with float64 first. Memory is the growth of the process's high-water mark, in a process of its own; of the LM head without the gradients it returns.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench.common import RESULTS, machine, write
from torch import Tensor

from entreg.functional import SHANNON, Family, linear_token_loss, linear_token_stats, renyi, token_stats
from entreg.kernels import head

CLASSES, HIDDEN, COEF = 151_936, 1024, 0.01
Side = Callable[[], Any]


def objective(log_prob: Tensor, entropy: Tensor) -> Tensor:
    return -(log_prob + COEF * entropy).sum()


def logits_sides(n: int, classes: int) -> dict[str, Side]:
    """One call is forward and backward on fresh logits (the copy that in-place needs is not timed: see `clock`)."""
    torch.manual_seed(0)
    full = 2 * torch.randn(n, classes)
    targets = torch.randint(classes, (n,))
    source = {torch.float32: full, torch.bfloat16: full.bfloat16()}
    work = {dtype: logits.clone() for dtype, logits in source.items()}

    def ours(dtype: torch.dtype, inplace: bool, family: Family = SHANNON, **options: Any) -> Side:
        def side() -> Callable[[], Any]:
            if inplace:
                work[dtype].copy_(source[dtype])
            leaf = (work if inplace else source)[dtype].detach().requires_grad_()

            def call() -> Tensor:
                logits = leaf.view_as(leaf)
                stats = token_stats(logits, targets, family=family, inplace=inplace, **options)
                return torch.autograd.grad(objective(stats.log_prob, stats.entropy), logits)[0]

            return call

        return side

    def plain() -> Callable[[], Any]:
        leaf = full.detach().requires_grad_()

        def call() -> Tensor:
            log_p = leaf.log_softmax(-1)
            log_prob, entropy = log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)
            return torch.autograd.grad(objective(log_prob, entropy), leaf)[0]

        return call

    float32, bfloat16 = torch.float32, torch.bfloat16
    sides: dict[str, Side] = {
        "log_softmax float32": plain,
        "ours float32": ours(float32, False),
        "ours float32 in place": ours(float32, True),
        "ours bfloat16": ours(bfloat16, False),
        "ours bfloat16 in place": ours(bfloat16, True),
        "ours float32 in place renyi(2)": ours(float32, True, renyi(2)),
        "ours float32 in place top_p .95": ours(float32, True, top_p=0.95),
    }
    if importlib.util.find_spec("trl"):
        sides |= trl_sides(source, targets)
    return sides


def trl_sides(source: dict[torch.dtype, Tensor], targets: Tensor) -> dict[str, Side]:
    """TRL's `selective_log_softmax` and `entropy_from_logits`, as its trainers call them."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    def trl(dtype: torch.dtype) -> Side:
        def side() -> Callable[[], Any]:
            leaf = source[dtype].detach().requires_grad_()
            return lambda: torch.autograd.grad(objective(selective_log_softmax(leaf, targets).float(), entropy_from_logits(leaf).float()), leaf)[0]

        return side

    return {"trl float32": trl(torch.float32), "trl bfloat16": trl(torch.bfloat16)}


def head_sides(n: int, classes: int) -> dict[str, Side]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(n, HIDDEN).bfloat16(), (0.05 * torch.randn(classes, HIDDEN)).bfloat16()
    targets = torch.randint(classes, (n,))
    there, chunks = torch.empty_like(weight), len(head.chunks(n, weight, None))

    def bare(chunks: int, kept: bool = False) -> Side:
        """Logits, gradient of hidden, gradient of weight: a new one as autograd hands over, or one that is kept (its pages are touched once)."""

        def side() -> Callable[[], Any]:
            def call() -> Any:
                gradient, to_hidden = there if kept else torch.empty_like(weight), torch.empty_like(hidden)
                buffer = hidden.new_empty(-(-n // chunks), classes)
                for number, (rows, out) in enumerate(zip(hidden.tensor_split(chunks), to_hidden.tensor_split(chunks), strict=True)):
                    logits = torch.mm(rows, weight.T, out=buffer[: len(rows)])
                    torch.mm(logits, weight, out=out)
                    torch.mm(logits.T, rows, out=gradient) if number == 0 else gradient.addmm_(logits.T, rows)
                return to_hidden, gradient

            return call

        return side

    def leaves() -> tuple[Tensor, Tensor]:
        return hidden.detach().requires_grad_(), weight.detach().requires_grad_()

    def closure() -> Callable[[], Any]:
        inputs = leaves()
        return lambda: torch.autograd.grad(linear_token_loss(*inputs, targets, lambda stats, _: objective(stats.log_prob, stats.entropy))[0], inputs)

    def recomputed() -> Callable[[], Any]:
        inputs = leaves()

        def call() -> Any:
            stats = linear_token_stats(*inputs, targets)
            return torch.autograd.grad(objective(stats.log_prob, stats.entropy), inputs)

        return call

    def whole() -> Callable[[], Any]:
        inputs = leaves()

        def call() -> Any:
            log_p = (inputs[0] @ inputs[1].T).float().log_softmax(-1)
            log_prob, entropy = log_p.gather(-1, targets[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)
            return torch.autograd.grad(objective(log_prob, entropy), inputs)

        return call

    return {
        "three products": bare(1),
        "three products in chunks": bare(chunks),
        "three products, gradient kept": bare(1, True),
        "three products in chunks, gradient kept": bare(chunks, True),
        "linear_token_loss": closure,
        "linear_token_stats": recomputed,
        "logits and log_softmax": whole,
    }


def clock(sides: dict[str, Side], rounds: int) -> dict[str, float]:
    """Median milliseconds of CPU time of each side, all in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            call = side()
            start = time.process_time()
            result = call()
            if turn:
                times[name].append(1e3 * (time.process_time() - start))
            del call, result
    return {name: statistics.median(values) for name, values in times.items()}


def check(sides: dict[str, Side], n: int, classes: int) -> None:
    """Raises unless our gradients of eight tokens are those of float64 `log_softmax`, to 3e-5 of the largest entry of a token (bfloat16: its rounding)."""
    torch.manual_seed(0)
    full, targets = 2 * torch.randn(n, classes), torch.randint(classes, (n,))
    for name in ("ours float32", "ours float32 in place", "ours bfloat16", "ours bfloat16 in place"):
        dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
        leaf = full[:8].to(dtype).double().requires_grad_()
        log_p = leaf.log_softmax(-1)
        exact = torch.autograd.grad(objective(log_p.gather(-1, targets[:8, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)), leaf)[0]
        error = ((sides[name]()()[:8].double() - exact).abs() / exact.abs().amax(-1, keepdim=True)).max().item()
        if not error < (2.0**-8 if dtype == torch.bfloat16 else 3e-5):
            raise SystemExit(f"{name}: gradient off by {error}")


def high_water(part: str, name: str, n: int, classes: int) -> None:
    """Prints by how much one call raises the high-water mark of this process, MB; a first call at one eighth of the size has loaded and compiled everything."""
    import resource

    def mark() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    sides = logits_sides if part == "logits" else head_sides
    sides(max(2, n // 8), classes)[name]()()
    call = sides(n, classes)[name]()
    ballast = torch.zeros(int(max(0.0, mark() - _resident()) * 2**18))  # up to the mark, so that what is added shows
    before = mark()
    result = call()
    returned = sum(x.nbytes for x in result) / 2**20 if part == "head" else 0
    print(f"{mark() - before - returned + 0 * len(ballast):.1f}")


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=("logits", "head"), default=("logits", "head"))
    parser.add_argument("--out", type=Path, default=RESULTS / "tokens.csv")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n, classes = arguments.tokens, arguments.classes
    if arguments.memory_of:
        high_water(*arguments.memory_of, n, classes)
        return
    rows = []
    for part in arguments.only:
        sides = logits_sides(n, classes) if part == "logits" else head_sides(n, classes)
        if part == "logits":
            check(sides, n, classes)
        times = clock(sides, arguments.rounds)
        names = list(sides)
        del sides
        for name in names:
            command = [sys.executable, "-m", "bench.tokens", "--tokens", str(n), "--classes", str(classes), "--memory-of", part, name]
            extra: Any = "" if arguments.no_memory else float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            baseline = names[0]
            peer = "trl bfloat16" if "bfloat16" in name else "trl float32"
            row = {"part": part, "side": name, "tokens": n, "classes": classes, "cpu_ms": times[name], "extra_mb": extra}
            rows.append(row | {"times_first": times[baseline] / times[name], "times_trl": times[peer] / times[name] if peer in times else ""})
            print("  ".join(f"{key} {value:.2f}" if isinstance(value, float) else str(value) for key, value in rows[-1].items()), flush=True)
        write(arguments.out, rows, machine("torch", "trl"))
    print(f"wrote {arguments.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
