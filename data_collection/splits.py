"""Which run goes to which split: whole groups, never rows.

A group is what would leak if it were divided. By target: runs of one target, and runs that met the
same code, whatever their targets are called. By run: the run alone; then a split shows how well a
model does on targets that it has seen, and no more.
"""

import hashlib
from collections.abc import Iterable, Sequence

SPLITS = ("train", "validation", "test")


def groups(targets: Sequence[str], ties: Iterable[tuple[int, int]], by: str) -> list[int]:
    """The group of each run, by its smallest member. `targets`: of each run; `ties`: pairs."""
    head = list(range(len(targets)))

    def root(run: int) -> int:
        while head[run] != run:
            head[run] = head[head[run]]
            run = head[run]
        return run

    def tie(a: int, b: int) -> None:
        low, high = sorted((root(a), root(b)))
        head[high] = low

    if by == "target":
        first: dict[str, int] = {}
        for run, target in enumerate(targets):
            tie(first.setdefault(target, run), run)
        for a, b in ties:
            tie(a, b)
    return [root(run) for run in range(len(targets))]


def assign(
    group_of: Sequence[int], names: Sequence[str], validation: float, test: float, seed: int
) -> dict[int, str]:
    """Group -> split, by the order of a hash of the group's first run and `seed`.

    Each share asks for at least one group, train keeps at least one, and validation comes before
    test where there are too few.
    """
    found = sorted(
        set(group_of), key=lambda g: hashlib.sha256(f"{seed}/{names[g]}".encode()).hexdigest()
    )
    spare = len(found) - 1
    for_validation = min(spare, max(1, round(validation * len(found)))) if validation else 0
    spare -= for_validation
    for_test = min(spare, max(1, round(test * len(found)))) if test else 0
    order = ["validation"] * for_validation + ["test"] * for_test
    order += ["train"] * (len(found) - len(order))
    return dict(zip(found, order, strict=True))
