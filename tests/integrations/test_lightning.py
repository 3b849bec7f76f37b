"""The callback in a real Lightning trainer: coefficients by step, accumulation, resumed training, and modules that would ignore it."""

import math

import pytest

pytest.importorskip("lightning")

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from entreg.control import PI, Observed, Plateau, TargetEntropy, constant, linear
from entreg.functional import categorical_entropy
from entreg.integrations.lightning import EntropyControl
from entreg.targets import fraction_of_max

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
]


class Classifier(LightningModule):
    """Four classes with a confidence penalty; what it keeps, are the coefficients that it has used."""

    def __init__(self, coef=0.0, log=None, reads=True):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.entropy_coef, self.used, self.entropies = nn.Linear(8, 4), coef, [], []
        self._log, self._reads = {} if log is None else log, reads

    def training_step(self, batch, index):
        x, y = batch
        logits = self.layer(x)
        entropy = categorical_entropy(logits).mean()
        self.entropies.append(float(entropy.detach()))
        if self._log is not False:
            self.log("entropy", entropy.detach(), **self._log)
        loss = nn.functional.cross_entropy(logits, y)
        if not self._reads:
            return loss
        coef = self.weight()
        self.used.append(float(coef))
        return loss - coef * entropy

    def weight(self):
        return self.entropy_coef

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Validated(Classifier):
    """Scores worse from epoch to epoch."""

    def validation_step(self, batch, index):
        self.log("val/score", float(-self.global_step))


class InPart(Classifier):
    """The coefficient is a buffer of a submodule."""

    def __init__(self):
        super().__init__()
        del self.entropy_coef
        self.part = nn.Module()
        self.part.register_buffer("weight", torch.tensor(0.0))

    def weight(self):
        return self.part.weight


def loader(batches=8):
    torch.manual_seed(1)
    x = torch.randn(16 * batches, 8)
    return DataLoader(TensorDataset(x, x[:, :4].argmax(1)), batch_size=16)


def trainer(tmp_path, callback, **how):
    how = {"max_epochs": 1, "enable_checkpointing": False, **how}
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        **how,
    )


def test_a_schedule_ends_with_the_run(tmp_path):
    module = Classifier()
    trainer(tmp_path, EntropyControl(linear(1.0, 0.0))).fit(module, loader(4))
    assert module.used == [1.0, 0.75, 0.5, 0.25] and module.entropy_coef == 0.0


@pytest.mark.parametrize("log", [None, {"on_step": True, "on_epoch": True}])
def test_the_controller_sees_what_the_module_logs(tmp_path, log):
    rule, module = TargetEntropy(0.5, lr=0.2, init_coef=0.1), Classifier(log=log)
    control = EntropyControl(rule)
    one = trainer(tmp_path, control, max_epochs=2)
    one.fit(module, loader(4))
    state, expected = rule.init(), []
    for entropy in module.entropies:
        expected.append(rule.coef(state))
        state = rule.update(state, Observed(entropy))
    assert module.used == pytest.approx(expected, rel=1e-6) and control.state_dict()["step"] == 8
    assert float(one.callback_metrics["entreg/coef"]) == pytest.approx(module.used[-1]) and float(one.callback_metrics["entreg/entropy/target"]) == 0.5


def test_one_step_an_optimizer_step_on_the_mean_of_its_micro_batches(tmp_path):
    rule, module = PI(1.5, 0.5, 0.1, (-1.0, 1.0)), Classifier()
    control = EntropyControl(rule)
    trainer(tmp_path, control, accumulate_grad_batches=2).fit(module, loader(4))
    coef = rule.coef(rule.update(rule.init(), Observed(sum(module.entropies[:2]) / 2)))
    assert module.used == pytest.approx([0.0, 0.0, coef, coef], rel=1e-5) and coef > 0.01
    assert control.state_dict()["step"] == 2


def test_minimizing_turns_the_feedback(tmp_path):
    ends = []
    for sense in ("maximize", "minimize"):
        module = Classifier()
        trainer(tmp_path, EntropyControl(TargetEntropy(fraction_of_max(0.1), init_coef=0.1), sense=sense, max_entropy=math.log(4))).fit(module, loader(4))
        ends.append(module.entropy_coef)
    assert ends[0] < 0.1 < ends[1]


def test_a_buffer_of_a_submodule(tmp_path):
    module = InPart()
    trainer(tmp_path, EntropyControl(linear(1.0, 0.0), coef="part.weight")).fit(module, loader(4))
    assert module.used == [1.0, 0.75, 0.5, 0.25] and float(module.part.weight) == 0.0 and "weight" not in vars(nn.Module)


def test_resumed_training_is_uninterrupted(tmp_path):
    def run(folder, **how):
        module, control = Classifier(), EntropyControl(TargetEntropy(0.5, lr=0.2, init_coef=0.1))
        one = trainer(tmp_path / folder, control, **how)
        one.fit(module, loader(4), ckpt_path=tmp_path / "half.ckpt" if folder == "again" else None, weights_only=True)
        return one, module, control

    first = run("first", max_epochs=2)
    first[0].save_checkpoint(tmp_path / "half.ckpt")
    _, whole, expected = run("whole", max_epochs=4)
    _, again, control = run("again", max_epochs=4)
    assert torch.equal(whole.layer.weight, again.layer.weight) and control.state_dict() == expected.state_dict()
    assert whole.used[8:] == again.used and whole.used[0] != whole.used[8]


def test_a_checkpoint_without_a_controller_is_no_place_to_go_on_from(tmp_path):
    plain = trainer(tmp_path, Callback())
    plain.fit(Classifier(), loader(2))
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="checkpoint of step 2 holds no controller"):
        trainer(tmp_path, EntropyControl(0.1), max_epochs=2).fit(Classifier(), loader(2), ckpt_path=tmp_path / "plain.ckpt", weights_only=True)


def test_a_signal_of_validation_is_waited_for(tmp_path):
    module, control = Validated(), EntropyControl(Plateau(constant(0.1), patience=2), signals={"reward": "val/score"})
    trainer(tmp_path, control, max_epochs=3).fit(module, loader(4), loader(1))
    assert module.used[:4] == [0.1] * 4 and control.state_dict()["best"] == -4.0 and module.entropy_coef < 0.1


@pytest.mark.parametrize(
    ("module", "how", "error", "message"),
    [
        (lambda: Classifier(reads=False), {}, RuntimeError, r"training_step did not read self\.entropy_coef"),
        (lambda: Classifier(log=False), {}, RuntimeError, "'entropy' is not logged in this training step"),
        (lambda: Classifier(log={"on_step": False, "on_epoch": True}), {}, RuntimeError, "'entropy' is not logged in this training step"),
        (Classifier, {"coef": "weight"}, ValueError, "coef='weight': Classifier has there None"),
        (Classifier, {"coef": "part.weight"}, ValueError, r"coef='part\.weight': Classifier has there None"),
        (Classifier, {"controller": TargetEntropy(fraction_of_max(0.5))}, ValueError, "fraction_of_max"),
        (Classifier, {"controller": TargetEntropy(1.4), "max_entropy": 1.386}, ValueError, "its target is 1.4; legal is 0 <= target < 1.386"),
        (Classifier, {"controller": Plateau(constant(0.1), 3)}, ValueError, r"reads reward; legal: signals=\{'reward': its logged name\}"),
    ],
)
def test_refused(tmp_path, module, how, error, message):
    one = module()
    with pytest.raises(error, match=message):
        trainer(tmp_path, EntropyControl(**{"controller": 0.1, **how})).fit(one, loader(2))
    assert "entropy_coef" not in vars(Classifier)  # the probe is gone


def test_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning, "__version__", "2.7.0")
    with pytest.raises(ValueError, match=r"lightning: version 2.7.0; legal is 2.6.\*"):
        trainer(tmp_path, EntropyControl(0.1)).fit(Classifier(), loader(2))


def test_a_layer_of_the_same_class_does_not_count(tmp_path):
    """Reading `layer.weight` is not reading `part.weight`, although both hold an attribute of that name."""

    class Elsewhere(InPart):
        def weight(self):
            return self.layer.weight[0, 0].detach()

    with pytest.raises(RuntimeError, match=r"training_step did not read self\.part\.weight"):
        trainer(tmp_path, EntropyControl(0.1, coef="part.weight")).fit(Elsewhere(), loader(2))
