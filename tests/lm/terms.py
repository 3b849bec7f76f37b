"""Our term, written anew on plain logits from what TRL's documentation says of a batch: what tests of its trainers compare with."""

import torch

from entreg.functional import categorical_entropy


def predictions(kind, inputs):
    """Token ids `[B, T]` of a batch, and which next-token predictions `[B, T-1]` count, written anew from what TRL's documentation says of a batch."""
    if kind in ("grpo", "rloo"):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        counted = torch.cat([torch.zeros_like(inputs["prompt_ids"]), inputs["completion_mask"]], 1)
        return ids, torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1), counted[:, 1:].bool()
    counted = inputs["labels"] != -100 if kind == "sft" else inputs["completion_mask"].bool()
    return inputs["input_ids"], inputs["attention_mask"], counted[:, 1:]


def plain_term(kind, network, batches, family, over, coef):
    """Gradient of -coef times the mean entropy a token over all batches, from plain logits; for a trajectory also through the choice of prefixes."""
    total, count = 0.0, 0
    for inputs in batches:
        ids, attention, counted = predictions(kind, inputs)
        logits = network(input_ids=ids, attention_mask=attention).logits[:, :-1].double()
        entropy = categorical_entropy(logits, family) * counted
        count += int(counted.sum())
        total = total - entropy.sum()
        if over == "trajectory":
            log_prob = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            rows, length = entropy.shape
            for row in range(rows):
                for place in range(length):
                    if counted[row, place]:
                        ahead = [entropy[other, place + 1 :].sum().item() for other in range(rows) if counted[other, place] and other != row]
                        baseline = sum(ahead) / len(ahead) if ahead else 0.0
                        total = total - (entropy[row, place + 1 :].sum().item() - baseline) * log_prob[row, place]
    loss = coef * total / count
    loss.backward()
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in network.parameters()])


def spied(one, batches):
    """Keeps the batches that its loss sees."""
    inner = one.compute_loss

    def compute_loss(model, inputs, **how):
        batches.append(dict(inputs))
        return inner(model, inputs, **how)

    one.compute_loss = compute_loss
    return one
