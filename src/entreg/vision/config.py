"""Settings that recipes for image classifiers share, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from entreg import spelling
from entreg.collapse import Action
from entreg.several import Several
from entreg.vision.images import LEGAL

Sense = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class ClassifierConfig:
    """One study of image classifiers: every setting x seed is a member of one population."""

    data: str = "digits"
    """digits (bundled with scikit-learn), cifar10, cifar100, svhn, a folder of images (CLASS/*, or train/, test/ and unlabelled/), or a .npz file with
    images [N, H, W] or [N, H, W, C] and labels [N]."""
    folder: str | None = None
    """Where cifar10, cifar100 or svhn lie on this machine (parquet files, or what save_to_disk wrote), in place of the cache of `datasets`."""
    labels: int = 0
    """How many training images keep their label, evenly over classes; 0: all."""
    imbalance: float = 1.0
    """How much rarer the last class is than the first: class k keeps imbalance ** (-k / (classes - 1)) of its training images."""
    holdout: float = 0.3
    """Share of the labelled images that becomes the test part where the data has none."""
    network: Literal["mlp", "wrn"] = "mlp"
    """mlp: relu layers. wrn: a wide residual network."""
    hidden: tuple[int, ...] = (256,)
    """Widths of the hidden layers of mlp."""
    depth: int = 28
    """Depth of wrn: 10, 16, 22, 28, ..."""
    width: int = 2
    """Widening factor of wrn."""
    flip: Literal["auto", "yes", "no"] = "auto"
    """Whether weak augmentation mirrors images; auto: those in colour but for svhn."""
    steps: int = 1000
    """Gradient steps."""
    batch_size: int = 64
    """Labelled images of a step, at most all there are."""
    learning_rate: str = "cosine(0.03, 0)"
    """A number or a schedule over the run."""
    momentum: float = 0.9
    """Nesterov momentum of the gradient steps."""
    weight_decay: float = 0.0005
    """Of weights, not of biases and scales."""
    ema: float = 0.999
    """Decay of the averaged network that is evaluated; it begins lower, (1 + t) / (10 + t). 0: the network itself."""
    seeds: int = 1
    """Members a setting, with seeds --seed, --seed + 1, ..."""
    on_collapse: Action = "warn"
    """On collapse (fewer than half of the prior's classes, or predictions that stay undecided): off, warn, stop, or rescue by a target controller."""


@dataclass(frozen=True)
class SemiConfig(ClassifierConfig):
    """One study of semi-supervised classifiers: every conditional x sense x marginal x family x prior x seed is a member."""

    labels: int = 20
    """How many training images keep their label, evenly over classes; 0: all."""
    steps: int = 500
    """Gradient steps."""
    ratio: int = 7
    """Unlabelled images of a step for each labelled one."""
    unlabelled_coef: float = 1.0
    """Weight of the method's loss on unlabelled images."""
    conditional: Several[str] = ("0",)
    """Weight of the conditional entropy, of each prediction on unlabelled images: a number or a controller; several to compare."""
    sense: Several[Sense] = ("minimize",)
    """Whether the conditional entropy is to fall (minimize: confidence) or to grow (maximize)."""
    marginal: Several[str] = ("0",)
    """Weight of the marginal entropy, of the mean prediction on unlabelled images, which is maximised or drawn to the prior; several to compare."""
    family: Several[str] = ("shannon",)
    """Entropy family of both: shannon, renyi(order), tsallis(order) or min_entropy; several to compare."""
    prior: Several[str] = ("uniform",)
    """What the marginal is drawn to: uniform, labels (their shares), estimate (from predictions), or a text file with a probability a line."""
    marginal_momentum: float = 0.9
    """Of the running mean prediction; 0: that of the batch alone."""


def check(config: ClassifierConfig) -> None:
    """ValueError for the first setting that cannot be meant, naming it."""
    for name, least in {"labels": 0, "steps": 1, "batch_size": 1, "seeds": 1, "width": 1}.items():
        require(config, name, lambda value, least=least: value >= least, f"integers from {least}")  # type: ignore[misc]
    require(config, "imbalance", lambda value: value >= 1, "finite numbers from 1")
    require(config, "holdout", lambda value: 0 < value < 1, "numbers between 0 and 1")
    require(config, "weight_decay", lambda value: value >= 0, "finite numbers from 0")
    for name in ("momentum", "ema"):
        require(config, name, lambda value: 0 <= value < 1, "numbers from 0, below 1")
    one_of(config, "network", ("mlp", "wrn"))
    one_of(config, "flip", ("auto", "yes", "no"))
    one_of(config, "on_collapse", get_args(Action))
    if any(width < 1 for width in config.hidden):
        raise ValueError(f"hidden is {config.hidden}; legal are widths from 1")
    if not config.data:
        raise ValueError(f"data is ''; legal are {LEGAL}")


def check_semi(config: SemiConfig) -> None:
    """As `check`, for semi-supervised recipes."""
    check(config)
    require(config, "ratio", lambda value: value >= 1, "integers from 1")
    require(config, "unlabelled_coef", lambda value: value >= 0, "finite numbers from 0")
    require(config, "marginal_momentum", lambda value: 0 <= value < 1, "numbers from 0, below 1")
    for name in ("conditional", "sense", "marginal", "family", "prior"):
        several(config, name)
    for sense in config.sense:
        if sense not in get_args(Sense):
            raise ValueError(f"sense is {sense!r}; legal are {' and '.join(get_args(Sense))}")
    for text in (*config.conditional, *config.marginal):
        spelling.parse_controller(text)
    for text in config.family:
        spelling.parse_family(text)


def require(config: Any, name: str, legal: Callable[[float], bool], words: str) -> None:
    """ValueError unless the setting `name` is finite and `legal`, which is what `words` say."""
    value = getattr(config, name)
    if not (math.isfinite(value) and legal(value)):
        raise ValueError(f"{name} is {value}; legal are {words}")


def one_of(config: Any, name: str, legal: tuple[str, ...]) -> None:
    """ValueError unless the setting `name` is one of these."""
    if getattr(config, name) not in legal:
        raise ValueError(f"{name} is {getattr(config, name)!r}; legal are {', '.join(legal)}")


def several(config: Any, name: str) -> None:
    """ValueError unless the setting `name` is a tuple with something in it."""
    if isinstance(getattr(config, name), str) or not getattr(config, name):
        raise ValueError(f"{name} is {getattr(config, name)!r}; legal is a tuple of one or more texts")
