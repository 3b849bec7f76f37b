"""How often `lint` is right: losses that are correct, and losses with one bug, each on random batches; hits and false alarms.

    python -m bench.lint --batches 60

Batches: 6 to 24 items, or 4 sequences of unequal length, of 3 to 40 classes; logits all equal (a policy before training), normal, or 8 times that (a policy
that has decided); on-policy actions. A false alarm is any finding on a correct loss, a hit the named rule on a wrong one and nothing else.
"""

import argparse
from collections import Counter

import torch
from bench import common
from torch.distributions import Categorical

from entreg import EntropyRegularizer, functional, lint, renyi


def log_prob_of(logits, actions):
    return logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)


def mean(values, mask=None):
    return values.mean() if mask is None else (values * mask).sum() / mask.sum()


def loss(bonus, temperature=1.0):
    """A policy-gradient loss with this entropy bonus, `bonus(logits, actions, mask)` a scalar."""

    def called(logits, actions, advantages, coef, mask=None):
        task = mean(-advantages * log_prob_of(logits / temperature, actions), mask)
        return task - coef * bonus(logits, actions, mask)

    return called


def kl(estimator, ratio=False):
    def called(logits, actions, advantages, reference_log_prob, coef, kl_coef, mask=None):
        log_prob = log_prob_of(logits, actions)
        values = estimator(reference_log_prob - log_prob) * ((log_prob - log_prob.detach()).exp() if ratio else 1)
        return mean(-advantages * log_prob - coef * functional.categorical_entropy(logits), mask) + kl_coef * mean(values, mask)

    return called


def score(logits, actions, mask, sign=1):
    return -sign * mean(functional.score_function_bonus(log_prob_of(logits, actions).flatten()).view(actions.shape), mask)


def regularized(logits, actions, mask):
    return -EntropyRegularizer(1.0)(functional.categorical_entropy(logits), None if mask is None else mask.bool()).loss


def token_means(logits, actions, mask):
    entropy = functional.categorical_entropy(logits)
    return ((entropy * mask).sum(-1) / mask.sum(-1)).mean()


ENTROPY = functional.categorical_entropy
RIGHT = {
    "Categorical.entropy": loss(lambda z, a, m: mean(Categorical(logits=z).entropy(), m)),
    "categorical_entropy": loss(lambda z, a, m: mean(ENTROPY(z), m)),
    "EntropyRegularizer": loss(regularized),
    "at temperature .7": loss(lambda z, a, m: mean(ENTROPY(z / 0.7), m), temperature=0.7),
    "score_function_bonus": loss(score),
    "KL: k2": kl(functional.k2),
    "KL: k1 with ratio": kl(functional.k1, ratio=True),
    "KL: k3 with ratio": kl(functional.k3, ratio=True),
}
WRONG = {
    "temperature": loss(lambda z, a, m: mean(ENTROPY(z), m), temperature=0.7),
    "family": loss(lambda z, a, m: mean(ENTROPY(z, renyi(2)), m)),
    "sign": loss(lambda z, a, m: -mean(ENTROPY(z), m)),
    "detached": loss(lambda z, a, m: mean(ENTROPY(z.detach()), m)),
    "ignored": loss(lambda z, a, m: 0.0),
    "sampled": loss(lambda z, a, m: -mean(log_prob_of(z, a), m)),
    "dimension": loss(lambda z, a, m: mean(ENTROPY(z), m) / z.shape[-1]),
    "mask": loss(lambda z, a, m: mean(ENTROPY(z))),
    "aggregation": loss(token_means),
    "k1": kl(functional.k1),
    "kl_direction": kl(functional.k3),
}
MASKED = ("mask", "aggregation")


def batch(seed, sequences):
    generator = torch.Generator().manual_seed(seed)
    classes = int(torch.randint(3, 41, (), generator=generator))
    shape = (4, 9) if sequences else (int(torch.randint(6, 25, (), generator=generator)),)
    logits = torch.randn(*shape, classes, generator=generator) * (0.0, 1.0, 8.0)[seed % 3]
    actions = torch.multinomial(logits.softmax(-1).flatten(0, -2), 1, generator=generator).view(shape)
    made = {"logits": logits, "actions": actions, "advantages": torch.randn(shape, generator=generator)}
    if sequences:
        made["mask"] = (torch.arange(9) < torch.tensor([9, 3, 6, 5])[:, None]).float()
    return made, torch.randn(*shape, classes, generator=generator)


def findings(name, called, seed):
    made, reference = batch(seed, sequences=name in MASKED or seed % 2 == 0)
    if name.startswith(("k1", "kl", "KL")):
        made["reference_log_prob"] = log_prob_of(reference, made["actions"])
        return lint(called, made, coef=0.01, kl_coef=0.1, reference=reference, seed=seed)
    return lint(called, made, coef=0.01, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=60)
    batches = parser.parse_args().batches
    rows = []
    for kind, losses in (("right", RIGHT), ("wrong", WRONG)):
        for name, called in losses.items():
            seen = Counter(" ".join(one.rule for one in findings(name, called, seed)) for seed in range(batches))
            good = seen["" if kind == "right" else name]
            rows.append(
                {"kind": kind, "loss": name, "batches": batches, "as expected": good, "found": "; ".join(f"{rules or '-'}: {n}" for rules, n in seen.items())}
            )
            print(rows[-1], flush=True)
    common.write(common.RESULTS / "lint.csv", rows, common.machine("torch"))


if __name__ == "__main__":
    main()
