"""The folder of an executed plan, its ledgers written by hand: no training, known numbers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import tomli_w

from eval import plan as plans
from eval.plan import Plan
from loop.final import fresh_seeds
from loop.ledger import Ledger
from loop.trial import (
    Call,
    Crashed,
    Edit,
    Json,
    KnobChange,
    Measurement,
    Message,
    Metric,
    Outcome,
    Reason,
    Record,
    Rejected,
    Reply,
    Scored,
    Trial,
)
from tests.conftest import a_trial

CONTROLS = """\
[[arms]]
name = "random_edit"
strategy = "random_edit"
[[arms]]
name = "random_search"
strategy = "random_search"
"""
"""Two arms that need no brain, for plans that are executed or read."""
PLAN = """\
title = "A plan to test pages with"
seeds = {seeds}
trials = {trials}
profile = "cpu"
budget = "2e9flops"
judge = "naive"
final_seeds = 2

[primary]
contrast = ["adapter", "best prompting arm"]
smallest_effect = 0.01

[[arms]]
name = "menu"
brain = "llamacpp:smollm2-135m"
strategy = "menu"

[[arms]]
name = "adapter"
brain = "llamacpp:smollm2-135m"
strategy = "menu"
adapter = "adapters/menu"

[[arms]]
name = "random_edit"
strategy = "random_edit"
"""
GAIN = {"menu": 0.03, "adapter": 0.05, "random_edit": 0.01}
"""What a kept trial of each arm gains."""


def an_outcome(arm: str, seed: int, number: int, best: float) -> Outcome:
    """Every third proposal fails; every fourth of the others is better."""
    if number % 3 == 2:
        if arm == "menu":
            return Rejected(Reason.INVALID_JSON, "the reply is no JSON")
        return Crashed("train", Reason.OUT_OF_MEMORY, "step 3\nCUDA out of memory")
    better = (number + seed) % 4 == 0
    return Scored(bpb(best - GAIN[arm] if better else best + 0.02 + 0.001 * number))


def bpb(value: float) -> Metric:
    return Metric("val_bpb", value)


def write(
    base: Path,
    seeds: int = 3,
    trials: int = 9,
    *,
    text: str = "",
    without: Sequence[tuple[str, int]] = (),
    outcome: Callable[[str, int, int, float], Outcome] = an_outcome,
) -> Path:
    """`base`/out, as `eval` leaves it. `text`: what the model writes; `without`: runs not there."""
    lora = base / "adapters" / "menu" / "lora.gguf"
    lora.parent.mkdir(parents=True, exist_ok=True)
    lora.write_bytes(b"weights")
    path = base / "plan.toml"
    path.write_text(PLAN.format(seeds=seeds, trials=trials))
    plan, said = plans.read(path)
    out = base / "out"
    plans.fix(plan, said, base, out)
    for seed in plan.seeds:
        for arm in plan.arms:
            if (arm.name, seed) not in without:
                a_run(out / "runs" / arm.name / str(seed), plan, arm.name, seed, text, outcome)
    return out


def a_run(
    folder: Path,
    plan: Plan,
    arm: str,
    seed: int,
    text: str,
    outcome: Callable[[str, int, int, float], Outcome],
) -> None:
    """One run folder of the plan."""
    best, kept = 1.5 + 0.01 * seed, 0
    begin = a_trial(0, Scored(bpb(best)), "baseline", code_hash="start")
    said = replace(begin.proposal, calls=())
    trials = [replace(begin, run=f"{arm}-{seed}", seconds=8.0, proposal=said)]
    for number in range(1, plan.trials + 1):
        made = _trial(arm, seed, number, outcome(arm, seed, number, best), best, kept, text)
        trials.append(made)
        if made.decision.verdict == "keep" and isinstance(made.outcome, Scored):
            best, kept = made.outcome.metric.value, number
    records: list[Record] = [*trials, *_final_check(plan, seed, kept, best)]
    with Ledger(folder) as ledger:
        for record in records:
            ledger.append(record)
    as_planned = plan.arm(arm)
    info: Json = {
        "name": f"{arm}-{seed}", "strategy": as_planned.strategy, "brain": as_planned.brain,
        "judge": plan.judge, "budget": "2000000000flops", "profile": "cpu", "seed": seed,
        "args": plans.asked(plan, as_planned, seed),
        "target": {"folder": str(folder), "name": "toy"}, "versions": {"python": "3.11"},
    }  # fmt: skip
    (folder / "run.toml").write_text(tomli_w.dumps(info))


def _trial(
    arm: str, seed: int, number: int, outcome: Outcome, best: float, kept: int, text: str
) -> Trial:
    better = isinstance(outcome, Scored) and outcome.metric.value < best
    description = text or f"LR: 0.1 -> {number}"
    made: Trial = a_trial(
        number, outcome, "keep" if better else "discard", description, code_hash=f"{number}"
    )
    message = Message("user", ("Improve the file.\n" * 30, f"history of {number}"))
    reply = Reply(text or '{"move": 3}', prompt_tokens=400, completion_tokens=20, seconds=0.5)
    calls = () if arm == "random_edit" else (Call((message,), (reply,), 0.7, 64, number),)
    diff = text or f"--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-LR = 0.1\n+LR = {number}\n"
    edit = Edit(diff, (KnobChange("LR", "0.1", str(number)),), "f" * 64, f"{arm}{number}")
    said = replace(
        made.proposal, calls=calls, answer=text or f"LR = {number}",
        edit=None if isinstance(outcome, Rejected) else edit,
    )  # fmt: skip
    context = replace(made.context, incumbent=kept, incumbent_metric=bpb(best))
    return replace(
        made, run=f"{arm}-{seed}", parent=kept, seconds=9.0, proposal=said, context=context
    )


def _final_check(plan: Plan, seed: int, kept: int, best: float) -> list[Record]:
    """The incumbent and the baseline on fresh seeds: as on the way, a little worse."""
    scores = {0: 1.5 + 0.01 * seed, kept: best}
    return [
        Measurement(
            trial, "final", fresh, "2026-01-01T01:00:00+00:00", 6.0,
            Scored(bpb(score + 0.004 * place), {"metric_channel": "test"}), f"{seed}/{trial}",
        )
        for place, fresh in enumerate(fresh_seeds(seed, plan.final_seeds))
        for trial, score in scores.items()
    ]  # fmt: skip
