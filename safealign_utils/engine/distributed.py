"""Several processes of one run, as `accelerate launch` starts them, and what they must agree on.

Every process runs the same notebook on the same data. What decides whether a collective operation
follows (is the run in the cache, is a state on disk) is decided by process 0: two answers would
leave one waiting. With one process everything here answers at once.
"""

import atexit
import contextlib
import os
from datetime import timedelta

from .boundary import Refusal, shown

LAUNCH = "start several processes with `accelerate launch`, which numbers them"
OFF = ("0", "false", "f", "no", "n", "off")
ENGINE = "the kit trains with DDP or FSDP; see notebooks/profiles/accelerate_*.yaml"
TF32 = "matrix products would be rounded to 10 bits; unset it"
CHANGING = {  # variable: values that change nothing, and the fix for all others
    "ACCELERATE_USE_DEEPSPEED": (OFF, ENGINE),
    "ACCELERATE_USE_MEGATRON_LM": (OFF, ENGINE),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (OFF, ENGINE),
    "ACCELERATE_USE_SAGEMAKER": (OFF, ENGINE),
    "ACCELERATE_FP8_BACKEND": (("no", *OFF), "the notebook's dtype sets the precision; unset it"),
    "NVIDIA_TF32_OVERRIDE": (OFF, TF32),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": (OFF, TF32),
    "ONEDNN_DEFAULT_FPMATH_MODE": (("strict",), TF32),
    "DNNL_DEFAULT_FPMATH_MODE": (("strict",), TF32),
}
UNSUPPORTED = (
    "FSDP_OFFLOAD_PARAMS",
    "FSDP_ACTIVATION_CHECKPOINTING",
    "FSDP_CPU_RAM_EFFICIENT_LOADING",
)
ALIEN = ("ACCELERATE_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "PMI_", "OMPI_", "MV2_", "MPI_LOCAL")
TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
PATIENCE = timedelta(
    hours=2
)  # process 0 may write large files while the others wait; a dead one ends all at once


def count():
    """How many processes there are. Raises ValueError for a WORLD_SIZE that is no number, or stands
    alone."""
    number = _number("WORLD_SIZE", 1, low=1, fix="unset it for one process")
    if number > 1 and not os.environ.get("RANK"):
        raise ValueError(
            f"WORLD_SIZE={number}: RANK is not set; unset WORLD_SIZE for one process, or {LAUNCH}"
        )
    return number


def rank():
    """This process's number, 0 to count - 1; number 0 writes and prints. One process reads no RANK
    of a job array."""
    return 0 if count() == 1 else _number("RANK", 0, below=count(), fix=LAUNCH)


def local_rank():
    """This process's number on its machine, 0 for one process."""
    if count() == 1:
        return 0
    here = _number("LOCAL_WORLD_SIZE", count(), low=1, fix=LAUNCH)
    return _number("LOCAL_RANK", 0, below=here, fix=LAUNCH)


def _number(name, usual, *, fix, low=0, below=None):
    text = os.environ.get(name, "").strip() or str(usual)
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if number < low or below is not None and number >= below:
        what = f"a whole number of at least {low}" + (
            f", below {below}" if below is not None else ""
        )
        raise Refusal(f"{name}={shown(text)}: {what}; {fix}")
    return number


def own_device(name):
    """This process's device: `cuda` is the GPU of its own number on the machine, where there are
    several processes."""
    return f"cuda:{local_rank()}" if name == "cuda" and count() > 1 else name


def check_environment():
    """Refuse variables of the environment that would change a result and that the kit cannot set
    aside: ValueError."""
    local_rank(), rank()
    if count() > 1 and not os.environ.get("MASTER_ADDR"):
        raise ValueError(
            f"WORLD_SIZE={count()}: MASTER_ADDR is not set; unset WORLD_SIZE for one process, or "
            f"{LAUNCH}"
        )
    for name, (harmless, fix) in CHANGING.items():
        text = os.environ.get(name, "").strip()
        if text and text.lower() not in harmless:
            raise Refusal(f"{name}={shown(text)[1:-1]}: {fix}")
    if count() > 1 and is_on("ACCELERATE_USE_FSDP"):
        for name in UNSUPPORTED:
            if is_on(name):
                key = name.lower()
                raise ValueError(
                    f"{name}={os.environ[name]}: {key}: write {key}: false in the accelerate "
                    "configuration"
                )


def is_on(name):
    return os.environ.get(name, "").strip().lower() in ("1", "true", "t", "yes", "y", "on")


@contextlib.contextmanager
def set_aside(**given):
    """Hide from accelerate what the kit sets itself (precision, accumulation, compiling, device),
    for a block.

    Of launchers' variables only torch's own are left, and those of one process are none. `given` is
    set in the block.
    """
    before, alone = dict(os.environ), count() == 1
    sharded = not alone and is_on("ACCELERATE_USE_FSDP")
    hidden = ALIEN + (TORCHRUN if alone else ()) + (() if sharded else ("FSDP_",))
    for name in before:
        if name.startswith(hidden) and not (sharded and name == "ACCELERATE_USE_FSDP"):
            del os.environ[name]
    os.environ.update(given)
    try:
        yield
    finally:
        for name in {*os.environ} - {*before}:
            del os.environ[name]
        os.environ.update(before)


def join():
    """Enter the group of processes, once: gloo for what lies in main memory, nccl for what lies on
    GPUs."""
    import torch

    if count() == 1 or torch.distributed.is_initialized():
        return
    gpus, local = torch.cuda.device_count(), local_rank()
    if local < gpus:
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    atexit.register(torch.distributed.destroy_process_group)


def agree(value):
    """Process 0's value, on every process."""
    if count() == 1:
        return value
    from torch.distributed import broadcast_object_list

    join()
    box = [value]
    broadcast_object_list(box, src=0)
    return box[0]


def gather(value):
    """The values of all processes, in order, on every process."""
    if count() == 1:
        return [value]
    from torch.distributed import all_gather_object

    join()
    box = [None] * count()
    all_gather_object(box, value)
    return box


def total(values):
    """A dict of numbers, summed over processes."""
    return (
        {name: sum(part[name] for part in gather(values)) for name in values}
        if count() > 1
        else values
    )


def found(look):
    """`look()` on every process if process 0 finds something, else None on all.

    Raises RuntimeError where process 0 finds what another one does not: the cache must be one
    folder for all.
    """
    first = look() if rank() == 0 else None
    if not agree(first is not None):
        return None
    out = first if rank() == 0 else look()
    if out is None:
        raise _not_shared()
    return out


def same(lacking):
    """What is not in the cache, a sorted list, as process 0 sees it. Raises RuntimeError where
    another lacks more."""
    first = agree(lacking)
    if set(lacking) - set(first):
        raise _not_shared()
    return first


def _not_shared():
    return RuntimeError(
        f"SAFEALIGN_CACHE={os.environ.get('SAFEALIGN_CACHE', '')!r}: process {rank()} does not "
        "see what process 0 "
        "has stored; name a folder that all processes share"
    )


def agree_apart(question, answer):
    """Process 0's answer (True or False) to a runner's question, without entering the notebooks'
    group.

    The runners start the notebooks, which form the group; they themselves ask the launcher's own
    store. Without one (another launcher) everyone answers for itself.
    """
    if count() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return answer
    from torch.distributed import TCPStore

    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE
    )
    name = f"safealign {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} {question}"
    if rank() == 0:
        store.set(name, str(answer))
    return store.get(name).decode() == "True"
