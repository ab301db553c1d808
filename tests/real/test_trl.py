"""Against an independent implementation: TRL's DPOTrainer, loss by loss; pairs and policies to TRL and back."""

import copy
import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from safealign_utils import pairs, train
from safealign_utils.methods.safedpo import safedpo
from safealign_utils.methods.selective import TokenTable, TopTokens
from safealign_utils.methods.token_controls import Weights
from safealign_utils.real import read_pairs
from safealign_utils.real import trl as with_trl
from safealign_utils.real.models import load_policy
from safealign_utils.tokens import TokenPairs

BETA, STEPS, BATCH, RATE, SEED = 0.3, 20, 4, 3e-3, 0
KINDS = ("llama", "gpt2")
ASK, ANSWER = (
    (lambda x: {"role": "user", "content": x}),
    (lambda x: {"role": "assistant", "content": x}),
)
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning"
)  # TRL's own, of options that it sets itself


@pytest.fixture(scope="module")
def trl():
    return pytest.importorskip(
        "trl", reason="trl is not installed (a test extra, Python 3.11 or later)"
    )


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL then sends nothing


# ---------------------------------------------------------------- tiny models and pairs, made here


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """30 labelled pairs with safety labels: every combination of statuses, long and short responses."""
    g = np.random.Generator(np.random.PCG64(5))
    words = "the a tank pump valve is was open closed check turn slowly never always hot cold water and then".split()
    say = lambda k: " ".join(g.choice(words, k))
    rows = []
    for i in range(30):
        responses = (f" {say(g.integers(2, 12))}.", f"No, {say(g.integers(2, 9))} {i}.")
        rows.append(
            {
                "prompt": f"Human: {say(4)} {i}?\n\nAssistant:",
                "response_0": responses[0],
                "response_1": responses[1],
                "is_response_0_safe": bool(i % 2),
                "is_response_1_safe": bool(i // 2 % 2),
                "better_response_id": i % 3 % 2,
                "safer_response_id": None if i == 4 else 1 - i % 2,
            }
        )
    file = tmp_path_factory.mktemp("made") / "made.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return pairs.label(read_pairs.load_pairs(str(file)), "better")


def tokenizer_of(kind, texts):
    """Byte pairs; Llama's begins every text with <s>, GPT-2's has one special token for everything."""
    names = {"llama": ["<pad>", "<s>", "</s>"], "gpt2": ["<|endoftext|>"]}[kind]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    if kind == "llama":
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    special = dict(bos_token=names[-2:][0], eos_token=names[-1])
    pad = {"pad_token": "<pad>"} if kind == "llama" else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, **special, **pad, clean_up_tokenization_spaces=False
    )


def model_of(kind, tokenizer):
    ids = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
            initializer_range=0.1,
            pad_token_id=0,
            **ids,
        )
    else:
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            initializer_range=0.1,
            **ids,
        )
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


@pytest.fixture(scope="module")
def sides(table, tmp_path_factory):
    """(policy loaded from a local folder, labelled table) by architecture."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        tokenizer = tokenizer_of(kind, [*table.prompt, *table.response_0, *table.response_1])
        model_of(kind, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[kind] = load_policy(str(folder)), table
    return found


@pytest.fixture(params=KINDS)
def side(request, sides):
    return sides[request.param]


@pytest.fixture(scope="module")
def llama(sides):
    return sides["llama"]


@pytest.fixture(scope="module")
def safe(llama):
    """(policy, tokens with SafeDPO's margin, the kit's run of them) on the Llama."""
    tokens = pairs.tokenize(safedpo(llama[1], delta=5.0), llama[0])
    return llama[0], tokens, kit_run(llama[0], tokens)


def some_tokens(tokens):
    """About half of the tokens of every response, the same on both sides of the comparison; a `TokenTable`."""
    g = np.random.Generator(np.random.PCG64(3))
    draw = lambda rows: [np.concatenate([[1.0], 1.0 * (g.random(len(y) - 1) < 0.5)]) for y in rows]
    return TokenTable(draw(tokens.chosen), draw(tokens.rejected))


def kit_run(policy, tokens, steps=STEPS, **levers):
    return train.align(
        policy,
        tokens,
        beta=BETA,
        steps=steps,
        batch_size=BATCH,
        learning_rate=RATE,
        seed=SEED,
        use_cache=False,
        **levers,
    )


def trl_run(
    trl, policy, dataset, folder, make=None, steps=STEPS, batch=BATCH, settings=(), **others
):
    """A trained trainer of TRL on the rows that `kit_run` reads, from the same weights."""
    order = train.batch_order(len(dataset), STEPS, BATCH, SEED)
    args = trl.DPOConfig(
        str(folder),
        beta=BETA,
        max_steps=steps,
        per_device_train_batch_size=batch,
        seed=SEED,
        **with_trl.SAME,
        **{"gradient_checkpointing": False, **dict(settings)},
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    model = copy.deepcopy(policy.model)
    given = dict(
        ref_model=copy.deepcopy(policy.model),
        optimizers=with_trl.optimizers(model, steps=steps, learning_rate=RATE),
    )
    trainer = (make or with_trl.safealign_trainer())(
        model=model,
        args=args,
        train_dataset=dataset.select(order.ravel()),
        processing_class=policy.tokenizer,
        **given | others,
    )
    trainer.train()
    return trainer


def same_ids(dataset, tokens):
    """A tokenised data set of TRL's (`trainer.train_dataset`) has the ids of the kit's `tokens`."""
    assert len(dataset) == len(tokens)
    for number, row in enumerate(dataset):
        for column, ids in zip(
            ("prompt", "chosen", "rejected"), (tokens.prompts, tokens.chosen, tokens.rejected)
        ):
            assert row[f"{column}_ids"] == ids[number].tolist(), (number, column)


def history(trainer, name="loss"):
    return np.array([row[name] for row in trainer.state.log_history if name in row])


@torch.no_grad()
def log_softmax(model):
    """Log-probs [T, V] after every prefix of one row of ids, by plain transformers."""
    return model.eval()(torch.arange(5, 45)[None]).logits[0].log_softmax(-1)


def agree(trained, trainer, limit=1e-5):
    """Loss and gradient norm of every step, and what the network says at the end.

    Not its weights: GPT-2's key biases have no gradient but rounding noise, which AdamW blows up.
    """
    mine, theirs = trained.log.loss.to_numpy(), history(trainer)
    norms = np.abs(history(trainer, "grad_norm") / trained.log.grad_norm.to_numpy() - 1).max()
    apart = float((log_softmax(trained.policy.model) - log_softmax(trainer.model)).abs().max())
    print(
        f"largest differences: loss {np.abs(mine - theirs).max():.1e}, gradient norm {norms:.1e} of it, log-probs {apart:.1e}"
    )
    assert mine.shape == theirs.shape == (STEPS,) and np.isfinite(mine).all()
    assert np.abs(mine - theirs).max() < limit and norms < 1e-4 and apart < 1e-4
    assert mine.std() > 0.02, "nothing was learned, so nothing was compared"


# ---------------------------------------------------------------- 20 steps against TRL


def test_dpo_against_the_plain_trainer(trl, side, tmp_path):
    """TRL tokenises the texts itself, and its trainer is used as it is."""
    policy, table = side
    tokens = pairs.tokenize(table, policy)
    begin = (
        ""
        if policy.tokenizer("x")["input_ids"][0] == policy.tokenizer.bos_token_id
        else policy.tokenizer.bos_token
    )
    dataset = with_trl.to_trl(table.assign(prompt=begin + table.prompt))
    trainer = trl_run(trl, policy, dataset, tmp_path, trl.DPOTrainer)
    order = train.batch_order(len(tokens), STEPS, BATCH, SEED).ravel()
    picked = replace(
        tokens,
        **{
            side: [getattr(tokens, side)[i] for i in order]
            for side in ("prompts", "chosen", "rejected")
        },
    )
    same_ids(trainer.train_dataset, picked)
    trained = kit_run(policy, tokens)
    assert trained.log.loss[0] == pytest.approx(np.log(2), abs=1e-5)
    agree(trained, trainer)


def test_safedpo_against_trl(trl, side, tmp_path):
    policy, table = side
    table = safedpo(table, delta=5.0)
    tokens = pairs.tokenize(table, policy)
    assert set(tokens.margin) == {0.0, 5.0} and not (table.chosen == 0).all()
    trained = kit_run(policy, tokens)
    agree(trained, trl_run(trl, policy, with_trl.tokens_to_trl(tokens), tmp_path))


def test_selective_dpo_with_fixed_masks_against_trl(trl, side, tmp_path):
    policy, table = side
    tokens = pairs.tokenize(table, policy)
    kept = some_tokens(tokens)
    trained = kit_run(policy, tokens, token_lever=Weights(kept))
    agree(trained, trl_run(trl, policy, with_trl.tokens_to_trl(tokens, kept=kept), tmp_path))


def test_selective_dpo_with_recomputed_masks_against_trl(trl, side, tmp_path):
    """With a margin besides, as the levers are one."""
    policy, table = side
    tokens = pairs.tokenize(safedpo(table, delta=2.0), policy)
    trained = kit_run(policy, tokens, token_lever=TopTokens(0.4))
    trainer = trl_run(trl, policy, with_trl.tokens_to_trl(tokens), tmp_path, keep=0.4)
    agree(trained, trainer, limit=1e-4)  # two scores that tie in one of them only would cost 1e-5


# ---------------------------------------------------------------- what the comparison would catch


def margin_inside_beta(tokens, kept):
    return replace(tokens, margin=BETA * tokens.margin), kept


def mask_shifted_by_one(tokens, kept):
    return tokens, kept.map(lambda row: np.roll(row, 1))


def wrong_end(tokens, kept):
    end = lambda rows: [np.array([*y[:-1], y[0]]) for y in rows]
    return replace(tokens, chosen=end(tokens.chosen), rejected=end(tokens.rejected)), kept


def end_left_out(tokens, kept):
    cut = lambda rows: [y[:-1] for y in rows]
    return replace(tokens, chosen=cut(tokens.chosen), rejected=cut(tokens.rejected)), kept.map(
        lambda row: row[:-1]
    )


def mean_of_tokens(tokens, kept):
    return tokens, kept.map(lambda row: row / len(row))


BUGS = (margin_inside_beta, mask_shifted_by_one, wrong_end, end_left_out, mean_of_tokens)


@pytest.fixture(scope="module")
def by_trl(trl, safe, tmp_path_factory):
    """(policy, tokens, fixed masks, TRL's losses in 4 steps with a margin and masks)."""
    policy, tokens, _ = safe
    kept = some_tokens(tokens)
    folder = tmp_path_factory.mktemp("trl")
    return (
        policy,
        tokens,
        kept,
        history(trl_run(trl, policy, with_trl.tokens_to_trl(tokens, kept=kept), folder, steps=4)),
    )


def kit_losses(policy, tokens, kept):
    return kit_run(policy, tokens, steps=4, token_lever=Weights(kept)).log.loss.to_numpy()


def test_both_levers_at_once(by_trl):
    policy, tokens, kept, theirs = by_trl
    assert np.abs(kit_losses(policy, tokens, kept) - theirs).max() < 1e-5


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_seen(by_trl, bug):
    policy, tokens, kept, theirs = by_trl
    assert np.abs(kit_losses(policy, *bug(tokens, kept)) - theirs).max() > 1e-2


@pytest.mark.parametrize(
    "change",
    [
        {"precompute_ref_log_probs": True},
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_nothing(trl, safe, tmp_path, change):
    policy, tokens, trained = safe
    batch = BATCH // change.get("gradient_accumulation_steps", 1)
    trainer = trl_run(
        trl, policy, with_trl.tokens_to_trl(tokens), tmp_path, batch=batch, settings=change
    )
    agree(trained, trainer)


@pytest.mark.parametrize(
    "given", [{"keep": 0.4}, {"settings": {"precompute_ref_log_probs": True}}], ids=["keep", "sums"]
)
def test_evaluation_has_the_levers_too(trl, safe, tmp_path, given):
    """Untrained, the policy is the reference: softplus(margin), for a data set given then and one given later."""
    policy, tokens, _ = safe
    dataset = with_trl.tokens_to_trl(tokens)
    still = (torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0), None)  # moves nothing
    trainer = trl_run(
        trl, policy, dataset, tmp_path, steps=1, eval_dataset=dataset, optimizers=still, **given
    )
    wanted = np.log1p(np.exp(tokens.margin)).mean()
    for later in (None, dataset):
        assert trainer.evaluate(later)["eval_loss"] == pytest.approx(wanted, abs=1e-5)


def test_the_adapter_is_off_for_the_reference(trl, llama, tmp_path):
    """LoRA in TRL: without a reference model, the masks and losses are those with one."""
    policy, table = llama
    dataset = with_trl.tokens_to_trl(pairs.tokenize(safedpo(table, delta=2.0), policy))
    lora = peft.LoraConfig(r=4, task_type="CAUSAL_LM", lora_dropout=0.0)
    runs = [
        trl_run(
            trl,
            policy,
            dataset,
            tmp_path,
            steps=5,
            keep=0.4,
            peft_config=lora,
            **given,
            optimizers=(None, None),
            settings={"learning_rate": 0.05},
        )
        for given in ({}, {"ref_model": None})
    ]
    losses = [history(r) for r in runs]
    assert np.abs(losses[0] - losses[1]).max() < 1e-5 and np.ptp(losses[0]) > 0.05


# ---------------------------------------------------------------- policies, there and back


def test_a_policy_of_the_kit_is_read_by_transformers_and_by_trl(trl, side, tmp_path):
    policy, table = side
    trained = kit_run(policy, pairs.tokenize(table, policy)).policy
    trained.save(tmp_path / "mine")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "mine")
    assert torch.equal(log_softmax(plain), log_softmax(trained.model))
    args = trl.DPOConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none")
    trainer = trl.DPOTrainer(
        model=str(tmp_path / "mine"), args=args, train_dataset=with_trl.to_trl(table)
    )
    assert torch.equal(log_softmax(trainer.model), log_softmax(trained.model))
    assert torch.equal(log_softmax(trainer.ref_model), log_softmax(trained.model))
    assert not torch.allclose(log_softmax(plain), log_softmax(policy.model), atol=0.1), (
        "nothing was trained"
    )


def test_a_model_trained_by_trl_is_a_policy(trl, side, tmp_path):
    policy, table = side
    tokens = pairs.tokenize(table, policy)
    trainer = trl_run(trl, policy, with_trl.tokens_to_trl(tokens), tmp_path / "out", steps=3)
    trainer.save_model(str(tmp_path / "theirs"))
    back = load_policy(str(tmp_path / "theirs"))
    assert torch.equal(log_softmax(back.model), log_softmax(trainer.model))
    again = pairs.tokenize(table, back)
    assert all(np.array_equal(a, b) for a, b in zip(again.chosen, tokens.chosen))
    assert not torch.allclose(log_softmax(back.model), log_softmax(policy.model), atol=1e-3)


# ---------------------------------------------------------------- pairs, there and back


@pytest.mark.parametrize("conversational", [False, True])
def test_pairs_go_to_trl_and_are_read_back(table, conversational, tmp_path):
    """The chosen one comes first then; texts, other labels and the margin are what they were."""
    table = safedpo(table, delta=5.0)
    table.loc[0, "prompt"] = "Human: a?\n\nAssistant: b\n\nHuman: c?\n\nAssistant:"
    if conversational:
        table.loc[1:, "prompt"] = table.prompt.str.extract(
            r"Human: (.*)\n\nAssistant:", expand=False
        )
    dataset = with_trl.to_trl(table, conversational=conversational)
    assert dataset.column_names[:3] == ["prompt", "chosen", "rejected"]
    wins, loses = pairs.chosen_rejected(table, table.response_0, table.response_1)
    assert dataset[3]["chosen"] == ([ANSWER(wins[3])] if conversational else wins[3])
    if conversational:
        assert dataset[0]["prompt"] == [ASK("a?"), ANSWER("b"), ASK("c?")]
    for column in ("margin", "is_response_0_safe", "safer_response_id"):
        found = pd.Series(list(dataset[column]), dtype=table[column].dtype)
        pd.testing.assert_series_equal(found, table[column], check_names=False)
    assert list(dataset["chosen_id"]) == table.chosen.tolist()
    dataset.to_json(tmp_path / "trl.jsonl")
    back = read_pairs.load_pairs(str(tmp_path / "trl.jsonl"))
    assert (back.response_0 == wins).all() and (back.response_1 == loses).all()
    assert back.prompt.tolist() == table.prompt.tolist() and (back.better_response_id == 0).all()


def test_messages_give_the_ids_of_the_chat_template(trl, llama, tmp_path):
    """TRL writes the chat template itself; the kit does, with template="chat". No token may differ."""
    policy, table = llama
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}:\n{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}"
    ).replace("{% endif %}\n{% endfor %}", "{% else %}\n{% endif %}{% endfor %}")
    policy = replace(policy, tokenizer=tokenizer, template="chat")
    tokens = pairs.tokenize(table, policy)
    args = trl.DPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    dataset = with_trl.to_trl(table, conversational=True)
    trainer = trl.DPOTrainer(
        model=copy.deepcopy(policy.model),
        ref_model=copy.deepcopy(policy.model),
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    same_ids(trainer.train_dataset, tokens)


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_said_in_trl_is_refused(table):
    soft = pairs.soft_label(table, np.linspace(0, 1, len(table)), 0.5)
    with pytest.raises(ValueError, match=r"p=0\.62.* on pair 0: .*pairs.label"):
        with_trl.to_trl(soft)
    with pytest.raises(ValueError, match=r"p=0\.62.* on pair 0: .*train.align"):
        with_trl.tokens_to_trl(TokenPairs([], [], [], soft.p.to_numpy(), soft.margin.to_numpy()))
    with pytest.raises(ValueError, match="no column chosen.*pairs.label"):
        with_trl.to_trl(table.drop(columns=["chosen", "p", "margin"]))


def test_the_fix_is_named_where_trl_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with_trl.safealign_trainer.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="pip install trl==1.16.0"):
        with_trl.safealign_trainer()


def test_another_release_of_trl_is_refused(trl, monkeypatch):
    monkeypatch.setattr(trl, "__version__", "1.0.0")
    with_trl.safealign_trainer.cache_clear()
    with pytest.raises(ValueError, match="trl 1.0.0 is installed, .* with 1.16.0"):
        with_trl.safealign_trainer()


def test_the_trainer_refuses_what_it_would_get_wrong(trl, llama, tmp_path):
    policy, table = llama
    tokens = pairs.tokenize(table, policy)
    dataset = with_trl.tokens_to_trl(tokens)
    run = lambda data=dataset, **given: trl_run(trl, policy, data, tmp_path, steps=1, **given)
    with pytest.raises(ValueError, match="precompute_ref_log_probs=True"):
        run(keep=0.5, settings={"precompute_ref_log_probs": True})
    with pytest.raises(ValueError, match="ld_alpha=0.5"):
        run(settings={"ld_alpha": 0.5})
    with pytest.raises(ValueError, match="keep=1.5"):
        run(keep=1.5)
    with pytest.raises(ValueError, match="no column margin"):
        run(dataset.remove_columns("margin"))
    with pytest.raises(ValueError, match="give a 1 or a 0 for each of"):
        run(with_trl.tokens_to_trl(tokens, kept=some_tokens(tokens).map(lambda row: row[1:])))


def test_real_rows_go_to_trl(real_data):
    files = dict(pku="pku_saferlhf_full_schema.jsonl", hh="hh_rlhf_harmless.jsonl")
    data = ",".join(f"{name}={real_data / file}" for name, file in files.items())
    table = pairs.label(read_pairs.load_pairs(data), "better")
    dataset = with_trl.to_trl(table)
    wins, loses = pairs.chosen_rejected(table, table.response_0, table.response_1)
    assert list(dataset["chosen"]) == list(wins) and list(dataset["rejected"]) == list(loses)
    assert list(dataset["source"]) == table.source.tolist() and len(set(dataset["source"])) == 2
