"""What accelerate does for the training loop: its set-up for one process or several, and
checkpoints of a run.

A checkpoint (what is trained, optimiser, schedule, random states, position, log) lies on disk and
is resumed exactly, also with another number of processes. It is plain numbers with a digest
(`engine/sealed.py`), no pickle: reading it runs no code. Process 0 decides when it is written and
what is read.
"""

import contextlib
import os
import random
import shutil
import time

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors import SafetensorError

from . import cache, distributed, live, sealed
from . import lora as adapters

WAIT = 30.0  # seconds between two states
SHARE = 0.05  # of the time that writing them may take
STATES = "state-????????"  # folders of states, by step
SLOTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW knows of a parameter


def accelerator_for(policy):
    """An accelerate.Accelerator for a policy's device and precision, whatever the environment says
    of these.

    Under FSDP the weights are gathered in their own type and the module's own autocast computes:
    the losses are those of one process. Raises ValueError for the first version of FSDP, and for
    what `distributed.check_environment` refuses.
    """
    distributed.check_environment()
    distributed.join()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    sharded = distributed.is_on("ACCELERATE_USE_FSDP")
    if sharded and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("fsdp_version: 1; write fsdp_version: 2 in the accelerate configuration")
    precision = "bf16" if policy.bf16 and not (sharded and distributed.count() > 1) else "no"
    with distributed.set_aside(ACCELERATE_TORCH_DEVICE=str(policy.device)):
        return Accelerator(cpu=policy.device.type == "cpu", mixed_precision=precision)


def whole(accelerator, net, build):
    """The trained module without accelerate's wrapping; FSDP's parts are put together in a new one
    (`build()`)."""
    if not accelerator.is_fsdp2:
        return accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    module = build()
    state = module.state_dict()
    with torch.no_grad():
        # One after another: there is no room for two copies.
        for name, value in adapters.trained_state(net).items():
            state[name].copy_(value.full_tensor() if hasattr(value, "full_tensor") else value)
    return module


class Checkpoint:
    """`step` and `log` (a dict a step) of a run, and its state in a `folder` (None: nothing is
    written).

    Made after `accelerator.prepare`, with what that returned. The last state on disk is then
    loaded; one that is damaged, or has anything else in its folder, is removed, and the one before
    it is taken, or none. A state is one file, under FSDP one for each process, with its share.
    """

    def __init__(self, accelerator, net, optimizer, schedule, folder, save_every):
        self.step, self.log = 0, []
        self.net = net if accelerator.is_fsdp2 else accelerator.unwrap_model(net)
        self.accelerator, self.optimizer, self.schedule = accelerator, optimizer, schedule
        self.folder, self.save_every = folder, save_every
        self.written, self.took = time.monotonic(), 0.0
        for name in reversed(distributed.agree(_states(folder))):
            if self._resume(folder / name):
                break

    @staticmethod
    def remove(folder):
        shutil.rmtree(folder, ignore_errors=True)

    def add(self, means, norm):
        """A step is done: what is logged of it, and the norm of its gradient."""
        self.step += 1
        self.log.append({"step": self.step, **means, "grad_norm": norm})

    def due(self, steps):
        """Whether process 0 wants the state of this step written, on every process."""
        if not self.folder or self.step >= steps:
            return False
        if self.save_every:
            return self.step % self.save_every == 0
        return distributed.agree(time.monotonic() - self.written > max(WAIT, self.took / SHARE))

    def write(self):
        """Write the state beside its place, rename it, drop older ones. Another run may do the
        same. Returns where.

        On a disk that is full or cannot be written the run goes on, and an older state stays.
        """
        if not self.folder:
            return "nowhere, as the run has no cache"
        start, first = time.monotonic(), distributed.rank() == 0
        final = self.folder / f"state-{self.step:08d}"
        beside = self.folder / distributed.agree(live.hidden("state", "partial"))
        failed = (
            self._save(beside, final.name) if distributed.agree(not os.path.exists(final)) else ""
        )
        if failed:
            cache.say(
                f"the state of a training cannot be written ({failed}); going on without it. "
                f"{cache.ROOM}"
            )
        elif first:
            self._put(beside, final)
        if first:
            shutil.rmtree(beside, ignore_errors=True)
        self.written = time.monotonic()
        self.took = self.written - start
        return f"nowhere ({failed})" if failed else final

    def _put(self, beside, final):
        with contextlib.suppress(OSError):  # the other one was first, with the same state
            live.put(beside, final)
        for old in _states(self.folder):
            if old < final.name:
                shutil.rmtree(self.folder / old, ignore_errors=True)

    def _save(self, folder, name):
        """Write the state of all processes into a new folder: "", or what went wrong with one of
        them."""
        failed, number = "", distributed.rank()
        if number == 0:
            try:
                cache.own_root()
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.mkdir(mode=0o700)
            except OSError as error:
                failed = str(error)
        failed = distributed.agree(failed)
        if failed:
            return failed
        info = self._info()
        try:
            if number < info["files"]:
                arrays = {key: _array(tensor) for key, tensor in self._tensors().items()}
                sealed.write(folder / _file(number), self._seal(name, number), arrays, info)
        except (OSError, SafetensorError) as error:
            failed = str(error).splitlines()[0]
        return next(filter(None, distributed.gather(failed)), "")

    def _info(self):
        """All of a state that is no tensor."""
        return {
            "files": distributed.count() if self.accelerator.is_fsdp2 else 1,
            "sharded": [name for name, tensor in self._tensors().items() if _is_sharded(tensor)],
            "step": self.step,
            "log": self.log,
            "schedule": self.schedule.state_dict(),
            "random": distributed.gather(_random_states(self.accelerator.device)),
        }

    def _tensors(self):
        """{name: tensor} of all that training changes: weights, and what AdamW knows of them."""
        out = {f"weight.{name}": t for name, t in adapters.trained_state(self.net).items()}
        for name, p in self.net.named_parameters():
            for slot, tensor in self.optimizer.state.get(p, {}).items():
                out[f"{slot}.{name}"] = tensor
        return out

    def _seal(self, state, number):
        """The name under which a file of a state is known: that of no other training, nor step."""
        return f"{self.folder.name}/{state}/{number}"

    # ------------------------------------------------------------ reading

    def _resume(self, state):
        """Go on from a state, if every process finds it as it was written and fitting: whether."""
        files, info, why, damaged = (), {}, "", False
        try:
            files, info = self._opened(state)
        except (OSError, MemoryError) as error:  # nothing is said of what is in it
            why = str(error)
        except Exception as error:
            why, damaged = str(error), True
        why = next(filter(None, distributed.gather(why)), "")
        if why:
            self.optimizer.state.clear()
            cache.say(f"{state} cannot be resumed ({why}); going on from the one before, or anew")
            if any(distributed.gather(damaged)) and distributed.rank() == 0:
                self.remove(state)
            return False
        self._load(files, info)
        return True

    def _opened(self, state):
        """(open files, description) of a state. Raises Damaged, or what a parser makes of it."""
        found = sorted(state.iterdir())
        plain = all(file.is_file() and not file.is_symlink() for file in found)
        if not found or not plain or [f.name for f in found] != sorted(map(_file, _upto(found))):
            raise sealed.Damaged("its folder does not hold the files of a state, and nothing else")
        names = [self._seal(state.name, number) for number in _upto(found)]
        read = [sealed.verified(state / _file(n), name) for n, name in enumerate(names)]
        files, info = [file for file, _ in read], read[0][1]
        if info["files"] != len(files):
            raise sealed.Damaged(f"{len(files)} of its {info['files']} files are there")
        if info["step"]:
            self._begin()
        expected = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        shapes = {name: _shape(files, name, info["sharded"]) for name in files[0].keys()}
        if expected != shapes:
            raise sealed.Damaged("it holds other weights than those that are trained")
        return files, info

    def _begin(self):
        """Give AdamW what it has after its first step, all zero."""
        for p in self.net.parameters():
            if p.requires_grad:
                values = (torch.zeros((), device=p.device), *map(torch.zeros_like, (p, p)))
                self.optimizer.state[p] = dict(zip(SLOTS, values))

    @torch.no_grad()
    def _load(self, files, info):
        for name, tensor in self._tensors().items():
            parts = files if name in info["sharded"] else files[:1]
            arrays = [file.get_tensor(name) for file in parts]
            _fill(tensor, np.concatenate(arrays) if len(arrays) > 1 else arrays[0])
        self.schedule.load_state_dict(info["schedule"])
        for group, rate in zip(self.optimizer.param_groups, info["schedule"]["_last_lr"]):
            group["lr"] = rate
        self.step, self.log = info["step"], info["log"]
        if distributed.rank() < len(info["random"]):  # one process more starts from the seed
            _set_random_states(info["random"][distributed.rank()], self.accelerator.device)


def _states(folder):
    """Names of the states in a folder, the last step last; none where it cannot be looked into."""
    try:
        return sorted(path.name for path in folder.glob(STATES)) if folder else []
    except OSError:
        return []


def _file(number):
    return f"{number}.safetensors"


def _upto(found):
    return range(len(found))


def _is_sharded(tensor):
    return hasattr(tensor, "full_tensor")


def _array(tensor):
    """This process's part of a tensor; numpy knows no bfloat16, and float32 holds all of it."""
    tensor = tensor.to_local() if _is_sharded(tensor) else tensor
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return tensor.detach().cpu().contiguous().numpy()


def _shape(files, name, sharded):
    shape, *more = [
        tuple(file.get_slice(name).get_shape())
        for file in (files if name in sharded else files[:1])
    ]
    return (sum(part[0] for part in (shape, *more)), *shape[1:]) if more else shape


def _fill(tensor, array):
    """Put a whole array into a tensor, or this process's part of it."""
    value = torch.from_numpy(array).to(tensor.device)
    if _is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        where = (tensor.device_mesh, tensor.placements)
        value = distribute_tensor(value, *where, src_data_rank=None).to_local()
        tensor = tensor.to_local()
    tensor.copy_(value)


def _random_states(device):
    """Where the generators of this process stand, as plain values."""
    name, numbers, *rest = np.random.get_state()
    out = {"python": random.getstate(), "numpy": [name, numbers.tolist(), *rest]}
    out["torch"] = torch.get_rng_state().tolist()
    out["cuda"] = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None
    return out


def _set_random_states(states, device):
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if device.type == "cuda" and states["cuda"]:
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8), device)
