"""Run many experiments from one process: torch is imported once, each experiment is a fork of it.

    python forked.py

Each line on standard input is a JSON object: `folder` (a copy of the target; train.py in it is run
there), `env` (what the experiment is told), `log` (file of its output), `split` (the text it is
scored on). Each line on standard output: {"status": exit status}. What the experiment measured lies
in the folder's result.json, as ever; its val_bpb is that of `split`.

Not part of an experiment, and no box: it is for edits that our own code wrote, knobs by their
values, never for code that a model wrote.
"""

# mypy: allow-untyped-calls

import json
import os
import sys
from typing import Any, NoReturn


def main() -> None:
    import safetensors.torch  # noqa: F401

    import evaluate
    import flops  # noqa: F401
    import run  # noqa: F401  (and with it torch)

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            experiment(job, evaluate.bits_per_byte)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), file=answers)


def experiment(job: dict[str, Any], bits_per_byte: Any) -> NoReturn:
    """Be the experiment: its folder, its environment, its output; score it on its split."""
    import traceback

    status = 1
    try:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["env"])
        import run

        def score(model: Any, settings: Any, _: str, device: str) -> Any:
            return bits_per_byte(model, settings, job["split"], device)

        run.bits_per_byte = score  # type: ignore[assignment,attr-defined]
        with open("train.py", encoding="utf-8") as file:  # noqa: PTH123
            code = compile(file.read(), "train.py", "exec")
        exec(code, {"__name__": "__main__", "__file__": "train.py"})
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        print(error.code if isinstance(error.code, str) else "", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
