"""The ledger: torn, corrupt, tampered, locked, full; and the table that follows from it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loop import ledger
from loop.errors import LedgerError
from loop.ledger import LEDGER, Ledger
from loop.trial import Crashed, Event, Metric, Reason, Rejected, Scored
from tests.conftest import a_trial, outside

LONG = "a long instruction that repeats from trial to trial. " * 20


def filled(folder: Path, count: int = 3) -> Path:
    """A run of `count` trials, each with the same long message part."""
    with Ledger(folder) as book:
        for number in range(count):
            book.append(a_trial(number, parts=(LONG, f"now trial {number}")))
    return folder


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    filled(tmp_path)
    expected = [a_trial(n, parts=(LONG, f"now trial {n}")) for n in range(3)]
    assert list(ledger.read(tmp_path)) == expected == ledger.trials(tmp_path)


def test_a_long_part_is_stored_once(tmp_path: Path) -> None:
    filled(tmp_path)
    assert [p.read_text() for p in (tmp_path / "blobs").iterdir()] == [LONG]
    assert LONG not in (tmp_path / LEDGER).read_text()


def test_a_schema_with_a_property_named_blob_is_not_taken_for_one(tmp_path: Path) -> None:
    from dataclasses import replace

    trial = a_trial(0)
    call = replace(trial.proposal.calls[0], schema={"properties": {"blob": {"type": "string"}}})
    trial = replace(trial, proposal=replace(trial.proposal, calls=(call,)))
    with Ledger(tmp_path) as book:
        book.append(trial)
    assert ledger.trials(tmp_path) == [trial]


@pytest.mark.parametrize(
    "text", ["\ud800 lone surrogate", "line\u2028separator\x0c\r\n\x00", "é😀"]
)
def test_any_text_a_model_writes_can_be_recorded(tmp_path: Path, text: str) -> None:
    trial = a_trial(0, description=text, parts=(text, text * 400))
    with Ledger(tmp_path) as book:
        book.append(trial)
    assert ledger.trials(tmp_path) == [trial]
    assert len((tmp_path / "results.tsv").read_text().splitlines()) == 2


def test_a_tampered_blob_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    ledger._load.cache_clear()
    blob = next((tmp_path / "blobs").iterdir())
    blob.write_text(LONG + "and one more thing")
    with pytest.raises(LedgerError, match=r"line 1 is corrupt.*checksum"):
        list(ledger.read(tmp_path))


def test_a_missing_blob_is_named(tmp_path: Path) -> None:
    filled(tmp_path)
    ledger._load.cache_clear()
    blob = next((tmp_path / "blobs").iterdir())
    blob.unlink()
    with pytest.raises(LedgerError, match=f"line 1 is corrupt .missing {blob.name}"):
        list(ledger.read(tmp_path))


def test_a_blob_name_is_no_path(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    body = json.loads((tmp_path / LEDGER).read_text())
    body["proposal"]["calls"][0]["messages"][0]["parts"] = [{"blob": "../../etc/hostname"}]
    (tmp_path / LEDGER).write_text(json.dumps(body) + "\n")
    with pytest.raises(LedgerError, match="is not a sha256"):
        list(ledger.read(tmp_path))


@pytest.mark.parametrize("keep", [1, 40, -1])
def test_a_torn_last_line_is_left_out_then_set_aside(tmp_path: Path, keep: int) -> None:
    filled(tmp_path)
    path = tmp_path / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[2][:keep]
    path.write_bytes(b"".join(lines[:2]) + torn)
    assert [t.id for t in ledger.trials(tmp_path)] == [0, 1], "a reader changes nothing"
    assert path.read_bytes().endswith(torn)
    with Ledger(tmp_path) as book:
        assert len(book.records) == 2
        book.append(a_trial(2))
    assert (tmp_path / f"{LEDGER}.torn").read_bytes() == torn + b"\n"
    assert [t.id for t in ledger.trials(tmp_path)] == [0, 1, 2]


def spoil(folder: Path, line: int, new: bytes) -> bytes:
    path = folder / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1] = new + b"\n"
    path.write_bytes(b"".join(lines))
    return path.read_bytes()


@pytest.mark.parametrize(
    "junk",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"kind": "trial"}', b'{"kind": []}', b"NaN", b"[" * 100_000],
    ids=lambda junk: repr(junk[:20]),
)
def test_a_corrupt_middle_line_is_refused_by_number(tmp_path: Path, junk: bytes) -> None:
    filled(tmp_path)
    before = spoil(tmp_path, 2, junk)
    with pytest.raises(LedgerError, match="line 2 is corrupt") as caught:
        Ledger(tmp_path)
    assert "\n" not in str(caught.value) and "--repair" in str(caught.value)
    assert (tmp_path / LEDGER).read_bytes() == before, "nothing is touched"


def test_repair_sets_the_corrupt_line_aside(tmp_path: Path) -> None:
    filled(tmp_path)
    spoil(tmp_path, 2, b"{ half a line")
    with Ledger(tmp_path, repair=True) as book:
        book.append(a_trial(3))
    assert [t.id for t in ledger.trials(tmp_path)] == [0, 2, 3]
    assert (tmp_path / f"{LEDGER}.corrupt").read_bytes() == b"{ half a line\n"


def test_a_ledger_stays_locked_after_a_repair(tmp_path: Path) -> None:
    filled(tmp_path)
    spoil(tmp_path, 2, b"x")
    with Ledger(tmp_path, repair=True), pytest.raises(LedgerError, match="being written"):
        Ledger(tmp_path)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the ledger of tmp_path."""
    code = (
        "import sys; from pathlib import Path; from loop.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=outside(),
    ) as process:  # fmt: skip
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.communicate("")


def test_a_lock_of_another_process_is_refused_with_its_pid(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(LedgerError, match=f"being written by process {holder.pid};"):
        Ledger(tmp_path)
    holder.kill()
    holder.wait()
    with Ledger(tmp_path) as book:
        assert book.records == [], "the lock of a dead process is nobody's"


FULL = """
import resource, sys
from pathlib import Path
from loop.errors import LedgerError
from loop.ledger import LEDGER, Ledger
from tests.conftest import a_trial
folder = Path(sys.argv[1])
with Ledger(folder) as book:
    size = (folder / LEDGER).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))
    try:
        book.append(a_trial(2))
    except LedgerError as error:
        print(error)
        print(len(book.records))
"""


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    before = (tmp_path / LEDGER).read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True,
        env=outside(), check=True,
    )  # fmt: skip
    said, known = done.stdout.splitlines()
    assert "cannot write" in said and "--resume" in said
    assert known == "2"
    assert (tmp_path / LEDGER).read_bytes() == before
    with Ledger(tmp_path) as book:
        book.append(a_trial(2))
    assert len(ledger.trials(tmp_path)) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_really_full_disk_is_one_line_also_on_opening(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]).returncode:
        pytest.skip("cannot mount")
    try:
        run = filled(tmp_path / "r", 2)
        before = (run / LEDGER).read_bytes()
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "filler").write_bytes(b"x" * 100_000)
        with pytest.raises(LedgerError, match="make room"):
            Ledger(run)
        assert (run / LEDGER).read_bytes() == before
        (tmp_path / "filler").unlink()
        with Ledger(run) as book:
            assert len(book.records) == 2
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_results_tsv_has_five_columns_whatever_the_description(tmp_path: Path) -> None:
    with Ledger(tmp_path) as book:
        book.append(a_trial(0))
        book.append(a_trial(1, description="two\tcells\nand two\r\nlines", verdict="keep"))
        book.append(a_trial(2, Crashed("train", Reason.OUT_OF_MEMORY)))
        book.append(a_trial(3, Rejected(Reason.NO_EDIT)))
        book.append(a_trial(4, Scored(Metric("val_bpb", 1.4), {"peak_vram_mb": "lots"})))
    rows = [line.split("\t") for line in (tmp_path / "results.tsv").read_text().splitlines()]
    assert rows[0] == ["commit", "val_bpb", "memory_gb", "status", "description"]
    assert rows[1] == ["ccccccc", "1.500000", "2.0", "keep", "trial 0"]
    assert rows[2] == ["ccccccc", "1.490000", "2.0", "keep", "two cells and two lines"]
    assert [row[3] for row in rows[3:]] == ["crash", "crash", "discard"]
    assert rows[5][2] == "0.0", "a measurement that is no number is no memory"


def test_results_tsv_is_the_same_projection_after_a_resume(tmp_path: Path) -> None:
    filled(tmp_path)
    with Ledger(tmp_path) as book:
        book.append(Event("note", "now"))
        book.append(a_trial(3))
    grown = (tmp_path / "results.tsv").read_text()
    (tmp_path / "results.tsv").write_text("nonsense")
    with Ledger(tmp_path):
        assert (tmp_path / "results.tsv").read_text() == grown
    assert len(grown.splitlines()) == 5


def test_no_ledger_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"no ledger at .*name the folder of a run"):
        list(ledger.read(tmp_path / "absent"))
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot open"):
        Ledger(tmp_path / "file" / "run")
