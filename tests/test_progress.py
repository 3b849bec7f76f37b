"""What a run shows: lines where nobody looks, a table on a terminal, nothing when told so."""

import io

import pytest

from entreg.progress import LINE_EVERY, ROWS, Progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def record(step, member=0, **values):
    return {
        "step": step,
        "time": 0.0,
        "member": member,
        "return": 10.0 * (member + 1),
        "entropy": 0.5,
        "entropy/max": 0.72,
        "coef": 0.01,
        "steps_per_second": 12345.6,
        **values,
    }


def shown(records, *, tick=0.0, **options):
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream=stream, clock=clock, **options)
    for one in records:
        progress.show(one)
        clock.now += tick
    progress.close()
    progress.close()
    return stream.getvalue()


def test_a_plain_line_every_few_seconds_and_at_the_end():
    text = shown([record(step) for step in range(21)], tick=LINE_EVERY / 4, total=40)
    lines = text.splitlines()
    assert [line.split()[1] for line in lines] == ["0", "4", "8", "12", "16", "20"]
    assert lines[-1] == "step 20 of 40 (50%)  12345.6 steps/s  return 10  entropy 0.5  of max 0.72  coef 0.01"


def test_members_are_one_line():
    text = shown([record(5, member) for member in range(3)], members=3)
    assert (
        text.splitlines()[-1] == "step 5  12345.6 steps/s  return 20 (10 to 30)  entropy 0.5 (0.5 to 0.5)  of max 0.72 (0.72 to 0.72)  coef 0.01 (0.01 to 0.01)"
    )


def test_an_evaluation_line_keeps_what_was_known():
    text = shown([record(5), {"step": 6, "member": 0, "eval/return": 3.0}, {"step": 7, "event": "stopped", "message": ""}])
    assert text.splitlines()[-1].startswith("step 6  12345.6 steps/s  return 10")


def test_quiet_is_quiet_and_nothing_is_nothing():
    assert shown([record(1)], quiet=True) == ""
    assert shown([], members=2) == ""


@pytest.mark.parametrize("members", [1, ROWS, ROWS + 1])
def test_the_table_on_a_terminal(monkeypatch, members):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown([record(7, member) for member in range(members)], terminal=True, members=members, title="ppo CartPole-v1", total=10)
    for word in ("ppo CartPole-v1", "step 7 of 10 (70%)", "12345.6 steps/s", "return", "entropy", "of max", "0.72", "coef"):
        assert word in text, word
    assert ("lowest" in text and "highest" in text) == (members > ROWS)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back


def test_no_color(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    colours = []
    for value in (None, "1"):
        monkeypatch.setenv("NO_COLOR", value) if value else monkeypatch.delenv("NO_COLOR", raising=False)
        colours.append("\x1b[3" in shown([record(1)], terminal=True).replace("\x1b[3m", ""))
    assert colours[1] is False


def test_a_stream_that_is_gone_ends_the_showing_and_not_the_run():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    progress = Progress(stream=Gone())
    progress.show(record(1))
    progress.close()


def test_values_that_are_missing_or_not_finite():
    text = shown([record(1, entropy=None, coef=float("nan"), **{"return": float("inf")})])
    assert "return inf" in text and "coef nan" in text and "entropy" not in text.replace("entropy/max", "")
