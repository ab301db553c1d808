"""Distillation: the divergence by hand, nothing to learn from oneself, and the way to a teacher."""

import dataclasses
import math

import pytest
import torch

from safealign_utils import evaluate, pairs
from safealign_utils.methods import distillation
from safealign_utils.world import optimum

SHORT = dict(batch_size=8, learning_rate=3e-3, seed=0)


@pytest.fixture(scope="module")
def teacher(reference):
    """A policy far from the reference."""
    moved = reference.copy()
    with torch.no_grad():
        for i, weights in enumerate(moved.model.parameters()):
            weights *= 1 + 0.2 * math.sin(i + 1)
    return moved


def test_the_divergence_by_hand():
    teacher = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]], dtype=torch.float64).log()
    found = distillation.token_kl(teacher, student)
    assert found.tolist() == pytest.approx([0.5 * math.log(2), math.log(2)])


@pytest.mark.parametrize("constrained", [True, False])
def test_towards_the_teacher(world, reference, teacher, constrained):
    both = reference, teacher
    start, teacher = (dataclasses.replace(p, constrained=constrained) for p in both)
    tokens = pairs.tokenize(pairs.label(world.pairs(32, seed=0)), start)
    still = distillation.distil(start, start, tokens, steps=1, **SHORT)
    assert still.log.loss[0] == pytest.approx(0.0, abs=1e-9)
    run = distillation.distil(teacher, start, tokens, steps=12, **SHORT)
    prompts = world.select("train")[:4]
    goal = evaluate.exact(teacher, prompts).logp
    near, far = (optimum.kl(evaluate.exact(p, prompts).logp, goal) for p in (run.policy, start))
    assert near < 0.5 * far
    assert run.policy.constrained == constrained


def test_labels_are_not_read(world, inside, teacher):
    table, teacher = (
        pairs.label(world.pairs(16, seed=0)),
        dataclasses.replace(teacher, constrained=True),
    )
    logs = []
    for labelled in (table, table.assign(chosen=1 - table.chosen, p=0.3)):
        tokens = pairs.tokenize(labelled, inside)
        run = distillation.distil(teacher, inside, tokens, steps=2, use_cache=False, **SHORT)
        logs.append(run.log.loss.tolist())
    assert logs[0] == pytest.approx(logs[1], abs=1e-9)
