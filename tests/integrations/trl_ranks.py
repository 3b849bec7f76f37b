"""What a spawned gloo rank trains in test_trl_ranks.py: its own file, so that it does not import pytest."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

RANKS, COEF = 2, 0.3
CASES = {
    "grpo": {"gradient_accumulation_steps": 2, "num_generations": 4},
    "trajectory": {"gradient_accumulation_steps": 2, "num_generations": 4},
    "sft": {"gradient_accumulation_steps": 2},
    "dpo": {"gradient_accumulation_steps": 1},
}


def kind_of(case):
    return "grpo" if case == "trajectory" else case


def rows_of(kind):
    """Answers of one to three characters; None where the policy writes its own."""
    if kind == "grpo":
        return None
    from datasets import Dataset

    from entreg.lm import arithmetic
    from tests.lm.trainers import TASK

    rows = arithmetic.demonstrations(TASK, 32, 0) if kind == "sft" else arithmetic.pairs(TASK, 32, 0)
    return Dataset.from_list([{name: text if name == "prompt" else text[: 1 + index % 3] for name, text in row.items()} for index, row in enumerate(rows)])


def work(rank, folder):
    """One step of each case without and with the term: the batches that this rank saw, the weights before, after, and the controller's state."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    from entreg.control import TargetEntropy
    from entreg.integrations.trl import attach
    from tests.lm import trainers
    from tests.lm.terms import spied

    for case, settings in CASES.items():
        how = {"max_steps": 1, "per_device_train_batch_size": 4, "rows": rows_of(kind_of(case)), **settings}
        results, batches = {}, []
        plain = trainers.trainer(kind_of(case), Path(folder, case, str(rank)), beginning=Path(folder, "beginning"), **how)
        trainers.train(spied(plain, batches))
        results["plain"] = trainers.weights(plain)
        ours = trainers.trainer(kind_of(case), Path(folder, case, str(rank)), beginning=Path(folder, "beginning"), **how)
        attached = attach(ours, TargetEntropy(1.0, lr=0.5, init_coef=COEF), over="trajectory" if case == "trajectory" else "token")
        trainers.train(ours)
        results["ours"] = trainers.weights(ours)
        results["coef"], results["entropy"] = torch.tensor([attached.regularizer.coef]), torch.tensor([attached.record()["entropy"]])
        for index, batch in enumerate(batches):
            results |= {f"{index}/{name}": value.contiguous().clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}
        save_file(results, Path(folder, f"{case}-{rank}.safetensors"))
    dist.destroy_process_group()
