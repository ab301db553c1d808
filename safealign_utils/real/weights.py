"""Checkpoints: a folder or hub id opened once and held against its model before weights are read.

transformers loads what fits, draws what is missing at random and leaves out what it does not know,
without an error. Here the names and shapes in the files' headers go through its own loading on the
meta device, and whatever it would skip is refused, naming the parameter, the file and the fix.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers.utils.peft_utils import find_adapter_config_file

from ..engine import boundary
from ..engine.boundary import Refusal, shown
from ..engine.torch_setup import set_up
from . import fetched, hub

FIX = "give a folder that save_pretrained wrote, or a hub id as owner/name"
MOST_LAYERS, MOST_WIDE = 2**12, 2**31  # of numbers in a config.json: larger ones are damage
READ_WHOLE = (".json", ".jinja", ".txt", ".model")  # by configuration and tokenizer, unlike weights
MOST_TOKENIZER = 2**29  # bytes of such a file

HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
SENSES = re.compile("vision|audio|image|video|speech|qformer|encoder|decoder|codec")
# transformers reads these, in this order
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
POINTER = b"version https://git-lfs.github.com/spec"
WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")  # of torch.compile, DDP and peft
CONSTANTS = (".attn.masked_bias", ".rotary_emb.inv_freq")  # of older releases of transformers
SAVE_AGAIN = "save the whole model again with save_pretrained"
IN_MESSAGE = 3  # names of weights, at most
REPORTED = dict(output_loading_info=True, ignore_mismatched_sizes=True)  # of from_pretrained


class NotWhole(Refusal):
    """Files of weights that are not there; those of a hub's model can be downloaded."""


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

    def count(self):
        """How many weights its configuration has; none is made for it."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.network(self.config).parameters())

    def load(self, **options):
        """The network with its weights; `options` of from_pretrained. Raises as `check_report`."""
        options = dict(use_safetensors=True, **REPORTED, **self.options, **options)
        with loading(self.what, self.name, self.revision):
            model, report = self.network.from_pretrained(self.place, config=self.config, **options)
        check_report(self.what, self.network, report)
        return model.eval()


def open_model(parameter, name, revision, network_of):
    """The `Opened` that a parameter names. Reads headers, and no weights.

    `network_of(config)` gives the class that reads the weights, or refuses the configuration.
    Raises ValueError, naming parameter and value, for what could not be loaded whole.
    """
    set_up()
    what, name = f"{parameter}={shown(name)}", fetched.place(name, parameter)
    is_folder = os.path.isdir(name)
    if not is_folder and not HUB_ID.fullmatch(hub.pinned(name)[0]):
        raise Refusal(f"{what}: no such folder; give a folder or a hub id as owner/name")
    place, options = hub.located(name, revision, parameter=parameter)
    with loading(what, name, revision):
        if os.path.isdir(place):
            check_files_of(what, place)
        check_no_adapter(what, place, options)
        if os.path.isdir(place):
            check_config(what, place)
        if is_folder:
            weight_files(what, name)
        config = transformers.AutoConfig.from_pretrained(place, **options)
        check_kind(what, config)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
        check_not_quantised(what, config)
        network = network_of(config)
        if os.path.isdir(place):  # of a hub id too, where only its copy in the cache can be asked
            check_files(what, place, config, network)
    check_ids(what, tokenizer, config)
    return Opened(what, name, revision, place, options, config, tokenizer, network)


def check_files_of(what, folder):
    """Refuse a folder with a file that would hold the process."""
    for file in sorted(Path(folder).iterdir()):
        if os.path.isfile(file) and file.suffix in READ_WHOLE:
            boundary.open_file(file, f"{what}: {file.name}", MOST_TOKENIZER).close()
        elif os.path.exists(file) and not os.path.isdir(file):
            boundary.open_file(file, f"{what}: {file.name}").close()


def check_config(what, folder):
    """Refuse a config.json that is none, and one of sizes that nobody trains: a network is built
    of it."""
    if not os.path.isfile(Path(folder) / "config.json"):
        why = "it holds no config.json, nor weights in .safetensors"
        why = why if not any(Path(folder).glob("*.safetensors")) else "it holds no config.json"
        raise Refusal(f"{what}: cannot be loaded ({why}); {FIX}")
    config = boundary.read_json(Path(folder) / "config.json", f"{what}: config.json")
    if not isinstance(config, dict):
        raise Refusal(f"{what}: config.json holds no names; save the model again")
    for name, value in _numbers(config):
        most = MOST_LAYERS if re.search("layers?$|experts|blocks|labels", name) else MOST_WIDE
        if not abs(value) <= most:
            words = f"{shown(name)[1:-1]}={shown(value)}, at most {most} is read"
            raise Refusal(f"{what}: config.json has {words}; copy or download it again")


def _numbers(config):
    """(name, number) of all whole numbers of a configuration and of those inside it."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, value


def check_kind(what, config):
    """Refuse what is no plain decoder of text: its prompt and response are no one sequence."""
    kind = ""
    parts = {*(getattr(type(config), "sub_configs", None) or ()), *vars(config)}
    senses = sorted(n for n in parts if n.endswith("_config") and SENSES.search(n))
    architecture = str((getattr(config, "architectures", None) or [""])[0])
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder model"
    elif senses:
        kind = f"a multimodal model (it has a {senses[0]})"
    elif architecture.endswith("ForMaskedLM"):
        kind = f"an encoder ({architecture})"
    if kind:
        fix = "name a decoder of text, such as a Llama, Qwen2, Mistral or GPT-2"
        raise Refusal(f"{what}: {config.model_type} is {kind}; {fix}")


def network_class(auto, config):
    """The class that one of transformers' Auto classes builds for a configuration."""
    with torch.device("meta"):
        return type(auto.from_config(config))


def check_files(what, folder, config, network):
    """Refuse a folder whose weights, by their headers, are not those of `network`."""
    shapes = {}
    for file in weight_files(what, folder):
        of_file = _header(what, file)
        if twice := sorted(shapes.keys() & of_file):
            held = f"{file.name} holds {twice[0]}, which another file holds too"
            raise Refusal(f"{what}: {held}; {SAVE_AGAIN}")
        shapes |= of_file
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    given = dict(config=config, state_dict=empty, device_map={"": "meta"}, **REPORTED)
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity(transformers.logging.CRITICAL)  # our message says it
    try:
        _, report = network.from_pretrained(None, **given)
    finally:
        transformers.utils.logging.set_verbosity(before)
    check_report(what, network, report)


def check_report(what, network, report):
    """Refuse missing, unexpected and misshapen weights of `from_pretrained(..., **REPORTED)`."""
    unexpected = [name for name in report["unexpected_keys"] if not name.endswith(CONSTANTS)]
    shapes = [f"{k} {list(one)}, not {list(own)}" for k, one, own in report["mismatched_keys"]]
    found = {"missing": report["missing_keys"], "unexpected": unexpected, "misshapen": shapes}
    if not any(found.values()):
        return
    names = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in found.items() if keys)
    fix = SAVE_AGAIN
    for prefix in WRAPPERS:
        if any(name.startswith(prefix) for name in unexpected):
            fix = f"the names begin with {prefix!r}: unwrap the model, then {SAVE_AGAIN}"
    raise Refusal(f"{what}: the weights do not fit {network.__name__} ({names}); {fix}")


def weight_files(what, folder):
    """The files of weights that transformers reads. Raises ValueError for damaged ones."""
    folder = Path(folder)
    whole, index = folder / WHOLE, folder / INDEX
    if whole.exists() and index.exists():
        raise Refusal(f"{what}: holds {WHOLE} and {INDEX}, two sets of weights; remove one")
    if whole.exists():
        return [whole]
    if not index.exists():
        why = f"the folder holds no .safetensors weights, {WHOLE} or {INDEX}"
        raise NotWhole(f"{what}: {why}; save the model with save_pretrained")
    try:
        places = boundary.read_json(index)["weight_map"]
        names = sorted(set(places.values()))
        if not all(Path(name).name == name for name in names):
            raise Refusal("it names files of other folders")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{INDEX} cannot be read ({boundary.reason(error.__cause__ or error)})"
        raise Refusal(f"{what}: {why}; copy or download it again") from error
    if missing := [name for name in names if not os.path.isfile(folder / name)]:
        why = f"{INDEX} names {len(names)} files, {_some(missing)} not there"
        raise NotWhole(f"{what}: {why}; copy or download the rest")
    held = {name: file for file in names for name in _header(what, folder / file)}
    if wrong := {name for name in {*held, *places} if held.get(name) != places.get(name)}:
        raise Refusal(f"{what}: {INDEX} and its files differ in {_some(wrong)}; {SAVE_AGAIN}")
    return [folder / name for name in names]


def check_no_adapter(what, place, options):
    """Refuse an adapter: alone it is no model, and loading would add it to weights beside it."""
    where = {name: options[name] for name in ("revision", "local_files_only")}
    if not find_adapter_config_file(str(place), **where):
        return
    if Path(place).is_dir() and any((Path(place) / name).exists() for name in (WHOLE, INDEX)):
        why = "holds an adapter beside its weights, and loading would add it to them"
        fix = "remove adapter_config.json and adapter_model.safetensors where they are merged"
        raise Refusal(f"{what}: {why}; {fix}, else merge them first")
    fix = "merge it (merge_and_unload, save_pretrained), save the tokenizer beside it"
    raise Refusal(f"{what}: holds an adapter only; {fix} and name that folder")


def check_not_quantised(what, config):
    """Refuse a configuration that speaks of quantised weights, of whatever kind."""
    for part in (config, config.get_text_config()):
        for name in ("quantization_config", "compression_config"):
            if said := getattr(part, name, None):
                method = (said if isinstance(said, dict) else vars(said)).get("quant_method")
                why = f"its config.json has a quantization_config ({method or 'unnamed'})"
                fix = "the kit needs whole weights: name the model before it was quantised"
                raise Refusal(f"{what}: {why}; {fix}")


def check_ids(what, tokenizer, config):
    """Refuse a tokenizer that gives ids for which the model has no embedding."""
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
        why = f"the id {id} of its tokenizer ({word!r}) is outside the model's vocabulary of {rows}"
        fix = "model.resize_token_embeddings(len(tokenizer)) and save_pretrained"
        raise Refusal(f"{what}: {why}; {fix}, or take the added token out")


def positions(config):
    """How many tokens a model's positions hold, None where its configuration names no number."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


@contextlib.contextmanager
def loading(what, name, revision=""):
    """Make every error of the libraries a ValueError that names the model (`what`)."""
    try:
        yield
    except boundary.STOPS:
        raise
    except BaseException as error:  # damaged files end in errors of every kind, panics too
        ours, here = isinstance(error, Refusal), os.path.isdir(name)
        if not here and (isinstance(error, NotWhole) or not ours and hub.unreachable()):
            raise hub.absent(what.partition("=")[0], name, revision) from error
        if ours:
            raise
        said = boundary.reason(error)
        fix = "the folder must hold a model and its tokenizer; a gated model needs a login"
        raise Refusal(f"{what}: cannot be loaded ({said}); {fix} at the hub") from error


def _header(what, file):
    """{name: shape} of a safetensors file."""
    try:
        with boundary.open_file(file) as stream:
            pointer = stream.read(len(POINTER)) == POINTER
        if pointer:
            why = f"{file.name} is a git-LFS pointer, no weights"
            raise Refusal(f"{what}: {why}; run git lfs pull in its clone")
        with safe_open(file, framework="pt") as f:
            parts = {name: f.get_slice(name) for name in f.keys()}
            kinds = {name: part.get_dtype() for name, part in parts.items()}
            shapes = {name: part.get_shape() for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        why = f"{file.name} cannot be read ({boundary.reason(error)}); it is damaged or cut off"
        raise Refusal(f"{what}: {why}: copy or download it again") from error
    packed = [name for name, k in kinds.items() if name.endswith(".weight") and k not in FLOATS]
    if packed:
        why = f"{file.name} holds {_some(packed)} as {kinds[packed[0]]}, quantised"
        raise Refusal(f"{what}: {why}; name the model before that")
    return shapes


def _some(names):
    names = sorted(names)
    more = f" and {len(names) - IN_MESSAGE} more" if len(names) > IN_MESSAGE else ""
    return ", ".join(names[:IN_MESSAGE]) + more
