"""A generator kept from mode collapse by the entropy of its samples: Parzen Rényi-2, nearest neighbours, or the marginal of a classifier.

Source: Goodfellow et al. 2014 (arXiv:1406.2661: non-saturating loss); Gulrajani et al. 2017 (arXiv:1704.00028: WGAN-GP); Lin et al. 2018 (PacGAN,
arXiv:1712.04086: rings, grids, modes, high quality). Page: docs/recipes/gan.md. Shapes: M members, B samples of a batch, D numbers of one, K modes.

    generator loss = softplus(-critic(G(z)))  or  -critic(G(z)),   minus   coef * entropy of the batch G(z)
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from entreg import collapse, disk, functional, loop, points, regularizer, spelling
from entreg.collapse import Action
from entreg.guard import Rule
from entreg.rates import Schedule
from entreg.run import Run, Summary
from entreg.several import Several
from entreg.stacked import FlatParameters, StackedAdam, Tower, mlps, perceptrons, plain_mlp

STATUS = "stable"
SUMMARY = "Generators that keep their modes: entropy of samples, rings to digits"
BONUSES = ("parzen", "knn", "classifier")
PARZEN = "renyi(2)"  # the one entropy that a kernel density has in closed form
SAMPLES, LOOKED_AT, SHOWN = 2500, 500, 36  # drawn to measure at the end (PacGAN's number) and on the way; pictures of a setting in the report
COVERED = 0.1  # of its fair share of all samples, in samples of high quality, covers a mode; PacGAN is content with one sample
NEAR = 0.95  # of real items are nearer to another real one than what counts as high quality


@dataclass(frozen=True)
class Config:
    """A small generator and critic; every bonus x coefficient x family x seed is a member."""

    data: str = "ring"
    """ring (Gaussians on the unit circle), grid (on a square of side 2), digits, or a .npz file with x and perhaps y."""
    modes: int = 8
    """Gaussians of a ring; of a grid a square number."""
    std: float = 0.05
    """Standard deviation of each Gaussian."""
    bonus: Several[str] = ("parzen",)
    """Entropy of a batch of samples: parzen (Renyi-2 of a kernel density), knn (nearest neighbours), classifier (mean prediction of one of the modes)."""
    coef: Several[str] = ("linear(0.3, 0)", "0")
    """Its coefficient: a number or a controller; several to compare."""
    family: Several[str] = ("shannon",)
    """Entropy family of knn and classifier (parzen is Renyi-2 whatever stands here); several to compare."""
    until: float = 0.7
    """Share of the run over which schedules of the coefficient go."""
    bandwidth: float | None = None
    """Of parzen's kernel, in units of the data; a tenth of the median distance of two items by default."""
    loss: Literal["non_saturating", "wgan_gp"] = "non_saturating"
    """non_saturating: the original with the trick. wgan_gp: Wasserstein with a gradient penalty."""
    penalty: float = 10.0
    """Weight of the gradient penalty of wgan_gp."""
    critic_steps: int = 1
    """Steps of the critic for each of the generator."""
    latent: int = 8
    """Numbers of noise that a sample is made of."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of generator and critic."""
    batch: int = 128
    """Samples of a step."""
    steps: int = 3000
    """Steps of the generator."""
    learning_rate: str = "0.001"
    """Of both: a number or a schedule over the run."""
    seeds: int = 5
    """Members a setting, with seeds --seed, --seed + 1, ..."""
    on_collapse: Action = "warn"
    """On collapse (samples at fewer than half of the modes): off, warn, stop, or with bonus classifier rescue by a target controller."""


def check(config: Config) -> None:
    """ValueError for settings that make no sense, naming the flag."""
    for name, least in {"seeds": 1, "modes": 2, "batch": 2, "steps": 1, "critic_steps": 1, "latent": 1}.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name} is {getattr(config, name)}; legal are integers from {least}")
    if config.data == "grid" and math.isqrt(config.modes) ** 2 != config.modes:
        raise ValueError(f"modes is {config.modes} with data grid; legal are square numbers")
    if not 0 < config.std < math.inf:
        raise ValueError(f"std is {config.std}; legal are finite numbers above 0")
    if not 0 < config.until <= 1:
        raise ValueError(f"until is {config.until}; legal is 0 < until <= 1")
    if config.bandwidth is not None and not 0 < config.bandwidth < math.inf:
        raise ValueError(f"bandwidth is {config.bandwidth}; legal are finite numbers above 0, or None")
    if not 0 <= config.penalty < math.inf:
        raise ValueError(f"penalty is {config.penalty}; legal are finite numbers from 0")
    if not config.bonus or set(config.bonus) - set(BONUSES):
        raise ValueError(f"bonus is {', '.join(config.bonus)}; legal are {', '.join(BONUSES)}")
    if config.loss not in ("non_saturating", "wgan_gp"):
        raise ValueError(f"loss is {config.loss!r}; legal are non_saturating and wgan_gp")
    if any(width < 1 for width in config.hidden):
        raise ValueError(f"hidden is {config.hidden}; legal are widths from 1")
    if config.on_collapse == "rescue" and set(config.bonus) != {"classifier"}:
        raise ValueError(f"on_collapse is rescue with bonus {', '.join(config.bonus)}, whose entropy has no maximum; legal is classifier")


class Source(NamedTuple):
    """Where real samples come from: Gaussians at `centres [K, D]`, or rows of `items [N, D]` with classes whose means `centres` are (none: no classes)."""

    name: str
    centres: Tensor
    std: float
    items: Tensor | None = None
    classes: Tensor | None = None
    picture: tuple[int, int] | None = None
    near: float = 0.0  # the distance to a real item up to which a sample is of high quality

    def draw(self, streams: Sequence[np.random.Generator], count: int) -> Tensor:
        """Real samples of each member, `[M, count, D]`."""
        of = len(self.centres) if self.items is None else len(self.items)
        index = torch.from_numpy(np.stack([stream.integers(of, size=count) for stream in streams]))
        if self.items is not None:
            return self.items[index]
        noise = np.stack([stream.standard_normal((count, self.centres.shape[1]), dtype=np.float32) for stream in streams])
        return self.centres[index] + self.std * torch.from_numpy(noise)

    def place(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The mode of each sample `[B, D] -> [B]`, and whether it is of high quality: within 3 deviations of it, or as near to a real item as real ones are."""
        if self.items is None or self.classes is None:
            distance, mode = torch.cdist(samples, self.centres if self.items is None else self.items).min(-1)
            return (mode if self.items is None else torch.zeros_like(mode)), distance < (3 * self.std if self.items is None else self.near)
        distance, nearest = torch.cdist(samples, self.items).min(-1)
        return self.classes[nearest], distance < self.near

    @property
    def softness(self) -> float:
        """Deviation of the classifier's Gaussians: half the distance of the two nearest centres, so that it has a gradient between them."""
        apart = torch.cdist(self.centres, self.centres)
        return float(apart[apart > 0].min()) / 2


def real(config: Config) -> Source:
    """The real distribution that `config` names."""
    if config.data == "ring":
        angle = 2 * math.pi * torch.arange(config.modes) / config.modes
        return Source(f"ring-{config.modes}", torch.stack([angle.cos(), angle.sin()], 1), config.std)
    if config.data == "grid":
        line = torch.linspace(-1, 1, math.isqrt(config.modes))
        return Source(f"grid-{config.modes}", torch.cartesian_prod(line, line), config.std)
    found = points.load(config.data)
    items = torch.from_numpy(found.x)
    apart = torch.cdist(items, items, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf).amin(1)
    classes = None if found.y is None else torch.from_numpy(found.y)
    kinds = 1 if classes is None else int(classes.max()) + 1
    centres = torch.stack([items[classes == kind].mean(0) if classes is not None else items.mean(0) for kind in range(kinds)])
    if classes is None and "classifier" in config.bonus:
        raise ValueError(f"bonus is classifier, and {config.data} has no classes y; legal are parzen and knn")
    return Source(found.name, centres, 0.0, items, classes, found.picture, float(apart.quantile(NEAR)))


def drawn(seeds: Sequence[int], sizes: Sequence[int]) -> tuple[FlatParameters, Tower]:
    """Networks with the initial weights and biases of torch.nn.Linear: with biases of 0 all kinks begin at the origin (7 of 8 modes; with these 8)."""
    parameters, tower = perceptrons(seeds, sizes)
    for member, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        for layer, inputs in zip(tower, sizes, strict=False):
            for name in layer:
                parameters.plain[name][member].uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
    return parameters, tower


class Gan(loop.Fit):
    """Stacked generators and critics of all members."""

    def __init__(self, config: Config, seeds: Sequence[int], steps: int) -> None:
        self.config, self.steps, self.real = config, steps, real(config)
        self.source = loop.digest(self.real.items, self.real.classes)
        self.members = [
            member
            for coef in config.coef
            for bonus in config.bonus
            for member in loop.combinations(seeds, coef=[coef], bonus=[bonus], family=[PARZEN] if bonus == "parzen" else config.family)
        ]
        own = [int(member["seed"]) for member in self.members]
        self.size, kinds = self.real.centres.shape[1], len(self.real.centres)
        self.generator, self.makes = drawn(own, (config.latent, *config.hidden, self.size))
        self.critic, self.judges = drawn([seed + 2**32 for seed in own], (self.size, *config.hidden, 1))
        self.adams = [StackedAdam(network, betas=(0.5, 0.999), eps=1e-8) for network in (self.generator, self.critic)]
        self.rate = Schedule("learning_rate", config.learning_rate, steps)
        self.streams = loop.generators(own, 0x6A4)
        self.families = [spelling.parse_family(str(member["family"])) for member in self.members]
        rule = Rule("marginal", math.log(kinds), **collapse.patience(steps)) if config.on_collapse == "rescue" else None
        self.regularizers = [
            loop.regularizer(
                str(member["coef"]),
                steps=max(1, round(config.until * steps)),
                maximum=float(functional.categorical_entropy(torch.zeros(kinds), family)) if member["bonus"] == "classifier" else None,
                family=str(member["family"]),
                rescue=rule,
            )
            for member, family in zip(self.members, self.families, strict=True)
        ]
        some = self.real.draw(loop.generators([0], 0xBA), 500)[0]
        self.bandwidth = config.bandwidth or float(torch.pdist(some).median()) / 10
        if not self.bandwidth and "parzen" in config.bonus:
            raise ValueError(f"data: half of the pairs of items in {config.data} are equal, so that parzen has no bandwidth; legal is --bandwidth above 0")
        self._check_neighbours()
        self.rules = (Rule("marginal", math.log(kinds), grace=20),) if kinds > 1 else ()
        self.latest: dict[str, Tensor] = {}

    def _check_neighbours(self) -> None:
        """ValueError where nearest neighbours have no entropy of this family, or a batch has too few of them."""
        for member, family in zip(self.members, self.families, strict=True):
            if member["bonus"] == "knn":
                try:
                    functional.knn_entropy(torch.randn(self.config.batch, self.size, generator=torch.Generator().manual_seed(0)), family=family)
                except ValueError as error:
                    raise ValueError(f"bonus is knn with batch {self.config.batch} and family {member['family']}: {error}") from None

    def update(self, step: int) -> Mapping[str, Any]:
        for _ in range(self.config.critic_steps):
            critic_loss = self.criticise()
        samples = mlps(self.noise(self.config.batch), self.generator, [self.makes], "relu")[0]
        score = mlps(samples, self.critic, [self.judges], "relu", frozen=True)[0].flatten(1)
        loss = torch.nn.functional.softplus(-score).mean(1) if self.config.loss == "non_saturating" else -score.mean(1)
        entropy = torch.stack([self.entropy(index, batch) for index, batch in enumerate(samples)])
        term = regularizer.stacked(self.regularizers, entropy[:, None])
        self.generator.backward((loss.sum() + term.loss, torch.ones(())))
        self.adams[0].step(self.rate.value)
        self.rate.step()
        for one in self.regularizers:
            one.step(progress=(step + 1) / self.steps)
        self.latest = {"loss/generator": loss.detach(), "loss/critic": critic_loss, "entropy/family": entropy.detach()}
        return {**self.latest, "generator": self.generator.data, "critic": self.critic.data}

    def criticise(self) -> Tensor:
        """One step of the critics; their losses `[M]`."""
        batch = self.config.batch
        with torch.no_grad():
            samples = mlps(self.noise(batch), self.generator, [self.makes], "relu")[0]
        given = self.real.draw(self.streams, batch)
        if self.config.loss == "non_saturating":
            score = mlps(torch.cat([given, samples], 1), self.critic, [self.judges], "relu")[0].flatten(1)
            loss = torch.nn.functional.softplus(-score[:, :batch]).mean(1) + torch.nn.functional.softplus(score[:, batch:]).mean(1)
        else:
            score = plain_mlp(torch.cat([given, samples], 1), self.critic, self.judges, torch.relu).flatten(1)
            mixed = torch.from_numpy(np.stack([stream.random((batch, 1), dtype=np.float32) for stream in self.streams]))
            between = (mixed * given + (1 - mixed) * samples).requires_grad_()
            total = plain_mlp(between, self.critic, self.judges, torch.relu).sum()
            (slope,) = torch.autograd.grad(total, between, create_graph=True)
            steepness = (slope.square().sum(-1) + 1e-12).sqrt()
            loss = score[:, batch:].mean(1) - score[:, :batch].mean(1) + self.config.penalty * (steepness - 1).square().mean(1)
        self.critic.backward((loss, torch.ones_like(loss)))
        self.adams[1].step(self.rate.value)
        return loss.detach()

    def noise(self, count: int, streams: Sequence[np.random.Generator] | None = None) -> Tensor:
        """What samples are made of, `[M, count, latent]`."""
        numbers = [stream.standard_normal((count, self.config.latent), dtype=np.float32) for stream in streams or self.streams]
        return torch.from_numpy(np.stack(numbers))

    def entropy(self, member: int, samples: Tensor) -> Tensor:
        """The entropy of a member's batch `[B, D]`, as its bonus has it; without a gradient where the coefficient is 0."""
        if self.regularizers[member].coef == 0:
            samples = samples.detach()
        bonus = self.members[member]["bonus"]
        if bonus == "parzen":
            return functional.parzen(samples, self.bandwidth)
        if bonus == "knn":
            return functional.knn_entropy(samples, family=self.families[member])
        apart = (samples[:, None] - self.real.centres).square().sum(-1)
        return functional.marginal_entropy(-apart / (2 * self.real.softness**2), self.families[member])

    @torch.no_grad()
    def samples(self, count: int) -> Tensor:
        """Samples of every member that training does not see, `[M, count, D]`."""
        streams = loop.generators([int(member["seed"]) for member in self.members], 0x5A3)
        return mlps(self.noise(count, streams), self.generator, [self.makes], "relu")[0]

    def rows(self, step: int, *, evaluate: bool) -> Sequence[loop.Row]:
        found = []
        for index, samples in enumerate(self.samples(SAMPLES if evaluate else LOOKED_AT)):
            mode, good = self.real.place(samples)
            facts = {"high_quality": float(good.float().mean())}
            if self.rules:
                share = torch.bincount(mode, minlength=len(self.real.centres)) / len(mode)
                entropy = float(torch.special.entr(share).sum())
                full = torch.bincount(mode[good], minlength=len(share)) >= COVERED * len(mode) / len(share)
                facts = {"modes": float(full.sum()), **facts, "marginal": entropy, "modes/perplexity": math.exp(entropy)}
            over = {"rescued": collapse.rescued(self.regularizers)[index]} if self.config.on_collapse == "rescue" else {}
            found.append({**facts, "coef": self.regularizers[index].coef, **{name: float(values[index]) for name, values in self.latest.items()}, **over})
        return found

    def write(self, run: Run) -> None:
        """`samples.npz` (`x [M, 500, D]`), and samples and modes of each setting's first member for the report."""
        found, file = self.samples(LOOKED_AT), io.BytesIO()
        np.savez_compressed(file, x=found.numpy())
        disk.replace_file(run.folder / "samples.npz", file.getvalue())
        plots, maps, bars = list[Any](), {}, []
        kinds = [str(kind) for kind in range(len(self.real.centres))]
        for group, (name, of) in enumerate(loop.settings(self.members).items()):
            samples = found[of[0]]
            if self.real.picture is not None:
                side = math.isqrt(SHOWN)
                tiles = torch.nn.functional.pad(samples[:SHOWN].unflatten(-1, self.real.picture), (0, 1, 0, 1), value=float(samples[:SHOWN].min()))
                maps[f"Samples: {name}"] = torch.cat([torch.cat(list(row), 1) for row in tiles.split(side)])
            elif self.size == 2:
                centres = {"name": "centre of a mode", "x": self.real.centres[:, 0].tolist(), "y": self.real.centres[:, 1].tolist()}
                own = {"name": name, "group": group, "x": samples[:, 0].tolist(), "y": samples[:, 1].tolist()}
                series = [own, centres] if self.real.items is None else [own]
                plots.append({"title": f"Samples: {name}", "kind": "points", "x": "", "y": "", "caption": "Of the first seed.", "series": series})
            count = np.mean([np.bincount(self.real.place(found[one])[0].numpy(), minlength=len(kinds)) / LOOKED_AT for one in of], 0)
            bars.append({"name": name, "group": group, "x": kinds, "y": count.tolist()})
        if self.rules:
            plots.append({"title": "Samples at each mode", "kind": "bars", "x": "mode", "y": "share, mean over seeds", "series": bars})
        loop.write_plots(run.folder, plots)
        loop.write_maps(run.folder, maps, pictures=True)

    def networks(self) -> dict[str, FlatParameters]:
        return {"generator": self.generator, "critic": self.critic}

    def state_dict(self) -> dict[str, Any]:
        return {
            **{name: network.data for name, network in self.networks().items()},
            "adams": {str(index): adam.state_dict() for index, adam in enumerate(self.adams)},
            "rate": self.rate.state_dict(),
            "regularizers": loop.states(self.regularizers),
            "streams": loop.streams_state(self.streams),
            "latest": self.latest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, network in self.networks().items():
            network.data.copy_(state[name])
        for index, adam in enumerate(self.adams):
            adam.load_state_dict(state["adams"][str(index)])
        self.rate.load_state_dict(state["rate"])
        loop.load_states(self.regularizers, state["regularizers"])
        loop.load_streams(self.streams, state["streams"])
        self.latest = state["latest"]


def train(config: Config, run: Run | None = None) -> Summary:
    """Train every member; records, checkpoints, `samples.npz` and plots go to the run's folder."""
    check(config)
    run = run if run is not None else Run()
    steps = loop.prepare(run, config.steps)
    fit = Gan(config, range(run.settings.seed, run.settings.seed + config.seeds), steps)
    return loop.train("gan", fit.real.name, config, run, fit, config.on_collapse)
