"""The loop of the README, with a policy and batches around it: states with three or four legal actions, of which the first pays."""

from types import SimpleNamespace

import torch


def batches(count=100, size=64):
    for _ in range(count):
        legal = torch.ones(size, 4, dtype=torch.bool)
        legal[::2, 3] = False
        yield SimpleNamespace(obs=torch.rand(size, 3), action=torch.randint(0, 3, (size,)), legal=legal)


def policy_loss(log_prob, batch):
    return -((batch.action == 0).float() * log_prob).mean()


torch.manual_seed(0)
policy = torch.nn.Linear(3, 4)
optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
loader = list(batches())

# --8<-- [start:loop]
from entreg import EntropyRegularizer, functional, linear

regularizer = EntropyRegularizer(linear(0.01, 0.0, steps=10_000))
for batch in loader:
    log_prob, entropy = functional.categorical_stats(policy(batch.obs), batch.action, support=batch.legal)
    term = regularizer(entropy)
    (policy_loss(log_prob, batch) + term.loss).backward()
    optimizer.step()
    optimizer.zero_grad()
    regularizer.step()
# --8<-- [end:loop]

print(f"entropy {term.entropy:.3f} nats, coef {regularizer.coef:.5f}")
