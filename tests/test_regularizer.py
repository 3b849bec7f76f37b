"""EntropyRegularizer: exact gradients, and the same result however a batch is cut: micro-batches, ranks, save and load."""

import json
import math

import pytest
import torch
import torch.multiprocessing

from entreg import EntropyRegularizer, Observed, Term, functional, linear
from entreg.control import GradientShare, TargetEntropy, constant
from entreg.regularizer import stacked
from tests import ranks
from tests.controller_cases import ROWS

SIGNALS = {"reward": 1.0, "grad_share": 0.1}


def batch(length=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(length, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("sense, sign", [("maximize", -1), ("minimize", 1)])
def test_the_loss_is_the_weighted_mean_entropy_with_its_exact_gradient(sense, sign):
    entropy = batch().reshape(2, 3).detach().requires_grad_()
    term = EntropyRegularizer(0.25, sense=sense)(entropy)
    assert isinstance(term, Term)
    assert term.coef == 0.25
    assert term.loss.item() == pytest.approx(sign * 0.25 * entropy.mean().item(), rel=1e-15)
    assert term.entropy.item() == pytest.approx(entropy.mean().item(), rel=1e-15)
    assert not term.entropy.requires_grad
    term.loss.backward()
    assert torch.equal(entropy.grad, torch.full((2, 3), sign * 0.25 / 6, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_mask_says_which_items_count(dtype):
    entropy, mask = batch(), torch.tensor([0.25 if dtype == torch.float32 else 1, 0, 1, 1, 0, 0]).to(dtype)  # nonzero is what counts, not how much
    with torch.no_grad():
        entropy[1] = math.nan
    regularizer = EntropyRegularizer(0.5)
    term = regularizer(entropy, mask)
    kept = entropy.detach()[mask.bool()]
    assert term.loss.item() == pytest.approx(-0.5 * kept.mean().item())
    assert term.entropy.item() == pytest.approx(kept.mean().item())
    term.loss.backward()
    assert entropy.grad.tolist() == pytest.approx([-0.5 / 3, 0, -0.5 / 3, -0.5 / 3, 0, 0])
    regularizer.step()
    assert regularizer.entropy == pytest.approx(kept.mean().item())


def test_a_micro_batch_in_which_nothing_counts_adds_nothing():
    regularizer, entropy = EntropyRegularizer(ROWS[5].closed), batch()
    term = regularizer(entropy, torch.zeros(6, dtype=torch.bool))
    term.loss.backward()
    assert (term.loss.item(), term.entropy.item(), entropy.grad.abs().sum().item()) == (0, 0, 0)
    regularizer(batch(0))
    with pytest.raises(ValueError, match="entropy=nan"):
        regularizer.step()
    regularizer(entropy)
    regularizer.step()
    assert regularizer.entropy == pytest.approx(entropy.mean().item())


@pytest.mark.parametrize("denominator", ["count", "tensor"])
@pytest.mark.parametrize("masked", [False, True])
def test_micro_batches_of_unequal_length_give_the_full_batch_gradient_and_state(denominator, masked):
    layers = [ranks.policy(), ranks.policy()]
    whole, parts = EntropyRegularizer(ranks.controller()), EntropyRegularizer(ranks.controller())
    for window in ranks.windows():
        mask = torch.arange(len(window)) % 3 > 0 if masked else torch.ones(len(window), dtype=torch.bool)
        count = mask.sum() if denominator == "tensor" else int(mask.sum())
        for layer in layers:
            layer.zero_grad()
        whole(ranks.entropies(layers[0], window), mask if masked else None).loss.backward()
        for some in (slice(0, 1), slice(1, 3), slice(3, None)):
            part = ranks.entropies(layers[1], window[some])
            parts(part, mask[some] if masked else None, denominator=count).loss.backward()
        whole.step()
        parts.step()
        torch.testing.assert_close(layers[0].weight.grad, layers[1].weight.grad, rtol=1e-12, atol=1e-15)
    assert whole.state_dict()["controller"] == pytest.approx(parts.state_dict()["controller"], rel=1e-12)
    assert whole.coef != 0.5


def test_two_gloo_ranks_give_the_full_batch_gradient_and_state(tmp_path):
    torch.multiprocessing.spawn(ranks.work, args=(str(tmp_path),), nprocs=ranks.RANKS)
    layer, alone = ranks.policy(), EntropyRegularizer(ranks.controller())
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks.RANKS)]
    for index, window in enumerate(ranks.windows()):
        layer.zero_grad()
        alone(ranks.entropies(layer, window)).loss.backward()
        alone.step()
        for gradients, _ in results:
            torch.testing.assert_close(torch.tensor(gradients[index], dtype=torch.float64), layer.weight.grad, rtol=1e-12, atol=1e-15)
    for _, state in results:
        assert state["controller"] == pytest.approx(alone.state_dict()["controller"], rel=1e-12)
        assert state == results[0][1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("sense", ["maximize", "minimize"])
@pytest.mark.parametrize("lag", [0, 1])
def test_saved_and_loaded_in_the_middle_of_a_window_it_goes_on_as_if_uninterrupted(row, sense, lag):
    regularizer, coefs, uninterrupted = EntropyRegularizer(row.closed, sense=sense, lag=lag), [], []
    for interrupted, record in ((True, coefs), (False, uninterrupted)):
        regularizer = EntropyRegularizer(row.closed, sense=sense, lag=lag)
        for step in range(8):
            for half in range(2):
                regularizer(batch(4 + half, seed=10 * step + half))
                if interrupted:
                    saved = json.loads(json.dumps(regularizer.state_dict()))
                    regularizer = EntropyRegularizer(row.closed, sense=sense, lag=lag)
                    regularizer.load_state_dict(saved)
            regularizer.step(**SIGNALS)
            record.append(regularizer.coef)
    assert coefs == uninterrupted


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_controller_sees_the_mean_over_all_items_of_the_window(row):
    regularizer, state = EntropyRegularizer(row.closed, sense="minimize"), row.closed.init()
    for step in range(5):
        parts = [batch(2, step), batch(9, 100 + step)]
        for part in parts:
            regularizer(part)
        regularizer.step(**SIGNALS)
        state = row.closed.update(state, Observed(torch.cat(parts).mean().item(), -1, **SIGNALS))
        assert regularizer.coef == pytest.approx(row.closed.coef(state), rel=1e-12)


def test_with_lag_the_controller_runs_one_step_behind():
    now, late = EntropyRegularizer(ranks.controller()), EntropyRegularizer(ranks.controller(), lag=1)
    coefs = [[], []]
    for step in range(6):
        for regularizer, record in zip((now, late), coefs, strict=True):
            record.append(regularizer.coef)
            regularizer(batch(4, step))
            regularizer.step()
    assert coefs[1][0] == coefs[1][1] == coefs[0][0]
    assert coefs[1][2:] == coefs[0][1:-1]


@pytest.mark.parametrize("lag", [0, 1])
def test_a_step_that_is_refused_changes_nothing_and_can_be_made_again(lag):
    regularizer = EntropyRegularizer(GradientShare(0.2), lag=lag)
    for _ in range(3):
        regularizer(batch())
        regularizer.step(grad_share=0.1)
    regularizer(batch())
    before, coef = regularizer.state_dict(), regularizer.coef
    with pytest.raises(ValueError, match=r"grad_share=None; legal: a finite number, which GradientShare reads"):
        regularizer.step(reward=1.0)
    assert (regularizer.state_dict(), regularizer.coef) == (before, coef)
    regularizer.step(grad_share=0.1)
    assert regularizer.coef > coef


@pytest.mark.parametrize("row", [row for row in ROWS if row.feedback == "entropy"], ids=lambda row: row.name)
def test_a_step_without_an_entropy_is_refused_where_it_is_read(row):
    regularizer = EntropyRegularizer(row.closed)
    with pytest.raises(ValueError, match="entropy=nan; legal: a finite number"):
        regularizer.step()
    regularizer(torch.tensor([1.0, math.inf]))
    with pytest.raises(ValueError, match="entropy=inf; legal: a finite number"):
        regularizer.step()


def test_a_schedule_steps_without_entropies():
    regularizer = EntropyRegularizer(linear(1, 0, steps=2))
    regularizer.step()
    assert (regularizer.coef, regularizer.target) == (0.5, None)
    assert math.isnan(regularizer.entropy)


def test_a_fused_update_reports_its_mean_alone():
    """One element a minibatch under no_grad feeds the controller as the items would."""
    items, means, floats = (EntropyRegularizer(ranks.controller()) for _ in range(3))
    for step in range(3):
        for part in (batch(8, step), batch(8, 50 + step)):
            items(part)
            with torch.no_grad():
                means(part.mean())
                floats.observe(part.mean().item(), 8)
        for regularizer in (items, means, floats):
            regularizer.step()
            assert regularizer.coef == pytest.approx(items.coef, rel=1e-12)
            assert regularizer.entropy == pytest.approx(items.entropy, rel=1e-12)
    assert means.target == 1.2


def test_stacked_is_one_call_of_each_member():
    rules = [(row.closed, sense) for row in ROWS for sense in ("maximize", "minimize")]
    alone, together = ([EntropyRegularizer(rule, sense=sense) for rule, sense in rules] for _ in range(2))
    for step, items in enumerate((5, 2, 9, 5)):
        entropy = [batch(items * len(rules), step).reshape(-1, items).detach().requires_grad_() for _ in range(2)]
        terms = [regularizer(row) for regularizer, row in zip(alone, entropy[0], strict=True)]
        torch.stack([term.loss for term in terms]).sum().backward()
        term = stacked(together, entropy[1])
        term.loss.backward()
        torch.testing.assert_close(entropy[0].grad, entropy[1].grad, rtol=1e-13, atol=0)
        torch.testing.assert_close(term.entropy, torch.stack([one.entropy for one in terms]), rtol=1e-13, atol=0)
        assert not term.entropy.requires_grad
        for regularizer in (*alone, *together) if step % 2 else ():  # windows of two batches of unequal size
            regularizer.step(**SIGNALS)
        assert [one.coef for one in together] == pytest.approx([one.coef for one in alone], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    entropy = torch.full((70_000,), 1.5, dtype=dtype, requires_grad=True)
    regularizer = EntropyRegularizer(1.0)
    term = regularizer(entropy)
    term.loss.backward()
    regularizer.step()
    assert regularizer.entropy == 1.5
    assert term.loss.dtype == torch.float32
    assert entropy.grad.dtype == dtype
    assert stacked([regularizer], entropy[None]).loss.dtype == torch.float32


@pytest.mark.parametrize(("field", "value"), [("window", [1]), ("window", None), ("window", [0, "1"]), ("late", "x"), ("late", [1])])
def test_a_broken_state_is_refused_and_changes_nothing(field, value):
    regularizer = EntropyRegularizer(ROWS[5].closed, lag=1)
    for _ in range(2):
        regularizer(batch())
        regularizer.step()
    before = regularizer.state_dict()
    with pytest.raises(ValueError, match=f"state: {field}=.*legal: two numbers"):
        regularizer.load_state_dict({**EntropyRegularizer(ROWS[5].closed).state_dict(), field: value})
    assert regularizer.state_dict() == before


def test_a_window_with_a_nan_is_saved_and_loaded():
    regularizer = EntropyRegularizer(0.1)
    regularizer(torch.tensor([math.nan, 1.0]))
    again = EntropyRegularizer(0.1)
    again.load_state_dict(json.loads(json.dumps(regularizer.state_dict())))
    again.step()
    assert math.isnan(again.entropy)


def test_a_late_window_is_saved_only_when_its_copy_has_arrived():
    class Copy:
        def synchronize(self):
            window[0] = 6.0

    window = torch.zeros(2)
    regularizer = EntropyRegularizer(0.1, lag=1)
    regularizer._late = window, Copy()
    assert regularizer.state_dict()["late"] == [6.0, 0.0]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EntropyRegularizer(0.1, sense="up"), "sense='up'; legal: 'maximize' or 'minimize'"),
        (lambda: EntropyRegularizer(0.1, lag=2), "lag=2; legal: 0 or 1"),
        (lambda: EntropyRegularizer("auto"), "controller='auto'; legal: a number or a controller"),
        (lambda: EntropyRegularizer(linear(0.1, 0)), "linear: open: steps; legal"),
        (lambda: EntropyRegularizer(TargetEntropy(1)), "TargetEntropy: open: lr, init_coef; legal"),
        (lambda: EntropyRegularizer(0.1)(torch.ones(2, 3), torch.ones(3)), r"mask: shape \(3,\); legal: that of entropy, \(2, 3\)"),
        (lambda: EntropyRegularizer(0.1)(torch.ones(2), denominator=0), "denominator=0; legal: a number > 0"),
        (lambda: EntropyRegularizer(0.1)(torch.ones(2), denominator=torch.ones(2)), r"denominator: shape \(2,\); legal: one number"),
        (lambda: stacked([EntropyRegularizer(0.1)], torch.ones(2, 3)), r"entropy: shape \(2, 3\); legal: \(1, N\)"),
        (lambda: stacked([EntropyRegularizer(0.1)], torch.ones(1, 0)), r"entropy: shape \(1, 0\); legal: \(1, N\)"),
        (lambda: stacked([EntropyRegularizer(0.1)], torch.ones(1)), r"entropy: shape \(1,\); legal: \(1, N\)"),
        (lambda: EntropyRegularizer(0.1).load_state_dict({}), "state: .*legal: the fields controller, window, late"),
        (lambda: EntropyRegularizer(0.1).load_state_dict(EntropyRegularizer(ROWS[5].closed).state_dict()), "state=.*legal: the fields step of Clock"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_loop_of_the_readme():
    """A bandit: with the bonus the policy stays at its softmax optimum, entropy falls as the coefficient goes to 0."""
    torch.manual_seed(0)
    logits = torch.zeros(4, requires_grad=True)
    legal = torch.tensor([True, True, True, False])
    optimizer = torch.optim.Adam([logits], lr=0.05)
    regularizer, seen = EntropyRegularizer(linear(1.0, 0.0, steps=200)), []
    reward = torch.tensor([1.0, 0.5, 0.0, 9.0])
    for _ in range(200):
        action = torch.distributions.Categorical(logits=logits.detach().masked_fill(~legal, -math.inf)).sample((64,))
        log_prob, entropy = functional.categorical_stats(logits.expand(64, 4), action, support=legal.expand(64, 4))
        term = regularizer(entropy)
        (-(reward[action] * log_prob).mean() + term.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        regularizer.step()
        seen.append(regularizer.entropy)
    assert regularizer.coef == 0
    assert seen[0] == pytest.approx(math.log(3), abs=1e-6)
    assert seen[60] > 0.9
    assert seen[-1] < 0.4
    assert EntropyRegularizer(0.5).controller == constant(0.5)
