"""A plan on real Ray clusters of this machine: workers and a node are killed, the table stays."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from eval import headtohead, lock
from eval.plan import fix, read
from eval.ray_executor import check_shared
from eval.results import load, problems
from eval.worker import EvalArgs, Job
from loop.errors import UsageError
from loop.ledger import LEDGER, trials
from loop.ledger import read as records
from loop.trial import Event
from tests.conftest import Cli, outside
from tests.test_eval_execute import BARE, NOBODY, begin, comparable, seeded, wait_for, write
from tests.test_eval_execute import command as local

pytest.importorskip("ray", reason="the extra `ray` is not installed")
RUN = "runs/random_edit/0"
Begin = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def place(toy: Path) -> Path:
    return seeded(toy)


@pytest.fixture
def on_ray() -> Iterator[Begin]:
    """`eval --executor ray`, begun; whatever becomes of the test, none of it outlives it."""
    begun = []

    def start(place: Path, **env: str) -> "subprocess.Popen[str]":
        begun.append(begin(place, "--executor", "ray", **env))
        return begun[-1]

    yield start
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def command(place: Path, *more: object) -> list[str]:
    return local(place, "--executor", "ray", *more)


def table(out: Path) -> object:
    """The report's results: the league, the contrasts and the answers, without clocks."""
    found = headtohead.compare(out)
    return found.league, found.contrasts, found.answers


def placed(run: Path) -> list[Event]:
    return [r for r in records(run) if isinstance(r, Event) and r.name == "placed"]


def unplaced(out: Path) -> dict[str, list[object]]:
    return {
        run: [r for r in found if not (isinstance(r, Event) and r.name == "placed")]
        for run, found in comparable(out).items()
    }


def writer(run: Path, process: "subprocess.Popen[str]") -> psutil.Process:
    """The process that writes a run, once that is some trials old and far from its end."""

    def at_work() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return (run / LEDGER).exists() and len(trials(run)) > 2

    wait_for(at_work, 240.0)  # Ray has to come up first
    return psutil.Process(int((run / "lock").read_text()))


def alone(place: Path, run_cli: Cli) -> Path:
    """The plan executed without Ray, in `place`/whole."""
    done = run_cli(*local(place))
    assert done.returncode == 0, done.stderr
    return (place / "out").rename(place / "whole")


def test_a_killed_worker_changes_nothing_in_the_table(
    place: Path, run_cli: Cli, on_ray: Begin
) -> None:
    write(place, 2, 8)
    whole, out = alone(place, run_cli), place / "out"
    process = on_ray(place)
    worker = writer(out / RUN, process)
    worker.kill()
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert said.count("complete") == 4 and "goes on after trial" in said, said
    assert len(placed(out / RUN)) == 2 and len(placed(out / "runs/random_search/1")) == 1
    assert placed(out / RUN)[0].data == {"host": os.uname().nodename}
    assert table(out) == table(whole) and unplaced(out) == comparable(whole)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs and two nodes with one each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # before ray is imported
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_lost_node_changes_nothing_in_the_table(
    place: Path, run_cli: Cli, on_ray: Begin, cluster: Any
) -> None:
    write(place, 2, 8)
    whole, out = alone(place, run_cli), place / "out"
    process = on_ray(place, RAY_ADDRESS=cluster.address)
    raylet = writer(out / RUN, process).parent()
    assert raylet is not None and raylet.name() == "raylet"
    for process_of_node in (raylet, *raylet.children(recursive=True)):
        process_of_node.kill()
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert len(placed(out / RUN)) > 1 and "goes on after trial" in said
    assert table(out) == table(whole) and unplaced(out) == comparable(whole)


@pytest.mark.slow
def test_ctrl_c_ends_the_tasks_and_another_executor_goes_on(
    place: Path, run_cli: Cli, on_ray: Begin
) -> None:
    write(place, 2, 40)
    out = place / "out"
    process = on_ray(place)
    worker = writer(out / RUN, process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 130 and "go on with the same command" in said, said
    wait_for(lambda: not worker.is_running())
    before = unplaced(out)
    assert before["runs/random_edit/0"] and "stopped" not in said
    write(place, 2, 12)
    done = run_cli(*local(place, "--amend", "forty were too many"))
    assert done.returncode == 0, done.stderr
    after = unplaced(out)
    assert all(after[run][: len(found)] == found for run, found in before.items())
    assert load(out).left_out


@pytest.mark.slow
def test_terminated_it_abandons_what_is_in_flight(place: Path, on_ray: Begin) -> None:
    write(place, 2, 60)
    process = on_ray(place)
    worker = writer(place / "out" / RUN, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 130 and "abandoned" in said, said
    wait_for(lambda: not worker.is_running())


@pytest.mark.slow
def test_a_run_keeps_what_it_takes_and_an_arm_that_is_down_stops_no_other(
    place: Path, run_cli: Cli
) -> None:
    write(place, 2, 1, BARE.format(brain="openai:x", more=f'base_url = "{NOBODY}"'))
    whole = os.cpu_count()
    done = run_cli(*command(place, "--patience", 0, "--cpus-per-run", whole))
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "2 runs not complete (bare/0, bare/1)" in done.stderr
    found = problems(place / "out")
    assert list(found) == ["bare/0"], "an arm that is down is not asked again"
    assert found["bare/0"].startswith(f"{os.uname().nodename}: "), "where it was"
    words = [line.split() for line in done.stdout.splitlines()]
    ends = [w[3] for w in words if w[1:2] == ["seed"] and w[3] in ("placed", "done", "stopped")]
    run = ["placed", "done"]
    assert ends == [*run, *run, "stopped", *run, *run], "one after the other"


@pytest.mark.parametrize(
    ("more", "address", "status", "said"),
    [
        (["--cpus-per-run", "0"], "", 2, "--cpus-per-run is 0, not above 0"),
        (["--gpus-per-run", "1.5"], "", 2, "--gpus-per-run is 1.5: above 1 it is whole"),
        ([], "ray://far:10001", 2, "on a machine of the cluster itself"),
        ([], "nowhere", 2, "write HOST:PORT, auto or local"),
        ([], "127.0.0.1:9", 1, "no Ray cluster at RAY_ADDRESS 127.0.0.1:9: "),
    ],
)
def test_wrong_usage(
    place: Path, run_cli: Cli, more: list[str], address: str, status: int, said: str
) -> None:
    write(place)
    done = run_cli(*command(place, *more), RAY_ADDRESS=address)
    assert done.returncode == status and said in done.stderr and done.stderr.count("\n") == 1
    assert not (place / "out" / "runs").exists()


@pytest.mark.slow
def test_a_machine_that_is_too_small_says_so(place: Path, run_cli: Cli) -> None:
    write(place)
    done = run_cli(*command(place, "--cpus-per-run", 999))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "a run needs 999 CPU, more than this machine has" in done.stderr
    assert not (place / "out" / "runs").exists()


def test_a_worker_that_does_not_see_the_folder_or_its_lock_says_so(place: Path) -> None:
    plan, text = read(write(place))
    job = Job(plan, place, EvalArgs(place / "plan.toml", place / "out"))
    with pytest.raises(UsageError, match="storage that all machines of the cluster share"):
        check_shared(job, "far")
    fix(plan, text, place, place / "out")
    with pytest.raises(UsageError, match="does not hold on far"):
        check_shared(job, "far")
    held = lock.take(place / "out" / lock.EVAL)
    assert held is not None
    check_shared(job, "far")
    with pytest.raises(UsageError, match="or another one"):
        check_shared(replace(job, plan=replace(plan, trials=9)), "far")
    os.close(held)


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from eval import lock\n"
    code += "print(lock.take(Path(sys.argv[1])), flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "deep" / "lock")], env=outside(),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout and holder.stdout.readline()
    assert lock.take(tmp_path / "deep" / "lock") is None
    assert lock.take(tmp_path / "deep" / "lock", patience=0.3) is None
    holder.kill()
    ours = lock.take(tmp_path / "deep" / "lock", patience=60)
    assert ours is not None
    os.close(ours)
    holder.communicate()
