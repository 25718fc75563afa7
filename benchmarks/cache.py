"""How much of a prompt the engine need not read again, between two trials that were set back.

The embedded model stays loaded; nothing is trained. The first trial reads everything, so it is left
out. Counted by the engine itself, call by call, as the ledger has it.
"""

from collections.abc import Iterator

from benchmarks.harness import Bench, advance, begun
from benchmarks.measure import Figure, of
from benchmarks.replayed import Worse
from loop.start import RunArgs
from loop.trial import Trial

BRAIN = "llamacpp:smollm2-135m"
TRIALS = {"menu": 12, "bare": 8}


def run(bench: Bench) -> Iterator[Figure]:
    """A share for each arm, in percent of the prompt's tokens."""
    for strategy, trials in TRIALS.items():
        args = RunArgs(
            bench.place / strategy, brain=BRAIN, strategy=strategy, profile="cpu", judge="naive",
            final_seeds=0, reply_tokens=96, seed=1,
        )  # fmt: skip
        with begun(args, Worse) as loop:
            advance(loop, trials)
            rows = [t for t in loop.position.trials[2:] if t.decision.verdict == "discard"]
        shares = [100 * cached / read for cached, read in map(tokens, rows)]
        read = sum(tokens(row)[1] for row in rows) / len(rows)
        note = f"{read:,.0f} tokens a prompt"
        yield of(f"{strategy}: prompt tokens from the cache", shares, "%", (">=", 90.0), note)


def tokens(trial: Trial) -> tuple[int, int]:
    """(cached, read in all) of the trial's proposal, its repair left out."""
    replies = [
        reply
        for call in trial.proposal.calls
        if call.purpose == "propose"
        for reply in call.replies
    ]
    return sum(r.cached_tokens for r in replies), sum(r.prompt_tokens for r in replies)
