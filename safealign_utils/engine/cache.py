"""One cache on disk, keyed by content: the same question is never computed twice, nor half stored.

Root: the environment variable SAFEALIGN_CACHE, else ~/.cache/safealign. Every entry is one
safetensors file with a digest of its content, written beside its place and renamed, so that it is
there in full or not at all; one that is damaged counts as absent and is removed.
`key` makes every key: an entry is found again only where all that decides it is the same, down to
the source of the package and a constant changed at run time.
"""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from . import live, room, sealed
from .content import content, is_not_science, source_is_in_key

PACKAGE = Path(__file__).parents[1]
LIBRARIES = (  # whose versions decide a digit, or a text
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "peft",
)
ROOM = "Make room at SAFEALIGN_CACHE, or name another folder there"
_said = set()


def root():
    """The cache's folder; not made before something is stored."""
    return Path(os.environ.get("SAFEALIGN_CACHE") or Path.home() / ".cache" / "safealign")


def own_root():
    """Make the cache's folder, for its owner alone; one that is there stays as it is."""
    root().mkdir(mode=0o700, parents=True, exist_ok=True)


def digest(*parts):
    """Hash (16 hex digits) of strings, numbers, None, arrays, and lists, tuples or dicts of
    them."""
    h = hashlib.sha256()
    for part in parts:
        _feed(h, part)
    return h.hexdigest()[:16]


def _feed(h, part):
    if isinstance(part, np.ndarray) and part.dtype != object:
        h.update(f"array {part.dtype} {part.shape} ".encode())
        h.update(np.ascontiguousarray(part).tobytes())
    elif isinstance(part, dict):
        h.update(f"dict {len(part)} ".encode())
        for key in sorted(part):
            _feed(h, str(key))
            _feed(h, part[key])
    elif isinstance(part, (list, tuple, np.ndarray)):
        h.update(f"list {len(part)} ".encode())
        for item in part:
            _feed(h, item)
    elif isinstance(part, bytes):
        h.update(f"bytes {len(part)} ".encode())
        h.update(part)
    elif part is None or isinstance(part, (str, int, float, bool, np.generic)):
        text = repr(part.item() if isinstance(part, np.generic) else part)
        h.update(f"{type(part).__name__} {len(text)} {text} ".encode())
    else:
        raise TypeError(f"cannot hash {type(part).__name__} for the cache")


# ---------------------------------------------------------------- keys
def key(kind, /, **inputs):
    """The key of an entry of a kind: everything that decides what is in it.

    `inputs` are all that the computation is given, of any type, known by their content. Every key
    knows besides the source of the package, its constants as they are now, the versions of Python
    and of the libraries, and torch's settings. Raises content.Unknown, a ValueError, for an input
    that has no content to go by.
    """
    parts = [[name, content(value, name)] for name, value in sorted(inputs.items())]
    return digest(
        kind, science(), changed_constants(), library_versions(), _settings_of_torch(), parts
    )


def code_hash():
    """Hash of the source of the whole package: for records, and to tell two copies of it apart."""
    return _hash_of_files(_stats(lambda module: True))


def science():
    """Hash of all source files that can decide a number: the package without what runs notebooks
    and draws.

    Where a file was edited after this process began, what is loaded may be the old or the new: such
    keys are of no other process.
    """
    now = _hash_of_files(_stats(_is_science))
    return now if now == FIRST else digest(FIRST, now, os.getpid())


def _is_science(module):
    return not is_not_science(module)


def _stats(chosen):
    """(file, time of change, inode, size) of the source files whose module, in parts, is chosen."""
    out = []
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE)
        if chosen(name.with_suffix("").parts):
            stat = file.stat()
            out.append((str(name), stat.st_mtime_ns, stat.st_ino, stat.st_size))
    return tuple(out)


@functools.cache
def _hash_of_files(stats):
    return digest([(name, (PACKAGE / name).read_bytes()) for name, *_ in stats])


def changed_constants():
    """{module.NAME: content} of the constants of loaded modules that are no longer what their
    source says."""
    out = {}
    for name, module in sorted(sys.modules.items()):
        if module is None or not source_is_in_key(name):
            continue
        for constant, expected in _constants(name):
            value = getattr(module, constant, None)
            default = expected(module)
            if callable(value) or value is default:
                continue
            if content(value, constant) != content(default, constant):
                out[f"{name}.{constant}"] = content(value, constant)
    return out


@functools.cache
def _constants(name):
    """[(NAME, function of the module that gives the value which the source says)] of a module's
    capital names."""
    file = getattr(sys.modules[name], "__file__", None)
    out = []
    for node in ast.parse(Path(file).read_bytes()).body if file else ():
        if isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for alias in node.names:
                if alias.name.isupper():
                    out.append(
                        (
                            alias.asname or alias.name,
                            functools.partial(_imported, source, alias.name),
                        )
                    )
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                out += _assigned(target, compile(ast.Expression(node.value), file, "eval"))
    return out


def _assigned(target, code):
    """[(NAME, function of the module that gives its value)] of one target: `A = ...`, or `A, B =
    ...`."""
    if isinstance(target, ast.Tuple):
        names = [(getattr(part, "id", ""), n) for n, part in enumerate(target.elts)]
    else:
        names = [(getattr(target, "id", ""), None)]
    return [(name, functools.partial(_evaluated, code, n)) for name, n in names if name.isupper()]


def _imported(source, name, module):
    """What a module imported under `name`, as it stands where it came from."""
    full = importlib.util.resolve_name(source, module.__package__)
    return getattr(sys.modules.get(full, module), name, None)


def _evaluated(code, place, module):
    value = eval(code, vars(module))
    return value if place is None else value[place]


@functools.cache
def library_versions():
    """Versions of Python and of the libraries that decide a digit: part of every key and of every
    run id."""
    out = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def _settings_of_torch():
    """Settings of the whole process that change what torch computes."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    matmul = torch.backends.cuda.matmul
    cudnn = torch.backends.cudnn
    reduced = [
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
    ]
    sdp = torch.backends.cuda
    kernels = [sdp.flash_sdp_enabled(), sdp.mem_efficient_sdp_enabled(), sdp.math_sdp_enabled()]
    return [
        str(torch.get_default_dtype()),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        [str(x) for x in (matmul.allow_tf32, cudnn.allow_tf32, *reduced, *kernels)],
    ]


# ---------------------------------------------------------------- entries
def path(kind, key):
    return root() / kind / f"{key}.safetensors"


def load(kind, key):
    """The stored arrays and their metadata, or None. What is damaged is removed, and counts as
    absent; so does what cannot be read."""
    file = path(kind, key)
    try:
        if not file.is_file():
            return None
        room.use(file)
        return sealed.read(file, f"{kind}/{key}")
    except sealed.Damaged as error:
        say(f"{file} is damaged ({error}); removed, it is computed again")
        with contextlib.suppress(OSError):
            file.unlink()
    except OSError as error:
        say(f"{file} cannot be read ({error}); computing it again")
    return None


def store(kind, key, arrays, **info):
    """Store named arrays, whole or not at all. The first writer of a key wins; both wrote the same.

    A full or unwritable disk, or an entry larger than the cache may be (`room`), costs the entry
    and nothing else: what was computed is in the caller's hands. Then returns None and says so.
    """
    file, arrays = path(kind, key), {k: np.asarray(v, order="C") for k, v in arrays.items()}
    try:
        size = sum(array.nbytes for array in arrays.values())
        if not room.make(root(), size):
            say(
                f"{file} is larger than SAFEALIGN_CACHE_GB allows ({size / 1e9:.2g} GB); not stored"
            )
            return None
        own_root()
        _tidy(file.parent)
        with live.whole(file, flushed=False) as beside:  # the digest tells what a power cut tore
            sealed.write(beside, f"{kind}/{key}", arrays, info)
    except (SafetensorError, OSError) as error:
        say(f"{file} cannot be written ({error}); going on without it. {ROOM}")
        return None
    return file


@functools.cache
def _tidy(folder):
    """Once in a process: remove what processes that are no more have left half written in a
    folder."""
    live.remove_leftovers(folder)


def say(words):
    """To stderr, the same words once in a process."""
    if words not in _said:
        _said.add(words)
        print(f"cache: {words}", file=sys.stderr)


def write_whole(path, text):
    """Write a text file, whole or not at all; returns its path."""
    with live.whole(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)


FIRST = _hash_of_files(_stats(_is_science))  # the source when this process first asked for it
