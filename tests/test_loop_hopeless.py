"""Early stopping: what lags far behind is cut, what is merely unlucky is not."""

from pathlib import Path

from loop.experiment import Limits, Runner
from loop.hopeless import MARGIN, Rival, lags, read, rival
from loop.sandbox import Box
from loop.target import Target
from loop.trial import Stopped

CURVE = [(at / 20, 5 - at / 10) for at in range(21)]


def later(curve: list[tuple[float, float]], more: float) -> list[tuple[float, float]]:
    return [(at, loss + more) for at, loss in curve]


def test_far_behind_past_half_the_budget_is_hopeless() -> None:
    assert lags(later(CURVE[:12], 2 * MARGIN), CURVE)


def test_before_half_or_within_the_margin_nothing_is() -> None:
    assert not lags(later(CURVE[:9], 9.0), CURVE)
    assert not lags(later(CURVE[:12], MARGIN / 2), CURVE)
    assert not lags([], CURVE) and not lags(CURVE, [])


def test_a_curve_is_read_from_a_log_and_from_measurements() -> None:
    log = "hello\nprogress 0.05 step 1 loss 4.9\nprogress 0.10 step 2 loss 4.8\nprogress x\n"
    assert read(log) == [(0.05, 4.9), (0.1, 4.8)]
    found = rival({"curve": [[0.05, 4.9], "no", [1, 2, 3]]})
    assert found is not None and list(found.curve) == [(0.05, 4.9)]
    assert rival({}) is None and rival({"curve": "no"}) is None


def test_an_experiment_is_cut_and_called_stopped(tmp_path: Path) -> None:
    lines = "".join(f"progress {at:.2f} step 1 loss {loss + 1}\n" for at, loss in CURVE[:12])
    folder = tmp_path / "scratch"
    folder.mkdir()
    (folder / "train.py").write_text(
        f"import time\nprint({lines!r}, flush=True)\ntime.sleep(600)\n"
    )
    target = Target("t", folder, "train.py", ("{python}", "train.py"), "val_bpb")
    runner = Runner(target, Box(), Limits(60))
    outcome, _ = runner.run(folder, {}, tmp_path / "log", rival=Rival(CURVE))
    assert outcome == Stopped(0.55)
