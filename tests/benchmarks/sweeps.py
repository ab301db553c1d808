"""What a sweep costs beyond its runs: CPU seconds of start-up, and the speed-up of a second worker.

    python tests/benchmarks/sweeps.py

50 runs of a notebook that imports the kit and then works for a fixed CPU time. The sweep's CPU time is that of all
its processes; what is more than the runs' own is overhead. Beside it, runs in kernels of their own, as plain
papermill starts them.
"""

import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.toy import CELL, notebook

RUNS, WORK = 50, 0.5
BODY = f"""import time
from safealign_utils.study import records; from safealign_utils.study import study
from safealign_utils import train; from safealign_utils import policy
end = time.process_time() + {WORK}
while time.process_time() < end:
    sum(i * i for i in range(1000))
if out_dir:
    records.write(out_dir, notebook="busy", run_id="", parameters={{"seed": seed}}, metrics={{"busy.seed": seed}}, claims=[],
                  timings={{"total": 1.0, "peak_memory_bytes": 1}}, tables=[], figures=[], provenance={{}})"""


def measured(command, folder):
    """(wall seconds, CPU seconds) of a command and of every process that came from it."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wall = time.perf_counter() - start
    while True:  # grandchildren are handed to this process, so that their time is counted
        try:
            os.wait()
        except ChildProcessError:
            break
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        notebook(folder / "busy.ipynb", CELL, BODY)
        (folder / "grid.yaml").write_text(f"notebook: busy.ipynb\nseeds: {RUNS}\n")
        kit = [sys.executable, "-m", "safealign_utils.runs.cli"]
        print(f"{RUNS} runs of {WORK} CPU s each, {RUNS * WORK:.0f} CPU s of work")
        walls = {}
        for workers in (1, 2):
            sweep = [
                *kit,
                "sweep",
                "grid.yaml",
                "--workers",
                str(workers),
                "--out",
                f"out{workers}",
            ]
            walls[workers], cpu = measured(sweep, folder)
            over = cpu - RUNS * WORK
            print(
                f"sweep, {workers} worker{'s' * (workers > 1)}: {walls[workers]:.1f} s, overhead {over:.1f} CPU s in all, {over / RUNS:.2f} a run"
            )
        print(f"speed-up of 2 workers over 1: {walls[1] / walls[2]:.2f}")
        alone = [
            measured([*kit, "run", "busy.ipynb", "-p", f"seed={s}", "--out", "alone"], folder)
            for s in range(3)
        ]
        each = sum(cpu for _, cpu in alone) / len(alone) - WORK
        print(
            f"`safealign run`, a new kernel each: overhead {each:.1f} CPU s a run, {each * RUNS:.0f} for {RUNS}"
        )
        plain = "import papermill, sys; papermill.execute_notebook('busy.ipynb', 'o.ipynb', parameters=dict(seed=int(sys.argv[1])), progress_bar=False)"
        alone = [measured([sys.executable, "-c", plain, str(s)], folder) for s in range(3)]
        each = sum(cpu for _, cpu in alone) / len(alone) - WORK
        print(f"plain papermill: overhead {each:.1f} CPU s a run, {each * RUNS:.0f} for {RUNS}")


if __name__ == "__main__":
    main()
