"""Notebook 08 on models of real architectures and a file of pairs, in a short form."""

import json
import os
from pathlib import Path

import pytest
from helpers import made_models

from safealign_utils.real.models import check_model
from safealign_utils.runs import runner
from safealign_utils.study.settings import Refusal

SHORT = {
    "seeds": "1",
    "steps": "2",
    "batch_size": "4",
    "dtype": "float32",
    "learning_rate": "1e-3",
    "pairs": "24",
    "max_length": "96",
}
PARTS = dict(
    scorer_steps="2",
    eval_size="3",
    new_tokens="4",
    rounds="1",
    round_steps="2",
    round_samples="3",
    token_rules="signed,random",
    selections="random,dog_d",
    anchor_rank="2",
    residual_rank="4",
)
BOOK = "08_your_own_pairs"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_models.pairs_file(tmp_path_factory.mktemp("data") / "pairs.jsonl")


@pytest.fixture(scope="module", params=list(made_models.KINDS))
def model(request, tmp_path_factory):
    bos = "<s>" if request.param in ("llama", "mistral") else ""
    return made_models.model_folder(tmp_path_factory.mktemp(request.param), request.param, bos=bos)


def test_own_pairs_run_on_every_architecture(model, data, tmp_path):
    given = {**SHORT, **PARTS, "model": str(model), "data": str(data)}
    folder, record, ran = runner.run(BOOK, tuple(given.items()), out=tmp_path)
    assert ran and record["status"] == "complete" and record["parameters"]["model"] == str(model)
    for method in ("dpo", "safedpo", "cdpo", "selective", "dog_d"):
        assert f"{method}.reward" in record["metrics"], method
    book = json.loads((folder / f"{BOOK}.ipynb").read_text(encoding="utf-8"))
    outputs = [o for c in book["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert not [name for name in record["metrics"] if "kl_opt" in name], (
        "nothing exact is claimed on real text"
    )


def test_adapters_in_bfloat16(data, tmp_path):
    """What a large model needs at once: LoRA, bfloat16, checkpointing, a batch in parts; a chat template."""
    chat = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
    folder = made_models.model_folder(
        tmp_path / "model", "llama", bos="<s>", chat=chat.replace("<s>", "")
    )
    more = dict(
        dtype="bfloat16",
        lora="2",
        checkpointing="true",
        accumulate="2",
        template="chat",
        model=str(folder),
        data=str(data),
        parts="safedpo,cdpo",
    )
    given = tuple({**SHORT, **PARTS, **more}.items())
    record = runner.run(BOOK, given, out=tmp_path)[1]
    assert record["metrics"]["ref.harmless_ratio"] >= 0 and record["parameters"]["lora"] == 2
    assert "cdpo.lambda" in record["metrics"] and "rules.csv" not in record["tables"]


def test_what_only_answers_would_show_is_refused_before(data, tmp_path):
    folder = made_models.model_folder(tmp_path / "model", "gpt2")
    questions = tmp_path / "q.jsonl"
    questions.write_text(
        json.dumps({"question_id": 81, "category": "writing", "turns": ["Write a line.", "Again."]})
        + "\n"
    )
    given = {
        **SHORT,
        "model": str(folder),
        "data": str(data),
        "eval_prompts": f"mt_bench={questions}",
        "template": "safe_rlhf",
    }
    with pytest.raises(Refusal, match="has several turns, template='safe_rlhf' takes one"):
        runner.prepare(BOOK, tuple(given.items()))
    _, _, id = runner.prepare(BOOK, tuple({**given, "template": "dialogue"}.items()))
    questions.write_text(questions.read_text().replace("Again", "Once more"))
    assert runner.prepare(BOOK, tuple({**given, "template": "dialogue"}.items()))[2] != id, (
        "its content is part of the question"
    )


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "merges.txt"])
def test_a_text_file_of_a_model_that_would_hold_the_process(tmp_path, name):
    folder = Path(made_models.model_folder(tmp_path / "model", "gpt2"))
    (folder / name).unlink(missing_ok=True)
    (folder / name).touch()
    os.truncate(folder / name, 2**33)
    with pytest.raises(ValueError, match=f"model='.*{name}: is too large"):
        check_model(str(folder))
