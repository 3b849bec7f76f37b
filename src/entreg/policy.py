"""The policy of a finished run: load it, watch it, export it."""

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from entreg import disk
from entreg.checkpoint import Checkpoints, load_best
from entreg.folder import find_run, read_config, warn
from entreg.rl import acting, episodes, evaluation, games, matches, naming, tabular
from entreg.rl.acting import Policy


def load(folder: str | Path, member: int | None = None) -> Policy:
    """The trained policy of a run folder: `load(folder).act(observation)`.

    `member` chooses one of a population; by default it is the best evaluated one of the first coefficient. Where nothing was evaluated yet,
    the newest checkpoint's.

    Raises: `ValueError` for what is no run folder, a run without a policy, and a member that does not exist.
    """
    folder = find_run(folder)
    page = read_config(folder)
    checkpoints = Checkpoints(folder / "checkpoint", warn)
    scores = checkpoints.best_scores()
    chosen = _chosen(page, scores, member)
    if chosen in scores:
        return _seeing(acting.from_state(load_best(folder / "checkpoint", chosen).state), page["config"])
    saved = checkpoints.load()
    if saved is None or "policy" not in saved.state:
        why = "it has no checkpoint yet" if saved is None else f"recipe {page['recipe']} trains none, or has none before the run is complete"
        raise ValueError(f"{folder} holds no policy: {why}")
    return _seeing(acting.from_checkpoint(saved.state, chosen), page["config"])


def _chosen(page: Mapping[str, Any], scores: Mapping[int, float], member: int | None) -> int:
    """The member that is asked for, by default the best of the first coefficient."""
    members = page.get("members") or [{}]
    if member is None:
        first = [index for index, one in enumerate(members) if (one.get("coef"), one.get("family")) == (members[0].get("coef"), members[0].get("family"))]
        return max(first, key=lambda index: scores.get(index, -np.inf))
    if not 0 <= member < len(members):
        raise ValueError(f"member must be between 0 and {len(members) - 1}, got {member}")
    return member


def _seeing(policy: Policy, config: Mapping[str, Any]) -> Policy:
    """The policy, able to read what its environment gives; that is only made when it has to be looked at. Boards have no such space."""
    env, kwargs = config["env"], config["env_kwargs"]
    if env == tabular.GRIDWORLD:
        policy.space = cache(lambda: spaces.Discrete(tabular.make(env, kwargs, 0).states))
    elif not games.is_board(env):
        policy.space = cache(lambda: naming.observation_space(env, kwargs))
    return policy


def play(folder: Path, *, count: int = 5, temperature: float = 0.0, member: int | None = None, seed: int = 0, save: Path | None = None) -> Iterator[str]:
    """Evaluate a run's policy and show an episode, in a window or as an animation file; yields lines to print."""
    if count < 1:
        raise ValueError(f"episodes must be at least 1, got {count}")
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature must be finite and not negative, got {temperature}")
    if save is not None:
        _check_animation(save)
    policy = load(folder, member)
    page = read_config(folder)
    config: Mapping[str, Any] = page["config"]
    printed = config["env"] == tabular.GRIDWORLD or games.is_board(config["env"])
    if printed and save is not None:
        raise ValueError(f"save is {str(save)!r}, and {config['env']} draws no pictures; legal is play without it, which prints it")
    if config["env"] == tabular.GRIDWORLD:
        chosen = _chosen(page, Checkpoints(folder / "checkpoint", warn).best_scores(), member)
        yield from tabular.told(policy, config, page["members"][chosen]["seed"], count, seed, temperature)
        return
    if printed:
        board = games.Board(config["env"], config["env_kwargs"])
        yield from matches.told(board, lambda states: policy.act_all(*evaluation.views(board, states), temperature=temperature), count, seed)
        return
    results = episodes.evaluate(
        config["env"],
        lambda observation, mask: policy.act_all(observation, mask, temperature=temperature),
        count,
        seed,
        env_kwargs=config["env_kwargs"],
    )
    for number, (total, length) in enumerate(results, 1):
        yield f"episode {number}: return {total:g} in {length} steps"
    returns = np.array([total for total, _ in results])
    yield f"return {returns.mean():.4g} +- {returns.std():.3g} over {count} episodes"
    if save is None and _has_screen():
        yield acting.show(policy, config["env"], config["env_kwargs"], seed=seed, temperature=temperature)
    else:
        file = save if save is not None else folder / "play.gif"
        yield acting.film(policy, config["env"], config["env_kwargs"], file, seed=seed, temperature=temperature)


def _check_animation(file: Path) -> None:
    """Raise before anything is played when this file cannot become an animation."""
    if file.suffix not in (".gif", ".mp4"):
        raise ValueError(f"save is {str(file)!r}; legal are files that end in .gif or .mp4")
    if file.suffix == ".mp4" and not any(importlib.util.find_spec(module) for module in ("imageio_ffmpeg", "av")):
        raise ImportError("an .mp4 needs imageio-ffmpeg: pip install 'imageio[ffmpeg]'; a .gif does not")


def _has_screen() -> bool:
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Exported(nn.Module):
    """A policy as one graph: raw observations in; the policy's outputs and the most probable action out."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        for name, value in policy.network.parameters.member(0).items():
            self.register_buffer(name.replace(".", "_"), value)
        if policy.moments is not None:
            self.register_buffer("mean", torch.from_numpy(policy.moments.mean[0]).float())
            self.register_buffer("scale", torch.from_numpy(1 / np.sqrt(policy.moments.var[0] + 1e-8)).float())

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        if self.policy.moments is not None:
            observation = ((observation - self.get_buffer("mean")) * self.get_buffer("scale")).clamp(-10, 10)
        outputs = self.policy.network.actor(observation[None])[0]
        return outputs, acting.taken(self.policy.head.spec, self.policy.head.mode(outputs), torch.tensor)


def export(folder: Path, *, output: Path | None = None, member: int | None = None) -> str:
    """Write the policy as ONNX (`observation [B, *shape]` to `outputs` and `action`) and check it by running it; returns what was done.

    Raises: `ImportError` naming the extra without onnx; `ValueError` when the exported graph does not reproduce the policy.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch's exporter writes with
    except ImportError as error:
        raise ImportError(f"export needs {error.name}: pip install 'entreg[export]'") from None
    policy = load(folder, member)
    target = output if output is not None else folder / "policy.onnx"
    architecture = policy.network.architecture = policy.network.architecture._replace(precision="float32")  # onnxruntime has no bfloat16 convolution
    shape = (2, *architecture.observation)
    example = torch.randint(0, 256, shape, dtype=torch.uint8) if architecture.image else torch.randn(shape)
    batch = torch.cat([example, example.flip(0), example])[:5]
    expected, taken = (part.detach().numpy() for part in Exported(policy)(batch))  # before the tracer has put its own tensors in the network
    graph = _graph(Exported(policy).eval(), example)
    outputs, action = onnxruntime.InferenceSession(graph).run(None, {"observation": batch.numpy()})
    difference = float(np.abs(outputs - expected).max())
    if difference > 1e-4 * max(1.0, float(np.abs(outputs).max())) or action.shape != taken.shape or np.abs(action - taken).max() > 1e-3:
        raise ValueError(f"the exported graph differs from the policy by {difference:.2g}")
    disk.replace_file(target, graph)
    return f"{target}: observation {list(architecture.observation)} to outputs and action, checked with onnxruntime (largest difference {difference:.1g})"


def _graph(module: nn.Module, example: Tensor) -> bytes:
    """The module as ONNX. Torch's exporter warns of what it deprecates itself and of packages that are not needed here; the result is checked."""
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                input_names=["observation"],
                output_names=["outputs", "action"],
                dynamo=True,
                verbose=False,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())
