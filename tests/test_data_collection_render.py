"""A corpus -> rows for trl: the prompts are the loop's own, byte for byte."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_collection import completions, corpus, prompts
from data_collection.collect import run
from data_collection.importer import run as import_
from loop import edit, ledger
from loop.context import State
from loop.errors import AutoresearchError, UsageError
from loop.moves import menu
from loop.strategies.menu import Menu, chosen
from loop.strategies.sampling import Sampling
from loop.trial import Json, Message, Rejected, Reply, Trial
from tests.conftest import Cli
from tests.test_data_collection_import import HEAD, new_repository, try_edit

WINDOW = 32768  # of a scripted brain


def read(folder: Path) -> list[Json]:
    return list(corpus.rows(folder))


def render(kind: str, strategy: str, source: Path, out: Path, *more: str) -> list[Json]:
    run(["--render", kind, "--strategy", strategy, "--window", str(WINDOW), str(source),
         "--out", str(out), *more])  # fmt: skip
    return read(out)


def own_run(strategy: str, loop: Cli, toy: Path, script: Path, out: Path) -> list[Trial]:
    done = loop("--target", toy, "--brain", f"scripted:{script}", "--strategy", strategy,
                "--trials", 6, "--seed", 3, "--judge", "naive", "--out", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return ledger.trials(out)


def sent(trial: Trial) -> list[Json]:
    return [{"role": m.role, "content": m.content} for m in trial.proposal.calls[0].messages]


def test_the_prompt_of_bare_is_what_the_loop_sent(
    run_loop: Cli, toy: Path, scripted: Callable[..., Path], tmp_path: Path
) -> None:
    script = scripted("LR = 0.2", "nothing", "WIDTH = 16", "LR = 0.3", "```\nno\n```", "LR = 0.9")
    trials = own_run("bare", run_loop, toy, script, tmp_path / "r")
    run([str(tmp_path / "r"), "--out", str(tmp_path / "c"), "--cap", "0"])
    seen = 0
    for row, standing in prompts.standings(corpus.rows(tmp_path / "c")):
        if isinstance(standing, str):
            continue
        made = prompts.prompt("bare", standing.state, (), WINDOW - 512, prompts.counter("")[0])
        assert isinstance(made, prompts.Prompt)
        ours = [{"role": m.role, "content": m.content} for m in made.messages]
        assert ours == sent(trials[row["trial"]])
        seen += 1
    assert seen >= 5


def test_the_prompt_of_menu_is_what_the_loop_sent(
    run_loop: Cli, toy: Path, scripted: Callable[..., Path], tmp_path: Path
) -> None:
    script = scripted(*(json.dumps({"reason": "x", "move": move}) for move in (
        "LR = 0.2", "WIDTH = 16", "WIDTH = 4", "LR = 0.05", "WIDTH = 32", "LR = 0.4")))  # fmt: skip
    trials = own_run("menu", run_loop, toy, script, tmp_path / "r")
    run([str(tmp_path / "r"), "--out", str(tmp_path / "c"), "--cap", "0"])
    seen = 0
    for row, standing in prompts.standings(corpus.rows(tmp_path / "c")):
        if isinstance(standing, str):
            continue
        trial = trials[row["trial"]]
        made = prompts.prompt(
            "menu", standing.state, (trial,), WINDOW - 512, prompts.counter("")[0]
        )
        assert isinstance(made, prompts.Prompt) and not made.widened
        assert [{"role": m.role, "content": m.content} for m in made.messages] == sent(trial)
        seen += 1
    assert seen >= 4


@pytest.fixture
def frontier(tmp_path: Path) -> Path:
    """A corpus of an imported run: free edits, some of which only moved a knob."""
    folder = tmp_path / "theirs"
    base = new_repository(folder)
    rows, value, lr = [f"{base[:7]}\t1.0\t44\tkeep\tbaseline"], 1.0, "0.04"
    for n in range(1, 19):
        keep = n in (5, 12)
        if n % 3 == 0:
            sha = try_edit(
                folder, "return norm(x) * LR", f"return norm(x) * LR + {n}", keep, f"{n}"
            )
        else:
            new = f"0.0{50 + n}"
            sha = try_edit(folder, f"LR = {lr}", f"LR = {new}", keep, f"{n}")
            lr = new if keep else lr
        score = value - 0.1 if keep else value + 0.05 * (n % 2) + 0.0003 * (n % 5)
        value = score if keep else value
        status = "keep" if keep else "discard"
        rows.append(f"{sha[:7]}\t{score:.6f}\t44\t{status}\tin hindsight {n} was {status}")
    rows.append("abcdef1\t0.000000\t0\tcrash\tdied")
    (folder / "results.tsv").write_text(HEAD + "\n".join(rows) + "\n")
    import_([str(folder), "--out", str(tmp_path / "run")])
    run([str(tmp_path / "run"), "--out", str(tmp_path / "corpus"), "--cap", "0"])
    return tmp_path / "corpus"


def test_sft_for_bare(frontier: Path, tmp_path: Path) -> None:
    import datasets

    found = render("sft", "bare", frontier, tmp_path / "sft")
    wins = [row["key"] for row in read(frontier) if row["label"] == "win"]
    assert {row["key"] for row in found[: len(wins)]} == set(wins) and len(wins) == 2
    assert found[0]["prompt"][0]["role"] == "system"
    texts = [row["completion"][0]["content"] for row in found]
    assert "LR = 0.055" in texts
    assert any("SEARCH" in text for text in texts)
    assert not any("hindsight" in text for text in texts)
    opened = datasets.load_dataset(str(tmp_path / "sft"), cache_dir=str(tmp_path / "cache"))
    assert opened["train"].num_rows == len(found)
    report = json.loads((tmp_path / "sft" / "report.json").read_text())
    assert report["tokens"]["max"] > 100
    assert sum(report["rows"].values()) == report["fates"]["rendered"]


def test_every_answer_leads_to_the_code_that_was_measured(frontier: Path) -> None:
    checked = 0
    for _, standing in prompts.standings(corpus.rows(frontier)):
        if isinstance(standing, str) or standing.trial.proposal.edit is None:
            continue
        made = prompts.prompt("bare", standing.state, (), 8000, prompts.counter("")[0])
        assert isinstance(made, prompts.Prompt)
        text = completions.completion("bare", standing, made)
        assert text is not None
        edited = edit.apply(text, standing.state.source)
        assert isinstance(edited, edit.Edited)
        assert edited.edit.code_hash == standing.trial.proposal.edit.code_hash
        checked += 1
    assert checked >= 15


class Silent:
    """A brain that keeps what it is asked."""

    name = digest = "silent"
    window = 8192

    def __init__(self) -> None:
        self.asked: tuple[Message, ...] = ()

    def count(self, text: str) -> int:
        return -(-len(text) // 4)

    def chat(self, messages: Sequence[Message], **_: object) -> tuple[Reply, ...]:
        self.asked = tuple(messages)
        return (Reply("{}"),)


def test_a_free_edit_that_moved_a_knob_teaches_the_menu(frontier: Path, tmp_path: Path) -> None:
    found = render("sft", "menu", frontier, tmp_path / "sft")
    assert found[0]["widened"] is True
    answer = json.loads(found[0]["completion"][0]["content"])
    assert answer["move"] == "LR = 0.055"
    assert f"- {answer['move']}\n" in found[0]["prompt"][1]["content"]
    # what Menu itself sends for that state, its target's space widened by that move
    standing = next(
        s for r, s in prompts.standings(corpus.rows(frontier))
        if r["key"] == found[0]["key"] and not isinstance(s, str)
    )  # fmt: skip
    made = prompts.prompt("menu", standing.state, (standing.trial,), 8192 - 512,
                          prompts.counter("")[0])  # fmt: skip
    assert isinstance(made, prompts.Prompt)
    assert not isinstance(chosen(found[0]["completion"][0]["content"], list(made.moves)), Rejected)
    space = prompts._wider(standing.state, "LR", 0.055)
    from dataclasses import replace

    target = replace(standing.state.target, knobs=standing.state.target.knobs | {"LR": space})
    state: State = replace(standing.state, target=target)
    brain = Silent()
    Menu(brain, Sampling(max_tokens=512)).propose(state)
    assert brain.asked == made.messages
    assert tuple(menu(state)) == made.moves


def test_shuffled_labels_are_the_same_ones_within_each_state(
    frontier: Path, tmp_path: Path
) -> None:
    plain = render("kto", "bare", frontier, tmp_path / "plain")
    mixed = render("kto", "bare", frontier, tmp_path / "mixed", "--shuffle-labels")
    again = render("kto", "bare", frontier, tmp_path / "again", "--shuffle-labels")
    assert [row["label"] for row in mixed] == [row["label"] for row in again]
    where = {row["key"]: (row["run_id"], row["state"]) for row in read(frontier)}

    def wins(rows: list[Json]) -> Counter[tuple[str, str]]:
        return Counter(where[row["key"]] for row in rows if row["label"])

    assert wins(plain) == wins(mixed)
    report = json.loads((tmp_path / "mixed" / "report.json").read_text())
    assert report["shuffled_labels"]


def test_a_win_may_be_rendered_in_several_orders(frontier: Path, tmp_path: Path) -> None:
    one = render("sft", "menu", frontier, tmp_path / "one")
    three = render("sft", "menu", frontier, tmp_path / "three", "--orders", "3")
    assert len(three) == 3 * len(one) > 0
    groups: dict[str, list[Json]] = {}
    for row in three:
        groups.setdefault(row["key"].partition("#")[0], []).append(row)
    for row in one:
        found = groups[row["key"]]
        assert row in found and len({r["completion"][0]["content"] for r in found}) == 1
        assert len({r["prompt"][1]["content"] for r in found}) > 1
        assert len({"\n".join(sorted(r["prompt"][1]["content"].splitlines())) for r in found}) == 1
    with pytest.raises(SystemExit):
        run(["--render", "sft", "--orders", "2", str(frontier), "--out", str(tmp_path / "no")])


def test_several_corpora_are_rendered_into_one_folder(frontier: Path, tmp_path: Path) -> None:
    one = render("sft", "bare", frontier, tmp_path / "one")
    run(["--render", "sft", "--window", str(WINDOW), str(frontier), str(frontier),
         "--out", str(tmp_path / "two")])  # fmt: skip
    two = Counter(row["key"] for row in read(tmp_path / "two"))
    assert two == Counter(2 * [row["key"] for row in one])
    with pytest.raises(UsageError, match="one corpus at a time"):
        run(["--check", str(frontier), str(frontier)])


def test_kto_and_its_weights(frontier: Path, tmp_path: Path) -> None:
    found = render("kto", "bare", frontier, tmp_path / "kto")
    labels = [row["label"] for row in found]
    assert labels.count(True) == 2 and labels.count(False) >= 4
    weights = json.loads((tmp_path / "kto" / "report.json").read_text())["kto_weights"]
    good = labels.count(True) * weights["desirable_weight"]
    bad = labels.count(False) * weights["undesirable_weight"]
    assert 1 <= good / bad <= 4 / 3 + 1e-9
    assert {row["weight"] for row in found} == set(weights.values())


def test_dpo_pairs_come_from_one_state_and_show_neither_outcome(
    frontier: Path, tmp_path: Path
) -> None:
    found = render("dpo", "bare", frontier, tmp_path / "dpo")
    assert found
    for row in found:
        chosen_text = row["chosen"][0]["content"]
        rejected_text = row["rejected"][0]["content"]
        assert chosen_text != rejected_text
        history = row["prompt"][1]["content"].partition("Trials so far")[2]
        assert chosen_text not in history and rejected_text not in history
    # the win of the first state is preferred to a loss of the first state
    assert any("LR = 0.055" in row["chosen"][0]["content"] for row in found)


def test_failures_of_the_arm_itself_are_undesirable_for_kto(
    run_loop: Cli, toy: Path, scripted: Callable[..., Path], tmp_path: Path
) -> None:
    script = scripted("I would rather talk.", "Still talking.", "More talk.", "Talk 4", "5", "6")
    own_run("bare", run_loop, toy, script, tmp_path / "r")
    run([str(tmp_path / "r"), "--out", str(tmp_path / "c"), "--cap", "0"])
    found = render("kto", "bare", tmp_path / "c", tmp_path / "kto")
    assert found and not any(row["label"] for row in found)
    assert found[0]["completion"][0]["content"] == "I would rather talk."


def test_long_rows_are_counted_and_left_out(frontier: Path, tmp_path: Path) -> None:
    with pytest.raises(AutoresearchError, match="longer than 50 tokens"):
        render("sft", "bare", frontier, tmp_path / "sft", "--max-length", "50")
    assert not (tmp_path / "sft").exists()


def test_a_tokenizer_from_the_disk_counts(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "a": 1, "b": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    count, _ = prompts.counter(str(tmp_path))
    assert count("a b a") == 3
    with pytest.raises(UsageError, match="no tokenizer"):
        prompts.counter(str(tmp_path / "none"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UsageError, match="not a tokenizer"):
        prompts.counter(str(tmp_path / "bad.json"))


LINES = st.lists(st.sampled_from(["a = 1\n", "b = 2\n", "c = 3\n", "d = 4\n", "\n", "  x\n"]),
                 max_size=12)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(LINES, LINES, st.booleans())
def test_a_diff_can_be_applied_again(old: list[str], new: list[str], cut: bool) -> None:
    before, after = "".join(old), "".join(new)
    after = after.removesuffix("\n") if cut else after
    assert completions.patched(before, edit.unified(before, after, "train.py")) == after


def test_blocks_are_unique_where_lines_repeat() -> None:
    old = "def f():\n    return 1\n\n\ndef g():\n    return 1\n\n\ndef h():\n    return 1\n"
    new = old.replace("def g():\n    return 1", "def g():\n    return 2")
    edited = edit.apply(completions.blocks(old, new), old)
    assert isinstance(edited, edit.Edited) and edited.source == new
