"""Run folders as `collect` reads them: ours and imported ones alike."""

import hashlib
import json
import tomllib
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path

from data_collection.licence import OWN
from loop import ledger, target
from loop.edit import sha256
from loop.errors import LedgerError, TargetError
from loop.git import git
from loop.target import Target
from loop.trial import Json, Record, Trial


class Run:
    """One run folder. Raises LedgerError when it is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            data = (folder / "run.toml").read_bytes()
            self.info: Json = tomllib.loads(data.decode("utf-8"))
        except OSError as error:
            raise LedgerError(f"{folder} is not a run (run.toml: {error.strerror})") from None
        except ValueError as error:
            raise LedgerError(f"{folder / 'run.toml'} is not TOML: {error}") from None
        first = next(self.trials(), None)
        if first is None:
            raise LedgerError(f"{folder} holds no trial; there is nothing to collect")
        self.name = str(self.info.get("name") or folder.resolve().name)
        self.id = hashlib.sha256(data + self._first_line()).hexdigest()[:16]
        self.licence = str(self.info.get("licence") or OWN)
        self.strategy = str(self.info.get("strategy") or "")
        self.brain = str(self.info.get("brain") or "")
        self.arm = " · ".join(part for part in (self.strategy, self.brain) if part) or "unknown"
        self.seed = int(self.info.get("seed") or 0)
        self.provenance: Json = dict(self.info.get("provenance") or {})
        if not self.provenance:
            self.provenance = {"versions": self.info.get("versions", {})}
        self.target_name = self._target_name()
        self.target_hash = self._target_hash(first)
        self.source = lru_cache(maxsize=2)(self._source)  # kept for every run of a corpus

    def records(self) -> Iterator[Record]:
        """Every record in order, in flat memory."""
        return ledger.read(self.folder)

    def trials(self) -> Iterator[Trial]:
        return (record for record in self.records() if isinstance(record, Trial))

    @cached_property
    def target(self) -> Target | None:
        """The target as run.toml has it, None: it has none that this program understands."""
        try:
            return target.from_toml(self.info["target"])
        except (KeyError, TypeError, ValueError, TargetError):
            return None

    @cached_property
    def target_spec(self) -> Json:
        """What a prompt shows of the target; nothing that points into somebody's file system."""
        spec = dict(self.info.get("target") or {})
        return {k: v for k, v in spec.items() if k in _SHOWN}

    def _target_name(self) -> str:
        spec = self.info.get("target") or {}
        parts = (spec.get("name"), spec.get("profile"), spec.get("variant"))
        return "/".join(str(part) for part in parts if part) or "unknown"

    def _target_hash(self, first: Trial) -> str:
        """Same metric, profile, variant and starting code: the same target, whatever its name."""
        spec = self.info.get("target") or {}
        edit = first.proposal.edit
        start = edit.code_hash if edit is not None else f"name {spec.get('name')}"
        names = ("metric", "direction", "profile", "variant")
        known = [str(spec.get(name, "")) for name in names]
        return sha256(json.dumps([*known, start]))[:16]

    def _first_line(self) -> bytes:
        with (self.folder / ledger.LEDGER).open("rb") as file:
            return file.readline()

    def _source(self, digest: str, parent: str | None) -> str | None:
        """The file with this sha256: kept beside the ledger, or in the run's own repository."""
        if not digest:
            return None
        kept = self.folder / "blobs" / digest
        text: str | None = None
        if kept.is_file():
            text = kept.read_bytes().decode("utf-8", "surrogatepass")
        elif parent and self.target and (self.folder / "work").is_dir():
            try:
                text = git(["show", f"{parent}:{self.target.editable}"], self.folder / "work")
            except TargetError:
                return None
        return text if text is not None and sha256(text) == digest else None


_SHOWN = ("name", "editable", "metric", "direction", "instructions", "knobs", "seed", "fixed",
          "profile", "variant", "budget", "start")  # fmt: skip
