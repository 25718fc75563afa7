"""The ways of a training step run as processes, and the plain GPT spends the trainee's budget."""

import pytest

from benchmarks.trainee import HERE, STEPS, Place, Way
from loop.errors import AutoresearchError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("bench"))


@pytest.mark.slow
@pytest.mark.parametrize("words", ["given-back", "memory,fused,bf16", "plain"])
def test_a_way_tells_what_its_rounds_take(place: Place, words: str) -> None:
    way = Way(place, words)
    try:
        assert way.tokens == STEPS * 1024 and way.warm > 0
        assert [way.round().processor > 0 for _ in range(2)] == [True, True]
    finally:
        way.close()


@pytest.mark.slow
def test_a_way_that_is_not_known_ends_in_one_line(place: Place) -> None:
    with pytest.raises(AutoresearchError, match="ended early"):
        Way(place, "nonsense")


@pytest.mark.slow
def test_both_models_train_for_the_same_budget(place: Place) -> None:
    ours, tokens = place.result(1 / 64, 0, "train.py")
    plain, given = place.result(1 / 64, 0, str(HERE / "nanogpt.py"), "1e-3")
    assert 2 < ours < 8 and 2 < plain < 8
    assert 0.5 < tokens / given < 2
