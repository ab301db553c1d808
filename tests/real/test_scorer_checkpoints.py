"""Scorers from checkpoints: Safe RLHF's score model against a plain computation, and all that is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from safealign_utils.real import hub, scorer_checkpoints
from safealign_utils.real import scorer as scoring
from safealign_utils.real.scorer_checkpoints import BeaverScorer, load_scorer

PROMPTS = [
    "How are you?",
    "Name a colour, please.",
    "Why?",
    "Tell me about bees and honey, at length.",
]
ANSWERS = ["I am fine.", "Blue is a colour that many people like.", "", "Bees make honey."]
BEAVER = dict(
    architectures=["LlamaForScore"],
    score_dim=1,
    score_type="cost",
    score_bias=True,
    do_normalize=True,
)
SHAPE = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)


def tokenizer(**special):
    """Bytes as tokens: ids 0 <pad>, 1 <s>, 2 </s>, then the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(
        models.BPE({w: i for i, w in enumerate(["<pad>", "<s>", "</s>", *alphabet])}, [])
    )
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    names = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>") | special
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


def beaver(folder, *, weights=None, drop=(), names=None, **changes):
    """A beaver-style checkpoint with random weights; `weights` are added or replaced, `drop` left out."""
    config = LlamaConfig(
        vocab_size=259,
        max_position_embeddings=600,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **SHAPE,
    )
    torch.manual_seed(0)
    state = {f"model.{k}": v for k, v in LlamaModel(config).state_dict().items()}
    state |= {"score_head.weight": torch.randn(1, 16), "score_head.bias": torch.tensor([0.7])}
    state |= {
        "normalizer.mean": torch.tensor([0.3]),
        "normalizer.var": torch.tensor([2.5]),
        "normalizer.count": torch.tensor([9]),
    }
    state = {k: v.contiguous() for k, v in (state | (weights or {})).items() if k not in drop}
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    said = {k: v for k, v in (config.to_dict() | BEAVER | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(said))
    tokenizer(**(names or {})).save_pretrained(folder)
    return str(folder)


def rows_of(prompts, answers):
    return [
        [1, *tokenizer()(scorer_checkpoints.SAFE_RLHF.format(x) + y)["input_ids"], 2]
        for x, y in zip(prompts, answers)
    ]


def by_hand(folder, rows, *, score_type="cost", bias=True, normalise=True):
    """One row at a time, without padding, by plain transformers and arithmetic."""
    state = load_file(f"{folder}/model.safetensors")
    plain = LlamaModel(LlamaConfig.from_pretrained(folder)).eval()
    plain.load_state_dict(
        {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    )
    out = []
    for ids in rows:
        with torch.no_grad():
            hidden = plain(torch.tensor([ids])).last_hidden_state[0, -1].double()
        score = float(hidden @ state["score_head.weight"][0].double()) + (
            float(state["score_head.bias"]) if bias else 0.0
        )
        if normalise:
            score = (score - (0.3 if score_type == "reward" else 0.0)) / (2.5**0.5 + 1e-8)
        out.append(score)
    return np.array(out)


def load(folder, kind="cost", **options):
    return load_scorer(folder, kind=kind, **{"sign_check": False, **options})


# ---------------------------------------------------------------- the score model


@pytest.mark.parametrize("score_type", ["cost", "reward"])
def test_the_score_model_equals_a_plain_computation(tmp_path, fresh_cache, score_type):
    folder = beaver(tmp_path / "m", score_type=score_type)
    expected = by_hand(folder, rows_of(PROMPTS, ANSWERS), score_type=score_type)
    assert np.ptp(expected) > 0.05
    scorer = load(folder, score_type)
    assert np.abs(scorer(PROMPTS, ANSWERS) - expected).max() < 1e-6
    assert scorer(PROMPTS, ANSWERS).dtype == np.float64 and scorer.kind == score_type


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(tmp_path, side):
    folder = beaver(tmp_path / "m")
    rows = rows_of(PROMPTS, ANSWERS)
    assert len({len(row) for row in rows}) == len(rows)
    model = BeaverScorer.from_pretrained(folder).eval()
    ids = [torch.tensor(row) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_side=side)
    with torch.no_grad():
        got = model(ids, (ids != 0).long()).double().numpy()
    assert np.abs(got - by_hand(folder, rows)).max() < 1e-6
    scored = load(beaver(tmp_path / "sided", names={"padding_side": side}))(PROMPTS, ANSWERS)
    assert np.abs(scored - by_hand(folder, rows)).max() < 1e-6, (
        "the tokenizer's padding side plays no part"
    )


@pytest.mark.parametrize("said", [{"score_bias": False}, {"score_bias": None, "bias": False}])
def test_a_head_without_bias_as_each_release_spells_it(tmp_path, said):
    folder = beaver(tmp_path / "m", drop=["score_head.bias"], do_normalize=False, **said)
    expected = by_hand(folder, rows_of(PROMPTS, ANSWERS), bias=False, normalise=False)
    assert np.abs(load(folder)(PROMPTS, ANSWERS) - expected).max() < 1e-6


def test_older_releases_say_less_and_hold_other_buffers(tmp_path):
    """v1.0 first came with another architecture name, no score_type, no normaliser, and rotary buffers."""
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    gone = [f"normalizer.{x}" for x in ("mean", "var", "count")] + ["score_head.bias"]
    said = dict(
        architectures=["LlamaModelForScore"],
        score_type=None,
        do_normalize=None,
        score_bias=None,
        bias=False,
    )
    folder = beaver(tmp_path / "m", weights=buffers, drop=gone, **said)
    expected = by_hand(
        beaver(tmp_path / "same", drop=gone, **said),
        rows_of(PROMPTS, ANSWERS),
        bias=False,
        normalise=False,
    )
    assert np.abs(load(folder)(PROMPTS, ANSWERS) - expected).max() < 1e-6


def test_the_exact_ids_of_one_row(tmp_path):
    (row,) = load(beaver(tmp_path / "m")).encode(["Why?"], ["So."])
    text = "BEGINNING OF CONVERSATION: USER: Why? ASSISTANT:So."
    assert row[0].tolist() == [1, *tokenizer()(text)["input_ids"], 2]
    assert tokenizer().decode(row[0]) == "<s>" + text + "</s>"


def test_a_long_text_keeps_both_parts_and_its_last_token(tmp_path):
    encode = replace(load(beaver(tmp_path / "m")).encode, max_length=80)
    rows = encode(["x" * 200, "Why?", "x" * 200], ["yes", "n" * 200, "y" * 200])
    texts = [tokenizer().decode(row[0]) for row in rows]
    assert all(len(row[0]) == 80 and row[0][0] == 1 and row[0][-1] == 2 for row in rows)
    assert (
        texts[0].endswith("x ASSISTANT:yes</s>")
        and texts[1].count("n") > 20
        and "Why? ASSISTANT:n" in texts[1]
    )
    assert texts[2].count("y") > 30 and texts[2].count("x") > 20


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(drop=["score_head.weight"]), "missing: score_head.weight"),
        (dict(drop=["score_head.bias"]), "missing: score_head.bias"),
        (dict(drop=["normalizer.var"]), "missing: normalizer.var"),
        (dict(drop=["model.norm.weight"]), "missing: model.norm.weight"),
        (dict(weights={"score_head.extra": torch.ones(1)}), "unexpected: score_head.extra"),
        (dict(score_bias=False), "unexpected: score_head.bias"),
        (dict(names={"pad_token": "</s>"}), "end-of-sequence"),
        (dict(names={"pad_token": None}), "padding token is missing"),
        (dict(score_type="reward"), "score_type='reward'"),
        (dict(score_dim=2), "score_dim=2"),
        (
            dict(names={"pad_token": "<new>"}),
            "id 259 of its tokenizer .'<new>'. is outside the model's vocabulary",
        ),
    ],
)
def test_a_checkpoint_that_would_score_wrongly_is_refused(tmp_path, changes, message):
    folder = beaver(tmp_path / "m", **changes)
    with pytest.raises(ValueError, match=f"^cost_model=.*{message}"):
        load(folder)


def head_for(folder, kind):
    """Weights of a head that orders our known pairs rightly, by least squares on the last hidden states."""
    pairs = scoring.KNOWN_PAIRS[kind]
    rows = [rows_of([x], [y])[0] for x, low, high in pairs for y in (low, high)]
    plain = LlamaModel.from_pretrained(folder, key_mapping={"^model.": ""})
    with torch.no_grad():
        hidden = np.array(
            [plain(torch.tensor([ids])).last_hidden_state[0, -1].numpy() for ids in rows]
        )
    gap = hidden[1::2] - hidden[0::2]
    return torch.from_numpy(
        np.linalg.lstsq(gap, np.ones(len(gap)), rcond=None)[0][None].astype(np.float32)
    )


@pytest.mark.parametrize("kind", ["cost", "reward"])
def test_the_sign_is_tried_on_known_pairs(tmp_path, kind):
    given = dict(score_type=kind)
    weight = head_for(beaver(tmp_path / "random", **given), kind)
    load(
        beaver(tmp_path / "right", weights={"score_head.weight": weight}, **given),
        kind,
        sign_check=True,
    )
    swapped = beaver(tmp_path / "swapped", weights={"score_head.weight": -weight}, **given)
    with pytest.raises(ValueError, match=f"{kind}_model=.*sign looks swapped"):
        load(swapped, kind, sign_check=True)
    load(swapped, kind, sign_check=False)


def test_a_model_of_the_other_sign_is_found_before_it_is_used(tmp_path):
    """Where a checkpoint says nothing of its type, a reward used as a cost fails on the known pairs."""
    said = dict(score_type=None, do_normalize=False)
    weight = head_for(beaver(tmp_path / "random", **said), "cost")
    folder = beaver(tmp_path / "reward", weights={"score_head.weight": -weight}, **said)
    with pytest.raises(ValueError, match="cost_model=.*0 of 5 known pairs"):
        load(folder, sign_check=True)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(kind="safety"), "kind='safety'"),
        (dict(dtype="float16"), "dtype='float16'"),
    ],
)
def test_bad_parameters_name_the_value_and_the_fix(tmp_path, options, message):
    folder = beaver(tmp_path / "m")
    with pytest.raises(ValueError, match=message):
        load_scorer(folder, **{"kind": "cost", "sign_check": False, **options})


def test_folders_without_safe_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load(str(tmp_path / "nowhere"))
    folder = beaver(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no .safetensors weights"):
        load(folder)


def test_a_hub_id_without_network_says_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "unreachable", lambda kind="model": "no answer")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"cost_model='owner/name@abc'.*name a local folder"):
        load("owner/name@abc")


# ---------------------------------------------------------------- sequence classification


def classifier(folder, config, chat_template=None, **names):
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(folder)
    made = tokenizer(**names)
    made.chat_template = chat_template
    made.save_pretrained(folder)
    return model


LLAMA = lambda **c: LlamaConfig(
    **(dict(vocab_size=259, max_position_embeddings=600, pad_token_id=0, num_labels=1) | SHAPE | c)
)
GPT2 = lambda **c: GPT2Config(
    **(
        dict(
            vocab_size=259,
            n_positions=600,
            n_embd=16,
            n_layer=2,
            n_head=2,
            pad_token_id=0,
            num_labels=1,
            bos_token_id=1,
            eos_token_id=2,
        )
        | c
    )
)
TEMPLATE = "Q: {prompt}\nA: {response}</s>"
CHAT = "Q: {{ messages[0].content }}\nA: {% for m in messages[1:] %}{{ m.content }}</s>{% endfor %}"


@pytest.mark.parametrize("config", [LLAMA, GPT2])
def test_sequence_classification_equals_one_row_at_a_time(tmp_path, config):
    model = classifier(tmp_path / "m", config(), CHAT, padding_side="left")
    scorer = load(str(tmp_path / "m"), "reward")
    texts = [TEMPLATE.format(prompt=x, response=y) for x, y in zip(PROMPTS, ANSWERS)]
    with torch.no_grad():
        plain = [float(model(torch.tensor([tokenizer()(t)["input_ids"]])).logits) for t in texts]
    assert np.ptp(plain) > 1e-3 and np.abs(scorer(PROMPTS, ANSWERS) - plain).max() < 1e-6
    assert texts[0].endswith("</s>") and scorer.encode(PROMPTS, ANSWERS)[0][0][-1] == 2


def test_the_chat_template_is_used_where_there_is_one(tmp_path):
    classifier(tmp_path / "m", LLAMA())
    with pytest.raises(ValueError, match="no chat template; save the one"):
        load(str(tmp_path / "m"), "reward")
    chat = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    loaded = AutoTokenizer.from_pretrained(tmp_path / "m")
    loaded.chat_template = chat
    loaded.save_pretrained(tmp_path / "m")
    (row,) = load(str(tmp_path / "m"), "reward").encode(["Why?"], ["So."])
    assert tokenizer().decode(row[0]) == "<user>Why?<assistant>So."


def test_sequence_classification_that_would_score_wrongly_is_refused(tmp_path):
    classifier(tmp_path / "two", LLAMA(num_labels=2), CHAT)
    with pytest.raises(ValueError, match="2 labels"):
        load(str(tmp_path / "two"), "reward")
    classifier(tmp_path / "eos", LLAMA(), CHAT, pad_token="</s>")
    with pytest.raises(ValueError, match="end-of-sequence"):
        load(str(tmp_path / "eos"), "reward")
    classifier(tmp_path / "renamed", LLAMA(), CHAT)
    state = load_file(tmp_path / "renamed" / "model.safetensors")
    state["score_head.weight"] = state.pop(
        "score.weight"
    )  # the head would be new and random, in silence
    save_file(state, tmp_path / "renamed" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="missing: score.weight; unexpected: score_head.weight"):
        load(str(tmp_path / "renamed"), "reward")
    AutoModelForCausalLM.from_config(LLAMA()).save_pretrained(tmp_path / "lm")
    tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="LlamaForCausalLM is no reward model"):
        load(str(tmp_path / "lm"), "reward")


# ---------------------------------------------------------------- the cache


def counted(scorer, monkeypatch):
    calls, whole = [], scorer.forward
    object.__setattr__(scorer, "forward", lambda rows: calls.append(len(rows)) or whole(rows))
    return calls


def test_scores_are_computed_once_and_a_cut_scoring_goes_on(tmp_path, fresh_cache, monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 3)
    folder = beaver(tmp_path / "m")
    scorer = replace(load(folder), batch_size=2)
    prompts, answers = PROMPTS * 2, [y + "!" * i for i, y in enumerate(ANSWERS * 2)]
    calls = counted(scorer, monkeypatch)
    whole = scorer.forward

    def killed(rows):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(rows)

    object.__setattr__(scorer, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        scorer(prompts, answers)
    object.__setattr__(scorer, "forward", whole)
    first = scorer(prompts, answers)
    assert sum(calls[2:]) == 5, "the first block of three was kept"
    assert np.abs(first - by_hand(folder, rows_of(prompts, answers))).max() < 1e-6
    done = len(calls)
    assert np.array_equal(scorer(prompts, answers), first) and len(calls) == done
    again = replace(load(folder), batch_size=5)
    calls = counted(again, monkeypatch)
    assert np.array_equal(again(prompts, answers), first) and not calls, (
        "another load of the same weights knows them"
    )


def test_other_weights_and_other_texts_are_other_scores(tmp_path, fresh_cache):
    a, b = (
        load(beaver(tmp_path / "a")),
        load(beaver(tmp_path / "b", weights={"score_head.bias": torch.tensor([0.9])})),
    )
    assert a.hash != b.hash and np.allclose(
        b(PROMPTS, ANSWERS) - a(PROMPTS, ANSWERS), 0.2 / 2.5**0.5, atol=1e-6
    )
    assert not np.allclose(a(PROMPTS, ANSWERS[::-1]), a(PROMPTS, ANSWERS))
    assert a([], []).shape == (0,)
    with pytest.raises(ValueError, match="responses: 1 for 4 prompts"):
        a(PROMPTS, ["x"])


def test_the_same_weights_read_otherwise_are_other_scores(tmp_path, fresh_cache):
    given = [{}, dict(do_normalize=False), dict(rms_norm_eps=0.1)]
    scores = [
        load(beaver(tmp_path / str(i), **said))(PROMPTS, ANSWERS) for i, said in enumerate(given)
    ]
    assert min(np.abs(scores[0] - other).max() for other in scores[1:]) > 1e-3
    reward = load(beaver(tmp_path / "untold", score_type=None), "reward")(PROMPTS, ANSWERS)
    assert np.allclose(scores[0] - reward, 0.3 / 2.5**0.5, atol=1e-6), (
        "where nothing is told, kind decides"
    )


def test_what_is_not_finite_is_not_kept(tmp_path, fresh_cache):
    broken = load(beaver(tmp_path / "m", weights={"score_head.bias": torch.tensor([float("inf")])}))
    with pytest.raises(ValueError, match="4 scores are not finite"):
        broken(PROMPTS, ANSWERS)
    assert not list(fresh_cache.rglob("*.safetensors"))


def test_bfloat16_stays_near_float32(tmp_path):
    folder = beaver(tmp_path / "m")
    rough, exact = load(folder, dtype="bfloat16"), load(folder)
    assert (
        rough.hash != exact.hash
        and np.abs(rough(PROMPTS, ANSWERS) - exact(PROMPTS, ANSWERS)).max() < 0.1
    )
