"""The collapse guard of policies: it sees a real collapse, leaves learning alone, hands over, resumes, and says where there is nothing to see."""

import pytest

from entreg.recipes import a2c, alphazero, dqn, ppo, sac, soft_q
from entreg.record import read_records
from entreg.rl.watching import PolicyWatcher
from entreg.run import Run, RunSettings, exit_status
from tests.faults import final_state, lasting
from tests.recipes.test_resume import assert_same

SMALL = {"environments": 4, "rollout": 16, "hidden": (16,), "video": False, "eval_episodes": 1}
COLLAPSING = {"coef": ("0",), "learning_rate": "0.5", "steps": 2000, "seeds": 3}  # one action for ever: a return of 9.4, after 20 and more


def trained(folder, recipe=a2c, **changes):
    settings = {name: changes.pop(name) for name in ("resume", "checkpoint_every") if name in changes}
    return recipe.train(recipe.Config(**{**SMALL, **changes}), Run(RunSettings(out=folder, quiet=True, **settings)))


def events(summary):
    return [(line["event"], line["message"]) for line in read_records(summary.folder).lines if line.get("event") in ("collapse", "rescue", "stopped")]


def test_a_policy_that_collapses_is_said_and_stops(tmp_path):
    said = events(trained(tmp_path / "warn", **COLLAPSING))
    assert {name for name, _ in said} == {"collapse"} and "of member 2 at step" in said[0][1] and "under 5 % of its maximum 0.6931" in said[0][1]
    stopped = trained(tmp_path / "stop", on_collapse="stop", **COLLAPSING)
    assert stopped.stopped == "collapse" and stopped.step < 2000 and exit_status(stopped) == 1
    assert events(trained(tmp_path / "off", on_collapse="off", **COLLAPSING)) == []


@pytest.mark.parametrize(("recipe", "steps"), [(a2c, 4000), (ppo, 2000)])
def test_policies_that_learn_are_left_alone(tmp_path, recipe, steps):
    summary = trained(tmp_path, recipe, learning_rate="0.01", steps=steps, seeds=2, on_collapse="stop")
    assert summary.stopped is None and events(summary) == []
    assert max(line["return"] for line in read_records(summary.folder).lines if "return" in line) > 30  # from 22


def test_a_rescue_takes_over_and_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole", on_collapse="rescue", **COLLAPSING)
    name, message = events(whole)[0]
    assert name == "rescue" and "coefficient of member" in message
    last = {line["member"]: line for line in read_records(whole.folder).lines if "entropy/max" in line}
    assert (last[1]["rescued"], last[2]["rescued"], last[1]["coef"]) == (0.0, 1.0, 0.0)
    assert last[2]["coef"] > 0.01 and last[2]["entropy/target"] == pytest.approx(0.6931 / 4, abs=1e-3)

    looks = 0
    see = PolicyWatcher.see

    def cut(self, *given):
        nonlocal looks
        looks += 1
        if looks == 75:  # between the hand-over and the alarm
            raise KeyboardInterrupt
        see(self, *given)

    monkeypatch.setattr(PolicyWatcher, "see", cut)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", on_collapse="rescue", checkpoint_every=0, **COLLAPSING)
    monkeypatch.undo()
    resumed = trained(tmp_path / "cut", on_collapse="rescue", resume="latest", **COLLAPSING)
    assert lasting(resumed.folder) == lasting(whole.folder)
    assert_same(final_state(resumed.folder), final_state(whole.folder))


def test_a_rescue_says_once_what_it_did(tmp_path, capsys):
    run = Run(RunSettings(out=tmp_path))
    run.start("a2c", "toy", {}, members=[{"member": 0}, {"member": 1}], total=9)
    watcher = PolicyWatcher(run, "rescue", 2.0, 2, records=20, updates=20, because="")
    with run:
        for step, over in enumerate((0.0, 1.0, 1.0)):
            watcher.see(step, 1, {"entropy": 0.5, "return": 1.0, "rescued": over, "coef": 0.1034, "entropy/target": 0.173})
    said = "a target controller has taken over the coefficient of member 1 by step 1, which is 0.103, to hold 0.173"
    assert capsys.readouterr().err.count(said) == 1
    assert [line["message"] for line in read_records(run.folder).lines if line.get("event") == "rescue"] == [said]


def test_masked_actions_count_by_their_share(tmp_path):
    run = Run(RunSettings(out=tmp_path, quiet=True))
    run.start("a2c", "toy", {}, members=[{"member": 0}], total=9)
    watcher = PolicyWatcher(run, "stop", 2.0, 1, records=20, updates=20, because="")
    with run:
        for step, (share, reward) in enumerate([(1.0, 0.0), (1.0, 10.0), (0.06, 5.0), (0.06, 5.0), (0.06, 5.0), (0.04, 5.0)]):
            watcher.see(step, 0, {"entropy": 0.001, "entropy/max": share, "return": reward})
        watcher.see(6, 0, {"entropy": 0.001, "entropy/max": 0.04})  # no episode has ended: no look
        assert run.stopping() is None
        watcher.see(7, 0, {"entropy": 0.001, "entropy/max": 0.04, "return": 5.0})
        assert run.stopping() == "collapse"


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (a2c, {"on_collapse": "halt"}, "on_collapse must be one of off, warn, stop, rescue, got 'halt'"),
        (
            a2c,
            {"on_collapse": "stop", "env": "tests.rl.small:Turn-v0"},
            "on_collapse must be off or warn, got 'stop': continuous actions have no largest entropy",
        ),
        (sac, {"on_collapse": "rescue", "env": "tests.rl.small:Turn-v0", "steps": 101}, "on_collapse must be off or warn, got 'rescue': continuous actions"),
        (dqn, {"on_collapse": "stop"}, "without exploration boltzmann the entropy is a setting"),
        (alphazero, {"on_collapse": "stop", "env": "tic_tac_toe"}, "in a game against itself the return does not say"),
        (a2c, {"on_collapse": "rescue", "family": ("tsallis(2)",)}, r"on_collapse is rescue with family tsallis\(2\)"),
    ],
)
def test_where_there_is_nothing_to_see_it_cannot_act(tmp_path, recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe.train(recipe.Config(**changes), Run(RunSettings(out=tmp_path / "runs", quiet=True)))
    assert not (tmp_path / "runs").exists()


def test_soft_values_and_games_of_one_player_are_watched():
    assert soft_q.Config().on_collapse == dqn.Config().on_collapse == alphazero.Config().on_collapse == "warn"
