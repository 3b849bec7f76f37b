"""The fused update against torch's autograd and Adam, and the laws it promises: members and threads do not matter, NaN is not hidden."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from entreg.rl import fused
from entreg.rl import fused_kernels as kernels
from entreg.rl.fused import Adam, Layout, Rollout

SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "clip": 0.1, "coef": 0.05, "value_coef": 0.5, "max_grad_norm": 0.5}


def problem(layout: Layout, members: int, samples: int, epochs: int, *, seed: int = 0, masked: bool = False) -> tuple[np.ndarray, Adam, Rollout, np.ndarray]:
    """Random parameters and rollout whose log-probs are near, but not at, the policy's: some ratios are clipped."""
    rng = np.random.default_rng(seed)
    params = (0.3 * rng.standard_normal((members, layout.size))).astype(np.float32)
    observation = rng.standard_normal((members, samples, layout.actor[0])).astype(np.float32)
    mask = (rng.random((members, samples, layout.actions)) < 0.6) if masked else None
    if mask is not None:
        mask[..., 0] |= ~mask.any(-1)
    acted = fused.act(layout, params, observation, rng.random((members, samples)), mask)
    noise = 0.15 * rng.standard_normal((members, samples)).astype(np.float32)
    advantage, returns = (rng.standard_normal((members, samples)).astype(np.float32) for _ in range(2))
    order = np.stack([[rng.permutation(samples) for _ in range(epochs)] for _ in range(members)])
    adam = Adam(np.zeros_like(params), np.zeros_like(params), np.zeros(members, np.int64))
    return params, adam, Rollout(observation, acted.action, acted.log_prob + noise, advantage, returns, mask), order


def _members(rollout: Rollout, chosen: slice | int) -> Rollout:
    return Rollout(*(None if field is None else np.asarray(field)[chosen] for field in rollout))


def network(layout: Layout, flat: torch.Tensor, widths: tuple[int, ...], start: int, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    for k, (i, o) in enumerate(pairwise(widths)):
        x = x @ flat[start : start + i * o].view(i, o) + flat[start + i * o : start + (i + 1) * o]
        start += (i + 1) * o
        if k < len(widths) - 2:
            x = torch.tanh(x) if layout.activation == "tanh" else torch.relu(x)
    return x, start


def torch_update(
    layout: Layout, params: np.ndarray, rollout: Rollout, order: np.ndarray, batch_size: int, dtype: torch.dtype
) -> tuple[np.ndarray, torch.optim.Adam, dict[str, float]]:
    """One member's update as it is usually written, by autograd and torch.optim.Adam: its parameters, optimizer and statistics."""
    flat = torch.tensor(params, dtype=dtype, requires_grad=True)
    optimizer = torch.optim.Adam([flat], lr=SETTINGS["learning_rate"], eps=1e-5, foreach=False)
    data = [torch.tensor(np.asarray(field), dtype=dtype) for field in (rollout.observation, rollout.log_prob, rollout.advantage, rollout.returns)]
    action, seen = torch.tensor(np.asarray(rollout.action)), []
    for epoch in order:
        for start in range(0, order.shape[1], batch_size):
            i = torch.tensor(epoch[start : start + batch_size])
            logits, after = network(layout, flat, layout.actor, 0, data[0][i])
            logits.retain_grad()
            value = network(layout, flat, layout.critic, after, data[0][i])[0][:, 0]
            allowed = logits if rollout.mask is None else logits.masked_fill(~torch.tensor(rollout.mask)[i], -torch.inf)
            log_p = torch.log_softmax(allowed, -1)
            entropy = -(log_p.exp() * log_p.clamp(min=-1e30)).sum(-1)
            log_ratio = log_p.gather(1, action[i, None])[:, 0] - data[1][i]
            ratio, advantage = log_ratio.exp(), data[2][i]
            if len(i) > 1:
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            policy = -torch.min(ratio * advantage, ratio.clamp(1 - SETTINGS["clip"], 1 + SETTINGS["clip"]) * advantage).mean()
            values, bonus = (value - data[3][i]).pow(2).mean(), SETTINGS["coef"] * entropy.mean()
            task, shared = (torch.autograd.grad(term, logits, retain_graph=True)[0].norm().item() for term in (policy, bonus))
            optimizer.zero_grad()
            (policy + SETTINGS["value_coef"] * values - bonus).backward()
            norm = torch.nn.utils.clip_grad_norm_([flat], SETTINGS["max_grad_norm"], foreach=False)
            optimizer.step()
            clipped = ((ratio - 1).abs() > SETTINGS["clip"]).double()
            terms = (policy, values, entropy.mean(), (ratio - 1 - log_ratio).mean(), clipped.mean(), norm)
            seen.append([*(term.item() for term in terms), shared / (task + shared)])
    means = dict(zip(fused.Stats._fields, np.mean(seen, axis=0), strict=True))
    return flat.detach().numpy(), optimizer, means | {"grad_share": seen[0][-1]}


LAYOUTS = [
    Layout((4, 64, 64, 2), (4, 64, 64, 1)),
    Layout((3, 20, 13, 18), (3, 7, 1)),
    Layout((9, 33, 5), (9, 8, 40, 1)),
    Layout((5, 2), (5, 1)),
    Layout((6, 24, 24, 3), (6, 24, 24, 1), "relu"),
]


@pytest.mark.parametrize("masked", [False, True], ids=["all-legal", "masked"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.actor}-{layout.activation}")
def test_one_gradient_step_equals_autograd(layout: Layout, masked: bool) -> None:
    """Adam's first moment after one step is a tenth of the clipped gradient, so it shows the gradient itself."""
    params, adam, rollout, order = problem(layout, 2, 77, 1, masked=masked)
    before = params.copy()
    stats = fused.ppo_update(layout, params, adam, rollout, order, batch_size=77, **SETTINGS)
    for m in range(2):
        alone = _members(rollout, m)
        for dtype in (torch.float32, torch.float64):
            _, optimizer, seen = torch_update(layout, before[m], alone, order[m], 77, dtype)
            state = next(iter(optimizer.state.values()))
            gradient = 10 * state["exp_avg"].numpy()
            np.testing.assert_allclose(10 * adam.exp_avg[m], gradient, rtol=1e-5, atol=1e-6 * np.abs(gradient).max())
            np.testing.assert_allclose(adam.exp_avg_sq[m], state["exp_avg_sq"].numpy(), rtol=3e-5, atol=1e-6 * state["exp_avg_sq"].max().item())
            for name, value in seen.items():
                np.testing.assert_allclose(getattr(stats, name)[m], value, rtol=1e-5, atol=1e-6, err_msg=name)
        assert stats.clip_fraction[m] > 0.05
    assert adam.step.tolist() == [1, 1]


@pytest.mark.parametrize("batch_size", [25, 100, 1000])
def test_several_epochs_equal_torch(batch_size: int) -> None:
    """90 samples: batch 25 leaves a tail of 15. Parameters move by up to 16 learning rates; both sides agree to a hundredth of one."""
    layout = LAYOUTS[0]
    params, adam, rollout, order = problem(layout, 1, 90, 4)
    before = params.copy()
    stats = fused.ppo_update(layout, params, adam, rollout, order, batch_size=batch_size, **SETTINGS)
    alone = _members(rollout, 0)
    expected, _, seen = torch_update(layout, before[0], alone, order[0], batch_size, torch.float64)
    assert np.abs(expected - before).max() > 3 * SETTINGS["learning_rate"]
    np.testing.assert_allclose(params[0], expected, atol=0.01 * SETTINGS["learning_rate"])
    assert adam.step[0] == 4 * -(-90 // batch_size)
    for name, value in seen.items():
        np.testing.assert_allclose(getattr(stats, name)[0], value, rtol=1e-4, atol=2e-6, err_msg=name)


def test_the_state_carries_over_between_updates() -> None:
    """Two updates of one epoch are one update of two epochs, bit for bit."""
    layout = LAYOUTS[1]
    params, adam, rollout, order = problem(layout, 1, 40, 2)
    twice, other = params.copy(), Adam(*(field.copy() for field in adam))
    fused.ppo_update(layout, params, adam, rollout, order, batch_size=16, **SETTINGS)
    for epoch in (order[:, :1], order[:, 1:]):
        fused.ppo_update(layout, twice, other, rollout, epoch, batch_size=16, **SETTINGS)
    for a, b in zip((params, *adam), (twice, *other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_member_is_what_it_would_be_alone(threads: int) -> None:
    layout, members = LAYOUTS[0], 7
    settings = {**SETTINGS, "coef": np.linspace(0, 0.3, members), "clip": np.linspace(0.1, 0.4, members), "learning_rate": np.geomspace(1e-4, 1e-2, members)}
    params, adam, rollout, order = problem(layout, members, 50, 2, masked=True)
    start = params.copy()
    stats = fused.ppo_update(layout, params, adam, rollout, order, batch_size=20, threads=threads, **settings)
    for m in range(members):
        one = slice(m, m + 1)
        alone, state = start[one].copy(), Adam(*(np.zeros_like(field[one]) for field in adam))
        own = {name: np.broadcast_to(value, members)[one] if name in ("coef", "clip", "learning_rate") else value for name, value in settings.items()}
        numbers = fused.ppo_update(layout, alone, state, _members(rollout, one), order[one], batch_size=20, **own)
        for a, b in zip((alone, *state, *numbers), (params, *adam, *stats), strict=True):
            np.testing.assert_array_equal(a, b[one])


@pytest.mark.parametrize("field", ["params", "observation", "log_prob", "advantage", "returns"])
def test_nan_is_not_hidden_and_stays_with_its_member(field: str) -> None:
    layout = LAYOUTS[0]
    params, adam, rollout, order = problem(layout, 3, 30, 2)
    clean = (params.copy(), Adam(*(value.copy() for value in adam)))
    fused.ppo_update(layout, *clean, rollout, order, batch_size=10, **SETTINGS)
    (params if field == "params" else np.asarray(getattr(rollout, field)))[(1, *[3] * (np.ndim(getattr(rollout, field, params)) - 1))] = np.nan
    stats = fused.ppo_update(layout, params, adam, rollout, order, batch_size=10, **SETTINGS)
    assert np.isnan(params[1]).all()
    assert np.isnan(stats.grad_norm[1])
    np.testing.assert_array_equal(params[[0, 2]], clean[0][[0, 2]])


def test_forward_equals_torch_and_does_not_mix_rows() -> None:
    for layout in LAYOUTS:
        params, _, rollout, _ = problem(layout, 2, 131, 1)
        observation = np.asarray(rollout.observation)
        logits, value = fused.forward(layout, params, observation)
        for m in range(2):
            flat, x = torch.tensor(params[m], dtype=torch.float64), torch.tensor(observation[m], dtype=torch.float64)
            expected, after = network(layout, flat, layout.actor, 0, x)
            np.testing.assert_allclose(logits[m], expected, atol=2e-6)
            np.testing.assert_allclose(value[m], network(layout, flat, layout.critic, after, x)[0][:, 0], atol=2e-6)
        np.testing.assert_array_equal(fused.forward(layout, params, observation[:, 70:71])[0], logits[:, 70:71])


def test_saturated_tanh_and_large_logits() -> None:
    """tanh reaches 1 and no more; logits of +-2000 give probabilities 0 and 1, entropy 0 and log-prob -4000, not NaN."""
    layout = Layout((1, 1, 2), (1, 1, 1))
    params = np.array([[1, 0, 2000, -2000, 0, 0, 1, 0, 1, 0]], np.float32)
    _, value = fused.forward(layout, params, np.array([[[-1e30], [-9], [0], [1e-6], [1], [9], [np.inf]]]))
    np.testing.assert_allclose(value[0], np.tanh([-50, -9, 0, 1e-6, 1, 9, 50]), rtol=4e-7)
    acted = fused.act(layout, params, np.array([[[20.0], [-20.0]]]), np.full((1, 2), 0.99))
    assert acted.action.tolist() == [[0, 1]]
    np.testing.assert_array_equal(acted.entropy, [[0, 0]])
    np.testing.assert_array_equal(acted.log_prob, [[0, 0]])


@pytest.mark.parametrize("masked", [False, True], ids=["all-legal", "masked"])
@pytest.mark.parametrize("actions", [2, 3, 8, 18])
def test_act_is_the_inverse_cdf_with_exact_log_prob_and_entropy(actions: int, masked: bool) -> None:
    layout, n = Layout((4, 16, actions), (4, 16, 1)), 150
    rng = np.random.default_rng(actions)
    params = rng.standard_normal((2, layout.size)).astype(np.float32)
    observation, uniform = rng.standard_normal((2, n, 4)), rng.random((2, n))
    mask = rng.random((2, n, actions)) < 0.5
    mask[..., -1] = True
    logits, value = fused.forward(layout, params, observation)
    acted = fused.act(layout, params, observation, uniform, mask if masked else None)
    z = np.where(mask, logits, -np.inf) if masked else logits.astype(np.float64)
    log_p = torch.log_softmax(torch.tensor(z, dtype=torch.float64), -1).numpy()
    cumulative = np.exp(log_p).cumsum(-1)
    sure = np.abs(cumulative - uniform[..., None]).min(-1) > 1e-5
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(acted.action[sure], (cumulative > uniform[..., None]).argmax(-1)[sure])
    np.testing.assert_allclose(acted.log_prob, np.take_along_axis(log_p, acted.action[..., None], -1)[..., 0], atol=2e-6)
    np.testing.assert_allclose(acted.entropy, -(np.exp(log_p) * np.maximum(log_p, -1e30)).sum(-1), atol=2e-6)
    np.testing.assert_array_equal(acted.value, value)


def test_act_at_the_ends_of_the_interval_takes_only_legal_actions() -> None:
    layout = Layout((1, 4), (1, 1))
    mask = np.array([[[False, True, True, False]] * 2])
    acted = fused.act(layout, np.zeros((1, layout.size), np.float32), np.zeros((1, 2, 1)), [[0.0, np.nextafter(1, 0)]], mask)
    assert acted.action.tolist() == [[1, 2]]
    nothing = fused.act(layout, np.zeros((1, layout.size), np.float32), np.zeros((1, 1, 1)), [[0.5]], np.zeros((1, 1, 4), bool))
    assert np.isnan(nothing.entropy).all() and np.isnan(nothing.log_prob).all()


def test_torch_memory_is_updated_in_place() -> None:
    layout = LAYOUTS[3]
    params, adam, rollout, order = problem(layout, 1, 8, 1)
    tensor = torch.from_numpy(params).clone()
    before = tensor.clone()
    fused.ppo_update(layout, tensor.numpy(), adam, rollout, order, batch_size=8, **SETTINGS)
    assert not torch.equal(tensor, before)


def test_without_clipping_standardising_or_bonus() -> None:
    """An infinite bound leaves the gradient as it is; coefficient 0 has a share of 0; without standardising, advantages of 0 leave the actor alone."""
    layout = LAYOUTS[3]
    params, adam, rollout, order = problem(layout, 1, 6, 1)
    settings = {**SETTINGS, "coef": 0.0, "max_grad_norm": np.inf, "clip": 0.5}
    rollout = rollout._replace(advantage=np.zeros((1, 6)))
    stats = fused.ppo_update(layout, params, adam, rollout, order, batch_size=6, normalize_advantage=False, **settings)
    assert not adam.exp_avg[0, :-6].any() and adam.exp_avg[0, -6:].all()
    assert stats.grad_share[0] == 0
    assert np.linalg.norm(10 * adam.exp_avg) == pytest.approx(stats.grad_norm[0], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0"),
        ({"threads": 0}, "threads: 0"),
        ({"order": np.full((2, 1, 10), 10)}, "order: holds values from 10 to 10, must lie in 0..9"),
        ({"order": np.zeros((2, 10), int)}, "order: shape"),
        ({"params": np.zeros((2, 6))}, "params: float64"),
        ({"params": np.zeros((6, 2), np.float32).T}, "params: float32"),
        ({"action": np.full((2, 10), 2)}, "action: holds values from 2 to 2, must lie in 0..1"),
        ({"returns": np.zeros((2, 9))}, "returns: shape"),
        ({"mask": np.ones((2, 10, 3), bool)}, "mask: shape"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    layout = Layout((1, 2), (1, 1))
    params, adam, rollout, order = problem(layout, 2, 10, 1)
    arguments: dict[str, Any] = {"params": params, "order": order, "batch_size": 10, "threads": 1}
    arguments.update({name: value for name, value in change.items() if name in arguments})
    rollout = rollout._replace(**{name: value for name, value in change.items() if name not in arguments})
    with pytest.raises(ValueError, match=message):
        fused.ppo_update(layout, adam=adam, rollout=rollout, **arguments, **SETTINGS)


@pytest.mark.parametrize("widths", [((4,), (4, 1)), ((4, 2), (3, 1)), ((4, 2), (4, 2)), ((4, 0, 2), (4, 1))])
def test_impossible_layouts_are_refused(widths: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"^(actor|critic): "):
        Layout(*widths)


def test_without_numba_one_line_names_the_extra() -> None:
    code = "import sys; sys.modules['numba'] = None; sys.modules['llvmlite'] = None\ntry: import entreg.rl.fused\nexcept ImportError as e: print(e)"
    path = str(next(p for p in map(str, sys.path) if p.endswith("src")))
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n{code}"], capture_output=True, text=True, check=True)
    assert done.stdout == "the fused update needs numba: pip install 'entreg[fused]'\n"


def test_where_nothing_can_be_cached_it_still_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    real = kernels.njit

    def refuses(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available for file")
        return real(**options)

    monkeypatch.setattr(kernels, "njit", refuses)
    assert kernels._entry(lambda x: x + 1)(1) == 2
