"""Every notebook from 01 to 05 on models of real architectures and a file of pairs, unchanged, in a short form."""

import json

import pytest
from helpers import made_models

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
MORE = {
    "01_dpo_basics": {},
    "02_safedpo": dict(scorer_steps="2", eval_size="3", new_tokens="4"),
    "03_cdpo_dual_gradient_descent": dict(
        scorer_steps="2",
        eval_size="3",
        new_tokens="4",
        rounds="1",
        round_steps="2",
        round_samples="3",
        lambdas="1.0",
    ),
    "04_selective_dpo_token_scoring": dict(score_references="aligned", token_rules="signed,random"),
    "05_dog_selection": dict(selections="random,dog_d", anchor_rank="2", residual_rank="4"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_models.pairs_file(tmp_path_factory.mktemp("data") / "pairs.jsonl")


@pytest.fixture(scope="module", params=list(made_models.KINDS))
def model(request, tmp_path_factory):
    bos = "<s>" if request.param in ("llama", "mistral") else ""
    return made_models.model_folder(tmp_path_factory.mktemp(request.param), request.param, bos=bos)


@pytest.mark.parametrize("notebook", list(MORE))
def test_every_notebook_runs_on_every_architecture(notebook, model, data, tmp_path):
    given = {**SHORT, **MORE[notebook], "model": str(model), "data": str(data)}
    folder, record, ran = runner.run(notebook, tuple(given.items()), out=tmp_path)
    assert ran and record["status"] == "complete" and record["parameters"]["model"] == str(model)
    book = json.loads((folder / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    outputs = [o for c in book["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert not [name for name in record["metrics"] if "kl_opt" in name], (
        "nothing exact is claimed on real text"
    )


@pytest.mark.parametrize("notebook", ["02_safedpo", "03_cdpo_dual_gradient_descent"])
def test_adapters_in_bfloat16(notebook, data, tmp_path):
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
    )
    record = runner.run(notebook, tuple({**SHORT, **MORE[notebook], **more}.items()), out=tmp_path)[
        1
    ]
    assert record["metrics"]["ref.harmless_ratio"] >= 0 and record["parameters"]["lora"] == 2


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
        runner.prepare("02_safedpo", tuple(given.items()))
    _, _, id = runner.prepare("02_safedpo", tuple({**given, "template": "dialogue"}.items()))
    questions.write_text(questions.read_text().replace("Again", "Once more"))
    assert (
        runner.prepare("02_safedpo", tuple({**given, "template": "dialogue"}.items()))[2] != id
    ), "its content is part of the question"
