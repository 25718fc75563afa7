"""The text of the GPU profiles: the web-text shards and tokens of karpathy/autoresearch.

Parquet shards with a column `text`, a byte-level BPE of 8,192 tokens trained on the first
billion characters, and rows of 2,049 tokens packed best-fit from whole documents, each after a
BOS: so that a val_bpb can be held against published ones. Rows are packed once, here, in the
order in which that project's loader would have made them while training.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tokens import Manifest, describe, replacing, write_manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REPOSITORY = "karpathy/climbmix-400b-shuffle"
LAST_SHARD = 6542
HELD_OUT = {"val": LAST_SHARD, "audit": LAST_SHARD - 1, "test": LAST_SHARD - 2}
VOCAB_SIZE = 8192
SPECIAL_TOKENS = [f"<|reserved_{i}|>" for i in range(4)]
BOS = SPECIAL_TOKENS[0]
# GPT-4's pattern with numbers of at most two digits
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
TOKENIZER_CHARACTERS = 1_000_000_000
DOCUMENT_CAP = 10_000  # characters of a document that the tokenizer is trained on
BUFFER = 1000  # documents among which a row finds its best fit
READ_AT_ONCE = 128  # documents

Document = tuple[int, int, list[int]]  # length, arrival, tokens


def length(document: Document) -> int:
    return document[0]


def prepare_webtext(
    cache: Path, folder: Path, seq_len: int, train_shards: int, eval_rows: int
) -> None:
    """Download the shards, train the tokenizer, pack every split and write its manifest."""
    if not 0 < train_shards <= min(HELD_OUT.values()):
        raise SystemExit(f"train_shards={train_shards} must lie in 1..{min(HELD_OUT.values())}")
    train = [shard(cache, number) for number in range(train_shards)]
    held_out = {split: [shard(cache, number)] for split, number in HELD_OUT.items()}
    tokenizer = load_tokenizer(folder / "tokenizer.json", train)
    entries = {}
    for split, shards in {"train": train, **held_out}.items():
        rows = None if split == "train" else eval_rows
        with replacing(folder / f"{split}.bin") as path, path.open("wb") as file:
            documents = pack(tokenizer, shards, seq_len + 1, rows, file)
        entries[split] = describe(folder / f"{split}.bin", documents)
        print(
            f"{split}: {documents} documents, {entries[split]['bytes'] // 2:,} tokens", flush=True
        )
    write_manifest(
        Manifest(
            folder=folder,
            text=folder.name,
            source=REPOSITORY,
            version=f"shards 0..{train_shards - 1}, held out {HELD_OUT}",
            dtype="int16",
            vocab_size=VOCAB_SIZE,
            row_tokens=seq_len + 1,
            token_bytes=token_bytes(tokenizer),
            splits=entries,
        )
    )


def shard(cache: Path, number: int) -> Path:
    """The local path of a shard, downloaded through the hub's client unless it is there."""
    name = f"shard_{number:05d}.parquet"
    path = cache / "shards" / name
    if path.is_file():
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    print(f"downloading {name}", flush=True)
    try:
        hf_hub_download(REPOSITORY, name, repo_type="dataset", local_dir=path.parent)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SystemExit(
            f"{name} could not be downloaded ({reason}); or put it at {path}"
        ) from None
    return path


def read_documents(shards: Iterable[Path]) -> Iterator[list[str]]:
    """Documents in the order of the shards, a few at a time."""
    from pyarrow.parquet import ParquetFile

    for path in shards:
        file = ParquetFile(path)
        for group in range(file.num_row_groups):
            texts: list[str] = file.read_row_group(group, columns=["text"])["text"].to_pylist()
            for start in range(0, len(texts), READ_AT_ONCE):
                yield texts[start : start + READ_AT_ONCE]


def load_tokenizer(path: Path, shards: list[Path]) -> "Tokenizer":
    """Read the trained tokenizer, or train it on `shards` and keep it as JSON."""
    from tokenizers import Tokenizer

    if not path.is_file():
        with replacing(path) as beside:
            train_tokenizer(shards).save(str(beside))
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # a document that spells one out gets no special token
    return tokenizer


def train_tokenizer(shards: list[Path]) -> "Tokenizer":
    """Byte-level BPE (Sennrich et al. 2016) with 256 byte tokens and 4 reserved special ones."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    def texts() -> Iterator[str]:
        total = 0
        for documents in read_documents(shards):
            for text in documents:
                yield text[:DOCUMENT_CAP]
                total += min(len(text), DOCUMENT_CAP)
                if total >= TOKENIZER_CHARACTERS:
                    return

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"the shards hold too little text for {VOCAB_SIZE} tokens")
    return tokenizer


def token_bytes(tokenizer: "Tokenizer") -> list[int]:
    """UTF-8 bytes of each token's own decoding, 0 for special tokens.

    A token that is no whole character decodes to U+FFFD and counts 3 bytes: not exact, but
    what the published figures do.
    """
    special = {tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    return [
        0 if i in special else len(tokenizer.decode([i], skip_special_tokens=False).encode())
        for i in range(VOCAB_SIZE)
    ]


def pack(
    tokenizer: "Tokenizer", shards: list[Path], row_tokens: int, rows: int | None, file: BinaryIO
) -> int:
    """Write up to `rows` rows as int16 to `file`; all that the shards fill if None.

    Best fit: the longest of BUFFER documents that fits the rest of the row, the earliest among
    equals; where none fits, the shortest is cut to fill it. Returns the documents used.
    """
    import numpy as np

    batches = read_documents(shards)
    bos = tokenizer.token_to_id(BOS)
    assert bos is not None, f"the tokenizer has no {BOS}"
    buffer: list[Document] = []  # sorted
    arrived = used = written = 0
    while rows is None or written < rows:
        row: list[int] = []
        while (space := row_tokens - len(row)) > 0:
            while len(buffer) < BUFFER:
                if (texts := next(batches, None)) is None:
                    if rows is not None:
                        raise SystemExit(f"{shards[0]} fills {written} rows, {rows} are needed")
                    return used
                for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                    ids = [bos, *encoding.ids]
                    insort(buffer, (len(ids), arrived, ids))
                    arrived += 1
            fits = bisect_right(buffer, space, key=length)
            longest = length(buffer[fits - 1]) if fits else 0
            best = bisect_left(buffer, longest, key=length) if fits else 0
            row += buffer.pop(best)[2][:space]
            used += 1
        file.write(np.asarray(row, dtype="<i2").tobytes())
        written += 1
    return used
