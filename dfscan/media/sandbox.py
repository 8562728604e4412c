"""Sandbox for processes that read untrusted files: no file names, no network, no programs, limited memory.

It has three layers, because not every system supports all of them:

- `setrlimit` limits memory, file size, descriptors and core dumps, on every system.
- Landlock (Linux 5.13 and later, landlock(7)) forbids opening, creating, changing, removing and running files by name.
  ABI 4 and later also forbid TCP, ABI 6 and later also signals and abstract sockets to processes outside.
- A seccomp filter (Linux, seccomp(2)) forbids sockets, programs, access to other processes and system calls that
  bypass the filter.

Descriptors that are already open remain usable: a sandboxed process works on the descriptors that it is given.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys

MAX_DESCRIPTORS = 16

# Landlock: <linux/landlock.h>. The numbers of its system calls are the same on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_FS_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Every file system right of each ABI; a handled right is denied. Later ABIs use the newest entry."""
_NET_RIGHTS, _FIRST_ABI_WITH_NET = 0b11, 4  # bind and connect TCP
_SCOPES, _FIRST_ABI_WITH_SCOPES = 0b11, 6  # abstract sockets and signals

_PR_SET_NO_NEW_PRIVS, _PR_GET_SECCOMP, _PR_SET_SECCOMP = 38, 21, 22  # <linux/prctl.h>
_SECCOMP_MODE_FILTER = 2

# Classic BPF, <linux/bpf_common.h>, and the return values of a filter, <linux/seccomp.h>.
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _JUMP_IF_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16  # offsets in struct seccomp_data, little endian
_X32_BIT = 0x40000000
"""On x86-64, numbers from here on are a second way to make the same calls."""
_CLONE_THREAD = 0x00010000  # <linux/sched.h>

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Maps the machine name of `uname -m` to the kernel's number (<linux/audit.h>) and the column of `_REFUSED`."""
_REFUSED = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kill": (62, 129),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
}
"""System calls that decoding never needs, with their numbers on x86-64 and on 64-bit ARM."""
_CLONE, _CLONE3 = (56, 220), (435, 435)
"""These calls create threads, which are allowed, and processes, which are not. A filter can check the flags of the
first only, so the second is reported as unknown and the C library falls back to the first."""
_FORKS_OF_X86 = (57, 58)


def limit(max_memory_bytes: int) -> None:
    """Limit the resources of this process.

    Args:
        max_memory_bytes: maximum address space, including what is in use already. Allocating more raises
            `MemoryError`.

    Raises:
        OSError: the system refuses a limit.
    """
    limits = {
        resource.RLIMIT_AS: max_memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: MAX_DESCRIPTORS,
    }
    for kind, maximum in limits.items():
        hard = resource.getrlimit(kind)[1]
        allowed = maximum if hard == resource.RLIM_INFINITY else min(maximum, hard)
        try:
            resource.setrlimit(kind, (allowed, allowed))
        except ValueError as error:  # macOS refuses some of them
            if sys.platform == "linux":
                raise OSError(errno.EINVAL, str(error)) from error


def enter() -> None:
    """Enter the sandbox for good, with every layer that this system supports.

    Raises:
        OSError: a supported layer cannot be enabled, or other threads exist, which would not be sandboxed.
    """
    if sys.platform != "linux":
        return
    if len(os.listdir("/proc/self/task")) > 1:
        raise OSError(errno.EBUSY, "it has more than one thread")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if abi := landlock_abi():
        net = _NET_RIGHTS if abi >= _FIRST_ABI_WITH_NET else 0
        scopes = _SCOPES if abi >= _FIRST_ABI_WITH_SCOPES else 0
        rights = struct.pack("=QQQ", _FS_RIGHTS[min(abi, max(_FS_RIGHTS))], net, scopes)
        ruleset = _checked(_libc().syscall(_LANDLOCK_CREATE_RULESET, rights, len(rights), 0))
        try:
            _checked(_libc().syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0))
        finally:
            os.close(ruleset)
    if has_seccomp():
        code = _filter(*_ARCHITECTURES[platform.machine()])
        program = _Program(len(code) // 8, code)
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))


def missing() -> list[str]:
    """Return one sentence per sandbox layer that this system lacks; empty if it supports all of them."""
    if sys.platform != "linux":
        return ["decoders cannot be sandboxed on this system; scan hostile files on Linux"]
    lacks = []
    if not landlock_abi():
        lacks.append("no Landlock (needs Linux 5.13 or later, enabled): a compromised decoder could read files")
    if not has_seccomp():
        lacks.append("no seccomp filter on this architecture: a compromised decoder could use the network")
    return lacks


def landlock_abi() -> int:
    """Return the version of the kernel's Landlock; 0 if it has none."""
    abi: int = _libc().syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    return max(0, abi)


def has_seccomp() -> bool:
    """Return whether the kernel supports filters and its system call numbers are known for this architecture."""
    return platform.machine() in _ARCHITECTURES and _libc().prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter(architecture: int, column: int) -> bytes:
    """Build a filter that refuses `_REFUSED`, new processes, other architectures and x32, and allows the rest.

    Each instruction is (operation, instructions to skip if true, if false, operand).
    """
    refuse = (_RETURN, 0, 0, _REFUSE)
    steps = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_JUMP_IF_EQUAL, 1, 0, architecture), refuse]
    steps += [(_LOAD, 0, 0, _NUMBER_AT), (_JUMP_IF_AT_LEAST, 0, 1, _X32_BIT), refuse]
    for number in (*(numbers[column] for numbers in _REFUSED.values()), *(() if column else _FORKS_OF_X86)):
        steps += [(_JUMP_IF_EQUAL, 0, 1, number), refuse]
    steps += [(_JUMP_IF_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _UNKNOWN)]
    steps += [(_JUMP_IF_EQUAL, 0, 3, _CLONE[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT_AT)]
    steps += [(_JUMP_IF_BIT, 1, 0, _CLONE_THREAD), refuse, (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _prctl(operation: int, value: int, pointer: object = 0) -> None:
    _checked(_libc().prctl(operation, value, pointer, 0, 0))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
