"""A process that gives up writing: Linux' Landlock, which needs no rights and cannot be taken back."""

import ctypes
import os
import resource
from collections.abc import Sequence

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, on every architecture
_VERSION, _BENEATH, _NO_NEW_PRIVILEGES = 1, 1, 38
_WRITE_FILE, _DEVICES = 1 << 1, 1 << 15
# by version of the interface: execute, write, remove and make anything; link and rename elsewhere; cut short; devices
_KINDS = {1: 0x1FFF & ~0b1100, 2: 1 << 13, 3: 1 << 14, 5: _DEVICES}
_CONNECT = 0b11  # version 4: bind and connect by TCP


class _Rules(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def give_up_writing(devices: Sequence[str] = ()) -> bool:
    """From now on this thread, those it starts and its child processes write, make, rename and remove no files, start
    no programs and open no TCP connections; files below `devices`, e.g. /dev, may still be written. What is open stays
    open. False where the kernel (before Linux 5.13, or another system) cannot do this: then files cannot grow.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not devices:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    kernel = ctypes.CDLL(None, use_errno=True)
    version = kernel.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    files = sum(kinds for least, kinds in _KINDS.items() if version >= least)
    rules = _Rules(files, _CONNECT if version >= 4 else 0)
    size = ctypes.sizeof(rules) if version >= 4 else 8
    ruleset = kernel.syscall(_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    for folder in devices:
        opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        beneath = _Beneath(files & (_WRITE_FILE | _DEVICES), opened)
        failed = kernel.syscall(_ADD, ruleset, _BENEATH, ctypes.byref(beneath), 0)
        os.close(opened)
        if failed:
            return False
    alone = kernel.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and kernel.syscall(_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return bool(alone)
