"""The one command: a verb, and the room that does it. No logic here.

Exit status: 0 done, 1 the work failed (one line says what, where and what to try next), 2 wrong
usage, 130 interrupted (all finished trials are on the disk).
"""

import sys
from collections.abc import Sequence
from importlib import import_module

VERBS = {
    "doctor": ("loop.doctor:run", "what this machine can do, and what to do about each lack"),
    "demo": ("eval.demo:run", "the whole story on this machine with the embedded brain"),
    "run": ("eval.after:run", "propose, train, keep or discard, and again"),
    "report": ("eval.report:run", "runs -> one self-contained HTML page"),
    "import": ("data_collection.importer:run", "somebody else's run -> a run folder"),
    "collect": ("data_collection.collect:run", "runs -> a corpus that `datasets` opens"),
    "finetune": ("finetune.train:run", "rows of a corpus -> an adapter"),
    "adapters": ("adapters.__main__:run", "an adapter -> GGUF or Ollama, past its gates"),
    "eval": ("eval.execute:run", "a plan of arms and seeds, executed; goes on where it stopped"),
    "power": ("eval.power:run", "how many seeds an effect needs, from noise or pilot runs"),
    "watch": ("eval.watch:run", "the pages of a running loop or plan, live, on this machine"),
    "costs": ("eval.costs:run", "what an experiment costs: API, own GPU, rented GPU"),
}
USAGE = "autoresearch VERB [--help]\n\n" + "\n".join(
    f"  {verb:8s} {text}" for verb, (_, text) in VERBS.items()
)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    from loop.errors import ending

    return ending(_do, argv)


def _do(argv: Sequence[str]) -> int:
    from loop.errors import choose

    verb = choose("verb", argv[0], list(VERBS))
    module, _, function = VERBS[verb][0].partition(":")
    return int(getattr(import_module(module), function)(argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
