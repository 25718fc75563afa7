"""Surveys read back: paired gains, pooled noise, wins; and what choosing among them is worth."""

import json
from pathlib import Path

import pytest

from eval import choice, landscape
from eval.landscape import Gain, Landscape
from loop.errors import AutoresearchError
from loop.moves import Move, menu
from loop.strategies import experience
from loop.trial import Json


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from eval.survey import run

    out = tmp_path_factory.mktemp("surveys")
    arguments = ["--out", str(out), "--budget", "4e8flops"]
    assert run([*arguments, "--variants", "kjv", "--seeds", "2"]) == 0
    assert run([*arguments, "--variants", "kjv-wide", "--seeds", "1", "--noise-runs", "2"]) == 0
    return out


def lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_gains_are_paired_by_seed(surveyed: Path) -> None:
    two, one = landscape.read([surveyed / "kjv-0", surveyed / "kjv-wide-0"])
    records = lines(surveyed / "kjv-0" / "ledger.jsonl")
    scores: dict[tuple[int, int], float] = {}
    for record in records:
        if record["kind"] == "trial" and record["outcome"]["type"] == "scored":
            scores[record["id"], 0] = record["outcome"]["metric"]["value"]
        if record["kind"] == "measurement":
            scores[record["trial"], record["seed"]] = record["outcome"]["metric"]["value"]
    deeper = next(r["id"] for r in records if r["kind"] == "trial" and "DEPTH = 1" in
                  r["proposal"]["answer"])  # fmt: skip
    found = next(g for g in two.gains if (g.knob, g.new) == ("DEPTH", 1))
    assert found.each == pytest.approx(
        [scores[0, seed] - scores[deeper, seed] for seed in (0, 1)], abs=1e-12
    )
    assert {len(g.each) for g in two.gains} == {2} and {len(g.each) for g in one.gains} == {1}
    assert two.sd == one.sd > 0
    assert len(two.gains) > 30 and two.variant == "kjv" and one.variant == "kjv-wide"
    measured = lines(surveyed / "kjv-wide-0" / "ledger.jsonl")
    assert [r["seed"] for r in measured if r["kind"] == "measurement"] == [1, 2]


@pytest.mark.slow
def test_noise_must_be_known(surveyed: Path) -> None:
    with pytest.raises(AutoresearchError, match="on two seeds"):
        landscape.read([surveyed / "kjv-wide-0"])


@pytest.mark.slow
def test_a_state_can_be_asked_about_in_any_order(surveyed: Path) -> None:
    (found,) = landscape.read([surveyed / "kjv-0"])
    orders = [[m.text for m in menu(found.state(number))] for number in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert len(orders[0]) >= len(found.gains)


@pytest.mark.slow
def test_experience_of_a_survey_is_read_by_its_arms(surveyed: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    folders = [str(surveyed / "kjv-0"), str(surveyed / "kjv-wide-0")]
    assert landscape.run([*folders, "--out", str(out)]) == 0
    seen = experience.read(out)
    assert len(seen) == sum(len(found.gains) for found in landscape.read(list(map(Path, folders))))
    rows = tmp_path / "c.jsonl"
    for rule in ("chance", "replay"):
        arguments = [*folders, "--rule", rule, "--experience", str(out), "--orders", "2"]
        assert choice.run([*arguments, "--out", str(rows)]) == 0
    found = lines(rows)
    assert len(found) == 8
    for row in found:
        if row["name"] == "chance":
            assert row["improving"] == pytest.approx(row["uniform"])
    states = {one.folder.name: one for one in landscape.read(list(map(Path, folders)))}
    for row in found:
        assert row["moves"] == len(menu(states[row["state"]].state(0)))


@pytest.mark.slow
def test_the_model_answers_the_same_question_twice_alike(surveyed: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.jsonl"
    for _ in range(2):
        arguments = [str(surveyed / "kjv-0"), "--orders", "1", "--name", "base", "--out", str(out)]
        assert choice.run(arguments) == 0
    first, second = lines(out)
    assert first == second and 0 < first["improving"] < 1


def test_what_a_choice_is_worth() -> None:
    gains = (
        Gain("A", 1, 2, 0.5, (0.5,)),
        Gain("B", 1, 2, 0.01, (0.01,)),
        Gain("B", 1, 0, -1, (-1,)),
    )
    found = Landscape(Path("s"), "v", gains, ("C: 1 -> 2",), sd=0.1)
    moves = [landscape_move("A", 2), landscape_move("B", 2), landscape_move("B", 0),
             landscape_move("C", 2)]  # fmt: skip
    judged = choice.judged("n", found, 0, moves, [0.4, 0.3, 0.2, 0.1], [1.0, 2.0, 1.0, 0.0])
    assert judged.improving == 0.4 and judged.uniform == 0.25 and judged.top
    assert judged.gain == pytest.approx(0.4 * 0.5 + 0.3 * 0.01 - 0.2)
    assert judged.auc == 0.5, "one stands above it, one below, one beside"
    assert choice.auc([True, True], [1.0, 2.0]) is None
    assert sum(choice.normalised([-700.0, -701.0, -900.0])) == pytest.approx(1.0)


def landscape_move(knob: str, new: int) -> Move:
    return Move(knob, 1, new)
