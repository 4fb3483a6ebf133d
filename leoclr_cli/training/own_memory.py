"""Memory of its own for what a method makes of memory that may only be read, such as the arrays of an index."""

from __future__ import annotations

import ctypes
import os

import torch
from torch import UntypedStorage, nn


def leave_read_only_memory(module: nn.Module) -> None:
    """Copy the parameters and buffers that lie in memory that may only be read; what shares memory still does.

    Torch takes such memory for any other, and to load a checkpoint, or to move a buffer, would end the process.
    """
    copies: dict[int, UntypedStorage] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            continue
        storage = tensor.untyped_storage()
        if storage.resizable() or not storage.nbytes():  # torch has allocated it
            continue
        address = storage.data_ptr()
        if address not in copies:
            if writable(address):
                continue
            copies[address] = storage.clone()  # type: ignore[no-untyped-call]
        place = tensor.storage_offset(), tensor.shape, tensor.stride()
        tensor.data = torch.empty(0, dtype=tensor.dtype).set_(copies[address], *place)


def writable(address: int) -> bool:
    """Whether a byte may be written. The system is asked to write what it holds: that fails where an assignment would
    end the process."""
    byte = (ctypes.c_char * 1).from_address(address)
    source, sink = os.pipe()
    try:
        os.write(sink, byte)
        return os.readv(source, [byte]) == 1
    except OSError:
        return False
    finally:
        os.close(source)
        os.close(sink)
