"""The pool of workers: whatever an item does, it ends, the others keep their results, and no process is left."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import hostile_items as hostile
import pytest
import warmed_items
from processes import wait_until

from steer_core.rewards.workers import Failure, WorkerPool, shared_pool

CPU = Failure("timed out", "no answer within the limit of processor time")
WALL = Failure("timed out", "no answer within the limit of the wall clock")
ENDS = {
    "spin": CPU,
    "exit": Failure("crashed", "exit 3"),
    "quit": Failure("crashed", "SystemExit: 4"),
    "segfault": Failure("crashed", "the process died of SIGSEGV"),
    "kill": Failure("crashed", "the process died of SIGKILL"),
    "garble": Failure("crashed", "the process died of SIGKILL"),
    "eat": Failure("crashed", "MemoryError:"),
    "one large": Failure("crashed", "MemoryError:"),
    "fail twice": Failure("crashed", "Unwritable: (its text cannot be written)"),
    "no json": Failure("crashed", "TypeError: Object of type object is not JSON serializable"),
    "babble": "said",
    "\x00\ud800 \u0663": "\x00\ud800 \u0663",
}


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(hostile.act, workers=2, timeout_s=60, cpu_s=1, memory_bytes=300 << 20) as pool:
        yield pool


def alive(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def script(text: str, *arguments, **options) -> subprocess.Popen:
    """A Python of its own that can import what tests can."""
    code = f"import sys; sys.path[:] = {sys.path!r}\n{textwrap.dedent(text)}"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **options)


def noted(path: Path) -> int:
    """The number of the process that wrote it to a file."""
    wait_until(lambda: path.exists() and path.read_text(), "a worker says which process it is")
    return int(path.read_text())


def test_every_hostile_item_ends_as_it_should_and_the_next_one_is_judged(pool):
    items = [item for name in ENDS for item in (name, "honest")]
    results = pool.map(items)
    assert results[1::2] == ["honest"] * len(ENDS)
    assert [r if isinstance(r, str) else Failure(r.status, r.detail.strip()) for r in results[::2]] == [*ENDS.values()]


@pytest.mark.parametrize("item", ["sleep", "stop"])
def test_what_takes_no_processor_time_ends_by_the_wall_clock(item):
    with WorkerPool(hostile.act, workers=1, timeout_s=2) as pool:
        assert pool.map([item, "honest"]) == [WALL, "honest"]


def test_an_exceptions_long_text_becomes_one_short_line(pool):
    failure, deep = pool.map(["fail", "recurse"])
    assert failure.status == deep.status == "crashed"
    assert failure.detail.startswith("ValueError: no no no")
    assert len(failure.detail) <= 200
    assert deep.detail.startswith("RecursionError: ")


def test_four_threads_get_their_own_results_in_order_and_no_process_is_left():
    got = {}
    with WorkerPool(hostile.act, workers=3, cpu_s=1) as pool:

        def ask(thread):
            items = [f"{thread}.{i}" for i in range(30)]
            items[7 + thread], items[20] = "segfault", ["exit", "kill", "spin", "no json"][thread]
            got[thread] = pool.map(items)

        threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        workers = _children(os.getpid())
        assert workers
    for thread, results in got.items():
        failed = {i for i, result in enumerate(results) if isinstance(result, Failure)}
        assert failed == {7 + thread, 20}
        assert all(result == f"{thread}.{i}" for i, result in enumerate(results) if i not in failed)
    assert _children(os.getpid()) == set()
    assert not any(map(alive, workers))


def _children(process: int) -> set[int]:
    """The workers of this file's pools that a process has started."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if stat.rpartition(")")[2].split()[1] == str(process) and "workers.py" in command:
            found.add(int(folder.name))
    return found - PRIOR


PRIOR: set[int] = set()


@pytest.fixture(autouse=True)
def _only_new_workers():
    PRIOR.clear()
    PRIOR.update(_children(os.getpid()))


def test_a_worker_warms_up_once_and_no_item_pays_for_it():
    with WorkerPool(warmed_items.loads, workers=1, cpu_s=1) as pool:
        assert pool.map([1, 2]) == [1, 1]


def test_a_clock_starts_with_its_item_however_long_the_queue():
    with WorkerPool(hostile.nap, workers=1, timeout_s=3) as pool:
        assert pool.map([0.3] * 12) == [0.3] * 12


def test_a_busy_machine_does_not_time_out_what_needs_little_processor_time():
    with WorkerPool(hostile.nap, workers=1, cpu_s=1) as pool:
        assert pool.map([2.5]) == [2.5]


def test_the_limit_of_processor_time_is_each_items_own():
    with WorkerPool(hostile.burn, workers=1, cpu_s=1) as pool:
        assert len(set(pool.map([0.4] * 4))) == 1


def test_a_worker_without_memory_is_replaced_and_one_that_raised_goes_on():
    with WorkerPool(hostile.act, workers=1, memory_bytes=300 << 20) as pool:
        first, _, second, _, third = pool.map(["pid", "fail", "pid", "one large", "pid"])
    assert first == second != third


def test_a_worker_that_somebody_kills_costs_no_verdict(tmp_path):
    got = []
    with WorkerPool(hostile.stay_the_first_time, workers=1) as pool:
        asking = threading.Thread(target=lambda: got.extend(pool.map([str(tmp_path / "pid")])))
        asking.start()
        first = noted(tmp_path / "pid")
        os.kill(first, signal.SIGKILL)
        asking.join()
    assert got == [first]
    assert not alive(first)


def test_an_idle_worker_that_somebody_kills_is_replaced():
    with WorkerPool(hostile.pid, workers=1) as pool:
        (first,) = pool.map([0])
        assert pool.map([0]) == [first]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not alive(first), "it is dead")
        (second,) = pool.map([0])
    assert second != first
    assert not alive(second)


def test_what_a_worker_started_dies_with_it(tmp_path):
    with WorkerPool(hostile.leave_a_child, workers=1, timeout_s=3) as pool:
        assert pool.map([str(tmp_path / "child")]) == [WALL]
        wait_until(lambda: not alive(int((tmp_path / "child").read_text())), "the worker's child is dead")


def test_ctrl_c_ends_the_workers_at_once(tmp_path):
    code = """
        import pathlib, hostile_items
        from steer_core.rewards.workers import WorkerPool
        try:
            WorkerPool(hostile_items.stay, workers=1).map([sys.argv[1]])
        except KeyboardInterrupt:
            print(pathlib.Path(f"/proc/{pathlib.Path(sys.argv[1]).read_text()}").exists(), flush=True)
    """
    parent = script(code, tmp_path / "pid", stdout=subprocess.PIPE)
    noted(tmp_path / "pid")
    parent.send_signal(signal.SIGINT)
    assert parent.communicate(timeout=60)[0] == b"False\n"


def test_a_parent_that_is_killed_leaves_no_worker(tmp_path):
    code = """
        import hostile_items
        from steer_core.rewards.workers import WorkerPool
        WorkerPool(hostile_items.stay, workers=1).map([sys.argv[1]])
    """
    parent = script(code, tmp_path / "pid")
    worker = noted(tmp_path / "pid")
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(worker), "the worker is dead", 30)
    assert not alive(worker)


def test_an_interpreter_that_exits_ends_its_workers_first_though_one_is_busy(tmp_path):
    code = """
        import atexit, pathlib, threading, time, hostile_items
        from steer_core.rewards.workers import WorkerPool
        note = pathlib.Path(sys.argv[1])
        atexit.register(lambda: print(pathlib.Path(f"/proc/{note.read_text()}").exists()))
        pool = WorkerPool(hostile_items.stay, workers=1)
        threading.Thread(target=pool.map, args=([str(note)],), daemon=True).start()
        while not (note.exists() and note.read_text()):
            time.sleep(0.01)
    """
    parent = script(code, tmp_path / "pid", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.communicate(timeout=60)[0] == b"False\n"
    assert parent.returncode == 0


def test_a_forked_child_has_workers_of_its_own_and_leaves_its_parents_alone():
    code = """
        import os, hostile_items
        from steer_core.rewards.workers import WorkerPool
        pool = WorkerPool(hostile_items.pid, workers=1)
        mine = pool.map([0])
        child = os.fork()
        if child == 0:
            theirs = pool.map([0])
            pool.close()
            os._exit(theirs == mine)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert pool.map([0]) == mine
    """
    assert script(code).wait(timeout=60) == 0


def test_a_pool_is_lazy_and_serves_again_after_it_was_closed():
    pool = WorkerPool(hostile.double, workers=1)
    assert pool.map([]) == []
    assert _children(os.getpid()) == set()
    assert pool.map([1, 2]) == [2, 4]
    pool.close()
    assert pool.map([3]) == [6]
    pool.close()
    pool.close()
    assert _children(os.getpid()) == set()


@pytest.mark.parametrize(("function", "waiting"), [(hostile.stay, ["not begun"]), (hostile.die_the_first_time, [])])
def test_closing_a_pool_tells_who_waits_for_it(tmp_path, function, waiting):
    pool, told = WorkerPool(function, workers=1), []

    def ask():
        with pytest.raises(RuntimeError, match="was closed while it was in use") as error:
            pool.map([str(tmp_path / "pid"), *waiting])
        told.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    worker = noted(tmp_path / "pid")
    pool.close()
    asking.join(30)
    assert len(told) == 1
    assert not alive(worker)


def test_a_function_that_workers_cannot_import_is_told():
    with pytest.raises(RuntimeError, match="a worker did not start: ModuleNotFoundError: No module named 'nowhere'"):
        WorkerPool("nowhere:judge", workers=1).map([1])
    with pytest.raises(ValueError, match="cannot be imported by another process"):
        WorkerPool(lambda item: item)
    with pytest.raises(RuntimeError, match="a worker did not start"):
        WorkerPool(hostile.double, workers=1, memory_bytes=1 << 20).map([1])


def test_an_item_that_json_does_not_hold_is_refused_before_anything_is_judged(pool):
    with pytest.raises(TypeError, match="not JSON serializable"):
        pool.map(["honest", object()])
    assert pool.map(["honest"]) == ["honest"]


def test_a_graders_worker_loads_no_torch():
    with WorkerPool(hostile.heavy_modules, workers=1) as pool:
        assert pool.map([0]) == [[]]


def test_a_process_shares_one_pool_for_each_function():
    assert shared_pool("steer_core.rewards.maths:judge") is shared_pool("steer_core.rewards.maths:judge")
    assert shared_pool("steer_core.rewards.maths:judge") is not shared_pool("steer_core.rewards.release:judge")


def test_a_short_item_costs_little_beside_judging(pool):
    pool.map(["warm"] * 8)
    began = time.perf_counter()
    pool.map(["honest"] * 2000)
    assert (time.perf_counter() - began) / 2000 < 0.01
