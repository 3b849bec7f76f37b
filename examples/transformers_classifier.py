"""Hugging Face's Trainer on noisy labels, with a classifier whose confidence a controller holds back: one line more than without."""

import math
import tempfile

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from entreg import PI
from entreg.integrations.transformers import attach

CLASSES = 4


class Classifier(nn.Module):
    """What Trainer asks of a model: a loss and logits from named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, CLASSES))

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.network(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def train(controlled: bool) -> float:
    """Trains, and gives the entropy of the last batch, nats; the largest there is, is log 4 = 1.386."""
    set_seed(0)
    inputs = torch.randn(1024, 16)
    labels = torch.where(torch.rand(1024) < 0.3, torch.randint(CLASSES, (1024,)), inputs[:, :CLASSES].argmax(1))
    rows = [{"inputs": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        settings = {"max_steps": 400, "per_device_train_batch_size": 64, "learning_rate": 4e-3, "lr_scheduler_type": "constant", "save_strategy": "no"}
        quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}
        trainer = Trainer(Classifier(), TrainingArguments(folder, **settings, **quiet), train_dataset=rows)
        # --8<-- [start:attach]
        attached = attach(trainer, PI(0.6 * math.log(CLASSES), 1.0, 0.02, (0.0, 2.0)) if controlled else 0.0)
        trainer.train()
        # --8<-- [end:attach]
    record = attached.record()
    print(f"{'with' if controlled else 'without'} the controller: entropy {record['entropy']:.3f} nats at coefficient {record['coef']:.4f}")
    return record["entropy"]


if __name__ == "__main__":
    train(controlled=False)
    train(controlled=True)
