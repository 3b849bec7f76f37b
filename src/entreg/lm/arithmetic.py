"""Tasks on integers whose answers can be checked: sums with one right answer, and splits with many, which show what a policy forgets.

    add     "7+5="  -> "12"
    split   "9="    -> "0+9", "1+8", ..., "9+0": n + 1 right answers, all worth the same

Of the sums every fifth prompt is held out, the same ones for every seed. Splits have few prompts and are judged on all of them: they are about spread.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

NAMES = ("split", "add")
WIDEST = 5  # characters of the longest answer, without the end token


@dataclass(frozen=True)
class Task:
    """A task by name with numbers up to `largest`: prompts to learn from, prompts to be judged by, right answers, a check."""

    name: str
    largest: int
    prompts: tuple[str, ...]
    judged: tuple[str, ...]

    def answers(self, prompt: str) -> list[str]:
        """All right answers to a prompt.

        >>> make("split", 9).answers("2="), make("add", 9).answers("2+3=")
        (['0+2', '1+1', '2+0'], ['5'])
        """
        numbers = _numbers(prompt)
        return [str(sum(numbers))] if self.name == "add" else [f"{first}+{numbers[0] - first}" for first in range(numbers[0] + 1)]

    def right(self, prompt: str, completion: str) -> bool:
        """Whether a completion is a right answer, and nothing else.

        >>> task = make("split", 9)
        >>> [task.right("7=", answer) for answer in ("3+4", "03+4", "3+5", "3+4=", "")]
        [True, False, False, False, False]
        """
        return completion in self.answers(prompt)

    def wrong(self, prompt: str, draw: random.Random) -> str:
        """A completion of the right form that is not right."""
        while True:
            numbers = _numbers(draw.choice(self.answers(prompt)))
            guess = "+".join(str(max(0, number + draw.choice((-2, -1, 1, 2)))) for number in numbers)
            if not self.right(prompt, guess):
                return guess


def make(name: str, largest: int = 9) -> Task:
    """The task of that name, with numbers from 0 to `largest`.

    Raises: `ValueError` for another name, or a number outside [5, 99].
    """
    if name not in NAMES:
        raise ValueError(f"task is {name!r}; legal are {', '.join(NAMES)}")
    if not 5 <= largest <= 99:
        raise ValueError(f"largest is {largest}; legal are integers from 5 to 99")
    if name == "split":
        every = tuple(f"{n}=" for n in range(1, largest + 1))
        return Task(name, largest, every, every)
    every = tuple(f"{a}+{b}=" for a in range(largest + 1) for b in range(largest + 1))
    return Task(name, largest, tuple(prompt for place, prompt in enumerate(every) if place % 5 != 4), every[4::5])


def demonstrations(task: Task, count: int, seed: int) -> list[dict[str, str]]:
    """`count` prompts, each with a right answer drawn uniformly."""
    draw = random.Random(f"{seed} demonstrations")
    chosen = (draw.choice(task.prompts) for _ in range(count))
    return [{"prompt": prompt, "completion": draw.choice(task.answers(prompt))} for prompt in chosen]


def questions(task: Task, count: int) -> list[dict[str, str]]:
    """At least `count` prompts, each as often as the others: one epoch of a run, because TRL's order of a second one does not survive a resumption."""
    return [{"prompt": prompt} for prompt in task.prompts] * (count // len(task.prompts) + 1)


def pairs(task: Task, count: int, seed: int, *, first_smaller: bool = False) -> list[dict[str, str]]:
    """`count` preference pairs: a right answer over a wrong one; with `first_smaller` also over right ones whose first number is the larger (split only)."""
    draw = random.Random(f"{seed} pairs")
    rows = []
    for _ in range(count):
        prompt = draw.choice(task.prompts)
        answers = task.answers(prompt)
        preferred = [answer for answer in answers if _numbers(answer)[0] * 2 <= _numbers(prompt)[0]] if first_smaller and task.name == "split" else answers
        others = [answer for answer in answers if answer not in preferred]
        rejected = draw.choice(others) if others and draw.random() < 0.5 else task.wrong(prompt, draw)
        rows.append({"prompt": prompt, "chosen": draw.choice(preferred), "rejected": rejected})
    return rows


def reward(task: Task) -> Callable[..., list[float]]:
    """TRL's reward function of a task: 1 for a right answer, 0 otherwise."""

    def right(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        return [float(task.right(prompt, completion)) for prompt, completion in zip(prompts, completions, strict=True)]

    return right


def texts(task: Task) -> list[str]:
    """What a tokenizer is trained on."""
    return [prompt + answer for prompt in task.prompts for answer in task.answers(prompt)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
