"""From an environment's name to an environment, with an answer a person can use where that fails.

Names are Gymnasium ids, or `module:Id` for ids that importing `module` registers.
"""

import contextlib
import difflib
import importlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, registry
from gymnasium.error import DependencyNotInstalled

from entreg.rl import atari

# what ids begin with, the module whose import registers them
PLUGINS = (("ALE/", "ale_py"), ("MiniGrid-", "minigrid"), ("BabyAI-", "minigrid"), ("DeepSea-", "entreg.rl.deepsea"))
EXTRAS = {"mujoco": "rl", "box2d": "rl", "ale_py": "rl", "minigrid": "rl", "pygame": "run"}


def find(name: str) -> tuple[EnvSpec, tuple[str, ...]]:
    """The registered specification of an environment, and remarks on its name for the user.

    Raises:
        ValueError: no such id, naming the closest ones; or a module that cannot be imported.
        ImportError: the id belongs to a package that is not installed, naming the extra that brings it.

    >>> find("CartPole-v1")[0].max_episode_steps
    500
    >>> find("CartPole")[1]
    ('CartPole stands for CartPole-v1, its latest version',)
    >>> find("Acrobot-v9")
    Traceback (most recent call last):
    ValueError: env 'Acrobot-v9' is not registered in Gymnasium; close: Acrobot-v1
    """
    module, _, identifier = name.rpartition(":")
    if module:
        _import(module, name)
    for prefix, plugin in PLUGINS:
        if identifier.startswith(prefix):
            _import_plugin(plugin, name)
    versions = _versions(identifier)
    latest = versions[-1] if versions else identifier
    if identifier in registry:
        return registry[identifier], () if identifier == latest else (f"{identifier} is out of date, the current version is {latest}",)
    if versions and re.search(r"-v\d+$", identifier) is None:
        return registry[latest], (f"{identifier} stands for {latest}, its latest version",)
    raise ValueError(f"env {name!r} is not registered in Gymnasium; {_advice(identifier, versions)}")


def _import(module: str, name: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"env {name!r}: the module {module!r} cannot be imported from here ({error}); legal is MODULE:ID or a registered ID") from error


def _import_plugin(plugin: str, name: str) -> None:
    try:
        module = importlib.import_module(plugin)
    except ImportError as error:
        raise missing(name, plugin) from error
    gymnasium.register_envs(module)


def missing(name: str, module: str) -> ImportError:
    """The one line that says what to install for an environment."""
    extra = EXTRAS.get(module.lower())
    return ImportError(f"env {name!r} needs {module}, which is not installed: " + (f'pip install "entreg[{extra}]"' if extra else f"pip install {module}"))


def _versions(identifier: str) -> list[str]:
    """The registered ids of the same environment, oldest version first."""
    base = re.sub(r"-v\d+$", "", identifier)
    found = [(int(match[1]), key) for key in registry if (match := re.fullmatch(re.escape(base) + r"-v(\d+)", key))]
    return [key for _, key in sorted(found)]


def _advice(identifier: str, versions: Sequence[str]) -> str:
    if versions:
        return f"close: {', '.join(reversed(versions))}"
    lower = {key.lower(): key for key in registry}
    near = difflib.get_close_matches(identifier.lower(), lower, n=3)
    return f"close: {', '.join(lower[key] for key in near)}" if near else "an id of your own is written module:Id, where importing the module registers it"


def build(spec: EnvSpec, kwargs: Mapping[str, Any]) -> tuple[gymnasium.Env[Any, Any], tuple[str, ...]]:
    """Make one environment without Gymnasium's checker; warnings of its making come back as sentences instead of going to stderr once an environment.

    Raises:
        ImportError: a package it needs is not installed. ValueError: an argument that it does not take, or cannot be made with.
    """
    if "mujoco" in str(spec.entry_point):  # it warns while it reads a model
        with contextlib.suppress(ImportError):
            importlib.import_module("mujoco")
            _no_log_file()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            env = atari.plain(spec, kwargs) if atari.is_picture(spec, kwargs) else gymnasium.make(spec, disable_env_checker=True, **kwargs)
        except (DependencyNotInstalled, ImportError) as error:
            raise _not_installed(spec.id, error) from error
        except Exception as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is not None:
                raise ValueError(f"env_kwargs: {spec.id} takes no argument {unknown[1]!r}") from error
            if not kwargs and not isinstance(error, gymnasium.error.Error):
                raise  # the environment's own mistake
            told = " ".join(str(error).split())
            raise ValueError(f"env {spec.id} cannot be made{f' with env_kwargs {dict(kwargs)}' if kwargs else ''}: {type(error).__name__}: {told}") from error
    _no_log_file()
    return env, _remarks(caught)


def observation_space(name: str, kwargs: Mapping[str, Any]) -> gymnasium.Space[Any]:
    """What this environment's observations are; raises as `find` and `build` do."""
    return _spaces(name, kwargs)[0]


def action_space(name: str, kwargs: Mapping[str, Any]) -> gymnasium.Space[Any]:
    """What this environment's actions are; raises as `find` and `build` do."""
    return _spaces(name, kwargs)[1]


def _spaces(name: str, kwargs: Mapping[str, Any]) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
    env, _ = build(find(name)[0], kwargs)
    env.close()
    return env.observation_space, env.action_space


def _remarks(caught: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    """What a user should hear of the warnings: Gymnasium's own, and others unless they are for the developers of some package."""
    texts = [(re.sub(r"\x1b\[[0-9;]*m", "", str(warning.message)), warning.category) for warning in caught]
    internal = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
    heard = (text.removeprefix("WARN: ") for text, category in texts if text.startswith("WARN: ") or not issubclass(category, internal))
    return tuple(dict.fromkeys(heard))


def _not_installed(name: str, error: Exception) -> ImportError:
    cause = error if isinstance(error, ImportError) else error.__cause__
    module = (cause.name or "").partition(".")[0] if isinstance(cause, ModuleNotFoundError) else ""
    return missing(name, module) if module else ImportError(f"env {name!r} cannot be made: {error}")


def _no_log_file() -> None:
    """MuJoCo appends its warnings to MUJOCO_LOG.TXT in the working directory unless somebody takes them."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is None or mujoco.get_mju_user_warning() is not None:
        return
    said: set[str] = set()

    def say(text: Any) -> None:
        line = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        if line not in said:
            said.add(line)
            print(f"MuJoCo: {line}", file=sys.stderr)

    handler: Callable[[Any], None] = say
    mujoco.set_mju_user_warning(handler)
