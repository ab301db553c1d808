"""Many runs on several processes: dask.distributed places them, each worker keeps one warm kernel.

A worker that dies has its run started again elsewhere. What is written is written by `runner.run`, a folder in
full or not at all; so a kill at any moment costs the runs in progress and nothing else.
"""

import contextlib
import logging
import os
import sys
import time
from dataclasses import dataclass, field

from ..engine import distributed
from ..study.settings import Refusal
from . import runner
from .forking import fork_server

DEATHS = 3  # of its worker or its kernel, before a run is given up


@dataclass(frozen=True)
class Job:
    """One run: what `runner.run` takes, and the run id that the worker must find too; `after`: jobs to end first."""

    notebook: str
    given: tuple = ()
    out: str = "results/runs"
    name: str = ""
    id: str = ""
    files: tuple = ()
    after: tuple = field(default=(), repr=False)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its folder and record, or the error. `died` is no verdict on the notebook."""

    job: Job
    folder: str = ""
    record: dict | None = None
    ran: bool = False
    error: str = ""
    died: bool = False
    seconds: float = 0.0


def work(job, *before):
    """Run one job in this process: an Outcome. A kernel that died is started again."""
    start = time.perf_counter()
    for _ in range(DEATHS):
        try:
            asked = dict(out=job.out, name=job.name or None, expect=job.id, warm=True)
            folder, record, ran = runner.run(job.notebook, job.given, job.files, **asked)
            return Outcome(job, str(folder), record, ran, seconds=time.perf_counter() - start)
        except runner.Died as error:
            last = error
        except (runner.Failed, Refusal) as error:
            return Outcome(job, error=str(error), seconds=time.perf_counter() - start)
    return Outcome(
        job, error=f"{last} ({DEATHS} times)", died=True, seconds=time.perf_counter() - start
    )


def execute(jobs, *, workers=2, scheduler="", say=print):
    """Run jobs; yields an Outcome for each as it ends. At most `workers` processes here, or those of a scheduler.

    `say` prints the address of Dask's dashboard. Raises Refusal where no scheduler answers.
    """
    from dask.distributed import CancelledError, as_completed

    if distributed.count() > 1:
        raise Refusal(
            "accelerate launch: a sweep places its own processes; launch `safealign run`, one run at a time"
        )
    with _client(min(workers, len(jobs)), scheduler) as client:
        here = len(client.scheduler_info(n_workers=-1)["workers"])
        waiting = "" if here else "; it has no worker yet, and the runs wait for one"
        say(f"Dask's dashboard: {client.dashboard_link}{waiting}")
        futures = {}
        for n, job in enumerate(jobs):  # Dask would take jobs that come together in any order
            before = [futures[b] for b in job.after]
            futures[job] = client.submit(work, job, *before, pure=False, retries=0, priority=-n)
        asked, ended = (
            {future.key: job for job, future in futures.items()},
            as_completed(futures.values()),
        )
        futures.clear()  # a worker that dies takes nothing with it that has been read already
        for future in ended:
            try:
                outcome = future.result()
            except KeyboardInterrupt:
                leave()
            except CancelledError:
                lost = "the connection to the Dask scheduler was lost; the same command goes on where it stopped"
                outcome = Outcome(asked[future.key], error=lost, died=True)
            except Exception as error:
                outcome = Outcome(
                    asked[future.key], error=f"{type(error).__name__}: {error}", died=True
                )
            future.release()
            yield outcome


def leave():
    """End at once after Ctrl-C: the workers end with this process, and taking Dask apart in order is slow and noisy."""
    print(
        "safealign: interrupted; finished runs are kept, nothing is half-written", file=sys.stderr
    )
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(130)


@contextlib.contextmanager
def _client(workers, scheduler):
    """A client of the scheduler, or of a cluster of one-thread processes on this machine."""
    import dask
    from dask.distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        if scheduler:
            try:
                client = Client(scheduler, timeout=10)
            except (OSError, ValueError) as error:
                raise Refusal(
                    f"--scheduler {scheduler}: no Dask scheduler answers ({error}); start one with `dask scheduler`"
                ) from None
        else:
            settings = {
                "distributed.scheduler.allowed-failures": DEATHS,
                "distributed.worker.daemon": False,
            }
            settings["distributed.scheduler.worker-saturation"] = (
                1.0  # no run waits behind another on its worker
            )
            if sys.platform == "linux":
                settings["distributed.worker.multiprocessing-method"] = "forkserver"
                fork_server()
            stack.enter_context(dask.config.set(settings))
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=0,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                    env=dict(os.environ),
                )
            )
            client = Client(cluster)
        yield stack.enter_context(client)
