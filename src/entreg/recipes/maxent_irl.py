"""Maximum-entropy inverse reinforcement learning in a known tabular process: the reward whose soft-optimal policy goes where the demonstrations went.

Source: Ziebart et al. 2008 (the principle); Ziebart 2010, chapters 5 and 9 (causal entropy: stochastic transitions); Wulfmeier et al. 2015 (neural rewards).
Page: docs/recipes/maxent_irl.md. Shapes: M members, S states, A actions, F features, T horizon; everything float64.

    ascent direction in reward space:  counts of the demonstrations  -  counts of the soft-optimal policy for the reward at hand
"""

import hashlib
import io
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from entreg import disk, planning, spelling
from entreg.functional import categorical_entropy_from_probs
from entreg.planning import MDP, Solution
from entreg.rl import demonstrations, tabular
from entreg.rl.schedule import Schedule
from entreg.run import Run, Summary

STATUS = "stable"
SUMMARY = "Maximum-entropy inverse reinforcement learning, tabular"
LOG_LINES = 100
SHOWN = 3  # members whose maps stand in the report


@dataclass(frozen=True)
class Config:
    """MaxEnt inverse reinforcement learning in FrozenLake, CliffWalking, Taxi or a gridworld; each seed is a member with demonstrations of its own."""

    env: str = "gridworld"
    """gridworld (its reward is drawn from the seed), or the id of a Gymnasium environment with a table of transitions."""
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the environment; of gridworld: size (6), slip (0.1), regions (8)."""
    trajectories: str | None = None
    """Demonstrations from a .npz or .jsonl file, in place of a planner's."""
    demonstrations: int = 200
    """Trajectories of a planner that is soft-optimal for the true reward; 0: its exact expectations, as of infinitely many."""
    horizon: int = 40
    """Steps of a planner's trajectory; with --finite the horizon of the model too."""
    finite: bool = False
    """A finite horizon and a policy that depends on the step, in place of an infinite horizon."""
    expert_temperature: float = 0.5
    """Temperature of the planner that demonstrates; 0: optimal."""
    temperature: float = 0.5
    """Temperature of the model of the demonstrator; 0: the hard maximum (plain feature matching)."""
    family: str = "shannon"
    """Entropy of demonstrator and model: shannon, tsallis(order), renyi(order below 1)."""
    gamma: float = 0.9
    """Discount, of counts too; 1 only with --finite."""
    features: str = "states"
    """What rewards are made of: states, next_states, state_actions (one of each), regions (of gridworld), or a .npy file [S, F] or [S, A, F]."""
    reward: Literal["linear", "neural"] = "linear"
    """A weight for each feature, or a network on the features."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the network's hidden layers."""
    objective: Literal["likelihood", "matching"] = "likelihood"
    """likelihood: of each action where it was taken. matching: feature counts of whole trajectories, with the luck of their transitions."""
    l2: float = 0.0
    """Weight of half the squared norm of the parameters; above 0 rewards stay finite where demonstrations leave states out."""
    steps: int = 400
    """Gradient steps."""
    learning_rate: str = "linear(0.1, 0)"
    """Of Adam: a number or a schedule over the run."""
    seeds: int = 1
    """Members, with seeds --seed, --seed + 1, ..."""


def check(config: Config) -> None:
    """ValueError for settings that make no sense, naming the flag."""
    limits = {"demonstrations": 0, "horizon": 1, "steps": 1, "seeds": 1}
    for name, least in limits.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name} is {getattr(config, name)}; legal are integers from {least}")
    for name in ("expert_temperature", "temperature", "l2"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} is {getattr(config, name)}; legal are finite numbers from 0")
    if not 0 <= config.gamma <= 1 or (config.gamma == 1 and not config.finite):
        raise ValueError(f"gamma is {config.gamma}; legal is 0 <= gamma < 1, and 1 with --finite")
    if any(width < 1 for width in config.hidden):
        raise ValueError(f"hidden is {config.hidden}; legal are widths from 1")


def plan(config: Config, mdp: MDP, temperature: float, start: Tensor | None = None) -> Solution:
    """The soft-optimal policy of a process, from a first guess of its value."""
    family = spelling.parse_family(config.family)
    if config.finite:
        return planning.soft_value_iteration(mdp, gamma=config.gamma, temperature=temperature, family=family, horizon=config.horizon)
    return planning.soft_policy_iteration(mdp, gamma=config.gamma, temperature=temperature, family=family, start=start)


class Member:
    """One seed: its process, what the demonstrations show (`counts`, `entries`), and the value of its last reward."""

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.seed = config, seed
        self.world = tabular.make(config.env, config.env_kwargs, seed)
        if config.trajectories is not None and config.env == tabular.GRIDWORLD:
            self.world = self.world._replace(truth=None)  # its reward is nobody's
        mdp, horizon = self.world.mdp, config.horizon if config.finite else None
        self.horizon, self.features = horizon, tabular.features(config.features, self.world)
        expert = None if self.world.truth is None else plan(config, self.true, config.expert_temperature)
        if config.trajectories is None and config.demonstrations == 0:
            assert expert is not None
            self.counts, self.entries = planning.occupancy(mdp, expert.policy, gamma=config.gamma, horizon=horizon), mdp.initial
            self.shown: dict[str, Any] = {"trajectories": 0, "steps": 0}
        else:
            if config.trajectories is not None:
                shown = demonstrations.read(Path(config.trajectories), mdp)
            else:
                assert expert is not None
                rng = np.random.default_rng(np.random.SeedSequence([seed, 0xDE40]))
                shown = demonstrations.sample(mdp, expert.policy, config.demonstrations, config.horizon, rng)
            if not len(shown.start):
                raise ValueError(f"env is {config.env!r}, whose episodes end where they begin; legal is one with a step to show")
            longest = int(shown.lengths.max())
            if horizon is not None and longest > horizon:
                raise ValueError(f"horizon is {horizon}, and a trajectory has {longest} steps; legal with --finite is a horizon from {longest}")
            self.counts = demonstrations.counts(shown, mdp, config.gamma, horizon)
            self.entries = demonstrations.entries(shown, mdp, config.gamma, horizon, every=config.objective == "likelihood")
            self.shown = demonstrations.facts(shown)
        self.visits = self.counts if horizon is None else self.counts.sum(0)  # [S, A]: the reward does not depend on the step
        self.value = torch.zeros(mdp.states, dtype=torch.float64)
        self.scale: tuple[float, float] | None = None
        if self.world.truth is not None:
            best, uniform = plan(config, self.true, 0.0).policy, torch.full_like(mdp.reward, 1 / mdp.actions)
            self.scale = self.true_return(best), self.true_return(uniform)

    @property
    def true(self) -> MDP:
        """The process with its true reward."""
        assert self.world.truth is not None
        return self.world.mdp.with_reward(self.world.truth)

    def true_return(self, policy: Tensor) -> float:
        """Discounted true return of a policy from the initial distribution."""
        value = planning.soft_policy_evaluation(self.true, policy, gamma=self.config.gamma, temperature=0.0, horizon=self.horizon).value
        return float((self.true.initial * (value if self.horizon is None else value[0])).sum())

    def gradient(self, reward: Tensor) -> tuple[Tensor, float, Solution]:
        """Ascent direction in reward space `[S, A]`, the objective `<counts, r> - <entries, V>`, and the plan for `reward [S, A]`."""
        mdp = self.world.mdp.with_reward(reward)
        solution = plan(self.config, mdp, self.config.temperature, self.value)
        if self.horizon is None:
            self.value = solution.value
        model = planning.occupancy(mdp, solution.policy, gamma=self.config.gamma, horizon=self.horizon, initial=self.entries)
        start = self.entries if self.entries.shape == solution.value.shape else torch.cat([self.entries[None], torch.zeros_like(solution.value[1:])])
        objective = float((self.visits * mdp.reward).sum() - (start * solution.value).sum())
        return self.visits - (model if self.horizon is None else model.sum(0)), objective, solution

    def measured(self, reward: Tensor, *, judge: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Figures of a reward and the tables of its policy.

        With `judge`, and where the true reward is known, also what the greedy policy earns: `eval/value_difference` is 0 for the optimal policy and 1 for
        the uniform one.
        """
        config, mdp = self.config, self.world.mdp
        gap, objective, solution = self.gradient(reward)
        policy = solution.policy
        visits = planning.occupancy(mdp, policy, gamma=config.gamma, horizon=self.horizon)
        across = (gap[..., None] * self.features).sum((0, 1)) if self.features.ndim == 3 else gap.sum(1) @ self.features
        held = visits.sum(-1)
        entropy = float((held * categorical_entropy_from_probs(policy)).sum() / held.sum())
        row = {"objective": objective, "feature_gap": float(across.abs().sum()), "entropy": entropy, "entropy/perplexity": math.exp(entropy)}
        row["entropy/max"] = entropy / math.log(mdp.actions) if mdp.actions > 1 else 0.0
        taken = torch.where(self.counts > 0, self.counts * policy.log(), 0).sum() / self.counts.sum()
        if math.isfinite(float(taken)):  # a policy with zeros may exclude what was shown
            row["log_likelihood"] = float(taken)
        if judge and self.scale is not None:
            (best, uniform), own = self.scale, self.true_return(plan(config, mdp.with_reward(reward), 0.0).policy)
            row |= {"eval/return": own, "eval/value_difference": (best - own) / (best - uniform) if best > uniform else 0.0}
        total = visits if self.horizon is None else visits.sum(0)
        value = solution.value if self.horizon is None else solution.value[0]
        return row, {"reward": reward, "policy": policy, "value": value, "occupancy": total}

    def as_policy(self, tables: Mapping[str, Tensor]) -> dict[str, Any]:
        """What `entreg.load` reads; with a finite horizon the policy of the first step."""
        policy = tables["policy"] if self.horizon is None else tables["policy"][0]
        return tabular.as_network(policy[: self.world.states], tables["value"][: self.world.states])


class Rewards:
    """The rewards of all members: parameters `[M, P]`, linear in the features or a network with tanh layers."""

    def __init__(self, config: Config, members: list[Member]) -> None:
        self.members = members
        width = members[0].features.shape[-1]
        sizes = (width, *config.hidden, 1) if config.reward == "neural" else ()
        layers = [((size_in, size_out), (size_out,)) for size_in, size_out in itertools.pairwise(sizes)]
        self.shapes: list[tuple[int, ...]] = [shape for layer in layers for shape in layer] or [(width,)]
        rows = []
        for member in members:
            generator = torch.Generator().manual_seed(member.seed)
            drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[0]) for shape in self.shapes]
            rows.append(torch.cat([(part if part.ndim == 2 else 0 * part).flatten() for part in drawn]))  # biases and linear weights begin at 0
        self.parameters = torch.stack(rows).requires_grad_()

    def of(self, index: int) -> Tensor:
        """The reward `[S, A]` of one member, 0 in terminal states, differentiable."""
        member = self.members[index]
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = [part.view(shape) for part, shape in zip(self.parameters[index].split(sizes), self.shapes, strict=True)]
        hidden = member.features
        if len(parts) == 1:
            hidden = hidden @ parts[0]
        else:
            for layer in range(0, len(parts), 2):
                hidden = (hidden if layer == 0 else torch.tanh(hidden)) @ parts[layer] + parts[layer + 1]
            hidden = hidden.squeeze(-1)
        mdp = member.world.mdp
        reward = hidden if hidden.ndim == 2 else hidden[:, None].expand(-1, mdp.actions)
        return torch.where(mdp.terminal[:, None], 0, reward)


def train(config: Config, run: Run | None = None) -> Summary:
    """Fit a reward for each member; records, checkpoints, `solution.npz` and `heatmaps.json` go to the run's folder."""
    check(config)
    run = run if run is not None else Run()
    settings = run.settings
    torch.set_num_threads(settings.threads)
    members = [Member(config, seed) for seed in range(settings.seed, settings.seed + config.seeds)]
    rewards = Rewards(config, members)
    steps = 2 if settings.dry_run else config.steps
    schedule = Schedule("learning_rate", config.learning_rate, steps)
    optimizer = torch.optim.Adam([rewards.parameters], lr=schedule.value)
    for index, member in enumerate(members):
        member.gradient(rewards.of(index).detach())  # what cannot be planned for is refused before anything is written
    described = [{"member": index, "seed": member.seed} for index, member in enumerate(members)]
    source = "" if config.trajectories is None else hashlib.sha256(Path(config.trajectories).read_bytes()).hexdigest()
    run.start("maxent_irl", config.env, config, members=described, total=steps)
    with run:
        step, complete = _restore(run, rewards, optimizer, schedule, source)
        if step == 0 and run.restore() is None:
            shown = ", ".join(f"{name} {value}" for name, value in members[0].shown.items())
            run.event(0, "demonstrations", shown if any(members[0].shown.values()) else "exact expectations of the planner")

        def state() -> dict[str, Any]:
            adam = dict(optimizer.state.get(rewards.parameters, {}))
            values = torch.stack([member.value for member in members])
            return {
                "step": step,
                "complete": complete,
                "source": source,
                "parameters": rewards.parameters.detach(),
                "adam": adam,
                "schedule": schedule.state_dict(),
                "value": values,
            }

        stopped = None
        while step < steps and stopped is None:
            optimizer.param_groups[0]["lr"] = schedule.value
            _ascend(config, rewards, optimizer, run, step)
            schedule.step()
            step += 1
            judge = step % (settings.eval_every or 1) == 0
            if step < steps and (step % max(1, steps // LOG_LINES) == 0 or (judge and settings.eval_every)):
                for index, member in enumerate(members):
                    row, _ = member.measured(rewards.of(index).detach(), judge=judge)
                    run.log(step, member=index, **row, learning_rate=optimizer.param_groups[0]["lr"])
            stopped = run.stopping()
            run.checkpoint(step, state)
        if stopped is not None:
            run.checkpoint(step, state, force=True)  # before measuring, which moves the first guesses of the values
        rows, tables = zip(*(member.measured(rewards.of(index).detach(), judge=True) for index, member in enumerate(members)), strict=True)
        if not complete and stopped is None:
            for index, row in enumerate(rows):
                run.log(step, member=index, **row)
                run.save_best(index, row["objective"], members[index].as_policy(tables[index]), step=step)
            complete = True
            write_tables(run.folder, members, tables)
            run.checkpoint(step, state, force=True)
        names = [name for name in ("objective", "feature_gap", "log_likelihood", "entropy", "eval/value_difference") if all(name in row for row in rows)]
        return run.finish(step, {name: float(np.mean([row[name] for row in rows])) for name in names})


def _ascend(config: Config, rewards: Rewards, optimizer: torch.optim.Optimizer, run: Run, step: int) -> None:
    """One gradient step of all members."""
    each = [rewards.of(index) for index in range(len(rewards.members))]
    directions = []
    for member, reward in zip(rewards.members, each, strict=True):
        run.hurry()
        directions.append(member.gradient(reward.detach())[0])
    run.check_finite(step, gradient=torch.stack(directions))
    optimizer.zero_grad()
    loss = -sum((reward * direction).sum() for reward, direction in zip(each, directions, strict=True)) + config.l2 / 2 * rewards.parameters.square().sum()
    loss.backward()
    optimizer.step()
    run.check_finite(step, parameters=rewards.parameters)


def _restore(run: Run, rewards: Rewards, optimizer: torch.optim.Optimizer, schedule: Schedule, source: str) -> tuple[int, bool]:
    """Take over a checkpoint's state, where there is one: its step, and whether the run was complete."""
    state = run.restore()
    if state is None:
        return 0, False
    if state["source"] != source:
        raise ValueError("trajectories: the file is not the one that this run began with; legal is that one")
    with torch.no_grad():
        rewards.parameters.copy_(state["parameters"])
    optimizer.state[rewards.parameters] = state["adam"]
    schedule.load_state_dict(state["schedule"])
    for member, value in zip(rewards.members, state["value"], strict=True):
        member.value = value.clone()
    return int(state["step"]), bool(state["complete"])


def write_tables(folder: Path, members: list[Member], tables: tuple[dict[str, Tensor], ...]) -> None:
    """`solution.npz` (reward, policy, value, occupancy of every member, and the true reward where it is known) and `heatmaps.json` for the report."""
    arrays = {name: torch.stack([table[name] for table in tables]).numpy() for name in tables[0]}
    if members[0].world.truth is not None:
        arrays["true_reward"] = np.stack([member.world.truth.numpy() for member in members if member.world.truth is not None])
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    disk.replace_file(folder / "solution.npz", file.getvalue())
    maps = []
    for member, table in list(zip(members, tables, strict=True))[:SHOWN]:
        grid, size = member.world.grid, member.world.states
        if grid is not None:
            shown = {"Learnt reward": table["reward"].mean(1)} | ({} if member.world.truth is None else {"True reward": member.world.truth.mean(1)})
            first = table["policy"] if member.horizon is None else table["policy"][0]
            shown |= {"Visits of the policy": table["occupancy"].sum(1), "Visits of the demonstrations": member.visits.sum(1)}
            shown |= {"Soft value": table["value"], "Entropy of the policy": torch.where(member.world.mdp.terminal, 0, categorical_entropy_from_probs(first))}
            maps += [{"title": f"{title}, seed {member.seed}", "values": values[:size].view(grid).tolist()} for title, values in shown.items()]
    if maps:
        disk.replace_file(folder / "heatmaps.json", json.dumps(maps).encode())
