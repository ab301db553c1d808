"""What surrounds a run: another copy of the package, variables of launchers and libraries."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
from helpers import ROOT, toy
from helpers import tiny_models as models

from safealign_utils import train
from safealign_utils.engine import cache, distributed
from safealign_utils.runs import cli, copies, runner

STUDY = """from safealign_utils.study.study import Study
study = Study("toy", globals())
study.metrics["toy.value"] = 1.0
study.finish()"""


@pytest.fixture
def book(tmp_path):
    return toy.notebook(tmp_path / "toy.ipynb", toy.CELL + "\nmax_length: int = 64", STUDY)


def clone(folder):
    """What a run needs of a clone, in a folder; returns its package."""
    shutil.copytree(ROOT / "notebooks" / "profiles", folder / "notebooks" / "profiles")
    return shutil.copytree(ROOT / "safealign_utils", folder / "safealign_utils")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another clone, of an older version that knows nothing of the check."""
    folder = tmp_path_factory.mktemp("other_clone")
    package = clone(folder)
    shutil.rmtree(package / "__pycache__", ignore_errors=True)
    (package / "runs" / "copies.py").unlink()
    train = package / "train.py"
    train.write_text(train.read_text() + "\nOTHER = True\n")
    return folder


@pytest.fixture
def kernelspec(tmp_path):
    """A function that puts a kernelspec python3 in front of the environment's own; returns JUPYTER_PATH."""

    def make(**spec):
        folder = tmp_path / "jupyter" / "kernels" / "python3"
        folder.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = dict(argv=argv, display_name="site", language="python") | spec
        (folder / "kernel.json").write_text(json.dumps(spec))
        return str(tmp_path / "jupyter")

    return make


def refused(book, capsys):
    out = book.parent / "out"
    assert cli.main(["run", str(book), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not list(out.glob("[!.]*")), "nothing is written"
    return said


def test_a_kernel_of_another_copy_is_refused(book, other, kernelspec, monkeypatch, capsys):
    """Before its first cell, with both folders and the fix. A copy of the same content will do."""
    monkeypatch.setenv("JUPYTER_PATH", kernelspec(env={"PYTHONPATH": str(other)}))
    said = refused(book, capsys)
    assert (
        f"would import {other / 'safealign_utils'}, the command runs {ROOT / 'safealign_utils'}"
        in said
    )
    assert "unset JUPYTER_PATH" in said
    with pytest.raises(runner.Refusal, match="would import"):
        runner.regenerate(book)


def test_a_copy_of_the_same_content_will_do(book, kernelspec, monkeypatch, tmp_path):
    same = clone(tmp_path / "same")
    monkeypatch.setenv("JUPYTER_PATH", kernelspec(env={"PYTHONPATH": str(same.parent)}))
    assert runner.run(str(book), out=tmp_path / "out")[2]


def test_a_kernel_without_the_package_or_with_other_libraries_is_refused(book, monkeypatch, capsys):
    real = copies.check

    def found(answer):
        class Client:
            kc = type("Kernel", (), {"execute": staticmethod(lambda *a, **k: "id")})

            def wait_for_reply(self, id):
                return {"content": {"user_expressions": {"found": answer}}}

        return lambda client: real(Client())

    package, versions = copies.found([*cache.library_versions(), "nothing_of_the_kind"])
    assert (
        package == str(ROOT / "safealign_utils")
        and versions.pop("nothing_of_the_kind") == "not installed"
    )
    for answer, words in (
        (("", versions), "finds no safealign_utils"),
        ((package, versions | {"torch": "1.0"}), "has torch 1.0, the command "),
    ):
        monkeypatch.setattr(
            copies, "check", found({"status": "ok", "data": {"text/plain": repr(answer)}})
        )
        assert words in refused(book, capsys)
    monkeypatch.setattr(copies, "check", found({"status": "error", "evalue": "broken"}))
    assert "cannot be asked what it imports (broken)" in refused(book, capsys)


STARTED = "import sys; sys.path[0] = {root!r}; from safealign_utils.runs.cli import main; sys.exit(main({words!r}))"


def test_started_in_another_clone(book, other, tmp_path):
    """An installed package, and another copy where the command starts: kernels come from a process
    that has imported this package, and compute with it."""
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text(f"notebook: {book}\nseeds: [0, 1]\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONWARNINGS": "ignore"}
    for words in (["run", book], ["sweep", grid, "--workers", "1"]):
        program = STARTED.format(root=str(ROOT), words=[*map(str, words), "--out", str(out)])
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=other,
            env=env,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    codes = [json.loads(p.read_text())["provenance"]["code"] for p in out.rglob("record.json")]
    assert codes == [cache.code_hash()] * 3


def test_a_notebook_that_brings_its_own_copy_is_noticed_at_the_end(book, other, tmp_path):
    """Whatever the first look said, a record of other code does not count."""
    path = f"""import sys
sys.path.insert(0, {str(other)!r})
for name in [name for name in sys.modules if name.startswith("safealign_utils")]:
    del sys.modules[name]
"""
    toy.notebook(book, toy.CELL + "\nmax_length: int = 64", path + STUDY)
    with pytest.raises(runner.Failed, match="ran other code than .*safealign_utils"):
        runner.run(str(book), out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*/record.json"))


# ---------------------------------------------------------------- variables of accelerate


SOURCE = Path(accelerate.__file__).parent
NAME = re.compile(r'"((?:ACCELERATE|FSDP|MEGATRON_LM|PARALLELISM_CONFIG)_[A-Z0-9_]+)"')
PREFIXED = re.compile(r'(?:env_)?prefix \+ "([A-Z0-9_]+)"')
PREFIXES = ("ACCELERATE_DYNAMO_", "ACCELERATE_FP8_", "FSDP_", "MEGATRON_LM_")


def variables():
    """Every variable that accelerate's source names."""
    found = set()
    for file in [*SOURCE.glob("*.py"), *SOURCE.glob("utils/*.py")]:
        text = file.read_text(encoding="utf-8")
        found |= set(NAME.findall(text))
        found |= {prefix + end for end in PREFIXED.findall(text) for prefix in PREFIXES}
    return sorted(found)


MPI = [
    "PMI_RANK",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE",
    "MPI_LOCALRANKID",
]
VALUES = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "8",
    "ACCELERATE_DYNAMO_BACKEND": "EAGER",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "FSDP_VERSION": "2",
    **dict.fromkeys(MPI, "2"),
}


SHORT = dict(beta=0.5, steps=1, batch_size=4, learning_rate=5e-3, seed=0)


def trained():
    return train.align(
        models.policy_of("llama"), models.made_tokens(4), use_cache=False, **SHORT
    ).policy.hash


def refusal_of(name, value, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv(name, value)
        try:
            distributed.check_environment()
        except ValueError as error:
            assert str(error).startswith(f"{name}={value}: ")
            return True
    return False


def test_no_variable_of_accelerate_changes_a_training(monkeypatch):
    """Of all that its source reads some are refused; with all others set at once the weights are the same."""
    names = [*variables(), *MPI, "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
    assert len(names) > 60 and "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in names
    given, want = {name: VALUES.get(name, "true") for name in names}, trained()
    refused = {name for name, value in given.items() if refusal_of(name, value, monkeypatch)}
    engines = {
        f"ACCELERATE_USE_{x}"
        for x in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")
    }
    assert refused == engines | {"ACCELERATE_FP8_BACKEND"}
    for name in given.keys() - refused:
        monkeypatch.setenv(name, given[name])
    before = dict(os.environ)
    assert trained() == want and dict(os.environ) == before


@pytest.mark.parametrize(
    "name, value, harmless",
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "false"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "0"),
        ("NVIDIA_TF32_OVERRIDE", "1", "0"),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", "0"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16", "STRICT"),
    ],
)
def test_what_cannot_be_set_aside_is_refused(name, value, harmless, book, monkeypatch, capsys):
    monkeypatch.setenv(name, harmless)
    runner.prepare(str(book))
    monkeypatch.setenv(name, value)
    assert f"{name}={value}: " in refused(book, capsys)


@pytest.mark.parametrize("name", distributed.UNSUPPORTED)
def test_fsdp_as_the_kit_does_not_do_it_is_refused(name, monkeypatch):
    several = dict(
        WORLD_SIZE="2",
        RANK="0",
        LOCAL_RANK="0",
        MASTER_ADDR="localhost",
        ACCELERATE_USE_FSDP="true",
    )
    for key, value in several.items():
        monkeypatch.setenv(key, value)
    distributed.check_environment()
    monkeypatch.setenv(name, "true")
    with pytest.raises(ValueError, match=f"^{name}=true: .*write {name.lower()}: false"):
        distributed.check_environment()


# ---------------------------------------------------------------- numbers of processes


def test_a_job_array_numbers_its_jobs(book, monkeypatch, tmp_path):
    """RANK without a world is somebody else's: one process is number 0."""
    for world in (None, "1"):
        for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.setenv(name, "7" if name != "LOCAL_RANK" else "first")
        if world:
            monkeypatch.setenv("WORLD_SIZE", world)
        assert (
            distributed.count() == 1
            and distributed.rank() == 0
            and distributed.own_device("cuda") == "cuda"
        )
        distributed.check_environment()
    _, record, ran = runner.run(str(book), out=tmp_path / "out")
    assert ran and record["metrics"]["toy.value"] == 1.0


@pytest.mark.parametrize(
    "given, message",
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two': a whole number of at least 1; unset it"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4: RANK is not set; unset WORLD_SIZE"),
        (
            {"WORLD_SIZE": "2", "RANK": "2"},
            "RANK='2': a whole number of at least 0, below 2; .*accelerate launch",
        ),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK='-1'"),
        ({"WORLD_SIZE": "2", "RANK": "one"}, "RANK='one'"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "x"}, "LOCAL_RANK='x'"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
            "LOCAL_RANK='1': .* below 1",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "some"}, "LOCAL_WORLD_SIZE='some'"),
    ],
)
def test_numbers_of_processes_that_make_no_sense_are_refused(
    given, message, book, monkeypatch, capsys
):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        distributed.check_environment()
    refused(book, capsys)
