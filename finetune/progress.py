"""What a training says while it runs, and how it ends when it is interrupted."""

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupt:
    """Ctrl-C once: finish the step, write a checkpoint, stop. Twice: at once, without one."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Interrupt":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def callback(interrupt: Interrupt, tell: Callable[[str], None]) -> Any:
    """A trainer's callback: a line a few steps with speed and time left; stops when asked to."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc,unused-ignore]
        began = 0.0
        first = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began, self.first = time.monotonic(), state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if interrupt.asked:
                control.should_save = control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs or not state.is_world_process_zero:
                return
            done = state.global_step - self.first
            seconds = time.monotonic() - self.began
            left = seconds / max(done, 1) * (state.max_steps - state.global_step)
            tell(
                f"step {state.global_step}/{state.max_steps} · loss {float(logs['loss']):.4f} · "
                f"{seconds / max(done, 1):.1f} s a step · {duration(left)} left"
            )

    return Progress()


def duration(seconds: float) -> str:
    """12 s, 3 min, 1 h 05 min."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
