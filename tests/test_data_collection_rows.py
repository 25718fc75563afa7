"""Foreign logs: every dialect and every trap, and no line that is not accounted for."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_collection import delimited, jsonlines, runlog, words
from data_collection.rows import Log, Reading, understand
from loop.errors import AutoresearchError
from loop.trial import Reason

SHARED = Path(__file__).parents[2] / "shared" / "data"
HEAD = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\n"
THREE = (
    "a1b2c3d\t1.000000\t44.0\tkeep\tbaseline\n"
    "b2c3d4e\t0.990000\t44.0\tkeep\twider\n"
    "c3d4e5f\t1.010000\t44.0\tdiscard\tdeeper\n"
)


def log(text: str, metric: str = "", direction: str = "") -> Log:
    return understand(delimited.read(text), metric, direction)


def accounted(reading: Reading) -> int:
    return reading.headers + len(reading.cells) + reading.continued + len(reading.unread)


def test_karpathys_own_format() -> None:
    found = log(HEAD + THREE)
    assert [row.status for row in found.rows] == ["keep", "keep", "discard"]
    assert [row.value for row in found.rows] == [1.0, 0.99, 1.01]
    assert (found.metric, found.direction, found.unread) == ("val_bpb", "min", ())
    assert found.rows[0].measurements["peak_vram_mb"] == 44.0 * 1024


@pytest.mark.parametrize(
    "text",
    [
        "status\tdescription\tcommit\tval_bpb\nkeep\tbase\ta1b2\t1.0\ndiscard\tx\tb2c3\t1.1\n",
        "commit,val_bpb,status,description\na1b2,1.0,keep,base\nb2c3,1.1,discard,x\n",
        "commit;val_bpb;status;description\na1b2;1.0;keep;base\nb2c3;1.1;discard;x\n",
        "| commit | val_bpb | status | description |\n|---|---|---|---|\n"
        "| a1b2 | 1.0 | keep | base |\n| b2c3 | 1.1 | discard | x |\n",
        "Commit\tVal BPB\tStatus\tDescription\r\n"
        "a1b2\t1.0\tKEEP\tbase\r\nb2c3\t1.1\tDISCARD\tx\r\n",
        "a1b2\t1.0\t44.0\tkeep\tbase\nb2c3\t1.1\t44.0\tdiscard\tx\n",
        "exp\tcommit\tval_bpb\tmfu\tnum_steps\tverdict\tidea\n"
        "1\ta1b2\t1.0\t50\t9\tkept\tbase\n2\tb2c3\t1.1\t50\t9\treverted\tx\n",
    ],
    ids=["order", "commas", "semicolons", "markdown", "crlf", "no-header", "other-names"],
)  # fmt: skip
def test_other_columns_and_delimiters(text: str) -> None:
    found = log(text)
    assert [(r.commit, r.value, r.status, r.description) for r in found.rows] == [
        ("a1b2", 1.0, "keep", "base"),
        ("b2c3", 1.1, "discard", "x"),
    ]
    assert not found.unread


def test_a_newline_inside_an_unquoted_description() -> None:
    reading = delimited.read(HEAD + THREE + "d4e5f6a\t0.98\t44.0\tkeep\tfirst line\nsecond line\n")
    found = understand(reading)
    assert found.rows[-1].description == "first line\nsecond line"
    assert reading.continued == 1
    assert accounted(reading) == reading.lines == 6


def test_a_newline_before_the_status() -> None:
    text = "commit\tval_bpb\tdescription\tstatus\na1\t1.0\tbase\tkeep\na2\t0.9\tone\ntwo\tkeep\n"
    found = log(text)
    assert [(r.description, r.status) for r in found.rows][1] == ("one\ntwo", "keep")


def test_a_quoted_cell_with_tabs_newlines_and_quotes() -> None:
    text = HEAD + 'a1\t1.0\t44\tkeep\t"said ""x""\tand\nmore"\n' + "a2\t1.1\t44\tdiscard\ty\n"
    found = log(text)
    assert found.rows[0].description == 'said "x"\tand\nmore'
    assert len(found.rows) == 2


def test_a_quote_that_never_closes_is_a_character() -> None:
    found = log(HEAD + 'a1\t1.0\t44\tkeep\t6" wide\na2\t1.1\t44\tdiscard\t"half\n' + THREE)
    assert len(found.rows) == 5
    assert found.rows[1].description == '"half'


def test_prose_between_rows_is_listed_and_not_swallowed() -> None:
    text = HEAD + THREE + "\n## Session 2\nWe moved to another GPU.\n\nd4\t0.98\t44.0\tkeep\tx\n"
    found = log(text)
    assert len(found.rows) == 4
    assert [(u.line, u.text) for u in found.unread] == [
        (6, "## Session 2"),
        (7, "We moved to another GPU."),
    ]
    assert found.rows[2].description == "deeper"


def test_two_schemas_in_one_file() -> None:
    second = "commit\tval_bpb\tmemory_gb\tmfu\tstatus\tdescription\nd4\t0.98\t44\t50\tkeep\tx\n"
    found = log(HEAD + THREE + second)
    assert len(found.rows) == 4
    assert found.rows[3].measurements["mfu"] == 50.0
    assert any("another header" in phrase for phrase in found.said)


def test_a_schema_that_changes_without_a_header() -> None:
    found = log(HEAD + THREE + "d4\t0.98\t44\t50\t77\t88\tkeep\tx y\n")
    row = found.rows[3]
    assert (row.value, row.status, row.description) == (0.98, "keep", "x y")
    assert "read in Karpathy's order" in row.inferred[0]


def test_another_metric_in_the_same_file_is_listed_not_mixed() -> None:
    second = "commit\taccuracy\tmemory_gb\tstatus\tdescription\nd4\t0.5\t44\tkeep\tx\n"
    found = log(HEAD + THREE + second)
    assert len(found.rows) == 3
    assert found.unread[0].line == 6
    assert "--metric accuracy" in found.unread[0].why
    assert log(HEAD + THREE + second, "accuracy").direction == "max"


def test_the_metric_is_a_column_of_numbers() -> None:
    head = "run_id\tcommit\tcandidate\tscreen_score\tstatus\tdescription\n"
    found = log(head + "r1\ta1\tbase\t0.5\tbaseline\tx\nr2\t\ttrial-1\t0.4\tdiscard\ty\n")
    assert (found.metric, found.direction) == ("screen_score", "max")


def test_crashes_written_as_zero() -> None:
    text = HEAD + THREE + "d4\t0.000000\t0.0\tcrash\toom\ne5\t0.000000\t0.0\tdiscard\tdied\n"
    found = log(text)
    assert [row.value for row in found.rows[3:]] == [None, None]
    assert found.rows[4].reason is Reason.METRIC_MISSING
    assert any("0" in phrase and "no score" in phrase for phrase in found.said)


def test_zero_is_a_score_where_higher_is_better() -> None:
    text = "commit\taccuracy\tstatus\tdescription\na\t0.5\tkeep\tb\nb\t0.0\tdiscard\tx\n"
    assert [row.value for row in log(text).rows] == [0.5, 0.0]


def test_a_sentinel_is_no_score() -> None:
    rows = "".join(f"e{i}\t{0.5 + i / 10}\tKEEP\tx\n" for i in range(5))
    bad = "".join(f"f{i}\t-999.000\tREVERT\ty\n" for i in range(4))
    found = log("commit\tscore\tstatus\tdescription\n" + rows + bad)
    assert [row.value for row in found.rows[5:]] == [None] * 4
    assert found.direction == "max"


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ("d4\t-0.5\t44\tdiscard\tx", "cannot be negative"),
        ("d4\t1e30\t44\tdiscard\tx", "absurd"),
        ("d4\tabc\t44\tdiscard\tx", "not a number"),
        ("d4\t0.9\t44\tmaybe\tx", "status 'maybe'"),
        ("d4\t0.9\t44\tfailed\tx", "neither a loss nor a crash"),
        ("d4\t0.9\t44\t\tx", "status ''"),
        ("d4\t0.9\t44\tskipped\tx", "never ran"),
    ],
)
def test_what_is_not_understood_is_listed_with_its_line(cells: str, why: str) -> None:
    found = log(HEAD + THREE + cells + "\n")
    assert len(found.rows) == 3
    assert found.unread[0].line == 5
    assert why in found.unread[0].why


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("oom", Reason.OUT_OF_MEMORY),
        ("TIMEOUT", Reason.TIME_OUT),
        ("nan", Reason.METRIC_NOT_FINITE),
    ],
)
def test_a_status_that_names_its_reason(status: str, reason: Reason) -> None:
    row = log(HEAD + THREE + f"d4\t\t0\t{status}\tx\n").rows[3]
    assert (row.status, row.value, row.reason) == ("crash", None, reason)


def test_nan_is_not_a_number_and_not_dropped() -> None:
    row = log(HEAD + THREE + "d4\tnan\t0\tdiscard\tx\n").rows[3]
    assert (row.value, row.reason) == (None, Reason.METRIC_NOT_FINITE)


def test_a_torn_last_row() -> None:
    found = log(HEAD + THREE + "d4e5\t0.97")
    assert len(found.rows) == 3
    assert found.unread[0].why == "the file ends inside this row"


def test_the_direction_comes_from_what_was_kept() -> None:
    rows = "".join(f"c{i}\t{1 + i}\tkeep\tx\n" for i in range(5))
    assert log("commit\tthing\tstatus\tdescription\n" + rows).direction == "max"
    with pytest.raises(AutoresearchError, match="--direction"):
        log("commit\tthing\tstatus\tdescription\na\t1\tkeep\tx\n")
    assert log("commit\tthing\tstatus\tdescription\na\t1\tkeep\tx\n", "", "max").direction == "max"


def test_without_a_status_what_beats_all_before_counts_as_kept() -> None:
    found = log("commit\tval_loss\tdescription\na\t2.0\tb\nb\t2.5\tx\nc\t1.5\ty\n")
    assert [row.status for row in found.rows] == ["keep", "discard", "keep"]
    assert any("no status" in phrase for phrase in found.said)


def test_nothing_readable_is_one_clear_error() -> None:
    with pytest.raises(AutoresearchError, match="metric"):
        log("just some prose\nand more\n")


def test_pi_jsonl_with_a_repeated_config_and_junk() -> None:
    text = (
        '{"type":"config","name":"s","metricName":"total_µs","bestDirection":"lower"}\n'
        '{"run":1,"commit":"abc1234","metric":1620,"metrics":{"size_kib":5},"status":"keep",'
        '"description":"baseline","timestamp":1777278226000,"confidence":null,"asi":{"why":"x"}}\n'
        "not json\n"
        '{"run":2,"commit":"abc1234","metric":0,"metrics":{},"status":"crash","description":"y",'
        '"timestamp":1777278284}\n'
        '{"type":"config","name":"s","metricName":"total_µs","bestDirection":"lower"}\n'
        '{"run":3,"commit":"def5678","metric":1500,"status":"checks_failed","description":"z"}\n'
        "[1, 2]\n"
    )
    reading = jsonlines.read(text)
    assert accounted(reading) == reading.lines == 7
    found = understand(reading)
    assert (found.metric, found.direction) == ("total_µs", "min")
    assert [(r.status, r.value, r.segment) for r in found.rows] == [
        ("keep", 1620.0, 0), ("crash", None, 0), ("invalid", 1500.0, 1)
    ]  # fmt: skip
    assert [u.line for u in found.unread] == [3, 7]
    assert found.rows[0].started == found.rows[1].started[:13] + found.rows[0].started[13:]
    assert found.rows[0].measurements["size_kib"] == 5.0
    assert found.rows[0].measurements["asi"] == {"why": "x"}


def test_a_run_log_gives_a_row_for_each_summary() -> None:
    block = "step 1 loss 3.2\n---\nval_bpb:          {}\ntraining_seconds: 300.1\n---\n"
    found = understand(runlog.read(block.format(1.5) + block.format(1.4)))
    assert [(r.value, r.status) for r in found.rows] == [(1.5, "keep"), (1.4, "keep")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("KEEP ✅", "keep"),
        ("discard (worse)", "discard"),
        ("no improvement", "discard"),
        ("Timed-out", "crash"),
        ("**keep**", "keep"),
        ("perhaps", None),
    ],
)
def test_words_of_status(text: str, value: str | None) -> None:
    assert words.status(text) == value


@pytest.mark.parametrize("name", ["karpathy-h100-mar8", "rtx5070-mar10"])
def test_the_real_logs_are_accounted_for(name: str) -> None:
    path = SHARED / f"{name}.results.tsv"
    if not path.exists():
        pytest.skip("the real logs are not here")
    text = path.read_text(encoding="utf-8")
    reading = delimited.read(text)
    found = understand(reading)
    assert accounted(reading) == reading.lines == len([x for x in text.split("\n") if x.strip()])
    assert len(found.rows) == text.count("\n") - 1
    assert not found.unread
    crashes = text.count("\tcrash\t")
    assert sum(row.value is None for row in found.rows) == crashes > 0


NOT_IN_A_CELL = '\t\n\r"|,;\x0b\x0c\x1c\x1d\x1e\x85'
CELL = (
    st.text(st.characters(codec="utf-8", exclude_characters=NOT_IN_A_CELL), min_size=1, max_size=20)
    .map(str.strip)
    .filter(bool)
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[tuple[str, float, str, str]]]:
    """A log in some dialect, and the (commit, value, status, description) of its rows."""
    names = ["commit", "val_bpb", "status", *draw(st.lists(st.sampled_from(
        ["memory_gb", "mfu", "num_steps", "tok_per_sec"]), unique=True, max_size=3))]  # fmt: skip
    names = draw(st.permutations(names))
    last = draw(st.booleans())
    names = [*names, "description"] if last else ["description", *names]
    end = draw(st.sampled_from(["\n", "\r\n"]))
    rows = []
    text = "\t".join(names) + end
    for index in range(draw(st.integers(1, 12))):
        value = draw(st.integers(900_000, 1_100_000)) / 1e6
        status = draw(st.sampled_from(["keep", "discard", "KEEP", "Discard"]))
        words_ = " ".join(draw(st.lists(CELL, min_size=1, max_size=3)))
        cells = {"commit": f"{index:07x}", "val_bpb": f"{value:.6f}", "status": status,
                 "description": f"d {words_}"}  # fmt: skip
        text += "\t".join(cells.get(name, "1.5") for name in names) + end
        extra = draw(st.sampled_from(["", "", end, "\t".join(names) + end]))
        text += extra
        rows.append((f"{index:07x}", value, status.lower(), f"d {words_}"))
    return text, rows


@settings(max_examples=150, deadline=None)
@given(tables())
def test_any_dialect_gives_back_its_rows(
    table: tuple[str, list[tuple[str, float, str, str]]],
) -> None:
    text, rows = table
    reading = delimited.read(text)
    found = understand(reading, direction="min")
    assert [(r.commit, r.value, r.status, r.description) for r in found.rows] == rows
    assert accounted(reading) == reading.lines


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400))
def test_any_text_is_read_without_a_crash_and_accounted_for(text: str) -> None:
    reading = delimited.read(HEAD + text)
    assert accounted(reading) == reading.lines
    other = jsonlines.read(text)
    assert accounted(other) == other.lines
