"""EntropyRegularizer: masks, micro-batches, checkpoints."""

import torch

from entreg import EntropyRegularizer, TargetEntropy, functional

torch.manual_seed(0)
logits = torch.randn(8, 5, 11, requires_grad=True)
mask = torch.arange(5) < torch.tensor([5, 3, 1, 4, 2, 5, 2, 3])[:, None]

# --8<-- [start:micro]
regularizer = EntropyRegularizer(TargetEntropy(1.5, lr=0.03, init_coef=0.01))
count = mask.sum()  # of the whole accumulation window
for rows in torch.arange(8).split(4):
    entropy = functional.categorical_entropy(logits[rows])
    regularizer(entropy, mask[rows], denominator=count).loss.backward()
accumulated, logits.grad = logits.grad, None

whole = regularizer(functional.categorical_entropy(logits), mask)
whole.loss.backward()
torch.testing.assert_close(accumulated, logits.grad)  # micro-batches of unequal length add up
# --8<-- [end:micro]

# --8<-- [start:state]
regularizer.step()  # the controller reads the window's mean entropy
saved = regularizer.state_dict()  # plain JSON numbers
again = EntropyRegularizer(TargetEntropy(1.5, lr=0.03, init_coef=0.01))
again.load_state_dict(saved)
assert again.coef == regularizer.coef
print(f"entropy {regularizer.entropy:.3f}, target {regularizer.target}, coef {regularizer.coef:.6f}")
# --8<-- [end:state]
