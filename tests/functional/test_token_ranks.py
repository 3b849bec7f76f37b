"""Vocabulary shards: two and four gloo ranks find what one process finds."""

import json

import pytest
import torch

from tests.functional import vocabulary_ranks


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_shards_of_the_vocabulary_are_the_whole(ranks, tmp_path):
    torch.multiprocessing.spawn(vocabulary_ranks.work, args=(ranks, str(tmp_path)), nprocs=ranks)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    whole = vocabulary_ranks.results(None, slice(None))
    for name, expected in whole.items():
        each = [torch.tensor(one[name], dtype=torch.float64) for one in found]
        parts = [torch.cat(each)] if name.endswith("weight") else each
        for part in parts:
            torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-10)
    for one in found:
        torch.testing.assert_close(torch.tensor(one["alone"], dtype=torch.float64), whole["logits"], rtol=1e-9, atol=1e-10)
        assert one["calls"] == 1  # one all-gather
        assert one["refused"].startswith(f"logits: got {[3 + rank for rank in range(ranks)]} classes on the ranks of group")
