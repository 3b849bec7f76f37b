"""The suite notices the mistakes of `mutants.toml`, and the runner notices a list that is wrong (`python -m tests.mutation`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import mutation
from tests.mutation import Mutant

pytestmark = pytest.mark.slow
LIST = Path(__file__).with_name("mutants.toml")
SUITE = "tests/functional/test_losses.py"


def ran(list_):
    """The runner in a process that has not imported entreg; macOS otherwise forbids forks once its frameworks are loaded."""
    command = [sys.executable, "-m", "tests.mutation", "--list", str(list_)]
    environment = {**os.environ, "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}
    return subprocess.run(command, cwd=mutation.ROOT, env=environment, check=False, capture_output=True, text=True)


def written(path, *mutants):
    """A list of rows (line, mutant, test) for the functions of `losses.py`."""
    path.write_text("\n".join(f"[[mutant]]\nfile = 'functional/losses.py'\nline = '{a}'\nmutant = '{b}'\ntests = ['{test}']" for a, b, test in mutants))
    return path


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_every_mutant_is_killed_and_the_code_as_it_is_passes():
    mutants = mutation.read(LIST)
    assert len(mutants) >= 30 and len({mutant.file.split("/")[0] for mutant in mutants}) > 10
    ended = ran(LIST)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith(f"baseline green, {len(mutants)} of {len(mutants)} mutants killed\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_what_is_no_kill_is_said(tmp_path):
    line = "return -advantage.detach() * log_prob"
    (tmp_path / "test_broken.py").write_text("import no_such_module")
    rows = [
        ("survived", line, "return -(advantage.detach() * log_prob)", SUITE),
        ("survived", line, "return -advantage.detach()*log_prob", f"{SUITE}::test_clip_high_defaults_to_clip_and_is_checked"),
        ("error: no such test", line, "return advantage.detach() * log_prob", f"{SUITE}::test_of_another_name"),
        ("error: no collection", line, "return log_prob * advantage.detach()", str(tmp_path / "test_broken.py")),
        ("error: no import", "clip: float = 0.2,", "clip: float = unknown,", SUITE),
        ("error: ended by signal 9", line, "__import__(\"os\").kill(0, 9)", SUITE),
    ]  # fmt: skip
    ended = ran(written(tmp_path / "list.toml", *(row[1:] for row in rows), (line, "return advantage.detach() * log_prob", SUITE)))
    assert ended.returncode == 1 and "baseline RED, 1 of 7 mutants killed" in ended.stdout, ended.stdout + ended.stderr
    for result, before, after, _ in rows:
        assert f"{result}: functional/losses.py: {before}  ->  {after}" in ended.stdout, ended.stdout


@pytest.mark.parametrize("line", ["advantage", "no such line", "advantage.detach()\n"])
def test_a_line_must_stand_in_its_file_once(line):
    with pytest.raises(ValueError, match="legal is one line that stands there once"):
        mutation.mutated(Mutant("functional/losses.py", line, "", [SUITE]))


def test_a_list_holds_mutants_only(tmp_path):
    for rows in ([("a", "a", SUITE)], [("a", "b", SUITE)] * 2):
        with pytest.raises(ValueError, match="no mutants"):
            mutation.read(written(tmp_path / "list.toml", *rows))
