"""The verl plugin against verl 0.9.1's own loss and worker code on a CPU. Not collected by `make test`: tests/verl.sh runs it in verl's environment."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from verl.workers.config import ActorConfig
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import ppo_loss, sft_loss

from entreg.control import TargetEntropy
from entreg.integrations.verl import ControlledLoss, controlled_worker

LENGTHS = ((2, 3), (3, 1), (1, 4))  # of prompt and response
V = 7


def config(**settings):
    how = {"strategy": "fsdp", "rollout_n": 1, "ppo_micro_batch_size_per_gpu": 3, "calculate_entropy": True, **settings}
    return ActorConfig(**how)


def batch(rows, tokens, dp_size=1):
    """Packed sequences as verl's engine hands them to a loss, the rows of `LENGTHS` that are asked for."""
    generator = torch.Generator().manual_seed(0)
    nested = {"prompts": [], "responses": [], "response_mask": [], "old_log_probs": [], "advantages": []}
    for index, (prompt, response) in enumerate(LENGTHS):
        drawn = torch.randn(2, response, generator=generator)
        if index in rows:
            nested["prompts"].append(torch.ones(prompt, dtype=torch.long))
            nested["responses"].append(torch.ones(response, dtype=torch.long))
            nested["response_mask"].append(torch.ones(response, dtype=torch.long))
            nested["old_log_probs"].append(drawn[0] - 2)
            nested["advantages"].append(drawn[1])
    data = TensorDict({name: torch.nested.as_nested_tensor(parts, layout=torch.jagged) for name, parts in nested.items()}, batch_size=[len(rows)])
    from tensordict import NonTensorData

    for name, value in (("dp_size", dp_size), ("batch_num_tokens", tokens), ("global_batch_size", len(LENGTHS))):
        data[name] = NonTensorData(value)
    return data


def outputs(logits, rows):
    """Log-probs and entropies of the packed tokens, nested by sequence."""
    sizes = [sum(LENGTHS[row]) for row in rows]
    offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    first = [sum(map(sum, LENGTHS[:row])) for row in rows]
    z = torch.cat([logits[start : start + size] for start, size in zip(first, sizes, strict=True)])
    log_p = z.log_softmax(-1)
    nested = partial(torch.nested.nested_tensor_from_jagged, offsets=offsets)
    return {"log_probs": nested(log_p[:, 1]), "entropy": nested(-(log_p.exp() * log_p).sum(-1))}


def gradient(loss_fn, parts):
    logits = torch.randn(sum(map(sum, LENGTHS)), V, generator=torch.Generator().manual_seed(1)).requires_grad_()
    tokens = sum(response for _, response in LENGTHS)
    metrics = []
    for rows in parts:
        loss, measured = loss_fn(model_output=outputs(logits, rows), data=batch(rows, tokens))
        loss.backward()
        metrics.append(measured)
    return logits.grad, metrics


@pytest.mark.parametrize("coef", [0.3, -0.2])
def test_it_is_verls_own_static_bonus_over_tokens(coef):
    own, _ = gradient(partial(ppo_loss, config=config(entropy_coeff=coef)), [(0, 1, 2)])
    ours, metrics = gradient(ControlledLoss(partial(ppo_loss, config=config()), coef), [(0, 1, 2)])
    plain, _ = gradient(partial(ppo_loss, config=config()), [(0, 1, 2)])
    assert (own - ours).abs().max() < 1e-6 and (own - plain).abs().max() > 1e-4
    assert metrics[0]["entreg/coef"] == coef


def test_micro_batches_of_unequal_length_are_the_mini_batch():
    controller = TargetEntropy(1.0, lr=0.3, init_coef=0.2)
    results = []
    for parts in ([(0, 1, 2)], [(0, 1), (2,)]):
        loss = ControlledLoss(partial(ppo_loss, config=config()), controller)
        found, _ = gradient(loss, parts)
        loss.step()
        results.append((found, loss.regularizer.coef))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-7)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6) != 0.2


@pytest.mark.parametrize(
    ("settings", "message"), [({"entropy_coeff": 0.01}, "entropy_coeff is 0.01.*legal"), ({"calculate_entropy": False}, "calculate_entropy is False.*legal")]
)
def test_a_second_bonus_and_one_that_would_be_ignored_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ControlledLoss(partial(ppo_loss, config=config(**settings)), 0.1)


class Engine:
    def get_data_parallel_group(self):
        return None

    def save_checkpoint(self, *_):
        return None

    load_checkpoint = save_checkpoint


def worker(controller):
    """verl's worker class without its process group and engine."""
    made = object.__new__(controlled_worker(TrainingWorker, controller))
    made.engine, made.engine_config, made._rank = Engine(), {}, 0
    made.set_loss_fn(partial(ppo_loss, config=config()))
    return made


def test_a_worker_controls_its_loss_and_keeps_the_controller_in_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingWorker, "train_batch", lambda self, data: gradient(self.loss_fn, [(0, 1, 2)]))
    controller = TargetEntropy(1.0, lr=0.3, init_coef=0.2)
    one = worker(controller)
    one.train_batch(None)
    assert one.loss_fn.regularizer.coef != 0.2
    one.save_checkpoint(str(tmp_path))
    again = worker(controller)
    again.load_checkpoint(str(tmp_path))
    assert again.loss_fn.regularizer.state_dict() == one.loss_fn.regularizer.state_dict() == json.loads((tmp_path / "entreg.json").read_text())
    (tmp_path / "entreg.json").unlink()
    with pytest.raises(ValueError, match=r"holds no entreg\.json"):
        again.load_checkpoint(str(tmp_path))


def test_a_loss_and_an_engine_that_would_ignore_the_bonus_are_refused():
    made = worker(0.1)
    with pytest.raises(ValueError, match=r"function sft_loss.*legal is verl's ppo_loss"):
        made.set_loss_fn(partial(sft_loss, config=config()))
    made.engine_config = {"pipeline_model_parallel_size": 2}
    with pytest.raises(ValueError, match="pipeline_model_parallel_size: got 2"):
        made.set_loss_fn(partial(ppo_loss, config=config()))


def test_verls_dispatch_of_the_worker_survives():
    from verl.single_controller.base.decorator import MAGIC_ATTR

    ours = controlled_worker(TrainingWorker, 0.1)
    for name in ("set_loss_fn", "train_batch", "save_checkpoint", "load_checkpoint"):
        assert getattr(getattr(ours, name), MAGIC_ATTR) == getattr(getattr(TrainingWorker, name), MAGIC_ATTR)


def run(code, **variables):
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def test_the_variable_switches_the_plugin_on_and_a_wrong_one_ends_the_process():
    code = "import verl; from verl.workers.engine_workers import ActorRolloutRefWorker as A; print(A.actor_worker_cls.__name__)"
    assert run(code).stdout.split()[-1] == "TrainingWorker"
    assert run(code, ENTREG_VERL="0.1").stdout.split()[-1] == "ControlledWorker"  # by the entry point: nothing else imports entreg
    wrong = run(code, ENTREG_VERL="lineer(0.1)")
    assert wrong.returncode == 2 and "ENTREG_VERL: 'lineer' is unknown here" in wrong.stderr


def test_another_version_of_verl_ends_the_process():
    code = "import verl; verl.__version__ = '0.8.0'; from entreg.integrations.verl import plugin; plugin()"
    wrong = run(code.replace("import verl;", "import os, verl; os.environ['ENTREG_VERL'] = '0.1';"))
    assert wrong.returncode == 2 and "verl: version 0.8.0; legal is 0.9.*" in wrong.stderr


class Actor:
    """Processes of `verl_actor.py`, one a rank: verl's configuration, worker, FSDP engine, optimizer and checkpoint, on a CPU."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, updates, *settings, coef=None, ranks=1, save="-"):
        command = [sys.executable, "-m", "tests.integrations.verl_actor", str(self.folder)]
        how = {"env": os.environ | ({} if coef is None else {"ENTREG_VERL": coef}), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        some = [subprocess.Popen([*command, str(rank), str(ranks), str(updates), save, *settings], **how) for rank in range(ranks)]
        return [self.answer(process) for process in some]

    @staticmethod
    def answer(process):
        """What it found, or what it said before it died."""
        said, complaints = process.communicate(timeout=600)
        found = [line.removeprefix("ANSWER ") for line in said.splitlines() if line.startswith("ANSWER ")]
        return json.loads(found[0]) if found else complaints


@pytest.fixture(scope="module")
def actor(tmp_path_factory):
    made = Actor(tmp_path_factory.mktemp("actor"))
    (made.controlled,) = made(2, coef=TARGET)
    return made


TARGET = "TargetEntropy(3.4, lr=0.3, init_coef=0.2)"


def test_verls_actor_learns_with_the_term_as_with_verls_own_bonus(actor):
    ours, own, plain = (
        actor(2, *settings, coef=coef)[0] for coef, settings in (("0.3", ()), (None, ["actor_rollout_ref.actor.entropy_coeff=0.3"]), (None, ()))
    )
    assert (ours["worker"], own["worker"]) == ("ControlledWorker", "TrainingWorker")
    assert ours["coefs"] == [[0.3] * 4] * 2 and own["coefs"] == [None, None]
    ours, own, plain = (torch.tensor(one["weights"]) for one in (ours, own, plain))
    assert (ours - own).abs().max() < 1e-6 and (ours - plain).abs().max() > 1e-3


def test_verls_checkpoint_resumes_the_controller_and_the_run(actor):
    (first,) = actor(1, coef=TARGET, save="save")
    (second,) = actor(1, coef=TARGET)
    (actor.folder / "checkpoint").rename(actor.folder / "other")
    assert second["state"] == actor.controlled["state"] != first["state"] and second["weights"] == actor.controlled["weights"]


def test_two_ranks_of_unequal_length_are_one(actor):
    each = actor(2, coef=TARGET, ranks=2)
    whole = actor.controlled
    assert each[0]["state"] == each[1]["state"] and each[0]["weights"] == each[1]["weights"]
    assert each[0]["state"]["controller"] == pytest.approx(whole["state"]["controller"], rel=1e-5)
    torch.testing.assert_close(torch.tensor(each[0]["weights"]), torch.tensor(whole["weights"]), rtol=1e-4, atol=1e-6)


def test_the_actor_refuses_what_would_ignore_the_bonus(actor):
    (said,) = actor(1, "actor_rollout_ref.actor.calculate_entropy=False", coef=TARGET)
    assert "ValueError: actor.calculate_entropy is False" in said
    (said,) = actor(1, "actor_rollout_ref.actor.entropy_coeff=0.1", coef=TARGET)
    assert "ValueError: actor.entropy_coeff is 0.1" in said
