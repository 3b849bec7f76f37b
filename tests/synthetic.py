"""Run folders that look like real ones, made in milliseconds: CartPole-like learning curves under several coefficients and seeds."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_run(folder: Path, config: Any = None, records: Sequence[Any] = ()) -> Path:
    """A run folder with this config.json and these records; text stands as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "records.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def config_of(coefs: Sequence[str], seeds: int, *, families: Sequence[str] = ("shannon",), steps: int = 100_000) -> dict[str, Any]:
    """The config.json of a PPO run: coefficients x families x seeds."""
    settings = [(coef, family, seed) for coef in coefs for family in families for seed in range(seeds)]
    return {
        "recipe": "ppo",
        "task": "CartPole-v1",
        "config": {"env": "CartPole-v1", "coef": list(coefs), "family": list(families), "seeds": seeds, "steps": steps, "hidden": [64, 64], "env_kwargs": {}},
        "run": {"seed": 0, "threads": 1, "out": "runs", "eval_every": 10_000},
        "members": [
            {"member": index, "coef": coef, "family": family, "seed": seed, "controller": f"resolved {coef}"}
            for index, (coef, family, seed) in enumerate(settings)
        ],
        "command": "entreg train ppo --env CartPole-v1 " + " ".join(f"--coef '{coef}'" for coef in coefs) + f" --seeds {seeds} --eval-every 10000",
        "versions": {"entreg": "0.1.0", "python": "3.12.3", "torch": "2.13.0", "numpy": "2.4.0", "gymnasium": "1.4.0", "cores": 2, "platform": "Linux-x86_64"},
        "created": "2025-11-20T14:03:11+01:00",
    }


def records_of(config: dict[str, Any], *, lines: int = 200, evaluations: int = 10, choices: int = 2, target: float | None = None) -> list[dict[str, Any]]:
    """Training and evaluation records for every member of `config_of`: a coefficient of 0 learns more slowly and loses its entropy."""
    steps, found = config["config"]["steps"], []
    curves = [_member(member, lines, steps, choices, target) for member in config["members"]]
    for line in range(lines):
        found += [curve[line] for curve in curves]
        if evaluations and (line + 1) % max(1, lines // evaluations) == 0:
            found += [_evaluation(curve[line]) for curve in curves]
    return found


def _member(member: dict[str, Any], lines: int, steps: int, choices: int, target: float | None) -> list[dict[str, Any]]:
    rng = np.random.default_rng([member["seed"], len(member["coef"]), len(member["family"])])
    plain = member["coef"] in ("0", "0.0")
    middle, top = rng.normal(0.5 if plain else 0.3, 0.07), 500 - rng.exponential(60 if plain else 8)
    noise = np.convolve(rng.normal(size=lines + 20), np.ones(20) / 20, "valid")[:lines]
    found = []
    for line in range(lines):
        t = (line + 1) / lines
        reached = 20 + (top - 20) / (1 + math.exp(-14 * (t - middle)))
        share = max(0.02 if plain else 0.18, 1.0 - (1.35 if plain else 0.85) * t + 0.08 * noise[line])
        entropy = min(share, 1.0) * math.log(choices)
        record = {
            "step": round(t * steps),
            "member": member["member"],
            "time": 1.7e9 + 58 * t,
            "return": float(np.clip(reached + 50 * noise[line], 9, 500)),
            "episode_length": float(np.clip(reached + 50 * noise[line], 9, 500)),
            "entropy": entropy,
            "entropy/max": entropy / math.log(choices),
            "entropy/perplexity": math.exp(entropy),
            "entropy/family": 0.9 * entropy,
            "coef": 0.0 if plain else 0.01 * (1 - t),
            "grad_share": 0.0 if plain else abs(0.2 * (1 - t) + 0.05 * noise[line]),
            "kl": abs(0.006 * (1 - t) + 0.004 * noise[line]),
            "clip_fraction": abs(0.1 + 0.05 * noise[line]),
            "loss/policy": -0.01 + 0.01 * noise[line],
            "loss/value": 40 * math.exp(-3 * t) + noise[line] ** 2,
            "explained_variance": min(1.0, t * 1.2 + 0.1 * noise[line]),
            "learning_rate": 0.001 * (1 - t),
            "steps_per_second": 61_000 + 4000 * noise[line],
        }
        found.append(record if target is None else record | {"entropy/target": target})
    return found


def _evaluation(record: dict[str, Any]) -> dict[str, Any]:
    value = min(500.0, record["return"] * 1.08)
    spread = max(0.0, (500 - value) / 6)
    return {"step": record["step"], "member": record["member"], "eval/return": value, "eval/return_std": spread, "eval/length": value, "eval/episodes": 10}


def film(path: Path) -> None:
    """A small animated GIF of a pole that sways."""
    import imageio.v3 as imageio

    frames = []
    for t in range(24):
        frame = np.full((200, 300, 3), 255, np.uint8)
        frame[140:160, 120:180] = 30
        for height in range(90):
            x = int(150 + 0.4 * height * math.sin(2 * math.pi * t / 24))
            frame[139 - height, x - 3 : x + 3] = (202, 152, 101)
        frames.append(frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, np.stack(frames), duration=60, loop=0)
