"""plan.toml: what it may say, one clear line for what it may not, and that it stays as it was."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from eval import plan as plans
from eval.plan import Plan, fix, fixed, parse, read, served
from loop.errors import UsageError
from loop.target import BUILT_IN
from loop.trial import Json
from tests.plan_folder import CONTROLS

BODY = (
    """
seeds = 2
trials = 2
profile = "cpu"
budget = "2e9flops"
judge = "naive"
final_seeds = 2
runner = "forked"
[primary]
contrast = ["random_edit", "random_search"]
smallest_effect = 0.02
"""
    + CONTROLS
)
MENU: Json = {"name": "menu", "strategy": "menu", "brain": "llamacpp:smollm2-135m"}


def body(**changes: Any) -> Json:
    return tomllib.loads(BODY) | {k: v for k, v in changes.items() if v is not None}


def with_arms(*more: Json, **changes: Any) -> Json:
    arms = [*tomllib.loads(BODY)["arms"], *more]
    return body(arms=arms, **changes)


def primary(against: str, arm: str = "random_edit", **changes: Any) -> Json:
    return {"contrast": [arm, against], "smallest_effect": 0.01} | changes


def test_a_plan_is_read() -> None:
    plan = parse(body())
    assert plan.seeds == (0, 1) and plan.pilot_seeds == () and plan.runner == "forked"
    assert [arm.role for arm in plan.arms] == ["control", "control"]
    assert plan.primary.endpoint == "final" and plan.primary.against == "random_search"
    assert parse(body(seeds=[3, 5], pilot_seeds=2)).pilot_seeds == (6, 7), "numbers that are free"


def test_the_example_at_the_top_of_the_file_is_a_plan(tmp_path: Path) -> None:
    assert plans.__doc__
    example = re.search(r"\n\n(    seeds = .*?)\n\nAll arms", plans.__doc__, re.DOTALL)
    assert example
    text = re.sub(r"^    ", "", example[1], flags=re.MULTILINE)
    (tmp_path / "plan.toml").write_text(text)
    plan, _ = read(tmp_path / "plan.toml")
    assert [arm.role for arm in plan.arms] == ["prompting", "adapter", "control"]
    assert plan.arms[0].temperature == 0.7 and plan.pilot_seeds == (8, 9)


def test_roles_are_guessed_and_may_be_said() -> None:
    plan = parse(
        with_arms(
            MENU,
            {"name": "opus", "strategy": "bare", "brain": "anthropic:x"},
            {"name": "own", "strategy": "bare", "brain": "openai:x", "base_url": "http://h/v1"},
            {"name": "told", "strategy": "menu", "brain": "ollama:mine", "role": "adapter"},
            runner="boxed",
        )
    )
    roles = {arm.name: arm.role for arm in plan.arms}
    assert roles["menu"] == roles["own"] == "prompting"
    assert (roles["opus"], roles["told"]) == ("frontier", "adapter")
    assert plan.of("prompting", "frontier") == ("menu", "opus", "own")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (body(colour="red"), "unknown entry 'colour'"),
        (with_arms(MENU | {"colour": 1}), "unknown entry of arm menu 'colour'"),
        (with_arms({"name": "x", "strategy": "chess"}), "unknown strategy of arm x: 'chess'"),
        (with_arms(tomllib.loads(BODY)["arms"][0]), "arm random_edit stands there twice"),
        (with_arms({"name": "b", "strategy": "random_edit"}), "the same arm under two names"),
        (with_arms({"name": "a/b", "strategy": "tpe"}), "a name is letters"),
        (with_arms({"strategy": "tpe"}), "an arm lacks name"),
        (with_arms({"name": "x", "strategy": "menu"}), "asks a brain"),
        (with_arms({"name": "x", "strategy": "tpe", "brain": "a:b"}), "asks no brain"),
        (with_arms(MENU | {"brain": "ollama:q", "adapter": "f"}), "served by llamacpp"),
        (with_arms(MENU | {"temperature": "hot"}), "temperature"),
        (with_arms(MENU | {"strategy": "bare"}), "needs a box"),
        (body(arms=tomllib.loads(BODY)["arms"][:1]), "two [[arms]] or more"),
        (body(seeds=0), "needs one or more"),
        (body(seeds=[1, 1]), "1 stands there twice"),
        (body(seeds="many"), "write how many"),
        (body(seeds=[0, 1], pilot_seeds=[1, 2]), "in seeds and in pilot_seeds"),
        (body(trials=0), "trials is 0"),
        (body(trials=1.5), "trials"),
        (body(final_seeds=-1), "final_seeds"),
        (body(judge="wise"), "unknown judge 'wise'"),
        (body(budget="300"), "neither seconds"),
        (body(budget="300s"), "needs a budget in FLOPs"),
        (body(target="elsewhere"), "for the built-in target"),
        (body(runner="fast"), "runner"),
        (body(primary={"contrast": ["a", "b"]}), "[primary] lacks smallest_effect"),
        (body(primary=primary("nobody")), "unknown arm of [primary] contrast: 'nobody'"),
        (body(primary=primary("random_edit")), "against itself"),
        (body(primary=primary("best prompting arm")), "no arm prompts"),
        (body(primary=primary("random_search", smallest_effect=0)), "not above 0"),
        (body(primary=primary("random_search"), final_seeds=0), "needs final_seeds"),
        (body(primary=primary("random_search", endpoint="luck")), "endpoint"),
        (with_arms(MENU, MENU | {"name": "warm", "temperature": 1},
                   primary=primary("best prompting arm")), "write pilot_seeds"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(entries: Json, said: str) -> None:
    with pytest.raises(UsageError) as found:
        parse(entries)
    assert said in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("key", ["arms", "seeds", "trials", "primary"])
def test_what_a_plan_needs(key: str) -> None:
    with pytest.raises(UsageError, match=f"the plan lacks {key}"):
        parse({name: value for name, value in body().items() if name != key})


def test_a_file_that_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the plan .*gone\.toml"):
        read(tmp_path / "gone.toml")
    (tmp_path / "plan.toml").write_text("seeds = [")
    with pytest.raises(UsageError, match=r"plan\.toml is not TOML"):
        read(tmp_path / "plan.toml")
    (tmp_path / "plan.toml").write_text("seeds = 1\n[[arms]]\n")
    with pytest.raises(UsageError, match=r"plan\.toml: the plan lacks trials, primary"):
        read(tmp_path / "plan.toml")


def test_the_hash_is_of_what_the_plan_says(tmp_path: Path) -> None:
    plan = parse(body())
    assert plan.hash == parse(tomllib.loads("# a remark\n" + BODY)).hash
    assert plan.hash == parse(body(pilot_seeds=0, seeds=[0, 1])).hash, "defaults written out"
    assert plan.hash != parse(body(trials=3)).hash


def test_a_plan_is_fixed_once(tmp_path: Path) -> None:
    plan = parse(body())
    first = fix(plan, BODY, tmp_path, tmp_path / "out")
    assert (first.hash, first.text, first.amendments) == (plan.hash, BODY, ())
    assert (
        fix(plan, "# else\n" + BODY, tmp_path, tmp_path / "out") == first == fixed(tmp_path / "out")
    )
    with pytest.raises(UsageError, match="holds no plan"):
        fixed(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be understood"):
        fixed(tmp_path)


def test_a_plan_that_is_edited_later_is_noticed(tmp_path: Path) -> None:
    fix(parse(body()), BODY, tmp_path, tmp_path)
    later = parse(with_arms({"name": "tpe", "strategy": "tpe"}, trials=5, seeds=3))
    with pytest.raises(UsageError) as found:
        fix(later, "", tmp_path, tmp_path, amend="  ")
    assert "trials: 2 -> 5" in str(found.value) and "arm tpe added" in str(found.value)
    assert "seeds: [0, 1] -> [0, 1, 2]" in str(found.value) and "--amend" in str(found.value)
    record = fix(later, "text", tmp_path, tmp_path, amend="five are better", trials=4)
    assert record.hash == parse(body()).hash and record.plan == later == fixed(tmp_path).plan
    (amendment,) = record.amendments
    assert (amendment.why, amendment.trials) == ("five are better", 4)
    assert (amendment.before, amendment.after) == (record.hash, later.hash)
    again = fix(parse(body()), BODY, tmp_path, tmp_path, amend="back", trials=9)
    assert [a.why for a in again.amendments] == ["five are better", "back"]


def adapter_plan(**arm: Any) -> Plan:
    return parse(with_arms(MENU | {"name": "adapter", "adapter": "lora"} | arm, runner="boxed"))


def test_an_adapter_is_served_by_its_gguf(tmp_path: Path) -> None:
    arm = adapter_plan().arms[-1]
    with pytest.raises(UsageError, match=r"the adapter lora is not there.*adapters export"):
        served(arm, tmp_path)
    folder = tmp_path / "lora"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"has no lora\.gguf"):
        served(arm, tmp_path)
    (folder / "merged.gguf").write_bytes(b"GGUF1")
    assert served(arm, tmp_path) == (f"llamacpp:{folder / 'merged.gguf'}", None)
    (folder / "lora.gguf").write_bytes(b"GGUF2")
    assert served(arm, tmp_path) == ("llamacpp:smollm2-135m", folder / "lora.gguf")


def test_an_adapter_trained_anew_is_another_plan(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    weights = tmp_path / "lora" / "lora.gguf"
    weights.write_bytes(b"GGUF1")
    first = fix(adapter_plan(), "", tmp_path, tmp_path / "out")
    assert list(first.adapters) == ["adapter"]
    weights.write_bytes(b"GGUF2")
    with pytest.raises(UsageError, match="adapter of adapter: another file"):
        fix(adapter_plan(), "", tmp_path, tmp_path / "out")
    experience = adapter_plan(experience="moves.jsonl")
    with pytest.raises(UsageError, match=r"cannot read .*moves\.jsonl"):
        fix(experience, "", tmp_path, tmp_path / "other")


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    fix(parse(body()), BODY, tmp_path, tmp_path)
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["plan"]["trials"] == 2 and record["text"] == BODY
    assert plans.target_folder(parse(body()), tmp_path) == BUILT_IN
    assert plans.target_folder(parse(body(target="t", runner="boxed")), tmp_path) == tmp_path / "t"
