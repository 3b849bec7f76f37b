"""The FixMatch step of microsoft/Semi-supervised-learning (semilearn) on images as large as CIFAR's, for `bench.wrn`, in an environment of its own.

    pip install torch==2.13.0 numpy pillow      # the CPU build
    pip install --no-deps semilearn==0.3.2 torchvision==0.28.0 timm aim ...      # and what the import asks for
    python -m bench.wrn_semilearn [--batch 64] [--repeats 3]

torchvision's and torchaudio's binaries want CUDA; no operator of theirs is used by the step, so empty ones stand in for them. The step is semilearn's
`train_step` with its hooks for the update and the average, the augmentation its transforms on PIL images. One thread, processor time.
"""

import argparse
import importlib.machinery
import importlib.util
import re
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from bench import common


def stand_ins() -> None:
    """Empty operators in place of torchvision's binary, and nothing in place of torchaudio."""
    found = importlib.util.find_spec("torchvision")
    text = (Path(found.submodule_search_locations[0]) / "_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "DEF")
    for name in dict.fromkeys(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', text)):
        library.define(f"{name}(Tensor x) -> Tensor")
    for name in ("", ".transforms", ".functional", ".compliance", ".compliance.kaldi", ".sox_effects"):
        module = sys.modules[f"torchaudio{name}"] = MagicMock()
        module.__spec__ = importlib.machinery.ModuleSpec(f"torchaudio{name}", None)
    stand_ins.kept = library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--apart", action="store_true", help="views one by one, the weak one without a gradient, as `entreg train fixmatch` has it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stand_ins()
    from PIL import Image
    from semilearn import get_config, get_net_builder
    from semilearn.algorithms.fixmatch.fixmatch import FixMatch
    from semilearn.datasets.augmentation import RandAugment
    from semilearn.datasets.cv_datasets.cifar import mean, std
    from torchvision import transforms

    class Step(FixMatch):
        """Without data sets and loaders: batches are given."""

        def set_dataset(self):
            return None

    batch = arguments.batch
    config = get_config({"algorithm": "fixmatch", "net": "wrn_28_2", "batch_size": batch, "uratio": 7, "num_train_iter": 1000, "num_classes": 10, "gpu": None})
    config.distributed, config.use_cat, config.weight_decay = False, not arguments.apart, 5e-4
    algorithm = Step(config, get_net_builder("wrn_28_2", False))
    algorithm.hooks_dict["EMAHook"].before_run(algorithm)
    algorithm.model.train()
    weak = [transforms.RandomCrop(32, padding=4, padding_mode="reflect"), transforms.RandomHorizontalFlip()]
    last = [transforms.ToTensor(), transforms.Normalize(mean["cifar10"], std["cifar10"])]
    weakly, strongly = transforms.Compose([*weak, *last]), transforms.Compose([*weak, RandAugment(3, 5), *last])
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(one) for one in rng.integers(0, 256, (8 * batch, 32, 32, 3), dtype=np.uint8)]
    spent = []
    for _ in range(arguments.repeats + 1):
        start = time.process_time()
        known = torch.stack([weakly(one) for one in pictures[:batch]])
        views = [torch.stack([change(one) for one in pictures[batch:]]) for change in (weakly, strongly)]
        augmented = time.process_time()
        given = {"x_lb": known, "y_lb": torch.arange(batch) % 10, "x_ulb_w": views[0], "x_ulb_s": views[1]}
        algorithm.out_dict, algorithm.log_dict = algorithm.train_step(**given)
        algorithm.hooks_dict["ParamUpdateHook"].after_train_step(algorithm)
        algorithm.hooks_dict["EMAHook"].after_train_step(algorithm)
        spent.append((time.process_time() - start, augmented - start))
    total, augmentation = sorted(spent[1:])[len(spent[1:]) // 2]
    row = {
        "network": "WRN-28-2",
        "views": "apart" if arguments.apart else "together",
        "batch": batch,
        "images": 15 * batch,
        "images_per_second": 15 * batch / total,
        "step_s": total,
    }
    row |= {"augmentation_s": augmentation, "augmentation_share": augmentation / total}
    common.append(common.RESULTS / "wrn_semilearn.csv", [row], common.machine("torch", "torchvision", "semilearn"))
    print(row)


if __name__ == "__main__":
    main()
