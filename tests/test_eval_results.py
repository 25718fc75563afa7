"""An executed plan as arrays: what is comparable gets in, and a sentence on whatever does not."""

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from eval import plan as plans
from eval.results import PROBLEMS, Results, disagreement, load, spending, standing, view
from loop.errors import UsageError
from loop.final import fresh_seeds
from loop.ledger import Ledger, read
from loop.trial import Crashed, Json, Measurement, Outcome, Reason, Rejected, Scored
from tests import plan_folder
from tests.plan_folder import bpb


def never(arm: str, seed: int, number: int, best: float) -> Outcome:
    return Scored(bpb(best + 0.1))


def edit_toml(folder: Path, change: Callable[[Json], None]) -> None:
    body = tomllib.loads((folder / "run.toml").read_text())
    change(body)
    (folder / "run.toml").write_text(tomli_w.dumps(body))


def rewrite(folder: Path, keep: Callable[[Json], bool]) -> None:
    """Leave only some lines of a ledger."""
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_text("".join(x for x in lines if keep(json.loads(x))))


def said(results: Results, *parts: str) -> bool:
    return any(all(part in sentence for part in parts) for sentence in results.left_out)


def test_a_complete_plan_leaves_nothing_out(tmp_path: Path) -> None:
    results = load(plan_folder.write(tmp_path, seeds=3, trials=9))
    assert results.left_out == () and results.pilot is None and results.untouched
    assert results.arms == ("menu", "adapter", "random_edit") and results.seeds == (0, 1, 2)
    assert results.best.shape == (3, 3, 10) and np.isfinite(results.best).all()
    assert set(results.runs) == {(arm, seed) for arm in results.arms for seed in results.seeds}
    run = results.runs["adapter", 1]
    assert results.best[1, 1].tolist() == [m.value for m in run.best_so_far if m]
    assert run.final is not None
    assert results.final[1, 1] == pytest.approx(run.final.best)
    assert results.final_baseline[1, 1] == pytest.approx(run.final.baseline)
    assert results.baseline[:, 2].tolist() == [1.52] * 3
    checks = [run.final for (arm, _), run in results.runs.items() if arm == "adapter"]
    assert results.over_baseline("adapter") == pytest.approx([c.gain for c in checks if c])


def test_gains_are_positive_where_the_first_arm_is_better(tmp_path: Path) -> None:
    results = load(plan_folder.write(tmp_path))
    final = results.final
    assert results.gains("adapter", "menu") == pytest.approx(final[0] - final[1])
    assert (results.gains("adapter", "menu") > 0).all()
    higher = replace(results, direction="max")
    assert higher.gains("adapter", "menu") == pytest.approx(final[1] - final[0])
    assert results.endpoint("best") == pytest.approx(results.best[..., -1])
    area = np.trapezoid(results.best, axis=-1) / 9
    assert results.endpoint("auc") == pytest.approx(area)


def test_a_run_that_improved_nothing_has_its_baselines_score(tmp_path: Path) -> None:
    results = load(plan_folder.write(tmp_path, outcome=never))
    assert results.left_out == () and np.isfinite(results.final).all()
    assert results.final.tolist() == results.final_baseline.tolist()
    assert results.over_baseline("menu").tolist() == [0, 0, 0]


def test_missing_and_unfinished_runs_are_named(tmp_path: Path) -> None:
    out = plan_folder.write(tmp_path, without=[("menu", 0), ("menu", 2)])
    rewrite(out / "runs" / "adapter" / "1", lambda r: r["kind"] == "trial" and r["id"] < 5)
    rewrite(out / "runs" / "random_edit" / "2", lambda r: r["kind"] == "trial")
    results = load(out)
    assert said(results, "menu, seeds 0, 2: left out, as it was not run")
    assert said(results, "adapter, seed 1", "has 4 of 9 trials so far")
    assert said(results, "random_edit, seed 2", "is not through its final check")
    assert np.isnan(results.final[1, 1]) and np.isnan(results.best[1, 1, 5:]).all()
    assert np.isfinite(results.best[1, 1, :5]).all(), "what there is can be shown"
    assert len(results.gains("adapter", "menu")) == 0, "no seed that both have"
    menu, adapter, _ = results.plan.arms
    assert standing(out / "runs" / "adapter" / "1", results.plan, adapter, 1)[0] == 4
    assert standing(out / "runs" / "menu" / "1", results.plan, menu, 1) == (9, "")
    assert standing(out / "runs" / "menu" / "0", results.plan, menu, 0) == (0, "was not run")


def test_an_arm_that_failed_entirely_is_not_measured(tmp_path: Path) -> None:
    out = plan_folder.write(tmp_path, without=[("menu", seed) for seed in range(3)])
    (out / PROBLEMS).write_text(json.dumps({"menu/0": "ollama: nobody answers"}))
    results = load(out)
    assert said(results, "menu has no complete run: this arm is not measured")
    assert said(results, "menu, seed 0", "was not run (ollama: nobody answers)")
    assert np.isnan(results.final[0]).all() and np.isfinite(results.final[1:]).all()


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda body: body["args"].update(budget="9e9flops"), "budget '9e9flops' and not"),
        (lambda body: body["args"].update(judge="noise-aware"), "judge 'noise-aware'"),
        (lambda body: body["args"].update(seed=7), "seed 7 and not 1"),
        (lambda body: body["args"].update(brain="ollama:x"), "brain 'ollama:x'"),
        (
            lambda body: body["target"].update(name="other"),
            "differs from the other runs in its target",
        ),
    ],
)
def test_a_run_under_other_conditions_is_left_out(
    tmp_path: Path, change: Callable[[Json], None], phrase: str
) -> None:
    out = plan_folder.write(tmp_path)
    edit_toml(out / "runs" / "menu" / "1", change)
    results = load(out)
    assert said(results, "menu, seed 1", phrase)
    assert ("menu", 1) not in results.runs and np.isnan(results.best[0, 1]).all()


def test_other_weights_and_other_code_are_left_out(tmp_path: Path) -> None:
    out = plan_folder.write(tmp_path)
    for arm, key in (("menu", "model_digest"), ("adapter", "code_hash")):
        ledger = out / "runs" / arm / "0" / "ledger.jsonl"
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
        for line in lines:
            if line["kind"] == "trial" and (key == "model_digest") == bool(line["id"]):
                (line["proposal"] if key == "model_digest" else line["proposal"]["edit"])[key] = "z"
        ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = load(out)
    assert said(results, "menu, seed 0", "in its brain's weights")
    assert said(results, "adapter, seed 0", "in its code at the start")


def test_versions_that_differ_are_said(tmp_path: Path) -> None:
    out = plan_folder.write(tmp_path)
    edit_toml(out / "runs" / "menu" / "1", lambda body: body["versions"].update(python="3.12"))
    results = load(out)
    assert said(results, "different python: 3.11, 3.12") and ("menu", 1) in results.runs


def test_a_ledger_of_another_version_or_a_corrupt_one_is_left_out(tmp_path: Path) -> None:
    out = plan_folder.write(tmp_path)
    ledger = out / "runs" / "menu" / "0" / "ledger.jsonl"
    ledger.write_text(re.sub(r'"schema": (\d)', r'"schema": 9\1', ledger.read_text()))
    (out / "runs" / "menu" / "1" / "ledger.jsonl").write_text("{}\n")
    (out / "runs" / "menu" / "2" / "run.toml").unlink()
    results = load(out)
    assert said(results, "menu, seed 0", "is newer than this program's")
    assert said(results, "menu, seed 1", "is corrupt") and said(results, "menu, seed 2", "run.toml")
    assert not any(str(tmp_path) in sentence for sentence in results.left_out)
    assert said(results, "menu has no complete run")


def test_a_final_check_that_gave_no_score_is_left_out(tmp_path: Path) -> None:
    out = plan_folder.write(tmp_path)
    folder = out / "runs" / "menu" / "1"
    records = list(read(folder))
    (folder / "ledger.jsonl").unlink()
    with Ledger(folder) as ledger:
        for record in records:
            if isinstance(record, Measurement) and record.seed == fresh_seeds(1, 2)[0]:
                record = replace(record, outcome=Crashed("train", Reason.KILLED))
            ledger.append(record)
    results = load(out)
    assert said(results, "menu, seed 1", "gave no score on 1 of 2 seeds of the final check")
    assert np.isnan(results.final[0, 1])


def test_more_trials_than_the_plan_has_are_left_out(tmp_path: Path) -> None:
    out = plan_folder.write(tmp_path, trials=9)
    plan = plans.parse(tomllib.loads(plan_folder.PLAN.format(seeds=3, trials=6)))
    plans.fix(plan, "", tmp_path, out, amend="six will do", trials=27)
    results = load(out)
    assert said(results, "has 9 trials where the plan has 6") and not results.runs
    assert said(results, "was changed on", "after 27 trials (trials: 9 -> 6)", '"six will do"')


def test_a_run_with_nothing_left_to_propose_keeps_its_last(tmp_path: Path) -> None:
    def used_up(arm: str, seed: int, number: int, best: float) -> Outcome:
        return Rejected(Reason.NOTHING_LEFT) if number == 5 else Scored(bpb(best - 0.01))

    out = plan_folder.write(tmp_path, outcome=used_up)
    for folder in (out / "runs").glob("*/*"):
        rewrite(folder, lambda r: r["kind"] != "trial" or r["id"] <= 5)
    results = load(out)
    # Later trials of the writer were kept too, so that no final check is there of the fourth.
    assert said(results, "is not through its final check")
    assert results.best[0, 0, 4:].tolist() == pytest.approx([1.46] * 6)


def test_pilot_seeds_are_kept_apart(tmp_path: Path) -> None:
    out = plan_folder.write(tmp_path, seeds=3)
    text = plan_folder.PLAN.format(seeds="[0, 2]", trials=9)
    plan = plans.parse(tomllib.loads("pilot_seeds = [1]\n" + text))
    plans.fix(plan, "", tmp_path, out, amend="one for the pilot")
    results = load(out)
    assert results.seeds == (0, 2) and results.best.shape == (3, 2, 10)
    assert results.pilot is not None and results.pilot.seeds == (1,)
    assert set(results.pilot.runs) == {(arm, 1) for arm in results.arms}
    assert {seed for _, seed in results.runs} == {0, 2}
    shutil.rmtree(out / "runs" / "menu" / "1")
    assert said(load(out), "menu, pilot seed 1: left out")


def test_views_end_where_the_first_run_had_spent_all(tmp_path: Path) -> None:
    out = plan_folder.write(tmp_path, trials=9)
    rewrite(out / "runs" / "menu" / "2", lambda r: r["kind"] == "trial" and r["id"] < 5)
    results = load(out)
    trials = view(results, "trials")
    assert trials.at.tolist() == list(range(10))
    assert trials.best[1, 1] == pytest.approx(results.best[1, 1])
    assert np.isnan(trials.best[0, 2]).all(), "an unfinished run is in no view"
    tokens = view(results, "tokens", 5)
    assert tokens.at.tolist() == pytest.approx(np.linspace(0, 9 * 420, 5))
    assert tokens.best[1, 0, [0, -1]] == pytest.approx(results.best[1, 0, [0, -1]])
    assert tokens.best[2, 0] == pytest.approx(results.best[2, 0, -1]), "a control asks nobody"
    seconds = view(results, "trainer_seconds", 5)
    assert seconds.at[-1] == pytest.approx(min(r.spent[-1] for (_, s), r in results.runs.items()
                                               if len(r.trials) == 10))  # fmt: skip


def test_every_reply_is_charged_and_unknown_prices_stay_unknown(tmp_path: Path) -> None:
    results = load(plan_folder.write(tmp_path))
    run = results.runs["menu", 0]
    assert spending(run, "tokens").tolist() == [420 * n for n in range(10)]
    call = run.trials[3].proposal.calls[0]
    three = replace(call, replies=call.replies * 3)
    trials = list(run.trials)
    trials[3] = replace(trials[3], proposal=replace(trials[3].proposal, calls=(three,)))
    more = spending(replace(run, trials=tuple(trials)), "tokens")
    assert more[3] - spending(run, "tokens")[3] == 2 * 420, "best of three is charged for three"
    assert np.isnan(spending(run, "dollars")[-1])
    assert np.isnan(view(results, "dollars").best[0]).all(), "no price is known"


def test_a_folder_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no plan"):
        load(tmp_path)
    plan = plans.parse(tomllib.loads(plan_folder.PLAN.format(seeds=1, trials=1)))
    assert disagreement({}, plan, plan.arms[0], 0) != ""
