"""The comparison of ways to explore: what is written is complete, and the page shows it."""

from bench import common, exploration

from tests.test_studies import without_intervals

ROWS = common.read(exploration.RESULTS / "exploration.csv")


def test_the_tables_stand_on_the_page():
    page = without_intervals(exploration.PAGE.read_text(encoding="utf-8"))
    for table in (exploration.results(ROWS), exploration.differences(ROWS)):
        for line in without_intervals(table).splitlines():
            assert line.replace("**", "") in page.replace("**", "")


def test_every_arm_that_was_run_has_the_seeds_and_steps_of_its_task():
    found = [(row["task"], row["arm"], int(row["seed"])) for row in ROWS]
    assert len(set(found)) == len(found)
    for task, arm in {(row["task"], row["arm"]) for row in ROWS}:
        steps = {int(row["steps"]) for row in ROWS if (row["task"], row["arm"]) == (task, arm)}
        assert len(exploration.of(ROWS, task, arm)) == exploration.TASKS[task].seeds
        assert all(0 <= one - exploration.TASKS[task].steps < 1024 for one in steps) and arm in exploration.ARMS
