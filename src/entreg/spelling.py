"""Text <-> controllers, targets and families: the Python spelling, read with `ast` against the public names. Nothing is ever executed.

    text   :=  number | name | name(argument, ..., name=argument)      argument := text | (argument, ...) | [argument, ...] | 'string' | None

A bare number is `constant`. Torch is loaded for families only.
"""

from __future__ import annotations

import ast
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from entreg import control, targets
from entreg.control import Controller, as_controller, constant

if TYPE_CHECKING:
    from entreg.functional.families import Family

LIMIT = 200  # characters: what is longer is no spelling but an accident, or an attack on the parser
_NAMES = sorted(control.__all__, key=str.swapcase)  # schedules first
CONTROLLERS: dict[str, Any] = {name: getattr(control, name) for name in _NAMES if is_dataclass(getattr(control, name))}
TARGETS: dict[str, Any] = {name: getattr(targets, name) for name in targets.__all__ if is_dataclass(getattr(targets, name))}


def parse_controller(text: str) -> Controller[Any]:
    """The controller that the text spells; ValueError with the legal names or arguments for anything else.

    >>> parse_controller("0.01")
    constant(value=0.01)
    >>> parse_controller("TargetEntropy(fraction_of_max(0.5))").target
    fraction_of_max(f=0.5)
    """
    legal = f"a number, {_menu(CONTROLLERS)}; as a target also {_menu(TARGETS)}"
    value = _read(text, {**CONTROLLERS, **TARGETS}, {}, legal)
    if isinstance(value, (int, float)) or type(value) in CONTROLLERS.values():
        return as_controller(value)
    raise ValueError(f"{text!r} is no controller; legal: {legal}")


def parse_family(text: str) -> Family:
    """The entropy family that the text spells: shannon, renyi(2), tsallis(1.5), min_entropy; ValueError for anything else.

    >>> parse_family("renyi(2)").order
    2.0
    """
    from entreg.functional import families

    plain = {"shannon": families.SHANNON, "SHANNON": families.SHANNON, "min_entropy": families.min_entropy}
    legal = "shannon, renyi(order), tsallis(order), min_entropy"
    value = _read(text, {"renyi": _by_order(families.renyi), "tsallis": _by_order(families.tsallis)}, plain, legal)
    if not isinstance(value, families.Family):
        raise ValueError(f"{text!r} is no entropy family; legal: {legal}")
    return value


def spell(value: Any) -> str:
    """The public spelling of a controller, target or family: `parse_controller(spell(c)) == c`, `parse_family(spell(f)) == f`.

    >>> spell(parse_controller("linear(1e-2, 0)")), spell(parse_controller("Plateau(0.01, 10, 0.1)"))
    ('linear(0.01, 0.0)', 'Plateau(0.01, 10, factor=0.1)')
    """
    if type(value) is tuple:
        return f"({', '.join(map(spell, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, tuple):  # a Family, told from a plain tuple without loading torch
        name, order = value[:2]
        return str(name) if name in ("shannon", "min_entropy") else f"{name}({repr(order).removesuffix('.0')})"
    if isinstance(value, constant) and isinstance(value.value, float):
        return repr(value.value)
    if not is_dataclass(value):
        return repr(value)
    arguments = []
    for field in fields(value):
        item = getattr(value, field.name)
        if field.default is MISSING:
            arguments.append(spell(item))
        elif item != field.default:
            arguments.append(f"{field.name}={spell(item)}")
    return f"{type(value).__name__}({', '.join(arguments)})"


def _by_order(maker: Callable[[float], Family]) -> Callable[[float], Family]:
    def make(order: float) -> Family:
        if not isinstance(order, (int, float)):
            raise ValueError(f"order={order!r}; legal: a number >= 0")
        return maker(order)

    return make


def _usage(name: str, maker: Callable[..., Any]) -> str:
    """The signature without annotations: `linear(start, end, steps=None)`."""
    parameters = inspect.signature(maker).parameters.values()
    return f"{name}({', '.join(p.name if p.default is p.empty else f'{p.name}={p.default!r}' for p in parameters)})"


def _menu(makers: Mapping[str, Callable[..., Any]]) -> str:
    return ", ".join(_usage(name, maker) for name, maker in makers.items())


def _read(text: str, makers: Mapping[str, Callable[..., Any]], plain: Mapping[str, Any], legal: str) -> Any:
    """The value that the text spells, from `makers` to be called and `plain` names."""
    if not isinstance(text, str) or len(text) > LIMIT:
        raise ValueError(f"{str(text)[:40]!r}...; legal: at most {LIMIT} characters: {legal}")
    try:
        return _value(_tree(text), makers, {"inf": math.inf, **plain}, legal)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} cannot be read; legal: {legal}") from error


def _tree(text: str) -> ast.AST:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the parser warns on stderr about 1if and such, and goes on
        try:
            return ast.parse(text.strip(), mode="eval").body
        except (ValueError, Warning) as error:  # null bytes, lone surrogates
            raise SyntaxError from error


def _value(node: ast.AST, makers: Mapping[str, Callable[..., Any]], plain: Mapping[str, Any], legal: str) -> Any:
    match node:
        case ast.Constant(value=value) if value is None or type(value) in (int, float, str):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if not isinstance(value, bool):
            return -value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item, makers, plain, legal) for item in items)
        case ast.Name(id=name) if name in plain:
            return plain[name]
        case ast.Name(id=name) if name in makers:
            raise ValueError(f"{name} needs its arguments; legal: {_usage(name, makers[name])}")
        case ast.Call(func=ast.Name(id=name)) if name in makers:
            return _call(node, name, makers, plain, legal)
    what = ast.unparse(node.func if isinstance(node, ast.Call) else node)
    raise ValueError(f"{what!r} is unknown here; legal: {legal}")


def _call(node: ast.Call, name: str, makers: Mapping[str, Callable[..., Any]], plain: Mapping[str, Any], legal: str) -> Any:
    maker, usage = makers[name], _usage(name, makers[name])
    names = [keyword.arg for keyword in node.keywords]
    if None in names or len(set(names)) < len(names):
        raise ValueError(f"{name}: arguments {', '.join(map(ast.unparse, node.keywords))}; legal: {usage}, each once")
    arguments = [_value(argument, makers, plain, legal) for argument in node.args]
    named = {str(keyword.arg): _value(keyword.value, makers, plain, legal) for keyword in node.keywords}
    try:
        inspect.signature(maker).bind(*arguments, **named)
    except TypeError as error:
        raise ValueError(f"{name}: {error}; legal: {usage}") from error
    return maker(*arguments, **named)
