"""The report of runs: its figures, its honesty about what it leaves out, and its inertness."""

from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.curve import charts
from eval.report import DETAILED, page, run, table, write
from eval.summary import Summary, of_records, summarise
from eval.words import number, visible
from loop.errors import AutoresearchError, LedgerError
from loop.ledger import Ledger
from loop.trial import (
    Call,
    Context,
    Crashed,
    Decision,
    Edit,
    Event,
    Invalid,
    Json,
    KnobChange,
    Measurement,
    Message,
    Metric,
    Outcome,
    Proposal,
    Reason,
    Record,
    Rejected,
    Reply,
    Scored,
    Stopped,
    TimedOut,
    Trial,
)
from tests import browser

HOSTILE = (
    "</script><script>document.title='owned'</script></style></pre></details>"
    "<img src=x onerror=\"document.title='owned'\"><svg onload=\"document.title='owned'\">"
    "<a href=\"javascript:document.title='owned'\">x</a><!-- {{ 7 * 7 }} ]]> "
    "\u2028\u2029\x00\x07\x1b[31m\u202e\ud800 &lt; '\""
)
INFO: Json = {"name": "menu-0", "brain": "scripted:a", "strategy": "menu", "judge": "naive"}
LONG_PART = "You improve a training script.\n" * 40


def bpb(value: float) -> Metric:
    return Metric("val_bpb", value)


def trial(
    number: int,
    outcome: Outcome,
    verdict: str = "discard",
    *,
    incumbent: float | None = 2.5,
    text: str = "WIDTH = 96",
    description: str = "wider",
    diff: str = "--- a\n+++ b\n@@ -1 +1 @@\n-WIDTH = 64\n+WIDTH = 96\n",
) -> Trial:
    baseline = verdict == "baseline"
    message = Message("user", (LONG_PART, f"history of {number}"))
    reply = Reply(text, "stop", text, 100, 80, 10, 2.0)
    call = Call((message,), (reply,), 0.7, 64, number)
    edit = None if isinstance(outcome, Rejected) else Edit(diff, (KnobChange("W", "64", text),))
    return Trial(
        id=number,
        run="menu-0",
        parent=None if baseline else 0,
        commit="c0ffee" + "0" * 34,
        started="2026-01-01T00:00:00Z",
        seconds=12.0,
        context=Context(
            "f" * 64,
            None if baseline else 0,
            None if baseline or incumbent is None else bpb(incumbent),
            "menu",
            "t" * 64,
        ),
        proposal=Proposal("") if baseline else Proposal(description, (call,), "m", "d", "", edit),
        outcome=outcome,
        decision=Decision(verdict, "naive", f"because {description}", {"p": 0.5, "said": text}),  # type: ignore[arg-type]
    )


def records() -> list[Record]:
    return [
        trial(0, Scored(bpb(2.5)), "baseline"),
        Measurement(0, "failsafe", 7, "2025-12-31T23:59:00Z", 5.0, Scored(bpb(2.5))),
        Measurement(1, "replicate", 7, "2026-01-01T00:00:04Z", 4.0, Scored(bpb(2.41))),
        trial(1, Scored(bpb(2.4)), "keep"),
        trial(2, Scored(bpb(2.6)), incumbent=2.4),
        trial(3, Crashed("train", Reason.OUT_OF_MEMORY, "x" * 5000 + "CUDA out of memory")),
        trial(4, Rejected(Reason.SEARCH_NOT_FOUND, "no such text")),
        trial(5, TimedOut(30.0)),
        trial(6, Stopped(0.4, bpb(3.0))),
        trial(7, Invalid(bpb(0.1), Reason.NOT_CAUSAL, "it looked ahead")),
        trial(8, Scored(bpb(2.3)), "keep", incumbent=2.4),
        trial(9, Rejected(Reason.SEARCH_NOT_FOUND)),
    ]


class Page(HTMLParser):
    """What a browser would make of a page: its tags, attributes, scripts and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def structure(html: str) -> list[tuple[str, dict[str, str | None]]]:
    return Page(html).tags


# --- figures


def test_summary_counts_every_trial_once() -> None:
    summary = of_records(records(), INFO, "folder")
    assert (summary.kept, summary.discarded, summary.failed) == (2, 1, 6)
    assert summary.proposed == 9
    assert summary.outcomes == {
        "scored": 3, "rejected": 2, "crashed": 1, "timed_out": 1, "stopped": 1, "invalid": 1
    }  # fmt: skip
    assert summary.reasons["search_not_found"] == 2
    assert summary.rejected == {"search_not_found": 2}
    assert (summary.baseline, summary.best, summary.best_trial) == (bpb(2.5), bpb(2.3), 8)
    assert summary.gain == pytest.approx(0.2)
    assert (summary.tokens_read, summary.tokens_cached, summary.tokens_written) == (900, 720, 90)
    assert summary.brain_seconds == 18.0
    # The baseline asked no brain; the check between trials counts, the replicate is in its trial.
    assert summary.trainer_seconds == 12.0 + 5.0 + 9 * 10.0
    assert summary.spent[:2] == (12.0, 27.0)
    assert summary.dollars is None
    assert summary.arm == "menu · scripted:a"


def test_best_so_far_follows_kept_trials_and_reverts() -> None:
    kept = [
        trial(0, Scored(bpb(2.5)), "baseline"),
        trial(1, Scored(bpb(2.4)), "keep"),
        trial(2, Scored(bpb(2.45)), "keep"),  # kept for being simpler: the best stays
        trial(3, Scored(bpb(2.2)), "keep"),
        trial(4, Scored(bpb(1.0)), "discard"),
    ]
    revert = Event("revert", "2026-01-01T00:09:00Z", {"to": 2})
    after = trial(5, Scored(bpb(2.3)), "keep")
    summary = of_records([*kept, revert, trial(6, Rejected(Reason.NO_EDIT)), after], INFO, "r")
    values = [metric and metric.value for metric in summary.best_so_far]
    assert values == [2.5, 2.4, 2.4, 2.2, 2.2, 2.4, 2.3]
    back = of_records([*kept, Event("revert", "", {"to": 0})], INFO, "r")
    assert (back.best, back.best_trial) == (bpb(2.5), 0)


def test_a_metric_that_should_be_high_is_better_when_higher() -> None:
    up = [
        trial(0, Scored(Metric("accuracy", 0.5, "max")), "baseline"),
        trial(1, Scored(Metric("accuracy", 0.7, "max")), "keep", incumbent=None),
        trial(2, Scored(Metric("accuracy", 0.1, "max")), incumbent=None),
    ]
    summary = of_records(up, INFO, "r")
    assert summary.gain == pytest.approx(0.2)
    assert "accuracy rose from 0.5000 to 0.7000 in 2 trials (40.00% better)" in page([summary])


def test_a_score_that_is_no_number_is_a_failure() -> None:
    ledger = [trial(0, Scored(bpb(2.5)), "baseline"), trial(1, Scored(bpb(float("nan"))))]
    summary = of_records(ledger, INFO, "r")
    assert (summary.discarded, summary.failed) == (0, 1)
    assert "metric not finite" in Page(page([summary])).text


def test_one_terrible_score_does_not_flatten_the_chart() -> None:
    run = [trial(0, Scored(bpb(2.5)), "baseline")]
    run += [trial(i, Scored(bpb(2.5 + 0.01 * i))) for i in range(1, 9)]
    run += [trial(9, Scored(bpb(80.0)))]
    (chart,) = charts([(0, of_records(run, INFO, "r"), set())], "trial")
    assert chart.off_scale == 1
    assert chart.y.high < 3
    assert [m.y for m in chart.series[0].marks if m.off_scale] == [0.0]


def test_runs_of_different_metrics_have_a_chart_each() -> None:
    other: list[Record] = [trial(0, Scored(Metric("loss", 1.0)), "baseline")]
    runs = [(0, of_records(records(), INFO, "a"), {0}), (1, of_records(other, INFO, "b"), {0})]
    assert [chart.metric.name for chart in charts(runs, "seconds")] == ["val_bpb", "loss"]


# --- the table


def printed(summaries: list[Summary], width: int) -> str:
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=width, force_terminal=False).print(table(summaries))
    return out.getvalue()


def test_table_names_failures_and_rejections() -> None:
    odd = INFO | {"name": "[bold]odd\x1b[31m"}
    text = printed([of_records(records(), INFO, "a"), of_records(records()[:1], odd, "b")], 200)
    assert "2 rejected, 1 crashed, 1 timed out, 1 stopped, 1 invalid" in text
    assert "2 search not found" in text
    assert "[bold]odd␛[31m" in text


@pytest.mark.parametrize("runs", [1, 3, 12])
def test_table_cuts_no_figure_on_a_narrow_terminal(runs: int) -> None:
    text = printed([of_records(records(), INFO, "a")] * runs, 80)
    assert text.count("2.5000") == text.count("2.3000") == text.count("+0.2000") == runs
    assert max(map(len, text.splitlines())) <= 80


# --- the page


def test_page_shows_failures_like_kept_trials() -> None:
    html = page([of_records(records(), INFO, "r")])
    read = Page(html)
    for words in (
        "crashed in train: out of memory",
        "rejected: search not found",
        "timed out after 30 s",
        "stopped at 40%",
        "invalid: not causal",
        "it looked ahead",
        "CUDA out of memory",
        "1,018 more characters before",
    ):
        assert words in read.text
    trials = [a["class"] for _, a in read.tags if (a.get("class") or "").startswith("trial ")]
    assert trials == [
        "trial baseline", "trial keep", "trial discard", *["trial failed"] * 5,
        "trial keep", "trial failed",
    ]  # fmt: skip
    assert "a kept change may be noise" in read.text
    assert "val_bpb fell from 2.5000 to 2.3000 in 9 trials (8.00% better); 2 kept" in read.text
    assert "0.1000 better" in read.text and "0.2000 worse" in read.text
    assert "replicate, seed 7: 2.4100" in read.text


def test_every_link_leads_somewhere_and_ids_are_unique() -> None:
    html = page([of_records(records(), INFO, "a"), of_records(records(), INFO, "b")])
    tags = structure(html)
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {href for _, attrs in tags if (href := attrs.get("href"))}
    assert links and {link.removeprefix("#") for link in links} <= set(ids)


def test_a_prompt_that_repeats_is_shown_once() -> None:
    html = page([of_records(records(), INFO, "a")])
    assert html.count(LONG_PART) == 1
    assert "as in trial 1" in Page(html).text


def test_runs_under_other_conditions_are_called_so() -> None:
    runs = [of_records(records(), INFO | {"budget": b}, b) for b in ("300s", "600s")]
    assert "differ in budget (300s, 600s)" in Page(page(runs)).text
    targets = [{"folder": "a", "metric": "m"}, {"folder": "b", "metric": "m"}]
    runs = [of_records(records(), INFO | {"target": t}, "r") for t in targets]
    assert "differ in" not in Page(page(runs)).text
    runs[1] = of_records(records(), INFO | {"target": {"metric": "other"}}, "r")
    assert "differ in target" in Page(page(runs)).text


@pytest.mark.parametrize(
    ("ledger", "sentence"),
    [
        ([], "no trial yet, not even its baseline"),
        ([trial(0, Scored(bpb(2.5)), "baseline")], "Only the baseline was measured: val_bpb 2.5"),
        (
            [Event("baseline_failed", "2026", {"reason": "out_of_memory"})],
            "The baseline gave no score (out of memory), so no trial was run.",
        ),
        ([trial(0, Crashed("start", Reason.EXCEPTION), "baseline")], "The baseline has no score"),
        (
            [trial(0, Scored(bpb(2.5)), "baseline"), trial(1, Scored(bpb(2.6)))],
            "None of 1 trial was kept: the baseline's val_bpb 2.5000 (n = 1) stands.",
        ),
    ],
)
def test_a_run_with_little_in_it_says_so(ledger: list[Record], sentence: str) -> None:
    assert sentence in Page(page([of_records(ledger, INFO, "r")])).text


def test_a_long_run_keeps_details_of_kept_failed_and_latest() -> None:
    many: list[Record] = [trial(0, Scored(bpb(2.5)), "baseline")]
    for i in range(1, DETAILED + 300):
        failed = i % 3 == 0
        many.append(trial(i, Crashed("train", Reason.KILLED) if failed else Scored(bpb(2.6))))
    many[50] = trial(50, Scored(bpb(2.4)), "keep")
    read = Page(page([of_records(many, INFO, "r")]))
    assert f"messages, replies and diffs of 300 trials of {DETAILED + 300:,}" in read.text
    bodies = {a["id"] for _, a in read.tags if a.get("class") == "body"}
    assert {"r0t0", "r0t3", "r0t50", f"r0t{DETAILED + 299}"} <= bodies
    assert len(bodies) == DETAILED
    assert sum((a.get("class") or "").startswith("trial ") for _, a in read.tags) == len(many)


# --- foreign text


def hostile(text: str) -> list[Record]:
    """Records with `text` wherever a model, or what it ran, can write."""
    return [
        trial(0, Scored(bpb(2.5)), "baseline"),
        trial(1, Scored(bpb(2.4)), "keep", text=text, description=text, diff=text),
        trial(2, Crashed("train", Reason.EXCEPTION, text), text=text, description=text),
        trial(3, Rejected(Reason.NO_EDIT, text), text=text),
        trial(4, Invalid(bpb(1.0), Reason.NOT_CAUSAL, text), description=text),
        Event("note", text, {text: text}),
    ]


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(codec=None), max_size=60) | st.just(HOSTILE))
def test_what_a_model_writes_cannot_add_to_the_page(text: str) -> None:
    plain = text.translate({ord(c): "x" for c in "<>&\"'`"})  # same shape, nothing to escape
    html = page([of_records(hostile(text), INFO, "r")])
    assert structure(html) == structure(page([of_records(hostile(plain), INFO, "r")]))
    html.encode()
    assert visible(html.replace("\r", "")) == html


def test_the_page_has_no_script_and_a_policy_that_forbids_one() -> None:
    read = Page(page([of_records(hostile(HOSTILE), INFO | {"name": HOSTILE}, "r")]))
    assert read.count("script") == read.count("img") == read.count("iframe") == 0
    (policy,) = [a["content"] for _, a in read.tags if a.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'sha256-")
    for _, attrs in read.tags:
        assert not any(name.startswith("on") or name in ("src", "style") for name in attrs)
        assert (attrs.get("href") or "#").startswith("#")
    assert "{{ 7 * 7 }}" in read.text
    assert "␀␇␛[31m\\u202e\\ud800" in read.text


def test_a_huge_text_is_cut_and_says_by_how_much() -> None:
    html = page([of_records(hostile(HOSTILE + "z" * 100_000), INFO, "r")])
    assert len(html) < 250_000
    assert "more characters" in html


# --- files


def stored(folder: Path, ledger: list[Record], toml: str = "") -> Path:
    with Ledger(folder) as file:
        for record in ledger:
            file.append(record)
    (folder / "run.toml").write_text(toml)
    return folder


def test_report_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = stored(tmp_path / "one", records(), 'strategy = "menu"\nseed = 3\n')
    two = stored(tmp_path / "two", hostile("fine"))
    out = tmp_path / "deep" / "report.html"
    assert run([str(one), str(two), "--out", str(out)]) == 0
    assert "report of 2 runs" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    assert "2 runs side by side" in Page(out.read_text()).text
    assert summarise(one) == of_records(records(), {"strategy": "menu", "seed": 3}, "one")
    before = out.read_bytes()
    assert write([one, two], out).read_bytes() == before


def test_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="nowhere"):
        write([tmp_path / "nowhere"], tmp_path / "r.html")
    good = stored(tmp_path / "run", records())
    with pytest.raises(AutoresearchError, match="cannot write"):
        write([good], tmp_path)
    (good / "run.toml").write_text("= nonsense")
    with pytest.raises(LedgerError, match=r"run\.toml"):
        write([good], tmp_path / "r.html")
    with pytest.raises(SystemExit):
        run([])
    assert not (tmp_path / "r.html").exists()


@pytest.mark.slow
def test_in_a_browser_nothing_runs(tmp_path: Path) -> None:
    browser.required()
    out = tmp_path / "report.html"
    out.write_text(page([of_records(hostile(HOSTILE), INFO, "r")]))
    dom = browser.dom(out.as_uri(), tmp_path / "profile")
    read = Page(dom)
    assert "<title>Autoresearch report</title>" in dom
    assert read.count("script") == read.count("img") == 0
    drawn = [(tag, a) for tag, a in read.tags if a.get("class") == "best"]
    assert len(drawn) == 2  # the step line over trials and over seconds


def test_figures_read_well() -> None:
    assert [number(v) for v in (0.0, 0.00031, 2.70123, 123456.0, 1e12)] == [
        "0.0000", "0.00031", "2.7012", "1.235e+05", "1e+12"
    ]  # fmt: skip
    base = of_records(records(), INFO, "r")
    assert replace(base, best=None).gain is None
