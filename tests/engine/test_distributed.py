"""Several processes (gloo, on the processor): the losses of one, the same answers, one folder, one end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from helpers import ROOT, comes_true, several, toy

from safealign_utils.engine import distributed
from safealign_utils.runs import runner

PROFILES = ROOT / "notebooks" / "profiles"
SUMS = slice(
    1, 5
)  # columns of align's log: loss, chosen, rejected, z; accuracy counts ties, which rounding decides
FINE_TUNED = slice(1, 2)


def launch(config, *words, cache, **options):
    """`accelerate launch` with a configuration of the kit and a cache of its own."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(PROFILES / config),
        *map(str, words),
    ]
    given = os.environ | {"SAFEALIGN_CACHE": str(cache), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        command, env=given, capture_output=True, text=True, timeout=600, **options
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes found, with DDP and with FSDP, and the folder of their caches."""
    folder = tmp_path_factory.mktemp("two")
    program = Path(several.__file__)
    done = launch(
        "accelerate_fsdp.yaml", "--num_processes", 2, program, folder, cache=folder / "cache"
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "results.npz") as found:
        return dict(found), folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    before = os.environ["SAFEALIGN_CACHE"]
    os.environ["SAFEALIGN_CACHE"] = str(tmp_path_factory.mktemp("one"))
    yield several.results()
    os.environ["SAFEALIGN_CACHE"] = before


@pytest.mark.parametrize("how", ["", "fsdp, "])
@pytest.mark.parametrize("name", [*several.CASES, "head", "fine-tuned", "again", "resumed"])
def test_two_processes_train_as_one(name, how, one, two):
    """The log and the weights, in float64 to 1e-9; bfloat16 rounds by the length of the rows, which differs."""
    got, _ = two
    bar = 2e-2 if name == "bfloat16" else 1e-9
    columns = FINE_TUNED if name in ("head", "fine-tuned") else SUMS
    mine, theirs = one[f"{name}: log"], got[f"{how}{name}: log"]
    assert mine.shape == theirs.shape and np.abs(mine[:, columns] - theirs[:, columns]).max() < bar
    assert np.abs(mine[:, -1] - theirs[:, -1]).max() < bar, "the gradient's norm"
    assert np.abs(one[f"{name}: weights"] - got[f"{how}{name}: weights"]).max() < bar
    assert (got[f"{how}{name}: cached"] == (name == "again")).all()


def test_both_processes_resume_and_both_are_sharded(one, two):
    got, _ = two
    assert one["resumed: steps"].tolist() == [5] and got["resumed: steps"].tolist() == [5, 5]
    assert got["fsdp, resumed: steps"].tolist() == [5, 5] and bool(got["fsdp"])


def test_what_two_processes_kept_one_process_resumes(one, two, monkeypatch):
    """The state of an interrupted run does not depend on the number of processes; here with an adapter."""
    _, folder = two
    monkeypatch.setenv("SAFEALIGN_CACHE", str(folder / "cache"))
    resumed, steps = several.interrupted(stop=False, seed=5, lora=2)
    assert steps == 5
    monkeypatch.setenv("SAFEALIGN_CACHE", str(folder / "empty"))
    straight, steps = several.interrupted(stop=False, seed=5, lora=2)
    assert steps == 10 and np.abs(straight.log.loss - resumed.log.loss).max() < 1e-6


def test_process_0_decides_what_is_in_the_cache(two):
    """Two answers would leave one process waiting for ever; a folder that is not shared is named."""
    got, _ = two
    first, second = got["not seen by 1"]
    assert first == "cached" and "process 1 does not see" in second and "SAFEALIGN_CACHE=" in second
    assert got["seen by 1 alone"].tolist() == ["trained", "trained"]
    assert got["told"].tolist() == [True, True], (
        "the launcher's own store passes the runners' answers"
    )


STUDY = """from safealign_utils.study.study import Study
study = Study("toy", globals())
setup = study.setup(0)
run = study.train(setup, setup.train)
study.table("log", run.log)
study.metrics["toy.loss"] = float(run.log.loss.iloc[-1])
study.finish()"""


def test_a_notebook_runs_on_two_processes(tmp_path, monkeypatch):
    """One folder, one report, the losses of one process; a finished run is skipped as process 0 says."""
    path = toy.notebook(
        tmp_path / "toy.ipynb",
        toy.CELL + "\nmax_length: int = 64",
        *STUDY.split("\n", 2)[:2],
        STUDY.split("\n", 2)[2],
    )
    asked = dict(pairs=24, steps=3, batch_size=5)
    words = [w for name, value in asked.items() for w in ("-p", f"{name}={value}")]
    command = ["-m", "safealign_utils.runs.cli", "run", path, *words, "--out", tmp_path / "two"]
    done = launch("accelerate_cpu.yaml", *command, cache=tmp_path / "cache2")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "two").iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["log.csv", "record.json", "toy.ipynb"]
    assert done.stdout.count("complete") == 1, done.stdout
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path / "cache1"))
    alone, _, _ = runner.run(
        str(path), [(k, str(v)) for k, v in asked.items()], out=tmp_path / "one"
    )
    assert alone.name == folder.name, "the same question"
    logs = [np.loadtxt(f / "log.csv", delimiter=",", skiprows=1)[:, SUMS] for f in (folder, alone)]
    assert np.abs(logs[0] - logs[1]).max() < 1e-9
    seen = []
    monkeypatch.setattr(
        distributed, "agree_apart", lambda question, answer: seen.append(answer) or True
    )
    found = runner.run(str(path), [(k, str(v)) for k, v in asked.items()], out=tmp_path / "two")
    assert found[2] is False and found[1]["metrics"] and seen == [True], (
        "process 0's answer is the one that counts"
    )


DEADLY = f"""import os, time
from safealign_utils.engine import distributed
distributed.agree(1)
if distributed.rank() == 1:
    os.kill(os.getppid(), {int(signal.SIGKILL)})
    time.sleep(600)
distributed.agree(2)"""


def test_when_one_process_dies_all_end(tmp_path):
    """A runner is killed: the launcher ends the other, and no kernel stays behind, whatever it waits for."""
    path = toy.notebook(tmp_path / "toy.ipynb", toy.CELL, DEADLY)
    start = time.monotonic()
    done = launch(
        "accelerate_cpu.yaml",
        "-m",
        "safealign_utils.runs.cli",
        "run",
        path,
        "--out",
        tmp_path / "out",
        cache=tmp_path / "mine",
    )
    assert done.returncode != 0 and time.monotonic() - start < 300
    assert comes_true(lambda: not kernels_of(tmp_path / "mine"), 30)
    assert not [
        p for p in (tmp_path / "out").iterdir() if not p.name.startswith(".") and p.is_dir()
    ]


def kernels_of(cache):
    """Processes that were started with this cache folder in their environment."""
    out = []
    for process in psutil.process_iter():
        try:
            if (
                process.environ().get("SAFEALIGN_CACHE") == str(cache)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                out.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return out


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    values = {"loss": 1.0}
    assert (
        distributed.agree(values) is values
        and distributed.total(values) is values
        and distributed.gather(3) == [3]
    )
    assert (
        distributed.agree_apart("done?", True) is True and distributed.own_device("cuda") == "cuda"
    )
    assert distributed.found(lambda: None) is None and distributed.found(lambda: 5) == 5
    import torch

    assert not torch.distributed.is_initialized()


def test_every_process_has_a_device_of_its_own(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "6", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    assert distributed.own_device("cuda") == "cuda:2" and distributed.own_device("cpu") == "cpu"


def test_the_configurations_are_read_by_accelerate():
    from accelerate.commands.config.config_args import load_config_from_file

    kinds = {p.stem: load_config_from_file(str(p)) for p in PROFILES.glob("accelerate_*.yaml")}
    assert {name: (c.distributed_type.value, c.mixed_precision) for name, c in kinds.items()} == {
        "accelerate_one_gpu": ("NO", "no"),
        "accelerate_ddp": ("MULTI_GPU", "no"),
        "accelerate_cpu": ("MULTI_GPU", "no"),
        "accelerate_fsdp": ("FSDP", "no"),
    }
    assert (
        yaml.safe_load((PROFILES / "accelerate_fsdp.yaml").read_text())["fsdp_config"][
            "fsdp_version"
        ]
        == 2
    )


def test_the_first_fsdp_is_refused(monkeypatch):
    from safealign_utils.engine import checkpoint

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="fsdp_version: 1; write fsdp_version: 2"):
        checkpoint.accelerator_for(several.toy.policy_of("llama"))
