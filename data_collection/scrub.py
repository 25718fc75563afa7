"""What must not be in a corpus: secrets. Found by the shape that their issuers give them.

A match is replaced by `[redacted:kind]` and counted. It is a net with known holes: a password in
prose has no shape.
"""

import re
from functools import lru_cache
from typing import Any

_KINDS = {
    "aws-key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "github": r"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{60,}\b",
    "gitlab": r"\bglpat-[A-Za-z0-9_\-]{20,}\b",
    "huggingface": r"\bhf_[A-Za-z0-9]{30,}\b",
    "model-api": r"\bsk-(?:ant-|proj-|or-)?[A-Za-z0-9_\-]{20,}",
    "google": r"\bAIza[0-9A-Za-z_\-]{35}",
    "slack": r"\bxox[abprs]-[A-Za-z0-9\-]{10,}",
    "jwt": r"\beyJ[A-Za-z0-9_\-]{10,}\.eyJ[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{10,}",
    "private-key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    "password-in-url": r"(?<=://)[^/\s:@]+:[^/\s:@]{3,}(?=@)",
    "assigned": r"(?i:(?<=api_key)|(?<=apikey)|(?<=secret)|(?<=password)|(?<=token))"
    r"[\"']?\s*[:=]\s*[\"'][A-Za-z0-9+/_\-]{20,}[\"']",
}
_ANY = re.compile("|".join(f"(?P<{k.replace('-', '_')}>{p})" for k, p in _KINDS.items()), re.DOTALL)
_HINT = re.compile(
    r"AKIA|ASIA|gh[pousr]_|github_pat|glpat-|hf_|sk-|AIza|xox|eyJ|PRIVATE KEY|://|(?i:key|secret|pass"
    r"|token)"
)


def scrub(text: str) -> tuple[str, int]:
    """`text` without secrets, and how many there were."""
    return _scrub(text) if len(text) > 200 else _replace(text)


@lru_cache(maxsize=128)
def _scrub(text: str) -> tuple[str, int]:
    """Long texts repeat from row to row."""
    return _replace(text)


def _replace(text: str) -> tuple[str, int]:
    if not _HINT.search(text):
        return text, 0
    return _ANY.subn(lambda found: f"[redacted:{(found.lastgroup or '').replace('_', '-')}]", text)


def scrub_all(value: Any) -> tuple[Any, int]:
    """The same for every string in lists and dicts."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list):
        done = [scrub_all(item) for item in value]
        return [item for item, _ in done], sum(count for _, count in done)
    if isinstance(value, dict):
        pairs = {key: scrub_all(item) for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, sum(n for _, n in pairs.values())
    return value, 0
