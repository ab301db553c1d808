"""Checkpoints: a folder or hub id opened once, and what it holds said before its weights are read:
every weight that the model needs, and no other.

transformers loads what fits, draws what is missing at random and leaves out what it does not know,
all without an error. Here the names and shapes in the headers of the files go through its own
loading on the meta device, which holds no numbers, and whatever it would skip is refused. Every
message names the parameter, the file and the fix.
"""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers.utils.peft_utils import find_adapter_config_file

from ..engine.torch_setup import set_up
from . import hub

# transformers reads these, in this order
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
POINTER = b"version https://git-lfs.github.com/spec"
WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")  # of torch.compile, DDP and peft
CONSTANTS = (".attn.masked_bias", ".rotary_emb.inv_freq")  # of older releases of transformers
SAVE_AGAIN = "save the whole model again with save_pretrained"
IN_MESSAGE = 3  # names of weights, at most
REPORTED = dict(output_loading_info=True, ignore_mismatched_sizes=True)  # of from_pretrained


class NotWhole(ValueError):
    """Files of weights that are not there: of a hub's model in the cache, the rest can be
    downloaded."""


@dataclass(frozen=True)
class Opened:
    """A model's folder or hub id with configuration and tokenizer; its weights are not read yet."""

    what: str  # the parameter and its value, for messages
    name: str
    revision: str
    place: str  # the folder, or the hub id, that is read
    options: dict  # of from_pretrained
    config: transformers.PretrainedConfig
    tokenizer: transformers.PreTrainedTokenizerBase
    network: type

    def load(self, **options):
        """The network with its weights; `options` are those of from_pretrained. Raises ValueError
        where a weight is missing, unexpected or misshapen."""
        options = dict(use_safetensors=True, **REPORTED, **self.options, **options)
        with loading(self.what, self.name, self.revision):
            model, report = self.network.from_pretrained(self.place, config=self.config, **options)
        check_report(self.what, self.network, report)
        return model.eval()


def open_model(parameter, name, revision, network_of):
    """The `Opened` that a parameter names. Reads headers, and no weights.

    `network_of(what, config)` gives the class that reads the weights, or refuses the configuration.
    Raises ValueError, naming parameter and value, for what could not be loaded whole.
    """
    set_up()
    what = f"{parameter}={name!r}"
    if not Path(name).is_dir() and not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", hub.pinned(name)[0]):
        raise ValueError(f"{what}: no such folder; give a folder or a hub id as owner/name")
    place, options = hub.located(name, revision, parameter=parameter)
    with loading(what, name, revision):
        check_no_adapter(what, place, options)
        if Path(name).is_dir():
            weight_files(what, name)
        config = transformers.AutoConfig.from_pretrained(place, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
        check_not_quantised(what, config)
        network = network_of(what, config)
        if Path(place).is_dir():  # of a hub id too, where only its copy in the cache can be asked
            check_files(what, place, config, network)
    check_ids(what, tokenizer, config)
    return Opened(what, name, revision, place, options, config, tokenizer, network)


def network_class(auto, config):
    """The class that one of transformers' Auto classes builds for a configuration."""
    with torch.device("meta"):
        return type(auto.from_config(config))


def check_files(what, folder, config, network):
    """Refuse a folder whose weights are not those of `network` with a configuration, by headers
    only; `what` names the parameter and its value."""
    shapes = {}
    for file in weight_files(what, folder):
        for name, shape in _header(what, file).items():
            if name in shapes:
                raise ValueError(
                    f"{what}: {file.name} holds {name}, which another file holds too; {SAVE_AGAIN}"
                )
            shapes[name] = shape
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with _quiet():
        _, report = network.from_pretrained(
            None, config=config, state_dict=empty, device_map={"": "meta"}, **REPORTED
        )
    check_report(what, network, report)


def check_report(what, network, report):
    """Refuse what `from_pretrained(..., **REPORTED)` says of missing, unexpected and misshapen
    weights."""
    unexpected = [name for name in report["unexpected_keys"] if not name.endswith(CONSTANTS)]
    found = {"missing": report["missing_keys"], "unexpected": unexpected}
    found["misshapen"] = [
        f"{name} {list(there)}, not {list(own)}" for name, there, own in report["mismatched_keys"]
    ]
    if not any(found.values()):
        return
    names = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in found.items() if keys)
    fix = SAVE_AGAIN
    for prefix in WRAPPERS:
        if any(name.startswith(prefix) for name in unexpected):
            fix = f"the names begin with {prefix!r}: unwrap the model, then {SAVE_AGAIN}"
    raise ValueError(f"{what}: the weights do not fit {network.__name__} ({names}); {fix}")


def weight_files(what, folder):
    """The weights' files of a folder, those that transformers reads. Raises ValueError where they
    are damaged."""
    folder = Path(folder)
    whole, index = folder / WHOLE, folder / INDEX
    if whole.exists() and index.exists():
        raise ValueError(
            f"{what}: the folder holds {WHOLE} and {INDEX}, two sets of weights; remove one of them"
        )
    if whole.exists():
        return [whole]
    if not index.exists():
        raise NotWhole(
            f"{what}: the folder holds no .safetensors weights, {WHOLE} or {INDEX}; save the model "
            "with save_pretrained"
        )
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{what}: {INDEX} cannot be read ({error}); copy or download it again"
        ) from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise NotWhole(
            f"{what}: {INDEX} names {len(names)} files, {_some(missing)} not there; copy or "
            "download the rest"
        )
    held = {name: file for file in names for name in _header(what, folder / file)}
    if wrong := {name for name in {*held, *places} if held.get(name) != places.get(name)}:
        raise ValueError(f"{what}: {INDEX} and its files differ in {_some(wrong)}; {SAVE_AGAIN}")
    return [folder / name for name in names]


def check_no_adapter(what, place, options):
    """Refuse a folder or hub id with an adapter: alone it is no model, and beside weights it would
    be added to them."""
    where = {name: options[name] for name in ("revision", "local_files_only")}
    if not find_adapter_config_file(str(place), **where):
        return
    if Path(place).is_dir() and any((Path(place) / name).exists() for name in (WHOLE, INDEX)):
        raise ValueError(
            f"{what}: the folder holds an adapter beside its weights, and loading would add it to "
            "them; remove adapter_config.json and adapter_model.safetensors where the weights are "
            "merged, else merge them first"
        )
    raise ValueError(
        f"{what}: holds an adapter only; merge it into its model (merge_and_unload, "
        "save_pretrained), save the tokenizer beside it and name that folder"
    )


def check_not_quantised(what, config):
    """Refuse a configuration that speaks of quantised weights, of whatever kind."""
    for part in (config, config.get_text_config()):
        for name in ("quantization_config", "compression_config"):
            if said := getattr(part, name, None):
                said = said if isinstance(said, dict) else vars(said)
                raise ValueError(
                    f"{what}: its config.json has a quantization_config "
                    f"({said.get('quant_method') or 'unnamed'}); the kit trains and reads whole "
                    "weights: name the model before it was quantised"
                )


def check_ids(what, tokenizer, config):
    """Refuse a tokenizer that gives ids for which the model has no embedding; more embeddings than
    ids are fine."""
    rows = config.get_text_config().vocab_size
    backend = getattr(tokenizer, "backend_tokenizer", None)
    unused = set()
    if backend is not None and getattr(backend.model, "unk_token", None) is None:
        # Qwen2's class names an unknown token that its alphabet of bytes never needs.
        used = {tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token}
        unused = {tokenizer.unk_token} - used
    words = tokenizer.get_vocab().items()
    if beyond := sorted((id, word) for word, id in words if id >= rows and word not in unused):
        id, word = beyond[0]
        raise ValueError(
            f"{what}: the id {id} of its tokenizer ({word!r}) is outside the model's vocabulary of "
            f"{rows}; enlarge the model (model.resize_token_embeddings(len(tokenizer)), "
            "save_pretrained), or take the added token out"
        )


def positions(config):
    """How many tokens a model's positions hold, None where its configuration names no number."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


@contextlib.contextmanager
def loading(what, name, revision=""):
    """Make every error of the libraries a ValueError that names the model (`what`); our own pass as
    they are."""
    try:
        yield
    except Exception as error:  # damaged files end in errors of every kind
        ours, here = str(error).startswith(what), Path(name).is_dir()
        if not here and (isinstance(error, NotWhole) or not ours and hub.unreachable()):
            raise hub.absent(what.partition("=")[0], name, revision) from error
        if ours:
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{what}: cannot be loaded ({said}); the folder must hold a model and its tokenizer; a "
            "gated model needs a login at the hub"
        ) from error


# ---------------------------------------------------------------- helpers
def _header(what, file):
    """{name: shape} of a safetensors file."""
    try:
        with open(file, "rb") as stream:
            pointer = stream.read(len(POINTER)) == POINTER
        if pointer:
            raise ValueError(
                f"{what}: {file.name} is a git-LFS pointer, no weights; run git lfs pull in its "
                "clone"
            )
        with safe_open(file, framework="pt") as f:
            parts = {name: f.get_slice(name) for name in f.keys()}
            kinds = {name: part.get_dtype() for name, part in parts.items()}
            shapes = {name: part.get_shape() for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{what}: {file.name} cannot be read ({error}); it is damaged or cut off: copy or "
            "download it again"
        ) from error
    packed = [name for name, k in kinds.items() if name.endswith(".weight") and k not in FLOATS]
    if packed:
        raise ValueError(
            f"{what}: {file.name} holds {_some(packed)} as {kinds[packed[0]]}, quantised; name the "
            "model before that"
        )
    return shapes


def _some(names):
    names = sorted(names)
    more = f" and {len(names) - IN_MESSAGE} more" if len(names) > IN_MESSAGE else ""
    return ", ".join(names[:IN_MESSAGE]) + more


@contextlib.contextmanager
def _quiet():
    """transformers prints a report of what does not fit; the message says it."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity(transformers.logging.CRITICAL)
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)
