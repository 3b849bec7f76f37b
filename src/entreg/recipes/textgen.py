"""A small language model from scratch on the user's text, with a confidence penalty of any family and unlikelihood; quality against diversity over temperature.

Source: Pereyra et al. 2017 (arXiv:1701.06548: confidence penalty); Welleck et al. 2020 (arXiv:1908.04319: token-level unlikelihood); Caccia et al. 2020
(arXiv:1811.02549: curves over temperature in place of single points). Page: docs/recipes/textgen.md. Shapes: M members, N sequences, T tokens, V vocabulary.

    loss = -log p(next)  -  coef H(p)  -  unlikelihood sum over earlier tokens c, other than the next one, of log(1 - p(c))
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entreg import collapse, disk, functional, loop, regularizer, spelling
from entreg.collapse import Action
from entreg.guard import Rule
from entreg.lm import text
from entreg.lm.textmodel import TextModel
from entreg.rates import Schedule
from entreg.run import Run, Summary
from entreg.several import Several
from entreg.stacked import StackedAdam, clip_grad_norm

STATUS = "experimental"
SUMMARY = "Small language model on your text: confidence penalty, quality-diversity"
TEMPERATURES = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5)  # of the curves; beside them greedy decoding and top-p at temperature 1
SCALES = np.linspace(0.6, 1.6, 21)  # temperatures among which that of the best bits per character is chosen
JUDGED, LOOKED_AT = 64, 8  # windows of text to measure on at the end, and on the way


@dataclass(frozen=True)
class Config:
    """A causal language model; every coefficient x family x unlikelihood x seed is a member."""

    text: str | None = None
    """A UTF-8 file, or a folder of .txt, .md and .rst files; by default Python's reference manual, which comes with it."""
    coef: Several[str] = ("0.1", "0")
    """Coefficient of the confidence penalty (it raises the entropy of every prediction): a number or a controller; several to compare."""
    family: Several[str] = ("shannon",)
    """Its entropy family: shannon, renyi(order), tsallis(order) or min_entropy; several to compare."""
    unlikelihood: Several[float] = (0.0,)
    """Weight of the unlikelihood of tokens that stood before; several to compare."""
    vocabulary: int = 1024
    """Tokens: all characters, and the most frequent words."""
    width: int = 64
    """Of the model."""
    layers: int = 2
    """Transformer blocks."""
    heads: int = 2
    """Heads of attention; they divide the width."""
    context: int = 64
    """Tokens that the model sees, and length of its samples."""
    batch: int = 16
    """Sequences of a step."""
    steps: int = 1000
    """Gradient steps."""
    learning_rate: str = "linear(0.003, 0)"
    """A number or a schedule over the run."""
    max_grad_norm: float = 1.0
    """Each member's gradient is clipped to this Euclidean norm."""
    samples: int = 32
    """Texts drawn at each temperature to be judged."""
    top_p: float = 0.9
    """Nucleus of the decoding that stands beside the temperatures."""
    seeds: int = 3
    """Members a setting, with seeds --seed, --seed + 1, ..."""
    on_collapse: Action = "warn"
    """On collapse (predictions that stay undecided): off, warn, stop, or rescue by a target controller."""


def check(config: Config) -> None:
    """ValueError for settings that make no sense, naming the flag."""
    least = {"seeds": 1, "vocabulary": 2, "width": 1, "layers": 1, "heads": 1, "context": 8, "batch": 1, "steps": 1, "samples": 2}
    for name, lowest in least.items():
        if getattr(config, name) < lowest:
            raise ValueError(f"{name} is {getattr(config, name)}; legal are integers from {lowest}")
    if config.width % config.heads:
        raise ValueError(f"heads is {config.heads}; legal are divisors of width {config.width}")
    if not 0 < config.top_p <= 1:
        raise ValueError(f"top_p is {config.top_p}; legal is 0 < top_p <= 1")
    if not 0 < config.max_grad_norm < math.inf:
        raise ValueError(f"max_grad_norm is {config.max_grad_norm}; legal are finite numbers above 0")
    if not config.unlikelihood or not all(0 <= weight < math.inf for weight in config.unlikelihood):
        raise ValueError(f"unlikelihood is {config.unlikelihood}; legal are finite numbers from 0")


class TextGen(loop.Fit):
    """The stacked models of all members, and the text as rows of tokens."""

    lines = 50

    def __init__(self, config: Config, seeds: Sequence[int], steps: int) -> None:
        self.config, self.steps = config, steps
        self.members = loop.combinations(seeds, coef=config.coef, family=config.family, unlikelihood=config.unlikelihood)
        own = [int(member["seed"]) for member in self.members]
        split = text.load(config.text)
        self.words = text.Vocabulary(split.train, config.vocabulary)
        self.train, self.valid, self.test = (self.words.joined(part) for part in split)
        self.source = loop.digest(self.train, self.valid, self.test)
        if min(len(self.valid), len(self.test)) <= config.context + 1:
            raise ValueError(f"context is {config.context}, and the text to judge by has {len(self.test)} tokens; legal is a longer text or a shorter context")
        self.references = [" ".join(part.split()).split() for part in split.test]
        size, shape = len(self.words.tokens), {"width": config.width, "layers": config.layers, "heads": config.heads, "context": config.context}
        self.model = TextModel(own, vocabulary=size, **shape)
        self.adam = StackedAdam(self.model.parameters, betas=(0.9, 0.99), eps=1e-8)
        self.rate = Schedule("learning_rate", config.learning_rate, steps)
        self.streams = loop.generators(own, 0x7E7)
        self.families = [spelling.parse_family(str(member["family"])) for member in self.members]
        self.weights = torch.tensor([float(member["unlikelihood"]) for member in self.members])
        rescue = Rule("conditional", math.log(size), **collapse.patience(steps)) if config.on_collapse == "rescue" else None
        self.regularizers = [
            loop.regularizer(
                str(member["coef"]),
                steps=steps,
                maximum=float(functional.categorical_entropy(torch.zeros(size), family)),
                family=str(member["family"]),
                rescue=rescue,
            )
            for member, family in zip(self.members, self.families, strict=True)
        ]
        self.rules = (Rule("conditional", math.log(size), grace=10),)
        self.latest: dict[str, Tensor] = {}
        self.curves: list[list[dict[str, float]]] = []

    def windows(self, tokens: np.ndarray, starts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Sequences `[..., T]` that begin at `starts [...]`, and the tokens behind each of theirs."""
        found = torch.from_numpy(tokens[starts[..., None] + np.arange(self.config.context + 1)])
        return found[..., :-1], found[..., 1:]

    def update(self, step: int) -> Mapping[str, Any]:
        starts = np.stack([stream.integers(len(self.train) - self.config.context, size=self.config.batch) for stream in self.streams])
        seen, following = self.windows(self.train, starts)
        logits = self.model(seen)
        log_prob, entropy = self._stats(logits, following)
        term = regularizer.stacked(self.regularizers, entropy.flatten(1))
        loss = -log_prob.mean((1, 2))
        total = loss.sum() + term.loss
        if bool((self.weights > 0).any()):
            total = total + (self.weights * unlikelihood(logits, seen, following).mean((1, 2))).sum()
        self.model.parameters.backward((total, torch.ones(())))
        clip_grad_norm(self.model.parameters, self.config.max_grad_norm)
        self.adam.step(self.rate.value)
        self.rate.step()
        for one in self.regularizers:
            one.step(progress=(step + 1) / self.steps)
        self.latest = {"loss": loss.detach(), "entropy/family": term.entropy}
        return {**self.latest, "parameters": self.model.parameters.data}

    def _stats(self, logits: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of the tokens that follow and entropy, `[M, N, T]`, each member by its own family."""
        each = [functional.categorical_stats(*one) for one in zip(logits, following, self.families, strict=True)]
        return torch.stack([one for one, _ in each]), torch.stack([one for _, one in each])

    @torch.no_grad()
    def rows(self, step: int, *, evaluate: bool) -> Sequence[loop.Row]:
        scales = SCALES if evaluate else np.ones(1)
        count = JUDGED if evaluate else LOOKED_AT
        valid, entropy = self.bits(self.valid, scales, count)
        columns = {"bits_per_character": valid[:, 0], "conditional": entropy}
        if evaluate:
            best = valid.argmin(1)
            bits, _ = self.bits(self.test, SCALES, count)
            at_one = int(np.abs(SCALES - 1).argmin())
            columns |= {"bits_per_character": bits[np.arange(len(bits)), best], "bits_per_character/temperature_1": bits[:, at_one]}
            self.curves = self.judged()
            greedy = np.array([curve[0]["repetition"] for curve in self.curves])
            columns |= {"best_temperature": SCALES[best], "greedy/repetition": greedy}
        largest = math.log(len(self.words.tokens))
        columns |= {"entropy": entropy, "entropy/max": entropy / largest, "entropy/perplexity": np.exp(entropy)}
        columns["coef"] = np.array([one.coef for one in self.regularizers])
        if self.config.on_collapse == "rescue":
            columns["rescued"] = np.array(collapse.rescued(self.regularizers))
        columns |= {name: values.numpy() for name, values in self.latest.items()}
        return [{name: float(values[index]) for name, values in columns.items()} for index in range(len(self.members))]

    @torch.no_grad()
    def bits(self, tokens: np.ndarray, scales: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Bits per character of a text at these temperatures, `[M, S]`, and the mean entropy of the predictions at temperature 1, `[M]`."""
        starts = np.linspace(0, len(tokens) - self.config.context - 1, count).astype(int)
        total, entropy, characters = np.zeros((len(self.members), len(scales))), np.zeros(len(self.members)), 0
        for some in np.array_split(starts, -(-count // LOOKED_AT)):
            seen, following = self.windows(tokens, some)
            logits = self.model(seen.expand(len(self.members), -1, -1)).double()
            for index, scale in enumerate(scales):
                taken = (logits / scale).log_softmax(-1).gather(-1, following.expand(len(self.members), -1, -1)[..., None])
                total[:, index] -= taken.sum((1, 2, 3)).numpy()
            entropy += functional.categorical_entropy(logits).sum((1, 2)).numpy()
            characters += int(self.words.lengths[following.numpy()].sum())
        return total / characters / math.log(2), entropy / (count * self.config.context)

    def judged(self) -> list[list[dict[str, float]]]:
        """A row a way of decoding (greedy, the temperatures, top-p) for each member: quality (BLEU against held-out text), self-BLEU, distinct-n, repeats."""
        ways = [(0.0, 1.0), *((temperature, 1.0) for temperature in TEMPERATURES), (1.0, self.config.top_p)]
        temperatures, nuclei = (torch.tensor(column, dtype=torch.float64).repeat_interleave(self.config.samples) for column in zip(*ways, strict=True))
        first = self.words.encode(text.BREAK)[-1]
        streams = loop.generators([int(member["seed"]) for member in self.members], 0x5A4)
        drawn = self.model.sample(first, temperatures, nuclei, self.config.context, streams).numpy()
        found = []
        for member in drawn.reshape(len(self.members), len(ways), self.config.samples, -1):
            rows = []
            for (temperature, nucleus), tokens in zip(ways, member, strict=True):
                samples = [self.words.decode(row).split() for row in tokens.tolist()]
                scores = {"quality": text.bleu(samples, self.references), "self_bleu": text.bleu(samples)}
                scores |= {f"distinct_{n}": text.distinct(samples, n) for n in (1, 2, 3)}
                repeated = float(np.mean([text.repetition(row) for row in tokens.tolist()]))
                rows.append({"temperature": temperature, "top_p": nucleus, **scores, "repetition": repeated})
            found.append(rows)
        return found

    def write(self, run: Run) -> None:
        """`curves.json` (what `judged` gave), some samples as text, and the curves of every setting for the report."""
        disk.replace_file(run.folder / "curves.json", json.dumps(self.curves).encode())
        pairs = {
            "Quality and diversity": ("self_bleu", "quality", "self-BLEU (less is more diverse)", "BLEU against held-out text"),
            "Quality and repetition": ("repetition", "quality", "share of repeated 4-grams of tokens", "BLEU against held-out text"),
            "Different bigrams": ("temperature", "distinct_2", "decode temperature", "distinct-2"),
        }
        plots: list[dict[str, Any]] = []
        for title, (x, y, x_title, y_title) in pairs.items():
            series = []
            for group, (name, of) in enumerate(loop.settings(self.members).items()):
                mean = {key: np.mean([[row[key] for row in self.curves[one]] for one in of], 0).tolist() for key in (x, y)}
                line = {"name": name, "group": group, "x": mean[x][:-1], "y": mean[y][:-1]}
                nucleus = {"name": f"{name}, top-p {self.config.top_p:g}", "group": group, "x": mean[x][-1:], "y": mean[y][-1:]}
                series += [line | {"text": ["greedy", *map(str, TEMPERATURES)]}, nucleus | {"text": ["top-p"]}]
            caption = "Mean over seeds; words are decode temperatures. Alone: top-p at temperature 1."
            plots.append({"title": title, "x": x_title, "y": y_title, "caption": caption, "series": series})
        loop.write_plots(run.folder, plots)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.parameters.data,
            "adam": self.adam.state_dict(),
            "rate": self.rate.state_dict(),
            "regularizers": loop.states(self.regularizers),
            "streams": loop.streams_state(self.streams),
            "latest": self.latest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.parameters.data.copy_(state["model"])
        self.adam.load_state_dict(state["adam"])
        self.rate.load_state_dict(state["rate"])
        loop.load_states(self.regularizers, state["regularizers"])
        loop.load_streams(self.streams, state["streams"])
        self.latest = state["latest"]


def unlikelihood(logits: Tensor, seen: Tensor, following: Tensor) -> Tensor:
    """`-sum_c log(1 - p(c))` over the different tokens of the context so far but the one that follows, `[M, N, T, V] -> [M, N, T]`."""
    earlier = torch.nn.functional.one_hot(seen, logits.shape[-1]).cumsum(-2) > 0
    earlier = earlier.scatter(-1, following[..., None], False)
    log_rest = torch.log1p(-logits.softmax(-1).clamp_max(1 - 1e-6))
    return -torch.where(earlier, log_rest, 0.0).sum(-1)


def train(config: Config, run: Run | None = None) -> Summary:
    """Train every member; records, checkpoints, curves and plots go to the run's folder."""
    check(config)
    run = run if run is not None else Run()
    steps = loop.prepare(run, config.steps)
    fit = TextGen(config, range(run.settings.seed, run.settings.seed + config.seeds), steps)
    return loop.train("textgen", "manual" if config.text is None else config.text, config, run, fit, config.on_collapse)
