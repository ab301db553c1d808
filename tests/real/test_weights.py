"""Checkpoints: every weight that a model needs is in its files and every weight of the files is used, or a refusal."""

import json
import os
import re
import shutil

import pytest
import torch
import transformers
from helpers import made_models
from safetensors.torch import load_file, save_file

from safealign_utils import references
from safealign_utils.real import models, weights
from safealign_utils.real.scorer_checkpoints import check_scorer, load_scorer
from safealign_utils.runs import cli

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder a kind of model, to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    return {kind: made_models.model_folder(folder / kind, kind) for kind in made_models.KINDS}


@pytest.fixture
def llama(saved, tmp_path):
    return shutil.copytree(saved["llama"], tmp_path / "model")


def network(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def rewrite(folder, change):
    """Put `change(state)` in place of the weights of a folder."""
    state = change(load_file(folder / FILE))
    save_file(
        {k: v.clone().contiguous() for k, v in state.items()}, folder / FILE, {"format": "pt"}
    )
    return folder


def configure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def words(folder, **tokens):
    made = transformers.AutoTokenizer.from_pretrained(folder)
    made.add_special_tokens(tokens)
    made.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", made_models.KINDS)
def test_what_transformers_saves_is_loaded_whole(saved, tmp_path, kind, tied, dtype, shards):
    """Every weight arrives, in float32; one file or shards, tied or not."""
    config = transformers.AutoConfig.from_pretrained(saved[kind], tie_word_embeddings=tied)
    torch.manual_seed(1)
    made = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    shutil.copytree(saved[kind], tmp_path / "m", ignore=shutil.ignore_patterns("model*"))
    made.save_pretrained(tmp_path / "m", **({"max_shard_size": "20KB"} if shards else {}))
    assert (tmp_path / "m" / INDEX).exists() == shards
    loaded = models.load_policy(str(tmp_path / "m")).model
    own, state = made.state_dict(), loaded.state_dict()
    assert own.keys() == state.keys() and all(torch.equal(own[k].float(), state[k]) for k in own)
    assert {v.dtype for v in state.values()} == {torch.float32}


def test_harmless_extras_are_no_fault(saved, tmp_path):
    """Buffers of older releases, names without the prefix of the whole model, more embeddings than tokens."""
    old = shutil.copytree(saved["llama"], tmp_path / "old")
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    models.check_model(str(rewrite(old, lambda state: state | buffers)))
    gpt2 = shutil.copytree(saved["gpt2"], tmp_path / "gpt2")
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool) for i in range(2)}
    masks |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    bare = lambda state: {k.removeprefix("transformer."): v for k, v in state.items()} | masks
    want = network(saved["gpt2"]).state_dict()
    found = models.load_policy(str(rewrite(gpt2, bare))).model.state_dict()
    assert all(torch.equal(want[k], found[k]) for k in want)
    wide = shutil.copytree(saved["qwen2"], tmp_path / "wide")
    model = network(wide)
    model.resize_token_embeddings(512)
    model.save_pretrained(wide)
    models.check_model(str(wide))


def test_nothing_is_read_but_headers(llama, monkeypatch):
    """No number of a weight is read, and no random number drawn."""
    before = torch.get_rng_state()
    monkeypatch.setattr("safetensors.torch.load_file", None)
    assert models.check_model(str(llama)).config.model_type == "llama" and torch.equal(
        before, torch.get_rng_state()
    )


# ---------------------------------------------------------------- what is refused


WRONG = {
    "compiled": (lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, "'_orig_mod.': unwrap"),
    "parallel": (lambda s: {f"module.{k}": v for k, v in s.items()}, "'module.': unwrap"),
    "no head": (
        lambda s: {k: v for k, v in s.items() if k != "lm_head.weight"},
        "missing: lm_head.weight",
    ),
    "no layer": (
        lambda s: {k: v for k, v in s.items() if "layers.1" not in k},
        "missing: model.layers.1",
    ),
    "no norm": (
        lambda s: {k: v for k, v in s.items() if k != "model.norm.weight"},
        "missing: model.norm.weight",
    ),
    "extra": (
        lambda s: s | {"value_head.weight": torch.ones(1, 32)},
        "unexpected: value_head.weight",
    ),
    "bias": (
        lambda s: s | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
        "unexpected: .*q_proj.bias",
    ),
    "shape": (
        lambda s: s | {"lm_head.weight": torch.ones(100, 32)},
        r"misshapen: lm_head.weight \[100, 32\], not",
    ),
    "eight bits": (
        lambda s: s | {"lm_head.weight": torch.ones(384, 32, dtype=torch.int8)},
        "as I8, quantised",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_do_not_fit_are_refused(llama, name):
    change, message = WRONG[name]
    rewrite(llama, change)
    for look in (models.check_model, models.load_policy):
        with pytest.raises(ValueError, match=f"^model='.*model': .*{message}") as raised:
            look(str(llama))
        assert "\n" not in str(raised.value)


def test_loading_compares_names_where_no_header_could_be_read(llama, monkeypatch):
    """A model of the hub is checked when it is loaded."""
    monkeypatch.setattr(weights, "check_files", lambda *a: None)
    for name in ("no head", "shape", "extra"):
        folder = shutil.copytree(llama, llama.parent / name)
        rewrite(folder, WRONG[name][0])
        with pytest.raises(ValueError, match=WRONG[name][1]):
            models.load_policy(str(folder))


def pointer(folder):
    (folder / FILE).write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1234567\n"
    )


def half(folder):
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[: len(data) // 2])


def shards(folder):
    network(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / FILE).unlink(missing_ok=True)
    return json.loads((folder / INDEX).read_text())


def shard_missing(folder):
    (folder / sorted(set(shards(folder)["weight_map"].values()))[0]).unlink()


def index_of_others(folder):
    index = shards(folder)
    index["weight_map"]["lm_head.weight"] = index["weight_map"].pop("model.norm.weight")
    (folder / INDEX).write_text(json.dumps(index))


def two_sets(folder):
    shutil.copy(folder / FILE, folder.parent / FILE)
    shards(folder)
    shutil.copy(folder.parent / FILE, folder / FILE)


def quantised(folder):
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})


DAMAGED = {
    "pointer": (pointer, "model.safetensors is a git-LFS pointer, .*git lfs pull"),
    "half": (half, "model.safetensors cannot be read .*copy or download it again"),
    "empty": (lambda f: (f / FILE).write_bytes(b""), "model.safetensors cannot be read"),
    "none": (lambda f: (f / FILE).unlink(), "holds no .safetensors weights"),
    "shard missing": (shard_missing, "model.safetensors.index.json names .* not there"),
    "index of others": (
        index_of_others,
        "model.safetensors.index.json and its files differ in lm_head.weight",
    ),
    "broken index": (
        lambda f: [shards(f), (f / INDEX).write_text("{")],
        "index.json cannot be read",
    ),
    "two sets": (two_sets, "two sets of weights"),
    "gptq": (quantised, r"quantization_config \(gptq\)"),
    "awq": (
        lambda f: configure(f, quantization_config={"quant_method": "awq", "bits": 4}),
        r"\(awq\)",
    ),
    "bnb": (
        lambda f: configure(
            f, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
        ),
        r"\(bitsandbytes\)",
    ),
    "fewer layers": (
        lambda f: configure(f, num_hidden_layers=1, layer_types=None),
        "unexpected: model.layers.1",
    ),
    "more layers": (
        lambda f: configure(f, num_hidden_layers=3, layer_types=None),
        "missing: model.layers.2",
    ),
    "width": (lambda f: configure(f, intermediate_size=64), "misshapen: .*mlp"),
    "tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be loaded"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_and_foreign_checkpoints_are_refused(llama, name):
    damage, message = DAMAGED[name]
    damage(llama)
    with pytest.raises(ValueError, match=f"^model='.*model': .*{message}"):
        models.check_model(str(llama))


def test_refused_before_a_kernel_starts(llama, tmp_path, capsys):
    half(llama)
    data = made_models.pairs_file(tmp_path / "pairs.jsonl")
    given = ["-p", f"data={data}", "-p", f"model={llama}", "--out", str(tmp_path / "out")]
    assert cli.main(["run", "08_your_own_pairs", *given]) == 2
    said = capsys.readouterr().err
    assert "cannot be read" in said and "Traceback" not in said and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- adapters


@pytest.fixture
def adapter(llama, tmp_path):
    """(folder of an adapter with its tokenizer, the model with it)."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        network(llama),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    transformers.AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model


def test_an_adapter_alone_is_no_model(adapter):
    with pytest.raises(
        ValueError, match=r"holds an adapter only; merge it .*merge_and_unload, save_pretrained"
    ):
        models.check_model(str(adapter[0]))
    with pytest.raises(ValueError, match="^reward_model=.*holds an adapter only"):
        check_scorer(str(adapter[0]), kind="reward")


def test_an_adapter_beside_merged_weights_is_refused(adapter):
    """It would be applied twice. Without its files the merged model is what it was with the adapter."""
    folder, model = adapter
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        want = model(ids).logits
    model.merge_and_unload().save_pretrained(folder)
    with pytest.raises(ValueError, match="adapter beside its weights.*remove adapter_config.json"):
        models.check_model(str(folder))
    for file in folder.glob("adapter_*"):
        file.unlink()
    with torch.no_grad():
        assert (models.load_policy(str(folder)).model(ids).logits - want).abs().max() < 1e-5


# ---------------------------------------------------------------- ids and positions


@pytest.mark.parametrize(
    "token", [{"pad_token": "[PAD]"}, {"eos_token": "<|im_end|>"}, {"bos_token": "<new>"}]
)
def test_a_token_without_an_embedding_is_refused(llama, token):
    (word,), rows = token.values(), network(llama).config.vocab_size
    said = re.escape(
        f"id {rows} of its tokenizer ({word!r}) is outside the model's vocabulary of {rows}"
    )
    with pytest.raises(ValueError, match=said):
        models.check_model(str(words(llama, **token)))
    model = network(llama)
    model.resize_token_embeddings(rows + 1)
    model.save_pretrained(llama)
    models.check_model(str(llama))


@pytest.mark.parametrize("kind", made_models.KINDS)
def test_more_tokens_than_positions_are_refused(saved, kind, tmp_path, capsys):
    folder = shutil.copytree(saved[kind], tmp_path / "m")
    name = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    if kind == "gpt2":
        config = transformers.AutoConfig.from_pretrained(folder)
        config.n_positions = 32
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    else:
        configure(folder, **{name: 32})
    models.check_model(str(folder), max_length=32)
    with pytest.raises(
        ValueError, match="^max_length=33: model=.* has 32 positions; use 32 or less"
    ):
        models.check_model(str(folder), max_length=33)
    with pytest.raises(
        ValueError, match="^new_tokens=32: model=.* has 32 positions for prompt and answer"
    ):
        models.check_model(str(folder), new_tokens=32)
    data = made_models.pairs_file(tmp_path / "pairs.jsonl")
    given = [
        "-p",
        f"data={data}",
        "-p",
        f"model={folder}",
        "-p",
        "max_length=64",
        "--out",
        str(tmp_path / "out"),
    ]
    assert (
        cli.main(["run", "08_your_own_pairs", *given]) == 2
        and "max_length=64" in capsys.readouterr().err
    )


# ---------------------------------------------------------------- scorers, shipped policies


CHAT = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"


@pytest.fixture
def reward(saved, tmp_path):
    config = transformers.AutoConfig.from_pretrained(saved["llama"], num_labels=1, pad_token_id=0)
    torch.manual_seed(0)
    folder = tmp_path / "reward"
    transformers.LlamaForSequenceClassification(config).save_pretrained(folder)
    made_models.tokenizer(chat=CHAT).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["pointer", "half", "none", "gptq", "tokenizer", "width"])
def test_damaged_scorers_are_refused_before_they_are_loaded(reward, name):
    check_scorer(str(reward), kind="reward")
    damage, message = DAMAGED[name]
    damage(reward)
    with pytest.raises(ValueError, match=f"^reward_model='.*reward': .*{message}"):
        check_scorer(str(reward), kind="reward")


@pytest.mark.parametrize("name", ["compiled", "parallel", "no layer", "no norm", "extra", "bias"])
def test_weights_of_a_scorer_that_do_not_fit_are_refused(reward, name):
    rewrite(reward, WRONG[name][0])
    for look in (check_scorer, load_scorer):
        with pytest.raises(ValueError, match=f"^reward_model='.*reward': .*{WRONG[name][1]}"):
            look(str(reward), kind="reward")


def test_a_scorer_without_its_head_or_with_a_new_token_is_refused(reward, tmp_path):
    bare = shutil.copytree(reward, tmp_path / "bare")
    rewrite(bare, lambda s: {k: v for k, v in s.items() if k != "score.weight"})
    with pytest.raises(ValueError, match="missing: score.weight"):
        check_scorer(str(bare), kind="cost")
    with pytest.raises(ValueError, match="outside the model's vocabulary of 384"):
        check_scorer(str(words(reward, bos_token="<new>")), kind="cost")


def test_a_shipped_policy_of_other_names_or_shapes_is_refused(world, tmp_path, monkeypatch):
    name = f"{world.size}_seed0.safetensors"
    state = load_file(references.SHIPPED / name)
    monkeypatch.setattr(references, "SHIPPED", tmp_path)
    changes = [
        lambda s: {k: v for k, v in s.items() if "norm" not in k},
        lambda s: s | {"model.more.weight": torch.ones(2)},
        lambda s: s | {"model.norm.weight": torch.ones(3)},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    ]
    for change in changes:
        save_file(change(dict(state)), tmp_path / name)
        with pytest.raises(ValueError, match="made for another world"):
            references.reference_policy(world, seed=0)
    save_file(state, tmp_path / name)
    assert references.reference_policy(world, seed=0)[1] == "shipped"


def test_a_part_of_a_hub_model_in_the_cache_is_no_model(saved, tmp_path, monkeypatch):
    """Offline the copy in the cache is what there is; what it lacks can be downloaded."""
    part = shutil.copytree(
        saved["llama"], tmp_path / "part", ignore=shutil.ignore_patterns("*.safetensors")
    )
    found = (str(part), dict(revision=None, local_files_only=True, trust_remote_code=False))
    monkeypatch.setattr(weights.hub, "located", lambda *a, **k: found)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="model='some/model': .*hf download some/model"):
        models.check_model("some/model")


# ---------------------------------------------------------------- what is no plain decoder


def no_decoder(kind, folder):
    """A tiny saved model that is none, with the tokenizer of the others."""
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    seen = dict(small, image_size=8, patch_size=4)
    text = transformers.LlamaConfig(**small, vocab_size=384)
    config, network = {
        "t5": lambda: (
            transformers.T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
            transformers.T5ForConditionalGeneration,
        ),
        "bart": lambda: (
            transformers.BartConfig(
                vocab_size=384, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
                decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
            ),
            transformers.BartForConditionalGeneration,
        ),
        "bert": lambda: (
            transformers.BertConfig(**small, vocab_size=384), transformers.BertForMaskedLM
        ),
        "llava": lambda: (
            transformers.LlavaConfig(vision_config=transformers.CLIPVisionConfig(**seen), text_config=text),
            transformers.LlavaForConditionalGeneration,
        ),
    }[kind]()  # fmt: skip
    network(config).save_pretrained(folder)
    made_models.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "kind, words",
    [
        ("t5", "t5 is an encoder-decoder model"),
        ("bart", "bart is an encoder-decoder model"),
        ("bert", "bert is an encoder"),
        ("llava", "llava is a multimodal model (it has a vision_config)"),
    ],
)
def test_what_is_no_plain_decoder_is_refused_by_its_configuration(tmp_path, kind, words):
    with pytest.raises(ValueError, match=re.escape(words) + ".*name a decoder of text"):
        models.check_model(str(no_decoder(kind, tmp_path / kind)))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(num_hidden_layers=10**9), "num_hidden_layers=1000000000, at most 4096"),
        (dict(hidden_size=2**40), "hidden_size=1099511627776, at most"),
        (dict(vocab_size=-(2**70)), "vocab_size=-1180591620717411303424, at most"),
        (dict(model_type="x" * 5000), "cannot be loaded"),
        (dict(architectures=[None]), ""),
        (dict(hidden_size="many"), "cannot be loaded"),
        (dict(rope_scaling=[1]), ""),
    ],
)
def test_a_configuration_of_odd_sizes_builds_nothing(llama, changes, words):
    with pytest.raises(weights.Refusal) as refused:
        models.check_model(str(configure(llama, **changes)))
        raise weights.Refusal("")  # what changes nothing is taken
    assert words in str(refused.value) and len(str(refused.value)) < 2000


@pytest.mark.parametrize("text", ["null", "[]", "[" * 10**5, '{"a":' * 200 + "1" + "}" * 200, ""])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_json_file_of_a_model_that_is_damaged(llama, name, text):
    (llama / name).write_text(text)
    with pytest.raises(weights.Refusal, match=r"^model='.*': "):
        models.check_model(str(llama))


def test_a_pipe_in_a_models_folder_holds_nobody(llama):
    (llama / "generation_config.json").unlink()
    os.mkfifo(llama / "generation_config.json")
    with pytest.raises(
        weights.Refusal, match="generation_config.json: cannot be read .it is a pipe"
    ):
        models.check_model(str(llama))
