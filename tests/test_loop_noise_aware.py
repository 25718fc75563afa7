"""A positive result that is noise is the worst failure: the judge where the truth is known.

The judge is the real one throughout; the trainer is simulated (`eval.simulate`) or a small script.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.simulate import NOISES, Result, World, judge_of, play, stream
from loop.errors import TargetError
from loop.evidence import alpha, spent
from loop.judge import Contender
from loop.ledger import read, trials
from loop.noise_aware import NoiseAware
from loop.trial import Crashed, Event, Json, Measurement, Metric, Outcome, Reason
from tests.conftest import Cli

AWARE = ("--judge", "noise-aware")
NOISY = """\
import hashlib
import os

LR = 0.1
seed = os.environ["SEED"]
luck = int(hashlib.sha256(f"{LR}/{seed}".encode()).hexdigest()[:8], 16) / 2**32
print(f"val_bpb: {1 + 3 * abs(LR - 0.4) + 0.1 * luck:.9f}")
"""
TOML = """\
editable = "train.py"
command = ["{python}", "train.py"]
seed = "env:SEED"
budget = "1e9flops"
[metric]
name = "val_bpb"
[knobs]
LR = { choices = [0.05, 0.1, 0.2, 0.4] }
"""


def runs_of(noise: str, gains: list[float], count: int, **changes: int) -> list[Result]:
    judge = judge_of("noise-aware", noise, **changes)
    return [play(judge, gains, noise, seed) for seed in range(count)]


# --- validity


@pytest.mark.parametrize("noise", NOISES)
def test_edits_without_effect_are_hardly_ever_kept(noise: str) -> None:
    spoilt = sum(result.false > 0 for result in runs_of(noise, [0.0] * 100, 20))
    assert spoilt <= 5  # were the chance 5 %, more would have a chance of 3 in 10,000


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
def test_of_many_runs_of_edits_without_effect_at_most_five_percent_keep_one(noise: str) -> None:
    results = runs_of(noise, [0.0] * 100, 400)
    assert sum(result.false > 0 for result in results) <= 0.05 * 400
    assert sum(result.false for result in results) <= 0.06 * 400


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "t3", "skew"])
def test_the_noise_may_be_known_from_two_runs_only(noise: str) -> None:
    results = runs_of(noise, [0.0] * 100, 400, noise_runs=1)
    assert sum(result.false > 0 for result in results) <= 0.05 * 400


@pytest.mark.slow
def test_a_thousand_challengers_of_the_same_replicates_wear_them_out_no_more_than_agreed() -> None:
    results = runs_of("normal", [0.0] * 1000, 100)
    assert sum(result.false > 0 for result in results) <= 0.05 * 100 + 5


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "t3", "drift"])
def test_among_real_gains_false_keeps_stay_below_five_percent_of_keeps(noise: str) -> None:
    judge = judge_of("noise-aware", noise)
    results = [play(judge, stream(100, 0.1, 2.0, seed), noise, seed) for seed in range(200)]
    shares = [result.false / max(1, len(result.kept)) for result in results]
    assert sum(shares) / len(shares) <= 0.05


def test_naive_keeps_noise_where_noise_aware_does_not() -> None:
    naive = [play(judge_of("naive", "normal"), [0.0] * 100, "normal", seed) for seed in range(20)]
    assert sum(result.false for result in naive) > 20 * 3
    assert sum(result.false for result in runs_of("normal", [0.0] * 100, 20)) <= 5


def test_edits_that_do_harm_are_not_kept() -> None:
    assert sum(len(r.kept) for r in runs_of("normal", [-1.0] * 50, 20)) <= 1


# --- power and cost


@pytest.mark.parametrize("noise", ["normal", "t3"])
@pytest.mark.parametrize(
    ("gain", "least", "pairs"), [(1.0, 0.25, 40), (2.0, 0.75, 14), (4.0, 0.95, 10)]
)
def test_real_gains_are_kept(noise: str, gain: float, least: float, pairs: int) -> None:
    kept = [result for result in runs_of(noise, [gain], 80) if result.kept]
    assert len(kept) / 80 >= least
    assert sum(result.pairs for result in kept) / len(kept) <= pairs


def test_a_hopeless_test_ends_after_a_few_pairs() -> None:
    results = [r for r in runs_of("normal", [0.0], 80) if r.confirmations]
    assert sum(result.pairs for result in results) / len(results) < 9


def test_a_steady_target_runs_the_anchor_once_for_all_its_challengers() -> None:
    world = World([0.0] * 4, "normal", random.Random(0))
    world.play(NoiseAware())
    seeds = [m.seed for m in world.measurements if m.trial == 0]
    assert len(seeds) == len(set(seeds))


def test_where_time_matters_pairs_are_fresh_and_a_coin_says_who_runs_first() -> None:
    world = World([0.0, 4.0], "normal", random.Random(0))
    world.play(NoiseAware(steady=False))
    pairs = [m for m in world.measurements if m.purpose == "replicate"]
    assert {pairs[i].seed for i in range(0, len(pairs), 2)} == {m.seed for m in pairs}
    assert {pairs[i].trial for i in range(0, len(pairs), 2)} == {0, 1}
    assert not {m.seed for m in pairs} & {m.seed for m in world.measurements if m not in pairs}


# --- simplifications


def test_many_simplifications_cannot_drift_beyond_one_margin() -> None:
    judge = judge_of("noise-aware", "normal")
    results = [play(judge, [-0.3] * 30, "normal", seed, True) for seed in range(10)]
    assert min(result.truth for result in results) >= -1.5


def test_what_is_simpler_and_equal_is_kept_and_never_becomes_the_anchor() -> None:
    world = World([0.0] * 9, "shared", random.Random(3), shrinking=True)
    decisions = world.play(NoiseAware(replicates=60))
    kept = [d for d in decisions if d.verdict == "keep"]
    assert kept
    assert {d.evidence["rule"] for d in kept} == {"simpler"}
    assert {d.evidence["anchor"] for d in decisions} == {0}


# --- what is no evidence


def test_a_candidate_with_the_same_score_on_every_seed_is_refused() -> None:
    class Pinned(World):
        def run(self, trial: int, seed: int) -> Metric:
            metric = super().run(trial, seed)
            return Metric("loss", -3.0) if trial else metric

    (decision,) = Pinned([0.0, 3.0], "normal", random.Random(0)).play(NoiseAware())
    assert decision.verdict == "discard"
    assert "does not take its seed" in decision.reason


def test_a_target_that_repeats_itself_exactly_is_refused_at_the_start() -> None:
    class Constant(World):
        def run(self, trial: int, seed: int) -> Metric:
            return Metric("loss", 1.0)

    with pytest.raises(TargetError, match=r"identical loss .* --judge naive"):
        Constant([0.0, 1.0], "normal", random.Random(0)).play(NoiseAware())


def test_without_a_seed_the_noise_is_called_the_machines() -> None:
    world = World([0.0, 4.0], "normal", random.Random(0))
    (decision,) = world.play(NoiseAware(seeded=False, steady=False))
    assert decision.evidence["noise"] == "machine"
    assert "machine's noise alone" in decision.reason


def test_an_edit_that_changes_nothing_seed_by_seed_is_found_out_after_two_pairs() -> None:
    class Copy(World):
        def run(self, trial: int, seed: int) -> Metric:
            self.rng = random.Random(seed)
            value = super().run(trial, seed).value
            return Metric("loss", value - 1 if trial and seed == 0 else value)

    (decision,) = Copy([0.0, 0.0], "normal", random.Random(0)).play(NoiseAware())
    assert decision.verdict == "discard"
    assert "it changes nothing" in decision.reason
    assert len(decision.evidence["replicates"]) == 2


def test_a_candidate_that_crashes_on_a_fresh_seed_is_discarded() -> None:
    class Fragile(World):
        def measure(self, contender: Contender, seed: int, purpose: str) -> Outcome:
            if contender.trial == 0:
                return super().measure(contender, seed, purpose)
            return Crashed("train", Reason.OUT_OF_MEMORY)

    (decision,) = Fragile([0.0, 4.0], "normal", random.Random(0)).play(NoiseAware())
    assert decision.verdict == "discard"
    assert "out_of_memory" in decision.reason


def test_the_score_that_selected_a_candidate_is_not_among_its_evidence() -> None:
    (decision,) = World([0.0, 4.0], "normal", random.Random(0)).play(NoiseAware())
    pairs, screening = decision.evidence["replicates"], decision.evidence["screening"]
    assert screening["candidate"] not in {pair["candidate"] for pair in pairs}
    assert 0 not in {pair["seed"] for pair in pairs}


def test_a_metric_that_should_rise_is_understood() -> None:
    class Accuracy(World):
        def run(self, trial: int, seed: int) -> Metric:
            return Metric("accuracy", -super().run(trial, seed).value, "max")

    better, worse = Accuracy([0.0, 6.0, -6.0], "normal", random.Random(0)).play(NoiseAware())
    assert (better.verdict, worse.verdict) == ("keep", "discard")


def test_the_evidence_of_a_decision_can_be_checked_by_hand() -> None:
    first, second = World([0.0, 6.0, 6.0], "normal", random.Random(0)).play(NoiseAware())
    for number, decision in enumerate((first, second), 1):
        facts = decision.evidence
        assert decision.verdict == "keep"
        assert (facts["test"], facts["keeps_before"]) == (number, number - 1)
        assert facts["alpha"] == pytest.approx(alpha(0.05, number, number - 1))
        gains = [pair["anchor"] - pair["candidate"] for pair in facts["replicates"]]
        assert facts["gain"] == pytest.approx(sum(gains) / len(gains))
        assert facts["e_value"] >= 1 / facts["alpha"]
        assert f"{len(gains)} pairs" in decision.reason
    assert second.evidence["sigma_df"] > first.evidence["sigma_df"] == 4
    assert second.evidence["budget_spent"] == pytest.approx(spent(2))


# --- in a real run


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """A target with a training seed that matters, and a gain that is much larger than it."""
    folder = tmp_path / "noisy"
    folder.mkdir()
    (folder / "train.py").write_text(NOISY)
    (folder / "target.toml").write_text(TOML)
    return folder


def test_a_run_measures_noise_first_then_confirms_what_it_keeps(
    noisy: Path, tmp_path: Path, run_loop: Cli, scripted: Callable[..., Path]
) -> None:
    brain = scripted("LR = 0.4", "LR = 0.2")
    out = tmp_path / "r"
    done = run_loop(
        "--target", noisy, "--brain", f"scripted:{brain}", "--trials", 2, "--out", out, *AWARE
    )
    assert done.returncode == 0, done.stderr
    assert "Confirming a first gain of 4, 2 or 1 sigma takes about" in done.stdout
    records = list(read(out))
    assert [m.purpose for m in records if isinstance(m, Measurement)][:4] == ["noise"] * 4
    assert sum(isinstance(r, Event) and r.name == "noise" for r in records) == 1
    assert [t.decision.verdict for t in trials(out)] == ["baseline", "keep", "discard"]
    assert "better on fresh seeds" in trials(out)[1].decision.reason


def test_a_run_cut_off_in_mid_confirmation_comes_to_the_same_decision(
    noisy: Path, tmp_path: Path, run_loop: Cli, scripted: Callable[..., Path]
) -> None:
    brain, out = scripted("LR = 0.4"), tmp_path / "r"
    flags = ("--target", noisy, "--brain", f"scripted:{brain}", "--trials", 1, "--out", out, *AWARE)
    assert run_loop(*flags).returncode == 0
    ledger = out / "ledger.jsonl"
    whole = ledger.read_text().splitlines(keepends=True)
    kept = json.loads(whole[-1])["decision"]
    for cut in (len(whole) - 1, len(whole) - 4, 3):  # before the decision, amid pairs, amid noise
        ledger.write_text("".join(whole[:cut]))
        assert run_loop("--resume", *AWARE, "--out", out).returncode == 0
        again = [json.loads(line) for line in ledger.read_text().splitlines()]
        assert len(again) == len(whole)
        assert _plain(again[-1]["decision"]) == _plain(kept)


def test_other_code_under_the_id_of_a_cut_off_trial_inherits_no_replicates(
    noisy: Path, tmp_path: Path, run_loop: Cli, scripted: Callable[..., Path]
) -> None:
    brain, out = scripted("LR = 0.4"), tmp_path / "r"
    flags = ("--target", noisy, "--brain", f"scripted:{brain}", "--trials", 1, "--out", out, *AWARE)
    assert run_loop(*flags).returncode == 0
    ledger = out / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))
    scripted("LR = 0.2")
    assert run_loop("--resume", *AWARE, "--out", out).returncode == 0
    pairs = trials(out)[1].decision.evidence["replicates"]
    assert pairs
    assert min(pair["candidate"] for pair in pairs) > 1.5  # LR = 0.4 would score 1.1 at most


def test_edits_without_effect_give_the_false_keep_rate_of_a_judge(
    noisy: Path, tmp_path: Path, run_cli: Cli
) -> None:
    out = tmp_path / "r"
    flags = ("--strategy", "no_effect", "--fresh-seeds", "--judge", "naive", "--trials", 8)
    done = run_cli("run", "--sandbox", "none", "--target", noisy, "--out", out, *flags)
    assert done.returncode == 0, done.stderr
    kept = sum(t.decision.verdict == "keep" for t in trials(out))
    assert kept > 0
    assert f"naive kept {kept} of 8 edits that do nothing" in done.stdout


def _plain(decision: Json) -> Json:
    """Without how many runs it took this time."""
    return {**decision, "evidence": {k: v for k, v in decision["evidence"].items() if k != "runs"}}
