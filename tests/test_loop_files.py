"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from loop.files import atomic_folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_folder_appears_whole(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
    with atomic_folder(out) as beside:
        (beside / "data").mkdir()
        (beside / "data" / "part").write_text("x")
        assert not (out / "data").exists()
    assert names(tmp_path) == ["deep", "deep/out", "deep/out/data", "deep/out/data/part"]


def test_a_folder_that_failed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out") as beside:
        (beside / "part").write_text("x")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "out") as beside:
        (beside / "part").write_text("y")
    assert names(tmp_path) == ["out", "out/thesis.tex"]
