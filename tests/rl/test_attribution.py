"""What the records of on-policy recipes say of who drives entropy."""

import numpy as np
import torch

from entreg.recipes import ppo
from entreg.record import read_records
from entreg.rl import attribution
from entreg.rl.environments import ActionSpec
from entreg.rl.heads import Discrete
from entreg.rl.ranks import Ranks
from entreg.run import Run, RunSettings


def test_the_numbers_are_those_of_each_member_by_itself():
    generator = torch.Generator().manual_seed(0)
    outputs, action = torch.randn(2, 40, 3, generator=generator), torch.randint(3, (2, 40, 1), generator=generator)
    advantage = torch.randn(2, 40, generator=generator)
    log_p = outputs.log_softmax(-1)
    log_prob = log_p.gather(-1, action)[..., 0]
    found = attribution.columns(Ranks(), Discrete(ActionSpec("discrete", (3,))), outputs, action, log_prob, advantage, None)
    for member in range(2):
        p = log_p[member].exp()
        centred = log_p[member] - (p * log_p[member]).sum(-1, keepdim=True)
        step = advantage[member][:, None] * (torch.nn.functional.one_hot(action[member, :, 0], 3) - p)
        change = -(p * centred * step).sum(-1)
        covariance = torch.cov(torch.stack([log_prob[member], advantage[member]]), correction=0)[0, 1]
        np.testing.assert_allclose(found["entropy/covariance"][member], covariance, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["entropy/drift"][member], change.mean(), rtol=1e-4, atol=1e-6)
        totals = [change[action[member, :, 0] == one].sum().item() for one in range(3)]
        assert found["entropy/driver"][member] == int(np.argmin(totals))


def test_a_run_records_them(tmp_path):
    config = ppo.Config(steps=512, environments=4, rollout=32, epochs=1, hidden=(8,), seeds=2, eval_episodes=1, video=False)
    folder = ppo.train(config, Run(RunSettings(out=tmp_path, quiet=True))).folder
    rows = [row for row in read_records(folder).lines if "grad_share" in row]
    assert len(rows) == 8 and all(np.isfinite([row["entropy/covariance"], row["entropy/drift"]]).all() and row["entropy/driver"] in (0, 1) for row in rows)
