"""A signal in any phase saves and ends the run, and the resumed run is the uninterrupted one; a phase that would take too long is given up."""

import os
import signal

import pytest

from entreg.recipes import ppo
from entreg.rl import episodes
from entreg.rl.cartpole import CartPole
from entreg.rl.learner import Learner
from entreg.run import Run, RunSettings
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same

CONFIG = ppo.Config(environments=4, rollout=16, hidden=(8,), steps=1024, coef=("linear(0.1, 0)",), video=False, eval_episodes=2, epochs=2, batch_size=32)


def run(folder, **changes):
    return Run(RunSettings(out=folder, quiet=True, eval_every=300, **changes))


def sending(function, at):
    """`function` that sends SIGTERM to this process when it is called for the time number `at`."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **kwargs)

    return wrapped


PHASES = {
    "rollout": (CartPole, "step", 40),
    "update": (Learner, "gradient_step", 13),
    "evaluation": (episodes, "evaluate_members", 1),
    "last evaluation": (episodes, "evaluate_members", 4),
}


@pytest.mark.parametrize("phase", list(PHASES))
def test_a_signal_in_any_phase_saves_and_the_run_goes_on_exactly(phase, tmp_path, monkeypatch):
    whole = ppo.train(CONFIG, run(tmp_path / "whole"))
    owner, name, at = PHASES[phase]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, sending(getattr(owner, name), at))
        stopped = ppo.train(CONFIG, run(tmp_path / "cut"))
    assert stopped.stopped == "SIGTERM" and (0 < stopped.step < 1024 or phase == "last evaluation")
    resumed = ppo.train(CONFIG, run(tmp_path / "cut", resume=str(stopped.folder)))
    assert resumed.stopped is None
    assert lasting(resumed.folder) == lasting(whole.folder)
    assert_same(final_state(resumed.folder), final_state(whole.folder))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_rollout_that_would_take_too_long_after_a_signal_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("entreg.run.PATIENCE", 0.0)
    monkeypatch.setattr(CartPole, "step", sending(CartPole.step, 40))
    with pytest.raises(SystemExit) as stop:
        ppo.train(CONFIG, run(tmp_path, checkpoint_every=0.0))
    assert stop.value.code == 143
    (folder,) = tmp_path.iterdir()
    monkeypatch.undo()
    whole = ppo.train(CONFIG, run(tmp_path / "whole"))
    resumed = ppo.train(CONFIG, run(tmp_path, resume=str(folder)))
    assert lasting(resumed.folder) == lasting(whole.folder)
