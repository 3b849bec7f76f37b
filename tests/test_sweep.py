"""What a sweep is, what it refuses, what it finds, and that its storage and report say so."""

import json
import sys
import warnings
from dataclasses import dataclass
from types import ModuleType
from wsgiref.util import setup_testing_defaults

import numpy as np
import pytest
from scipy import stats

from entreg import cli, report, sweep
from entreg.recipes import fixmatch, ppo, sft
from entreg.record import Recorder
from entreg.report import data, plots
from entreg.run import Run, RunSettings, Summary
from entreg.statistics import tail
from entreg.sweep import choice, page
from entreg.sweep.options import Options
from entreg.sweep.plan import Setting, make
from entreg.sweep.store import Store
from entreg.sweep.work import Worker, measured, result_of

OPTUNA = {"tpe": {"sampler": "tpe"}, "random": {"sampler": "random", "pruner": "hyperband"}, "grid": {"pruner": "median"}}
TINY = ("--steps", "256", "--environments", "2", "--rollout", "32", "--hidden", "8", "--eval-episodes", "2", "--quiet")


@dataclass(frozen=True)
class Config:
    """A recipe whose return is a known function of coefficient and seed."""

    env: str = "toy"
    coef: tuple[str, ...] = ()
    family: tuple[str, ...] = ("shannon",)
    seeds: int = 1
    steps: int = 10


def train(config, run=None):
    """Every member's return goes towards 100 - |log10 coef + 2| (no bonus: 90) plus its seed; a coefficient of 7 breaks."""
    members = [(float(coef), run.settings.seed + seed) for coef in config.coef for seed in range(config.seeds)]
    run.start("toy", config.env, config, members=[{"member": m, "coef": str(c), "seed": s} for m, (c, s) in enumerate(members)])
    with run:
        state = run.restore()
        step = 0 if state is None else int(state["step"])
        while step < config.steps and run.stopping() is None:
            step += 1
            for member, (coef, seed) in enumerate(members):
                if coef == 7:
                    raise ValueError("coef is 7; legal are others")
                best = 90.0 if coef == 0 else 100 - abs(np.log10(coef) + 2)
                run.log(step, member=member, entropy=1.0 / step, **{"entropy/max": 0.5, "eval/return": (best + seed) * step / config.steps})
            run.checkpoint(step, lambda at=step: {"step": at}, force=True)
        return run.finish(step, {})


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    module = ModuleType("entreg.recipes.toy")
    module.Config, module.train = Config, train
    monkeypatch.setitem(sys.modules, "entreg.recipes.toy", module)


def plan_of(tmp_path, config=Config(), *, seed=0, **options):
    settings = RunSettings(out=tmp_path / "runs", seed=seed, quiet=True)
    return make("toy", config, settings, "toy", Options(**{"coef_range": (1e-3, 1.0), "points": 4, "seeds": 5} | options))


def finished(tmp_path, config=Config(), **options):
    """A sweep that was worked on to its end in this process: plan, store, folder, status."""
    plan = plan_of(tmp_path, config, **options)
    folder, address = sweep.places(plan, Options())
    folder.mkdir(parents=True)
    store = Store(plan, address, beat=10)
    said = []
    status = Worker(plan, store, folder, say=said.append).work()
    return plan, store, folder, status, [text for text in said if text]


# ---------------------------------------------------------------- the plan


def test_a_grid_is_even_in_the_logarithm_and_ends_exactly(tmp_path):
    plan = plan_of(tmp_path, coef_range=(1e-4, 1.0), points=5)
    assert plan.coefs == (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    assert plan_of(tmp_path, coef_range=(0.0003, 0.7), points=3).coefs == (0.0003, 0.0144914, 0.7)


def test_rules_families_and_seeds_are_axes_in_the_order_of_populations(tmp_path):
    plan = plan_of(tmp_path, Config(coef=("linear(coef, 0)", "0"), family=("shannon", "renyi(2)")), points=2, seeds=2)
    assert [(trial.setting.text, trial.setting.family, trial.seeds) for trial in plan.trials[:5]] == [
        ("linear(0.001, 0)", "shannon", (0,)),
        ("linear(0.001, 0)", "shannon", (1,)),
        ("linear(1.0, 0)", "shannon", (0,)),
        ("linear(1.0, 0)", "shannon", (1,)),
        ("0", "shannon", (0,)),
    ]
    assert plan.trials[6].setting.family == "renyi(2)"
    assert len(plan.trials) == 10 and len(plan.jobs) == 2  # without a bonus the family plays no part: once


def test_a_plain_coefficient_beside_a_range_is_a_setting_of_its_own(tmp_path):
    assert plan_of(tmp_path, Config(coef=("0",))).rules == ("coef", "0")
    assert plan_of(tmp_path, Config(coef=("TargetEntropy(0.3, init_coef=0.1)",))).rules == ("coef", "TargetEntropy(0.3, init_coef=0.1)")


def test_a_default_coefficient_is_a_setting_only_where_the_command_names_it(tmp_path):
    for words, rules in (([], ("coef",)), (["--marginal", "0"], ("coef", "0")), (["--marginal=0"], ("coef", "0"))):
        options, _ = sweep.parse(["--coef-range", "1e-2", "1", "--axis", "marginal", *words])
        assert make("fixmatch", fixmatch.Config(), RunSettings(), "digits", options).rules == rules


def test_jobs_are_populations_of_one_family_with_whole_settings(tmp_path):
    plan = plan_of(tmp_path, Config(family=("shannon", "renyi(2)")), points=5, seeds=8, members=24)
    assert [len(job) for job in plan.jobs] == [24, 16, 24, 16]
    assert sorted(index for job in plan.jobs for index in job) == list(range(80))
    for job in plan.jobs:
        assert len({plan.trials[index].setting.family for index in job}) == 1
        assert len(job) == 8 * len({plan.trials[index].setting for index in job})
    assert [len(job) for job in plan_of(tmp_path, seeds=50).jobs] == [50] * 4
    pruned = plan_of(tmp_path, pruner="median")
    assert [trial.seeds for trial in pruned.trials] == [(0, 1, 2, 3, 4)] * 4 and pruned.jobs == ((0,), (1,), (2,), (3,))


def test_a_recipe_without_populations_gets_one_run_a_setting_and_seed(tmp_path):
    plan = make("sft", sft.Config(), RunSettings(), "split", Options(coef_range=(1e-3, 1.0), points=2, seeds=2))
    assert len(plan.jobs) == 4 and not plan.several and plan.metric == "eval/pass@1"
    assert [(config.coef, seed) for config, seed, _ in plan.runs([Setting("coef", 0.001, "shannon")], (3, 4))] == [("0.001", 3), ("0.001", 4)]


def test_the_name_is_that_of_what_shapes_the_results(tmp_path):
    name = plan_of(tmp_path).name
    assert name == plan_of(tmp_path / "elsewhere").name and name.startswith("sweep-toy-toy-")
    others = [plan_of(tmp_path, points=3), plan_of(tmp_path, seed=1), plan_of(tmp_path, Config(steps=11)), plan_of(tmp_path, sampler="tpe")]
    assert len({name, *(plan.name for plan in others)}) == 5


BAD = [
    (["--coef-range", "0", "1"], "coef_range is 0 1; legal are two finite numbers above 0"),
    (["--coef-range", "1", "1e-4"], "coef_range is 1 0.0001"),
    (["--coef-range", "nan", "1"], "coef_range is nan 1"),
    (["--coef-range", "1e-4", "1", "--points", "1"], "points is 1; legal are integers from 2"),
    (["--coef-range", "1e-4", "1", "--seeds", "0"], "seeds is 0; legal are integers from 1"),
    (["--coef-range", "1e-4", "1", "--trials", "5"], "trials is 5 beside the grid sampler"),
    (["--coef-range", "1e-4", "1", "--heartbeat", "0"], "heartbeat is 0.0; legal are seconds"),
    (["--coef-range", "1e-4", "1", "--coef", "liner(coef, 0)"], "'liner' is unknown here"),
    (["--coef-range", "1e-4", "1", "--family", "renyi"], "renyi needs its arguments"),
    (["--coef-range", "1e-4", "1", "--axis", "alpha"], "axis is 'alpha'; legal for ppo are coef"),
    (["--coef-range", "1e-4", "1", "--max-time", "5"], "max_time is 5.0; a sweep has none"),
    (["--coef-range", "1e-4", "1", "--storage", "nosuch://host/name"], "storage is 'nosuch://host/name', which cannot be used"),
    (["--coef-range", "1e-4", "1", "--seeds", "400000"], "the sweep has 2000000 runs; legal are 100000 at most"),
    (["--coef", "linear(coef, 0)"], "in which coef stands for a number of --coef-range LOW HIGH, which is missing"),
    (["--coef", "0.1"], "the sweep has a single setting, 0.1"),
    (["--sampler", "tpe"], "sampler is 'tpe' without a range"),
    ([], "there is nothing to sweep over"),
    (["--coef-range", "1e-4", "1", "--env", "CartPoleX-v1"], "CartPoleX"),
    (["--coef-range", "1e-4", "1", "--env", "Pendulum-v1", "--family", "tsallis(0)"], "tsallis"),
    (["--coef", "TargetEntropy(0.1, 0.1, 0.1, 0.1, 0.1, 0.1)", "--coef", "0"], "TargetEntropy: too many positional arguments"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(words) or "nothing" for words, _ in BAD])
def test_what_cannot_be_meant_is_one_line_and_status_2_and_nothing_is_written(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "ppo", *words]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and err.startswith("entreg: ") and out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_and_a_journal_of_something_else_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sweep", "pop", "--coef-range", "1e-4", "1"]) == 2
    assert "there is no recipe 'pop'. Did you mean ppo?" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("dear diary\nmore\n")
    assert cli.main(["sweep", "ppo", *TINY, "--coef-range", "1e-4", "1", "--storage", "notes.txt"]) == 2
    assert "line 1 is no record: b'dear diary" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "dear diary\nmore\n" and len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------- training and what the storage says


def test_every_member_of_a_population_is_a_finished_trial_with_its_own_score(tmp_path):
    _, store, folder, status, _ = finished(tmp_path, Config(coef=("0",)), members=10)
    trials = store.current()
    assert status == 0 and len(trials) == 25 and {trial.state.name for trial in trials.values()} == {"COMPLETE"}
    for trial in trials.values():
        best = 90.0 if trial.params["rule"] == "0" else 100 - abs(np.log10(trial.params["coef"]) + 2)
        assert trial.value == pytest.approx(best + trial.params["seed"])
        assert max(trial.intermediate_values) == 10 and trial.user_attrs["classes"] == round(np.exp(0.2))
    assert len(list((folder / "runs").iterdir())) == 3  # 5 settings x 5 seeds, ten members a run


def test_a_setting_that_breaks_is_failed_with_its_reason_and_the_others_are_trained(tmp_path):
    _, store, _, status, said = finished(tmp_path, Config(coef=("7", "0", "0.1")), coef_range=None, members=5)
    states = [trial.state.name for _, trial in sorted(store.current().items())]
    assert status == 0 and states == ["FAIL"] * 5 + ["COMPLETE"] * 10
    assert said == ["trials 0, 1, 2, 3, 4 failed: coef is 7; legal are others"]


def test_a_sampled_trial_is_a_setting_with_all_its_seeds_and_its_value_their_interquartile_mean(tmp_path):
    plan, store, _, status, _ = finished(tmp_path, sampler="tpe", trials=4)
    trials = store.current()
    assert status == 0 and len(trials) == 4 and len({trial.params["coef"] for trial in trials.values()}) == 4
    for trial in trials.values():
        scores = [trial.user_attrs["scores"][str(seed)] for seed in range(5)]
        assert trial.value == pytest.approx(stats.trim_mean(scores, 0.25)) and plan.span[0] <= trial.params["coef"] <= plan.span[1]


def test_samplers_and_pruners_are_optunas(tmp_path):
    made = {name: Store(plan_of(tmp_path / name, **how), str(tmp_path / f"{name}.log"), beat=10)._optuna_study(0) for name, how in OPTUNA.items()}
    kinds = {name: (type(study.sampler).__name__, type(study.pruner).__name__) for name, study in made.items()}
    assert kinds == {"tpe": ("TPESampler", "NopPruner"), "random": ("RandomSampler", "HyperbandPruner"), "grid": ("RandomSampler", "MedianPruner")}
    assert plan_of(tmp_path, pruner="median").settings.eval_every == 1 and plan_of(tmp_path).settings.eval_every is None  # ten evaluations of ten steps


def test_a_result_has_the_last_figures_and_a_run_that_broke_off_has_none(tmp_path):
    row = {"score": 1.0, "entropy": 0.5, "curve": [(1, 1.0)], "classes": 2, "folder": "x", "member": 0, "seed": 3}
    assert result_of([row | {"stopped": None}])["entropies"] == {"3": 0.5} and result_of([row | {"stopped": "pruned"}])["pruned"] is True
    assert result_of([row | {"stopped": "collapse"}]) == {"error": "stopped: collapse"}
    _, store, _, _, _ = finished(tmp_path)
    assert {entropy for trial in store.current().values() for entropy in trial.user_attrs["entropies"].values()} == {0.1}
    folder = tmp_path / "broken"
    with Recorder(folder) as recorder:
        recorder.log(1, **{"eval/return": 1.0})
        recorder.log(2, **{"eval/return": float("nan")})
    assert "eval/return is" in measured(plan_of(tmp_path), Summary(folder, 2, None, {}), 1)[0]["error"]


def test_random_settings_do_not_depend_on_who_trains_them(tmp_path):
    coefs = []
    for name in ("a", "b"):
        plan = plan_of(tmp_path / name, sampler="random", trials=4)
        store = Store(plan, str(tmp_path / name / "journal.log"), beat=10)
        trials = store.complete()
        order = range(4) if name == "a" else range(3, -1, -1)
        coefs.append({index: store.setting(index, trials[index]).coef for index in order})
    assert coefs[0] == coefs[1] and len(set(coefs[0].values())) == 4


@pytest.mark.parametrize(("pruner", "warming"), [("median", 5), ("hyperband", 1)])  # how many trials run to their end before any is judged
def test_a_pruner_stops_what_falls_behind_and_it_is_not_chosen(tmp_path, pruner, warming):
    plan, store, folder, _, _ = finished(tmp_path, pruner=pruner, coef_range=(1e-2, 1e6), points=8, seeds=2)
    states = [trial.state.name for _, trial in sorted(store.current().items())]
    assert states[:warming] == ["COMPLETE"] * warming and "PRUNED" in states[warming:]
    picked = page.write(plan, store, folder, "entreg sweep toy", [])
    assert picked.best.setting.coef == 0.01 and any("were pruned" in text for _, text in picked.lines)
    for plot in page.plots(plan, choice.cells(page.results_of(plan, store.current()))):
        assert sum(len(series["x"]) for series in plot["series"]) == states.count("COMPLETE") * (2 if plot.get("kind") == "scatter" else 1)
        assert plot["caption"].endswith("Settings that were pruned are left out.")


def test_an_unlucky_seed_does_not_prune_the_best_setting(tmp_path):
    """Seeds differ more than settings here: alone, the best setting's first seed is below the median of the second best's."""
    plan, store, folder, _, _ = finished(tmp_path, pruner="median", points=8, seeds=5, coef_range=(1e-3, 1e4))
    assert len(store.current()) == 8 and "PRUNED" in {trial.state.name for trial in store.current().values()}
    assert page.write(plan, store, folder, "entreg sweep toy", []).best.setting.coef == 0.01


@pytest.mark.parametrize(("pruner", "warming"), [("median", 5), ("hyperband", 1)])
def test_a_pruner_judges_recipes_that_train_one_model_by_all_seeds_that_were_trained(tmp_path, monkeypatch, pruner, warming):
    """One run after another is like one long run: a bad second seed can still end a trial, and the third is not begun."""

    @dataclass(frozen=True)
    class One:
        env: str = "one"
        coef: str = "0"
        steps: int = 10

    def fit(config, run):
        return train(Config(env="one", coef=(config.coef,), steps=config.steps), run)

    module = ModuleType("entreg.recipes.toy")
    module.Config, module.train = One, fit
    monkeypatch.setitem(sys.modules, "entreg.recipes.toy", module)
    plan, store, folder, _, _ = finished(tmp_path, One(), pruner=pruner, coef_range=(1e-2, 1e6), points=8, seeds=3)
    trials = [trial for _, trial in sorted(store.current().items())]
    states = [trial.state.name for trial in trials]
    assert states[:warming] == ["COMPLETE"] * warming and "PRUNED" in states[warming:]
    assert sorted(trials[0].intermediate_values) == list(range(1, 31)) and len(trials[0].user_attrs["scores"]) == 3
    for trial in trials:
        assert len(trial.user_attrs["scores"]) == -(-max(trial.intermediate_values) // 10)
    assert trials[0].intermediate_values[25] == pytest.approx(stats.trim_mean([100, 101, 102 * 0.5], 0.25))
    assert page.write(plan, store, folder, "entreg sweep toy", []).best.setting.coef == 0.01
    assert all(max(result["curve"]) <= 10 for of in page.results_of(plan, store.current()).values() for result in of)


def test_a_figure_that_no_record_has_ends_the_sweep_after_the_first_run(tmp_path):
    with pytest.raises(ValueError, match="select is 'eval/score', and there is no such figure among the records, which have entropy, entropy/max, eval/return"):
        finished(tmp_path, select="eval/score", members=5)
    (runs,) = tmp_path.glob("runs/*/runs")
    assert len(list(runs.iterdir())) == 1


# ---------------------------------------------------------------- the choice


def cell(scores, coef=0.1, rule="coef", family="shannon"):
    scores = dict(enumerate(map(float, scores)))
    return choice.Cell(Setting(rule, coef, family), scores, dict.fromkeys(scores, 1.0), choice.interval(list(scores.values())), 2, False)


NOISE = np.random.default_rng(1).normal(size=(4, 8))


def test_the_interval_is_scipys_bootstrap_of_the_trimmed_mean():
    scores = NOISE[0]
    found = choice.interval(list(scores))
    theirs = stats.bootstrap(
        (scores,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=10_000,
        confidence_level=1 - 2 * tail(8),
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert float(found.value) == pytest.approx(stats.trim_mean(scores, 0.25))
    assert [float(found.low), float(found.high)] == pytest.approx(list(theirs), abs=0.08 * (theirs.high - theirs.low))


def test_a_clear_winner_is_significant_and_a_lucky_one_is_not(tmp_path):
    plan = plan_of(tmp_path, seeds=8)
    clear = choice.choose([cell(100 + NOISE[0], 0.1), cell(NOISE[1], 0.2), cell(50 + NOISE[2], 0.3)], plan)
    assert clear.best.setting.coef == 0.1 and clear.rivals == [] and "Significant: better than every other setting" in clear.lines[1][1]
    lucky = choice.choose([cell(NOISE[0], 0.1), cell(NOISE[1], 0.2), cell(NOISE[2] - 50, 0.3), cell(NOISE[3], None, "0")], plan)
    assert len(lucky.rivals) == 2 and lucky.lines[1][1].startswith("Not significant: its difference to 2 of the 3 other settings may be chance")
    if float(lucky.best.setting.coef or 0):
        assert "not shown to be better than no bonus" in lucky.lines[2][1]


def test_differences_are_paired_by_seed(tmp_path):
    """Seeds that differ by a hundred hide a gain of one from anybody who does not pair them."""
    common = 100 * NOISE[3]
    found = choice.choose([cell(common + 1 + 0.1 * NOISE[0], 0.1), cell(common + 0.1 * NOISE[1], 0.2)], plan_of(tmp_path, seeds=8))
    assert found.best.setting.coef == 0.1 and found.rivals == []


def test_less_is_better_where_it_is_and_few_seeds_give_no_verdict(tmp_path):
    plan = plan_of(tmp_path, seeds=4, select="nll")
    found = choice.choose([cell([5, 6, 7, 8], 0.1), cell([1, 2, 3, 4], 0.2)], plan)
    assert plan.sense == -1 and found.best.setting.coef == 0.2 and len(found.unknown) == 1
    assert found.lines[1][1].startswith("No verdict") and choice.choose([], plan) is None


def test_many_comparisons_are_made_together(tmp_path, monkeypatch):
    levels = []
    monkeypatch.setattr(choice, "verdict", lambda *given: levels.append(given[-1]) or "better")
    choice.choose([cell(NOISE[0] + coef, coef) for coef in range(1, 6)], plan_of(tmp_path))
    assert levels == pytest.approx([1 - 0.05 / 4] * 4)


def test_a_setting_that_lacks_seeds_is_not_chosen_while_others_are_whole(tmp_path):
    found = choice.choose([cell([9, 9], 0.1), cell([1, 2, 3, 4, 5], 0.2)], plan_of(tmp_path))
    assert found.best.setting.coef == 0.2


# ---------------------------------------------------------------- the report


def test_the_report_has_the_plots_the_choice_and_the_winners_command(tmp_path):
    plan, store, folder, _, _ = finished(tmp_path, Config(coef=("coef", "0"), family=("shannon", "renyi(2)")))
    picked, path = page.write(plan, store, folder, "entreg sweep toy", ["--env", "toy"]), report.write(folder)
    said = json.loads((folder / "summary.json").read_text())
    assert said["command"] == "entreg train toy --env toy --coef 0.01 --family shannon --seed 5" and picked.best.setting.coef == 0.01
    assert [row["best"] for row in said["table"]].count(True) == 1 and len(said["table"]) == 9
    equal, matched, plane = json.loads((folder / "plots.json").read_text())
    assert equal["log"] is True and equal["title"] == "eval/return over the coefficient" and plane["kind"] == "scatter"
    shannon, renyi = (next(one for one in matched["series"] if one["name"] == name) for name in ("shannon", "renyi(2)"))
    assert np.divide(renyi["x"], shannon["x"]) == pytest.approx(2.0)  # Renyi-2 pulls twice as strongly near uniform
    assert shannon["y"][1] == pytest.approx(stats.trim_mean([100 + seed for seed in range(5)], 0.25)) and shannon["low"][1] < shannon["y"][1]
    html = path.read_text()
    for text in ("Train the winner:", "Entropy and score", "Families at matched curvature", "Best of 9 settings by eval/return: coef 0.01, shannon"):
        assert text in html


@pytest.mark.parametrize("text", ["[", "17", '{"lines": [1]}', '{"lines": {"tone": "good"}}', "{}"])
def test_a_summary_that_is_none_is_counted_and_the_report_is_made_all_the_same(text, tmp_path):
    (tmp_path / "records.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (tmp_path / "summary.json").write_text(text)
    assert "summary.json cannot be read" in report.write(tmp_path).read_text()


def test_a_logarithmic_axis_and_a_scatter_without_a_common_scale(tmp_path):
    series = [{"name": "a", "x": [0.1, 1], "y": [2, 3]}]
    (tmp_path / "plots.json").write_text(
        json.dumps([{"log": True, "series": series}, {"kind": "scatter", "series": series}, {"kind": "points", "series": series}])
    )
    (log, scatter, points), _ = plots.read(data.digest({}, []), tmp_path)
    assert log.plot["layout"]["xaxis"]["type"] == "log" and "type" not in scatter.plot["layout"]["xaxis"]
    assert "scaleanchor" in points.plot["layout"]["yaxis"] and "scaleanchor" not in scatter.plot["layout"]["yaxis"]
    assert scatter.plot["data"][0]["mode"] == "markers" and log.plot["data"][0]["mode"] == "lines+markers"


def test_runs_on_other_machines_have_their_curves_from_the_storage(tmp_path):
    plan, store, _, _, _ = finished(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    page.write(plan, store, other, "entreg sweep toy", [])
    lines = [json.loads(line) for line in (other / "records.jsonl").read_text().splitlines()]
    assert len({line["member"] for line in lines}) == 20 and "20 runs lie on other machines" in (other / "summary.json").read_text()


def test_the_winners_command_leaves_out_what_is_the_sweeps_own(tmp_path):
    words = ["--env", "X", "--coef", "0", "--coef=1", "--family", "shannon", "--seed", "3", "--out", "o", "--quiet", "--steps", "5"]
    assert sweep.without(words, plan_of(tmp_path)) == ["--env", "X", "--steps", "5"]


def test_a_whole_sweep_from_the_command_line_and_the_dashboard_opens_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "ppo", *TINY, "--coef-range", "1e-2", "1", "--points", "2", "--seeds", "2", "--workers", "1", "--json"]
    assert cli.main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["table"]) == 2 and (tmp_path / said["report"]).stat().st_size > 100_000 and said["failed"] == {}
    runs = sorted((tmp_path / said["folder"] / "runs").rglob("records.jsonl"))
    before = [path.read_bytes() for path in runs]
    assert cli.main(words) == 0  # nothing is trained again
    assert [path.read_bytes() for path in runs] == before and len(runs) == 1
    winner = said["command"].split()[2:]
    assert cli.main(["train", *winner, "--quiet", "--print-config"]) == 0
    journal = tmp_path / said["folder"] / "journal.log"
    (study,) = _dashboard(journal, "/api/studies")["study_summaries"]
    trials = _dashboard(journal, f"/api/studies/{study['study_id']}")["trials"]
    assert study["study_name"] == said["study"] and [trial["state"] for trial in trials] == ["Complete"] * 4


def _dashboard(journal, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna_dashboard
        from optuna_dashboard._storage_url import guess_storage_from_url

        app = optuna_dashboard.wsgi(guess_storage_from_url(str(journal)))
    environ, answered = {"PATH_INFO": path}, []
    setup_testing_defaults(environ)
    body = b"".join(app(environ, lambda status, *_: answered.append(status)))
    assert answered[0].startswith("200"), body[:300]
    return json.loads(body)


def test_a_probe_writes_nothing(tmp_path):
    plan = make("ppo", ppo.Config(), RunSettings(out=tmp_path / "runs"), "CartPole-v1", Options(coef_range=(1e-3, 1.0)))
    sweep.probe(plan)
    assert list(tmp_path.iterdir()) == [] and issubclass(sweep._Probe, Run)
