"""Rows on their way to trl: refused in one line where they are wrong, never cut."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import answers, build, rows
from finetune.prepare import FinetuneArgs
from finetune.recipe import KTO_BATCH, PRESETS
from loop.errors import AutoresearchError, UsageError
from loop.rate import wilson
from tests import finetune_rows as made
from tests.conftest import Cli

pytestmark = pytest.mark.slow  # imports transformers


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = made.chat_model(tmp_path_factory.mktemp("base") / "tiny")
    return AutoTokenizer.from_pretrained(str(folder))


def test_a_folder_that_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="collect --render sft"):
        rows.look(tmp_path, "sft")


def test_rows_of_another_method_or_strategy_are_refused(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "r", "sft")
    with pytest.raises(UsageError, match="rendered for sft, not kto"):
        rows.look(folder, "kto")
    with pytest.raises(UsageError, match="strategy menu, not bare"):
        rows.look(folder, "sft", "bare")
    assert rows.look(folder, "sft", "menu").strategy == "menu"


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "r", "sft", train=[])
    with pytest.raises(UsageError, match=r"split train .* is empty \(there are: validation\)"):
        rows.read(rows.look(folder, "sft"), "train")
    with pytest.raises(UsageError, match="--held-out none"):
        rows.read(rows.look(folder, "sft"), "test")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = made.write(tmp_path / "r", "kto")
    path = folder / "data" / "train-00000.parquet"
    pq.write_table(pq.read_table(path).drop(["label", "weight"]), path)
    with pytest.raises(UsageError, match="no column label, weight"):
        rows.read(rows.look(folder, "kto"), "train")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "r", "sft")
    (folder / "data" / "train-00000.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(AutoresearchError, match=r"train-00000\.parquet is damaged"):
        rows.read(rows.look(folder, "sft"), "train")


def test_the_digest_follows_the_rows(tmp_path: Path) -> None:
    one = rows.look(made.write(tmp_path / "a", "sft"), "sft").digest
    same = rows.look(made.write(tmp_path / "b", "sft"), "sft").digest
    less = made.write(tmp_path / "c", "sft", train=[made.row("sft", 0)])
    assert one == same != rows.look(less, "sft").digest


def test_kto_wants_both_kinds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="wins only"):
        rows.kto_weights([made.row("kto", 0), made.row("kto", 2)])
    both = [made.row("kto", 0, weight=1.5), made.row("kto", 1)]
    assert rows.kto_weights(both) == {"desirable_weight": 1.5, "undesirable_weight": 1.0}


def test_an_example_is_the_served_prompt_and_the_whole_answer(tokenizer: Any) -> None:
    row = made.row("sft", 0)
    asked, answered = build.split(tokenizer, row["prompt"], row["completion"], "k")
    served = tokenizer.apply_chat_template(
        row["prompt"], add_generation_prompt=True, tokenize=False
    )
    assert tokenizer.decode(asked) == served
    text = tokenizer.decode(answered)
    assert text == row["completion"][0]["content"] + "<|im_end|>\n"


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_a_row_without_an_answer_stops_everything_and_is_named(tokenizer: Any, empty: str) -> None:
    bad = made.row("sft", 1, completion=made.said(empty), key="run7/12")
    with pytest.raises(AutoresearchError, match=r"row run7/12 has no supervised token"):
        build.build([made.row("sft", 0), bad], "sft", tokenizer, 8192)


def test_rows_too_long_are_left_out_whole(tokenizer: Any) -> None:
    found = [made.row("dpo", i, prompt=made.prompt(tried)) for i, tried in enumerate((0, 40, 0))]
    limit = 600
    examples = build.build(found, "dpo", tokenizer, limit)
    assert examples.left_out == ["r/1"] and len(examples.kept) == 2
    assert 0 < examples.longest <= limit
    assert examples.kept[0]["rejected"] == found[0]["rejected"]
    with pytest.raises(AutoresearchError, match="each of 3 rows is longer than 50 tokens"):
        build.build(found, "dpo", tokenizer, 50)


def test_a_template_that_rewrites_its_prompt_is_refused(tokenizer: Any) -> None:
    import copy

    odd = copy.deepcopy(tokenizer)
    odd.chat_template = "{{ messages | length }}" + made.TEMPLATE
    with pytest.raises(AutoresearchError, match="renders the prompt otherwise"):
        build.build([made.row("sft", 0)], "sft", odd, 8192)
    odd.chat_template = None
    with pytest.raises(AutoresearchError, match="no chat template"):
        build.check_template(odd, "base")


def test_the_loops_own_rows_can_be_built(
    run_loop: Cli, toy: Path, scripted: Callable[..., Path], tmp_path: Path, tokenizer: Any
) -> None:
    from data_collection.collect import run

    script = scripted(*(json.dumps({"reason": "x", "move": m}) for m in (
        "LR = 0.2", "WIDTH = 16", "WIDTH = 4", "LR = 0.05", "WIDTH = 32", "LR = 0.4")))  # fmt: skip
    done = run_loop("--target", toy, "--brain", f"scripted:{script}", "--strategy", "menu",
                    "--trials", 6, "--seed", 3, "--out", tmp_path / "run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run([str(tmp_path / "run"), "--out", str(tmp_path / "corpus"), "--cap", "0"])
    run(["--render", "sft", "--strategy", "menu", "--window", "32768", "--seed", "5",
         str(tmp_path / "corpus"), "--out", str(tmp_path / "rows")])  # fmt: skip
    found = rows.read(rows.look(tmp_path / "rows", "sft", "menu"), "train")
    examples = build.build(found, "sft", tokenizer, 8192)
    assert len(examples.kept) == len(found) > 0 and not examples.left_out
    for row in found:
        text = row["completion"][0]["content"]
        assert answers.valid("menu", row["prompt"], text)
        assert json.loads(text)["move"] in answers.moves(row["prompt"])


def test_a_menus_answer_is_said_of_every_move() -> None:
    row = made.row("sft", 0)
    text = row["completion"][0]["content"]
    options = answers.candidates(row["prompt"], text)
    assert options == [text, *(made.answer(m) for m in made.MOVES if m != "WIDTH = 16")]
    free = json.dumps({"reason": "Width helped before.", "move": "WIDTH = 16"})
    assert answers.candidates(row["prompt"], free) is None
    assert answers.candidates(row["prompt"], "WIDTH = 16") is None


def test_what_the_loop_could_use() -> None:
    menu = made.prompt()
    assert answers.valid("menu", menu, made.answer("LR = 0.2"))
    assert not answers.valid("menu", menu, made.answer("LR = 0.3"))
    assert not answers.valid("menu", menu, "LR = 0.2") and not answers.valid("menu", menu, "[1]")
    bare = [{"role": "user", "content": "LR = 0.1\nx = LR * 2\n"}]
    assert answers.valid("bare", bare, "I would go up.\nLR = 0.2")
    assert not answers.valid("bare", bare, "LR = 0.1"), "it changes nothing"
    assert not answers.valid("bare", bare, "RATE = 0.2")
    block = "<<<<<<< SEARCH\n{}\n=======\ny\n>>>>>>> REPLACE"
    assert answers.valid("bare", bare, block.format("x = LR * 2"))
    assert not answers.valid("bare", bare, block.format("x = LR * 3"))


def test_a_rate_has_wilsons_interval() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0


def test_a_recipe_gives_kto_enough_neighbours() -> None:
    for recipe in PRESETS.values():
        sft, kto = recipe.batches("sft"), recipe.batches("kto")
        assert kto[0] >= KTO_BATCH and kto[0] * kto[1] >= sft[0] * sft[1]
        assert 5e-7 <= recipe.rate("kto") <= 5e-6 < recipe.rate("sft") <= 2e-4
        assert recipe.with_rate("dpo", 1e-6).rate("dpo") == 1e-6


def test_arguments_that_do_not_fit_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--start ADAPTER"):
        FinetuneArgs(tmp_path, tmp_path / "o", method="kto")
    with pytest.raises(UsageError, match="brings its own rank"):
        FinetuneArgs(tmp_path, tmp_path / "o", start=tmp_path, rank=4)
    with pytest.raises(UsageError, match="above 0"):
        FinetuneArgs(tmp_path, tmp_path / "o", epochs=0.0)
