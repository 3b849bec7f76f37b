"""`entreg diagnose`: what it prints, its exit status, JSON, and a log that grows."""

import json

import pytest

from entreg import cli
from entreg.diagnosis import command
from entreg.record import Recorder


def collapse(steps, *, start=1, member=0, rate=0.8):
    """Records of a policy that loses its entropy and earns nothing."""
    return [
        {"step": step, "member": member, "entropy": 0.69 * rate**step, "entropy/max": rate**step, "return": 9.0 + step % 2}
        for step in range(start, start + steps)
    ]


def healthy(steps, member=0):
    return [
        {"step": step, "member": member, "entropy": 0.69 - 0.01 * step, "entropy/max": 1 - 0.014 * step, "return": 9.0 + step} for step in range(1, steps + 1)
    ]


def write(folder, records):
    with Recorder(folder) as recorder:
        for record in records:
            recorder.append(record)
    return folder


def diagnose(capsys, *words):
    status = cli.main(["diagnose", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_finding_of_severity_fail_is_exit_status_one_and_says_what_to_do(tmp_path, capsys):
    status, out, err = diagnose(capsys, write(tmp_path / "run", collapse(40)))
    assert status == 1 and err == ""
    assert "fail collapsed at step 14: entropy 0.017 % of its maximum, under 5 % since step 14, and the reward 9.33 is no better than at the start" in out
    assert "-> raise --coef from the start" in out


def test_a_healthy_run_is_exit_status_zero(tmp_path, capsys):
    status, out, err = diagnose(capsys, write(tmp_path / "run", healthy(40)))
    assert (
        (status, err) == (0, "")
        and "ok   none of 10 rules holds" in out
        and out.startswith(f"{tmp_path / 'run'}: entreg, to step 40, reads entropy, reward, share")
    )


def test_members_of_a_population_share_a_line(tmp_path, capsys):
    status, out, _ = diagnose(capsys, write(tmp_path / "run", [*collapse(40), *collapse(40, member=1), *healthy(40, member=2)]))
    assert status == 1 and "in 2 of 3 members (0, 1; the first:)" in out and out.count("->") == 1


def test_json_is_one_object_with_findings_and_how_logs_were_read(tmp_path, capsys):
    rows = [{"step": record["step"], "entropy_loss": -record["entropy"], "return": record["return"]} for record in collapse(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, err = diagnose(capsys, tmp_path / "x.jsonl", "--json", "--best", 500)
    page = json.loads(out)
    assert status == 1 and "read as minus the entropy" in err
    assert page["logs"][0]["columns"] == ["entropy", "reward"] and "minus the entropy" in page["logs"][0]["notes"][0]
    (finding,) = page["findings"]
    assert (finding["rule"], finding["severity"], finding["member"], finding["source"]) == ("collapsed", "fail", 0, str(tmp_path / "x.jsonl"))
    assert len(page["rules"]) == 10 and page["unread"] == {}


def test_json_names_the_logs_that_could_not_be_read(tmp_path, capsys):
    write(tmp_path / "run", collapse(40))
    (tmp_path / "junk.csv").write_bytes(b"step,entropy\n1,low\n")
    status, out, err = diagnose(capsys, tmp_path / "run", tmp_path / "junk.csv", tmp_path / "none", "--json")
    page = json.loads(out)
    assert status == 2 and len(err.splitlines()) == 2 and len(page["logs"]) == 1 and len(page["findings"]) == 1
    assert list(page["unread"]) == [str(tmp_path / "junk.csv"), str(tmp_path / "none")]
    assert "line 2: entropy is 'low'" in page["unread"][str(tmp_path / "junk.csv")] and "cannot be read" in page["unread"][str(tmp_path / "none")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--column", "entropi=x"], "column is 'entropi=x'; legal is NAME=COLUMN"),
        (["--column", "entropy=pi"], "no column 'pi' for entropy; there are entropy, "),
        (["--steps", "-3"], "steps is -3.0; legal is a finite number above 0"),
        (["--max-entropy", "nan"], "max-entropy is nan"),
        (["--best", "inf"], "best is inf"),
        (["--watch", "0"], "watch is 0.0; legal are seconds from 0.05"),
    ],
)
def test_wrong_words_are_one_line_and_exit_status_two(tmp_path, capsys, words, said):
    status, out, err = diagnose(capsys, write(tmp_path / "run", healthy(12)), *words)
    assert (status, out) == (2, "") and said in err and err.count("\n") == 1


def test_latest_is_the_run_that_wrote_last(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs" / "one", healthy(12))
    assert "holds no run" in diagnose(capsys, "latest")[2]
    page = {"recipe": "ppo", "task": "x", "config": {"steps": 12}, "run": {}}
    (tmp_path / "runs" / "one" / "config.json").write_text(json.dumps(page))
    status, out, _ = diagnose(capsys, "latest")
    assert status == 0 and out.startswith("runs/one: entreg")


def test_a_folder_of_runs_is_all_of_them(tmp_path, capsys):
    write(tmp_path / "a", healthy(12))
    write(tmp_path / "deep" / "b", collapse(40))
    status, out, _ = diagnose(capsys, tmp_path)
    assert status == 1 and out.index(str(tmp_path / "a")) < out.index(str(tmp_path / "deep" / "b"))


def test_what_the_caller_knows_changes_what_is_found(tmp_path, capsys):
    rows = [{"step": step, "entropy": 0.02 + 0.001 * (step % 2), "reward": 9} for step in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert diagnose(capsys, tmp_path / "x.jsonl")[0] == 0
    assert "no better than at the start" in diagnose(capsys, tmp_path / "x.jsonl", "--max-entropy", 1.4)[1]
    assert diagnose(capsys, tmp_path / "x.jsonl", "--max-entropy", 1.4, "--best", 500)[0] == 1


def test_watching_prints_a_finding_once_when_it_comes_and_ends_with_the_state_at_ctrl_c(tmp_path, capsys):
    run, looks = write(tmp_path / "run", healthy(12)), []

    def wait(seconds):
        looks.append((seconds, capsys.readouterr().out))
        if len(looks) == 1:
            write(run, [{**record, "step": record["step"] + 12} for record in collapse(60)])
        if len(looks) == 2:
            with (run / "records.jsonl").open("a") as file:
                file.write('{"step": 90, "ent')  # torn: somebody writes
        if len(looks) == 4:
            raise KeyboardInterrupt

    assert command.run([str(run)], watch=2.5, wait=wait) == 1
    assert [seconds for seconds, _ in looks] == [2.5] * 4 and looks[0][1] == ""
    assert looks[1][1].count("fail collapsed") == 1 and looks[1][1].count("\n") == 1
    assert looks[2][1] == looks[3][1] == ""


def test_watching_a_log_that_is_not_there_yet(tmp_path, capsys):
    looks = []

    def wait(_):
        looks.append(capsys.readouterr())
        if len(looks) == 1:
            write(tmp_path / "run", collapse(40))
        else:
            raise KeyboardInterrupt

    assert command.run([str(tmp_path / "run")], watch=1.0, as_json=True, wait=wait) == 1
    assert "cannot be read" in looks[0].err and json.loads(looks[1].out)["rule"] == "collapsed"


@pytest.mark.parametrize(("last", "status"), [("ill", 1), ("well", 0)])
def test_watching_says_a_finding_again_once_it_was_over(tmp_path, capsys, last, status):
    path, looks, states = tmp_path / "x.jsonl", [], {"ill": collapse(40), "well": healthy(41)}
    turns = ["ill", "ill", "well", "ill", last]

    def show(turn):
        rows = states[turn] if len(looks) != 1 else [*states[turn], {"step": 41, "return": 9.0}]  # the same, one line longer
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n" * len(looks))

    def wait(_):
        looks.append(capsys.readouterr().out.count("fail collapsed"))
        if len(looks) == len(turns):
            raise KeyboardInterrupt
        show(turns[len(looks)])

    show(turns[0])
    assert command.run([str(path)], watch=1.0, wait=wait) == status
    assert looks == [1, 0, 0, 1, 0]


def test_a_bad_log_outranks_a_finding(tmp_path, capsys):
    (tmp_path / "bad.csv").write_bytes(b"step,loss\n1,2\n")
    status, out, _ = diagnose(capsys, write(tmp_path / "run", collapse(40)), tmp_path / "bad.csv")
    assert status == 2 and "fail collapsed" in out
