"""What ranks compute together is what one process computes on everything; two threads stand for two ranks here."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from entreg.rl import ranks as module
from entreg.rl.learner import Learner
from entreg.rl.normalize import RewardScaler, RunningMoments
from entreg.rl.part import Part
from entreg.rl.population import gradient_shares
from entreg.rl.ranks import Follower, Ranks
from entreg.run import RunSettings


class Meeting:
    """`torch.distributed` for threads."""

    def __init__(self, size):
        self.barrier, self.given, self.here = threading.Barrier(size, timeout=10), [None] * size, threading.local()

    def _all(self, value):
        self.given[self.here.rank] = value
        self.barrier.wait()
        every = list(self.given)
        self.barrier.wait()
        return every

    def all_reduce(self, tensor):
        tensor.copy_(sum(self._all(tensor.clone())))

    def all_gather_object(self, every, value):
        every[:] = self._all(value)


@pytest.fixture
def meet(monkeypatch):
    """`meet(work)` gives what `work(ranks)` gave on each of two ranks."""

    def run(work):
        meeting, results = Meeting(2), [None, None]
        monkeypatch.setattr(module, "dist", meeting)

        def member(rank):
            meeting.here.rank = rank
            results[rank] = work(Ranks(Part(rank, 2)))

        threads = [threading.Thread(target=member, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return results

    return run


VALUES = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 7)))
SPLIT = [(VALUES[:, :5], torch.ones(3, 5)), (torch.cat([VALUES[:, 5:], torch.full((3, 3), 99.0)], 1), torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]] * 3))]


def test_means_and_deviations_are_over_the_items_that_count_on_all_ranks(meet):
    for mean, scaled in meet(lambda ranks: [work(*SPLIT[ranks.part.rank]) for work in (ranks.mean, ranks.standardised)]):
        torch.testing.assert_close(mean, VALUES.mean(1))
        assert mean.shape == (3,) and torch.isfinite(scaled).all()
    expected = (VALUES - VALUES.mean(1, keepdim=True)) / (VALUES.std(1, keepdim=True) + 1e-8)
    one, other = meet(lambda ranks: ranks.standardised(*SPLIT[ranks.part.rank]))
    torch.testing.assert_close(torch.cat([one, other[:, :2]], 1), expected)
    one, other = meet(lambda ranks: ranks.standardised(VALUES[:, :6].chunk(2, 1)[ranks.part.rank]))
    torch.testing.assert_close(torch.cat([one, other], 1), Ranks().standardised(VALUES[:, :6]))


def test_moments_are_those_of_all_batches(meet):
    batches = 3.0 + np.random.default_rng(1).standard_normal((4, 2, 6, 3))

    def seen(part, ranks=None):
        moments = RunningMoments(2, (3,), ranks)
        for batch in batches:
            moments.update(batch[:, part])
        return moments.state_dict()

    expected = seen(slice(None))
    for found in meet(lambda ranks: seen(slice(3 * ranks.part.rank, 3 * ranks.part.rank + 3), ranks)):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12)
    scaled = RewardScaler(2, 6, 0.9)(batches[0, :, :, 0], np.zeros((2, 6), bool))
    parts = meet(lambda ranks: RewardScaler(2, 3, 0.9, ranks)(np.split(batches[0, :, :, 0], 2, axis=1)[ranks.part.rank], np.zeros((2, 3), bool)))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), scaled)


def test_the_share_of_the_bonus_is_that_of_the_gradient_over_all_items(meet):
    def share(ranks, items):
        outputs = torch.arange(12.0).reshape(2, 6)[:, items].clone().requires_grad_()
        weight = torch.full_like(outputs, 0.5)
        return gradient_shares((outputs.square(), weight), (outputs.sin(), weight), outputs, None if ranks is None else ranks.sum)

    for found in meet(lambda ranks: share(ranks, slice(0, 2) if ranks.part.rank == 0 else slice(2, 6))):
        np.testing.assert_allclose(found, share(None, slice(None)), rtol=1e-6)


def test_one_reason_stops_all_and_one_clock_saves_all(meet):
    assert meet(lambda ranks: ranks.agree("SIGTERM" if ranks.part.rank == 1 else None, ranks.part.rank == 0)) == [("SIGTERM", True)] * 2
    assert meet(lambda ranks: ranks.agree(None, False)) == [(None, False)] * 2
    assert Ranks().agree("max_time", True) == ("max_time", True)


def test_episodes_come_in_the_order_in_which_one_process_sees_them(meet):
    """Two members, two steps, two environments of each on a rank: all four of a member end in the second step, the first member's last in the first too."""
    done = np.zeros((2, 2, 4), bool)
    done[:, 1], done[0, 0, 3] = True, True
    expected = [(member, float(10 * t + e)) for t, member, e in zip(*done.swapaxes(0, 1).nonzero(), strict=True)]

    def seen(ranks):
        own = done[:, :, 2 * ranks.part.rank : 2 * ranks.part.rank + 2]
        ended = zip(*own.swapaxes(0, 1).nonzero(), strict=True)
        episodes = [(int(2 * member + e), float(10 * t + e + 2 * ranks.part.rank), 1) for t, member, e in ended]
        experience = SimpleNamespace(terminated=own, truncated=np.zeros_like(own), episodes=episodes)
        return Learner._episodes(SimpleNamespace(ranks=ranks, config=SimpleNamespace(environments=2)), experience)

    for found in meet(seen):
        assert [(index // 2, total) for index, total, _ in found] == expected


def test_a_lost_rank_is_one_error(monkeypatch):
    def broken(*_):
        raise RuntimeError("pair.cc: Connection closed by peer. This is typically caused by something")

    monkeypatch.setattr(module, "dist", SimpleNamespace(all_reduce=broken))
    with pytest.raises(module.RanksLost, match=r"^rank 1 of 2 lost the others: pair.cc: Connection closed by peer$"):
        Ranks(Part(1, 2)).sum(torch.ones(1))


def test_a_follower_writes_nothing_and_gives_its_part_of_a_state_where_it_is_asked(tmp_path):
    run, asked = Follower(RunSettings(out=tmp_path)), []
    run.start("ppo", "CartPole-v1", None, members=(), total=3)
    with run:
        run.log(1, coef=0.1)
        run.event(1, "note", "something")
        assert not run.checkpoint(1, lambda: asked.append(1) or {}) and run.checkpoint(1, lambda: asked.append(2) or {}, force=True)
        assert not run.save_best(0, 1.0, {}) and not run.due() and asked == [2]
        assert run.finish(3, {"return": 1}).metrics == {"return": 1.0}
    assert not list(tmp_path.iterdir())
