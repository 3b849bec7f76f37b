"""Entropy regularisation in a loop of one's own: a bandit with legal and illegal arms, two dozen lines without the imports."""

import torch

from entreg import EntropyRegularizer, Recorder, functional, linear

torch.manual_seed(0)
ARMS, BATCH, STEPS = 10, 256, 200
pays = torch.rand(ARMS)
legal = torch.ones(ARMS, dtype=torch.bool)
legal[::3] = False

policy = torch.nn.Linear(1, ARMS)
optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
regularizer = EntropyRegularizer(linear(0.1, 0.0, steps=STEPS))

with Recorder("runs/bandit") as recorder:  # two lines in anybody's loop feed `entreg report`
    for step in range(STEPS):
        logits = policy(torch.ones(BATCH, 1))
        action = torch.distributions.Categorical(logits=logits.detach().masked_fill(~legal, -torch.inf)).sample()
        log_prob, entropy = functional.categorical_stats(logits, action, support=legal)
        term = regularizer(entropy)
        reward = pays[action]
        (functional.policy_gradient(log_prob, reward - reward.mean()).mean() + term.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        regularizer.step()
        recorder.log(step, entropy=term.entropy, coef=term.coef, reward=reward.mean())

print(f"legal arm that pays most: {int(pays.masked_fill(~legal, 0).argmax())}, arm the policy takes: {int(logits[0].masked_fill(~legal, -torch.inf).argmax())}")
