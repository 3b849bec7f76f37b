"""SAC: gradients against exact ones, one update against stable-baselines3's, known answers, members, resuming, refusals."""

import itertools
import math

import numpy as np
import pytest
import torch

from entreg import cli, functional, targets
from entreg.functional import SHANNON
from entreg.policy import export, load
from entreg.recipes import sac
from entreg.record import read_records
from entreg.rl.environments import ActionSpec
from entreg.rl.feasibility import infeasible
from entreg.rl.heads import TanhGaussian
from entreg.rl.off_policy import OffPolicy
from entreg.rl.replay import Batch
from entreg.run import NonFinite, Run, RunSettings
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same, killed_at

FAST = {"env": "Pendulum-v1", "hidden": (8,), "steps": 60, "learning_starts": 20, "batch_size": 16, "video": False, "eval_episodes": 1}
SPEC = ActionSpec("continuous", (2,), (-1.0, -3.0), (1.0, 3.0))


def trained(folder, *, run=None, **config):
    summary = sac.train(sac.Config(**{**FAST, **config}), Run(RunSettings(out=folder, quiet=True, **(run or {}))))
    return summary, read_records(summary.folder).lines


def agent_for(folder, **config):
    given = sac.Config(**{**FAST, **config})
    learner = OffPolicy("sac", given, Run(RunSettings(out=folder, quiet=True)), head=sac.head_for, coef=sac.default_coef)
    learner.agent = sac.Agent(learner, given)
    return learner.agent


def a_batch(members=1, items=16, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(members, items, *shape, generator=g)

    return Batch(normal(3), normal(1).tanh(), normal(), normal() > 0.5, normal(3), None, None)


# ---------------------------------------------------------------- entropies and their gradients


def test_a_drawn_action_has_the_density_of_its_distribution_and_stays_finite_far_out():
    head = TanhGaussian(SPEC, sac.LOG_STD)
    noise = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(0))
    outputs = torch.tensor([[0.3, -1.0, -0.5, 0.2]]).expand(1, 5, 4)
    action, log_prob = head.drawn(outputs, noise)
    u = torch.atanh(action.double())
    normal = torch.distributions.Normal(outputs[..., :2].double(), outputs[..., 2:].double().exp())
    torch.testing.assert_close(log_prob, (normal.log_prob(u) - torch.log(1 - action.double() ** 2)).sum(-1).float(), atol=1e-5, rtol=1e-5)
    far, log_prob = head.drawn(torch.tensor([[[20.0, -20.0, -1.0, -30.0]]]), torch.zeros(1, 1, 2))
    assert torch.isfinite(far).all() and log_prob.item() == pytest.approx(1 + 20 - math.log(2 * math.pi) + 2 * (40 - 2 * math.log(2)), rel=1e-6)


def test_the_exact_entropy_has_the_gradient_of_reparameterised_samples_where_stored_samples_have_none():
    head = TanhGaussian(SPEC, sac.LOG_STD)
    outputs = torch.tensor([[[0.4, -0.8, -0.3, 0.1]]], requires_grad=True)
    noise = torch.randn(1, 200_000, 2, generator=torch.Generator().manual_seed(1))
    wide = outputs.expand(1, 200_000, 4)
    _, log_prob = head.drawn(wide, noise)
    (moving,) = torch.autograd.grad(-log_prob.mean(), outputs, retain_graph=True)
    u = (wide[..., :2] + wide[..., 2:].exp() * noise).detach()  # as a buffer keeps them
    stored, exact = head.stats(wide, u, SHANNON, None)
    (of_stored,) = torch.autograd.grad(-stored.mean(), outputs, retain_graph=True)
    (of_exact,) = torch.autograd.grad(exact[0, 0], outputs)
    torch.testing.assert_close(moving, of_exact, atol=0.02, rtol=0)
    assert of_stored.abs().max() < 0.02 and of_exact.abs().max() > 0.2


def test_exact_and_sampled_losses_agree_in_expectation():
    head, coef = TanhGaussian(SPEC, sac.LOG_STD), 0.7
    outputs = torch.tensor([[[0.4, -0.8, -0.3, 0.1]]], requires_grad=True)
    wide = outputs.expand(1, 200_000, 4)
    action, log_prob = head.drawn(wide, torch.randn(1, 200_000, 2, generator=torch.Generator().manual_seed(2)))
    value = (action * torch.tensor([1.0, -2.0])).sum(-1) - action[..., 0] * action[..., 1]
    entropies = {"sampled": -log_prob, "exact": head.entropy(wide, SHANNON, None)}
    losses = {name: functional.soft_actor(value, entropy, coef).mean() for name, entropy in entropies.items()}
    sampled, exact = (torch.autograd.grad(losses[name], outputs, retain_graph=True)[0] for name in ("sampled", "exact"))
    torch.testing.assert_close(sampled, exact, atol=0.02, rtol=0)
    assert exact.abs().max() > 0.3
    no_end = torch.zeros(1, 200_000, dtype=torch.bool)
    sampled, exact = (functional.soft_target(value, no_end, value, entropy, coef, 0.9).mean() for entropy in entropies.values())
    torch.testing.assert_close(sampled, exact, atol=0.01, rtol=0)


def test_the_coefficient_is_a_constant_of_the_actors_loss_and_the_target_one_of_the_critics():
    value, entropy, coef = (torch.tensor([x], requires_grad=True) for x in (1.0, 2.0, 3.0))
    functional.soft_actor(value, entropy, coef).sum().backward()
    assert coef.grad is None and value.grad == -1 and entropy.grad == -3
    assert not functional.soft_target(value, torch.tensor([False]), value, entropy, coef, 0.9).requires_grad


# ---------------------------------------------------------------- one update


@pytest.mark.parametrize("steps", [1, 4])
def test_an_update_is_that_of_stable_baselines3(steps, tmp_path, monkeypatch):
    peer = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    theirs = peer.SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, device="cpu", batch_size=16, seed=0)
    theirs.set_logger(Logger(None, []))
    agent = agent_for(tmp_path)
    layers = [theirs.actor.latent_pi[0]], [theirs.actor.mu, theirs.actor.log_std]

    def their_actor():
        first, last = layers[0][0], layers[1]
        return torch.cat([first.weight.T.flatten(), first.bias, torch.cat([one.weight.T for one in last], 1).flatten(), *(one.bias for one in last)]).detach()

    def their_critics(network):
        return torch.stack([torch.cat([p.mT.flatten() if p.ndim == 2 else p for p in q.parameters()]) for q in network.q_networks])

    agent.actor.parameters.data[0] = their_actor()
    agent.critics.parameters.data.copy_(their_critics(theirs.critic).detach())
    agent.critics.target.data.copy_(agent.critics.parameters.data)
    noises = torch.randn(2 * steps, 16, 1, generator=torch.Generator().manual_seed(3))
    batches = [a_batch(seed=seed) for seed in range(steps)]
    ours = iter(noises.unflatten(0, (steps, 2)))
    monkeypatch.setattr(agent.learner.streams, "noise", lambda *_: next(ours)[None].numpy())
    for batch in batches:
        agent.update(batch)
        agent.learner._end_update()
    drawn, given = iter(noises), iter(batches)
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *_, **__: next(drawn))

    def sample(*_, **__):
        one = next(given)
        return ReplayBufferSamples(one.observation[0], one.action[0], one.next_observation[0], one.terminated[0, :, None].float(), one.reward[0, :, None])

    monkeypatch.setattr(theirs.replay_buffer, "sample", sample)
    theirs.train(gradient_steps=steps, batch_size=16)
    torch.testing.assert_close(agent.actor.parameters.data[0], their_actor(), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(agent.critics.parameters.data, their_critics(theirs.critic).detach(), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(agent.critics.target.data, their_critics(theirs.critic_target).detach(), atol=2e-6, rtol=1e-5)
    assert agent.learner.regularizers[0].coef == pytest.approx(theirs.log_ent_coef.exp().item(), rel=1e-5)


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_the_actors_pass_leaves_critics_and_their_gradient_alone_and_members_do_not_meet(estimator, tmp_path):
    both, alone = agent_for(tmp_path, seeds=2, estimator=estimator), agent_for(tmp_path, estimator=estimator)
    batch = a_batch(members=2)
    for agent, part in ((both, batch), (alone, Batch(*(one if one is None else one[:1] for one in batch)))):
        for _ in range(3):
            agent.update(part)
            agent.learner._end_update()
    torch.testing.assert_close(both.actor.parameters.data[:1], alone.actor.parameters.data, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(both.critics.parameters.data[:2], alone.critics.parameters.data, atol=1e-6, rtol=1e-5)
    assert not torch.equal(both.critics.parameters.data[0], both.critics.parameters.data[1])  # twins differ


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_the_best_action_is_found_and_the_entropy_meets_its_target(estimator, tmp_path):
    config = {"env": "tests.rl.small:Turn-v0", "estimator": estimator, "steps": 1200, "hidden": (16,), "batch_size": 32, "learning_rate": "0.003"}
    summary, lines = trained(tmp_path, **config, coef=("TargetEntropy(-1.0)",), coef_lr=0.01)
    assert load(summary.folder).act(np.zeros(1, np.float32)) == pytest.approx([1.0], abs=0.15)
    entropies = [line["entropy"] for line in lines if "entropy" in line]
    assert np.mean(entropies[-50:]) == pytest.approx(-1.0, abs=0.15)


@pytest.mark.parametrize(("target", "grows"), [(3.0, True), (-30.0, False)])
@pytest.mark.parametrize("form", ["log", "exp"])
def test_the_coefficient_moves_towards_the_target_from_both_sides(target, grows, form, tmp_path):
    _, lines = trained(tmp_path, coef=(f"TargetEntropy({target}, form='{form}')",), family=("shannon",))
    coefs = [line["coef"] for line in lines if "coef" in line]
    assert len(coefs) > 20 and all((b > a) == grows for a, b in itertools.pairwise(coefs))


@pytest.mark.parametrize("terminates", [False, True])
def test_the_replay_holds_what_an_episode_ended_in_and_only_termination_ends_values(terminates, tmp_path):
    learner = agent_for(tmp_path, env="tests.rl.continuous:Ruler-v0", env_kwargs={"terminates": terminates}, environments=2, seeds=2).learner
    with learner:
        for _ in range(4):
            learner._advance(learner._random)
        batch = learner.replay.sample(learner.streams.generators, 200)
    assert torch.equal(batch.next_observation, batch.observation + 1)  # 3 -> 4, not 3 -> 0
    assert torch.equal(batch.terminated, (batch.observation[..., 0] == 3) & terminates)
    assert batch.action.shape == (2, 200, 2) and batch.action.abs().max() <= 1 and batch.action.abs().max() > 0.5


@pytest.mark.parametrize(("per_step", "updates"), [(1.0, 40), (0.25, 10), (3.0, 120)])
def test_gradient_steps_follow_environment_steps(per_step, updates, tmp_path):
    learner = agent_for(tmp_path, updates_per_step=per_step, environments=4).learner
    with learner:
        for _ in learner.batches(learner._random):
            learner.seen(*torch.zeros(3, 1))
    assert learner.update == learner.updates == updates and learner.step == 60


def test_a_member_is_the_run_it_would_have_been_alone(tmp_path):
    coefs, families = ("0.2", "TargetEntropy(-2.0)"), ("shannon", "tsallis(2)")
    shared = {"environments": 2, "estimator": "exact"}
    _, lines = trained(tmp_path, coef=coefs, family=families, seeds=2, **shared)
    cases = [(family, coef, seed) for family in families for coef in coefs for seed in (0, 1)]
    for member in (0, 3, 6):
        family, coef, seed = cases[member]
        _, alone = trained(tmp_path, coef=(coef,), family=(family,), run={"seed": seed}, **shared)
        ours, theirs = ([line for line in some if line.get("member") == at] for some, at in ((lines, member), (alone, 0)))
        assert len(ours) == len(theirs) > 10
        for a, b in zip(ours, theirs, strict=True):
            assert a.keys() - {"entropy/infeasible", "entropy/target"} == b.keys() - {"entropy/infeasible", "entropy/target"}
            for key in a.keys() & b.keys() - {"member", "time", "steps_per_second"}:
                assert a[key] == pytest.approx(b[key], rel=2e-3, abs=2e-4), key


def test_a_policy_of_sac_is_loaded_and_exported_with_its_bounds(tmp_path):
    summary, _ = trained(tmp_path, env="tests.rl.continuous:Ruler-v0")
    policy = load(summary.folder)
    assert policy.head.limits == sac.LOG_STD and not policy.network.architecture.critic
    policy.network.parameters.data[:, -4:] = torch.tensor([50.0, -50.0, 0.0, 0.0])
    assert policy.act(np.zeros(1, np.float32)).tolist() == [2.0, -2.0]
    pytest.importorskip("onnxruntime")
    assert "checked with onnxruntime" in export(summary.folder)


BASE = ("--env", "Pendulum-v1", "--hidden", "16", "--steps", "360", "--batch-size", "32", "--no-video", "--eval-episodes", "2", "--eval-every", "150")


def command(out):
    words = ("--environments", "2", "--seeds", "2", "--coef", "TargetEntropy(action_dim())", "--coef", "GradientShare(0.2)", "--buffer-size", "200")
    return ["train", "sac", *BASE, *words, "--out", str(out), "--quiet", "--checkpoint-every", "0"]


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(tmp_path):
    assert cli.main(command(tmp_path / "whole")) == 0
    (expected,) = (tmp_path / "whole").iterdir()
    killed_at(command(tmp_path / "cut"), tmp_path / "cut", (expected / "records.jsonl").stat().st_size // 3)
    assert cli.main(["train", "sac", "--resume", "latest", "--out", str(tmp_path / "cut"), "--quiet", "--checkpoint-every", "0"]) == 0
    (folder,) = (tmp_path / "cut").iterdir()
    assert lasting(folder) == lasting(expected)
    assert_same(final_state(folder), final_state(expected))


def test_a_reward_that_is_no_number_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    with pytest.raises(NonFinite, match="reward"):
        trained(tmp_path, env="tests.rl.continuous:Ruler-v0", env_kwargs={"poison": 40}, run={"checkpoint_every": 0.0})
    (folder,) = tmp_path.iterdir()
    assert [line["event"] for line in read_records(folder).lines if "event" in line][-1] == "nonfinite"
    assert np.isfinite(load(folder).network.parameters.data.numpy()).all()


@pytest.mark.parametrize(("per_step", "environments", "steps"), [(1.0, 1, 2), (1e-4, 1, 2), (5.0, 1, 2), (1e-4, 3, 3)])
def test_a_dry_run_makes_two_updates_and_keeps_nothing(per_step, environments, steps, tmp_path, capsys, monkeypatch):
    updates, update = [], sac.Agent.update
    monkeypatch.setattr(sac.Agent, "update", lambda agent, batch: [updates.append(1), update(agent, batch)][1])
    config = sac.Config(**{**FAST, "steps": 20_000, "updates_per_step": per_step, "environments": environments})
    summary = sac.train(config, Run(RunSettings(out=tmp_path, quiet=True, dry_run=True)))
    assert (summary.step, len(updates)) == (steps, 2) and list(tmp_path.iterdir()) == []
    assert "read back" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env": "CartPole-v1"}, "sac_discrete"),
        ({"env_kwargs": {"bound": math.inf}, "env": "tests.rl.continuous:Ruler-v0"}, "finite action bounds; sac has no other kind"),
        ({"steps": 10**15, "buffer_size": 10**15}, "lower buffer_size"),
        ({"learning_starts": 60}, "learning_starts must be from 0 to below steps"),
        (
            {"steps": 60, "learning_starts": 59, "updates_per_step": 0.5},
            "updates_per_step must give a gradient step in the 1 steps after learning_starts, got 0.5",
        ),
        ({"activation": "gelu"}, "activation must be tanh or relu for sac, got 'gelu'"),
        ({"tau": 0.0}, "tau"),
        ({"updates_per_step": 0.0}, "updates_per_step"),
        ({"updates_per_step": math.inf}, "updates_per_step"),
        ({"batch_size": 0}, "batch_size"),
        ({"buffer_size": 0}, "buffer_size"),
        ({"estimator": "sampled", "family": ("shannon", "renyi(2)")}, "estimator sampled is for the family shannon"),
        ({"estimator": "best"}, "estimator"),
        ({"coef": ("TargetEntropy(fraction_of_max(0.5))",)}, "continuous actions have no max_entropy; legal: action_dim"),
        ({"family": ("renyi(0)",)}, "order"),
        ({"activation": "swish"}, "activation"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        trained(tmp_path / "runs", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own while it compiles
def test_the_compiled_step_is_the_eager_one(tmp_path):
    eager, compiled = (agent_for(tmp_path, seeds=2, compile=compile) for compile in (False, True))
    for agent in (eager, compiled):
        for seed in range(3):
            agent.update(a_batch(members=2, seed=seed))
            agent.learner._end_update()
    for name in ("critics", "slow"):
        torch.testing.assert_close(compiled.critics.state_dict()[name], eager.critics.state_dict()[name], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(compiled.actor.parameters.data, eager.actor.parameters.data, atol=2e-6, rtol=1e-5)
    assert compiled.learner.regularizers[1].coef == pytest.approx(eager.learner.regularizers[1].coef, rel=1e-6)


def test_compiling_without_a_compiler_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ValueError, match=r"compile needs a C\+\+ compiler"):
        trained(tmp_path / "runs", compile=True)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- targets out of reach


@pytest.mark.parametrize("mean", [0.0, 0.7, 1.8, 3.0])
def test_a_target_is_out_of_reach_where_the_best_scale_misses_it(mean):
    best = targets.best_squashed(mean).entropy
    for dims in (1, 3):
        means = torch.full((1, dims), -mean)
        assert infeasible(means, dims * best - 5e-3, SHANNON, sac.LOG_STD) == 0 and infeasible(means, dims * best + 5e-3, SHANNON, sac.LOG_STD) == 1


def test_other_families_have_their_own_reach_and_far_means_none():
    for family in (functional.renyi(2), functional.tsallis(2), functional.min_entropy):
        scales = torch.linspace(-6, 2, 4001)[:, None]
        best = float(functional.tanh_gaussian_entropy(torch.full_like(scales, 1.3), scales, family).max())
        assert (
            infeasible(torch.tensor([[1.3]]), best - 5e-3, family, sac.LOG_STD) == 0
            and infeasible(torch.tensor([[1.3]]), best + 5e-3, family, sac.LOG_STD) == 1
        )
    assert infeasible(torch.tensor([[30.0], [20.0]]), -50.0, SHANNON, sac.LOG_STD) == 0.5


def test_a_coefficient_that_runs_away_is_reported_once(tmp_path, capsys):
    _, lines = trained(tmp_path, coef=("TargetEntropy(3.0, lr=0.5)",))  # log 2 is the most that an action has
    found = [line["message"] for line in lines if line.get("event") == "finding"]
    assert len(found) == 1 and "100% of the states" in found[0] and "target 3" in found[0]
    assert capsys.readouterr().err.count("lower the target") == 1
    assert [line["entropy/infeasible"] for line in lines if "entropy/infeasible" in line][-1] == 1.0
    _, lines = trained(tmp_path, coef=("TargetEntropy(-1.0, lr=0.5)",))
    assert not [line for line in lines if line.get("event") == "finding"]


@pytest.mark.parametrize("changes", [{}, {"env": "tests.rl.continuous:Ruler-v0", "steps": 1000, "updates_per_step": 0.05, "stop_at": -1e9}])
def test_a_complete_run_keeps_no_replay_and_resuming_it_changes_nothing(changes, tmp_path):
    summary, _ = trained(tmp_path, **changes)
    assert (summary.step, summary.stopped) == (60, None) if not changes else summary.stopped == "stop_at" and summary.step < 1000
    assert not (summary.folder / "replay").exists()
    state, lines = final_state(summary.folder), lasting(summary.folder)
    again, _ = trained(tmp_path, **changes, run={"resume": str(summary.folder)})
    assert (again.step, again.stopped, again.metrics) == (summary.step, None, summary.metrics) and lasting(summary.folder) == lines
    assert_same(final_state(summary.folder), state)


def test_a_replay_whose_files_wait_for_checkpoints_asks_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr("entreg.rl.segments.BEHIND", 0)
    saved, save = [], Run.checkpoint
    monkeypatch.setattr(Run, "checkpoint", lambda run, step, *rest, **more: [saved.append(step), save(run, step, *rest, **more)][1])
    monkeypatch.setattr(Run, "due", lambda run: not saved)
    trained(tmp_path, steps=200, updates_per_step=0.1, buffer_size=16)
    assert saved[:5] == [1, 33, 34, 35, 49] and saved[-1] == 200  # one of the clock's, then three when 32 rounds stand behind the oldest


def test_a_run_that_was_stopped_keeps_its_replay(tmp_path):
    summary, _ = trained(tmp_path, steps=100_000, run={"max_time": 0.2})
    assert summary.stopped == "max_time" and list((summary.folder / "replay").iterdir())


def test_a_smaller_replay_forgets_the_oldest(tmp_path):
    learner = agent_for(tmp_path, env="tests.rl.continuous:Ruler-v0", buffer_size=2).learner
    with learner:
        for _ in range(4):
            learner._advance(learner._random)
        assert set(learner.replay.sample(learner.streams.generators, 100).observation.flatten().tolist()) == {2.0, 3.0}


def test_a_record_holds_the_coefficient_of_the_steps_it_is_about(tmp_path):
    """`linear(1, 0, steps=4)`: the second gradient step weighs entropy by .75, and the third would by .5."""
    _, lines = trained(tmp_path, coef=("linear(1, 0, steps=4)",), steps=52, learning_starts=50, environments=1)
    assert [line["coef"] for line in lines if "coef" in line][-1] == pytest.approx(0.75)


def test_the_critics_have_the_activation_that_was_asked_for(tmp_path):
    critics = agent_for(tmp_path, env="tests.rl.small:Turn-v0", activation="tanh", hidden=(4,)).critics
    items = torch.randn(1, 3, 2)
    weights = [critics.parameters.plain[name][0] for name in ("critic.0.weight", "critic.0.bias", "critic.1.weight", "critic.1.bias")]
    expected = (torch.tanh(items[0] @ weights[0] + weights[1]) @ weights[2] + weights[3])[:, 0]
    torch.testing.assert_close(critics.slow(items)[0, 0], expected)
