"""`safealign doctor`: every look passes here, and fails with the fix in words where something is planted."""

import shutil
import socket
import sys
import urllib.error
from importlib import metadata
from types import SimpleNamespace

import pytest
from helpers import ROOT

from safealign_utils.engine import cache
from safealign_utils.runs import cli, doctor
from safealign_utils.runs.doctor import Ill


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """The hub is never asked; `kernel` is looked at in one test only, since it starts a process."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def failed(look, *words):
    with pytest.raises(Ill) as caught:
        look()
    assert all(word in str(caught.value) for word in words), caught.value


def test_everything_is_there(capsys, fresh_cache):
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == list(doctor.LOOKS)
    assert all(line.startswith("[OK]") for line in lines[:-1]) and lines[-1] == "all is there"
    assert not fresh_cache.exists(), "nothing is left behind"


def test_a_failure_is_told_and_the_others_are_still_looked_at(capsys, monkeypatch):
    def ill():
        raise Ill("too old; take a new one")

    def broken():
        raise OSError("no such device")

    looks = {"first": lambda: "well", "second": ill, "third": broken, "fourth": lambda: "well"}
    monkeypatch.setattr(doctor, "LOOKS", looks)
    assert cli.main(["doctor"]) == 1
    marks = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert marks[:4] == [
        ["[OK]", "first"],
        ["[FAIL]", "second"],
        ["[FAIL]", "third"],
        ["[OK]", "fourth"],
    ]
    assert marks[4] == ["2", "of"]


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    failed(doctor.python, "3.10 to 3.13", "make PYTHON=")


def test_a_wrong_and_a_missing_package_are_named_with_their_pins(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "nbval":
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "papermill" else real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    failed(
        doctor.packages,
        "papermill 0.0.1, pinned ==",
        "nbval missing",
        "pip install -r requirements.txt",
    )


def test_markers_and_local_versions_are_honoured(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# Direct\na==1 ; python_version < '3'  # why\nb==2 ; python_version >= '3'\ntorch==2.13.0\n\n# Transitive\nc==3\n"
    )
    wanted = doctor.requirements(file)
    assert [one.name for one in wanted] == ["b", "torch"] and wanted[1].specifier.contains(
        "2.13.0+cpu"
    )
    failed(lambda: doctor.requirements(tmp_path / "none.txt"), "none.txt", "clone")
    assert {"torch", "papermill", "jupyterlab"} <= {
        one.name for one in doctor.requirements(ROOT / "requirements.txt")
    }


def test_the_device_is_named(monkeypatch):
    import torch

    assert doctor.device().startswith("CPU")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    failed(doctor.device, "CUDA_VISIBLE_DEVICES=0", "driver")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card 9")
    assert "CUDA, Card 9" in doctor.device()


def test_spinning_threads(monkeypatch):
    import torch

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv("SAFEALIGN_THREADS", "2")
    failed(doctor.threads, "2 per process (SAFEALIGN_THREADS=2)", "unset SAFEALIGN_THREADS")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert doctor.threads().startswith("2 per process")


def test_memory_and_disk_that_are_short(monkeypatch):
    monkeypatch.setattr(doctor, "_available", lambda: 2**30)
    failed(doctor.memory, "1.0 GiB free", "1.5 GiB")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    failed(doctor.disk, "1.0 GiB free", "SAFEALIGN_CACHE")


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path / "file" / "cache"))
    failed(doctor.cache_folder, "cannot be written", "SAFEALIGN_CACHE")


def test_results_that_cannot_be_written(monkeypatch, tmp_path):
    assert doctor.results().endswith("results is writable")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").write_text("in the way")
    failed(doctor.results, "--out results", "cannot be written", "name another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_no_home_is_known(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SAFEALIGN_CACHE")
    monkeypatch.setattr(cache.Path, "home", unknown)
    failed(doctor.cache_folder, "SAFEALIGN_CACHE=''", "set SAFEALIGN_CACHE to a folder of yours")


def test_a_cache_with_entries_is_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path))
    (tmp_path / "kind").mkdir()
    (tmp_path / "kind" / "key.safetensors").write_bytes(bytes(3 * 2**20))
    assert doctor.cache_folder() == f"{tmp_path} is writable; 1 entries, 3 MiB"


def test_kernels_that_do_not_start_or_are_another_environment(monkeypatch):
    from jupyter_client import manager
    from jupyter_client.kernelspec import NoSuchKernel

    def answers(text, status="ok"):
        def execute(code, *, output_hook, **_):
            output_hook({"content": {"text": text}})
            return {"content": {"status": status, "evalue": "No module named 'safealign_utils'"}}

        quiet = SimpleNamespace(execute_interactive=execute, stop_channels=lambda: None)
        return lambda *_, **__: (SimpleNamespace(shutdown_kernel=lambda now: None), quiet)

    def raises(error):
        def start(*_, **__):
            raise error

        return start

    for start, words in [
        (raises(NoSuchKernel("python3")), "no kernelspec"),
        (raises(RuntimeError("Kernel died before replying")), "does not start (Kernel died"),
        (
            answers('["/other/env", "/other/env/safealign_utils/__init__.py"]\n'),
            "another environment, /other/env",
        ),
        (answers("", status="error"), "cannot import safealign_utils"),
    ]:
        monkeypatch.setattr(manager, "start_new_kernel", start)
        failed(doctor.kernel, words, "ipykernel install")


def test_no_checkout_is_no_failure(monkeypatch):
    monkeypatch.setattr("safealign_utils.study.records.git_commit", lambda: "")
    assert "no git checkout" in doctor.git()


def test_the_hub_may_be_out_of_reach(monkeypatch):
    assert "not asked" in doctor.hub()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")

    def refuse(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert (
        doctor.hub() == "https://hub.invalid not reachable: the world needs none; give local files"
    )

    def slow(*_, **__):
        raise urllib.error.HTTPError("https://hub.invalid", 405, "no HEAD", {}, None)

    monkeypatch.setattr(doctor.urllib.request, "urlopen", slow)
    assert doctor.hub() == "https://hub.invalid answers"


def test_a_hub_that_hangs_is_given_up(monkeypatch):
    import time

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.0)
    monkeypatch.setattr(doctor, "_answers", lambda _: time.sleep(30))
    start = time.perf_counter()
    assert "not reachable" in doctor.hub() and time.perf_counter() - start < 5


def test_a_damaged_reference_policy(monkeypatch, tmp_path):
    folder = tmp_path / "reference_policies"
    shutil.copytree(cache.PACKAGE / "reference_policies", folder)
    monkeypatch.setattr(doctor.cache, "PACKAGE", tmp_path)
    assert doctor.policies().startswith("5 shipped")
    whole = (folder / "default_seed3.safetensors").read_bytes()
    (folder / "default_seed3.safetensors").write_bytes(whole[: len(whole) // 2])
    failed(doctor.policies, "default_seed3.safetensors", "git checkout")
    (folder / "default_seed3.safetensors").unlink()
    failed(doctor.policies, "default_seed3.safetensors", "missing")
