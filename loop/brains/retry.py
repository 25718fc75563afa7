"""Ask a server again, where another try may mend it: transport faults, 429 and 5xx, nothing else.

The waits grow exponentially up to a cap, with jitter, and are never shorter than the server's own
Retry-After. A server that stays down is `ServerDown`, which pauses a run instead of ending it. The
vendors' clients have retries of their own, which are switched off: two layers would multiply.
"""

import os
import random
import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from loop.errors import BrainError, ContextOverflow, ServerDown
from loop.sandbox import keys_in_environment

T = TypeVar("T")

ATTEMPTS = 5
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
GIVE_UP_S = 60.0
"""Seconds after which the brain gives up: a run that waits can say so, and be stopped."""

_TOO_LONG = re.compile(
    r"context.(length|size|window)|prompt is too long|maximum context|exceed_context", re.IGNORECASE
)
_JITTER = random.Random()


class Fault(Exception):
    """A failure that another try may mend. `after`: seconds the server asked to wait, or 0."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def persist(ask: Callable[[], T], name: str) -> T:
    """`ask()`, again after each Fault. Raises ServerDown when it does not help."""
    began = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except Fault as fault:
            wait = max(fault.after, backoff(attempt))
            if attempt == ATTEMPTS or time.monotonic() - began + wait > GIVE_UP_S:
                raise ServerDown(f"{name} does not answer: {fault}", fault.after) from None
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def backoff(attempt: int) -> float:
    """Seconds to wait after failure number `attempt` (from 1): half of it is chance."""
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempt - 1))
    return longest * _JITTER.uniform(0.5, 1.0)


def refusal(
    name: str, status: int, said: str, *, key: str = "", headers: Mapping[str, str] | None = None
) -> Exception:
    """What an HTTP status that is not 2xx amounts to: a Fault, ContextOverflow or BrainError.

    `said`: the server's own message. `key`: the environment variable that holds the key.
    """
    if status in (408, 429) or status >= 500:
        return Fault(f"status {status}: {one_line(said)}", retry_after(headers or {}))
    if status in (401, 403) and key:
        what = "is not accepted" if os.environ.get(key) else "is missing"
        return BrainError(f"{name}: the key {what} (status {status}); set {key} to a valid one")
    if status in (400, 413) and _TOO_LONG.search(said):
        return ContextOverflow(
            f"{name}: {one_line(said)}; show less, or give a larger window with --window"
        )
    return BrainError(f"{name}: {one_line(said)} (status {status})")


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds of a Retry-After header, given as a number or as a date (RFC 9110, 10.2.3); or 0."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def one_line(text: object) -> str:
    """At most 300 characters of `text` on one line, with no key in it."""
    line = " ".join(str(text).split())
    for name in keys_in_environment():
        line = line.replace(os.environ[name], f"[{name}]")
    return line[:300]


def told_apart(
    api: Any, request: Callable[[], Any], where: object, status: Callable[[Any], Exception]
) -> Any:
    """`request()` of a vendor's client module `api`, its errors told apart: who may mend them?

    `openai` and `anthropic` come from one generator and name their errors alike. `status` turns a
    refusal into what is raised; `where` is the server's address. Raises Fault for what may pass.
    """
    try:
        return request()
    except api.APITimeoutError:
        raise Fault("no answer in time (--brain-timeout)") from None
    except api.APIConnectionError as error:
        reason = type(error.__cause__ or error).__name__
        raise Fault(f"no connection to {where} ({reason})") from None
    except api.APIStatusError as error:
        raise status(error) from None
    except (api.APIError, ValueError) as error:
        raise Fault(f"the answer broke off ({type(error).__name__})") from None
