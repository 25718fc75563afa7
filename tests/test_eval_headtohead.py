"""The report of a plan: what stands in it, in both forms, and what foreign text cannot do to it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval import headtohead, plots, words
from eval.curve import Axis
from eval.headtohead import Comparison, compare, html, markdown
from loop.trial import Metric, Outcome, Rejected, Scored
from loop.trial import Reason as R
from tests import browser, plan_folder
from tests.conftest import Cli
from tests.test_eval_report import HOSTILE, Page, structure


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(plan_folder.write(tmp_path_factory.mktemp("plan"), 3, 9, without=[("menu", 1)]))


# --- what stands in it


def test_the_questions_come_first_and_each_with_its_n(comparison: Comparison) -> None:
    read = Page(html(comparison))
    headings = [a["id"] for tag, a in read.tags if tag == "section"]
    assert headings == [
        "questions", "plan", "league", "curves", "profile", "pairs", "failures", "costs", "noise",
        "repeat",
    ]  # fmt: skip
    for answer in comparison.answers:
        for text in (read.text, markdown(comparison).replace("\\", "")):
            assert answer.question in text and answer.sentence in text
    figures = [a for _, a in read.tags if (a.get("class") or "") == "figure"]
    assert len(figures) == len(comparison.answers) == 4


def test_both_forms_say_the_same_figures(comparison: Comparison) -> None:
    page, twin = Page(html(comparison)).text, markdown(comparison).replace("\\", "")
    for row in comparison.league:
        for found in (row.final, row.gain, row.best, row.area):
            assert found is not None
            for text in (page, twin):
                assert words.number(found.value) in text or words.signed(found.value) in text
    for kept in (comparison.results.fixed.hash, "menu, seed 1: left out", "autoresearch eval plan"):
        assert kept in page and kept in twin


def test_the_league_is_by_the_final_check_and_says_n(comparison: Comparison) -> None:
    assert [row.arm.name for row in comparison.league] == ["adapter", "menu", "random_edit"]
    best = comparison.league[0]
    finals = comparison.results.final[1]
    assert best.final is not None and best.final.value == pytest.approx(finals.mean())
    assert best.final.low is not None and best.final.high is not None
    assert best.final.low < best.final.value < best.final.high
    assert best.final.high <= finals.max() + 1e-9 and best.final.low >= finals.min() - 1e-9
    assert [row.final.n for row in comparison.league if row.final] == [3, 2, 3]
    assert (best.valid.count, best.valid.n) == (18, 27)  # every third of 9 fails, in 3 runs


def test_the_chance_to_beat_the_control_is_mann_and_whitneys(comparison: Comparison) -> None:
    from scipy import stats

    finals = comparison.results.final
    for row in comparison.league:
        if row.arm.name == comparison.control:
            assert row.chance is None
            continue
        ours = finals[comparison.results.arms.index(row.arm.name)]
        both = np.isfinite(ours)
        theirs = finals[2]
        u = stats.mannwhitneyu(-ours[both], -theirs[both]).statistic
        assert row.chance is not None
        assert row.chance.value == pytest.approx(u / both.sum() ** 2)


def test_what_was_not_measured_is_said_and_not_replaced(comparison: Comparison) -> None:
    (dollars,) = [tab for tab in comparison.tabs if tab.key == "dollars"]
    assert dollars.plot is None
    assert "At equal dollars: not measured, since" in Page(html(comparison)).text
    assert "equal dollars" in markdown(comparison) and "not measured" in markdown(comparison)


def test_a_plan_without_a_run_says_so(tmp_path: Path) -> None:
    every = [(arm, 0) for arm in ("menu", "adapter", "random_edit")]
    found = compare(plan_folder.write(tmp_path, 1, 3, without=every))
    text = Page(html(found)).text
    assert "0 of 3 runs are complete" in text and "this arm is not measured" in text
    assert all(answer.verdict == "not measured" for answer in found.answers)
    assert "Not measured: there is no run yet." in text and "Not measured" in markdown(found)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    found = compare(plan_folder.write(tmp_path, 1, 3))
    row = found.league[0]
    assert row.final is not None and (row.final.low, row.final.n) == (None, 1)
    assert "no interval" in Page(html(found)).text and "no interval" in markdown(found)


def test_an_amended_plan_is_told_with_its_reason(comparison: Comparison) -> None:
    from eval.plan import Amendment

    fixed = comparison.results.fixed
    changed = Amendment("2026-02-01", "the <disk> was full", "a", "b", ("trials: 9 -> 12",), 40)
    results = replace(comparison.results, fixed=replace(fixed, amendments=(changed,)))
    amended = replace(comparison, results=results)
    assert "after 40 trials: trials: 9 -> 12. Reason given: the <disk> was full" in Page(
        html(amended)
    ).text  # fmt: skip
    assert "the \\<disk\\> was full" in markdown(amended)


def test_costs_weigh_runs_by_their_proposals(comparison: Comparison) -> None:
    bills = {bill.arm: bill for bill in comparison.bills}
    assert (bills["menu"].n, bills["menu"].tokens) == (18, 420.0)
    assert (bills["random_edit"].tokens, bills["random_edit"].api) == (0.0, None)
    assert bills["menu"].trainer_seconds > 8


def test_noise_counts_what_runs_share_once(comparison: Comparison) -> None:
    (spread,) = comparison.spreads
    # Arms measure the same baseline of a seed, and share it: each code on the two fresh seeds.
    codes = {m.code for runs in comparison.runs.values() for run in runs for m in run.measurements}
    assert spread.noise.runs == 2 * len(codes)
    assert spread.noise.sigma == pytest.approx(0.004 / 2**0.5)  # the two differ by 0.004


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    out = plan_folder.write(tmp_path, 2, 6)
    np.random.seed(1)
    first = html(compare(out)), markdown(compare(out))
    np.random.seed(2)
    assert (html(compare(out)), markdown(compare(out))) == first


# --- charts


def test_a_band_is_where_the_means_of_resampled_seeds_lie() -> None:
    rng = np.random.default_rng(0)
    curves = rng.normal(0, 1, (40, 3)) + np.array([3.0, 2.0, 1.0])
    found = plots.mean_band(curves, rng)
    assert found is not None
    mean, low, high = found
    assert mean == pytest.approx(curves.mean(0))
    error = curves.std(0, ddof=1) / 40**0.5
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_runs_that_are_not_whole_are_in_no_band() -> None:
    rng = np.random.default_rng(0)
    curves = np.array([[2.0, 1.0], [4.0, np.nan]])
    found = plots.mean_band(curves, rng)
    assert found is not None and found[0].tolist() == found[1].tolist() == [2.0, 1.0]
    assert plots.mean_band(curves[1:], rng) is None


def test_lines_are_steps_and_bands_come_back() -> None:
    at, best = np.array([0.0, 1.0, 2.0]), np.array([[[4.0, 2.0, 2.0], [2.0, 2.0, 0.0]]])
    plot = plots.best_so_far(at, best, [("a", "control")], Axis(0, 2), np.random.default_rng(0))
    assert plot is not None
    (line,) = plot.lines
    assert (line.n, line.dash, line.end and line.end[0]) == (2, 1, 1.0)
    moves = re.findall(r"[MHVZ]", line.path)
    assert moves == ["M", "H", "V", "H", "V", "H"]
    assert line.band.startswith("M0 ") and line.band.endswith("H0Z")


def test_a_pair_says_who_is_better_in_either_direction() -> None:
    before, after = np.array([1.0, 2.0, np.nan]), np.array([0.5, 2.5, 1.0])
    low = plots.pairs("a", "b", (0, 1, 2), before, after, 1)
    high = plots.pairs("a", "b", (0, 1, 2), before, after, -1)
    assert low is not None and high is not None
    assert [p.better for p in low.pairs] == [True, False]
    assert [p.better for p in high.pairs] == [False, True]
    assert plots.pairs("a", "b", (0,), before[2:], after[2:], 1) is None


def test_a_profile_ends_with_every_run(comparison: Comparison) -> None:
    assert comparison.profile is not None
    for line in comparison.profile.lines:  # lower is better: to the right all are there
        assert re.findall(r"V(\d+)", line.path)[-1:] in ([], ["0"])


# --- foreign text


def foreign(arm: str, seed: int, number: int, best: float) -> Outcome:
    if number == 2:
        return Rejected(R.NO_EDIT, HOSTILE.replace("\ud800", ""))
    return Scored(Metric("val_bpb", best - 0.01))


def test_what_a_model_writes_cannot_add_to_the_page(tmp_path: Path) -> None:
    plain = HOSTILE.translate({ord(c): "x" for c in "<>&\"'`"})
    pages = [
        html(compare(plan_folder.write(tmp_path / name, 2, 3, text=text, outcome=foreign)))
        for name, text in (("a", HOSTILE), ("b", plain))
    ]
    assert structure(pages[0]) == structure(pages[1])
    read = Page(pages[0])
    assert read.count("script") == read.count("img") == read.count("iframe") == 0
    assert "{{ 7 * 7 }}" in read.text
    for _, attrs in read.tags:
        assert not any(name.startswith("on") or name in ("src", "style") for name in attrs)
        assert (attrs.get("href") or "#").startswith("#")
    pages[0].encode()


def test_every_link_leads_somewhere_and_ids_are_unique(comparison: Comparison) -> None:
    tags = structure(html(comparison))
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {href for _, attrs in tags if (href := attrs.get("href"))}
    assert links and {link.removeprefix("#") for link in links} <= set(ids)


def test_markdown_quotes_cannot_leave_their_fence() -> None:
    text = "```\n# owned\n````\n<b>"
    block = words.fenced(text)
    fence = block.split("text", 1)[0]
    assert len(fence) == 5 and block.endswith(f"\n{fence}")
    assert words.unmarked("a | b\n# c <i> `d` [e](f)") == (
        "a \\| b \\# c \\<i\\> \\`d\\` \\[e\\](f)"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('File "/home/me/lab/work/train.py", line 3', 'File "…/train.py", line 3'),
        ("/root/x and/or https://host/a/b.html a/b", "…/x and/or https://host/a/b.html a/b"),
        ("to /dev/null", "to /dev/null"),
    ],
)
def test_where_a_machine_keeps_its_files_is_left_out(text: str, shown: str) -> None:
    assert words.placeless(text) == shown


# --- the verb


def test_report_knows_the_folder_of_a_plan(tmp_path: Path, run_cli: Cli) -> None:
    out = plan_folder.write(tmp_path, 2, 3)
    page = tmp_path / "docs" / "plan.html"
    done = run_cli("report", out, "--out", page)
    assert done.returncode == 0, done.stderr
    assert "4. Does the adapter beat prompting? UNDECIDED" in done.stdout
    assert sorted(p.name for p in page.parent.iterdir()) == ["plan.html", "plan.md"]
    assert str(tmp_path) not in page.read_text() + page.with_suffix(".md").read_text()


def test_a_plan_and_runs_do_not_mix(tmp_path: Path, run_cli: Cli) -> None:
    out = plan_folder.write(tmp_path, 1, 2)
    done = run_cli("report", out, out / "runs" / "menu" / "0", "--out", tmp_path / "r.html")
    assert done.returncode == 2 and "name it alone" in done.stderr


def test_a_plan_record_that_is_no_plan_is_one_line(tmp_path: Path, run_cli: Cli) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"plan": 3}))
    assert headtohead.is_plan(tmp_path)
    done = run_cli("report", tmp_path, "--out", tmp_path / "r.html")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_in_a_browser_nothing_runs(tmp_path: Path) -> None:
    browser.required()
    page = tmp_path / "report.html"
    headtohead.write(plan_folder.write(tmp_path, 1, 3, text=HOSTILE, outcome=foreign), page)
    dom = browser.dom(page.as_uri(), tmp_path / "profile")
    assert "<title>A plan to test pages with</title>" in dom
    assert Page(dom).count("script") == Page(dom).count("img") == 0
