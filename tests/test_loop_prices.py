"""Prices: what a reply costs, and where that was read."""

import tomllib
from datetime import date

import pytest

from loop import prices
from loop.brains import connect
from loop.errors import UsageError

TABLE = tomllib.loads(prices.PRICES.read_text())


def test_a_reply_costs_what_its_kinds_of_tokens_cost() -> None:
    price = prices.Price(prompt=4, cached=0.4, written=5, completion=20)
    # 1,000 read, of which 600 out of the cache and 300 into it; 50 written.
    assert price.dollars(1000, 600, 50, 300) == pytest.approx(
        (100 * 4 + 600 * 0.4 + 300 * 5 + 50 * 20) / 1e6
    )


@pytest.mark.parametrize("provider", sorted(TABLE))
def test_every_price_is_whole_plausible_and_has_a_source_and_a_date(provider: str) -> None:
    entry = TABLE[provider]
    assert entry["source"] and entry["page"].startswith("https://")
    assert date(2026, 1, 1) < entry["date"] <= date.today()
    for model in entry["models"]:
        price = prices.price_of(f"{provider}:{model}")
        assert price is not None
        assert 0 < price.cached < price.prompt <= price.written < price.completion, model


def test_a_dated_model_costs_what_its_undated_name_costs() -> None:
    for dated, name in (
        ("openai:gpt-5.5-2026-04-23", "openai:gpt-5.5"),
        ("anthropic:claude-haiku-4-5-20251001", "anthropic:claude-haiku-4-5"),
    ):
        assert prices.price_of(dated) == prices.price_of(name) is not None
    assert prices.price_of("openai:gpt-1") is prices.price_of("ollama:qwen3:4b") is None
    assert str(TABLE["openai"]["date"]) in prices.source_of("openai:gpt-5")


def test_a_cap_in_dollars_needs_a_price(tmp_path_factory: pytest.TempPathFactory) -> None:
    script = tmp_path_factory.mktemp("s") / "s.jsonl"
    script.write_text('{"text": "x"}\n')
    brain = connect(f"scripted:{script}")
    prices.require(brain)  # costs nothing
    brain.price = None  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="no price is known for scripted:"):
        prices.require(brain)
