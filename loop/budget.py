"""What one experiment may spend: seconds of training, or floating-point operations."""

import math
import re
from dataclasses import dataclass
from typing import Literal, Self


@dataclass(frozen=True)
class Budget:
    """`300s` (Karpathy's wall clock, training only) or `2e12flops` (repeatable on a busy machine).

    `str()` gives the form that was parsed, which is also what a target is told.
    """

    amount: float
    unit: Literal["s", "flops"]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError with a line that says which forms there are."""
        match = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*(?:[eE][+]?[0-9]+)?)\s*(s|flops)\s*", text)
        if not match or not 0 < float(match[1]) < math.inf:
            raise ValueError(f"budget '{text}' is neither seconds (300s) nor work (2e12flops)")
        return cls(float(match[1]), "s" if match[2] == "s" else "flops")

    def __str__(self) -> str:
        return f"{self.amount:.12g}{self.unit}"
