"""A target with the trainer's contract that takes a tenth of a second: standard library only.

A text is rows of numbers, each drawn around 0.8 of the one before; the model predicts the next
number as `w` times the last, and `w` is learned in few steps. `fixed.py` owns budget, result,
evaluation and both ends of the audit's pipe, as the files of trainer/ do.
"""

import json
import random
from pathlib import Path

from loop.target import Target

TRAIN = """\
import math
from fixed import Run
#TOP
RATE = 0.05


def build(weights):
    def predict(xs):
        #MODEL
        return [weights["w"] * x for x in xs]
    return predict


def main():
    run, w = Run(), 0.0
    #START
    for xs in run.batches():
        #STEP
        error = sum((w * a - b) * a for a, b in zip(xs, xs[1:])) / len(xs)
        w -= RATE * error
    weights = {"w": w}
    #END
    run.finish(weights, build(weights))
    #AFTER


if __name__ == "__main__":
    main()
"""

FIXED = """\
import json, math, os, sys
STEPS = 20
TEXTS = os.path.join(os.environ["AUTORESEARCH_CACHE"], "texts")


def text(split):
    with open(f"{TEXTS}/{split}.json") as file:
        return json.load(file)


def loss(predict, rows):
    errors = [(p - b) ** 2 for xs in rows for p, b in zip(predict(xs[:-1]), xs[1:], strict=True)]
    return math.fsum(errors) / len(errors)


class Run:
    def __init__(self):
        self.spent, self.rows = 0, text("train")

    def batches(self):
        while self.spent < STEPS:
            yield self.rows[self.spent % len(self.rows)]
            self.spent += 1

    def finish(self, weights, predict):
        with open("weights.json", "w") as file:
            json.dump(weights, file)
        value = loss(predict, text("val"))
        result = {"metric": {"loss": value}, "measurements": {"spent": self.spent}}
        with open("result.json", "w") as file:
            json.dump(result, file)
        print(f"loss: {value}")


def remote(xs):
    os.write(ASK, json.dumps(xs).encode() + b"\\n")
    line = ANSWER.readline(2**20)
    values = json.loads(line)
    assert len(values) == len(xs) and all(isinstance(v, float) for v in values)
    return values


def audit(split, folder):
    with open(f"{folder}/weights.json") as file:
        weights = json.load(file)
    if not all(math.isfinite(v) for v in weights.values()):
        return {"invalid": "not_finite_weights", "detail": str(weights)}
    with open(f"{folder}/result.json") as file:
        if json.load(file)["measurements"].get("spent", 0) < STEPS:
            return {"invalid": "budget_not_spent", "detail": "too few steps"}
    rows = text(split)
    half = len(rows[0]) // 2
    for a, b in zip(rows[:8], rows[8:16]):
        spliced = remote(a[:half] + b[half:-1])
        if any(abs(p - q) > 1e-6 for p, q in zip(spliced[:half], remote(a[:-1]))):
            return {"invalid": "not_causal", "detail": "sees later numbers"}
    return {"metric": loss(remote, rows)}


if __name__ == "__main__":
    if sys.argv[1] == "audit":
        ASK, ANSWER = os.dup(1), os.fdopen(os.dup(0))
        os.dup2(2, 1)
        found = audit(sys.argv[2], sys.argv[3])
        with open("audit.json", "w") as file:
            json.dump(found, file)
    else:
        answer, ask = os.dup(1), os.fdopen(os.dup(0))
        os.dup2(2, 1)
        import train
        with open("weights.json") as file:
            predict = train.build(json.load(file))
        for line in ask:
            values = [float(v) for v in predict(json.loads(line))]
            os.write(answer, json.dumps(values).encode() + b"\\n")
"""

TOML = """\
name = "hostile"
editable = "train.py"
command = ["{python}", "train.py"]
audit = ["{python}", "fixed.py", "audit", "{split}", "{folder}"]
model = ["{python}", "fixed.py", "serve"]
imports = ["math", "fixed"]
timeout_s = 10
[metric]
name = "loss"
from = "result.json"
[fixed]
"fixed.py" = ""
[files]
train = ["{cache}/texts/train.json", "{cache}/texts/val.json"]
audit = ["{cache}/texts/audit.json"]
test = ["{cache}/texts/test.json"]
[knobs]
RATE = { low = 0.001, high = 1.0 }
"""


def write(folder: Path, cache: Path) -> None:
    """The target in `folder`, its texts under `cache`."""
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(TRAIN)
    (folder / "fixed.py").write_text(FIXED)
    (folder / "target.toml").write_text(TOML)
    texts = cache / "texts"
    texts.mkdir(parents=True)
    for number, split in enumerate(("train", "val", "audit", "test")):
        rng = random.Random(number)
        rows = []
        for _ in range(40):
            row = [rng.gauss(0, 1)]
            while len(row) < 24:
                row.append(0.8 * row[-1] + rng.gauss(0, 0.6))
            rows.append(row)
        (texts / f"{split}.json").write_text(json.dumps(rows))


def edited(**places: str) -> str:
    """train.py with code put in at TOP, MODEL, START, STEP, END or AFTER."""
    source = TRAIN
    for place, code in places.items():
        at = next(line for line in source.split("\n") if line.strip() == f"#{place}")
        indent = at[: at.index("#")]
        body = "\n".join(indent + line for line in code.strip("\n").split("\n"))
        source = source.replace(at, body, 1)
    return source


def target(folder: Path) -> Target:
    """The target in `folder`, as the loop understands it."""
    from loop.target import load

    return load(folder)
