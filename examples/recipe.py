"""A recipe from Python: train, read the records, use the policy. `entreg train ppo` is the same without the shell."""

import entreg
from entreg.recipes import ppo
from entreg.record import read_records
from entreg.run import Run, RunSettings

# --8<-- [start:train]
config = ppo.Config(env="CartPole-v1", coef=("linear(0.01, 0)", "0"), steps=4096)
summary = ppo.train(config, Run(RunSettings(seed=3, out="runs", quiet=True)))
# --8<-- [end:train]

# --8<-- [start:use]
last = [record for record in read_records(summary.folder).lines if "entropy" in record][-1]
print({name: last[name] for name in ("step", "member", "entropy", "coef")})
policy = entreg.load(summary.folder)
action = policy.act([0.0, 0.0, 0.05, 0.0])
assert action in (0, 1)
# --8<-- [end:use]
