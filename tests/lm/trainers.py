"""The smallest trainers of TRL that do anything: what tests of integrations and recipes share. Import it after `pytest.importorskip("trl")`."""

import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset, disable_progress_bars
from transformers import set_seed
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from entreg.lm import arithmetic, models, start

logging.set_verbosity_error()
logging.disable_progress_bar()
disable_progress_bars()
TASK = arithmetic.make("split", 9)
NETWORK, TOKENIZER = start.beginner(TASK, 0, steps=60, batch=64, learning_rate=1e-2, width=16)  # .5 s; its completions have unequal lengths
KINDS = {
    "grpo": (GRPOTrainer, GRPOConfig),
    "rloo": (RLOOTrainer, RLOOConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "sft": (SFTTrainer, SFTConfig),
}


def model(folder):
    """The beginner, saved in `folder` and loaded from there."""
    if not (folder / "config.json").exists():
        models.save(NETWORK, TOKENIZER, folder)
    return models.load(folder)[0]


def data(kind, count=32):
    if kind in ("grpo", "rloo"):
        return Dataset.from_list([{"prompt": prompt} for prompt in TASK.prompts] * 4)
    if kind == "sft":
        return Dataset.from_list(arithmetic.demonstrations(TASK, count, 0))
    pairs = arithmetic.pairs(TASK, count, 0)
    if kind == "dpo":
        return Dataset.from_list(pairs)
    rows = [{"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"} for pair in pairs for name in ("chosen", "rejected")]
    return Dataset.from_list(rows)


def lengths_reward(completions, **_):
    """Different for every completion, so that advantages are not 0."""
    return [len(text) / 5 + sum(map(ord, text)) % 7 / 10 for text in completions]


def trainer(kind, folder, *, beginning=None, rows=None, **settings):
    """A trainer of that kind; its model lies in `beginning`, and its settings stand over those below."""
    cls, config = KINDS[kind]
    base = {"output_dir": str(folder), "per_device_train_batch_size": 8, "max_steps": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
            "report_to": "none", "save_strategy": "no", "logging_steps": 1, "bf16": False, "use_cpu": True, "gradient_checkpointing": False,
            "disable_tqdm": True, "seed": 0, "max_grad_norm": 1e9, "weight_decay": 0.0, "optim": "sgd"}  # fmt: skip
    if kind in ("grpo", "rloo"):
        base |= {"num_generations": 4, "max_completion_length": 5, "top_k": 0}
    network = model(beginning or folder / "start")
    extra = {"reward_funcs": lengths_reward} if kind in ("grpo", "rloo") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its own future will change
        arguments = config(**{**base, **settings})
        return cls(model=network, args=arguments, train_dataset=data(kind) if rows is None else rows, processing_class=TOKENIZER, **extra)


def train(one, **how):
    """Run it from one and the same random state, with the warnings of its libraries off, and give its logs."""
    set_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one.train(**how)
    return one.state.log_history


def weights(one):
    return torch.cat([parameter.detach().flatten() for parameter in one.model.parameters()])
