"""Several processes of one run, as `accelerate launch` starts them, and what they must agree on.

Every process runs the same notebook on the same data. What decides whether a collective operation follows
(is the run in the cache, is a state kept) is decided by process 0: two answers would leave one waiting.
With one process everything here answers at once.
"""

import atexit
import os
from datetime import timedelta

PATIENCE = timedelta(hours=2)  # process 0 may write large files while the others wait; a dead one ends all at once


def count():
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank():
    """This process's number, 0 to count - 1; number 0 writes and prints."""
    return int(os.environ.get("RANK", "0"))


def own_device(name):
    """This process's device: `cuda` is the GPU of its own number on the machine, where there are several processes."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" and count() > 1 else name


def join():
    """Enter the group of processes, once: gloo for what lies in main memory, nccl for what lies on GPUs."""
    import torch

    if count() == 1 or torch.distributed.is_initialized():
        return
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
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
    return {name: sum(part[name] for part in gather(values)) for name in values} if count() > 1 else values


def found(look):
    """`look()` on every process if process 0 finds something, else None on all.

    Raises RuntimeError where process 0 finds what another one does not: the cache must be one folder for all.
    """
    first = look() if rank() == 0 else None
    if not agree(first is not None):
        return None
    out = first if rank() == 0 else look()
    if out is None:
        raise _not_shared()
    return out


def same(lacking):
    """What is not in the cache, a sorted list, as process 0 sees it. Raises RuntimeError where another lacks more."""
    first = agree(lacking)
    if set(lacking) - set(first):
        raise _not_shared()
    return first


def _not_shared():
    return RuntimeError(
        f"SAFEALIGN_CACHE={os.environ.get('SAFEALIGN_CACHE', '')!r}: process {rank()} does not see what process 0 "
        "has stored; name a folder that all processes share"
    )


def told(question, answer):
    """Process 0's answer (True or False) to a runner's question, without entering the notebooks' group.

    The runners start the notebooks, which form the group; they themselves ask the launcher's own store. Without
    one (another launcher) everyone answers for itself.
    """
    if count() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return answer
    from torch.distributed import TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE)
    name = f"safealign {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} {question}"
    if rank() == 0:
        store.set(name, str(answer))
    return store.get(name).decode() == "True"
