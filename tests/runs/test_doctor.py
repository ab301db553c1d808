"""`safealign doctor`: every look passes here, and fails with the fix in words where something is planted."""

import shutil
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
from helpers import ROOT

from safealign_utils.engine import cache
from safealign_utils.real import hub
from safealign_utils.runs import cli, doctor
from safealign_utils.study.settings import Refusal


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """The hub is never asked; `kernel` is looked at in one test only, since it starts a process."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def failed(look, *words):
    with pytest.raises(Refusal) as caught:
        look()
    assert all(word in str(caught.value) for word in words), caught.value


def test_everything_is_there(capsys, fresh_cache):
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [look.__name__ for look in doctor.LOOKS]
    assert all(line.startswith("[OK]") for line in lines[:-1]) and lines[-1] == "all is there"
    assert not fresh_cache.exists(), "nothing is left behind"


def test_a_failure_is_said_and_the_others_still_follow(capsys, monkeypatch):
    def well():
        return "there"

    def old():
        raise Refusal("too old; take a new one")

    def broken():
        raise OSError("no such device")

    monkeypatch.setattr(doctor, "LOOKS", [well, old, broken, well])
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "[OK]   well       there",
        "[FAIL] old        too old; take a new one",
        "[FAIL] broken     cannot be looked at (OSError: no such device)",
        "[OK]   well       there",
        "2 of 4 failed",
    ]


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
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    failed(doctor.memory, "1.0 GiB free", "1.5 GiB")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    failed(doctor.disk, "1.0 GiB free", "SAFEALIGN_CACHE")


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path / "file" / "cache"))
    failed(doctor.cache, "cannot be written", "SAFEALIGN_CACHE")


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
    failed(doctor.cache, "SAFEALIGN_CACHE=''", "set SAFEALIGN_CACHE to a folder of yours")


def test_a_cache_with_entries_is_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("SAFEALIGN_CACHE", str(tmp_path))
    (tmp_path / "kind").mkdir()
    (tmp_path / "kind" / "key.safetensors").write_bytes(bytes(3 * 2**20))
    assert doctor.cache() == f"{tmp_path} is writable; 1 entries, 3 MiB"


INSTALL = "ipykernel install --sys-prefix"


def test_kernels_that_do_not_start(monkeypatch):
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient import NotebookClient

    def raises(error):
        def setup(*_):
            raise error

        return setup

    for error, words in [
        (NoSuchKernel("python3"), "no kernelspec"),
        (RuntimeError("Kernel died before replying"), "does not start (Kernel died"),
    ]:
        monkeypatch.setattr(NotebookClient, "setup_kernel", raises(error))
        failed(doctor.kernel, words, INSTALL)


def test_a_kernel_in_the_folder_of_another_clone(monkeypatch, tmp_path):
    """It computes with the command's own package, whatever lies in the folder (on Linux)."""
    (tmp_path / "safealign_utils").mkdir()
    (tmp_path / "safealign_utils" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert str(tmp_path) not in doctor.kernel()


def test_no_checkout_is_no_failure(monkeypatch):
    monkeypatch.setattr("safealign_utils.study.records.git_commit", lambda: "")
    assert "no git checkout" in doctor.git()


def test_the_hub_may_be_out_of_reach(monkeypatch):
    local = ": the world needs none; give local files"
    assert doctor.hub() == f"HF_HUB_OFFLINE is set{local}"
    monkeypatch.setattr(hub, "unreachable", lambda: "no answer in 4 s")
    assert doctor.hub() == f"no answer in 4 s{local}"
    monkeypatch.setattr(hub, "unreachable", lambda: "")
    assert doctor.hub() == "answers"


def test_a_damaged_reference_policy(monkeypatch, tmp_path):
    folder = tmp_path / "world" / "reference_policies"
    shutil.copytree(cache.PACKAGE / "world" / "reference_policies", folder)
    monkeypatch.setattr(cache, "PACKAGE", tmp_path)
    assert doctor.policies() == "13 shipped, seeds 0 to 12, 115,008 weights each"
    whole = (folder / "default_seed3.safetensors").read_bytes()
    (folder / "default_seed3.safetensors").write_bytes(whole[: len(whole) // 2])
    failed(doctor.policies, "default_seed3.safetensors", "git checkout -- safealign_utils/world")
    (folder / "default_seed3.safetensors").unlink()
    failed(doctor.policies, "default_seed3.safetensors", "missing")
