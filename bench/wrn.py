"""Images a second of one FixMatch step with a wide residual network on images as large as CIFAR's, and where its time goes.

    python -m bench.wrn [--batch 64] [--depth 28] [--width 2] [--repeats 3]

One thread, processor time. A step sees B labelled images, 7 B weak and 7 B strong views: 15 B images.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench import common

from entreg.recipes import fixmatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "wrn.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "noise.npz"
        np.savez(file, images=rng.integers(0, 256, (16 * arguments.batch, 32, 32, 3), dtype=np.uint8), labels=np.arange(16 * arguments.batch) % 10)
        wrn = {"network": "wrn", "depth": arguments.depth, "width": arguments.width}
        study = fixmatch.FixMatch(fixmatch.Config(data=str(file), labels=0, batch_size=arguments.batch, **wrn), [0], 1000)
    seen = {"weak": 0.0, "strong": 0.0, "forward": 0.0, "backward": 0.0}

    def timed(name: str, function):
        def call(*args, **kwargs):
            start = time.process_time()
            found = function(*args, **kwargs)
            seen[name] += time.process_time() - start
            return found

        return call

    study.augmentation.weak = timed("weak", study.augmentation.weak)
    study.augmentation.strong = timed("strong", study.augmentation.strong)
    study.logits = timed("forward", study.logits)
    study.network.parameters.backward = timed("backward", study.network.parameters.backward)
    study.update(0)
    spent = []
    for step in range(1, arguments.repeats + 1):
        seen.update(dict.fromkeys(seen, 0.0))
        start = time.process_time()
        study.update(step)
        spent.append({"step": time.process_time() - start, **seen})
    median = sorted(spent, key=lambda one: one["step"])[len(spent) // 2]
    count = 15 * arguments.batch
    row = {
        "network": f"WRN-{arguments.depth}-{arguments.width}",
        "batch": arguments.batch,
        "images": count,
        "images_per_second": count / median["step"],
        **{f"{name}_s": value for name, value in median.items()},
        "augmentation_share": (median["weak"] + median["strong"]) / median["step"],
    }
    common.append(arguments.out, [row], common.machine("torch", "kornia"))
    print(row)


if __name__ == "__main__":
    main()
