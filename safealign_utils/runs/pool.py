"""Many runs at once: dask.distributed places them, each in a kernel of its own.

Here the workers are threads of this process, which wait for their kernels. A kernel that dies has
its run started again. `runner.run` writes a folder in full or not at all, so a kill at any moment
costs the runs in progress and nothing else.
"""

import contextlib
import contextvars
import logging
import tempfile
import time
from dataclasses import dataclass, field

from jupyter_core.utils import ensure_event_loop

from ..engine import distributed
from ..study.settings import Refusal
from . import ending, folders, fresh_kernel, runner

DEATHS = 3  # of its kernel, before a run is given up


@dataclass(frozen=True)
class Job:
    """One run: what `runner.run` takes, the run id that it must have, jobs to end first."""

    notebook: str
    given: tuple = ()
    out: str = "results/runs"
    name: str = ""
    id: str = ""
    files: tuple = ()
    after: tuple = field(default=(), repr=False)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: folder and record, or the error. `died`: no verdict on the notebook."""

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
    # Jupyter finds its event loop in a context, which Dask hands from one thread to another
    ended = contextvars.Context().run(_run, job)
    return Outcome(job, seconds=time.perf_counter() - start, **ended)


def _run(job):
    try:
        for _ in range(DEATHS):
            try:
                asked = dict(out=job.out, name=job.name or None, expect=job.id)
                folder, record, ran = runner.run(job.notebook, job.given, job.files, **asked)
                return dict(folder=str(folder), record=record, ran=ran)
            except runner.Died as error:
                died = str(error)
            except (runner.Failed, Refusal) as error:
                return dict(error=str(error))
        return dict(error=f"{died} ({DEATHS} times)", died=True)
    finally:
        ensure_event_loop().close()  # it holds open files


def execute(jobs, *, workers=2, scheduler="", say=print):
    """Run jobs; yields an Outcome for each as it ends. At most `workers` at once, without a
    scheduler.

    `say` prints what a scheduler that is there already tells of itself. Raises Refusal where none
    answers.
    """
    from dask.distributed import CancelledError, as_completed

    if distributed.count() > 1:
        words = "a sweep places its own processes; launch `safealign run`, one run at a time"
        raise Refusal(f"accelerate launch: {words}")
    with runner.quiet(), _client(min(workers, len(jobs)), scheduler) as client:
        if scheduler:
            say(_greeting(client, scheduler))
        futures = {}
        for n, job in enumerate(jobs):  # Dask would take jobs that come together in any order
            before = [futures[b] for b in job.after]
            futures[job] = client.submit(work, job, *before, pure=False, retries=0, priority=-n)
        asked = {future.key: job for job, future in futures.items()}
        ended = as_completed(futures.values())
        futures.clear()  # a worker that dies takes nothing with it that has been read already
        for future in ended:
            job = asked[future.key]
            try:
                outcome = future.result()
            except KeyboardInterrupt:
                ending.leave()
            except CancelledError:
                lost = "the connection to the Dask scheduler was lost; the same command goes on"
                outcome = Outcome(job, error=lost, died=True)
            except Exception as error:
                outcome = Outcome(job, error=f"{type(error).__name__}: {error}", died=True)
            future.release()
            yield outcome


@contextlib.contextmanager
def _client(workers, scheduler):
    """A client of the scheduler, or of threads of this process."""
    from dask.distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if scheduler:
        try:
            client = Client(scheduler, timeout=10)
        except (OSError, ValueError, TypeError) as error:  # TypeError: no certificate
            why, fix = f"no Dask scheduler answers ({error})", "start one with `dask scheduler`"
            raise Refusal(f"--scheduler {scheduler}: {why}; {fix}") from None
        with client:
            yield client
        return
    folders.stand_in_for_home()
    fresh_kernel.fork_server()  # from the main thread, and while Dask starts
    with tempfile.TemporaryDirectory(prefix="safealign.") as own, _cluster(workers, own) as cluster:
        with Client(cluster) as client:
            yield client


def _cluster(workers, folder):
    """Dask in threads of this process, on 127.0.0.1. Whatever reaches a scheduler may have it run
    code: a certificate made for this sweep keeps the other users of the machine out."""
    import dask
    from dask.distributed import LocalCluster, Security

    local = dict(n_workers=1, threads_per_worker=workers, processes=False, memory_limit=0)
    local |= dict(protocol="tls://", security=Security.temporary(), local_directory=folder)
    local |= dict(dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False})
    pages = {f"distributed.{part}.http.routes": [] for part in ("scheduler", "worker")}
    with dask.config.set(pages):  # Dask's web pages know no certificate: there are none
        return LocalCluster(**local, silence_logs=logging.CRITICAL)


def _greeting(client, scheduler):
    """What is to be known of a scheduler that is there already."""
    here = len(client.scheduler_info(n_workers=-1)["workers"])
    waiting = "" if here else "; it has no worker yet, and the runs wait for one"
    words = f"Dask's dashboard: {client.dashboard_link}{waiting}"
    if not client.scheduler.address.startswith("tls://"):
        words += f"\n{scheduler} is not encrypted: whoever reaches it may run code as you"
    return words
