"""Fuzzed inputs for every reader of the kit, each in a process with bounds of time and memory.

    python tests/fuzz/harness.py                      20,000 inputs and more, the table below
    python tests/fuzz/harness.py --share 0.02         what the tests run
    python tests/fuzz/harness.py --only data/137      one input in this process, with its traceback

Verdicts: `taken`; `refused` in one message of the kit's form; and what must never be: `message`
(a refusal without form: of several lines, too long, with more of the input than a message repeats,
or empty), `uncaught` (any other exception), `hang` (more than 10 s of processor time, or 300 s on
the clock), `death` (of the process) and `half` (a half-written file is left behind).
"""

import argparse
import collections
import contextlib
import io
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from fuzz import readers  # noqa: E402
from safealign_utils.engine import boundary  # noqa: E402

BAD = ("message", "uncaught", "hang", "death", "half")
VERDICTS = ("taken", "refused", *BAD)
HALF = re.compile(r"partial|\.old$|^tmp/")  # what is written beside its place, or left in TMPDIR
SECONDS, WALL, MEMORY = 10.0, 300.0, 12 * 2**30


# ---------------------------------------------------------------- one input
def judged(call, folder):
    """(verdict, what was said) of one input: `call` reads it in its `folder`."""
    before, said = _files(folder), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            call()
        verdict, words = "taken", ""
    except boundary.Refusal as error:
        verdict, words = _of_message(str(error)), str(error)
    except boundary.STOPS:
        raise
    except BaseException:
        verdict, words = "uncaught", traceback.format_exc()
    left = {name for name in _files(folder) - before if HALF.search(name)}
    return ("half", f"{sorted(left)[:3]} after {verdict}") if left else (verdict, words)


def _of_message(text):
    is_bad = (
        not text.strip() or len(text) > boundary.LONGEST or re.search(r"[\n\r\0]|\S{201}", text)
    )
    return "message" if is_bad or not re.search("[=:]", text) else "refused"


def _files(folder):
    found = {os.path.join(here, n) for here, dirs, names in os.walk(folder) for n in dirs + names}
    return {os.path.relpath(name, folder) for name in found}


def one(reader, index, seed, work):
    """(verdict, words) of an input that its names and a seed decide."""
    rng = random.Random(f"{seed}/{reader}/{index}")
    folder = Path(tempfile.mkdtemp(dir=work))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    os.mkdir(tempfile.tempdir)
    variables, here = dict(os.environ), os.getcwd()
    try:
        return judged(readers.READERS[reader][1](rng, folder), folder)
    finally:
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(here)
        tempfile.tempdir = str(work)
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- a process that reads many
class Worker:
    """A forked process that answers one input after another, held to its bounds."""

    def __init__(self, seed, work):
        self.seed, self.work, self.pid = seed, work, None

    def start(self):
        asked, self.ask = os.pipe()
        self.answer, answers = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self.ask), os.close(self.answer)
                self._serve(os.fdopen(asked), os.fdopen(answers, "w"))
            finally:  # what no verdict was made of is the death of this process, and of no other
                os._exit(70)
        os.close(asked), os.close(answers)

    def _serve(self, asked, answers):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # panics of libraries are printed there
            os.dup2(nothing, descriptor)
        for line in asked:
            reader, _, index = line.strip().rpartition("/")
            verdict, words = one(reader, int(index), self.seed, self.work)
            answers.write(f"{verdict} {words[-4000:].encode('unicode_escape').decode()}\n")
            answers.flush()

    def send(self, name):
        if self.pid is None:
            self.start()
        self.name, self.since, self.spent = name, time.monotonic(), self._processor()
        os.write(self.ask, f"{name}\n".encode())

    def _processor(self):
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def is_over(self):
        return time.monotonic() - self.since > WALL or self._processor() - self.spent > SECONDS

    def heard(self):
        """(verdict, words) once it answered, died or ran past its bounds; else None."""
        if select.select([self.answer], [], [], 0)[0]:
            line = b""
            while not line.endswith(b"\n"):
                part = os.read(self.answer, 65536)
                if not part:
                    return self.stop("death")
                line += part
            verdict, _, words = line.decode().rstrip("\n").partition(" ")
            return verdict, words.encode().decode("unicode_escape")
        return self.stop("hang") if self.is_over() else None

    def stop(self, verdict=""):
        if self.pid is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.ask), os.close(self.answer)
        self.pid = None
        return verdict, f"status {status}"


def fuzz(names, seed, workers=2, say=None):
    """{reader: Counter of verdicts} and [(name, verdict, words)] of what must not be."""
    found, bad = collections.defaultdict(collections.Counter), []
    with tempfile.TemporaryDirectory(prefix="fuzz.") as work:
        readers.prepare(Path(work) / "seeds")
        team, left, busy = [Worker(seed, work) for _ in range(workers)], iter(names), set()
        try:
            for worker in team:
                _next(worker, left, busy)
            while busy:
                select.select([worker.answer for worker in busy], [], [], 0.5)
                for worker in list(busy):
                    if (heard := worker.heard()) is None:
                        continue
                    verdict, words = heard
                    found[worker.name.rpartition("/")[0]][verdict] += 1
                    if verdict in BAD:
                        bad.append((worker.name, verdict, words))
                    if say:
                        say(worker.name, verdict, words)
                    _next(worker, left, busy)
        finally:
            for worker in team:
                worker.stop()
    return found, bad


def _next(worker, left, busy):
    busy.discard(worker)
    if name := next(left, None):
        worker.send(name)
        busy.add(worker)


def chosen(share, least=8):
    """Names of inputs: of every reader its share, at least a few, in an order that mixes them."""
    names = [
        f"{reader}/{index}"
        for reader, (count, _) in readers.READERS.items()
        for index in range(max(least, round(share * count)))
    ]
    random.Random(0).shuffle(names)
    return names


def table(found):
    """Counts by reader and verdict, as Markdown."""
    rows = [("reader", "inputs", *VERDICTS)]
    for reader in readers.READERS:
        counts = found[reader]
        rows.append((reader, counts.total(), *(counts[verdict] for verdict in VERDICTS)))
    total = sum(found.values(), collections.Counter())
    rows.append(("all", total.total(), *(total[verdict] for verdict in VERDICTS)))
    lines = [
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in row) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main():
    given = argparse.ArgumentParser()
    given.add_argument("--share", type=float, default=1.0)
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--workers", type=int, default=2)
    given.add_argument("--reader", default="")
    given.add_argument("--part", default="0/1", help="k/n: the k-th of n parts, k from 0")
    given.add_argument("--only", default="")
    given.add_argument("--show", action="store_true", help="what each input was answered")
    asked = given.parse_args()
    if asked.only:
        reader, _, index = asked.only.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="fuzz.") as work:
            readers.prepare(Path(work) / "seeds")
            print(*one(reader, int(index), asked.seed, work), sep="\n")
        return 0
    started = time.perf_counter()
    names = [
        n for n in chosen(asked.share) if n.startswith(f"{asked.reader}/" if asked.reader else "")
    ]

    def say(name, verdict, words):
        if verdict in BAD or asked.show:
            print(f"{name}: {verdict}: {words[-1500:]}", file=sys.stderr, flush=True)

    part, parts = map(int, asked.part.split("/"))
    names = names[part::parts]
    found, bad = fuzz(names, asked.seed, asked.workers, say)
    print(table(found))
    print(
        f"{len(names):,} inputs, seed {asked.seed}, part {asked.part}, {time.perf_counter() - started:.0f} s"
    )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
