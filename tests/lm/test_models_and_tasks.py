"""Tiny models, tokenizers, the tasks and sampling: what language-model recipes stand on."""

import random

import pytest

pytest.importorskip("transformers")

import torch

from entreg.lm import arithmetic, models, sampling, start

SPLIT, ADD = arithmetic.make("split", 9), arithmetic.make("add", 9)


@pytest.fixture(scope="module")
def made():
    return start.beginner(SPLIT, 0, steps=40, learning_rate=1e-2, width=16)


def test_a_saved_model_comes_back_with_its_tokenizer(made, tmp_path):
    network, tokenizer = made
    again, loaded = models.load(models.save(network, tokenizer, tmp_path))
    text = "7=3+4 \x00é<|end|>"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert loaded(text)["input_ids"] == ids[0].tolist() and loaded.decode(ids[0]) == text
    torch.testing.assert_close(network(ids).logits, again(ids).logits)
    scores, _ = models.load(tmp_path, scores=True)
    assert scores(ids).logits.shape == (1, 1)


def test_what_is_no_model_is_refused_before_anything_is_loaded(made, tmp_path):
    with pytest.raises(ValueError, match="is no folder on this machine; legal"):
        models.load("Qwen/Qwen2-0.5B")
    with pytest.raises(ValueError, match=r"holds no config\.json; legal"):
        models.load(tmp_path)
    network, tokenizer = made
    # transformers adds a token of its own on loading
    outside = models.load_tokenizer(models.save(network, tokenizer, tmp_path / "first")).convert_ids_to_tokens(len(tokenizer))
    for index, (pad, message) in enumerate(
        ((None, "has no pad token"), (tokenizer.eos_token, "pads with its end token"), (outside, "token 258, and the model has 258 tokens"))
    ):
        folder = models.save(network, tokenizer, tmp_path / str(index))
        changed = models.load_tokenizer(folder)
        changed.pad_token = pad
        changed.save_pretrained(folder)
        with pytest.raises(ValueError, match=message):
            models.load(folder)


def broken(made, folder, change):
    """A folder of the model that lacks something."""
    models.save(*made, folder)
    change(folder)
    return folder


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def shard(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    (folder / "model-1.safetensors").touch()


def endless(folder):
    tokenizer = models.load_tokenizer(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds no model\.safetensors; legal"),
        (cut, r"model\.safetensors' cannot be read: .*; legal"),
        (shard, r"holds no model-2\.safetensors; legal"),
        (endless, "has no end token"),
    ],
    ids=["no weights", "cut short", "a shard missing", "no end token"],
)
def test_what_is_half_a_model_is_refused(made, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        models.load(broken(made, tmp_path / "half", change))


def test_a_tokenizer_that_is_another_models_is_refused(made, tmp_path):
    more = models.byte_tokenizer(start.texts(SPLIT))
    more.add_tokens(["0+"])
    folder = models.save(made[0], more, tmp_path / "more")
    with pytest.raises(ValueError, match="and the model has the tokens 0 to 257; legal"):
        models.check_texts(folder, start.texts(SPLIT))
    empty = broken(made, tmp_path / "empty", lambda folder: (folder / "tokenizer.json").unlink())
    with pytest.raises(ValueError, match=r"writes '1=0\+1' as \[\]"):
        models.check_texts(empty, start.texts(SPLIT))
    models.check_texts(models.save(*made, tmp_path / "right"), start.texts(SPLIT))


def test_a_reward_model_has_a_head_of_its_own(made, tmp_path):
    folder = models.save(*made, tmp_path / "policy")
    with pytest.raises(ValueError, match=r"reward_model: .* holds Qwen2ForCausalLM with \d labels; legal"):
        models.check_scores(folder)
    network, tokenizer = models.load(folder, scores=True)
    models.check_scores(models.save(network, tokenizer, tmp_path / "reward"))
    with pytest.raises(ValueError, match="reward_model: 'nowhere' is no folder"):
        models.check_scores("nowhere")


def test_a_folder_is_there_only_when_all_of_it_is(made, tmp_path, monkeypatch):
    (tmp_path / "start.part").mkdir()  # of a process that was killed
    (tmp_path / "start.part" / "config.json").write_text("{")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(made[1], "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            models.save_whole(*made, tmp_path / "start")
    assert not (tmp_path / "start").exists()
    models.load(models.save_whole(*made, tmp_path / "start"))
    assert [path.name for path in tmp_path.iterdir()] == ["start"]


def test_weights_and_training_come_from_the_seed_and_leave_torchs_stream_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other, third = (start.beginner(SPLIT, seed, steps=2, width=16)[0] for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    weights = [network.get_input_embeddings().weight for network in (one, other, third)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_beginner_has_learnt_something(made):
    network, tokenizer = made
    rows = arithmetic.demonstrations(SPLIT, 64, 9)
    ids, labels = start.encode(tokenizer, rows)
    fresh = models.tiny_model(tokenizer, 0, width=16)
    losses = [model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss.item() for model in (network, fresh)]
    assert losses[0] < 0.6 * losses[1]
    assert [int(row) for row in (labels != start.IGNORED).sum(1)] == [len(row["completion"]) + 1 for row in rows]


@pytest.mark.parametrize("task", [SPLIT, ADD], ids=["split", "add"])
def test_answers_are_right_and_wrong_ones_wrong(task):
    draw = random.Random(0)
    for prompt in task.prompts:
        assert all(task.right(prompt, answer) for answer in task.answers(prompt)) and max(map(len, task.answers(prompt))) <= arithmetic.WIDEST
        assert not task.right(prompt, task.wrong(prompt, draw))
    for row in arithmetic.pairs(task, 50, 0):
        assert task.right(row["prompt"], row["chosen"]) and row["chosen"] != row["rejected"]
    assert arithmetic.reward(task)(["7="] if task is SPLIT else ["3+4="], ["3+4"]) == [float(task is SPLIT)]


def test_sums_hold_every_fifth_prompt_out_and_splits_none():
    assert len(ADD.prompts) == 80 and len(ADD.judged) == 20 and not set(ADD.prompts) & set(ADD.judged)
    assert SPLIT.prompts == SPLIT.judged
    for name, largest, message in (("mul", 9, "task is 'mul'"), ("add", 4, "largest is 4"), ("add", 100, "largest is 100")):
        with pytest.raises(ValueError, match=message + "; legal"):
            arithmetic.make(name, largest)


def test_preferring_small_first_numbers_rejects_right_answers_too():
    rows = arithmetic.pairs(SPLIT, 200, 0, first_smaller=True)
    assert any(SPLIT.right(row["prompt"], row["rejected"]) for row in rows)
    for row in rows:
        first, second = map(int, row["chosen"].split("+"))
        assert first <= second


class Fixed(torch.nn.Module):
    """A model whose next token has the same logits everywhere."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.device = logits, torch.device("cpu")

    def forward(self, input_ids, **_):
        return type("Output", (), {"logits": self.logits.expand(*input_ids.shape, -1)})


def test_sampling_follows_the_softmax_at_the_temperature_and_stops_at_the_end(made):
    _, tokenizer = made
    logits = torch.full((len(tokenizer),), -30.0)
    digit, end = tokenizer("7")["input_ids"][0], tokenizer.eos_token_id
    logits[digit], logits[end] = 0.0, 1.0
    drawn = sampling.sample(Fixed(logits), tokenizer, ["3="], 4000, temperature=2.0, length=3)
    share = sum(text == "" for text in drawn.texts[0]) / 4000
    assert share == pytest.approx(1 / (1 + torch.tensor(-0.5).exp().item()), abs=0.03)
    assert set(drawn.texts[0]) == {"", "7", "77", "777"}
    p = torch.tensor(1 / (1 + torch.tensor(-1.0).exp().item()))
    assert drawn.entropy == pytest.approx(float(-p * p.log() - (1 - p) * (1 - p).log()), abs=1e-5)  # at temperature 1
    assert sampling.sample(Fixed(logits), tokenizer, ["3="], 3, temperature=0).texts == [["", "", ""]]


def test_sampling_is_repeatable_and_leaves_torchs_stream_alone(made):
    before, training = torch.get_rng_state(), made[0].training
    one, same, other = (sampling.sample(*made, SPLIT.prompts, 4, seed=seed).texts for seed in (0, 0, 1))
    assert one == same != other and torch.equal(before, torch.get_rng_state()) and made[0].training == training


def test_pass_at_k_by_enumeration_and_judging():
    import itertools

    right = [True, False, False, True, False]
    for k in range(1, 6):
        drawn = list(itertools.combinations(right, k))
        assert sampling.pass_at(2, 5, k) == pytest.approx(sum(any(one) for one in drawn) / len(drawn))
    with pytest.raises(ValueError, match="k is 6 with 5 samples; legal"):
        sampling.pass_at(2, 5, 6)
    drawn = sampling.Sampled([["0+1", "1+0", "1+0", "2"], ["9", "9", "9", "9"]], 0.0)
    assert sampling.judge(SPLIT, ["1=", "9="], drawn) == {"pass@1": 0.375, "distinct": 1.0, "distinct/max": 0.5}
