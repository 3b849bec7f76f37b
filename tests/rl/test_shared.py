"""Optimizers in shared memory: two processes that take turns are one process, on the same parameters and statistics."""

import numpy as np
import pytest
import torch

from entreg.rl.shared import OPTIMIZERS, share
from entreg.rl.workers import Crew, WorkerFailed
from entreg.stacked import FlatParameters, StackedAdam

MEMBERS, SIZE, RATE = 2, 5, 0.1


def gradient(number):
    return torch.from_numpy(np.random.default_rng(number).standard_normal((MEMBERS, SIZE)).astype(np.float32))


def steps(rule, shared, numbers):
    local = FlatParameters(MEMBERS, {"weight": (SIZE,)})
    optimizer = OPTIMIZERS[rule](local, shared)
    for number in numbers:
        local.grad = gradient(number)
        optimizer.step(RATE)


def work(job, line):
    """A step with the gradient of the number that is told."""
    rule, shared = job
    line.rounds(lambda: None, lambda _, number: steps(rule, shared, [number]), shared.data.data_ptr)


@pytest.mark.parametrize("rule", list(OPTIMIZERS))
def test_two_processes_that_take_turns_are_one(rule):
    data = torch.ones(MEMBERS, SIZE)
    view = data[0]
    shared, alone = share(data, rule), share(torch.ones(MEMBERS, SIZE), rule)
    with Crew(work, [(rule, shared)] * 2) as crew:
        for number in range(6):
            crew.answer(number % 2, number, pause=True)
            assert len(list(crew.reports(lambda: None))) == 1
    steps(rule, alone, range(6))
    torch.testing.assert_close(shared.data, alone.data)
    for name, value in alone.statistics.items():
        torch.testing.assert_close(shared.statistics[name], value)
    assert torch.equal(view, shared.data[0])  # what looked at the parameters before they were shared still does


def test_rmsprop_is_the_formula_and_adam_that_of_the_other_recipes():
    shared = share(torch.zeros(MEMBERS, SIZE), "rmsprop")
    steps("rmsprop", shared, range(3))
    weight, square = np.zeros((MEMBERS, SIZE)), np.zeros((MEMBERS, SIZE))
    for number in range(3):
        d = gradient(number).numpy()
        square = 0.99 * square + 0.01 * d**2
        weight -= RATE * d / np.sqrt(square + 1e-5)
    np.testing.assert_allclose(shared.data, weight, rtol=1e-5)
    shared, plain = share(torch.zeros(MEMBERS, SIZE), "adam"), FlatParameters(MEMBERS, {"weight": (SIZE,)})
    steps("adam", shared, range(3))
    adam = StackedAdam(plain)
    for number in range(3):
        plain.grad = gradient(number)
        adam.step(RATE)
    assert torch.equal(shared.data, plain.data)


def failing(job, line):
    """Rounds that fail as the job says."""

    def end(begun, news):
        if job == "unsendable":
            return lambda: news
        raise ValueError("no such number")

    line.rounds(lambda: None, end, lambda: None)


@pytest.mark.parametrize(("job", "message"), [("raise", "worker 0: ValueError: no such number"), ("unsendable", "worker 0: .*(pickle|local)")])
def test_a_worker_that_fails_is_named_with_its_error(job, message, capfd):
    with pytest.raises(WorkerFailed, match=message), Crew(failing, [job]) as crew:
        crew.answer(0, None, pause=False)
        list(crew.reports(lambda: None))
    assert "Traceback" in capfd.readouterr().err


def counting(job, line):
    """Reports which answer each round was given."""
    line.rounds(lambda: None, lambda _, news: news, lambda: "rests")


def test_a_worker_is_answered_every_round_and_rests_when_it_is_told_to():
    with Crew(counting, [0, 1]) as crew:
        assert crew.paused and crew.states == [None, None]
        for first in (0, 10):  # it goes on after a rest with the answer that ends the rest
            crew.answer(1, first, pause=False)
            heard = []
            for index, news in crew.reports(lambda: None):
                assert index == 1
                heard.append(news)
                if news < first + 3:
                    crew.answer(1, news + 1, pause=news == first + 2)
            assert heard == [first, first + 1, first + 2, first + 3]
            assert crew.states == [None, "rests"]
