"""LoRA adapters (Hu et al., arXiv 2106.09685), made by `peft` inside a plain transformers model.

W x becomes W x + (alpha / rank) B A x in every linear layer but the output head, and only A and B
are trained. B starts at 0: a fresh adapter is the reference, to the last bit. W stays where it is:
the policies that stand on one base share its memory, in bfloat16 where they compute in it, with A
and B in float32.
"""

import copy
from dataclasses import replace

import torch


def prepare(policy, *, rank, seed):
    """A policy that is ready to be trained with `rank` (0: all weights): with a fresh adapter, or
    with the one it has.

    Alpha is 2 x rank; `seed` draws A. Raises ValueError for a rank that is not the adapter's own.
    """
    if rank < 0:
        raise ValueError(f"lora={rank}: the rank is 0 (no adapter) or above")
    there = described(policy.model)
    if not there and rank:
        return _attach(policy.base, rank, seed)
    if there and there[0] != rank:
        raise ValueError(
            f"lora={rank}: the policy has an adapter of rank {there[0]}; give that rank to go on "
            "with it, or start from policy.merged()"
        )
    return policy


def _attach(base, rank, seed):
    """The base with a fresh adapter, float32 or better; the base's own weights are shared, not
    copied."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    model = copy_sharing(base.model, lambda p: True)
    transposed = any(isinstance(part, Conv1D) for part in model.modules())  # GPT-2's hold W so
    where = dict(target_modules="all-linear", fan_in_fan_out=transposed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, **where)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
    return replace(base, model=model.eval())


def array(tensor):
    """A tensor as numpy array, for hashes; numpy knows no bfloat16, so its bits are taken, under
    that name."""
    tensor = tensor.cpu()
    return (
        ["bfloat16", tensor.view(torch.int16).numpy()]
        if tensor.dtype == torch.bfloat16
        else tensor.numpy()
    )


def described(model):
    """[rank, alpha] of a model's adapter, [] where it has none."""
    configs = getattr(model, "peft_config", {})
    return [configs["default"].r, float(configs["default"].lora_alpha)] if configs else []


def parts_of(module):
    """(linear layer, its adapter) of a layer that peft has adapted: A [rank, D], and alpha / rank
    times B [M, rank]. The adapter is None where it is off, and for any other module, itself."""
    if type(module) is torch.nn.Linear:
        return module, None
    from peft.tuners.lora import Linear

    if type(module) is not Linear or not _is_usual(module):
        return module, None
    if module.disable_adapters:
        return module.base_layer, None
    (name,) = module.active_adapters
    up = module.lora_B[name].weight * module.scaling[name]
    return module.base_layer, (module.lora_A[name].weight, up)


def _is_usual(module):
    """Whether a layer has one adapter that is not merged, without dropout, bias or a variant, on a
    frozen linear layer, and computes as peft wrote it."""
    names, base = module.active_adapters, module.base_layer
    as_written = type(module).forward.__module__ == type(module).__module__
    frozen = type(base) is torch.nn.Linear and not base.weight.requires_grad
    if not (as_written and frozen and len(names) == 1) or module.merged or module.lora_variant:
        return False
    quiet = type(module.lora_dropout[names[0]]) is torch.nn.Identity
    return quiet and module.lora_B[names[0]].bias is None


def copy_sharing(model, share):
    """A copy of a model in which the parameters that `share(p)` selects lie in the same memory, and
    are frozen."""
    memo = {
        id(p): torch.nn.Parameter(p.detach(), requires_grad=False)
        for p in model.parameters()
        if share(p)
    }
    return copy.deepcopy(model, memo)


def base(policy):
    """What an adapter stands on: the merged policy, held in bfloat16 where it computes in it; often
    just the policy."""
    policy = merged(policy)
    if not policy.bf16 or policy.model.dtype == torch.bfloat16:
        return policy
    return replace(policy, model=_cast(copy.deepcopy(policy.model), torch.bfloat16))


def _cast(model, dtype):
    """Change the type of the weights, in place, and of nothing else: rotary angles in bfloat16
    would be useless."""
    for p in model.parameters():
        p.data = p.data.to(dtype)
    return model


def merged(policy):
    """The policy with its adapter added to the weights, a plain model in float32 or better; itself
    without one."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not described(policy.model):
        return policy
    model = _cast(
        copy.deepcopy(policy.model), torch.promote_types(policy.model.dtype, torch.float32)
    )
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    return replace(policy, model=model.requires_grad_(True))


def trained_state(module):
    """What training changes: a module's state (names to tensors) without frozen parameters, each
    tied one once."""
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    left_out = every - {name for name, p in module.named_parameters() if p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in left_out}


@torch.no_grad()
def put_trained(module, arrays):
    """Copy stored weights (names to arrays or tensors) into what training changes of a module;
    False, and nothing is changed, unless names and shapes are exactly those of `trained_state`."""
    state = trained_state(module)
    arrays = {name: torch.as_tensor(value) for name, value in arrays.items()}
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in arrays.items()}:
        return False
    for name, value in arrays.items():
        state[name].copy_(value)
    return True
