"""Two ranks, two micro-batches each, all of unequal length: one mean over all tokens, the same update and the same controller on both ranks."""

import multiprocessing

import pytest

pytest.importorskip("trl")

import torch
from safetensors.torch import load_file

from entreg.control import Observed, TargetEntropy
from entreg.functional import SHANNON
from tests.integrations import trl_ranks
from tests.integrations.trl_ranks import CASES, COEF, RANKS, kind_of, rows_of
from tests.lm import trainers
from tests.lm.terms import plain_term, predictions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two ranks have trained every case."""
    place = tmp_path_factory.mktemp("ranks")
    trainers.model(place / "beginning")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=trl_ranks.work, args=(rank, str(place))) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    return place


def batches_of(saved):
    count = 1 + max(int(name.split("/")[0]) for name in saved if "/" in name)
    return [{name.split("/")[1]: value for name, value in saved.items() if name.startswith(f"{index}/")} for index in range(count)]


@pytest.mark.parametrize("case", list(CASES))
def test_the_update_of_two_ranks_is_that_of_all_their_tokens(case, folder):
    saved = [load_file(folder / f"{case}-{rank}.safetensors") for rank in range(RANKS)]
    batches = [batch for one in saved for batch in batches_of(one)]
    counts = [int(predictions(kind_of(case), batch)[2].sum()) for batch in batches]
    assert len(counts) == RANKS * CASES[case]["gradient_accumulation_steps"] and len(set(counts)) > 1
    for name in ("plain", "ours", "coef", "entropy"):
        assert torch.equal(saved[0][name], saved[1][name])
    network = trainers.model(folder / "beginning")
    over = "trajectory" if case == "trajectory" else "token"
    expected = plain_term(kind_of(case), network, batches, SHANNON, over, COEF).double()
    moved = (saved[0]["plain"] - saved[0]["ours"]).double() / 1e-2
    assert (moved - expected).norm() < 2e-4 * expected.norm()
    rule = TargetEntropy(1.0, lr=0.5, init_coef=COEF)
    assert saved[0]["coef"].item() == pytest.approx(rule.coef(rule.update(rule.init(), Observed(saved[0]["entropy"].item()))), rel=1e-5)


def test_two_ranks_are_one_process_with_both_batches(folder, tmp_path):
    """SFT, whose batches do not depend on who draws them."""
    from entreg.integrations.trl import attach

    one = trainers.trainer("sft", tmp_path, beginning=folder / "beginning", rows=rows_of("sft"), max_steps=1, per_device_train_batch_size=16)
    attached = attach(one, TargetEntropy(1.0, lr=0.5, init_coef=COEF))
    trainers.train(one)
    saved = load_file(folder / "sft-0.safetensors")
    assert (trainers.weights(one) - saved["ours"]).abs().max() < 2e-6
    assert attached.record()["entropy"] == pytest.approx(saved["entropy"].item(), rel=1e-5)
