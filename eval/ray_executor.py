"""A plan on a Ray cluster: a run is a task, on whatever machine has room for it.

Tasks are submitted seed by seed, so that the runs of a pair come at about the same time and a
cluster that drifts hurts all arms alike. A task whose worker or machine is lost is begun anew by
Ray, and its run goes on from its ledger: lost is the trial in flight. It never has two writers: a
task holds the run's lock while it writes, and waits for that of its predecessor.

Machines share one thing, OUT, and a task checks that before it writes. What it has to tell comes by
way of an actor on the machine of `eval`, which also says when to stop.
Ray's own words: https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html
"""

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval import lock
from eval import plan as plans
from eval.forked import STORE
from eval.progress import Note
from eval.words import count
from eval.worker import Job, Shared, Stop, Tell, take_turns
from loop import secrets, target
from loop.errors import AutoresearchError, UsageError
from loop.trial import Json

RETRIES = 8
"""How often a run's worker may be lost."""
LEASE_S = 120.0
"""Longer than a file server keeps the locks of a machine that is gone."""
_POLL_S, _ABANDON_S, _KNOCK_S = 0.2, 5.0, 10.0
_STARTS = 3  # its parts must come up in 15 s, which a busy machine may miss
_STORE_BYTES = 100 * 2**20  # of Ray's own shared memory: runs hand nothing on by it
_UNITS = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


@contextmanager
def connected(job: Job) -> Iterator[int]:
    """A Ray cluster: the one that $RAY_ADDRESS names, or else this machine. How many runs it has
    room for at once; 0: there is no such machine yet. Raises UsageError, AutoresearchError."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no figures to Ray's makers
    if address == "local":
        # Its ports are open to the network: nobody without the token. Read when ray is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--executor ray needs the package ray: pip install 'local-autoresearch[ray]'"
        ) from None
    needs = _needs(job)
    try:
        _connect(address)
        room = _room(ray.nodes(), needs)
        if address == "local" and not room:
            raise UsageError(
                f"a run needs {_said(needs)}, more than this machine has; say less with "
                "--cpus-per-run and --gpus-per-run, or name a cluster in RAY_ADDRESS"
            )
        yield room
    finally:
        ray.shutdown()


def execute(job: Job, tell: Tell, stop: Stop) -> None:
    """Every run that is not complete, as a task. See `eval.execute` for `tell` and `stop`."""
    import ray

    here, needs = ray.get_runtime_context().get_node_id(), _needs(job)
    board = _board(here)
    task = ray.remote(max_calls=1, max_retries=RETRIES, **needs)(_run)
    job = _abroad(job)
    left = {task.remote(job, arm.name, seed, board, here): (arm.name, seed)
            for seed in job.seeds for arm in job.todo(seed)}  # fmt: skip
    if not _room(ray.nodes(), needs):
        lacks = f"no machine of the cluster has {_said(needs)}: waiting for one"
        tell(Note("", 0, "line", lacks))
    begun: set[tuple[str, int]] = set()
    halted = False
    try:
        while left:
            if stop() and not halted:
                halted = True
                ray.get(board.halt.remote())
                _cancel([task for task, run in left.items() if run not in begun])
            done, _ = ray.wait(list(left), timeout=_POLL_S)
            for note in ray.get(board.take.remote()):
                begun.add((note.arm, note.seed))
                tell(note)
            for one in done:
                if lost := _lost(one):
                    tell(Note(*left[one], "stopped", lost))
                del left[one]
    finally:
        _cancel(list(left))
        _, stubborn = ray.wait([*left, board.halt.remote()], num_returns=len(left) + 1,
                               timeout=_ABANDON_S)  # fmt: skip
        for one in stubborn:
            ray.cancel(one, force=True)


class Board:
    """Where tasks pin what they tell, and read whether to stop: an actor."""

    def __init__(self) -> None:
        self._notes: list[Note] = []
        self._halted = False
        self._down: set[str] = set()

    def tell(self, note: Note) -> None:
        self._notes.append(note)

    def take(self) -> list[Note]:
        """What was told since the last time."""
        taken, self._notes = self._notes, []
        return taken

    def halt(self) -> None:
        self._halted = True

    def halted(self) -> bool:
        return self._halted

    def down(self, arms: Sequence[str] = ()) -> set[str]:
        """All arms whose brain failed, with `arms`."""
        self._down |= set(arms)
        return self._down


def _run(job: Job, name: str, seed: int, board: Any, home: str) -> None:
    """The task: one run, in a process that Ray starts for it. `home`: the node of `eval`."""
    import ray

    secrets.hide()
    node, host = ray.get_runtime_context().get_node_id(), socket.gethostname()

    def tell(note: Note) -> None:
        text = f"{host}: {note.text}" if note.kind == "stopped" else note.text
        _answer(board.tell.remote(replace(note, text=text)))

    def stop() -> bool:
        return bool(_answer(board.halted.remote()))

    with tempfile.TemporaryDirectory() as scratch:
        # SQLite's store is for processes of one machine.
        store = None if node == home else Path(scratch) / STORE
        down = _answer(board.down.remote())
        shared = Shared(job, tell, down, place=_place(host, node), store=store)
        try:
            check_shared(job, host)
            with _writing(job, name, seed):
                take_turns(job, [job.plan.arm(name)], seed, tell, stop, shared)
        except AutoresearchError as error:
            tell(Note(name, seed, "stopped", " ".join(str(error).split())))
        finally:
            shared.close()
        _answer(board.down.remote(sorted(shared.down)))


def _answer(asked: Any) -> Any:
    """What the board answers. Not by `ray.get`: a task that waits there lends its CPU to others."""
    return asked.future().result()


def check_shared(job: Job, host: str) -> None:
    """OUT is the folder in which `eval` works, and its locks hold here. Raises UsageError."""
    out = job.args.out
    try:
        same = plans.fixed(out).plan.hash == job.plan.hash
        held = lock.take(out / lock.EVAL) if same else None
    except (UsageError, OSError):
        same, held = False, None
    if not same:
        raise UsageError(
            f"{out} is not there, or another one than where eval was started: name an --out on "
            "storage that all machines of the cluster share, under the same path"
        )
    if held is not None:
        os.close(held)
        raise UsageError(
            f"the lock that eval holds in {out} does not hold on {host}: name an --out on storage "
            "whose locks (flock) are shared, as those of NFS 4 are"
        )


@contextmanager
def _writing(job: Job, name: str, seed: int) -> Iterator[None]:
    """One task at a time writes a run: one that Ray gave up may still be on its way out."""
    held = lock.take(job.args.out / "locks" / f"{name}-{seed}", LEASE_S)
    if held is None:
        raise AutoresearchError(
            f"another process has been writing this run for {LEASE_S:.0f} s: end it, or wait"
        )
    try:
        yield
    finally:
        os.close(held)


def _connect(address: str) -> None:
    """Join the cluster at `address`, or start one of this machine. Raises AutoresearchError."""
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        quiet |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    else:
        _knock(address)
    for left in reversed(range(_STARTS if address == "local" else 1)):
        try:
            ray.init(address, **quiet)
            return
        except Exception as error:  # what Ray raises when it does not come up is this very class
            said = " ".join(str(error).split())
            ray.shutdown()
            if not left:
                raise AutoresearchError(
                    f"no Ray cluster at {address}: {said}; try again when the machine is less busy"
                ) from None


def _knock(address: str) -> None:
    """Does anyone listen there? Ray itself would ask for minutes. Raises AutoresearchError."""
    if address.startswith("ray://"):
        raise UsageError(f"RAY_ADDRESS is {address}: run eval on a machine of the cluster itself")
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"RAY_ADDRESS is {address}: write HOST:PORT, auto or local")
    try:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
    except OSError as error:
        raise AutoresearchError(
            f"no Ray cluster at RAY_ADDRESS {address}: {error}; start one (ray start --head), or "
            "unset it for one on this machine"
        ) from None


def _needs(job: Job) -> dict[str, float]:
    """What a run takes of its machine, as options of a Ray task."""
    plan, args = job.plan, job.args
    gpus = args.gpus_per_run
    if gpus < 0:
        found = target.load(plans.target_folder(plan, job.base), plan.profile, plan.variant)
        gpus = float(bool(found.vram_mb) or found.profile not in ("", "cpu"))
    needs = {"num_cpus": args.cpus_per_run, "num_gpus": gpus}
    return needs | ({"memory": args.memory_mb * 2**20} if args.memory_mb else {})


def _said(needs: dict[str, float]) -> str:
    return ", ".join(f"{need:g} {_UNITS[name]}" for name, need in needs.items() if need)


def _room(nodes: list[dict[str, Any]], needs: dict[str, float]) -> int:
    """How many runs the machines have room for at once."""
    has = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(
        min(int(one.get(_UNITS[name], 0) / need) for name, need in needs.items() if need)
        for one in has
    )


def _abroad(job: Job) -> Job:
    """The job as it is understood on another machine: whole paths, no more threads than CPUs."""
    threads = job.args.threads or max(1, int(job.args.cpus_per_run))
    return replace(job, args=replace(job.args, out=job.args.out.absolute(), threads=threads))


def _board(here: str) -> Any:
    """A board on this machine: it is lost when `eval` is, and not before."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    on = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=on)(Board).remote()


def _place(host: str, node: str) -> Json:
    """Which machine this is, and which GPU of it."""
    import ray

    ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    kinds = next(one["Resources"] for one in ray.nodes() if one["NodeID"] == node)
    kind = next((key.partition(":")[2] for key in kinds if key.startswith("accelerator_type:")), "")
    return {"host": host} | ({"gpu": f"{kind or 'GPU'} {','.join(ids)}"} if ids else {})


def _lost(task: Any) -> str:
    """Why a task did not end by itself; "": it did, or was cancelled."""
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

    try:
        ray.get(task)
    except TaskCancelledError:
        return ""
    except RayTaskError:
        raise  # a bug of ours
    except RayError as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        return f"its worker was lost {count(RETRIES + 1, 'time')} ({said[0]})"
    return ""


def _cancel(tasks: Sequence[Any]) -> None:
    """Those that wait never begin, those at work abandon their trial."""
    import ray

    for task in tasks:
        ray.cancel(task)
