"""One row a controller: adding a controller is a dataclass in control.py and a row here; the tests of controllers, targets and spelling run over all rows."""

from typing import Any, NamedTuple

from hypothesis import strategies as st

from entreg.control import PI, Band, GradientShare, Observed, Plateau, TargetEntropy, Thermostat, constant, cosine, exponential, linear, piecewise
from entreg.targets import action_dim, fraction_of_max, greedy_probability

KNOWN = {"steps": 50, "max_entropy": 1.0, "action_dim": 2, "lr": 0.03, "init_coef": 0.01}  # what the tests resolve open rows with


class Row(NamedTuple):
    """`open` is as a user writes it, `text` its spelling, `closed` what resolve(open, **KNOWN) gives; `strategy` draws others of its kind."""

    name: str
    open: Any
    text: str
    closed: Any
    strategy: st.SearchStrategy[Any]
    feedback: str | None = None  # the signal that a feedback rule reads
    bounds: tuple[float, float] | None = None


number = st.floats(-1e6, 1e6)
positive = st.floats(1e-12, 1e6)
count = st.integers(1, 10**6)
optional_count = st.none() | count
targets = st.builds(action_dim, number) | st.builds(fraction_of_max, st.floats(0, 1)) | st.builds(greedy_probability, st.floats(0.001, 0.999))
value = number | targets
bounds = st.tuples(number, number).map(sorted).filter(lambda pair: pair[0] < pair[1]).map(tuple)
positive_bounds = st.tuples(positive, positive).map(sorted).filter(lambda pair: pair[0] < pair[1]).map(tuple)

constants = st.builds(constant, value)
linears = st.builds(linear, value, value, optional_count)
exponentials = st.tuples(number, number).flatmap(lambda pair: st.builds(exponential, st.just(max(pair)), positive, st.just(min(pair))))
cosines = count.flatmap(lambda steps: st.builds(cosine, value, value, st.just(steps), st.integers(0, steps - 1))) | st.builds(
    cosine, value, value, warmup=count
)
points = st.lists(st.tuples(st.floats(0, 1e6), value), min_size=1, max_size=4, unique_by=lambda point: point[0]).map(
    lambda items: sorted(items, key=lambda point: point[0])
)
piecewises = st.builds(piecewise, points)
schedules = constants | linears | exponentials | cosines | piecewises
level = value | schedules

target_entropies = st.builds(TargetEntropy, level, st.none() | positive, form=st.sampled_from(["log", "exp"])) | positive_bounds.flatmap(
    lambda pair: st.builds(TargetEntropy, level, st.none() | positive, st.none() | st.floats(*pair), st.just(pair))
)
thermostats = bounds.flatmap(lambda pair: st.builds(Thermostat, level, positive, st.floats(*pair), st.just(pair)))
integrals = st.builds(PI, level, positive, positive, bounds)
bands = bounds.flatmap(lambda pair: st.builds(Band, schedules, level, positive, st.just(pair), st.none() | st.floats(*pair)))
shares = positive_bounds.flatmap(lambda pair: st.builds(GradientShare, st.floats(0.001, 0.999), positive, st.just(pair), st.none() | st.floats(*pair)))
plateaus = st.builds(Plateau, schedules | target_entropies, count, st.floats(0, 0.999))

half = fraction_of_max(0.5)
ROWS = [
    Row("constant", constant(0.01), "0.01", constant(0.01), constants),
    Row("linear", linear(0.01, 0), "linear(0.01, 0.0)", linear(0.01, 0, 50), linears),
    Row("exponential", exponential(0.1, 20, floor=0.01), "exponential(0.1, 20.0, floor=0.01)", exponential(0.1, 20, 0.01), exponentials),
    Row("cosine", cosine(0.1, 0, warmup=5), "cosine(0.1, 0.0, warmup=5)", cosine(0.1, 0, 50, 5), cosines),
    Row("piecewise", piecewise([(0, 0.1), (10, 0)]), "piecewise(((0.0, 0.1), (10.0, 0.0)))", piecewise(((0, 0.1), (10, 0))), piecewises),
    Row("target entropy", TargetEntropy(half), "TargetEntropy(fraction_of_max(0.5))", TargetEntropy(0.5, 0.03, 0.01), target_entropies, "entropy", (1e-8, 1e4)),
    Row(
        "target entropy, exp, scheduled",
        TargetEntropy(linear(fraction_of_max(0.9), half), 0.02, 0.01, (1e-4, 10), "exp"),
        "TargetEntropy(linear(fraction_of_max(0.9), fraction_of_max(0.5)), lr=0.02, init_coef=0.01, bounds=(0.0001, 10.0), form='exp')",
        TargetEntropy(linear(0.9, 0.5, 50), 0.02, 0.01, (1e-4, 10), "exp"),
        target_entropies,
        "entropy",
        (1e-4, 10),
    ),
    Row("thermostat", Thermostat(half, 0.01), "Thermostat(fraction_of_max(0.5), 0.01)", Thermostat(0.5, 0.01), thermostats, "entropy", (0, 1)),
    Row("PI", PI(half, 0.2, 0.02, (0, 2)), "PI(fraction_of_max(0.5), 0.2, 0.02, (0.0, 2.0))", PI(0.5, 0.2, 0.02, (0, 2)), integrals, "entropy", (0, 2)),
    Row("PI, two-sided", PI(0.5, 0.2, 0.02, (-2, 2)), "PI(0.5, 0.2, 0.02, (-2.0, 2.0))", PI(0.5, 0.2, 0.02, (-2, 2)), integrals, "entropy", (-2, 2)),
    Row("band", Band(0.4, half, bounds=(0, 2)), "Band(0.4, fraction_of_max(0.5), bounds=(0.0, 2.0))", Band(0.4, 0.5, 1e-3, (0, 2)), bands, "entropy", (0, 2)),
    Row("gradient share", GradientShare(0.2), "GradientShare(0.2)", GradientShare(0.2), shares, "grad_share", (1e-8, 1e4)),
    Row("plateau", Plateau(linear(0.1, 0), 3), "Plateau(linear(0.1, 0.0), 3)", Plateau(linear(0.1, 0, 50), 3), plateaus, "reward", (0, 0.1)),
    Row("plateau of a target", Plateau(TargetEntropy(half), 4, 0.1), "Plateau(TargetEntropy(fraction_of_max(0.5)), 4, factor=0.1)",
        Plateau(TargetEntropy(0.5, 0.03, 0.01), 4, 0.1), plateaus, "reward", (0, 1e4)),
]  # fmt: skip


def seen(entropy: float = 0.3, sense: int = 1, **signals: float) -> Observed:
    """Everything that any row reads."""
    return Observed(entropy, sense, **{"reward": 1.0, "grad_share": 0.1, **signals})
