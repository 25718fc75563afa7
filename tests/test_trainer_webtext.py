"""The GPU profiles' data, on small parquet shards made here: tokenizer, packing, a training run."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TRAINER = Path(__file__).parent.parent / "trainer"
PLAIN = {k: v for k, v in os.environ.items() if not k.startswith("AUTORESEARCH_")}
SEQ_LEN = 64
ROWS = 40
SHARDS = (0, 1, 6540, 6541, 6542)
TINY = f"""
budget = "1e10flops"
timeout_s = 60
threads = 1
text = "tiny"
[data]
seq_len = {SEQ_LEN}
eval_tokens = {SEQ_LEN * ROWS}
train_shards = 2
warmup_steps = 1
peak_flops = 1e12
[start]
[variants.tiny]
"""
Done = subprocess.CompletedProcess[str]


def trainer(folder: Path, cache: Path, *command: str) -> Done:
    environ = {"AUTORESEARCH_CACHE": str(cache), "AUTORESEARCH_PROFILE": "tiny"}
    environ |= {"AUTORESEARCH_OUT": str(cache / "out"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**PLAIN, **environ},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trainer folder with a profile `tiny`, and a cache with its prepared shards."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("tokenizers")
    root = tmp_path_factory.mktemp("webtext")
    folder, cache = root / "trainer", root / "cache"
    shutil.copytree(TRAINER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "profiles" / "tiny.toml").write_text(TINY)
    source = folder / "train.py"
    source.write_text(source.read_text().replace("SHORT_WINDOW = 64", "SHORT_WINDOW = 32"))
    (cache / "shards").mkdir(parents=True)
    rng = random.Random(0)
    syllables = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "nrstlm"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(9000)]
    words += [str(number) for number in range(1000, 9999, 5)]
    for number in SHARDS:
        texts = [" ".join(rng.choices(words, k=rng.randint(1, 150))) for _ in range(1500)]
        table = pa.table({"text": ["naïve “quotes” <|reserved_0|> 12345", *texts]})
        path = cache / "shards" / f"shard_{number:05d}.parquet"
        parquet.write_table(table, path, row_group_size=400)
    done = trainer(folder, cache, "prepare.py")
    assert done.returncode == 0, done.stderr
    return folder, cache


PACKING = """
import sys
from pathlib import Path
import numpy as np
import webtext
from tokens import read_manifest

cache, row_tokens, rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder = cache / "texts" / "tiny"
tokenizer = webtext.load_tokenizer(folder / "tokenizer.json", [])
bos = tokenizer.token_to_id(webtext.BOS)

def plainly(shards, wanted):
    '''Best fit by looking through the whole buffer, as one would write it down.'''
    batches, buffer, packed = webtext.read_documents(shards), [], []
    while wanted is None or len(packed) < wanted:
        row = []
        while len(row) < row_tokens:
            while len(buffer) < webtext.BUFFER:
                texts = next(batches, None)
                if texts is None:
                    return packed
                buffer += [[bos, *tokenizer.encode(text).ids] for text in texts]
            space = row_tokens - len(row)
            fitting = [d for d in buffer if len(d) <= space]
            best = max(fitting, key=len) if fitting else min(buffer, key=len)
            buffer.remove(best)
            row += best[:space]
        packed.append(row)
    return packed

splits = {"train": ((0, 1), None), "val": ((6542,), rows), "test": ((6540,), rows)}
for split, (numbers, wanted) in splits.items():
    packed = np.fromfile(folder / f"{split}.bin", dtype="<i2").reshape(-1, row_tokens)
    assert packed.tolist() == plainly([webtext.shard(cache, n) for n in numbers], wanted), split
    assert (packed[:, 0] == bos).all()

manifest = read_manifest(folder)
assert manifest.vocab_size == 8192 and manifest.row_tokens == row_tokens
text = "naïve “quotes” <|reserved_0|> 12345\\n  x"
ids = tokenizer.encode(text).ids
assert tokenizer.decode(ids) == text
assert bos not in ids, "a document's own words became a special token"
assert manifest.token_bytes.count(0) == 4 and manifest.token_bytes[bos] == 0
ascii_ids = tokenizer.encode("12345 plain words").ids
assert sum(manifest.token_bytes[i] for i in ascii_ids) == len("12345 plain words")
assert max(len(tokenizer.decode([i])) for i in tokenizer.encode("1234567").ids) == 2
"""


@pytest.mark.slow
def test_rows_are_packed_best_fit_and_tokens_round_trip(tiny: tuple[Path, Path]) -> None:
    folder, cache = tiny
    done = trainer(folder, cache, "-c", PACKING, str(cache), str(SEQ_LEN + 1), str(ROWS))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_train_runs_on_packed_rows(tiny: tuple[Path, Path]) -> None:
    folder, cache = tiny
    done = trainer(folder, cache, "train.py")
    assert done.returncode == 0, done.stderr
    result = json.loads((cache / "out" / "result.json").read_text())
    assert 0 < result["metric"]["val_bpb"] < 10
    assert result["measurements"]["mfu_percent"] > 0
    weights = ["--weights", str(cache / "out" / "weights.safetensors"), "--split", "val"]
    done = trainer(folder, cache, "prepare.py", "evaluate", *weights)
    assert json.loads(done.stdout)["bpb"] == result["metric"]["val_bpb"]


@pytest.mark.slow
def test_a_shard_that_cannot_be_had_is_one_line(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = tiny
    done = trainer(folder, tmp_path, "prepare.py")
    assert done.returncode == 1
    assert done.stderr.startswith("shard_00000.parquet could not be downloaded")
    assert len(done.stderr.splitlines()) == 1
