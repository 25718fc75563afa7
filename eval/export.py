"""Runs in the formats of other tools: a table of trials, and logs that Inspect's viewer opens.

W&B is an observer of a run while it goes on: `loop.tracking`.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.drift import proposals
from eval.summary import Summary, brain_seconds, improvement, kind, reason, score, trainer_seconds
from loop.errors import AutoresearchError, UsageError
from loop.files import write_atomic
from loop.trial import TAGS, Call, Json, Message, Reply, Trial

if TYPE_CHECKING:
    from inspect_ai.event import Event
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import ModelUsage

COLUMNS = {
    "run": "string", "arm": "string", "strategy": "string", "brain": "string", "seed": "int64",
    "trial": "int64", "parent": "int64", "commit": "string", "started": "string",
    "verdict": "string", "kind": "string", "outcome": "string", "reason": "string",
    "metric": "string", "direction": "string", "value": "double", "incumbent_value": "double",
    "gain": "double", "best_so_far": "double", "description": "string", "knobs": "string",
    "code_hash": "string", "judge": "string", "calls": "int64", "tokens_read": "int64",
    "tokens_cached": "int64", "tokens_written": "int64", "dollars": "double", "seconds": "double",
    "brain_seconds": "double", "trainer_seconds": "double", "spent_seconds": "double",
    "n_trials": "int64", "n_measurements": "int64",
}  # fmt: skip
"""One scalar a column. `spent_seconds`: of the trainer, up to and including the trial; `gain`: over
the incumbent, positive where better; `n_trials`: proposals of the run; `n_measurements`: further
runs of this trial's code. What is not known is null."""


def rows(summaries: Sequence[Summary]) -> Iterator[Json]:
    """One row a trial, the baselines included, with the keys of COLUMNS."""
    for run in summaries:
        for trial, best, spent in zip(run.trials, run.best_so_far, run.spent, strict=True):
            yield _row(run, trial) | {
                "best_so_far": best.value if best else None,
                "spent_seconds": spent,
            }


def table(summaries: Sequence[Summary], path: Path) -> int:
    """Write `rows` to `path`, by its ending Parquet or CSV; how many. Raises UsageError,
    AutoresearchError: it cannot be written."""
    import pyarrow as pa

    if path.suffix not in (".parquet", ".csv"):
        raise UsageError(f"--table {path}: a table ends in .parquet or .csv")
    found = list(rows(summaries))
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    cells = {name: [_whole(row[name]) for row in found] for name in COLUMNS}
    made = pa.table(cells, schema=schema)
    written = pa.BufferOutputStream()
    if path.suffix == ".csv":
        from pyarrow import csv

        csv.write_csv(made, written)
    else:
        from pyarrow import parquet

        parquet.write_table(made, written)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, written.getvalue().to_pybytes())
    except OSError as error:
        raise AutoresearchError(f"cannot write {path}: {error}; name another file") from None
    return len(found)


def _whole(value: Any) -> Any:
    """Text that UTF-8 can hold: a lone surrogate becomes a question mark."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _row(run: Summary, trial: Trial) -> Json:
    metric, before = score(trial), trial.context.incumbent_metric
    replies = [reply for call in trial.proposal.calls for reply in call.replies]
    prices = [reply.dollars for reply in replies if reply.dollars is not None]
    edit = trial.proposal.edit
    return {
        "run": run.name,
        "arm": run.arm,
        "strategy": run.info.get("strategy"),
        "brain": run.info.get("brain"),
        "seed": run.info.get("seed"),
        "trial": trial.id,
        "parent": trial.parent,
        "commit": trial.commit,
        "started": trial.started,
        "verdict": trial.decision.verdict,
        "kind": kind(trial),
        "outcome": TAGS[type(trial.outcome)],
        "reason": reason(trial),
        "metric": metric.name if metric else None,
        "direction": metric.direction if metric else None,
        "value": metric.value if metric else None,
        "incumbent_value": before.value if before else None,
        "gain": improvement(before, metric) if metric and before else None,
        "description": trial.proposal.description,
        "knobs": ", ".join(f"{k.knob}: {k.old} -> {k.new}" for k in edit.knobs) if edit else None,
        "code_hash": edit.code_hash if edit else None,
        "judge": trial.decision.judge,
        "calls": len(trial.proposal.calls),
        "tokens_read": sum(reply.prompt_tokens for reply in replies),
        "tokens_cached": sum(reply.cached_tokens for reply in replies),
        "tokens_written": sum(reply.completion_tokens for reply in replies),
        "dollars": sum(prices) if prices else None,
        "seconds": trial.seconds,
        "brain_seconds": brain_seconds(trial),
        "trainer_seconds": trainer_seconds(trial),
        "n_trials": run.proposed,
        "n_measurements": sum(m.trial == trial.id for m in run.measurements),
    }


def inspect_logs(summaries: Sequence[Summary], folder: Path) -> int:
    """Write the brain's conversations of each run to `folder` as a log of Inspect; how many logs.

    A sample a proposal, with every request and reply in order, and its metric and verdict as
    scores; a run that asked no brain has no log. Written by inspect_ai's own API in its format
    `eval`, for `inspect view --log-dir FOLDER`. Raises UsageError without the package.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError:
        raise UsageError(
            "--inspect needs the package inspect_ai: pip install 'local-autoresearch[inspect]'"
        ) from None
    written = 0
    for number, run in enumerate(summaries):
        if not _asked(run):
            continue
        name = re.sub(r"[^\w.]+", "-", _task(run))[:80]
        path = folder / f"{number:03d}-{name}.eval"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_eval_log(_log(run), str(path.absolute()), format="eval")
        except OSError as error:
            raise AutoresearchError(f"cannot write {path}: {error}; name another folder") from None
        written += 1
    return written


def _asked(run: Summary) -> list[Trial]:
    """The proposals that a brain was asked for."""
    return [trial for trial in proposals(run) if trial.proposal.calls]


def _task(run: Summary) -> str:
    """A run's name; one of a plan, which is named after its seed, is told apart by its arm."""
    return str(_whole(f"{run.arm} · {run.name}" if run.name.isdigit() else run.name))


def _log(run: Summary) -> "EvalLog":
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalResults,
        EvalScore,
        EvalSpec,
        EvalStats,
    )  # fmt: skip
    from inspect_ai.viewer import ViewerConfig

    asked = _asked(run)
    kept = sum(trial.decision.verdict == "keep" for trial in asked)
    model = _whole(asked[0].proposal.model or str(run.info.get("brain", "")))
    calls = [call for trial in asked for call in trial.proposal.calls]
    rate = EvalMetric(name="kept", value=kept / len(asked))
    valid = EvalMetric(name="valid", value=sum(score(t) is not None for t in asked) / len(asked))
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=asked[0].started,
            task=_task(run),
            task_id=_task(run),
            run_id=_task(run),
            dataset=EvalDataset(name=str(run.info.get("target", {}).get("name", "target")),
                                samples=len(asked)),
            model=model,
            viewer=ViewerConfig(trust_content=False),  # a model's words: shown, never rendered
            config=EvalConfig(),
            metadata={"arm": run.arm, "strategy": run.info.get("strategy"),
                      "seed": run.info.get("seed"), "judge": run.info.get("judge")},
        ),
        results=EvalResults(
            total_samples=len(asked),
            completed_samples=len(asked),
            scores=[EvalScore(name="verdict", scorer="judge",
                              metrics={"kept": rate, "valid": valid})],
        ),
        stats=EvalStats(started_at=asked[0].started, completed_at=asked[-1].started,
                        model_usage={model: _usage(calls)}),
        samples=[_sample(trial) for trial in asked],
    )  # fmt: skip


def _sample(trial: Trial) -> "EvalSample":
    """One proposal; what no text can say (the outcome, the evidence) is its metadata."""
    from inspect_ai.log import EvalSample
    from inspect_ai.scorer import Score

    calls, model = trial.proposal.calls, _whole(trial.proposal.model) or "brain"
    metric, change = score(trial), _whole(trial.proposal.description)
    why = _whole(trial.decision.reason)
    scores = {"verdict": Score(value=kind(trial), answer=change, explanation=why)}
    if metric:
        scores[metric.name] = Score(value=metric.value)
    conversation = [said for call in calls for said in _said(call)]
    return EvalSample(
        id=trial.id,
        epoch=1,
        input=[_message(message) for message in calls[0].messages],
        target="",
        messages=conversation,
        output=_output(model, calls[-1]),
        events=list(_events(trial, model)),
        scores=scores,
        metadata={
            "description": change,
            "outcome": TAGS[type(trial.outcome)],
            "reason": reason(trial),
            "parent": trial.parent,
            "commit": trial.commit,
        },
        model_usage={model: _usage(calls)},
        total_time=trial.seconds,
        working_time=brain_seconds(trial),
    )


def _events(trial: Trial, model: str) -> Iterator["Event"]:
    """The requests as the viewer's transcript shows them, one after the other."""
    from inspect_ai.event import ModelEvent
    from inspect_ai.model import GenerateConfig

    spent = 0.0
    for call in trial.proposal.calls:
        seconds = sum(reply.seconds for reply in call.replies)
        began = datetime.fromisoformat(trial.started) + timedelta(seconds=spent)
        yield ModelEvent(
            timestamp=began,
            completed=began + timedelta(seconds=seconds),
            working_start=spent,
            working_time=seconds,
            model=model,
            input=[_message(message) for message in call.messages],
            tools=[],
            tool_choice="none",
            config=GenerateConfig(
                temperature=call.temperature, max_tokens=call.max_tokens, seed=call.seed,
                stop_seqs=list(call.stop) or None,
            ),
            output=_output(model, call),
            metadata={"purpose": call.purpose},
        )  # fmt: skip
        spent += seconds


def _usage(calls: Sequence[Call]) -> "ModelUsage":
    from inspect_ai.model import ModelUsage

    replies = [reply for call in calls for reply in call.replies]
    read = sum(reply.prompt_tokens for reply in replies)
    written = sum(reply.completion_tokens for reply in replies)
    return ModelUsage(
        input_tokens=read, output_tokens=written, total_tokens=read + written,
        input_tokens_cache_read=sum(reply.cached_tokens for reply in replies),
    )  # fmt: skip


def _said(call: Call) -> Iterator[Any]:
    """The messages of a request and each of its replies, as Inspect's chat messages."""
    yield from map(_message, call.messages)
    yield from map(_reply, call.replies)


def _reply(reply: Reply) -> Any:
    from inspect_ai.model import ChatMessageAssistant, ContentReasoning, ContentText

    text = _whole(reply.text)
    if not reply.reasoning:
        return ChatMessageAssistant(content=text)
    thought = ContentReasoning(reasoning=_whole(reply.reasoning))
    return ChatMessageAssistant(content=[thought, ContentText(text=text)])


def _message(message: Message) -> Any:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser,
             "assistant": ChatMessageAssistant}  # fmt: skip
    return kinds[message.role](content=_whole(message.content))


def _output(model: str, call: Call) -> Any:
    """A request's replies as choices."""
    from inspect_ai.model import ChatCompletionChoice, ModelOutput

    stops: dict[str, Any] = {"stop": "stop", "length": "max_tokens", "tool_call": "tool_calls"}
    choices = [
        ChatCompletionChoice(message=_reply(reply), stop_reason=stops.get(reply.finish, "unknown"))
        for reply in call.replies
    ]
    seconds = sum(reply.seconds for reply in call.replies)
    return ModelOutput(model=model, choices=choices, usage=_usage([call]), time=seconds)
