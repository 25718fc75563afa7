"""The brains behind a server: real replies over loopback, and servers that misbehave."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.brain import Brain
from loop.brains import connect, openai_api, retry
from loop.errors import BrainError, ContextOverflow, ServerDown, UsageError
from loop.trial import Message
from tests.anthropic_server import NEWER, OLDER, AnthropicServer
from tests.loopback import Answer, Fault, Json, Loopback, unused_port
from tests.ollama_server import DIGEST, MODEL, OllamaServer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
KEY = "sk-test-5d41402abc4b2a76b9719d911017c592"
SCHEMA: Json = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
ENOUGH = retry.ATTEMPTS
DENSE = "7392" * 300  # a token a digit: three times what counting bytes expects


def user(*parts: str) -> list[Message]:
    return [Message("user", parts)]


@pytest.fixture(scope="module")
def smol() -> Iterator[Any]:
    brain = connect("llamacpp:smollm2-135m", window=2048, threads=1)
    yield brain
    brain.close()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter waits between tries, and no proxy between us and loopback."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ollama(smol: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    with OllamaServer(smol) as server:
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.port}")
        server.at = "/api/chat"
        yield server


class Proxy(Loopback):
    """Before llama.cpp's own OpenAI-compatible address, so that a fault can come between."""

    def __init__(self, smol: Any, key: str = "") -> None:
        """`key`: one that it takes beside llama.cpp's own."""
        self.smol, self.key = smol, key
        super().__init__()
        self.at = "/chat/completions"

    def answer(self, method: str, path: str, body: Json, headers: dict[str, str]) -> Answer:
        import httpx

        given = headers.get("authorization", "").removeprefix("Bearer ")
        sent = {"authorization": f"Bearer {self.smol.api_key if given == self.key else given}"}
        url = self.smol.address + path
        with httpx.Client(trust_env=False, timeout=120) as client:
            answer = client.request(method, url, json=body or None, headers=sent)
        return answer.status_code, answer.json()


@pytest.fixture
def proxy(smol: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("OPENAI_API_KEY", smol.api_key)
    with Proxy(smol) as server:
        yield server


def openai(proxy: Proxy, **options: Any) -> Any:
    return connect("openai:smol", base_url=f"{proxy.url}/v1", **options)


@pytest.fixture
def claude(smol: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[AnthropicServer]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with AnthropicServer(smol, KEY) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        server.at = "/v1/messages"
        yield server


# Retries


def test_only_transport_faults_429_and_5xx_are_worth_another_try() -> None:
    for status in (408, 429, 500, 502, 503, 529):
        assert isinstance(retry.refusal("b", status, "x"), retry.Fault), status
    for status in (400, 401, 403, 404, 409, 413, 422):
        assert not isinstance(retry.refusal("b", status, "x"), retry.Fault), status


def test_retry_after_is_seconds_or_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert retry.retry_after({"retry-after": "7"}) == 7
    assert 80 < retry.retry_after({"retry-after": later}) <= 90
    assert retry.retry_after({"retry-after": "soon"}) == retry.retry_after({}) == 0


@given(st.integers(1, 60))
def test_waits_grow_to_a_cap_with_jitter(attempt: int) -> None:
    longest = min(retry.LONGEST_WAIT_S, retry.FIRST_WAIT_S * 2.0 ** (attempt - 1))
    assert longest / 2 <= retry.backoff(attempt) <= longest


def test_a_long_retry_after_is_left_to_the_run() -> None:
    asked = []

    def busy() -> None:
        asked.append(1)
        raise retry.Fault("status 429: slow down", after=120)

    with pytest.raises(ServerDown, match="slow down") as down:
        retry.persist(busy, "b")
    assert len(asked) == 1 and down.value.after == 120


# Ollama


def test_ollama_answers_and_accounts_for_it(ollama: OllamaServer, smol: Any) -> None:
    brain = connect(f"ollama:{MODEL}", window=1024)
    question = [Message("system", ("Be brief.",)), Message("user", ("What is the ", "sun?"))]
    first, second = brain.chat(question, n=2, max_tokens=6, seed=4, temperature=0.9)
    again = brain.chat(question, max_tokens=6, seed=4, temperature=0.9)[0]
    assert first.text.strip() and first.finish == "length" and first.completion_tokens == 6
    assert first.dollars is None and first.seconds > 0
    assert first.prompt_tokens == again.prompt_tokens > 10 and again.cached_tokens > 0
    assert brain.digest == f"{DIGEST} ollama-0.34.2" and brain.window == 1024
    sent = [body for body in ollama.bodies("/api/chat") if body["messages"]]
    assert [body["options"]["seed"] for body in sent] == [4, 5, 4]
    assert second.prompt_tokens > 0
    for body in ollama.bodies("/api/chat"):
        assert body["options"]["num_ctx"] == 1024 and body["keep_alive"] == -1
    for body in sent:
        assert body["think"] is False and body["truncate"] is False and body["shift"] is False
        assert body["options"]["num_predict"] == 6 and body["options"]["temperature"] == 0.9
        assert body["messages"][1]["content"] == "What is the sun?"


def test_ollama_takes_a_schema_and_says_when_it_does_not(ollama: OllamaServer) -> None:
    brain = connect(f"ollama:{MODEL}")
    reply = brain.chat(user("Is fire hot?"), schema=SCHEMA, max_tokens=40)[0]
    assert json.loads(reply.text)["answer"] in ("yes", "no")
    with pytest.raises(BrainError, match="does not take this JSON schema") as refused:
        brain.chat(user("Hi"), schema={"type": "nonsense"}, max_tokens=5)
    assert "\n" not in str(refused.value)


def test_ollama_lists_what_there_is(ollama: OllamaServer) -> None:
    with pytest.raises(BrainError, match=f"no model 'qwen9'; there are: bge-m3:latest, {MODEL}"):
        connect("ollama:qwen9")
    with pytest.raises(BrainError, match="cannot chat, only: embedding"):
        connect("ollama:bge-m3")
    with pytest.raises(UsageError, match="cannot think"):
        connect(f"ollama:{MODEL}", think=True)
    with pytest.raises(UsageError, match="trained on 8192 tokens: no window of 9000"):
        connect(f"ollama:{MODEL}", window=9000)


def test_ollama_sends_nothing_that_cannot_fit(ollama: OllamaServer) -> None:
    brain = connect(f"ollama:{MODEL}", window=512)
    before = len(ollama.asked)
    with pytest.raises(ContextOverflow, match="do not fit the window of 512"):
        brain.chat(user("word " * 300), max_tokens=64)
    assert len(ollama.asked) == before


@pytest.mark.parametrize("honours", [True, False])
def test_a_prompt_that_ollama_would_cut_is_an_error(smol: Any, honours: bool) -> None:
    with OllamaServer(smol, honours=honours) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_HOST", server.url)
        brain = connect(f"ollama:{MODEL}", window=512)
        with pytest.raises(ContextOverflow, match="context length" if honours else "cut the"):
            brain.chat(user(DENSE), max_tokens=8)


def test_ollama_believes_a_server_that_grants_a_smaller_window(smol: Any) -> None:
    with OllamaServer(smol, most=600) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_HOST", server.url)
        brain = connect(f"ollama:{MODEL}", window=2000)
        assert brain.window == 600
        with pytest.raises(ContextOverflow):
            brain.chat(user("word " * 300), max_tokens=200)


def test_ollama_unloads_and_waits_until_it_is_gone(ollama: OllamaServer) -> None:
    brain: Any = connect(f"ollama:{MODEL}")
    assert ollama.loaded
    brain.unload()
    assert not ollama.loaded
    brain.unload()
    brain.load()
    assert ollama.loaded and ollama.events == ["load", "unload", "unload", "load"]
    brain.unload()
    assert brain.chat(user("Hi"), max_tokens=2)[0].text and ollama.loaded


def test_an_ollama_that_is_not_there_is_down_and_told_how_to_start() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLLAMA_HOST", f"127.0.0.1:{unused_port()}")
        with pytest.raises(ServerDown, match=r"nothing listens at .* ollama serve"):
            connect(f"ollama:{MODEL}")
        patch.setenv("OLLAMA_HOST", "http://[nonsense")
        with pytest.raises(UsageError, match="OLLAMA_HOST is no address"):
            connect(f"ollama:{MODEL}")


# Every server misbehaves in the same ways

MENDED = [
    Fault(500, {"error": "boom"}),
    Fault(429, {"error": {"message": "slow"}}, {"retry-after": "0.05"}),
    Fault(529, {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}),
    Fault(drop=True),
]
NAMES = ["500", "429", "529", "dropped"]


@pytest.fixture(params=["ollama", "openai", "anthropic"])
def served(
    request: pytest.FixtureRequest, ollama: OllamaServer, proxy: Proxy, claude: AnthropicServer
) -> tuple[Brain, Loopback]:
    """A connected brain, and its server."""
    if request.param == "ollama":
        return connect(f"ollama:{MODEL}", window=1024), ollama
    if request.param == "openai":
        return openai(proxy), proxy
    return connect(f"anthropic:{OLDER}"), claude


@pytest.mark.parametrize("fault", MENDED, ids=NAMES)
def test_a_fault_that_passes_is_overcome(served: tuple[Brain, Loopback], fault: Fault) -> None:
    brain, server = served
    server.faults.append(fault)
    before = len(server.asked)
    assert brain.chat(user("Hi"), max_tokens=2)[0].completion_tokens > 0
    assert len(server.asked) == before + 2


@pytest.mark.parametrize("fault", MENDED, ids=NAMES)
def test_a_fault_that_stays_is_a_server_that_is_down(
    served: tuple[Brain, Loopback], fault: Fault
) -> None:
    brain, server = served
    server.faults.extend([fault] * ENOUGH)
    before = len(server.asked)
    with pytest.raises(ServerDown, match="does not answer") as down:
        brain.chat(user("Hi"), max_tokens=2)
    assert len(server.asked) == before + ENOUGH and "\n" not in str(down.value)
    assert brain.chat(user("Hi"), max_tokens=2)[0].completion_tokens > 0


def test_a_server_that_hangs_is_down(served: tuple[Any, Loopback]) -> None:
    brain, server = served
    if isinstance(server, OllamaServer):
        brain._client._client.timeout = 0.1
    else:
        brain._client = brain._client.with_options(timeout=0.1)
    server.faults.extend([Fault(hang=0.3)] * ENOUGH)
    before = len(server.asked)
    with pytest.raises(ServerDown, match="no answer in time"):
        brain.chat(user("Hi"), max_tokens=2)
    assert len(server.asked) == before + ENOUGH


def test_what_is_wrong_with_the_request_is_not_sent_again(served: tuple[Brain, Loopback]) -> None:
    brain, server = served
    server.faults.append(Fault(400, {"error": {"message": f"no\nsuch {KEY} thing"}}))
    before = len(server.asked)
    with pytest.raises(BrainError) as refused:
        brain.chat(user("Hi"), max_tokens=2)
    assert len(server.asked) == before + 1 and not isinstance(refused.value, ServerDown)
    assert "\n" not in str(refused.value)


# OpenAI's protocol


def test_openai_answers_and_accounts_for_it(proxy: Proxy, smol: Any) -> None:
    brain = openai(proxy)
    question = [Message("system", ("Be brief.",)), Message("user", ("What is the ", "sun?"))]
    first, second = (brain.chat(question, max_tokens=6, seed=3)[0] for _ in range(2))
    assert first.text.strip() and first.finish == "length" and first.completion_tokens == 6
    assert first.prompt_tokens == second.prompt_tokens and second.cached_tokens > 0
    assert first.dollars is None and first.seconds > 0
    assert brain.window == smol.window == 2048  # told by the server
    sent = proxy.bodies("/v1/chat/completions")[-1]
    assert sent["max_tokens"] == 6 and sent["seed"] == 3 and "n" not in sent
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}


def test_openai_asks_again_where_a_server_gives_one_reply_at_a_time(proxy: Proxy) -> None:
    brain = openai(proxy)
    replies = brain.chat(user("Tell a story."), n=3, temperature=1.0, max_tokens=4, seed=7)
    assert [reply.completion_tokens for reply in replies] == [4, 4, 4]
    sent = proxy.bodies("/v1/chat/completions")[1:]
    assert [(body.get("n"), body["seed"]) for body in sent] == [
        (3, 7),
        (None, 7),
        (None, 8),
        (None, 9),
    ]


def test_openai_takes_a_schema_and_says_when_it_does_not(proxy: Proxy) -> None:
    brain = openai(proxy)
    reply = brain.chat(user("Is fire hot?"), schema=SCHEMA, max_tokens=40)[0]
    assert json.loads(reply.text)["answer"] in ("yes", "no")
    with pytest.raises(BrainError, match="does not take this JSON schema"):
        brain.chat(user("Hi"), schema={"type": "nonsense"}, max_tokens=5)


def test_openai_overflows_before_and_after_sending(proxy: Proxy) -> None:
    brain = openai(proxy)
    with pytest.raises(ContextOverflow, match="do not fit the window of 2048"):
        brain.chat(user("word " * 1200), max_tokens=64)
    with pytest.raises(ContextOverflow, match="context size"):
        brain.chat(user(DENSE * 2), max_tokens=8)


def test_openai_leaves_out_what_a_model_refuses_and_says_so(proxy: Proxy) -> None:
    said = "Unsupported value: 'temperature' does not support 0.5 with this model."
    error = {"message": said, "param": "temperature", "code": "unsupported_value"}
    proxy.faults.append(Fault(400, {"error": error}))
    brain = openai(proxy)
    assert brain.digest.endswith(" without temperature")
    brain.chat(user("Hi"), max_tokens=2, temperature=0.7)
    assert "temperature" not in proxy.bodies("/v1/chat/completions")[-1]


def test_openai_lists_what_there_is_and_names_the_variable_of_the_key(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    brain = openai(proxy)
    proxy.faults.append(Fault(404, {"error": {"message": "The model does not exist"}}))
    with pytest.raises(BrainError, match=r"no model 'smol' .*; there are: .*smollm2"):
        brain.chat(user("Hi"), max_tokens=2)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(BrainError, match=r"is not accepted .* set OPENAI_API_KEY") as refused:
        openai(proxy)
    assert KEY not in str(refused.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(BrainError, match=r"is missing .* set OPENAI_API_KEY"):
        openai(proxy)
    with pytest.raises(BrainError, match="needs a key: set OPENAI_API_KEY"):
        connect("openai:gpt-5")


@pytest.mark.parametrize("url", ["localhost:80", "http://u:p@h/v1", "http://h/v1?key=1", "ftp://h"])
def test_a_base_url_is_an_address_and_no_place_for_a_secret(url: str) -> None:
    with pytest.raises(UsageError, match="--base-url"):
        connect("openai:x", base_url=url)


def test_a_server_that_does_not_tell_its_window_is_asked_for_it(proxy: Proxy) -> None:
    proxy.at = "/models"
    proxy.faults.append(Fault(200, {"object": "list", "data": [{"id": "smol"}]}))
    with pytest.raises(UsageError, match="say it with --window"):
        openai(proxy)
    proxy.faults.append(Fault(200, {"object": "list", "data": [{"id": "smol"}]}))
    assert openai(proxy, window=1000).window == 1000


@given(st.integers(0, 10_000), st.lists(st.integers(0, 500), min_size=1, max_size=8))
def test_shares_add_up(total: int, lengths: list[int]) -> None:
    shares = openai_api._shares(total, lengths)
    assert sum(shares) == total and len(shares) == len(lengths) and min(shares) >= 0


# Anthropic's


def test_anthropic_answers_caches_and_accounts_for_it(claude: AnthropicServer) -> None:
    brain = connect(f"anthropic:{OLDER}")
    question = [
        Message("system", ("You answer in few words, and never in more than ten of them.",)),
        Message("user", ("This is the file, which stays as it is.\n", "", "What is the sun?")),
    ]
    first, second = brain.chat(question, n=2, max_tokens=6, temperature=0.3)
    assert first.text.strip() and first.finish == "length"
    assert first.prompt_tokens == second.prompt_tokens
    assert first.cached_tokens == 0 < second.cached_tokens < second.prompt_tokens
    sent = claude.bodies("/v1/messages")[-1]
    marked = [b.get("cache_control") for b in (*sent["system"], *sent["messages"][0]["content"])]
    assert marked == [{"type": "ephemeral"}, {"type": "ephemeral"}, None]
    assert sent["temperature"] == 0.3 and sent["thinking"] == {"type": "disabled"}
    assert brain.digest == f"{OLDER} without seed" and brain.window == 2048


def test_anthropic_takes_a_schema(claude: AnthropicServer) -> None:
    brain = connect(f"anthropic:{OLDER}")
    limited = SCHEMA | {"properties": {"answer": {"type": "string", "maxLength": 3}}}
    assert "answer" in json.loads(brain.chat(user("Hot?"), schema=limited, max_tokens=60)[0].text)
    claude.faults.append(
        Fault(400, {"error": {"message": "output_config.format.schema: no such type"}})
    )
    with pytest.raises(BrainError, match="does not take this JSON schema"):
        brain.chat(user("Hi"), schema=SCHEMA, max_tokens=5)


def test_an_anthropic_model_that_always_thinks_is_asked_without_a_temperature(
    claude: AnthropicServer,
) -> None:
    brain = connect(f"anthropic:{NEWER}")
    assert brain.digest == f"{NEWER} without seed, temperature, thinking"
    reply = brain.chat(user("Hi"), max_tokens=7, temperature=0.7, schema=SCHEMA)[0]
    assert reply.reasoning == "Hm." and reply.text
    sent = claude.bodies("/v1/messages")[-1]
    assert "temperature" not in sent and sent["max_tokens"] > 7
    assert sent["output_config"]["effort"] == "low" and sent["output_config"]["format"]


def test_an_anthropic_model_that_turns_a_temperature_down_is_asked_without(
    claude: AnthropicServer,
) -> None:
    refused = {"error": {"message": "`temperature` is deprecated for this model."}}
    claude.faults.append(Fault(400, refused))
    brain = connect(f"anthropic:{OLDER}")
    assert brain.digest == f"{OLDER} without seed, temperature"
    brain.chat(user("Hi"), max_tokens=2, temperature=0.7)
    assert "temperature" not in claude.bodies("/v1/messages")[-1]


def test_anthropic_lists_what_there_is_and_names_the_variable_of_the_key(
    claude: AnthropicServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BrainError, match=f"no model 'claude-2'; there are: {OLDER}, {NEWER}"):
        connect("anthropic:claude-2")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-other-key")
    with pytest.raises(BrainError, match=r"is not accepted .* set ANTHROPIC_API_KEY") as refused:
        connect(f"anthropic:{OLDER}")
    assert KEY not in str(refused.value)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(BrainError, match="needs a key: set ANTHROPIC_API_KEY"):
        connect(f"anthropic:{OLDER}")


def test_a_server_that_echoes_the_key_is_not_quoted(claude: AnthropicServer) -> None:
    brain = connect(f"anthropic:{OLDER}")
    claude.faults.append(Fault(400, {"error": {"message": f"who is {KEY}?"}}))
    with pytest.raises(BrainError, match=r"who is \[ANTHROPIC_API_KEY\]"):
        brain.chat(user("Hi"), max_tokens=2)


# The real ones, where they are


@pytest.mark.ollama
def test_a_real_ollama_answers() -> None:
    import ollama as client

    try:
        models = [m.model for m in client.list().models if m.model]
    except (ConnectionError, client.ResponseError):
        pytest.skip("no Ollama listens")
    if not models:
        pytest.skip("Ollama has no model")
    brain: Any = connect(f"ollama:{models[0]}", window=1024)
    reply = brain.chat(user("Is fire hot?"), schema=SCHEMA, max_tokens=60, seed=1)[0]
    assert reply.prompt_tokens > 0 and json.loads(reply.text)["answer"] in ("yes", "no")
    with pytest.raises(ContextOverflow):
        brain.chat(user(DENSE * 2), max_tokens=8)
    brain.unload()
    assert not any(m.model == models[0] for m in client.ps().models)


@pytest.mark.api
@pytest.mark.parametrize(
    ("name", "key"),
    [("openai:gpt-6-luna", "OPENAI_API_KEY"), ("anthropic:claude-haiku-5-5", "ANTHROPIC_API_KEY")],
)
def test_a_real_api_answers(name: str, key: str) -> None:
    code = (
        "import json, sys; from loop.brains import connect; from loop.trial import Message\n"
        "r = connect(sys.argv[1]).chat([Message('user', ('Is fire hot?',))], max_tokens=60, "
        "schema=json.loads(sys.argv[2]))[0]; print(r.dollars > 0, r.text)"
    )
    if not os.environ.get(key):
        pytest.skip(f"{key} is not set")
    command = [sys.executable, "-c", code, name, json.dumps(SCHEMA)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith("True {")
