"""From the words after `entreg train` to a recipe's Config and the run's settings.

Flags stand over `--config FILE` (the `config.json` of a run, or a JSON object of settings), which stands over the recipe's defaults.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from entreg.folder import find_run, read_config
from entreg.run import KEPT, RunSettings


class Flags(NamedTuple):
    """What concerns neither the recipe nor the run."""

    recipe: str
    print_config: bool


def parse(words: Sequence[str], find: Callable[[str], Any]) -> tuple[Any, RunSettings, Flags]:
    """Config, run settings and the rest; `find` gives the module of a recipe by name.

    Raises: `ValueError` for what is wrong in a file; wrong flags end the process with status 2 after a message.
    """
    name = None if words[0].startswith("-") else words[0]
    rest = list(words if name is None else words[1:])
    resume, file = _value_of(rest, "--resume"), _value_of(rest, "--config")
    page: Mapping[str, Any] = {}
    if resume is not None and file is not None:
        raise ValueError(f"resume is {resume!r} beside config {file!r}; legal is one of the two: a resumed run goes by its own config.json")
    if resume is not None:
        folder = find_run(resume, Path(_value_of(rest, "--out") or "runs"), name)
        page = read_config(folder)
        name = str(page["recipe"])
    elif file is not None:
        page = _read(Path(file))
        name = name or page.get("recipe")
    if name is None:
        raise ValueError("train needs the name of a recipe, --resume RUN or --config FILE; `entreg recipes` lists the recipes")
    stored, stored_run = build(find(name).Config, page.get("config", page if "recipe" not in page else {})), _run_settings(page)
    config, settings, print_config = _tyro(name, stored, stored_run, rest)
    pairs = [(stored, config, field.name) for field in fields(config)] + [(stored_run, settings, kept) for kept in KEPT]
    if resume is not None and (changed := [one for old, new, one in pairs if getattr(old, one) != getattr(new, one)]):
        raise ValueError(f"resume: a resumed run keeps its settings, and {', '.join(changed)} would change; start a new run with --config {folder}/config.json")
    return config, settings, Flags(name, print_config)


def build(kind: type, values: Mapping[str, Any]) -> Any:
    """A `kind` dataclass from JSON values: lists become tuples; unknown names and values of another type are refused with the legal ones."""
    if not isinstance(values, Mapping):
        raise ValueError(f"config: {values!r:.80} is no JSON object of settings")
    names = {field.name for field in fields(kind)}
    if unknown := sorted(values.keys() - names):
        raise ValueError(f"config: unknown setting {', '.join(unknown)}; legal are {', '.join(sorted(names))}")
    hints, given = get_type_hints(kind), {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in given.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"config: {name} is {json.dumps(values[name])}; legal is {_spelled(hints[name])}")
    return kind(**given)


def task_of(config: Any) -> str:
    """What a recipe's config is about: its environment, its task, or else what stands first in it (the data)."""
    names = [field.name for field in fields(config)]
    return str(getattr(config, next((name for name in names if name in ("env", "task")), names[0])))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value (lists as tuples) is of this type; a whole number is a float too, a bool no number."""
    of, inside = get_origin(hint), get_args(hint)
    if of is Literal:
        return value in inside
    if of in (Union, UnionType):
        return any(_fits(value, one) for one in inside)
    if of is tuple:
        return isinstance(value, tuple) and all(_fits(item, inside[0]) for item in value)
    if isinstance(value, bool) and hint is not bool:
        return False
    return isinstance(value, (int, float) if hint is float else of or hint)


def _spelled(hint: Any) -> str:
    """A type as a message says it."""
    of, inside = get_origin(hint), get_args(hint)
    if of is Literal:
        return f"one of {', '.join(map(repr, inside))}"
    if of in (Union, UnionType):
        return " or ".join(map(_spelled, inside))
    return {tuple: "a list", Mapping: "an object", type(None): "null"}.get(of or hint, getattr(hint, "__name__", str(hint)))


def _run_settings(page: Mapping[str, Any]) -> RunSettings:
    stored: RunSettings = build(RunSettings, {name: value for name, value in page.get("run", {}).items() if name in (*KEPT, "checkpoint_every")})
    return stored


def _read(path: Path) -> Mapping[str, Any]:
    try:
        page = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"config: {path} cannot be read as JSON: {error}") from None
    if not isinstance(page, dict):
        raise ValueError(f"config: {path} must hold a JSON object, got {type(page).__name__}")
    return page


def _value_of(words: Sequence[str], flag: str) -> str | None:
    for index, word in enumerate(words):
        if word == flag and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(flag + "="):
            return word[len(flag) + 1 :]
    return None


def _tyro(name: str, config: Any, settings: RunSettings, words: Sequence[str]) -> tuple[Any, RunSettings, bool]:
    import tyro

    kind = type(config)

    @dataclass(frozen=True)
    class Arguments:
        config: kind  # type: ignore[valid-type]
        """What is trained, and how."""
        run: RunSettings
        """Where and how it runs."""
        config_file: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
        """Settings from a JSON file, such as the config.json of a run; flags stand over it."""
        print_config: bool = False
        """Print what would run as JSON and stop."""

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_json_argument)
    with registry:
        parsed = tyro.cli(
            tyro.conf.OmitArgPrefixes[Arguments],
            prog=f"entreg train {name}",
            description=(type(config).__doc__ or "").strip(),
            args=list(words),
            default=Arguments(config, settings),
        )
    appended = [field.name for field in fields(config) if _appends(kind, field.name)]
    given = {name: getattr(parsed.config, name)[len(getattr(config, name)) :] or getattr(config, name) for name in appended}  # tyro appends to the default
    return replace(parsed.config, **given), parsed.run, parsed.print_config


def _appends(kind: type, name: str) -> bool:
    import tyro

    hint = get_type_hints(kind, include_extras=True)[name]
    return get_origin(hint) is Annotated and tyro.conf.UseAppendAction in get_args(hint)


def _json_argument(info: Any) -> Any:
    """A mapping is one JSON object on the command line."""
    import tyro

    if get_origin(info.type) is not Mapping:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_object,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [json.dumps(dict(value))],
    )


def _object(words: Sequence[str]) -> dict[str, Any]:
    try:
        value = json.loads(words[0])
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError('expected a JSON object such as {"map_name": "8x8"}')
    return value
