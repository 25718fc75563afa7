"""Which e-process should confirm a gain? `python -m eval.rivals` prints how three of them fare.

- `coin`: the judge's own (`loop.evidence`), bets on who of a pair is better; assumes nothing.
- `student`: likelihood ratio of the t-statistic of the pairs, mixed over effects; the spread is
  integrated out under its right Haar measure (Perez-Ortiz et al. 2024, arXiv 2208.07610). Assumes
  normal differences of any spread.
- `plug-in`: normal likelihood ratio, mixed over effects, with the sigma of five noise runs as if
  it were the true one. Assumes normal noise and a candidate as noisy as the baseline.

The first two never look at sigma for their validity; `plug-in` shows what that is worth. Its
false keeps would have to stay below one in `needed`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loop import flags
from loop.evidence import GAINS
from loop.flags import flag

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

NOISES = ("normal", "t3", "skew", "two-valued", "candidate twice as noisy")


@dataclass(frozen=True)
class RivalArgs:
    """Three e-processes on simulated pairs: false keeps and pairs needed."""

    tests: int = flag(4000, "per cell")
    cap: int = flag(40, "pairs of one test")
    needed: int = flag(1000, "the e-value that keeps")
    seed: int = flag(0, "of the simulation")


def coin(gains: "Array", sigma: "Array") -> "Array":
    """`gains` (tests, pairs), `sigma` (tests, 1) -> e-values (tests, pairs), as in log_e."""
    import numpy as np

    bets = np.array(GAINS)[:, None, None] / 2 / sigma
    logs = np.cumsum(np.log(2) - np.logaddexp(0, -2 * bets * gains), -1)
    e: Array = np.exp(logs).mean(0)
    return e


def student(gains: "Array", sigma: "Array") -> "Array":
    """E[exp(effect * ratio * q)] * exp(-n effect^2 / 2), q chi with n degrees of freedom."""
    import numpy as np

    ratio = np.cumsum(gains, 1) / np.sqrt(np.cumsum(gains**2, 1))
    q = np.linspace(0.01, 14, 160)
    found = np.empty(gains.shape)
    for n in range(1, gains.shape[1] + 1):
        density = (n - 1) * np.log(q) - q * q / 2
        density -= np.logaddexp.reduce(density)
        logs = [
            np.logaddexp.reduce(density + effect * ratio[:, n - 1, None] * q, 1) - n * effect**2 / 2
            for effect in np.array(GAINS) / np.sqrt(2)
        ]
        found[:, n - 1] = np.exp(logs).mean(0)
    return found


def plug_in(gains: "Array", sigma: "Array") -> "Array":
    """The mean over effects of the normal likelihood ratio, `sigma` taken for the truth."""
    import numpy as np

    size = np.array(GAINS)[:, None, None]
    logs = np.cumsum(size * (gains / sigma) / 2 - size**2 / 4, -1)
    e: Array = np.exp(np.minimum(logs, 700)).mean(0)
    return e


RIVALS: dict[str, Callable[["Array", "Array"], "Array"]] = {
    "coin": coin,
    "student": student,
    "plug-in": plug_in,
}


def compare(args: RivalArgs) -> list[str]:
    """False keeps of tests without effect, and pairs until half of the tests keep. Markdown."""
    import numpy as np

    effects = (1.0, 2.0, 4.0, 8.0)
    rows = [
        "| noise | e-process | false keeps, 1 = as agreed | "
        + " | ".join(f"pairs at {gain:g} sigma" for gain in effects)
        + " |",
        "|" + "---|" * (3 + len(effects)),
    ]
    for noise in NOISES:
        rng = np.random.default_rng([args.seed, NOISES.index(noise)])
        shape = (args.tests, args.cap)
        gains = _draw(rng, noise, shape, False) - _draw(rng, noise, shape, True)
        sigma = _draw(rng, noise, (args.tests, 5), False).std(1, ddof=1, keepdims=True)
        sigma = np.maximum(sigma, 1e-3)
        for name, e_process in RIVALS.items():
            kept = e_process(gains, sigma).max(1) >= args.needed
            row = f"| {noise} | {name} | {kept.mean() * args.needed:.2f}"
            for gain in effects:
                e = np.maximum.accumulate(e_process(gains[:2000] + gain, sigma[:2000]), 1)
                half = (e >= args.needed).mean(0) >= 0.5
                row += f" | {int(half.argmax()) + 1 if half.any() else f'over {args.cap}'}"
            rows.append(row + " |")
    return rows


def _draw(
    rng: "np.random.Generator", noise: str, shape: tuple[int, ...], candidate: bool
) -> "Array":
    """Noise of unit variance."""
    match noise:
        case "t3":
            return rng.standard_t(3, shape) / 3**0.5
        case "skew":
            return rng.exponential(1, shape) - 1
        case "two-valued":
            return rng.choice([1.0, -1.0], shape) + 0.01 * rng.normal(size=shape)
        case "candidate twice as noisy":
            return rng.normal(size=shape) * (2 if candidate else 1)
    return rng.normal(size=shape)


def main(argv: Sequence[str]) -> int:
    print(*compare(flags.parse("rivals", RivalArgs, argv)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
