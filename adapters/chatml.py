"""A ChatML template in Ollama's language, read off what the base's own template renders.

Ollama's templates are Go's, a GGUF carries Jinja. ChatML differs between models only in the system
prompt that is put first when there is none, and in what the answer begins with; both can be seen in
one rendering. Any other format is left to Ollama, and the prompt gate tells whether it got it
right. Source: Ollama, docs/template.md.
"""

import re
from collections.abc import Sequence

PROBE = "a question"
FORM = re.compile(
    r"(?:<\|im_start\|>system\n(?P<system>(?:(?!<\|im_end\|>).)*)<\|im_end\|>\n)?"
    rf"<\|im_start\|>user\n{PROBE}<\|im_end\|>\n<\|im_start\|>assistant\n(?P<begin>.*)",
    re.DOTALL,
)
STOP = ("<|im_end|>", "<|im_start|>")


def from_rendering(rendered: str) -> str | None:
    """The prompt of the one user message PROBE -> a Go template; None: it is not ChatML."""
    found = FORM.fullmatch(rendered)
    if found is None or "{{" in rendered:
        return None
    first = ""
    if (system := found["system"]) is not None:
        turn = f"<|im_start|>system\n{system}<|im_end|>\n"
        first = f'{{{{ if and (eq $i 0) (ne $m.Role "system") }}}}{turn}{{{{ end }}}}'
    return (
        f"{{{{ range $i, $m := .Messages }}}}{first}<|im_start|>{{{{ $m.Role }}}}\n"
        f"{{{{ $m.Content }}}}<|im_end|>\n{{{{ end }}}}<|im_start|>assistant\n{found['begin']}"
    )


def stops(template: str, end: str) -> Sequence[str]:
    """What ends an answer: the base's own end token, and ChatML's marks where it is that."""
    return tuple(dict.fromkeys([*([end] if end else []), *(STOP if STOP[0] in template else ())]))
