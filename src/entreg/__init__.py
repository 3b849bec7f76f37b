"""Entropy regularisation for any training loop: measure entropy exactly, control it automatically, see when it goes wrong.

Every name is loaded when it is first used, so that `import entreg`, controllers and records need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from entreg import distributions, functional, reference, targets
    from entreg.bridge import Bridge
    from entreg.control import (
        PI,
        Band,
        Controller,
        GradientShare,
        Observed,
        Plateau,
        TargetEntropy,
        Thermostat,
        constant,
        cosine,
        exponential,
        linear,
        piecewise,
    )
    from entreg.diagnosis import diagnose
    from entreg.finding import Finding
    from entreg.functional.families import SHANNON, Family, min_entropy, renyi, tsallis
    from entreg.linting import lint
    from entreg.policy import load
    from entreg.record import Recorder
    from entreg.regularizer import EntropyRegularizer, Term
else:
    _HOMES = {
        "": ("distributions", "functional", "reference", "targets"),
        "bridge": ("Bridge",),
        "control": (
            *("Controller", "Observed", "constant", "cosine", "exponential", "linear", "piecewise"),
            *("Band", "GradientShare", "PI", "Plateau", "TargetEntropy", "Thermostat"),
        ),
        "diagnosis": ("diagnose",),
        "finding": ("Finding",),
        "functional.families": ("SHANNON", "Family", "min_entropy", "renyi", "tsallis"),
        "linting": ("lint",),
        "policy": ("load",),
        "record": ("Recorder",),
        "regularizer": ("EntropyRegularizer", "Term"),
    }
    _HOME = {name: home for home, names in _HOMES.items() for name in names}

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOME[name]
        value = getattr(import_module(f"{__name__}.{home}"), name) if home else import_module(f"{__name__}.{name}")
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *_HOME})


__all__ = [
    "PI",
    "SHANNON",
    "Band",
    "Bridge",
    "Controller",
    "EntropyRegularizer",
    "Family",
    "Finding",
    "GradientShare",
    "Observed",
    "Plateau",
    "Recorder",
    "TargetEntropy",
    "Term",
    "Thermostat",
    "__version__",
    "constant",
    "cosine",
    "diagnose",
    "distributions",
    "exponential",
    "functional",
    "linear",
    "lint",
    "load",
    "min_entropy",
    "piecewise",
    "reference",
    "renyi",
    "targets",
    "tsallis",
]
