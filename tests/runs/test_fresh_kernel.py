"""Kernels: a forked one starts like a new one, changes no bit, and ends with whoever needs it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import kill_sweep
import nbformat
import papermill
import pytest
from helpers import comes_true
from helpers.toy import CELL, notebook

from safealign_utils.runs import fresh_kernel, pool, runner

RUN = [sys.executable, "-m", "safealign_utils.runs.cli", "run"]
WRITE = kill_sweep.BODY.replace("PAUSE", "0")
DIRTY = """import os, sys, warnings
import matplotlib.pyplot as plt, numpy as np, pandas as pd, torch
from safealign_utils.engine import cache; from safealign_utils import loss
from safealign_utils.study import study
from safealign_utils.engine.torch_setup import set_up
set_up()
state = [
    torch.initial_seed() == 9, str(torch.get_default_dtype()), torch.is_grad_enabled(),
    'mine' in globals(), 'KIT_TEST' in os.environ, os.environ.get('OMP_NUM_THREADS'),
    os.environ['MPLBACKEND'], os.getcwd(), [p for p in sys.path if 'pytest' not in p],
    dict(plt.rcParams), plt.get_fignums(), np.get_printoptions(), np.geterr(),
    pd.get_option('display.max_rows'), pd.get_option('display.max_columns'),
    hasattr(loss, 'broken'), hasattr(loss.preference_loss, 'broken'), plt.get_backend(),
    torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), len(In),
]
print(*state, sep='\\n', flush=True)
print('in a second message')
mine = 1
torch.manual_seed(9), torch.set_default_dtype(torch.float64), torch.set_grad_enabled(False)
torch.set_num_threads(2), torch.use_deterministic_algorithms(False)
os.environ['KIT_TEST'] = '1'
os.chdir('/'), sys.path.append('/nowhere'), warnings.simplefilter('always')
plt.rcParams['lines.linewidth'] = 9
plt.figure(), plt.plot([1, 2]), np.set_printoptions(precision=2)
pd.set_option('display.max_rows', 3), pd.set_option('display.max_columns', 3)
loss.broken = loss.preference_loss.broken = True"""
SEEN = """import atexit, json, os, random, numpy, torch
def write(*words):
    with open(SEEN, 'a') as file:
        print(json.dumps(words), file=file)
write(os.getpid(), os.getppid(), random.random(), numpy.random.rand(), torch.initial_seed())
atexit.register(write, 'left', os.getpid())"""


def outputs(path):
    book = nbformat.read(path, as_version=4)
    return [(c.execution_count, c.outputs) for c in book.cells if c.cell_type == "code"]


def parents(seen):
    return [line[1] for line in map(json.loads, seen.read_text().splitlines()) if len(line) == 5]


def test_a_forked_kernel_starts_like_a_new_one(tmp_path, monkeypatch):
    """Whatever a run did to its kernel, the next one sees what plain papermill's kernel sees."""
    seen = tmp_path / "seen"
    path = notebook(
        tmp_path / "toy.ipynb", CELL, SEEN.replace("SEEN", repr(str(seen))), DIRTY, WRITE
    )
    plain = tmp_path / "plain.ipynb"
    given = dict(parameters=dict(beta=0.0), coalesce_streams=True)
    papermill.execute_notebook(path, plain, progress_bar=False, **given)
    for n in range(3):
        folder = runner.run(path, [("beta", str(1 + n))], out=tmp_path / "out")[0]
        got, want = outputs(folder / "toy.ipynb"), outputs(plain)
        assert [output.output_type for output in got[3][1]] == ["stream", "display_data"]
        assert got == want
    assert nbformat.read(folder / "toy.ipynb", 4).metadata["kernelspec"]["name"] == "python3"
    lines = [json.loads(line) for line in seen.read_text().splitlines()]
    started, left = lines[::2], lines[1::2]
    assert left == [["left", pid] for pid, *_ in started], "what a notebook leaves for its end"
    server = fresh_kernel.forkserver._forkserver._forkserver_pid
    assert parents(seen) == [os.getpid(), server, server, server]
    for drawn in list(zip(*started, strict=True))[2:]:
        assert len(set(drawn)) == 4, "random numbers start anywhere"
    threads = {(t / "comm").read_text() for t in Path(f"/proc/{server}/task").iterdir()}
    assert len(threads - {"jemalloc_bg_thd\n"}) == 1, "a fork of it is safe; jemalloc knows of it"


@pytest.mark.parametrize("why", ["edited", "another kernelspec"])
def test_a_kernel_that_would_not_be_the_same_is_started_anew(tmp_path, monkeypatch, why):
    """Where the package was edited since it was imported; where a kernelspec brings its own."""
    seen = tmp_path / "seen"
    path = notebook(tmp_path / "toy.ipynb", CELL, SEEN.replace("SEEN", repr(str(seen))), WRITE)
    if why == "edited":
        monkeypatch.setattr(fresh_kernel, "_code", ["of before"])
    else:
        folder = tmp_path / "jupyter" / "kernels" / "python3"
        folder.mkdir(parents=True)
        argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = dict(argv=argv, display_name="site", language="python", env={"SITE": "1"})
        (folder / "kernel.json").write_text(json.dumps(spec))
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert runner.run(path, out=tmp_path / "out")[2]
    assert parents(seen) == [os.getpid()]


def alive(pid):
    """Whether a process runs; one that ended and is not yet read does not."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("victim", ["os.getpid()", "os.getppid()"])
def test_a_kill_from_outside(tmp_path, victim):
    """Of a kernel, or of the process that kernels are forked from: the kernel ends, its run starts
    again, and nothing says that it failed."""
    pids = tmp_path / "pids"
    code = f"""import os, time
with open({str(pids)!r}, 'a') as file:
    file.write(f'{{os.getpid()}} ')
if len(open({str(pids)!r}).read().split()) == 1:
    os.kill({victim}, 9)
    time.sleep(60)"""
    path = notebook(tmp_path / "toy.ipynb", CELL, code, WRITE)
    start = time.monotonic()
    outcome = pool.work(pool.Job(str(path), out=str(tmp_path / "out")))
    assert outcome.ran and not outcome.error and time.monotonic() - start < 50
    one, two = map(int, pids.read_text().split())
    assert one != two and not alive(one) and not alive(two)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [Path(outcome.folder).name]


def test_a_kernel_is_spoken_with_in_private(tmp_path, monkeypatch):
    """Its sockets lie in a folder that nobody else enters, no port is open, and nothing is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = tmp_path / "seen"
    look = f"""import os, pathlib, stat, json
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance()
folder = pathlib.Path(app.ip).parent
mode = stat.S_IMODE(folder.stat().st_mode)
pathlib.Path({str(seen)!r}).write_text(json.dumps([app.transport, str(folder), mode]))"""
    path = notebook(tmp_path / "toy.ipynb", CELL, look, WRITE)
    assert pool.work(pool.Job(str(path), out=str(tmp_path / "out"))).ran
    transport, folder, mode = json.loads(seen.read_text())
    assert (transport, mode) == ("ipc", 0o700)
    assert Path(folder).parent == tmp_path and not Path(folder).exists()


def test_a_long_temporary_path_is_no_fault(tmp_path, monkeypatch):
    """The path of a socket has 107 bytes: where they do not do, ports are used."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    path = notebook(tmp_path / "toy.ipynb", CELL, WRITE)
    assert pool.work(pool.Job(str(path), out=str(tmp_path / "out"))).ran
    assert not list(deep.glob("kernel.*"))


def test_a_command_runs_where_the_temporary_path_is_long(tmp_path):
    """Nor does the process that kernels are forked from have a socket there: they are new ones."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    path = notebook(tmp_path / "toy.ipynb", CELL, WRITE)
    words = [*RUN, path, "--out", tmp_path / "out"]
    there = os.environ | {"TMPDIR": str(deep)}
    done = subprocess.run(words, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def short_folder():
    """A folder for temporary files in which a socket can lie."""
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as folder:
        yield Path(folder)


def test_a_killed_command_leaves_no_sockets(tmp_path, short_folder):
    """The kernel removes them, and the file that says where they are, as it sees the command end."""
    temporary, started = short_folder, tmp_path / "started"
    wait = f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(60)"
    path = notebook(tmp_path / "toy.ipynb", CELL, wait)
    words = [*RUN, path, "--out", tmp_path / "out"]
    command = subprocess.Popen(words, env=os.environ | {"TMPDIR": str(temporary)})

    def left():
        return [path for name in ("kernel.*", "*.json") for path in temporary.glob(name)]

    assert comes_true(started.exists, 120) and len(left()) == 2
    command.kill()
    command.wait()
    assert comes_true(lambda: not left(), 30)


def test_many_runs_leave_no_files_open(tmp_path):
    """A sweep of a thousand runs stays below what a process may open."""
    path, numbers = notebook(tmp_path / "toy.ipynb", CELL, WRITE), []
    for n in range(6):
        job = pool.Job(str(path), (("seed", str(n)),), out=str(tmp_path / "out"))
        assert pool.work(job).ran
        numbers.append(len(os.listdir("/proc/self/fd")))
    assert numbers[-1] == numbers[2], numbers


def test_a_kernel_that_dies_each_time_is_given_up(tmp_path):
    path = notebook(tmp_path / "toy.ipynb", CELL, "import os\nos.kill(os.getpid(), 9)")
    outcome = pool.work(pool.Job(str(path), out=str(tmp_path / "out")))
    assert outcome.died and f"({pool.DEATHS} times)" in outcome.error
    assert not list((tmp_path / "out").iterdir()), "no verdict on the notebook is left"


def test_a_sweep_and_plain_papermill_give_the_same_bits(tmp_path, monkeypatch):
    """Cells, metrics, claims, tables and figures of real notebooks, each from a cache of its own."""
    short = dict(steps="2", dtype="float32")
    given = {
        "01_dpo_basics": dict(pairs="40", betas="0.5", pair_shares="1"),
        "05_dog_selection": dict(pairs="160", selections="random,dog_d,k_means"),
    }
    asked = [("05_dog_selection", 0), ("01_dpo_basics", 0)]
    texts = lambda name, seed: tuple({**short, **given[name], "seed": str(seed)}.items())
    jobs = [pool.Job(name, texts(name, seed), str(tmp_path / "swept")) for name, seed in asked]
    ended = {}
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path / "swept_cache"))
    for outcome in pool.execute(jobs, workers=1, say=lambda words: None):
        assert outcome.ran, outcome.error
        ended[outcome.job] = Path(outcome.folder)
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path / "plain_cache"))
    for n, job in enumerate(jobs):
        path, settings, _ = runner.prepare(job.notebook, job.given)
        alone, swept = tmp_path / f"plain{n}", ended[job]
        alone.mkdir()
        asked = dict(parameters={**settings, "out_dir": str(alone)}, coalesce_streams=True)
        papermill.execute_notebook(path, alone / path.name, progress_bar=False, **asked)
        one, two = (json.loads((f / "record.json").read_text()) for f in (alone, swept))
        assert one["metrics"] == two["metrics"] and one["claims"] == two["claims"]
        one, two = (nbformat.read(folder / path.name, 4).cells for folder in (alone, swept))
        assert [c.get("outputs") for c in one] == [c.get("outputs") for c in two]
        files = [p.name for p in alone.iterdir() if p.suffix in (".csv", ".png", ".svg")]
        assert len(files) > 5
        assert all((alone / f).read_bytes() == (swept / f).read_bytes() for f in files)


def test_several_threads(tmp_path, monkeypatch):
    """A kernel may use threads: those of its parent process were none."""
    code = "import torch\nfrom safealign_utils import policy\ntorch.set_num_threads(2)\n"
    code += "x = torch.ones(800, 800)\nfor _ in range(9):\n    x = (x @ x).clamp(max=2)"
    path = notebook(tmp_path / "toy.ipynb", CELL, code, WRITE)
    assert runner.run(path, out=tmp_path / "out")[2]
