"""`scripted:FILE.jsonl`: a brain that replays replies from a file. The public test double.

A line is a Reply in JSON, of which only `text` is required, so a reply copied out of a ledger is a
script already. Lines are replayed in order and round again; n > 1 takes the next n lines.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from loop.errors import BrainError, ContextOverflow, UsageError
from loop.trial import Json, Message, RecordError, Reply, from_json


class Scripted:
    """Replies from a list. `position`: replies consumed so far, which is what a resume restores."""

    def __init__(
        self, name: str, digest: str, script: Sequence[Reply], *, window: int, position: int
    ):
        self.name, self.digest, self.window = name, digest, window
        self.script, self.position = tuple(script), position

    def count(self, text: str) -> int:
        """Tokens of `text`, estimated at four characters each and rounded up."""
        return -(-len(text) // 4)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        temperature: float = 0.0,
        max_tokens: int = 512,
        seed: int = 0,
        schema: Json | None = None,
        stop: Sequence[str] = (),
        logprobs: int = 0,
    ) -> tuple[Reply, ...]:
        """The next `n` replies, whatever is asked. Raises ContextOverflow as a real brain does."""
        prompt = sum(self.count(message.content) for message in messages)
        if prompt + max_tokens > self.window:
            raise ContextOverflow(
                f"{self.name}: prompt ({prompt} tokens) and reply ({max_tokens}) do not fit the "
                f"window of {self.window}: show less, or give a larger window"
            )
        return tuple(self._next(prompt) for _ in range(n))

    def _next(self, prompt: int) -> Reply:
        reply = self.script[self.position % len(self.script)]
        self.position += 1
        return dataclasses.replace(
            reply,
            prompt_tokens=reply.prompt_tokens or prompt,
            completion_tokens=reply.completion_tokens or self.count(reply.text),
        )


def load(model: str, *, start: int = 0, window: int = 32768) -> Scripted:
    """Path of a JSON-lines file -> brain, `start` replies into the script.

    Blank lines are skipped. Raises UsageError if there is no such file, and BrainError (file and
    line) if it is empty or a line is not a reply.
    """
    try:
        raw = Path(model).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the script {model}: {error.strerror}") from None
    script = [
        _reply(line, f"{model}:{number}")
        for number, line in enumerate(raw.split(b"\n"), 1)
        if line.strip()
    ]
    if not script:
        raise BrainError(f'{model} holds no reply: write one {{"text": "..."}} a line')
    digest = hashlib.sha256(raw).hexdigest()
    return Scripted(f"scripted:{model}", digest, script, window=window, position=start)


def _reply(line: bytes, where: str) -> Reply:
    try:
        reply: Reply = from_json(Reply, json.loads(line), where)
    except RecordError as error:
        raise BrainError(f"{error}; a line is an object with the key text") from None
    except (ValueError, RecursionError):
        raise BrainError(f"{where} is not JSON; a line is an object with the key text") from None
    return reply
