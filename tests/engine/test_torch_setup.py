"""What torch is told once, and memory that goes back to the system."""

import sys
from pathlib import Path

import pytest
import torch

from safealign_utils.engine import torch_setup


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's memory")
def test_freed_pieces_between_used_ones_go_back_to_the_system():
    torch_setup.set_up()
    tensors = [torch.zeros(2**18) for _ in range(400)]  # 1 MB each
    used = tensors[::8]
    del tensors
    before = resident()
    torch_setup.give_back()
    assert before - resident() > 250e6, "350 of 400 MB were freed"
    assert all(float(x.sum()) == 0.0 for x in used)


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    torch_setup.give_back()
    torch_setup._keep_memory()
