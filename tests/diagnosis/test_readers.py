"""Readers of other trainers' logs: each format against what its own writer wrote, and the names that trainers give."""

import csv
import json
import os
import tracemalloc

import numpy as np
import pytest

from entreg.diagnosis import events, names, read
from entreg.diagnosis.columns import CAPACITY, BadLog, Collector, Key
from entreg.diagnosis.reading import logs_of
from tests.diagnosis.junk import field, record, scalar

STEPS = np.arange(1, 41)
ENTROPY = np.linspace(1.3, 0.4, 40)
REWARD = np.linspace(10.0, 200.0, 40)


def column(log, name, trace=0):
    return log.traces[trace].columns[name]


def check(log, *, coef=None):
    """The log holds ENTROPY and REWARD over STEPS."""
    step, value = column(log, "entropy")
    assert np.array_equal(step, STEPS)
    np.testing.assert_allclose(value, ENTROPY, rtol=1e-6)
    np.testing.assert_allclose(column(log, "reward").value, REWARD, rtol=1e-6)
    if coef is not None:
        np.testing.assert_allclose(column(log, "coef").value, coef, rtol=1e-6)


def rows(**named):
    """A dictionary a step; `__` in a name is `/`."""
    return [{"step": int(step), **{name.replace("__", "/"): float(values[i]) for name, values in named.items()}} for i, step in enumerate(STEPS)]


def write_csv(path, table, separator=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in table for name in row)), delimiter=separator)
        writer.writeheader()
        writer.writerows(table)
    return path


def write_jsonl(path, table):
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


# -------------------------------------------------------------------- formats


def test_progress_csv_as_stable_baselines3_writes_it(tmp_path):
    logger = pytest.importorskip("stable_baselines3.common.logger")
    one = logger.configure(str(tmp_path), ["csv"])
    for step, entropy, reward in zip(STEPS, ENTROPY, REWARD, strict=True):
        one.record("rollout/ep_rew_mean", reward)
        one.record("time/total_timesteps", int(step), exclude="tensorboard")
        if step > 1:  # the first line of a run has no training yet, and the logger writes the file again with more names
            one.record("train/entropy_loss", -entropy)
            one.record("train/policy_gradient_loss", 0.0)
        one.dump(int(step))
    one.close()
    log = read(logs_of(tmp_path)[0])
    assert log.traces[0].facts.host == "stable-baselines3"
    np.testing.assert_allclose(column(log, "entropy").value, ENTROPY[1:], rtol=1e-6)
    np.testing.assert_allclose(column(log, "reward").value, REWARD, rtol=1e-6)
    assert any("minus the entropy: that is what stable-baselines3 logs" in note for note in log.notes)


def test_event_files_as_tensorboard_writes_them(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    pytest.importorskip("tensorboard")
    with tensorboard.SummaryWriter(tmp_path / "run") as writer:
        writer.add_text("config", "some words")
        writer.add_histogram("weights", np.arange(100.0), 0)
        for step, entropy, reward in zip(STEPS, ENTROPY, REWARD, strict=True):
            writer.add_scalar("losses/entropy", entropy, int(step))
            writer.add_scalar("charts/episodic_return", reward, int(step), new_style=True)  # a tensor
            writer.add_scalar("losses/unknown", 0.5, int(step))
    (file,) = logs_of(tmp_path)
    log = read(file)
    check(log)
    assert log.traces[0].facts.host == "cleanrl" and log.broken is None and set(log.traces[0].columns) == {"entropy", "reward"}


def test_members_of_a_population_are_told_apart_by_the_names_that_our_sinks_give_them(tmp_path):
    """TensorBoard has no column for a member, nor has a W&B history: `entropy/member-1`."""
    head = record(field(3, b"brain.Event:2"))
    of = {b"entropy/member-0": ENTROPY, b"reward/member-0": REWARD, b"entropy/member-1": ENTROPY[::-1], b"reward/member-1": REWARD, b"loss/member-1": REWARD}
    scalars = [scalar(tag, step, float(values[step - 1])) for step in range(1, 41) for tag, values in of.items()]
    (tmp_path / "events.out.tfevents.1").write_bytes(head + b"".join(scalars))
    rows = [{"_step": step, **{tag.decode(): float(values[step - 1]) for tag, values in of.items()}} for step in range(1, 41)]
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("events.out.tfevents.1", "history.jsonl"):
        found = {trace.member: trace.columns for trace in read(tmp_path / name).traces}
        assert set(found) == {0, 1} and all(set(columns) == {"entropy", "reward"} for columns in found.values())
        assert found[0]["entropy"].value[0] == pytest.approx(ENTROPY[0]) and found[1]["entropy"].value[0] == pytest.approx(ENTROPY[-1])


def test_event_files_of_one_folder_are_one_run(tmp_path):
    """A resumed run has two, and of two halves the second looks collapsed; an evaluation has one of its own, with no entropy in it."""
    head = record(field(3, b"brain.Event:2"))
    for name, steps in (("2", range(20, 41)), ("1", range(1, 20))):
        scalars = [scalar(tag, step, float(of[step - 1])) for step in steps for tag, of in ((b"entropy", ENTROPY), (b"reward", REWARD))]
        (tmp_path / f"events.out.tfevents.{name}").write_bytes(head + b"".join(scalars))
    (tmp_path / "events.out.tfevents.3.eval").write_bytes(head + b"".join(scalar(b"eval/loss", step, 0.5) for step in range(1, 41)))
    assert logs_of(tmp_path) == [tmp_path]
    log = read(tmp_path)
    check(log)
    assert log.broken is None and log.traces[0].source == str(tmp_path)
    (tmp_path / "events.out.tfevents.1").write_bytes(head + b"".join(scalars)[:-3])
    assert read(tmp_path).broken == f"{tmp_path / 'events.out.tfevents.1'}, record 39: cut off"


def test_every_record_that_tensorboard_writes_has_the_crc_that_is_computed_here(tmp_path):
    crc = pytest.importorskip("tensorboard.summary.writer.record_writer").masked_crc32c
    for data in (b"", b"\0", b"123456789", bytes(range(256))):
        assert events.masked_crc(data) == crc(data)


def test_trainer_state_as_transformers_writes_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    history = [{"epoch": 0.1, **row} for row in rows(entropy=ENTROPY, reward=REWARD, completions__mean_length=REWARD)]
    state = transformers.TrainerState(log_history=history, max_steps=80, global_step=40)
    (tmp_path / "checkpoint-40").mkdir()
    state.save_to_json(str(tmp_path / "checkpoint-40" / "trainer_state.json"))
    log = read(logs_of(tmp_path)[0])
    check(log)
    facts = log.traces[0].facts
    assert (facts.host, facts.planned, facts.finished, log.traces[0].done) == ("trl", 80.0, False, 0.5)
    state.max_steps = 40
    state.save_to_json(str(tmp_path / "checkpoint-40" / "trainer_state.json"))
    (tmp_path / "checkpoint-5").mkdir()  # each holds the whole history so far: the newest is enough
    state.save_to_json(str(tmp_path / "checkpoint-5" / "trainer_state.json"))
    os.utime(tmp_path / "checkpoint-5" / "trainer_state.json", (1, 1))
    assert logs_of(tmp_path) == [tmp_path / "checkpoint-40" / "trainer_state.json"]
    assert read(logs_of(tmp_path)[0]).traces[0].facts.finished is True


def test_a_run_that_was_stopped_is_finished(tmp_path):
    write_jsonl(tmp_path / "records.jsonl", rows(entropy=ENTROPY))
    (tmp_path / "config.json").write_text("{}")
    assert read(tmp_path).traces[0].facts.finished is None
    write_jsonl(tmp_path / "records.jsonl", [*rows(entropy=ENTROPY), {"step": 40, "event": "stopped", "message": "SIGINT"}])
    assert read(tmp_path).traces[0].facts.finished is True


def test_a_folder_of_very_many_logs_is_refused(tmp_path):
    for index in range(257):
        (tmp_path / f"{index}").mkdir()
        (tmp_path / f"{index}" / "progress.csv").touch()
    with pytest.raises(BadLog, match="holds 257 logs; legal are 256 at once"):
        logs_of(tmp_path)


def test_the_console_of_verl(tmp_path):
    lines = ["some words first", ""]
    for row in rows(actor__entropy=ENTROPY, critic__score__mean=REWARD):
        pairs = " - ".join(f"{name}:{value}" if name != "actor/entropy" else f"{name}:np.float64({value!r})" for name, value in row.items() if name != "step")
        lines.append(f"\x1b[36m(TaskRunner pid=7)\x1b[0m step:{row['step']} - timing_s/gen:nonsense - {pairs}")
        lines.append("Training Progress:   5%|#         | 5/40")
    (tmp_path / "out.log").write_text("\n".join(lines))
    log = read(tmp_path / "out.log")
    check(log)
    assert log.traces[0].facts.host == "verl"


def test_jsonl_of_verl(tmp_path):
    check(
        read(
            write_jsonl(
                tmp_path / "x.jsonl", [{"step": row.pop("step"), "data": row} for row in rows(actor__entropy_loss=ENTROPY, critic__rewards__mean=REWARD)]
            )
        )
    )


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_history_of_wandb_as_csv(tmp_path, separator):
    """What `run.history().to_csv` writes: an index, `_step`, empty cells, NaN as text."""
    table = [
        {"": i, "_step": row["step"], "train/entropy": row["entropy"], "train/reward": row["reward"], "train/kl": ""}
        for i, row in enumerate(rows(entropy=ENTROPY, reward=REWARD))
    ]
    check(read(write_csv(tmp_path / "history.csv", table, separator)))


def test_a_chart_of_wandb_as_csv_is_a_trace_a_run(tmp_path):
    table = [
        {"Step": row["step"], "crisp-1 - actor/entropy": row["one"], "crisp-1 - actor/entropy__MIN": 0, "dull-2 - actor/entropy": row["two"]}
        for row in rows(one=ENTROPY, two=REWARD)
    ]
    log = read(write_csv(tmp_path / "chart.csv", table))
    assert [trace.source.rpartition(" ")[2] for trace in log.traces] == ["(crisp-1)", "(dull-2)"]
    assert np.array_equal(column(log, "entropy", 1).value, REWARD)


def test_history_of_wandb_as_jsonl(tmp_path):
    table = [
        {"_step": row["step"], "_runtime": 1.5, "entropy": row["entropy"], "reward": row["reward"], "kl": "NaN", "gradients/w": {"bins": [1], "values": [2]}}
        for row in rows(entropy=ENTROPY, reward=REWARD)
    ]
    check(read(write_jsonl(tmp_path / "history.jsonl", table)))


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_columns_that_the_user_names(tmp_path, write):
    table = rows(pi_h=-ENTROPY, score=REWARD, beta=ENTROPY)
    log = read(write(tmp_path / "x.log", table), ["entropy=-pi_h", "reward=score", "coef=beta"])
    check(log, coef=ENTROPY)


def test_members_of_a_population_are_traces_that_know_the_best_reward(tmp_path):
    table = [{**row, "member": member, "return": row["return"] * member} for row in rows(entropy=ENTROPY, **{"return": REWARD}) for member in (0, 1, 2)]
    log = read(write_jsonl(tmp_path / "records.jsonl", table))
    assert [trace.member for trace in log.traces] == [0, 1, 2] and {trace.facts.best for trace in log.traces} == {400.0}
    assert np.array_equal(column(log, "reward", 2).value, 2 * REWARD)


# -------------------------------------------------------------------- the two signs of entropy_loss


@pytest.mark.parametrize(("sign", "words"), [(-1, "minus the entropy, since no value is above 0"), (1, "the entropy, since no value is below 0")])
def test_the_sign_of_an_entropy_loss_is_told_from_its_values_and_said(tmp_path, sign, words):
    log = read(write_csv(tmp_path / "x.csv", rows(entropy_loss=sign * ENTROPY, reward=REWARD)))
    check(log)
    assert words in log.notes[0] and "--column entropy=" in log.notes[0]


def test_known_trainers_have_the_sign_that_they_log(tmp_path):
    signs = np.linspace(1.0, -1.0, 40)  # densities have entropies of both signs
    sb3 = read(write_csv(tmp_path / "a.csv", rows(train__entropy_loss=signs, train__policy_gradient_loss=signs, rollout__ep_rew_mean=REWARD)))
    verl = read(write_csv(tmp_path / "b.csv", rows(actor__entropy_loss=signs, actor__pg_loss=signs, critic__score__mean=REWARD)))
    assert column(sb3, "entropy").value[0] == -1.0 and column(verl, "entropy").value[0] == 1.0


def test_a_sign_that_cannot_be_told_is_asked_for(tmp_path):
    path = write_csv(tmp_path / "x.csv", rows(entropy_loss=np.linspace(1.0, -1.0, 40), reward=REWARD))
    with pytest.raises(
        BadLog, match=r"x\.csv: entropy_loss has values of both signs, from -1 to 1.*--column entropy=entropy_loss or --column entropy=-entropy_loss"
    ):
        read(path)
    assert column(read(path, ["entropy=-entropy_loss"]), "entropy").value[0] == -1.0


def test_an_entropy_loss_is_not_read_where_there_is_an_entropy(tmp_path):
    log = read(write_csv(tmp_path / "x.csv", rows(entropy=ENTROPY, entropy_loss=-REWARD, reward=REWARD)))
    check(log)
    assert log.notes == []


def test_sac_of_stable_baselines3_logs_no_entropy_but_the_gap_to_its_target(tmp_path):
    coef, gap = np.linspace(0.1, 0.5, 40), np.linspace(-1.0, -0.2, 40)
    log = read(
        write_csv(
            tmp_path / "progress.csv", rows(train__ent_coef=coef, train__ent_coef_loss=np.log(coef) * gap, train__actor_loss=gap, rollout__ep_rew_mean=REWARD)
        )
    )
    np.testing.assert_allclose(column(log, "gap").value, gap, rtol=1e-6)
    assert log.traces[0].facts.host == "stable-baselines3 SAC"
    near = np.linspace(0.5, 1.5, 40)  # where log coef is almost 0 the logged loss says nothing of the gap
    table = rows(train__ent_coef=near, train__ent_coef_loss=np.log(near) * gap + 0.01, train__actor_loss=gap)
    step, value = column(read(write_csv(tmp_path / "progress.csv", table)), "gap")
    assert len(step) < 36 and abs(value - gap[step.astype(int) - 1]).max() < 0.11


# -------------------------------------------------------------------- bounded memory


@pytest.mark.parametrize("count", [1, CAPACITY, 3 * CAPACITY + 7, 40 * CAPACITY + 1])
def test_a_long_series_keeps_its_means_in_few_points(count):
    rng = np.random.default_rng(0)
    value, collector, at = rng.normal(size=count), Collector(), 0
    while at < count:
        size = int(rng.integers(1, 3000))
        collector.add(Key("", 0, "x"), np.arange(at, min(at + size, count)) + 0.0, value[at : at + size])
        at += size
    ((_, (step, mean)),) = collector.of()
    assert len(step) <= 2 * CAPACITY and np.all(np.diff(step) > 0)
    width = int(np.ceil(count / (2 * CAPACITY)))
    width = 1 << (width - 1).bit_length()
    full = count // width * width
    np.testing.assert_allclose(mean[: full // width], value[:full].reshape(-1, width).mean(1), atol=1e-12)
    if full < count:
        np.testing.assert_allclose(mean[-1], value[full:].mean(), atol=1e-12)


def test_a_series_takes_the_same_memory_however_long_it_is():
    """What waits to become a point grew with the log once: 2 GB of CSV took 986 MB."""
    held = []
    tracemalloc.start()
    collector, chunk = Collector(), 16384
    for at in range(0, 300 * chunk, chunk):
        collector.add(Key("", 0, "x"), np.arange(at, at + chunk) + 0.0, np.ones(chunk))
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(held) < 8 * CAPACITY * 16 and max(held[150:]) < 1.2 * max(held[:150])


def test_values_that_are_not_finite_are_counted_and_left_out(tmp_path):
    table = rows(entropy=ENTROPY, reward=REWARD)
    table[3]["entropy"] = float("nan")
    table[7]["entropy"] = float("inf")
    for name, write, line in (("a.csv", write_csv, 5), ("b.jsonl", write_jsonl, 4)):
        log = read(write(tmp_path / name, table))
        assert len(column(log, "entropy").value) == 38
        assert log.notes == [f"entropy: 2 values that are not finite, left out; the first at line {line}"]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 0, "loss": 1.0}, *table]}))
    log = read(tmp_path / "trainer_state.json")
    assert log.notes == ["entropy: 2 values that are not finite, left out; the first at entry 4"]


# -------------------------------------------------------------------- event files, byte by byte


WHOLE = record(field(3, b"brain.Event:2")) + b"".join(scalar(b"entropy", step, 1.0 / step) for step in range(1, 30))


def test_the_records_of_this_test_are_read(tmp_path):
    (tmp_path / "x").write_bytes(WHOLE)
    np.testing.assert_allclose(column(read(tmp_path / "x"), "entropy").value, 1.0 / np.arange(1, 30), rtol=1e-6)


def test_a_truncated_event_file_is_read_as_far_as_it_is_whole_and_says_where_it_is_cut(tmp_path):
    (tmp_path / "x").write_bytes(WHOLE[:-3])
    log = read(tmp_path / "x")
    assert log.broken == f"{tmp_path / 'x'}, record 30: cut off" and len(column(log, "entropy").value) == 28


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (record(field(3, b"brain.Event:3")) + WHOLE, "record 1: format version 'brain.Event:3'; legal is 'brain.Event:2'"),
        (WHOLE[:60] + b"\xff" + WHOLE[61:], "record 2: the CRC of its data is wrong"),
        (WHOLE[:41] + b"\xff" + WHOLE[42:], "record 2: the CRC of its length is wrong"),
        (record(b"\x0b\x0b") + WHOLE, "record 1: no TensorBoard event"),
        (record(b"\xff" * 12), "record 1: no TensorBoard event"),
        (record(field(3, b"brain.Event:2")), "holds no records"),
    ],
)
def test_what_is_wrong_with_an_event_file_is_said_with_its_place(tmp_path, data, words):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(BadLog) as caught:
        read(tmp_path / "x")
    assert words in str(caught.value) and str(tmp_path / "x") in str(caught.value)


# -------------------------------------------------------------------- names


def test_of_two_columns_of_one_thing_the_more_telling_one_counts():
    chosen = names.choose({"entropy": (0, 1), "actor/entropy": (0, 1), "reward": (0, 1), "return": (0, 1)}, {}, {"entropy", "return"})
    assert chosen.choices["entropy"].column == "entropy" and chosen.choices["reward"].column == "return"


@pytest.mark.parametrize("text", ["entropy", "entropi=x", "entropy=", ""])
def test_a_column_that_cannot_be_meant_is_refused(text):
    with pytest.raises(ValueError, match="legal is NAME=COLUMN"):
        names.check_given([text])
    with pytest.raises(ValueError, match="names entropy twice"):
        names.check_given(["entropy=a", "entropy=b"])
