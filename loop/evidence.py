"""Evidence that a gain is real: an e-process on paired differences, and its error budget.

If an edit does nothing, candidate and incumbent on the same training seed are two draws from the
same distribution, and it is a fair coin which of them comes out better. Each pair is a bet on that
coin: a stake of 1 becomes 1 + tanh(bet * gain). Whatever the noise looks like (heavy tails, skew,
a spread that nobody knows), such a player of fair coins multiplies the stake by `x` with
probability at most 1 / x, however long the play and whenever it stops (Ville 1939). The same holds
if the candidate is worse. The optimal bet for normal noise is gain / variance (the ratio of the
likelihoods of a gain and of a loss of the same size is then exactly this bet), so the stake is
divided over bets for gains of half to eight standard deviations. A pair can at most double it: the
price of assuming nothing.

The budget is e-LOND (Xu and Ramdas 2024, arXiv 2402.12038): the `t`-th test keeps if its e-value
reaches 1 / alpha_t, alpha_t = rate * gamma_t * (keeps before + 1), the gammas summing to one over
an endless run. The expected share of false keeps among all keeps is then at most `rate`, whatever
the dependence between the tests.
"""

import math
from collections.abc import Sequence

GAINS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""In standard deviations of one run: the true gains that the stake is divided over."""

_DECAY = 1.2
_ZETA = 5.591582441177751  # the sum of t ** -1.2 over all t


def log_e(gains: Sequence[float], sigma: float) -> float:
    """Logarithm of the e-value of paired `gains` (positive: better), in the unit of `sigma`.

    `sigma`, of one run, only tunes the bets; a wrong one costs power and no validity, if it was
    fixed before the pairs were seen. Where it is 0, the size of the gains so far takes its place,
    which a fair coin does not mind either.
    """
    if not gains:
        return 0.0
    logs = [0.0] * len(GAINS)
    squares = 0.0
    for count, gain in enumerate(gains, 1):
        squares += gain * gain
        scale = sigma or math.sqrt(squares / count / 2)
        for at, size in enumerate(GAINS):
            bet = size / 2 / scale if scale else 0.0
            logs[at] += math.log(2) - _softplus(-2 * bet * gain)
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs) / len(logs))


def growth(effect: float) -> float:
    """About how much a pair adds to the log of the e-value if the true gain is `effect`.

    `effect` is in standard deviations of a paired difference. Exact for small effects (half their
    square) and for large ones (log 2).
    """
    return math.log(2) * -math.expm1(-(max(0.0, effect) ** 2) / (2 * math.log(2)))


def pairs_needed(effect: float, alpha: float) -> int:
    """About how many pairs keep a true gain of `effect` standard deviations of one run."""
    spread_thin = 2.0  # about two of five bets pay for a given gain
    return math.ceil(math.log(spread_thin / alpha) / growth(effect / math.sqrt(2)))


def gamma(test: int) -> float:
    """Share of the error budget of the `test`-th test, counted from 1."""
    return float(test**-_DECAY) / _ZETA


def alpha(rate: float, test: int, keeps: int) -> float:
    """e-LOND's level of the `test`-th test after `keeps` keeps."""
    return rate * gamma(test) * (keeps + 1)


def spent(tests: int) -> float:
    """Share of the error budget that the first `tests` tests have used, 0 to 1."""
    return sum(map(gamma, range(1, tests + 1)))


def _softplus(x: float) -> float:
    """log(1 + exp(x)) without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
