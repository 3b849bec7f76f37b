"""A LightningModule on noisy labels whose confidence a controller holds back: one callback more than without."""

import logging
import math
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from entreg import PI, functional
from entreg.integrations.lightning import EntropyControl
from entreg.targets import fraction_of_max

CLASSES = 4


class Classifier(LightningModule):
    """A network that learns four classes; `entropy_coef` weighs its confidence penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.entropy_coef = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, CLASSES)), 0.0

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        inputs, labels = batch
        logits = self.network(inputs)
        entropy = functional.categorical_entropy(logits).mean()
        self.log("entropy", entropy)
        return nn.functional.cross_entropy(logits, labels) - self.entropy_coef * entropy

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def train(controlled: bool) -> float:
    """Trains, and gives the entropy of the last batch, nats; the largest there is, is log 4 = 1.386."""
    torch.manual_seed(0)
    inputs = torch.randn(1024, 16)
    labels = torch.where(torch.rand(1024) < 0.3, torch.randint(CLASSES, (1024,)), inputs[:, :CLASSES].argmax(1))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    # --8<-- [start:two]
    control = EntropyControl(PI(fraction_of_max(0.6), 1.0, 0.02, (0.0, 2.0)), max_entropy=math.log(CLASSES))
    trainer = Trainer(accelerator="cpu", max_epochs=25, callbacks=[control] if controlled else [], **quiet)
    # --8<-- [end:two]
    module = Classifier()
    trainer.fit(module, DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True))
    entropy = float(trainer.callback_metrics["entropy"])
    print(f"{'with' if controlled else 'without'} the controller: entropy {entropy:.3f} nats at coefficient {module.entropy_coef:.4f}")
    return entropy


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    train(controlled=False)
    train(controlled=True)
