"""Curves as plotly figures (plain dicts).

A figure draws, for each group of members, the mean over its seeds, its 95 % bootstrap interval as a band, and the members faintly; a group has one
colour everywhere. Traces carry their group as `legendgroup`, and the page's own legend shows and hides by it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from entreg import statistics
from entreg.report.data import MAXIMUM, Array, Curve, Data, Group, curve

PALETTE = (
    "#3b82f6",
    "#e8710a",
    "#9b5de5",
    "#12a150",
    "#d6409f",
    "#0e9aa7",
    "#a8763e",
    "#e5484d",
    "#7c9a0e",
    "#5b6ee1",
)  # 3:1 and more on white and on near-black
DASHES = ("solid", "dot", "dashdot", "longdashdot")
GREY = "#808a97"  # the coefficient-0 twin, and lines that belong to nobody
FAINT_POINTS = 6000  # of all members of a figure together
RESAMPLES, BAND_POINTS = 1000, 120  # a band is smoother than its curve, and the dearest part of a report
RUN_WIDE = frozenset({"steps_per_second"})  # one number of the whole run, which every member's record repeats
HIDDEN = frozenset({"entropy/max", "entropy/target", "eval/return_std", "eval/episodes", MAXIMUM})  # shown inside other figures, or no curve


class Metric(NamedTuple):
    """How a metric is shown: heading, axis with its unit, a sentence on what it is."""

    name: str
    title: str
    axis: str
    caption: str = ""


MAIN = (
    Metric("return", "Return", "return", "Mean of the last 100 training episodes."),
    Metric("eval/return", "Evaluation return", "return", "Mean return of evaluated episodes."),
    Metric("accuracy", "Accuracy", "accuracy"),
    Metric("eval/accuracy", "Evaluation accuracy", "accuracy"),
    Metric("entropy", "Entropy", "entropy (nats)", "Shannon entropy of the predicted distribution, mean over inputs."),
    Metric("entropy/family", "Regularised entropy", "entropy of the family", "What the bonus raises and the controller sees."),
    Metric(
        "entropy/perplexity",
        "Perplexity",
        "exp(entropy)",
        "As uncertain as among that many equally likely choices; of continuous actions, as a uniform choice in a region of that size.",
    ),
    Metric("coef", "Coefficient", "coef", "The weight of the entropy bonus; where action values are learned, the temperature."),
    Metric("kl", "KL to the previous policy", "KL (nats)", "How far an update moved the policy."),
    Metric(
        "grad_share", "Bonus's share of the gradient", "share", "Norm of the bonus's gradient over the sum of its norm and the task's, at the policy's outputs."
    ),
)
MORE = {
    "episode_length": ("Episode length", "steps"),
    "eval/length": ("Length of evaluated episodes", "steps"),
    "clip_fraction": ("Clipped share of samples", "share"),
    "explained_variance": ("Explained variance of the value", "share"),
    "learning_rate": ("Learning rate", "learning rate"),
    "entropy/infeasible": ("States that cannot reach the target entropy", "share of a batch"),
    "q": ("Action value", "expected return"),
    "epsilon": ("Random actions (epsilon)", "probability"),
    "sigma": ("Learned noise of the weights", "mean sigma"),
    "intrinsic/reward": ("Intrinsic reward before scaling", "reward a step"),
    "intrinsic/share": ("Intrinsic share of the reward", "share"),
    "intrinsic_coef": ("Weight of the intrinsic reward", "coef"),
    "clip": ("Clip range", "clip"),
    "loss/policy": ("Policy loss", "loss"),
    "loss/value": ("Value loss", "loss"),
    "feature_gap": ("Feature gap, L1", "discounted counts"),
    "log_likelihood": ("Log-likelihood of the demonstrations", "nats an action"),
    "eval/value_difference": ("Value difference to the optimal policy", "share of the uniform policy's"),
    "worst_recall": ("Recall of the worst class", "recall"),
    "balanced_accuracy": ("Mean recall of the classes", "recall"),
    "calibration_error": ("Expected calibration error", "error"),
    "best_temperature": ("Best temperature", "temperature"),
    "nll": ("Negative log-likelihood of the test images", "nats"),
    "nll/tempered": ("The same at the best temperature", "nats"),
    "pseudo/accuracy": ("Pseudo-labels that are right", "share of those used"),
    "pseudo/use": ("Pseudo-labels that are used", "share of unlabelled images"),
    "conditional": ("Conditional entropy, of each prediction", "nats"),
    "marginal": ("Marginal entropy", "nats"),
    "marginal/perplexity": ("Effective classes", "perplexity of the marginal"),
    "marginal/share": ("Effective classes beside the prior's", "share"),
    "marginal/kl": ("Divergence of the marginal from the prior", "nats"),
    "mutual_information": ("Mutual information of input and class", "nats"),
    "coef/conditional": ("Coefficient of the conditional entropy", "coef"),
    "coef/marginal": ("Coefficient of the marginal entropy", "coef"),
    "loss/labelled": ("Loss on labelled images", "nats"),
    "loss/unlabelled": ("Loss on unlabelled images", "loss"),
    "nmi": ("Normalised mutual information of clusters and classes", "nmi"),
    "ari": ("Adjusted Rand index", "ari"),
    "clusters": ("Effective clusters", "perplexity of the shares"),
    "modes": ("Modes covered", "modes"),
    "modes/perplexity": ("Effective modes", "perplexity of the shares"),
    "high_quality": ("Samples of high quality", "share"),
    "loss/generator": ("Generator loss", "loss"),
    "loss/critic": ("Critic loss", "loss"),
    "bits_per_character": ("Bits per character", "bits"),
    "bits_per_character/temperature_1": ("Bits per character at temperature 1", "bits"),
    "greedy/repetition": ("Repeated 4-grams of greedy decoding", "share"),
    "answers": ("Right answers kept", "perplexity of the right answers"),
    "coverage": ("Different right answers in 16 draws", "answers"),
    "objective": ("Objective", "reward"),
    "search/entropy": ("Entropy of the search's policy", "nats"),
    "eval/won": ("Evaluation games won", "share"),
    "eval/drawn": ("Evaluation games drawn", "share"),
    "eval/lost": ("Evaluation games lost", "share"),
    "eval/random": ("Against a random player", "mean result"),
    "steps_per_second": ("Speed, all members together", "steps / s"),
}
LANGUAGE = ("sft", "grpo", "rlhf", "dpo")
STEPS = {"alphazero": "moves of a member", "maxent_irl": "gradient steps", "decode": "place in the list of temperatures"}  # where no environment is stepped
STEPS |= dict.fromkeys(LANGUAGE, "optimizer steps")
OF_LANGUAGE = {  # what these words say of a language model
    "return": Metric("return", "Reward", "reward", "Mean reward of the answers of the step."),
    "kl": Metric("kl", "KL to the starting model", "KL (nats)", "How far the policy is from the model that it began as."),
    "entropy": Metric("entropy", "Entropy", "entropy (nats a token)", "Shannon entropy of the next token, mean over tokens."),
    "length": Metric("length", "Length of answers", "tokens"),
    "grad_share/kl": Metric("grad_share/kl", "KL's share of the gradient", "share"),
    "groups_without_signal": Metric("groups_without_signal", "Groups whose answers are worth the same", "share"),
    "eval/distinct": Metric("eval/distinct", "Evaluation: different right answers", "answers a prompt"),
    "eval/distinct/max": Metric("eval/distinct/max", "Evaluation: different right answers, of what samples could show", "share"),
    "eval/entropy": Metric("eval/entropy", "Evaluation: entropy", "nats a token"),
}


class Style(NamedTuple):
    """How a group is drawn; `crowd` scales the opacity of its band and members."""

    colour: str
    dash: str = "solid"
    crowd: float = 1.0

    def pale(self, opacity: float) -> str:
        """The colour, see-through."""
        red, green, blue = (int(self.colour[start : start + 2], 16) for start in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity * self.crowd:.2f})"


class Figure(NamedTuple):
    """One plot: what stands above and below it, and the plotly figure."""

    metric: Metric
    caption: str
    plot: dict[str, Any]


def colours(groups: Sequence[Group]) -> list[str]:
    """One colour a group: grey for a coefficient of 0 beside others, the palette in order for the rest."""
    several = any(not group.baseline for group in groups)
    free = iter(range(len(groups)))
    return [GREY if group.baseline and several else PALETTE[next(free) % len(PALETTE)] for group in groups]


def styles(groups: Sequence[Group]) -> list[Style]:
    """The styles of groups: a colour used again is dotted, and where there are many, bands and members are paler."""
    chosen, crowd = colours(groups), 1.0 if len(groups) <= 3 else 0.55
    return [Style(colour, DASHES[chosen[:index].count(colour) % len(DASHES)], crowd) for index, colour in enumerate(chosen)]


def figures(data: Data) -> tuple[list[Figure], list[Figure]]:
    """The figures of the metrics that were measured more than once: the main ones, and all others by name."""
    shown = {name for name in visible(data) if not measured_once(data, name)}
    main = [metric for metric in MAIN if metric.name in shown]
    more = [metric_of(name) for name in shown - {metric.name for metric in MAIN}]
    return [figure(data, metric) for metric in main], [figure(data, metric) for metric in sorted(more, key=lambda one: one.name)]


def metric_of(name: str) -> Metric:
    """How a metric is shown; one that is not known here stands under its own name."""
    return next((metric for metric in MAIN if metric.name == name), None) or Metric(name, *MORE.get(name, (name, name)))


def visible(data: Data) -> list[str]:
    """The metrics that stand for themselves."""
    hidden = HIDDEN | ({"entropy/family"} if _shannon_only(data) else set()) | ({"coef"} if _no_bonus(data) else set())
    return [name for name in data.series if name not in hidden]


def measured_once(data: Data, name: str) -> bool:
    """Whether a metric has values at a single step: numbers for a table, not a curve."""
    return len({float(end) for steps, _ in data.series[name].values() for end in (steps[0], steps[-1])}) == 1


def _shannon_only(data: Data) -> bool:
    """Whether the regularised entropy is the entropy itself, up to the moment it is taken at."""
    return "entropy" in data.series and all(group.settings.get("family", "shannon") == "shannon" for group in data.groups)


def _no_bonus(data: Data) -> bool:
    """Whether every coefficient is 0 throughout."""
    return not any(values.any() for _, values in data.series.get("coef", {}).values())


def _target_stands_with(data: Data) -> str:
    """The metric that targets are targets of."""
    return "entropy" if _shannon_only(data) else "entropy/family"


def figure(data: Data, metric: Metric) -> Figure:
    """The figure of one metric."""
    metric = OF_LANGUAGE.get(metric.name, metric) if data.config.get("recipe") in LANGUAGE else metric
    whole = curve(data.series[metric.name], points=400 if len(data.groups) <= 3 else 200)
    traces: list[dict[str, Any]] = []
    groups = list(zip(data.groups, styles(data.groups), strict=True))
    if metric.name in RUN_WIDE:
        whole, groups = Curve(whole.steps, whole.values[:1], whole.members[:1]), [(Group("", {}, whole.members[:1], False), Style(GREY))]
    for index, (group, style) in enumerate(groups):
        rows = whole.of(group)
        if rows.members:
            traces += _traces(rows, str(index), group.name or "mean", style, faint=max(2, FAINT_POINTS // len(whole.members)))
    layout = _layout(metric, whole, _steps(data))
    if metric.name == _target_stands_with(data):
        traces += _targets(data)
    if metric.name == "entropy":
        _draw_maximum(data, traces, layout)
    if metric.name == "eval/return":
        _draw_spread(data, traces)
    return Figure(metric, _caption(data, metric), {"data": traces, "layout": layout})


def _steps(data: Data) -> str:
    """What a step is."""
    known = STEPS.get(str(data.config.get("recipe")))
    return known or ("environment steps of a member" if "return" in data.series or "eval/return" in data.series else "steps")


def _caption(data: Data, metric: Metric) -> str:
    alone = all(len(group.members) == 1 for group in data.groups)
    bars = " Bars: standard deviation over its episodes." if metric.name == "eval/return" and alone and "eval/return_std" in data.series else ""
    dashed = " Dashed in a setting's colour: its target." if metric.name == _target_stands_with(data) and "entropy/target" in data.series else ""
    return (metric.caption + bars + dashed).strip()


def _traces(rows: Curve, key: str, name: str, style: Style, *, faint: int) -> list[dict[str, Any]]:
    """Band, faint members and mean of one group; a group of one member is its curve."""
    common = np.isfinite(rows.values).all(axis=0)
    shared = {"type": "scatter", "legendgroup": key, "showlegend": False}
    quiet = shared | {"mode": "lines", "hoverinfo": "skip"}
    few = "lines+markers" if len(rows.steps) <= 25 else "lines"
    main = shared | {"mode": few, "name": html.escape(name), "hovertemplate": "%{y:.4~g}"}
    main |= {"line": {"color": style.colour, "width": 2, "dash": style.dash}, "marker": {"size": 5}}
    if len(rows.members) == 1:
        return [main | {"x": plain(rows.steps[common]), "y": plain(rows.values[0, common])}]
    stride = math.ceil(len(rows.steps) / faint)
    members = quiet | _strung(rows, stride) | {"line": {"color": style.pale(0.28), "width": 1}}
    if not common.any():
        return [members | {"line": {"color": style.pale(0.7), "width": 1}}]
    steps, values = rows.steps[common], rows.values[:, common]
    if np.ptp(values, axis=0).max() == 0:  # a schedule that all seeds share
        return [main | {"x": plain(steps), "y": plain(values[0])}]
    some = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), BAND_POINTS)).astype(int))
    interval = statistics.mean_interval(values[:, some], resamples=RESAMPLES)
    outline = {"x": plain(np.concatenate([steps[some], steps[some][::-1]])), "y": plain(np.concatenate([interval.high, interval.low[::-1]]))}
    band = quiet | outline | {"fill": "toself", "fillcolor": style.pale(0.16), "line": {"width": 0}}
    return [band, members, main | {"x": plain(steps), "y": plain(values.mean(axis=0))}]


def _strung(rows: Curve, stride: int) -> dict[str, list[float | None]]:
    """All members in one trace, a gap between each and the next."""
    x: list[float | None] = []
    y: list[float | None] = []
    for row in rows.values:
        known = np.isfinite(row)
        x += [*plain(rows.steps[known][::stride]), None]
        y += [*plain(row[known][::stride]), None]
    return {"x": x, "y": y}


def plain(values: Array) -> list[float]:
    """Finite numbers for JSON: five digits, and integers without a point.

    >>> plain(np.array([0.123456789, 1234567.0, -0.0, 1e-320]))
    [0.12346, 1234567, 0, 0]
    """
    exponent = 4 - np.floor(np.log10(np.maximum(np.abs(values), 1e-290)))
    scale = 10.0 ** np.maximum(exponent, 0)
    return [int(value) if value.is_integer() else value for value in (np.round(values * scale) / scale).tolist()]


def _layout(metric: Metric, whole: Curve, steps: str) -> dict[str, Any]:
    live = whole.values[np.isfinite(whole.values)]
    log = metric.name in ("coef", "loss") and live.min() > 0 and live.max() > 30 * float(np.median(live))  # a straight line to zero stays one
    from_zero = live.min() >= 0 and not log and metric.name != "entropy/perplexity"
    last = max(float(whole.steps[-1]), 0.0)
    across = {"range": [min(0.0, float(whole.steps[0])), 1.01 * last]} if last > 0 else {}
    return {
        "xaxis": {"title": {"text": html.escape(steps)}, "tickformat": "~s", "hoverformat": ",.0f"} | across,
        "yaxis": {"title": {"text": html.escape(metric.axis)}, "type": "log" if log else "linear", "rangemode": "tozero" if from_zero else "normal"},
        "hovermode": "x unified",
        "showlegend": False,
        "shapes": [],
        "annotations": [],
    }


def _level(layout: dict[str, Any], value: float, words: str, colour: str) -> None:
    """A dashed line across the plot with its name at the right end."""
    line = {"color": colour, "width": 1.2, "dash": "dash"}
    layout["shapes"].append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": line})
    place = {"xref": "paper", "x": 1, "xanchor": "right", "y": value, "yanchor": "bottom", "showarrow": False}
    layout["annotations"].append(place | {"text": html.escape(words), "font": {"size": 11, "color": colour}})


def _draw_maximum(data: Data, traces: list[dict[str, Any]], layout: dict[str, Any]) -> None:
    """The largest entropy there is: a level where it is the same all along, a dotted curve where legal actions change it."""
    if MAXIMUM not in data.series:
        return
    whole = curve(data.series[MAXIMUM], points=200)
    live = whole.values[np.isfinite(whole.values)]
    if live.max() - live.min() <= 0.01 * live.max():
        _level(layout, float(np.median(live)), f"maximum {np.median(live):.3f}", GREY)
        return
    common = np.isfinite(whole.values).all(axis=0)
    line = {"color": GREY, "width": 1.2, "dash": "dot"}
    shown = {"type": "scatter", "mode": "lines", "name": "maximum", "line": line, "showlegend": False, "hovertemplate": "%{y:.4~g}"}
    traces.append(shown | {"x": plain(whole.steps[common]), "y": plain(whole.values[:, common].mean(axis=0))})


def _targets(data: Data) -> list[dict[str, Any]]:
    """The entropy wanted by each group's controllers, dashed in the group's colour."""
    if "entropy/target" not in data.series:
        return []
    whole, found = curve(data.series["entropy/target"], points=200), []
    for index, (group, colour) in enumerate(zip(data.groups, colours(data.groups), strict=True)):
        rows = whole.of(group)
        common = np.isfinite(rows.values).all(axis=0)
        if rows.members and common.any():
            line = {"color": colour, "width": 1.2, "dash": "dash"}
            shown = {"type": "scatter", "mode": "lines", "name": "target", "legendgroup": str(index), "line": line, "showlegend": False}
            points = {"x": plain(rows.steps[common]), "y": plain(rows.values[:, common].mean(axis=0))}
            found.append(shown | points | {"hovertemplate": "%{y:.4~g}"})
    return found


def _draw_spread(data: Data, traces: list[dict[str, Any]]) -> None:
    """Error bars over episodes, where every group is one member and the bars are the only spread there is."""
    spreads = data.series.get("eval/return_std", {})
    if any(len(group.members) > 1 for group in data.groups):
        return
    for trace in traces:
        member = data.groups[int(trace["legendgroup"])].members[0]
        if member in spreads and len(spreads[member][1]) == len(trace["x"]):
            trace["error_y"] = {"type": "data", "array": plain(spreads[member][1]), "thickness": 1, "width": 2}
