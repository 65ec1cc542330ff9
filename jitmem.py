"""jitmem turns bytes of machine code into a Python function.

    >>> import jitmem
    >>> from ctypes import c_int64
    >>> add = jitmem.function({
    ...     "x86_64-sysv": bytes.fromhex("48 8d 04 37 c3"),         # lea rax, [rdi+rsi]; ret
    ...     "x86_64-windows": bytes.fromhex("48 8d 04 11 c3"),      # lea rax, [rcx+rdx]; ret
    ...     "aarch64": bytes.fromhex("00 00 01 8b c0 03 5f d6"),    # add x0, x0, x1; ret
    ... }, c_int64, c_int64, c_int64, name="add")
    >>> add(2, 3)
    5

It asks the operating system for memory itself, through ctypes, and keeps every page either
writable or executable and never both. It checks what a call passes: wrong types, counts and values
are exceptions that say which argument is meant.

    function(code, restype, *argtypes)  bytes to callable in one step
    Code(data)                          the same with several entry points
    bind(target, restype, *argtypes)    the same over an address or a ctypes function
    callback(f, restype, *argtypes)     the other way: a C function pointer over a Python function
    ufunc(*functions)                   machine code over whole NumPy arrays
    Memory(size)                        the six steps by hand: allocate … call, free
    Function, Fault                     what they give, and raise for wrong code under guard=True
    MACHINE, info()                     what code must be made for here, and what is allowed here

restype and argtypes are ctypes' types, in the order of ctypes.CFUNCTYPE. Code is anything with the
buffer protocol, or a mapping from machines to such, of which the one for MACHINE is taken.

Wrong machine code ends the process, as it would in C, unless the function is made with guard=True
(Linux on x86-64 and AArch64, Windows on x86-64; on macOS it was never run). `python -m jitmem`
shows how a JIT starts, step by step, and `python -m jitmem run` tries code in a child process.
"""

# Contents. At the right is what a new system, processor or kind of argument needs there.
#
#   Names                   what profilers and auditors see of code
#   Platform                memory by the system's calls      system: its names
#   Process                 what we have of it, and forks     processor: _ALIASES, _WIDER
#   Instruction cache       flushing it                       processor: one of its three tables
#   Words                   how messages show values and types
#   Memory                  the six steps, by hand
#   Buffers                 other objects' bytes, held in place during a call
#   Conversions             what becomes of an argument       argument: _RULES, _base_and_rule
#                                                             processor: _goes_right
#   Signatures and Function what a call means, in Python: the reference for all that is faster
#                                                             system: _stack_bounds
#   The heap                write-once memory that functions share
#   Assembler               our own machine code's notation   processor: _Processor
#   Trampolines             the reference in machine code     argument: _simple_kind, _WAYS
#   Callbacks               Python functions that C can call  argument: _OBJECT_OF, _WORD_OF
#   Guard                   faults as exceptions, reports     processor: _GUARD_PARTS, _instruction
#                                                             system: _why_no_guard, _guard
#   function, bind and Code all of it together                processor: _TRAPS
#   Pickling                functions as their code and signature
#   Whole arrays            machine code as a NumPy ufunc
#   info                    what this system allows
#   The command line        python -m jitmem                  processor: _SAMPLES, _ADD
#
# Each section uses those above it. What looks further down: a file of Platform is known to the
# process; Memory.function() makes a Function, which conversions take too; a Function has a
# trampoline and can be pickled; a trampoline may have a guard; bind() makes the heap's fast write.

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and "__file__" in globals():
    # A file beside this one, perhaps a struct.py, must not be imported in place of Python's own.
    _beside = os.path.dirname(os.path.realpath(__file__))
    sys.path[:1] = [folder for folder in sys.path[:1] if os.path.realpath(folder) != _beside]

import errno
import mmap
import struct
from _operator import index as _operator_index
from _thread import _local, get_ident
from _weakref import ref
from itertools import starmap

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes longer to import than all of jitmem
    from collections.abc import Callable, Sequence
    from typing import Any

    from typing_extensions import Self

    _Type = Any  # a ctypes type, or None for void
    _Policy = tuple[str, str, bool]  # what may refuse code, its state, whether it refuses
    # How a cache is flushed, and flush(start, size), if there is need: None, or the exception.
    _Cache = tuple[str, Callable[[int, int], Any] | None]
    _Rule = Callable[[Any, Any, str, list[Any]], Any]  # see Conversions

_WEB = "emscripten", "wasi"  # WebAssembly
try:
    import ctypes
except ImportError:
    # WebAssembly often has no ctypes. Tables below name its types, but Platform refuses all calls.
    if sys.platform not in _WEB:
        raise

    class _Absent:
        def __getattr__(self, name: str) -> Any:
            return type(name, (), {"__init__": lambda self, *args: None})
    ctypes = _Absent()  # type: ignore[assignment]

__version__ = "2.0"
__all__ = ["function", "Code", "bind", "callback", "ufunc", "Memory", "Function", "Fault",
           "MACHINE", "info"]


# ---- Names: what profilers and auditors see of code ----
#
# perf and others find the names of code in anonymous memory in lines "START SIZE NAME", in
# hexadecimal, of /tmp/perf-PID.map (jit-interface.txt in Linux's tools/perf/Documentation). So
# where names are written, the heap uses no files in memory.

def _switched_on(value: Any) -> bool:
    """What an environment variable or an option of this value says."""
    return str(value).strip().lower() not in ("", "0", "no", "false", "off")


# JITMEM_PERF asks for names, and so do -X perf and the variable that stands for it.
_perf = getattr(sys, "_xoptions", {}).get("perf", os.environ.get("PYTHONPERFSUPPORT", ""))
_writes_names = sys.platform != "win32" and (
    _switched_on(os.environ.get("JITMEM_PERF", "")) or _switched_on(_perf))


def _raised_directly(error: Exception) -> bool:
    """Whether the try clause that caught this raised it itself, and no signal handler in it did."""
    return not (error.__traceback__ and error.__traceback__.tb_next)


def _write_name(name: str, address: int, size: int) -> None:
    """Append a line to the map of this process, if names are wanted. Python 3.12 can do that too,
    but in a forked child it writes to the parent's map."""
    if not _writes_names:
        return
    line = f"{address:x} {size:x} {' '.join(name.split())}\n"
    # Another user may have put a symbolic link of this name into /tmp.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    try:
        file = os.open(f"/tmp/perf-{os.getpid()}.map", flags, 0o600)
        try:
            os.write(file, line.encode("utf-8", "backslashreplace"))
        finally:
            os.close(file)
    except OSError as error:
        if not _raised_directly(error):
            raise
        # Without a map tools show addresses.


def _audit_and_name(event: str, name: str, address: int, size: int) -> None:
    sys.audit(event, name, address, size)
    _write_name(name, address, size)


# What function() does after a load. An audit hook that raises refuses it.
_announce = _audit_and_name if _writes_names else sys.audit


# ---- Platform: what jitmem asks of the operating system ----
#
# What differs between systems is here, and in the flush and the guard. Each system defines:
#
#     _library, _FAILURES   the system's functions, and what those that failed return
#     _LIMITS               the errors that come of a limit, in words
#     _allocate(size)       fresh zeroed pages, "rw-": their owner, their address
#     _protect(address, size, protection, told)
#                           makes them "rw-" or "r-x", and told.protection in the same step
#     _query(address)       the protection as the system reports it, "" for none, None if unknown
#     _sealed_file(pages)   a _File put over pages, then the only way to write them; or a refusal
#     _policies()           what can refuse code its memory
#     _SYSTEM_FLUSH         its own flush of instruction caches, or None
#     _CALLS, _REPORTER     for the demo: the calls in words, and who answers _query
#     _RECIPE               for bench: the calls with arguments, the last two behind the address
#
# A signal handler may raise any exception between any two bytecodes, an OSError too. So what the
# system refuses is an exception that is returned, and what must be given back has an owner before
# Python code sees it. Library objects are our own, because prototypes hold for all who share one.

_LINUX = sys.platform in ("linux", "android")  # Android is a platform of its own since 3.13
_SYSTEM_FLUSH: _Cache | None = None
_size_t, _void_p, _int = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
# Python's C API, with prototypes of our own; None on PyPy and on WebAssembly.
_python: Any = None
if "pythonapi" in vars(ctypes):
    _python = ctypes.PyDLL("python", handle=ctypes.pythonapi._handle)


def _native(name: str, restype: Any, *argtypes: Any) -> Any:
    """A function of the system's library, or None."""
    if _library is None:
        return None
    try:
        call = _library[name]
    except AttributeError:
        return None
    call.restype, call.argtypes = restype, argtypes
    return call


def _refusal(call: Any, arguments: Sequence[Any], number: int = 0) -> Exception:
    """The exception for a call that was refused: the call, the reason, who is behind it."""
    error: Any
    if sys.platform == "win32":
        error = ctypes.WinError(ctypes.get_last_error())
        number = error.winerror
    else:
        number = number or ctypes.get_errno()
        error = OSError(number, os.strerror(number))
    shown = ["NULL" if value is None else hex(value) if value > 0xFFFFF else str(value)
             for value in arguments if value is None or isinstance(value, int)]
    error.strerror = f"{call.__name__}({', '.join(shown)}): {error.strerror}"
    if number in _LIMITS:
        error = MemoryError(f"{error.strerror} ({_LIMITS[number]})")
    elif isinstance(error, PermissionError) or number == 1655:  # ERROR_DYNAMIC_CODE_BLOCKED
        refusing = [f"{policy}: {state}" for policy, state, on in _policies() if on]
        unknown = "none that jitmem knows; a seccomp filter or security module may be in force"
        error.strerror += f" (refused by policy: {'; '.join(refusing) or unknown})"
    error.by_system = True  # bind() looks at it
    return error  # type: ignore[no-any-return]


def _error(call: Any, *arguments: Any) -> Exception | None:
    """Make a call: None, or the exception if it failed."""
    return _refusal(call, arguments) if call(*arguments) in _FAILURES else None


def _keep_result(holder: Any, attribute: str, call: Any, *arguments: Any,
                 meaning: dict[Any, Any] | None = None) -> None:
    """Make a call, and set holder.attribute to its result; with `meaning`, to what that has for the
    result, if anything. It is one call of any(), which is C code, because no signal handler runs in
    the middle of that."""
    results: Any = starmap(call, (arguments,))
    if meaning is not None:
        results = filter(None, map(meaning.get, results))
    any(map(setattr, (holder,), (attribute,), results))


def _finalize_last(thing: Any) -> None:
    """Have the finalizer of an object that refers to no other run after all others of a cycle, as
    PyPy does by itself. CPython's collector has no order, but only knows objects that it tracks."""
    if _python:
        _python.PyObject_GC_UnTrack(ctypes.py_object(thing))


if sys.platform == "win32":
    _library: Any = ctypes.WinDLL("kernel32", use_last_error=True)
    _FAILURES = 0, None
    # ERROR_NOT_ENOUGH_MEMORY, _OUTOFMEMORY, _COMMITMENT_LIMIT; _INVALID_PARAMETER is for sizes that
    # no address space holds.
    _LIMITS = dict.fromkeys((8, 14, 1455, 87), "a limit may be in force")
    _PAGE = {"rw-": 0x04, "r-x": 0x20}
    _MEM_COMMIT, _MEM_RESERVE, _MEM_RELEASE = 0x1000, 0x2000, 0x8000
    _FRESH = _MEM_COMMIT | _MEM_RESERVE, _PAGE["rw-"]
    _dword = ctypes.c_uint32
    _VirtualAlloc = _native("VirtualAlloc", _void_p, _void_p, _size_t, _dword, _dword)
    # A BOOL is any number but 0 for true; as a c_bool it is True.
    _VirtualProtect = _native("VirtualProtect", ctypes.c_bool, _void_p, _size_t, _dword, _void_p)
    _VirtualFree = _native("VirtualFree", ctypes.c_bool, _void_p, _size_t, _dword)
    _VirtualQuery = _native("VirtualQuery", _size_t, _void_p, _void_p, _size_t)
    _flush_system = _native("FlushInstructionCache", _int, _void_p, _void_p, _size_t)
    _SYSTEM_FLUSH = ("FlushInstructionCache",  # -1 is this process
                     lambda start, size: _error(_flush_system, -1, start, size))
    _CALLS = ("VirtualAlloc(NULL, {size}, READWRITE)",
              "VirtualProtect({address}, {size}, EXECUTE_READ)",
              "VirtualFree({address}, 0, RELEASE)")
    _REPORTER = "VirtualQuery"
    _RECIPE = ((_VirtualAlloc, (None, mmap.PAGESIZE, *_FRESH)),
               (_VirtualProtect, (mmap.PAGESIZE, _PAGE["r-x"], ctypes.byref(_dword()))),
               (_VirtualFree, (0, _MEM_RELEASE)))

    class _Region:
        """Pages, which are freed with it."""
        __slots__ = ("address",)

        def __del__(self, free: Any = _VirtualFree, release: int = _MEM_RELEASE) -> None:
            free(getattr(self, "address", None), 0, release)  # 0: all of it; NULL is refused

    class _MEMORY_BASIC_INFORMATION(ctypes.Structure):
        _fields_ = [("BaseAddress", _void_p), ("AllocationBase", _void_p),
                    ("AllocationProtect", _dword), ("RegionSize", _size_t),
                    ("State", _dword), ("Protect", _dword), ("Type", _dword)]

    def _allocate(size: int) -> tuple[Any, int]:
        region: Any = _Region()
        _finalize_last(region)
        _keep_result(region, "address", _VirtualAlloc, None, size, *_FRESH)
        if not region.address:
            raise _refusal(_VirtualAlloc, (None, size, *_FRESH))
        return region, region.address

    def _protect(address: int, size: int, protection: str, told: Any) -> Exception | None:
        arguments = address, size, _PAGE[protection], ctypes.byref(_dword())
        _keep_result(told, "protection", _VirtualProtect, *arguments, meaning={True: protection})
        return None if told.protection == protection else _refusal(_VirtualProtect, arguments)

    def _query(address: int) -> str | None:
        region = _MEMORY_BASIC_INFORMATION()
        _VirtualQuery(address, ctypes.byref(region), ctypes.sizeof(region))
        names = {page: name for name, page in _PAGE.items()}
        return names.get(region.Protect, "---") if region.State == _MEM_COMMIT else ""

    def _policies() -> list[_Policy]:
        flags, state = _dword(), "not present"
        ask = _native("GetProcessMitigationPolicy", _int, _void_p, _int, _void_p, _size_t)
        # Since Windows 8. 2 is ProcessDynamicCodePolicy, whose bit 0 is ProhibitDynamicCode.
        if ask and ask(-1, 2, ctypes.byref(flags), 4):
            state = "on" if flags.value & 1 else "off"
        return [("ACG (Arbitrary Code Guard)", state, state == "on")]

    def _sealed_file(pages: _Pages) -> Any:
        return OSError(errno.ENOSYS, "Windows has no sealed files")

else:
    # None on WebAssembly, because a call with a wrong prototype is fatal there.
    _library: Any = None if sys.platform in _WEB else ctypes.CDLL(None, use_errno=True)
    _FAILURES = -1, 2 * sys.maxsize + 1  # mmap's (void *)-1 is the latter in a c_void_p
    _LIMITS = {
        errno.ENOMEM: "a limit may be in force: ulimit -v, vm.max_map_count, a container's",
        errno.EAGAIN: "beyond the limit on locked memory: ulimit -l",  # after mlockall(2)
    }
    _PROT = {"rw-": mmap.PROT_READ | mmap.PROT_WRITE, "r-x": mmap.PROT_READ | mmap.PROT_EXEC}
    _MAP_FIXED = 0x10  # the mmap module lacks it; the same on every processor that is known here
    _FRESH = _PROT["rw-"], mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    # glibc has functions of their own for 64-bit offsets; musl's are all so.
    _wide = "64" if hasattr(_library, "mmap64") else ""
    _off_t = ctypes.c_int64
    _mmap = _native(f"mmap{_wide}", _void_p, _void_p, _size_t, _int, _int, _int, _off_t)
    _mprotect = _native("mprotect", _int, _void_p, _size_t, _int)
    _munmap = _native("munmap", _int, _void_p, _size_t)
    _madvise = _native("madvise", _int, _void_p, _size_t, _int)
    _open = _native("open", _int, ctypes.c_char_p, _int)
    _close = _native("close", _int, _int)
    _lseek = _native(f"lseek{_wide}", _off_t, _int, _off_t, _int)
    _pwrite = _native(f"pwrite{_wide}", ctypes.c_ssize_t, _int, _void_p, _size_t, _off_t)
    _ftruncate = _native(f"ftruncate{_wide}", _int, _int, _off_t)
    _fcntl = _native("fcntl", _int, _int, _int, _int)
    _memfd_create = _LINUX and _native("memfd_create", _int, ctypes.c_char_p, ctypes.c_uint)
    _ADD_SEALS, _SEAL_SIZE, _SEAL_FOR_GOOD = 1033, 2 | 4, 1 | 8  # SHRINK, GROW; SEAL, WRITE
    _CALLS = ("mmap(NULL, {size}, READ|WRITE)", "mprotect({address}, {size}, READ|EXEC)",
              "munmap({address}, {size})")
    _REPORTER = "/proc/self/maps"
    _RECIPE = ((_mmap, (None, mmap.PAGESIZE, *_FRESH)),
               (_mprotect, (mmap.PAGESIZE, _PROT["r-x"])), (_munmap, (mmap.PAGESIZE,)))
    if sys.platform == "darwin":
        _flush_system = _native("sys_icache_invalidate", None, _void_p, _size_t)
        _SYSTEM_FLUSH = "sys_icache_invalidate", _flush_system

    def _allocate(size: int) -> tuple[Any, int]:
        if sys.platform in _WEB:
            why = "WebAssembly has no executable memory"
            raise NotImplementedError(f"jitmem cannot run machine code on {sys.platform}: {why}")
        try:
            # It owns the pages: C code unmaps them with the last reference to it.
            owner = mmap.mmap(-1, size, _FRESH[1], _FRESH[0])
        except OSError as error:
            if not _raised_directly(error):
                raise
            raise _refusal(mmap.mmap, (None, size, *_FRESH), error.errno or errno.ENOMEM) from None
        return owner, ctypes.addressof(ctypes.c_char.from_buffer(owner))

    def _protect(address: int, size: int, protection: str, told: Any) -> Exception | None:
        arguments = address, size, _PROT[protection]
        _keep_result(told, "protection", _mprotect, *arguments, meaning={0: protection})
        refusal = None if told.protection == protection else _refusal(_mprotect, arguments)
        if protection == "r-x" and isinstance(refusal, PermissionError):
            error = _protect_by_file(address, size, told)
            if not error:
                return None
            reason = getattr(error, "strerror", error)
            refusal.strerror = f"{refusal.strerror}; a file in memory instead: {reason}"
        return refusal

    def _protect_by_file(address: int, size: int, told: Any) -> Exception | None:
        """Where written memory may not become executable (MDWE, SELinux execmem), a private mapping
        of a file with the same bytes may be put over it, which was never writable."""
        file = _OpenFile()
        error = file.create() or file.write(address, size, 0)
        arguments = address, size, _PROT["r-x"], mmap.MAP_PRIVATE | _MAP_FIXED, file.number, 0
        if not error:
            _keep_result(told, "protection", _mmap, *arguments, meaning={address: "r-x"})
            told.made_by = "mmap of a file in memory"
            error = None if told.protection == "r-x" else _refusal(_mmap, arguments)
        file.close()
        return error

    def _query(address: int) -> str | None:
        found = _mapping(address)
        return found and found[2]

    def _policies() -> list[_Policy]:
        if not _LINUX:
            web = [("WebAssembly", "has no executable memory", True)]
            return web if sys.platform in _WEB else []
        state = _kernel_says("/sys/fs/selinux/enforce")
        selinux = {"1": "enforcing", "0": "permissive"}.get(state, "not present")
        ask = _native("prctl", _int, _int, *[ctypes.c_ulong] * 4)
        flags = ask(66, 0, 0, 0, 0)  # PR_GET_MDWE; -1 before Linux 6.3
        names = {-1: "not in this kernel", 0: "off", 1: "on (systemd's MemoryDenyWriteExecute)"}
        mdwe = flags if flags < 0 else flags & 1
        noexec = _kernel_says("/proc/sys/vm/memfd_noexec") or "not present"
        return [("SELinux", selinux, state == "1"), ("MDWE", names[mdwe], mdwe == 1),
                ("vm.memfd_noexec", noexec, False)]

    class _File:
        """A descriptor.

        A program may close all descriptors, and open a file of its own under our number. So our
        file has a position that no other has by chance, and before each use it is looked at.
        """
        number, mark = -1, 0

        def open(self, call: Any, *arguments: Any) -> Exception | None:
            _keep_result(self, "number", call, *arguments)
            if self.number < 0:
                return _refusal(call, arguments)
            mark = 1 + int.from_bytes(os.urandom(4), "little")
            _keep_result(self, "mark", _lseek, self.number, mark, os.SEEK_SET)
            _process.files[self.number] = ref(self)
            return None

        def create(self) -> Exception | None:
            """Make it an anonymous file in memory."""
            if not _memfd_create:
                return OSError(errno.ENOSYS, "there is no memfd_create here")
            # MFD_CLOEXEC, MFD_ALLOW_SEALING and, since Linux 6.3, MFD_NOEXEC_SEAL: no program to
            # start, which is all that vm.memfd_noexec minds. It may be mapped executable.
            error = self.open(_memfd_create, b"jitmem", 1 | 2 | 8)
            if getattr(error, "errno", 0) == errno.EINVAL:
                error = self.open(_memfd_create, b"jitmem", 1 | 2)
            return error

        def is_ours(self) -> bool:
            return self.number >= 0 and _lseek(self.number, 0, os.SEEK_CUR) == self.mark

        def write(self, address: int, size: int, start: int) -> Exception | None:
            """Copy memory to the file, in several writes: one takes 2 GiB at most."""
            done = 0
            while done < size:
                if not self.is_ours():
                    return OSError(errno.EBADF, "the descriptor of this memory was closed")
                arguments = self.number, address + done, size - done, start + done
                count = _pwrite(*arguments)
                if count <= 0:
                    return _refusal(_pwrite, arguments)
                done += count
            return None

        def retire(self) -> None:
            """Let nobody write to it any more."""
            # Refused if somebody has mapped it writable. A child must not seal its parent's file.
            if self.is_ours() and not _process.was_forked():
                _fcntl(self.number, _ADD_SEALS, _SEAL_FOR_GOOD)
            self.close()

        def close(self) -> None:
            if self.is_ours():
                _close(self.number)
            self.number = -1
            self.__class__ = _File  # so that _OpenFile's finalizer does not run

    class _OpenFile(_File):
        """One that is closed with its last reference."""
        def __del__(self, ask: Any = _lseek, close: Any = _close) -> None:
            # By defaults, because at the interpreter's end the module's names are gone.
            if self.number >= 0 and ask(self.number, 0, 1) == self.mark:  # 1: SEEK_CUR
                close(self.number)

    def _sealed_file(pages: _Pages) -> Any:
        if _writes_names:
            return OSError(errno.ENOSYS, "perf finds no names for code in files")
        # The size is sealed at once, because ftruncate could pull the pages from under code. What
        # is mapped is a read-only descriptor, because mprotect could make the mapping of a writable
        # one writable, and with such a mapping F_SEAL_WRITE is refused.
        file, reader = _OpenFile(), _OpenFile()
        mapped, reading = (pages.address, pages.size, _PROT["r-x"]), os.O_RDONLY | os.O_CLOEXEC
        error = (file.create()
                 or _error(_ftruncate, file.number, pages.size)
                 or _error(_fcntl, file.number, _ADD_SEALS, _SEAL_SIZE)
                 or reader.open(_open, b"/proc/self/fd/%d" % file.number, reading)
                 or _error(_mmap, *mapped, mmap.MAP_SHARED | _MAP_FIXED, reader.number, 0))
        reader.close()
        if error:
            file.close()
        return error or file


def _kernel_says(path: str) -> str:
    """What is in a file of the kernel's, or nothing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _mapping(address: int) -> tuple[int, int, str, str] | None:
    """What Linux has mapped at this address: start, end, permissions, name; or empty texts. None
    if the system does not tell."""
    rows = _kernel_says("/proc/self/maps")
    for row in rows.split("\n") if rows else ():
        span, permissions, _, _, _, *name = row.split(None, 5)
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= address < end:
            return start, end, permissions[:3], "".join(name)
    return (0, 0, "", "") if rows else None


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _bytes_at(address: int, size: int) -> bytes:
    """A copy of memory. ctypes.string_at() would take no more than 2 GiB."""
    return (ctypes.c_char * size).from_address(address).raw


# ---- Process: where jitmem runs, what it has there, what a fork does to that ----

# Other names of processors, and ours.
_ALIASES = {
    "amd64": "x86_64", "x64": "x86_64",
    "i386": "x86", "i486": "x86", "i586": "x86", "i686": "x86", "intel": "x86",
    "arm64": "aarch64",
    "armhf": "arm", "armv6l": "arm", "armv7l": "arm", "armv8l": "arm",
    "ppc64el": "ppc64le",
}
# 32-bit processors and the 64-bit ones that run their programs too. Linux may name either to any
# program (personality(2), PER_LINUX32), but the size of a pointer tells which one it is.
_WIDER = {"x86": "x86_64", "arm": "aarch64", "mips": "mips64", "ppcle": "ppc64le"}


def _machine() -> str:
    """The processor of this interpreter and, where systems differ on it, the convention."""
    if sys.platform == "win32":
        # Windows may run programs of another processor. Python's version ends with its own, as in
        # "[MSC v.1941 64 bit (AMD64)]".
        processor = sys.version.lower().rpartition("(")[2].rstrip(")]")
    else:
        processor = "wasm32" if sys.platform in _WEB else os.uname().machine.lower()
    processor = _ALIASES.get(processor, processor)
    narrower = {wide: narrow for narrow, wide in _WIDER.items()}
    processor = (_WIDER if sys.maxsize > 2**32 else narrower).get(processor, processor)
    if processor in ("mips", "mips64") and sys.byteorder == "little":
        processor += "el"  # the kernel has one name for both byte orders
    if processor == "x86_64":
        windows = sys.platform in ("win32", "cygwin", "msys")
        return "x86_64-windows" if windows else "x86_64-sysv"
    systems = {"win32": "aarch64-windows", "darwin": "aarch64-apple"}
    return systems.get(sys.platform, processor) if processor == "aarch64" else processor


MACHINE: str = _machine()
_PROCESSOR = MACHINE.partition("-")[0]


class _Pages:
    """Whole pages of memory, given back by release() or with the last reference.

    Functions keep those with their code. There is no finalizer, because pages in a cycle have to go
    after all finalizers of it have run.
    """
    __slots__ = ("owner", "address", "size", "used", "protection", "made_by", "kept", "__weakref__")

    def __init__(self, size: int) -> None:
        self.size, self.used = _whole_pages(size), 0
        self.protection = "rw-"
        self.made_by = ""  # what made them executable, if it was not the usual call
        self.kept: list[Any] = []  # what code in them refers to
        self.owner, self.address = _allocate(self.size)
        _process.pages[self.address] = ref(self)

    def protect(self, protection: str) -> Exception | None:
        return _protect(self.address, self.size, protection, self)

    def release(self) -> None:
        self.protection = "---"
        owner, self.owner = self.owner, None
        if hasattr(owner, "close"):  # PyPy frees an object some time after its last reference
            owner.close()


class _Heap:
    """The chunks that take more code, and that no load has taken, see The heap."""

    def __init__(self) -> None:
        self.open: list[_Chunk] = []
        self.permanent: list[_Chunk] = []  # for code that lives as long as the module


class _Process:
    """What this copy of jitmem has of the process.

    In a child of free-threaded Python the lock of a list or dict may be held for ever, by a thread
    that only the parent has. So forked() only replaces these, and looks through a copy.
    """

    def __init__(self) -> None:
        # What a child has too, and keeps:
        self.pages: dict[int, ref[_Pages]] = {}  # by their address; each allocation adds to it
        self.permanent: list[_Pages] = []  # those that live as long as the module
        self.cache: _Cache | None = None  # how to flush; set by the first flush
        # Appends to sealed files, unless the witness is 0; set by the first trampoline.
        self.write: Callable[[int, int, bytes, int, int, int], int] | None = None
        # The address of a byte that forks set to 0, see watch_forks(); set by the first chunk.
        self.witness = 0
        # What is new in a child:
        self.files: dict[int, ref[Any]] = {}  # by their number; a child closes them
        self.heap = _Heap()  # two processes must not append to one file
        self.forks = 0  # those that left other threads behind, whose calls count no more
        self.at_fork: list[Callable[[], None]] = []  # what sections below have forked() call
        # Set before each fork: whether there is no other thread, and a copy of `files`.
        self.alone, self.copied = False, tuple(self.files.values())

    def before_fork(self) -> None:
        self.alone = len(sys._current_frames()) == 1
        self.copied = tuple(self.files.values())

    def forked(self, by_python: bool = False) -> None:
        """In a forked child: what was loaded goes on running, and nothing is appended to it."""
        if not by_python:  # a library has forked, without Python's hooks
            self.before_fork()
        self.forks += not self.alone
        self.heap, self.files = _Heap(), {}
        files = [reference() for reference in self.copied]
        for file in filter(None, files):
            file.close()
        for call in self.at_fork:
            call()
        if self.witness:
            # Last: another thread of the child that reads 0 until here does the same again.
            ctypes.memset(self.witness, 1, 1)

    def was_forked(self) -> bool:
        """Whether this is a child that a library forked, and forked() has yet to run."""
        return self.witness != 0 and not ctypes.c_ubyte.from_address(self.witness).value

    def watch_forks(self) -> None:
        """Have a byte that is 1, but in a child 0 until forked() has run, where Linux can do that.
        A process id would not do: in another namespace it may be the parent's."""
        page = _Pages(1)
        if sys.platform != "win32" and _LINUX:
            _madvise(page.address, page.size, 18)  # MADV_WIPEONFORK, since Linux 4.14
        ctypes.memset(page.address, 1, 1)
        self.permanent.append(page)
        self.witness = page.address


_process = _Process()


def _hook(call: str) -> Any:
    """A hook for forks. Python keeps hooks and their globals for ever. So this one has globals of
    its own and refers to the process weakly, so that the module can be freed."""
    return eval(f"lambda: (process := find()) and process.{call}", {"find": ref(_process)})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hook("before_fork()"), after_in_child=_hook("forked(True)"))


# ---- Instruction cache: what makes written code visible to the processor's instruction fetch ----
#
# Under an emulator every test passes without a flush too. libgcc's __clear_cache is no help,
# because it does nothing on riscv64, ppc64le and mips64, and aarch64 may have none. So each
# processor is in one of three tables: it needs no flush, or gets the instructions or the system
# call that its manual and its kernel name. Code for any other is refused.

_COHERENT = ("x86_64", "x86", "s390x")  # these processors watch stores for code they have fetched
_MUST_FLUSH = _PROCESSOR not in _COHERENT or _SYSTEM_FLUSH is not None

# flush(start, end), position independent, by the C calling convention; end > start.
_FLUSH_CODE = {
    "aarch64": """
        22003bd5            mrs   x2, ctr_el0         each time: cores of one machine differ
        84008052 2201e037   mov   w4, 4;              tbnz w2, 28, 1f   (IDC: no need for data)
        434c1053 8320c31a   ubfx  w3, w2, 16, 4;      lsl  w3, w4, w3   (bytes in a data line)
        65040051 0500258a   sub   w5, w3, 1;          bic  x5, x0, x5
        257b0bd5 a500038b   dc    cvau, x5;           add  x5, x5, x3   (to where both sides meet)
        bf0001eb a3ffff54   cmp   x5, x1;             b.lo -12
        9f3b03d5 4201e837   1: dsb ish;               tbnz w2, 29, 2f   (DIC: nor for code)
        430c0012 8320c31a   and   w3, w2, 15;         lsl  w3, w4, w3   (bytes in a code line)
        65040051 0500258a   sub   w5, w3, 1;          bic  x5, x0, x5
        25750bd5 a500038b   ic    ivau, x5;           add  x5, x5, x3
        bf0001eb a3ffff54   cmp   x5, x1;             b.lo -12
        9f3b03d5 df3f03d5   dsb   ish;                2: isb            (fetches again)
        c0035fd6            ret""",
    "ppc64le": """
        a4066578            clrrdi r5, r3, 5          32 bytes, no line is shorter
        6c28007c 2000a538   dcbst  0, r5;             addi r5, r5, 32
        4020257c f4ff8041   cmpld  r5, r4;            blt  -12
        ac04007c a4066578   sync;                     clrrdi r5, r3, 5
        ac2f007c 2000a538   icbi   0, r5;             addi r5, r5, 32
        4020257c f4ff8041   cmpld  r5, r4;            blt  -12
        ac04007c 2c01004c   sync;                     isync
        2000804e            blr""",
    # The caches are coherent, the pipeline is not.
    "loongarch64": "00807238 2000004c   ibar 0; ret",
}
# Linux's system calls. Some seccomp filters block that of RISC-V, a fence.i on every core.
_FLUSH_CALLS = {
    "arm": ("cacheflush", 0xF0002), "riscv64": ("riscv_flush_icache", 259),
    "mips": ("cacheflush", 4147), "mipsel": ("cacheflush", 4147),
    "mips64": ("cacheflush", 5197), "mips64el": ("cacheflush", 5197),
}


def _hex(listing: str) -> bytes:
    """The bytes of an assembly listing: of each line what stands before two spaces or more."""
    lines = (line.strip().partition("  ")[0] for line in listing.splitlines())
    return b"".join(map(bytes.fromhex, lines))


# Calls that hold the GIL; PyPy has one kind only.
_keeping_gil = getattr(ctypes, "PYFUNCTYPE", ctypes.CFUNCTYPE)


def _choose_cache() -> _Cache:
    if _SYSTEM_FLUSH:
        return _SYSTEM_FLUSH
    if _PROCESSOR in _COHERENT:
        return f"nothing to do: {_PROCESSOR} caches are coherent", None
    if _PROCESSOR in _FLUSH_CODE:
        code = _hex(_FLUSH_CODE[_PROCESSOR])
        # Kernels synchronise a page when it first becomes executable: a fresh page needs no flush,
        # every later change does.
        pages = _Pages(len(code))
        ctypes.memmove(pages.address, code, len(code))
        error = pages.protect("r-x")
        if error:
            raise error
        _process.permanent.append(pages)
        flush = _keeping_gil(None, _size_t, _size_t)(pages.address)
        words = f"{len(code)} bytes of machine code of our own"
        return words, lambda start, size: flush(start, start + size)
    if _LINUX and _PROCESSOR in _FLUSH_CALLS:
        name, number = _FLUSH_CALLS[_PROCESSOR]
        call = _native("syscall", _int, ctypes.c_long, _size_t, _size_t, ctypes.c_ulong)
        if _PROCESSOR.startswith("mips"):  # cacheflush(2): BCACHE is 3, for data and code
            return f"syscall {name}", lambda start, size: _error(call, number, start, size, 3)
        return f"syscall {name}", lambda start, size: _error(call, number, start, start + size, 0)
    raise NotImplementedError(f"jitmem cannot flush the instruction cache of {MACHINE}")


def _cache() -> _Cache:
    """This machine's way, from its first use on: importing maps nothing."""
    if _process.cache is None:
        _process.cache = _choose_cache()
    return _process.cache


_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


def _flush(address: int, size: int) -> None:
    """Make code just written fetchable. The address is the one that code will run at."""
    _, flush = _cache()
    error = flush(address, size) if flush else None
    if error:
        raise error
    if _LINUX and not _GIL and _PROCESSOR in ("aarch64", "riscv64"):
        # Other cores may execute what they have fetched ahead, until a context synchronisation: a
        # switch of threads under the GIL is one. Without it the kernel is asked to interrupt them,
        # as Wasmtime does too; no emulator can show this. 283 is membarrier(2), 32 is
        # PRIVATE_EXPEDITED_SYNC_CORE, since Linux 4.16; 64 registers the process for it, once.
        membarrier = _native("syscall", _int, ctypes.c_long, _int, ctypes.c_uint, _int)
        if membarrier(283, 32, 0, 0) != 0:
            membarrier(283, 64, 0, 0)
            membarrier(283, 32, 0, 0)


# ---- Words: numbers, values and types as messages show them ----

_INTEGERS = "bBhHiIlLqQ"  # the letters of ctypes' integer types; the capitals are unsigned
_FunctionPointer: Any = ctypes._CFuncPtr  # type: ignore[attr-defined]  # the base of CFUNCTYPE's
_Data: Any = ctypes._SimpleCData.__mro__[1]  # what every instance of ctypes' types is
_Prepared: Any = type(ctypes.byref(ctypes.c_int()))  # what byref() and most of from_param give


def _shown(value: Any) -> str:
    """A number; a very long integer by its size, as Python limits their conversion to text."""
    if isinstance(value, int):
        if value.bit_length() <= 256:
            return str(int(value))
        return f"{'a negative' if value < 0 else 'an'} integer of {value.bit_length()} bits"
    try:
        return repr(value)
    except ValueError:  # a fraction of very long integers
        return f"this {_type_of(value)}"


def _type_name(type_: _Type) -> str:
    """A ctypes type as it is written, but its integers by their width, because c_long and c_int64
    may be one class."""
    if type_ is None:
        return "None"
    name = str(getattr(type_, "__name__", type(type_).__name__))
    letter = getattr(type_, "_type_", None)
    own = getattr(ctypes, name, None) is type_
    if own and isinstance(letter, str) and letter in _INTEGERS:
        return f"c_{'u' if letter.isupper() else ''}int{8 * ctypes.sizeof(type_)}"
    if name.startswith("LP_") and issubclass(type_, ctypes._Pointer):
        return f"POINTER({_type_name(letter)})"
    if name == "CFunctionType":
        types = type_._restype_, *type_._argtypes_
        return f"CFUNCTYPE({', '.join(map(_type_name, types))})"
    return name


def _type_of(value: Any) -> str:
    """The type of a value, with its module where it is not one of the interpreter's own."""
    type_ = type(value)
    if isinstance(value, _Data):
        return _type_name(type_)
    if isinstance(value, _Prepared):
        return "what byref() gives"
    module = getattr(type_, "__module__", "builtins")  # types may have none
    return type_.__name__ if module == "builtins" else f"{module}.{type_.__name__}"


def _index(value: Any, what: str) -> int:
    """An integer by __index__. Raises TypeError that says what must be one."""
    if type(value) is int:
        return value
    try:
        return _operator_index(value)
    except TypeError as error:
        cause = error if hasattr(type(value), "__index__") else None  # NumPy's arrays raise it too
        raise TypeError(f"{what} must be an integer, not {_type_of(value)}") from cause
    except (ValueError, OverflowError) as error:
        raise _about(what, error) from error


def _about(what: str, error: Exception) -> Exception:
    """An exception that says, before what this one says, which value it is about."""
    kinds = (kind for kind in (ValueError, OverflowError) if isinstance(error, kind))
    return next(kinds, TypeError)(f"{what}: {error}")


# ---- Memory: the article, step by step ----

def _code_bytes(code: Any, what: str = "code") -> bytes:
    """The bytes of any object with the buffer protocol."""
    try:
        return memoryview(code).tobytes()
    except TypeError:
        wanted, hint = "bytes or another buffer", ""
        if isinstance(code, str):
            wanted, hint = "bytes", "; bytes.fromhex() makes them of hexadecimal digits"
        elif isinstance(code, (list, tuple)):
            hint = "; bytes() makes them of numbers"
        raise TypeError(f"{what} must be {wanted}, not {type(code).__name__}{hint}") from None


class _Closing:
    """What a with statement closes: it has closed and close()."""
    __slots__ = ()

    def __enter__(self) -> Self:
        if self.closed:  # type: ignore[attr-defined]
            raise ValueError(f"with: {self!r} cannot be used any more")
        return self

    def __exit__(self: Any, *exc_info: object) -> None:
        self.close()


class _Hold:
    """The use of a Memory by a frame of Python's, until release().

    An exception of a signal handler may prevent the release. So a hold of this thread counts only
    while its frame is running. One of another thread counts until it is gone, or until a fork.
    """
    __slots__ = ("memory", "change", "shuts", "thread", "frame", "forks", "__weakref__")

    def __init__(self, memory: Memory, change: bool, frame: Any) -> None:
        self.memory, self.change = memory, change
        self.shuts = False  # whether it has shut the gate
        self.thread, self.frame, self.forks = get_ident(), id(frame), _process.forks

    def __enter__(self) -> None:
        pass

    def release(self, *exc_info: object) -> None:
        memory = self.memory
        if self.shuts:  # it is among the holds until then, so that no other is let in
            memory._gate[0] = memory.protection == "r-x"
        memory._holds.pop(id(self), None)

    __exit__ = release

    def counts(self) -> bool:
        if self.thread != get_ident():
            return self.forks == _process.forks
        frame: Any = sys._getframe()
        while frame is not None and id(frame) != self.frame:
            frame = frame.f_back
        return frame is not None


class Memory(_Closing):
    """Whole pages of memory for machine code, and the six steps that turn them into a function.

        with Memory(6) as memory:               # 1 allocate, writable
            memory.write(code)                  # 2 write
            memory.make_executable()            # 3 protect, and 4 flush the instruction cache
            memory.function(c_uint32)()         # 5 call
                                                # 6 free

    size is in bytes, at least 1; the pages hold zeros at first, and are "rw-" or "r-x", never both.
    MemoryError or OSError where the system refuses them, with the policy that does.

    Any thread may use it. A change (make_executable, make_writable, close) during a call, a copy or
    another change is refused with BufferError, as is a call or a copy during a change; nothing here
    waits. Used after close(): ValueError.
    """

    # A trampoline counts itself in and out in the gate's second word, by machine code, which no
    # exception stops, and goes on only if it then finds 1 in the first. A change sets that to 0
    # before it looks at the second. It does so only when no other hold counts, because one that is
    # refused must not open a gate that another change has shut.
    _pages: Any = None
    _flushed = True

    def __init__(self, size: int) -> None:
        size = _index(size, "Memory() size")
        if size <= 0:
            raise ValueError(f"Memory() size must be at least 1 byte, not {_shown(size)}")
        if size > sys.maxsize - mmap.PAGESIZE:
            raise OverflowError(f"Memory() size: {_shown(size)} bytes do not fit the address space")
        if self._pages is not None:
            raise ValueError("this memory is allocated already")
        # Step 1: allocate pages, writable.
        pages = _Pages(size)
        pages.used = pages.size
        self._size, self._gate, self._forks = size, (ctypes.c_uint64 * 2)(), _process.forks
        self._holds: dict[int, ref[_Hold]] = {}
        self._pages = pages

    @property
    def address(self) -> int:
        """Where the memory starts."""
        return self._pages.address if self._pages else 0

    @property
    def size(self) -> int:
        """Bytes asked for."""
        return self._size

    @property
    def protection(self) -> str:
        """What the pages are: "rw-", "r-x", or "---" once they are closed. "?" where an exception
        of a signal handler left them executable but not flushed; each change puts that right."""
        protection: str = self._pages.protection if self._pages else "---"
        return "?" if protection == "r-x" and not self._flushed else protection

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self.protection == "---"

    def _check_open(self, call: str) -> None:
        if self.closed:
            raise ValueError(f"{call}: the memory is closed")

    def _hold(self, call: str, state: str = "", change: bool = False, frame: Any = None) -> _Hold:
        """Use the memory, in this state if one is named. Calls and copies share it; changes are
        alone. The frame is the one that uses it, by default the caller's."""
        self._check_open(call)
        hold = _Hold(self, change, frame or sys._getframe(1))
        # Nothing waits here: a callback, a signal handler or a finalizer may come back on the same
        # thread. A hold is entered before it looks at the others, so that of two that exclude each
        # other at least one sees the other.
        self._holds[id(hold)] = ref(hold)
        in_use = False
        try:
            if len(self._holds) > 1:
                others = [reference() for reference in list(self._holds.values())]
                in_use = any(other and other is not hold and (change or other.change)
                             and other.counts() for other in others)
            if change and not in_use:
                hold.shuts = True
                self._gate[0] = 0
                if self._forks != _process.forks:  # calls of the parent's other threads
                    self._forks, self._gate[1] = _process.forks, 0
                in_use = self._gate[1] != 0
            if in_use:
                text = "the memory is in use by another call; try again when it has returned"
                raise BufferError(f"{call}: {text}")
            protection = self.protection
            if protection == "---":
                self._check_open(call)
            elif state and protection != state:
                remedy = "make_writable()" if state == "rw-" else "make_executable()"
                raise ValueError(f"{call}: the memory is {protection}; call {remedy} first")
        except BaseException:
            hold.release()
            raise
        return hold

    def _inside(self, call: str, value: Any, size: int = 0) -> int:
        offset = _index(value, f"{call} offset")
        if offset < 0 or offset + size > self._size:
            text = f"{_shown(size)} bytes at offset {_shown(offset)}"
            raise ValueError(f"{call}: {text} do not fit the {self._size} bytes here")
        return offset

    def write(self, data: Any, offset: int = 0) -> int:
        """Copy a buffer's bytes into the memory, offset bytes from its start; returns how many.
        ValueError, and nothing is written, where they do not fit or the memory is executable."""
        code = _code_bytes(data, "write() data")
        offset = self._inside("write()", offset, len(code))
        with self._hold("write()", "rw-"):
            # Step 2: write the code.
            ctypes.memmove(self.address + offset, code, len(code))
        return len(code)

    def read(self, offset: int = 0, size: int | None = None) -> bytes:
        """The size bytes from offset on, or all to the end, whatever the protection. ValueError if
        there are not so many."""
        offset = self._inside("read()", offset)
        size = self._size - offset if size is None else _index(size, "read() size")
        if size < 0:
            raise ValueError(f"read() size must not be negative, but is {_shown(size)}")
        self._inside("read()", offset, size)
        with self._hold("read()"):
            return _bytes_at(self.address + offset, size)

    def make_executable(self) -> None:
        """Make the memory readable and executable, not writable, and flush the instruction cache.
        OSError, MemoryError or NotImplementedError where that cannot be done: it is as it was."""
        with self._hold("make_executable()", change=True):
            if self.protection == "r-x":
                return
            pages = self._pages
            sys.audit("jitmem.load", "memory", pages.address, self._size)
            self._flushed = False
            try:
                # Step 3: change the pages to read+execute, because none should be both writable
                # and executable.
                error = pages.protect("r-x")
                if error:
                    raise error
                # Step 4: flush the instruction cache.
                _flush(pages.address, pages.size)
                self._flushed = True
            except BaseException:
                pages.protect("rw-")
                raise

    def make_writable(self) -> None:
        """Make the memory readable and writable again, not executable: its functions raise
        ValueError. OSError or MemoryError where the system refuses: it is as it was."""
        with self._hold("make_writable()", change=True):
            error = self._pages.protect("rw-")
            if error:
                raise error

    def function(self, restype: _Type, *argtypes: _Type, offset: int = 0,
                 name: str = "machine_code", nogil: bool = False, keep: Any = None) -> Function:
        """The code at offset as a callable, with ctypes' types as in CFUNCTYPE. It keeps this
        memory alive, and the object keep. Calling it raises ValueError while the memory is writable
        and after it is closed. It has no guard; bind() over its address may have one."""
        offset = self._inside("function()", offset, 1)
        self._check_open("function()")
        # Step 5: call through a pointer.
        signature = _signature(name, restype, argtypes, nogil, False)
        address, size = self.address + offset, self._size - offset
        _write_name(name, address, size)
        entry = _entry_of(signature, gated=True)
        return _make(name, signature, entry, address, size, self, keep)

    def close(self) -> None:
        """Give the pages back. Calling it again does nothing."""
        if not self.closed:
            with self._hold("close()", change=True):
                # Step 6: free the pages.
                self._pages.release()

    def __reduce__(self) -> Any:
        raise TypeError("jitmem memory cannot be copied or pickled: "
                        "two owners would free one mapping")

    def __repr__(self) -> str:
        if self.closed:
            return "<jitmem memory, closed>"
        return f"<jitmem memory at {self.address:#x} ({self._size} bytes, {self.protection})>"


# ---- Buffers: bytes of other objects, held in place during a call ----

if _python:

    class _Buffer(ctypes.Structure):
        """Py_buffer."""
        _fields_ = [
            ("buf", _void_p), ("obj", _void_p), ("len", ctypes.c_ssize_t),
            ("itemsize", ctypes.c_ssize_t), ("readonly", _int), ("ndim", _int),
            ("format", _void_p), ("shape", _void_p), ("strides", _void_p),
            ("suboffsets", _void_p), ("internal", _void_p),
        ]

    _get_buffer, _release_buffer = _python.PyObject_GetBuffer, _python.PyBuffer_Release
    _get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), _int)
    _release_buffer.argtypes, _release_buffer.restype = (ctypes.POINTER(_Buffer),), None
    _decref = _python.Py_DecRef
    _decref.argtypes, _decref.restype = (ctypes.py_object,), None
    _python.Py_IncRef.argtypes = (ctypes.py_object,)

    def _new_reference(address: int) -> Any:
        """The object at this address, taking over the reference that a C function returned."""
        thing = ctypes.cast(address, ctypes.py_object).value
        _decref(thing)
        return thing

    # Types that are only buffers and no other kind of pointer: trampolines find them in this table.
    _buffer_table: Any = (ctypes.py_object * 6)()
    _buffer_table[:3] = bytearray, bytes, memoryview
    # Those that have not been seen so far, and their places there.
    _buffer_places = {("array", "array"): 3, ("numpy", "ndarray"): 4, ("mmap", "mmap"): 5}

    class _Pin:
        """A buffer held in place until release().

        Raises TypeError, or BufferError if there is none in one piece.
        """
        def __init__(self, value: Any) -> None:
            self.buffer = _Buffer()
            _get_buffer(value, self.buffer, 0)  # PyBUF_SIMPLE
            self.address = self.buffer.buf
            # The table keeps the type, as another one at its address would be taken for it.
            module, name = getattr(type(value), "__module__", ""), type(value).__name__
            place = _buffer_places.get((module, name))
            if place and getattr(sys.modules.get(module), name, None) is type(value):
                _buffer_places.pop((module, name), None)
                _buffer_table[place] = type(value)

        def release(self) -> None:
            _release_buffer(self.buffer)  # does nothing the second time

        __del__ = release
else:
    def _new_reference(address: int) -> Any:
        raise NotImplementedError("py_object: this Python's objects have no C API")

    class _Pin:  # type: ignore[no-redef]
        """A buffer's address, until release(); PyPy shows read-only ones as a copy."""
        def __init__(self, value: Any) -> None:
            view = memoryview(value)
            if not view.c_contiguous:
                raise BufferError
            array = ctypes.c_char * view.nbytes
            copies = view.readonly
            self.items: Any = array.from_buffer_copy(view) if copies else array.from_buffer(view)
            self.address = ctypes.addressof(self.items)

        def release(self) -> None:
            self.items = None


# ---- Conversions: what becomes of a value that is passed ----
#
# What ctypes takes for a type is taken, and passed as ctypes' own from_param gives it. It is not
# asked about values that it would pass wrong without a word, such as an integer cut to size, or
# that crash it. What it refuses may still be taken here, such as a buffer.
#
# A rule is given the parameter, the value, the argument in words for messages, and a list of pins:
# what must live until the call has returned, and the functions that are passed as pointers.

_INFINITY = float("inf")
# The letters of types whose buffers are taken for one another: of one byte, where the sign does not
# count, and of more.
_ALIKE = "bBc", "bhilqn", "BHILQNPzZO", "fdg", "uw"


class _Parameter:
    """One parameter of a signature.

    ask         the from_param that a program gave the type, if any: it decides what is passed
    make        ctypes' own class that the type is, or derives from
    from_param  ctypes' own conversion to the type
    as_it_is    what is passed without any
    """
    __slots__ = ("type", "ask", "make", "from_param", "rule", "as_it_is", "low", "high")

    def __init__(self, type_: Any, what: str) -> None:
        is_ctypes = isinstance(type_, _Data) or isinstance(type_, type) and issubclass(type_, _Data)
        has_own = hasattr(type_, "from_param") and (not is_ctypes or _converts_itself(type_))
        self.ask: Any = type_.from_param if has_own else None
        # ctypes takes whatever has a from_param. What that returns is passed as a void*.
        self.type: Any = type_ if is_ctypes or not has_own else _void_p
        base, self.rule = _base_and_rule(self.type, what)
        self.make = self.type
        if base is ctypes._SimpleCData:
            self.make = self.type.__mro__[self.type.__mro__.index(base) - 1]
        by_value = base in (ctypes.Structure, ctypes.Union)
        self.as_it_is: Any = () if self.ask or by_value else self.type
        self.from_param: Any = self.make.from_param
        if _converts_itself(self.make):
            self.from_param = lambda value: type(base).from_param(self.type, value)
        if self.rule is _to_integer:
            bits = 8 * ctypes.sizeof(self.type)
            self.low = 0 if self.type._type_.isupper() else -(1 << bits - 1)
            self.high = self.low + (1 << bits) - 1


def _adapted(parameter: _Parameter, value: Any, where: str, pins: list[Any]) -> Any:
    """What an object's _as_parameter_ becomes, which ctypes takes in its place.

    ctypes itself is never shown such an object, because one that adapts to itself crashes it.
    """
    pins.append(value)  # it may own what is passed
    value = value._as_parameter_
    if isinstance(value, parameter.as_it_is):
        return value
    return parameter.rule(parameter, value, where, pins)


def _by_ctypes(parameter: _Parameter, value: Any, where: str, pins: list[Any]) -> Any:
    """What ctypes makes of a value; NotImplemented if it refuses it."""
    if hasattr(value, "_as_parameter_"):
        return _adapted(parameter, value, where, pins)
    try:
        return parameter.from_param(value)
    except (TypeError, ctypes.ArgumentError):
        return NotImplemented


def _refuse(where: str, wanted: str, value: Any, hint: str = "") -> Any:
    raise TypeError(f"{where} must be {wanted}, not {_type_of(value)}{hint}")


def _to_integer(parameter: _Parameter, value: Any, where: str, pins: list[Any]) -> Any:
    """An integer within the type's range. ctypes would cut it to size."""
    number = value
    if type(value) is not int:
        if hasattr(value, "_as_parameter_") and not hasattr(type(value), "__index__"):
            return _adapted(parameter, value, where, pins)
        number = _index(value, where)
    if parameter.low <= number <= parameter.high:
        return parameter.from_param(number)
    raise OverflowError(f"{where}: {_shown(number)} does not fit {_type_name(parameter.type)}")


def _to_value(parameter: _Parameter, value: Any, where: str, pins: list[Any]) -> Any:
    """Truth values, characters, objects, and what later versions of ctypes add."""
    try:
        return parameter.make(value)
    except (TypeError, ValueError, OverflowError) as error:
        if hasattr(value, "_as_parameter_"):
            return _adapted(parameter, value, where, pins)
        raise _about(where, error) from error


def _to_float(parameter: _Parameter, value: Any, where: str, pins: list[Any]) -> Any:
    """A float or a complex number, made by Python's rules. A finite value that the type can only
    hold as infinite is refused."""
    too_large = None
    try:
        made = parameter.make(value)
        if not _became_infinite(value, made.value):
            return made
    except OverflowError as error:
        too_large = error
    except TypeError:
        if hasattr(value, "_as_parameter_"):
            return _adapted(parameter, value, where, pins)
        if hasattr(type(value), "__index__") and not hasattr(type(value), "__float__"):
            return _to_float(parameter, _index(value, where), where, pins)  # PyPy does not call it
        is_complex = isinstance(parameter.make().value, complex)
        _refuse(where, "a number" if is_complex else "a real number", value)
    except ValueError as error:
        raise _about(where, error) from error
    text = f"{where}: {_shown(value)} does not fit {_type_name(parameter.type)}"
    raise OverflowError(text) from too_large


def _became_infinite(value: Any, number: Any) -> bool:
    """Whether an infinite number was made of a value that says of itself that it is finite."""
    for part in "real", "imag":
        if abs(getattr(number, part)) == _INFINITY:
            try:
                if -_INFINITY < getattr(value, part, value) < _INFINITY:
                    return True
            except TypeError:  # it cannot be compared
                pass
    return False


def _to_reference(parameter: _Parameter, value: Any, where: str, pins: list[Any]) -> Any:
    """Text, structures and unions, arrays, which C takes as pointers, and pointers to functions."""
    type_ = parameter.type
    if isinstance(value, type_) and issubclass(type_, (ctypes.Structure, ctypes.Union)):
        # An instance of a derived class, of which ctypes would pass all fields.
        return value if type(value) is type_ else type_.from_buffer_copy(value)
    is_code = issubclass(type_, _FunctionPointer)
    if is_code and (value is None or isinstance(value, Function)):
        return _function_address(value, pins)
    # byref() crashes ctypes where no pointer is wanted.
    if not isinstance(value, _Prepared) or issubclass(type_, (ctypes.Array, ctypes._SimpleCData)):
        result = _by_ctypes(parameter, value, where, pins)
        if result is not NotImplemented:
            return result
    wanted, hint = _type_name(type_), ""
    if issubclass(type_, ctypes._SimpleCData):
        kind = "bytes" if issubclass(type_, ctypes.c_char_p) else "str"
        wanted = f"{kind}, an array of characters, a pointer to some, or None"
    elif is_code:
        if callable(value):
            made = wanted.replace("CFUNCTYPE(", "jitmem.callback(f, ", 1)
            hint = f"; {made} makes one of a Python function f"
        wanted = f"of the very type {wanted}, a jitmem function or None"
    return _refuse(where, wanted, value, hint)


def _function_address(function: Function | None, pins: list[Any]) -> Any:
    if function is None:
        return _void_p()
    pins.append(function)
    return _void_p(function._address)


def _to_pointer(parameter: _Parameter, value: Any, where: str, pins: list[Any]) -> Any:
    """For c_void_p and POINTER(…): addresses too, and buffers, held in place for the call."""
    if isinstance(value, int):  # ctypes would cut it to size
        return _to_address(value, where)
    if value is None or isinstance(value, Function):
        return _function_address(value, pins)
    type_ = parameter.type
    item = type_._type_ if issubclass(type_, ctypes._Pointer) else None  # None for c_void_p
    if item and isinstance(value, item):
        return ctypes.byref(value)
    # ctypes is not asked about buffers, because it refuses them, and takes long to do so.
    if hasattr(value, "_as_parameter_") or isinstance(value, (_Data, _Prepared, bytes, str)):
        result = _by_ctypes(parameter, value, where, pins)
        if result is not NotImplemented:
            return result
    pointers = _void_p, ctypes.c_char_p, ctypes.c_wchar_p, ctypes._Pointer, _FunctionPointer
    # Of a pointer to pointers it would not be clear whether the value or its place is meant.
    if isinstance(value, _void_p) and not (item and issubclass(item, pointers)):
        return value
    if isinstance(value, (ctypes._SimpleCData, ctypes._Pointer, _FunctionPointer, _Prepared)):
        hint = "" if item else "; byref() makes a pointer to a value"
        _refuse(where, _type_name(type_), value, hint)
    # NumPy's arrays have both of these, and are no addresses.
    if hasattr(type(value), "__index__") and not hasattr(value, "__len__"):
        return _to_address(value, where)
    return _to_buffer(item, value, where, pins)


def _to_address(value: Any, where: str) -> Any:
    address = _index(value, where)
    if not 0 <= address <= 2 * sys.maxsize + 1:
        raise OverflowError(f"{where}: {_shown(address)} is not an address")
    return _void_p(address)


def _to_buffer(item: _Type, value: Any, where: str, pins: list[Any]) -> Any:
    """The address of a buffer. If a type is given, it must be writable and of such items."""
    try:
        pin = _Pin(value)
    except TypeError:
        hint = "; jitmem.callback(f, restype, *argtypes) makes a pointer of a Python function f"
        wanted = "an address, None, a pointer or a buffer"
        _refuse(where, wanted, value, hint if callable(value) else "")
    except (BufferError, ValueError) as error:
        if isinstance(error, ValueError) and "contiguous" not in str(error):
            raise  # as for a closed mmap; NumPy's is a ValueError, too
        raise BufferError(f"{where} must be C-contiguous in memory; a copy is") from None
    pins.append(pin)
    if item:
        _check_items(memoryview(value), item, where)
    return _void_p(pin.address)


def _check_items(view: memoryview, item: _Type, where: str) -> None:
    """Raise TypeError unless a buffer is writable and of items of this type, or kind of number."""
    if view.readonly:
        text = f"{where} is read-only, and POINTER({_type_name(item)}) may write"
        raise TypeError(f"{text}; c_void_p takes read-only buffers")
    code = view.format.lstrip("@=<" if sys.byteorder == "little" else "@=>")
    same = len(code) > 1  # a structure's; numbers have one letter
    if issubclass(item, ctypes._SimpleCData):
        kinds = _ALIKE[:1] if view.itemsize == 1 else _ALIKE[1:]
        alike = (code in kind and item._type_ in kind for kind in kinds)
        same = code == item._type_ or len(code) == 1 and any(alike)
    if not same or view.itemsize != ctypes.sizeof(item):
        text = f"{where} has items of {view.itemsize} bytes, format {view.format!r}"
        raise TypeError(f"{text}: not {_type_name(item)}; c_void_p takes any buffer as it is")


def _as_asked(parameter: _Parameter, value: Any, where: str, pins: list[Any]) -> Any:
    """By the from_param that a program gave the type: asked once, what it returns is passed."""
    try:
        given = parameter.ask(value)
    except (TypeError, ValueError, OverflowError, ctypes.ArgumentError) as error:
        raise _about(where, error) from error
    if isinstance(given, (_Data, _Prepared)):
        return given
    return parameter.rule(parameter, given, where, pins)  # as if that had been passed


def _classes(type_: _Type) -> set[str]:
    """What a value of a type consists of: i for integers and pointers; f, d and g for floating
    point by size; ? for what libffi may take for something else.

    libffi makes the calls. ctypes tells it the types of members in their order, but neither their
    offsets nor what is a union, and describes some arrays as pointers.
    """
    if issubclass(type_, ctypes.Array):
        return _classes(type_._type_)
    if not issubclass(type_, (ctypes.Structure, ctypes.Union)):
        is_simple = issubclass(type_, ctypes._SimpleCData)
        letter = type_._type_[-1].lower() if is_simple else "P"  # a complex number's is large
        return {letter if letter in "fdg" else "i"}
    size = ctypes.sizeof(type_)
    parts = [vars(base).get("_fields_", ()) for base in type_.__mro__]
    fields = [field for part in parts for field in part]
    members = [field[1] for field in fields]
    arrays = [member for member in members if issubclass(member, ctypes.Array)]
    found = [_classes(member) for member in members]
    classes = set().union(*found)
    is_doubtful = (
        not fields or len(fields) != max(map(len, parts))  # a base class may end with padding
        or any(len(field) > 2 for field in fields)  # bit fields
        or ctypes.alignment(type_) != max(map(ctypes.alignment, members))  # packed, or _align_
        or any(size > 16 or issubclass(array._type_, ctypes.Array) for array in arrays))
    if issubclass(type_, ctypes.Union) and not is_doubtful:
        # In C the first of these classes prevails. libffi goes by the first member.
        prevailing = {min(classes, key="?igdf".index)}
        is_whole = ctypes.sizeof(members[0]) == size and found[0] == prevailing
        is_doubtful = not is_whole or MACHINE != "x86_64-sysv"
    return classes.union("?" if is_doubtful else "")


def _goes_right(type_: _Type, is_result: bool) -> bool:
    """Whether ctypes passes this structure or union by value as C does, as far as is known."""
    size = ctypes.sizeof(type_)
    if _PROCESSOR == "x86" or MACHINE == "x86_64-windows" or size > 64:
        return True  # these go by size alone
    classes = _classes(type_)
    if MACHINE == "x86_64-sysv":
        # A larger one goes in memory. For a long double result libffi looks in another register.
        return size > 16 or not classes & {"?", "g" if is_result else "?"}
    if "i" in classes and _PROCESSOR in ("aarch64", "arm", "ppc64le", "s390x"):
        classes -= {"f", "d"}  # all of it goes in general registers, with long double by pairs
    return "?" not in classes or classes == {"?", "i"}


# What a complete class of each base has.
_MARKS = {ctypes._SimpleCData: "_type_", ctypes._Pointer: "_type_", _FunctionPointer: "_flags_",
          ctypes.Structure: "_fields_", ctypes.Union: "_fields_", ctypes.Array: "_length_"}
# The rules of simple types, by the letter that ctypes knows each by.
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_INTEGERS, _to_integer),
    **dict.fromkeys(("f", "d", "g", "F", "D", "G", "Zf", "Zd", "Zg"), _to_float),
    **dict.fromkeys("zZ", _to_reference),
    "P": _to_pointer,
}


def _base_and_rule(type_: _Type, what: str) -> tuple[Any, _Rule]:
    """The base and the rule of a type that can be passed or returned; TypeError for any other."""
    if isinstance(type_, (list, tuple)):
        given = type(type_).__name__
        raise TypeError(f"{what} is a {given}: types are given one by one, as restype, *argtypes")
    if not isinstance(type_, type) or not issubclass(type_, _Data):
        raise TypeError(f"{what} must be a ctypes type such as c_int64, not {type_!r}")
    base = next(base for base in _MARKS if issubclass(type_, base))
    mark, remedy = _MARKS[base], "a pointer to it can be passed"
    if not hasattr(type_, mark):
        why = f"it is not complete, as it has no {mark}"
    elif getattr(type_, f"__ctype_{sys.byteorder[0]}e__", type_) is not type_:
        why = "it has the other byte order, which C does not pass; swap it"
    elif base is ctypes.Array and what == "restype":
        why = "C functions return no arrays; return a pointer"
    elif mark == "_fields_" and not ctypes.sizeof(type_):
        why = f"it is empty; {remedy}"
    elif mark == "_fields_" and not _goes_right(type_, what == "restype"):
        why = f"ctypes may pass it wrong by value; {remedy}"
    elif base is ctypes._SimpleCData:
        return base, _RULES.get(getattr(type_, mark), _to_value)
    else:
        return base, _to_pointer if base is ctypes._Pointer else _to_reference
    raise TypeError(f"{what} {_type_name(type_)}: {why}")


def _converts_itself(type_: _Type) -> bool:
    """Whether a program gave this type a from_param of its own."""
    method: Any = type_.from_param
    is_builtin = isinstance(method, type(len))
    if not is_builtin:  # PyPy's are written in Python
        return not str(getattr(method, "__module__", "")).startswith("_ctypes")
    # ctypes itself gives POINTER(c_char) the one of c_char_p.
    item = getattr(type_, "_type_", None)
    return bool(method.__self__ is not type_) and item not in (ctypes.c_char, ctypes.c_wchar)


# ---- Signatures and Function: what a call means, defined once ----

_STACK_ALWAYS = 8192  # bytes that every stack is assumed to have left, as Python needs more
_SIGNATURES_KEPT = 1024  # so many that no function has
_function_types: dict[int, Any] = {}  # ctypes' classes of functions, by flags
# ctypes' flags of functions: FUNCFLAG_CDECL, _PYTHONAPI, _USE_ERRNO and _USE_LASTERROR.
_CDECL, _MAY_RAISE, _KEEPS_ERRNO = 1, 4, 8 | 16


def _is_lasting(type_: _Type) -> bool:
    """Whether this is ctypes' own type, or its pointer to one: these never go."""
    if isinstance(type_, type) and issubclass(type_, ctypes._Pointer):
        return _is_lasting(type_._type_) and type_ is ctypes.POINTER(type_._type_)
    return type_ is None or getattr(ctypes, getattr(type_, "__name__", ""), None) is type_


class _Signature:
    """What a function takes and returns, and how it is called."""
    def __init__(self, restype: _Type, argtypes: tuple[_Type, ...], nogil: bool, guard: bool,
                 flags: int) -> None:
        if len(argtypes) > 1024:
            raise TypeError(f"a function takes at most 1024 arguments, not {len(argtypes)}")
        self.restype = restype
        self.argtypes = argtypes
        self.nogil = nogil
        self.guard = guard
        self.flags = flags
        # The trampolines, of a Memory's functions and of others: 0 where the reference serves, None
        # until one is asked for.
        self.entry: int | None = None
        self.gated_entry: int | None = None
        self.entries: list[Any] = []  # what keeps their code
        self.by_ctypes = False  # whether they call ctypes
        self.tables: list[Any] = []  # of types, with their addresses; the first one serves
        self.callback: int | None = None  # its callbacks' routine; set by the first
        made: dict[int, _Parameter] = {}  # of each type once, because that is slow
        for i, type_ in enumerate(argtypes, 1):
            if id(type_) not in made:
                made[id(type_)] = _Parameter(type_, f"argtype {i}")
        parameters = [made[id(type_)] for type_ in argtypes]
        # Of each: what is passed as it is, what becomes of the rest, and its place in messages.
        self.parameters: Any = tuple(
            (each.as_it_is, _as_asked if each.ask else each.rule, each, f"() argument {i}")
            for i, each in enumerate(parameters, 1))
        if restype is not None:
            _base_and_rule(restype, "restype")
        letters = [getattr(type_, "_type_", None) for type_ in (restype, *argtypes)]
        self.returns_object = letters[0] == "O"
        self.objects = "O" in letters
        if nogil and self.objects:
            raise ValueError("nogil=True releases the GIL, without which no code may touch "
                             "py_object")
        self.text = f"({', '.join(map(_type_name, argtypes))}) -> {_type_name(restype)}"
        # What ctypes is told to pass: an address for a pointer of any kind, and for a type that
        # converts by itself an array, which stands for any pointer.
        pointers = _void_p, ctypes._Pointer, _FunctionPointer
        self.passed = tuple(
            _void_p if type_ and issubclass(type_, pointers) else type_ or ctypes.c_char * 1
            for type_ in (None if each.ask else each.type for each in parameters))
        by_value = sum(
            ctypes.sizeof(type_) for type_ in (restype, *argtypes)
            if isinstance(type_, type) and issubclass(type_, (ctypes.Structure, ctypes.Union)))
        self.large = by_value if by_value > _STACK_ALWAYS else 0  # if a stack may lack room

    def ctypes_function(self, address: int, converts: bool = False) -> Any:
        """ctypes' function at an address. It converts, or is given what the rules have made."""
        flags = _CDECL | self.flags & _KEEPS_ERRNO | (0 if self.nogil else _MAY_RAISE)
        if flags not in _function_types:
            members = {"_flags_": flags, "_restype_": None}
            _function_types[flags] = type("_Function", (_FunctionPointer,), members)
        call = _function_types[flags](address)
        if converts:
            call.argtypes, call.restype = self.argtypes, self.restype
            return call
        # ctypes itself crashes on a py_object that is NULL.
        call.restype = _void_p if self.returns_object else self.restype
        if sys.implementation.name == "pypy" and not any(each[2].ask for each in self.parameters):
            call.argtypes = self.passed  # else it takes no small integers
        return call


_signatures: dict[tuple[_Type, ...], _Signature] = {}
# What guard=None means: as the environment said when jitmem was imported.
_GUARD_ALL = _switched_on(os.environ.get("JITMEM_GUARD", ""))


def _signature(name: Any, restype: _Type, argtypes: tuple[_Type, ...], nogil: Any, guard: Any,
               flags: int = 0) -> _Signature:
    """The signature of these types. Those of ctypes' own types are kept for the next function."""
    if not isinstance(name, str):
        raise TypeError(f"name must be str, not {_type_of(name)}")
    nogil, guard = bool(nogil), _GUARD_ALL if guard is None else bool(guard)
    key = (nogil, guard, flags, restype, *argtypes)
    try:
        signature = _signatures.get(key)
    except TypeError:  # something in it has no hash
        signature = None
    if signature is None:
        signature = _Signature(restype, argtypes, nogil, guard, flags)
        if all(map(_is_lasting, key[3:])):  # a user's type must be free to go
            if len(_signatures) >= _SIGNATURES_KEPT:
                _signatures.clear()
            _signatures[key] = signature
    return signature


def _first_stack_end() -> int:
    """The upper end of the first thread's stack, 0 if it is not known. There the kernel puts what
    AT_EXECFN, 31, refers to, see getauxval(3)."""
    ask = _native("getauxval", ctypes.c_ulong, ctypes.c_ulong)
    return ask(31) & -16 if ask else 0


def _stack_bounds() -> tuple[int, int]:
    """The ends of this thread's stack; (0, 0) if they are not known."""
    start, size = _size_t(), _size_t()
    if sys.platform == "win32":  # since Windows 8; it cannot fail
        _library.GetCurrentThreadStackLimits(ctypes.byref(start), ctypes.byref(size))
        return start.value, size.value
    get_thread = _native("pthread_self", _size_t)
    ask = _native("pthread_getattr_np", _int, _size_t, _void_p)
    thread = get_thread() if get_thread else 0
    if sys.platform == "darwin":
        end = _native("pthread_get_stackaddr_np", _size_t, _size_t)(thread)
        return end - _native("pthread_get_stacksize_np", _size_t, _size_t)(thread), end
    attributes = (_size_t * 32)()  # a pthread_attr_t is smaller
    if ask and not ask(thread, attributes):
        _library["pthread_attr_getstack"](attributes, ctypes.byref(start), ctypes.byref(size))
        _library["pthread_attr_destroy"](attributes)
        # A thread's descriptor is at the end of its stack with glibc, and a bit above with musl.
        # It does not count as stack, because other threads change its links.
        if start.value < thread < start.value + size.value + (1 << 20):
            return start.value, thread & -16
    # That of the first thread is elsewhere. What pthread_getattr_np says of its stack needs /proc,
    # and with musl is what is mapped so far. But its end is known, and the kernel puts no mapping
    # close below (mmap_base() leaves 128 MiB).
    end = _first_stack_end()
    return (end - (64 << 20), end) if end else (0, 0)


def _refuse_large(function: Function) -> None:
    """Raise MemoryError if this thread's stack cannot hold the structures of a call."""
    # This file ends with the stack pointer and the program counter of the thread that reads it.
    *_, pointer, _ = ("0 0 " + _kernel_says("/proc/thread-self/syscall")).split()
    here = int(pointer, 16)
    start, end = _stack_bounds()
    limits, ask = (_size_t * 2)(), _native("getrlimit", _int, _int, _void_p)
    if end == _first_stack_end() and ask and not ask(3, limits):  # RLIMIT_STACK, the first's
        start = max(start, end - limits[0])
    if not start < here < end:
        here = (start + end) // 2  # half of it may be in use
    left = here - start - (32 << 10) if end else 64 << 10  # for the call itself
    size = function._signature.large
    if 2 * size > left:  # libffi copies them twice since 3.4
        raise MemoryError(
            f"{function._name}() passes {size} bytes of structures by value, and this thread's "
            "stack has no room for them; use pointers, or a larger stack")


class _OfInstances:
    """An attribute that instances compute, and that the class has another value of."""
    def __init__(self, compute: Callable[[Any], Any], of_class: Any) -> None:
        self.compute, self.of_class = compute, of_class

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self.of_class if instance is None else self.compute(instance)


# What callbacks raised, by the call that is to raise it as soon as its code has returned: the
# address of the mark in a trampoline's frame, or the frame of Function.__call__; or, where Python
# had no frame left to find the call, by the thread's number. See Callbacks.
_kept: dict[Any, BaseException] = globals().get("_kept", {})  # a reload keeps it
# A mark is a word that holds its own address plus this number; of a callback's frame, plus 2 more.
# That is odd, because other words that point so close to their own place are addresses in the
# stack, which are even. Every copy of this module has another number.
_MARK = (id(_kept) >> 4 & 0x1FFFFF) << 2 | 1


def _take_kept(call: Any) -> BaseException | None:
    """What a callback of this call raised, if one did."""
    return _kept.pop(call, None) or _kept.pop(get_ident(), None)


def _raise_kept(call: Any) -> None:
    error = _take_kept(call)
    if error is not None:
        try:
            raise error
        finally:
            del error  # it has this frame in its traceback


_UNMADE = "a jitmem Function that was never made"  # as by object.__new__()


def _refuse_keywords(function: Function) -> None:
    raise TypeError(f"{function._name}() takes no keyword arguments")


def _refuse_null(function: Function) -> None:
    raise SystemError(f"{function._name}() returned NULL without setting an exception")


class Function(_Closing):
    """Machine code as a Python callable.

    Made by jitmem.function(), bind(), Code.function() and Memory.function().

    Call it with positional arguments that fit its argtypes. The wrong number or type of them is a
    TypeError, a number that does not fit is an OverflowError; no integer is cut to size. The GIL is
    held during the call, unless it was made with nogil=True. It keeps the memory of its code for as
    long as it lives, unless bind() made it of an address. ctypes takes it as a pointer to its code.

    As an attribute of a class it is no method, as builtin functions are none: no self is passed.

    One made by function() or Code.function() pickles as its code and signature, for machines of
    the same kind. A copy is made in the same way; where that cannot be, it is the function itself.
    """
    _name: str
    _signature: _Signature
    _address: int
    _size: int
    _owner: Any  # the Code or Memory with its code, or what bind() was given; or None
    _keep: Any
    _closed: Any  # True, or _OPEN
    _chunk: _Pages | None  # what keeps its code mapped, unless another owner does
    _call: Any  # the ctypes function; set by the first call
    _caller: Any  # the ctypes function that a trampoline calls, see _aim
    __slots__ = (*__annotations__, "__weakref__")

    def __new__(cls, /, *args: Any, **kwargs: Any) -> Function:
        makers = "jitmem.function(), bind(), Code.function() and Memory.function()"
        raise TypeError(f"Function is made by {makers}")

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the machine code: count, conversions, state, the call, its result, in this order."""
        # A trampoline must return and raise exactly what this does.
        try:
            name, signature = self._name, self._signature
        except AttributeError:
            raise TypeError(f"{_UNMADE} cannot be called") from None
        if kwargs:
            _refuse_keywords(self)
        count = len(signature.parameters)
        if len(args) != count:
            wanted = f"{count or 'no'} argument{'' if count == 1 else 's'}"
            raise TypeError(f"{name}() takes {wanted}, not {len(args)}")
        try:
            call = self._call
        except AttributeError:
            call = self._call = signature.ctypes_function(self._address)
        pins: list[Any] = []
        try:
            passed = [
                value if isinstance(value, as_it_is) else rule(parameter, value, name + place, pins)
                for (as_it_is, rule, parameter, place), value in zip(signature.parameters, args)
            ]
            # The conversions ran code of the arguments, which may have closed this function, or
            # one that is an argument. Without pins no globals are needed: at exit these are gone.
            passed_on = pins[:]
            if self._closed or self._owner is not None:
                self._check(pins)
            for pin in passed_on:
                if isinstance(pin, Function):
                    pin._check(pins)
            if signature.large:
                _refuse_large(self)
            try:
                result = call(*passed)
            except BaseException as error:
                if _kept:
                    error.__context__ = _take_kept(sys._getframe()) or error.__context__
                raise
            is_null = signature.returns_object and result is None
            if signature.returns_object and not is_null:
                result = _new_reference(result)
            if _kept:
                _raise_kept(sys._getframe())
            if is_null:
                _refuse_null(self)
        finally:
            for pin in pins:
                if isinstance(pin, (_Pin, _Hold)):
                    pin.release()
        return result

    def _check(self, pins: list[Any] | None = None) -> None:
        """Raise if this can no longer be called.

        With pins its code stays in place until what is appended to them is released.
        """
        if self._closed:
            raise ValueError(f"{self._name}() is closed")
        hold = getattr(self._owner, "_hold", None)  # a Memory's, whose code can change or go
        if hold:
            pin = hold(f"{self._name}()", "r-x", frame=sys._getframe(1))
            if pins is None:
                pin.release()
            else:
                pins.append(pin)

    address = property(lambda self: self._address, doc="Where the code starts.")
    size = property(lambda self: self._size, doc="Bytes of code from there on; 0 if not known.")
    restype = property(lambda self: self._signature.restype, doc="What it returns, or None.")
    argtypes = property(lambda self: self._signature.argtypes, doc="What it takes, a tuple.")
    closed = property(lambda self: bool(self._closed), doc="Whether close() was called.")
    __name__ = property(lambda self: self._name, doc="The name given, for messages.")

    @property
    def _as_parameter_(self) -> ctypes.c_void_p:
        """How ctypes takes this as an argument: as its address."""
        self._check()
        return _void_p(self._address)

    def close(self: Any) -> None:
        """Make calls raise ValueError from here on. Calling it again does nothing.

        The memory goes with the last reference.
        """
        if not self._closed:
            self._closed = True
            if self._entry_when_closed:
                self._entry = self._entry_when_closed

    def __bytes__(self) -> bytes:
        """The code, to the end of what was loaded at once.

        Raises ValueError when closed, and TypeError for bind()'s functions.
        """
        self._check()
        if not self._size:
            raise TypeError(f"{self._name}(): bind() does not know how many bytes of code it has")
        if isinstance(self._owner, Memory):  # which another thread may close
            return self._owner.read(self._address - self._owner.address, self._size)
        return _bytes_at(self._address, self._size)

    def __reduce__(self) -> Any:
        return _pickled(self)  # see Pickling, which needs function() and Code

    def __copy__(self, memo: Any = None) -> Function:
        try:
            rebuild, state = _pickled(self)
        except (TypeError, ValueError):
            return self
        copied: Function = rebuild(*state)
        return copied

    __deepcopy__ = __copy__

    def __repr__(self) -> str:
        try:
            text = f"jitmem function {self._name}{self._signature.text}"
        except AttributeError:
            return f"<{_UNMADE}>"
        if self.closed or getattr(self._owner, "closed", False):
            return f"<{text}, closed>"
        notes = [f"{self._size} bytes"] if self._size else []
        if self._signature.guard:
            notes.append("guarded")
        more = f" ({', '.join(notes)})" if notes else ""
        return f"<{text} at {self._address:#x}{more}>"

    # Of those that the interpreter calls by their `_entry`, see _Engine.function_type(): what it
    # is to call once they are closed.
    _entry_when_closed = 0


def _documentation(function: Function) -> str:
    what = f"{function._name}{function._signature.text}"
    return f"{what}\n\nMachine code at {function._address:#x}, made by jitmem."


def _annotations(function: Function) -> dict[str, _Type]:
    """A function's parameters and result."""
    types = {f"arg{number}": type_ for number, type_ in enumerate(function.argtypes, 1)}
    return {**types, "return": function.restype}


def _inspected(function: Function) -> Any:
    from inspect import Parameter, Signature
    *parameters, (_, result) = _annotations(function).items()
    return Signature([Parameter(name, Parameter.POSITIONAL_ONLY, annotation=type_)
                      for name, type_ in parameters], return_annotation=result)


# Of these the class has values of its own.
Function.__doc__ = _OfInstances(_documentation, Function.__doc__)  # type: ignore[assignment]
Function.__annotations__ = _OfInstances(_annotations, {})  # type: ignore[assignment]
Function.__signature__ = _OfInstances(_inspected, None)  # type: ignore[attr-defined]

_new = object.__new__
# In `_closed` of functions that are open: false. info() counts these by the references to it.
_OPEN: list[Any] = []


def _make(
    name: str, signature: _Signature, entry: int, address: int, size: int, owner: Any = None,
    keep: Any = None, chunk: _Pages | None = None,
) -> Function:
    """A function whose code is in these pages, called through this trampoline, if any."""
    function: Any = _new(_engines[0].type if entry else Function)
    function._name = name
    function._signature = signature
    function._address = address
    function._size = size
    function._owner = owner
    function._keep = keep
    function._chunk = chunk
    function._closed = _OPEN
    if entry:
        _aim(function, address)
        function._entry = entry
    return function  # type: ignore[no-any-return]


# ---- The heap: write-once code memory ----
#
# A chunk is filled from its start and never rewritten: while it is mapped no address ever holds two
# codes. So there is no free list, no stale instruction cache, and fork needs one rule, that only
# the process which made a chunk appends to it. A function keeps the pages of its chunk.
#
# There is no lock. A finalizer or a signal handler may come in at any instruction and load code
# itself: it would find the lock held by its own thread, and a forked child by a thread that is not
# in it. A load takes a chunk out of a list, which is atomic, has it alone, and puts it back; if
# there is none, it makes one. If a signal handler's exception keeps it from putting the chunk back,
# that goes with its file, and functions keep its pages as before.
#
# If the system refuses a step of a load,
#
#     a chunk that was there     is dropped, and a new one with a sealed file taken
#     a new one, sealed file     is dropped, and a new one of pages taken
#     a new one, of pages        means that what the system has said is raised

_CHUNK = max(256 << 10, 16 * mmap.PAGESIZE)  # bytes
_LARGE = _CHUNK // 8  # more has a chunk of its own, so that little is left over in the others
_LINE = 64  # bytes in a cache line, and what code is aligned to


class _Chunk:
    """Memory that code is appended to.

    With a sealed file no writable mapping of it exists. Without one each code has whole pages,
    which turn from "rw-" to "r-x".
    """
    __slots__ = ("pages", "file", "why", "new", "protection", "made_by")

    def __init__(self, size: int, why: Exception | None = None) -> None:
        self.pages = _Pages(size)
        self.new = True  # no load has put it back yet
        self.file: Any = None
        self.why = why  # why there is no file
        if why is None:
            file = _sealed_file(self.pages)
            if isinstance(file, Exception):
                self.why = file
                self.pages = _Pages(size)  # what the file was to be put over may be gone
            else:
                self.file = file

    def append(self, code: bytes, start: int) -> Exception | None:
        """Put code at its place. Returns the exception if the system refuses that."""
        if _process.was_forked():
            _process.forked()
        address, size = self.pages.address + start, len(code)
        if self.file is None:
            self.protection = "rw-"
            ctypes.memmove(address, code, size)
            error = _protect(address, _whole_pages(size), "r-x", self)
        else:
            source: Any = ctypes.cast(code, _void_p)  # type: ignore[arg-type]
            error = self.file.write(source.value or 0, size, start)
        if error is None and _bytes_at(address, size) != code:
            return OSError(errno.EIO, "code memory does not hold what was written to it")
        return error

    def retire(self) -> None:
        """Let nobody append to it any more."""
        if self.file is not None:
            self.file.retire()


def _load(code: bytes, align: int = _LINE,
          chunks: list[_Chunk] | None = None) -> tuple[_Pages, int]:
    """Make code executable: the pages that it is in, and its address, a multiple of align.

    chunks: those to take one from, and to put it back to, if not the heap's.
    """
    size = len(code)
    if chunks is None:
        chunks = _process.heap.open
    refused = why = None  # why an old chunk took no code, and why a new one with a file did not
    while True:
        chunk = None
        if chunks and size <= _LARGE and not refused:
            try:
                chunk = chunks.pop()
            except IndexError as error:  # another thread was here first
                if not _raised_directly(error):
                    raise
        if chunk is None:
            if not _process.witness:
                _process.watch_forks()
            chunk = _Chunk(size if size > _LARGE else _CHUNK, why)
        pages, file, write = chunk.pages, chunk.file, _process.write
        start = (pages.used + align - 1) & -align
        end = start + size if file else start + _whole_pages(size)
        if end > pages.size:
            chunk.retire()
            continue
        pages.used = end  # whatever fails from here on, these bytes are not used again
        address = pages.address + start
        try:
            if not (file and write and write(file.number, file.mark, code, size, start, address)):
                refused = chunk.append(code, start)
                if refused:
                    if file is None and chunk.new:
                        raise refused
                    why = refused if chunk.new else None
                    chunk.retire()
                    continue
            if _MUST_FLUSH:
                _flush(address, size)
        except BaseException:
            chunk.retire()
            raise
        chunk.new = False
        if size <= _LARGE and end < pages.size:
            chunks.append(chunk)
        else:
            chunk.retire()
        return pages, address


# ---- Assembler: one notation for all machine code that jitmem makes for itself ----
#
# A program is text. It is the same for every processor:
#
#             enter   2, 48                   save kept0 and kept1, and make a frame of 48 bytes
#             load    arg0, [kept1 + 8]       load32, load16, load8; store, store32, …
#             jne     arg0, NONE, other       the second operand is a register or a constant
#             call    PyMem_Realloc(kept0, 8) a function of the C API or the C library; arguments
#                                             are a register, a constant, [frame + 8] or frame + 8
#             stored  f0, [frame + 16]        loadd and stored: double; f: float; v: 16 bytes
#             set result, 1; leave 2, 48      a line may have several, where text is short
#     other:
#
# A call preserves kept0 to kept3 and destroys the others. `scratch`, `spare` and `extra` hold no
# arguments. Instructions use `scratch` for a constant that does not fit into them, and for what
# they call. No program may rely on `result` being a register of its own: it is also `spare` on
# x86-64, and `arg0` on AArch64. jz32 and jnz32 look at the lower half of a register, and clear the
# upper one.
#
# To add a processor, of 64 bits and little-endian, write a subclass of _Processor and name it in
# _PROCESSOR_CLASSES. It encodes what is in _INSTRUCTIONS by its tables or by methods op_NAME.
# Without flags it has op_je and so on, and no such jumps in `fixed`. What an instruction cannot
# hold must be an AssertionError, and never become another instruction. `f0` has the first
# floating-point argument and such a result. `enter` lets `base` point at two words, the caller's
# `base` and the return address, because callbacks find what was passed on the stack behind these.
#
# Trampolines extend integers by the signs of their types, and put floats without a register onto
# the stack. A convention that differs changes _places() and where that is used. RISC-V's does:
# floats go on in integer registers, and uint32 is extended as int32 is.

# What may follow each instruction: r is a register, v a vector register, c a constant, and l a
# label. A place in memory is rc: a register and an offset. Only Windows' guard uses loadv, storev.
_INSTRUCTIONS = {operation: kinds.split(" ") for kinds, operations in {
    "": "ret", "c": "vectors", "cc": "enter unwind leave", "rr": "move mul", "vv": "narrow widen",
    "rc": "set shl shr increment decrement", "rr rc": "add sub and or", "rrcc": "extend",
    "rrc": "lea load load32 load16 load8 store store32 store16 store8",
    "vrc": "loadd loadf loadv stored storef storev", "r c rc": "call jump",
    "l": "jmp", "rl": "address jz jnz jz32 jnz32", "rcl": "jbit jnobit",
    "rrl rcl": "je jne jb jbe ja jae",  # below and above are those of unsigned numbers
}.items() for operation in operations.split()}


class _Register(int):
    """The number of a register that holds integers. A plain int is a constant."""


class _Vector(int):
    """The number of a register that holds floating-point numbers."""


_OPERANDS: dict[type, str] = {_Register: "r", _Vector: "v"}


def _require(condition: bool, problem: str, what: Any = "") -> None:
    """Like assert, but `python -O` does not remove it: wrong machine code must never be made."""
    if not condition:
        raise AssertionError(f"{problem} {what}")


def _signed(value: int, bits: int) -> bool:
    """Whether a signed number of so many bits can have this value."""
    return -(1 << bits - 1) <= value < 1 << bits - 1


class _Processor:
    """The registers of a processor, and how its instructions are encoded."""

    integers: tuple[int, ...]  # the registers of integer arguments, in their order
    kept: tuple[int, ...]  # the registers kept0 to kept3
    floats = tuple(range(16))  # the registers f0, f1, …, those of arguments first
    roles: dict[str, int]  # the other registers
    vector_arguments = 8  # how many floating-point arguments have registers
    by_position = False  # whether the third argument has the third register of its kind
    shadow = 0  # bytes of stack that a caller leaves to the function that it calls
    fixed: dict[str, str]  # without operands, in hexadecimal; jumps after a comparison
    arithmetic: dict[str, Any]  # of a register with a register or a constant, see combine()
    table: dict[str, str]  # what from_table() encodes

    def __init__(self) -> None:
        # What all programs may name.
        self.names: dict[str, int] = {f"f{i}": _Vector(n) for i, n in enumerate(self.floats)}
        for name, numbers in (("arg", self.integers), ("kept", self.kept)):
            self.names.update((f"{name}{i}", _Register(n)) for i, n in enumerate(numbers))
        self.names.update((name, _Register(number)) for name, number in self.roles.items())
        self.frame, self.scratch = self.names["frame"], self.names["scratch"]
        self.encoded: dict[str, Any] = {}  # lines of programs that name nothing else

    def encode(self, operation: str, *operands: int) -> bytes:
        """One instruction. A memory operand is its base and offset; a jump has no distance yet."""
        if operation in ("shl", "shr", "jbit", "jnobit"):
            _require(0 <= operands[1] < 64, "there is no bit", operands[1])
        elif operation in ("enter", "unwind"):
            _require(operands[0] % 2 == operands[1] % 16 == 0, "the stack is a multiple of 16")
        if operation in self.table:
            return self.from_table(self.table[operation], *operands)
        if operation in self.arithmetic:
            return self.combine(operation, *operands)
        if operation in self.fixed:
            compared = self.combine("cmp", *operands) if operands else b""
            return compared + bytes.fromhex(self.fixed[operation])
        if operation.startswith(("jz", "jnz")):
            register, jump = operands[0], "je" if operation.startswith("jz") else "jne"
            low = self.op_extend(register, register, 4, 0) if operation.endswith("32") else b""
            return low + self.encode(jump, register, 0)
        return getattr(self, f"op_{operation}")(*operands)  # type: ignore[no-any-return]

    def by_scratch(self, operation: str, register: int, value: int) -> bytes:
        """An operation with a constant too large for it."""
        _require(register not in (self.scratch, self.frame), "it cannot hold", value)
        return self.op_set(self.scratch, value) + self.combine(operation, register, self.scratch)

    def op_call(self, *place: int, how: str = "callr") -> bytes:
        """By a register, or to an address, or to what a place in memory holds."""
        if len(place) == 1 and isinstance(place[0], _Register):
            return self.encode(how, *place)
        fetched = self.encode("set" if len(place) == 1 else "load", self.scratch, *place)
        return fetched + self.encode(how, self.scratch)

    def op_jump(self, *place: int) -> bytes:
        return self.op_call(*place, how="jumpr")

    def op_vectors(self, count: int) -> bytes:
        """Say how many vector registers hold arguments, where variadic functions ask."""
        return b""

    def op_leave(self, count: int, size: int) -> bytes:
        return self.encode("unwind", count, size) + self.encode("ret")

    # Each processor defines these, and callr and jumpr, which go to the address in a register.
    # patch(code, end, distance) completes the jump that ends at `end`; the distance is from there
    # to the label.
    from_table: Callable[..., bytes]
    combine: Callable[..., bytes]
    patch: Callable[[bytearray, int, int], None]
    op_set: Callable[[int, int], bytes]
    op_extend: Callable[[int, int, int, int], bytes]


class _X86_64Processor(_Processor):
    """The encodings are from Intel's Software Developer's Manual, volume 2."""

    by_position = MACHINE == "x86_64-windows"
    shadow = 32 if by_position else 0
    vector_arguments = 4 if by_position else 8
    # rcx, rdx, r8, r9 on Windows; elsewhere rdi, rsi, rdx, rcx, r8, r9.
    integers = (1, 2, 8, 9) if by_position else (7, 6, 2, 1, 8, 9)
    kept = 3, 12, 13, 14  # rbx, r12, r13, r14
    order = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15"
    roles = {name: number for number, name in enumerate(order.split())}
    roles.update(result=0, spare=0, extra=10, scratch=11, frame=4, base=5)
    fixed = {"ret": "c3", "jmp": "e900000000", "jb": "0f8200000000", "jae": "0f8300000000",
             "je": "0f8400000000", "jne": "0f8500000000", "jbe": "0f8600000000",
             "ja": "0f8700000000"}
    # The opcode for two registers, and the number of the operation where one is a constant.
    arithmetic = {"add": ("W03", 0), "or": ("W0b", 1), "and": ("W23", 4), "sub": ("W2b", 5),
                  "cmp": ("W3b", 7)}
    # A prefix; W for an operation of 64 bits; the opcode. Then /n, which stands for the first
    # register; "i" if a constant of one byte follows; further bytes.
    table = {
        "load": "W8b", "load32": "8b", "load16": "0fb7", "load8": "0fb6", "loadd": "f2 0f10",
        "loadf": "f3 0f10", "loadv": "0f10", "store": "W89", "store32": "89", "store16": "66 89",
        "store8": "88", "stored": "f2 0f11", "storef": "f3 0f11", "storev": "0f11",
        "move": "W8b", "lea": "W8d", "mul": "W0faf", "shl": "Wc1 /4 i", "shr": "Wc1 /5 i",
        "narrow": "f2 0f5a", "widen": "f3 0f5a",  # cvtsd2ss, cvtss2sd
        "increment": "f0 Wff /0", "decrement": "f0 Wff /1",  # f0 is lock
        "callr": "ff /2", "jumpr": "ff /4",
        "jbit": "W0fba /4 i 0f8200000000", "jnobit": "W0fba /4 i 0f8300000000",  # bt
    }

    parsed: dict[str, tuple[bytes, bool, bytes]] = {}  # entries up to the opcode

    def place(self, pattern: str, register: int, other: int, offset: int | None = None) -> bytes:
        """REX byte, opcode, ModRM byte, and the offset where the other register is an address."""
        if pattern not in self.parsed:
            before, _, digits = pattern.rpartition(" ")
            self.parsed[pattern] = (bytes.fromhex(before), "W" in digits,
                                    bytes.fromhex(digits.strip("W")))
        prefix, wide, opcode = self.parsed[pattern]
        rex = 0x40 | wide << 3 | register >> 3 << 2 | other >> 3
        # Without a REX byte the byte registers 4 to 7 would be ah, ch, dh and bh.
        needed = rex != 0x40 or pattern in ("88", "0fb6", "W0fbe")
        code = prefix + bytes([rex] * needed) + opcode
        modrm = (register & 7) << 3 | other & 7
        if offset is None:
            return code + bytes([0xC0 | modrm])
        index = b"\x24" if other & 7 == 4 else b""  # rsp and r12 need a byte that says: no index
        if _signed(offset, 8):
            return code + bytes([0x40 | modrm]) + index + struct.pack("<b", offset)
        _require(_signed(offset, 32), "an offset of", offset)
        return code + bytes([0x80 | modrm]) + index + struct.pack("<i", offset)

    def from_table(self, entry: str, *operands: int) -> bytes:
        pattern, _, more = entry.partition(" /")
        if "i" not in more:
            return self.place(pattern, *([int(more)] if more else []), *operands)
        register, constant = operands
        code = self.place(pattern, int(more[0]), register) + bytes([constant])
        return code + bytes.fromhex(more[3:])

    def combine(self, operation: str, register: int, other: int) -> bytes:
        pattern, number = self.arithmetic[operation]
        if isinstance(other, _Register):
            return self.place(pattern, register, other)
        if _signed(other, 8):
            return self.place("W83", number, register) + struct.pack("<b", other)
        if _signed(other, 32):
            return self.place("W81", number, register) + struct.pack("<i", other)
        return self.by_scratch(operation, register, other)

    def patch(self, code: bytearray, end: int, distance: int) -> None:
        struct.pack_into("<i", code, end - 4, distance)

    def op_address(self, register: int) -> bytes:  # lea register, [rip + distance]
        return bytes([0x48 | register >> 3 << 2, 0x8D, 5 | (register & 7) << 3, 0, 0, 0, 0])

    def op_set(self, register: int, value: int) -> bytes:
        _require(-1 << 63 <= value < 1 << 64, "more than 64 bits:", value)
        rex, opcode = register >> 3, 0xB8 | register & 7
        if 0 <= value < 1 << 32:  # mov to the lower half clears the upper half
            return bytes([0x41] * rex + [opcode]) + struct.pack("<I", value)
        if _signed(value, 32):
            return self.place("Wc7", 0, register) + struct.pack("<i", value)
        return bytes([0x48 | rex, opcode]) + struct.pack("<Q", value & 2**64 - 1)

    def op_extend(self, register: int, other: int, size: int, signed: int) -> bytes:
        """The value of the lowest bytes of the other register: movzx, movsx, movsxd or mov."""
        patterns = {1: ("0fb6", "W0fbe"), 2: ("0fb7", "W0fbf"), 4: ("8b", "W63"),
                    8: ("W8b", "W8b")}
        return self.place(patterns[size][signed], register, other)

    def op_vectors(self, count: int) -> bytes:
        return self.op_set(0, count)  # al

    def op_enter(self, count: int, size: int) -> bytes:  # push rbp; mov rbp, rsp; push …; sub
        saved = b"".join(bytes([0x40 | each >> 3, 0x50 | each & 7]) for each in self.kept[:count])
        return bytes.fromhex("55 4889e5") + saved + self.combine("sub", self.frame, size)

    def op_unwind(self, count: int, size: int) -> bytes:  # add; pop …; pop rbp
        back = (bytes([0x40 | each >> 3, 0x58 | each & 7]) for each in self.kept[:count][::-1])
        return self.combine("add", self.frame, size) + b"".join(back) + b"\x5d"


class _AArch64Processor(_Processor):
    """The encodings are from Arm's Architecture Reference Manual, part C."""

    integers = tuple(range(8))
    kept = 19, 20, 21, 22
    # x18 is the system's. x12 to x14 are the encoders'.
    roles = {f"x{i}": i for i in range(31)}
    roles.update(result=0, extra=11, spare=16, scratch=17, frame=31, base=29)
    fixed = {"ret": "c0035fd6", "jmp": "00000014", "je": "00000054", "jne": "01000054",
             "jae": "02000054", "jb": "03000054", "ja": "08000054", "jbe": "09000054"}
    # The instruction for two registers, and that for a constant of 12 bits, or 0 if there is none.
    arithmetic = {"add": (0x8B000000, 0x91000000), "sub": (0xCB000000, 0xD1000000),
                  "cmp": (0xEB000000, 0xF1000000), "and": (0x8A000000, 0), "or": (0xAA000000, 0)}
    # The instruction. Then for loads and stores "*" and their size, by which the offset is divided;
    # for others the bit at which each operand begins, or two for one that has two places.
    table = {
        "load": "f9400000 *8", "load32": "b9400000 *4", "load16": "79400000 *2",
        "load8": "39400000 *1", "store": "f9000000 *8", "store32": "b9000000 *4",
        "store16": "79000000 *2", "store8": "39000000 *1", "loadd": "fd400000 *8",
        "loadf": "bd400000 *4", "loadv": "3dc00000 *16", "stored": "fd000000 *8",
        "storef": "bd000000 *4", "storev": "3d800000 *16", "move": "91000000 0 5",  # add …, 0
        "mul": "9b007c00 0,5 16", "shr": "d340fc00 0,5 16", "narrow": "1e624000 0 5",
        "widen": "1e22c000 0 5", "callr": "d63f0000 5", "jumpr": "d61f0000 5",
        "address": "10000000 0"}

    def words(self, *words: int) -> bytes:
        return struct.pack(f"<{len(words)}I", *words)

    def from_table(self, entry: str, *operands: int) -> bytes:
        digits, *places = entry.split()
        word = int(digits, 16)
        if places[0][0] != "*":
            for operand, starts in zip(operands, places):
                word |= sum(operand << int(start) for start in starts.split(","))
            return self.words(word)
        register, base, offset = operands
        size, word = int(places[0][1:]), word | base << 5 | register
        if offset % size == 0 and 0 <= offset < 4096 * size:
            return self.words(word | offset // size << 10)
        _require(_signed(offset, 9), "an offset of", offset)  # ldur and stur
        return self.words(word & ~(1 << 24) | (offset & 0x1FF) << 12)

    def combine(self, operation: str, register: int, other: int) -> bytes:
        by_register, by_constant = self.arithmetic[operation]
        to = 31 if operation == "cmp" else register  # 31 is xzr here
        if isinstance(other, _Register):
            _require(31 not in (register, other), "no stack pointer with", operation)
            return self.words(by_register | other << 16 | register << 5 | to)
        if by_constant and 0 <= other < 1 << 12:
            return self.words(by_constant | other << 10 | register << 5 | to)
        return self.by_scratch(operation, register, other)

    def patch(self, code: bytearray, end: int, distance: int) -> None:
        word, = struct.unpack_from("<I", code, end - 4)
        distance += 4  # the processor counts from the start of the jump
        # How many bits the distance has, and at which it begins: of b, of tbz and tbnz, of others.
        bits, start = {0x14: (26, 0), 0x36: (14, 5)}.get(word >> 24 & 0x7E, (19, 5))
        _require(distance % 4 == 0 and _signed(distance >> 2, bits), "the label is too far away")
        word |= (distance >> 2 & (1 << bits) - 1) << start
        struct.pack_into("<I", code, end - 4, word)

    def op_jbit(self, register: int, bit: int, word: int = 0x37000000) -> bytes:
        return self.words(word | bit >> 5 << 31 | (bit & 31) << 19 | register)

    def op_jnobit(self, register: int, bit: int) -> bytes:
        return self.op_jbit(register, bit, 0x36000000)

    def op_set(self, register: int, value: int) -> bytes:
        _require(-1 << 63 <= value < 1 << 64, "more than 64 bits:", value)
        parts = [i << 21 | (value >> 16 * i & 0xFFFF) << 5 | register for i in range(4)]
        first, *others = [part for part in parts if part >> 5 & 0xFFFF] or parts[:1]
        return self.words(0xD2800000 | first, *(0xF2800000 | part for part in others))  # movz, movk

    def op_lea(self, register: int, base: int, offset: int) -> bytes:
        """Add or subtract up to 24 bits, in two steps of 12 bits each."""
        word, distance = 0xD1000000 if offset < 0 else 0x91000000, abs(offset)
        _require(distance < 1 << 24, "a distance of", distance)
        low = self.words(word | (distance & 0xFFF) << 10 | base << 5 | register)
        if distance < 1 << 12:
            return low
        return low + self.words(word | 1 << 22 | distance >> 12 << 10 | register << 5 | register)

    def op_shl(self, register: int, count: int) -> bytes:
        word = 0xD3400000 | -count % 64 << 16 | 63 - count << 10
        return self.words(word | register << 5 | register)

    def op_extend(self, register: int, other: int, size: int, signed: int) -> bytes:
        """The value of the lowest bytes of the other register: sbfx or ubfx."""
        word = 0x93400000 if signed else 0xD3400000
        return self.words(word | 8 * size - 1 << 10 | other << 5 | register)

    def op_increment(self, base: int, offset: int, change: int = 0x9100058C) -> bytes:
        """Load x12, add 1, store it; again if another core came in between."""
        # ldaxr x12, [x13]; add x12, x12, 1; stlxr w14, x12, [x13]; cbnz w14, to the ldaxr
        code = self.words(0xC85FFDAC, change, 0xC80EFDAC, 0x35FFFFAE)
        return self.op_lea(13, base, offset) + code

    def op_decrement(self, base: int, offset: int) -> bytes:
        return self.op_increment(base, offset, 0xD100058C)  # sub x12, x12, 1

    def op_enter(self, count: int, size: int) -> bytes:
        # stp x29, x30, [sp, -16]!; mov x29, sp; stp first, first + 1, [sp, -16]! …
        saved = (0xA9BF03E0 | each + 1 << 10 | each for each in self.kept[:count:2])
        return self.words(0xA9BF7BFD, 0x910003FD, *saved) + self.op_lea(31, 31, -size)

    def op_unwind(self, count: int, size: int) -> bytes:
        # … ldp first, first + 1, [sp], 16; ldp x29, x30, [sp], 16
        back = (0xA8C103E0 | each + 1 << 10 | each for each in self.kept[:count:2][::-1])
        return self.op_lea(31, 31, size) + self.words(*back, 0xA8C17BFD)


_PROCESSOR_CLASSES: dict[str, type[_Processor]] = {
    "x86_64": _X86_64Processor, "aarch64": _AArch64Processor}
# This machine's, or None: then nothing is there that needs machine code of ours.
_processor: Any = _PROCESSOR_CLASSES.get(_PROCESSOR, lambda: None)()


def _api(name: str) -> int:
    """The address of a function of Python's C API, or else of the system's library."""
    for library in (_python, _library):
        try:
            return int(ctypes.cast(library[name], _void_p).value or 0)
        except (AttributeError, TypeError):  # no such function, or no C API
            continue
    raise AssertionError(f"there is no function {name}")


class _Program:
    """Machine code, and the offsets of its labels."""

    def __init__(self, names: dict[str, int]) -> None:
        self.names = names  # what the text may name
        self.code = bytearray()
        self.labels: dict[str, int] = {}
        self.jumps: list[tuple[int, str]] = []  # where a jump ends, and to which label it goes

    def add(self, text: str, encoded: dict[str, Any]) -> None:
        """Append lines, and remember what becomes of them with these names.

        Free-threaded Python locks a dict that other threads fill, at each look. As waiting for that
        takes longer than encoding a line, threads must not share what they remember there.
        """
        for line in text.splitlines():
            known = encoded.get(line)
            if known is None:
                if len(encoded) > 4096:
                    encoded.clear()
                known = encoded[line] = self.encode(line)
            code, jumps, defined = known
            if defined:
                _require(defined not in self.labels, "there already is a label", defined)
                self.labels[defined] = len(self.code)
            for end, label in jumps:
                self.jumps.append((len(self.code) + end, label))
            self.code += code

    def encode(self, line: str) -> tuple[bytes, list[tuple[int, str]], str]:
        """The bytes of a line's instructions, its jumps, and the label that it is."""
        code, jumps = b"", list[tuple[int, str]]()
        line = line.partition("#")[0].strip()
        if line.endswith(":"):
            return code, jumps, line[:-1]
        try:
            for instruction in line.split(";"):
                operation, _, rest = instruction.strip().partition(" ")
                more, label = self.instruction(operation, rest)
                code += more
                if label:
                    jumps.append((len(code), label))
        except (AssertionError, TypeError, ValueError, LookupError) as error:
            raise AssertionError(f"{line}: {error}") from error
        return code, jumps, ""

    def instruction(self, operation: str, rest: str) -> tuple[bytes, str]:
        """The bytes of an instruction, and the label that it jumps to."""
        if operation in ("", "hex"):
            return bytes.fromhex(rest), ""
        if rest.endswith(")"):
            return self.call(*rest[:-1].split("(")), ""
        _require(operation in _INSTRUCTIONS, "there is no instruction", operation)
        kinds, label = _INSTRUCTIONS[operation], ""
        rest, _, place = rest.partition("[")
        words = rest.replace(",", " ").split()
        if kinds[0].endswith("l"):
            label = words.pop()
        names, value = self.names, self.value
        operands = [names[word] if word in names else value(word) for word in words]
        if place:
            base, *offsets = place.rstrip("] ").replace("- ", "-").replace("+", " ").split()
            operands += value(base), sum(map(value, offsets))
        found = "".join([_OPERANDS.get(type(each), "c") for each in operands])
        _require(found + "l" * (label != "") in kinds, "its operands cannot be", found)
        return _processor.encode(operation, *operands), label

    def call(self, function: str, arguments: str) -> bytes:
        """A call with arguments, which are put into their registers one after the other."""
        code = b""
        for i, argument in enumerate(map(str.strip, arguments.split(","))):
            lost = ["result", *(f"arg{j}" for j in range(i))] if i else []
            _require(not any(each in argument for each in lost), "overwritten is", argument)
            if "[" in argument:
                code += self.instruction("load", f"arg{i}, {argument}")[0]
            elif "+" in argument:
                code += self.instruction("lea", f"arg{i}, [{argument}]")[0]
            elif argument != f"arg{i}":
                is_register = isinstance(self.value(argument), _Register)
                code += self.instruction("move" if is_register else "set", f"arg{i}, {argument}")[0]
        return code + self.instruction("call", function)[0]

    def value(self, word: str) -> int:
        """The value of a name, of a number, or of a function of the C API or the C library."""
        if word in self.names:
            return self.names[word]
        return int(word, 0) if word[0].isdigit() or word[0] == "-" else _api(word)

    def finish(self) -> bytes:
        """The code, once all jumps know their distances."""
        for end, label in self.jumps:
            _require(label in self.labels, "there is no label", label)
            _processor.patch(self.code, end, self.labels[label] - end)
        return bytes(self.code)

    def install(self) -> int:
        """Load the code, which the process keeps, and return its address."""
        code = self.finish()
        pages, address = _load(code, chunks=_process.heap.permanent)
        if pages not in _process.permanent:
            _process.permanent.append(pages)
        _write_name("jitmem", address, len(code))
        return address


def _assemble(text: str, **names: int) -> _Program:
    """A program in the notation above. The names are constants, or other names of registers."""
    program = _Program({**_processor.names, **names})
    program.add(text, {} if names or not _GIL else _processor.encoded)
    return program


# ---- Trampolines: calls at a C function's cost ----
#
# CFUNCTYPE costs twenty times what a function compiled in C does. The difference is glue, which
# here is machine code. A trampoline is what the interpreter calls for a function, by its vectorcall
# protocol: (callable, args, nargsf, kwnames). Functions with parameters and results of the same
# kinds share one. It finds in the callable the address of the code, and that of a table with what
# is special to the types. An argument is converted by the way of its kind, a routine that all
# trampolines call. If there are structures by value or the like, the types are checked, and ctypes'
# own function is called. If an argument is refused, the reference gets the call: Function.__call__,
# with the same arguments. So what a call means is defined once, and no machine code has the text of
# an error.
#
# The frame of a trampoline, from the stack pointer up:
#
#     shadow      what Windows leaves to the function that is called
#     slots       8 bytes each, with converted arguments: first those that stay on the stack, which
#                 are in their place already; then those that go into registers
#     answer      the result, as an integer and as a double, while something else is called
#     thread      the state of the thread, while the GIL is released
#     mark        while the code runs, this word says that here is a call, see _MARK
#     next        the address of the first free buffer
#     buffers     one Py_buffer for each argument that may be a buffer
#
# To add a kind of argument, write its way in _WAYS, and say in _simple_kind() which types have it.
# What is refused, and with which message, is decided in Conversions alone.

class _PyMemberDef(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("type", _int), ("offset", ctypes.c_ssize_t),
                ("flags", _int), ("doc", ctypes.c_char_p)]


class _PyType_Slot(ctypes.Structure):
    _fields_ = [("slot", _int), ("pfunc", _void_p)]


class _PyType_Spec(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("basicsize", _int),
                ("itemsize", _int), ("flags", ctypes.c_uint), ("slots", _void_p)]


class _ParameterRow(ctypes.Structure):
    """What machine code must know of a type. A signature has a table: result, then parameters."""
    _fields_ = [
        ("type", _size_t),  # an instance of exactly this type is passed as it is
        ("item", _size_t),  # of POINTER(T): T; an instance of T is passed by address
        ("size", _size_t),  # of POINTER(T): the bytes of T; of the result: the parameters
        ("letters", _size_t),  # of POINTER(T): formats of buffers that fit, see _rows()
    ]


_TRAMPOLINES = _processor is not None and sys.implementation.name == "cpython"
# Words of a Function that machine code reads: what the interpreter calls, mostly a trampoline; what
# this calls in turn; where the code is, if it calls a guard's entry; its signature's table; its
# Memory's gate, if any; and ctypes' function over the code, if it calls that.
_WORDS = "_entry", "_target", "_code", "_table", "_gate", "_called"
_REWORDED = TypeError, ValueError, OverflowError, BufferError  # what the reference words by itself


def _int_layout() -> bool | None:
    """How this Python stores an int of one digit, found by looking at some.

    True: behind a tag of its size and sign, as since 3.12. False: behind a size with its sign.
    None: otherwise, and then the C API is asked for every value.
    """
    values = 0, 1, 5, -5, 2**30 - 1, 1 - 2**30, 2**30, -2**30, 2**62, -2**62, 2**90
    wanted = [value if abs(value) < 2**30 else None for value in values]
    places = [id(value) + object.__basicsize__ for value in values]
    heads = [(ctypes.c_ssize_t.from_address(place).value,
              ctypes.c_uint32.from_address(place + 8).value) for place in places]
    if [(1 - (tag & 3)) * digit if tag < 16 else None for tag, digit in heads] == wanted:
        return True
    by_size = [size * digit if abs(size) < 2 else None for size, digit in heads] == wanted
    return False if by_size else None


def _ctypes_layout() -> dict[str, int]:
    """Where ctypes' objects have their addresses, found by looking; all 0 if it is not as known.

    A ctypes object has the address of its value behind the header. What byref() returns has a
    pointer there, its kind (a letter, or since 3.15 a pointer to one), its value and, further
    behind, the object referred to.
    """
    def word_at(address: int) -> int:
        return _size_t.from_address(address).value

    header, number = object.__basicsize__, ctypes.c_int64(5)
    samples = {"ARRAY": (ctypes.c_int64 * 9)(), "POINTER": ctypes.pointer(number), "SIMPLE": number,
               "FUNCTION_TYPE": ctypes.CFUNCTYPE(None)()}
    layout = {name: id(type(type(sample))) for name, sample in samples.items()}
    if any(word_at(id(sample) + header) != ctypes.addressof(sample)
           for sample in samples.values()):
        layout = dict.fromkeys(samples, 0)
    made = ctypes.byref(number), _void_p.from_param(5), ctypes.py_object.from_param(number)
    mask = 0xFF if word_at(id(made[0]) + header + 8) & 0xFF == ord("P") else 2**64 - 1
    kinds = [word_at(id(each) + header + 8) & mask for each in made]
    places = [place for place in range(header + 24, type(made[0]).__basicsize__, 8)
              if word_at(id(made[0]) + place) == id(number)]
    found = [id(type(made[0])), kinds[0], mask, *places]
    if (word_at(id(made[0]) + header + 16) != ctypes.addressof(number) or len(places) != 1
            or kinds[0] != kinds[1] or kinds[0] == kinds[2]):
        found = [0] * 4
    return {**layout, **dict(zip(("BYREF", "KIND", "KIND_MASK", "REFERENT"), found))}


# What the interpreter calls for functions that are closed, and what trampolines have in common.
_COMMON = """
closed:  # calls of what is closed, and all that the reference serves
    enter 2, FRAME
    jz arg3, positional
    load spare, [arg3 + BODY]  # ob_size: some callers pass an empty tuple
    jz spare, positional
    move kept0, arg0
    set arg0, REFUSE_KEYWORDS
    set arg2, 1
    jmp asking
ask:  # call arg0 with kept0 and, if arg2 is 2, arg1
    enter 2, FRAME
asking:
    store kept0, [frame + OBJECT]
    store arg1, [frame + MADE]
    call PyObject_VectorcallDict(arg0, frame + OBJECT, arg2, 0)
    leave 2, FRAME
positional:
    move kept0, arg1
    move kept1, arg2
    move arg1, arg0
    call PyMethod_New(REFERENCE, arg1)
    jz result, no_method
    store result, [frame + OBJECT]
    call PyObject_VectorcallDict(result, kept0, kept1, 0)
    move kept0, result
    call Py_DecRef([frame + OBJECT])
    move result, kept0
no_method:
    leave 2, FRAME
release:  # the buffers from arg0 on to arg1
    enter 4, FRAME
    move kept2, arg0
    move kept3, arg1
next_buffer:
    je kept2, kept3, released
    call PyBuffer_Release(kept2)
    add kept2, BUFFER_SIZE
    jmp next_buffer
released:
    leave 4, FRAME
look:  # raise what is kept for the call with mark arg0, or this thread; returns what is set, or 0
    enter 4, FRAME
    move kept2, arg0
    set spare, KEPT
    load spare, [spare]
    jz spare, told
    call PyErr_Fetch(frame + OBJECT, frame + MADE, frame + NEXT)  # what is set must not be lost
    move arg0, kept2
by_key:  # by functions of C, so that no signal handler runs in between
    call PyLong_FromVoidPtr
    store result, [frame + KEY]
    jz result, told
    call PyDict_GetItemWithError(KEPT_DICT, [frame + KEY])
    move kept3, result
    jz kept3, absent
    call Py_IncRef(kept3)
    call PyDict_DelItem(KEPT_DICT, [frame + KEY])
absent:
    call Py_DecRef([frame + KEY])
    jnz kept3, present
    jz kept2, put_back
    set kept2, 0
    call PyThread_get_thread_ident
    move arg0, result
    jmp by_key
present:
    load arg0, [frame + OBJECT]
    jnz arg0, both
    load arg0, [kept3 + TYPE]
    call PyErr_SetObject(arg0, kept3)
    call Py_DecRef(kept3)
    jmp told
both:
    call PyErr_NormalizeException(frame + OBJECT, frame + MADE, frame + NEXT)
    call PyException_SetContext([frame + MADE], kept3)
put_back:
    call PyErr_Restore([frame + OBJECT], [frame + MADE], [frame + NEXT])
told:
    call PyErr_Occurred
    leave 4, FRAME
"""

# A way converts an argument:
#
#     arg0            the object
#     arg1            where to store the word to pass
#     arg2            the offset of its type's row, in the table of the function
#     arg3            of pointers: the address of `next` in the trampoline's frame
#     kept0, kept1    the function, and the arguments of the call, as many as the table says. For
#                     results of callbacks kept0 is a function without arguments, and arg2 is 0
#
# It returns
#     1    converted
#     2    converted, but ctypes would refuse this object or run its code again
#     0    not converted: if no exception is set, the reference decides
#
# At its start, which has no frame, is what an exact int, float, bytes … needs. That destroys only
# `extra`, `spare` and `scratch`. What is rarer goes on at `rare`.
_RARE = """
rare:
    enter 4, FRAME
    move kept2, arg1
    load kept3, [kept0 + TABLE]
    add kept3, arg2
    store arg0, [frame + OBJECT]
    store arg3, [frame + NEXT]
    load arg1, [arg0 + TYPE]
    load arg2, [kept3 + type]
    je arg1, arg2, same
"""
_END = """
same:  # an instance of the parameter's own type
    load arg0, [arg0 + BODY]
    load{width} arg0, [arg0]
    extend arg0, arg0, {size}, {signed}
store_it:
    store arg0, [kept2]
as_it_is:
    set result, 1
    leave 4, FRAME
code_ran:  # it may have closed this function or another one
    load arg0, [kept0 + ENTRY]
    je arg0, CLOSED, refuse
    load arg1, [kept0 + TABLE]
    load arg1, [arg1 + size]
    move arg2, kept1
every_argument:
    jz arg1, not_for_ctypes
    load arg0, [arg2]
    load arg3, [arg0 + TYPE]
    jne arg3, FUNCTION, no_function
    load arg3, [arg0 + ENTRY]
    je arg3, CLOSED, refuse
no_function:
    add arg2, 8
    sub arg1, 1
    jmp every_argument
not_for_ctypes:
    set result, 2
    leave 4, FRAME
failed:  # the reference words its errors better
    call PyErr_ExceptionMatches(REWORDED)
    jz32 result, refuse
    call PyErr_Clear
refuse:
    set result, 0
    leave 4, FRAME
"""
_DONE = """
done:
    store spare, [arg1]
    set result, 1
    ret
"""
# What ways end with that leave all but their start to the reference.
_NO_MORE = """
good:
    set result, 1
    ret
rare:
    set result, 0
    ret
"""
_ONE_DIGIT = {  # the int in arg0 as `spare`, if it has one digit; by _int_layout()
    True: """
    load extra, [arg0 + BODY]  # 8 times the count of digits, and 1 minus the sign
    jae extra, 16, rare
    and extra, 3
    set spare, 1
    sub spare, extra
    load32 extra, [arg0 + DIGITS]; mul spare, extra""",
    False: """
    load spare, [arg0 + BODY]  # the count of digits, with the sign of the value
    lea extra, [spare + 1]
    ja extra, 2, rare
    load32 extra, [arg0 + DIGITS]; mul spare, extra""",
    None: """
    jmp rare"""}
_EXACT_INT = """
    load spare, [arg0 + TYPE]; jne spare, INT, rare{one_digit}"""
_INTEGER = _EXACT_INT + """{in_range}
""" + _DONE + _RARE + """
    set spare, 0
    store spare, [frame + MADE]
    call PyType_GetFlags(arg1)
    jbit result, 24, whole  # Py_TPFLAGS_LONG_SUBCLASS: no code of its runs
    call PyNumber_Index([frame + OBJECT])
    jz result, failed
    store result, [frame + OBJECT]
    store result, [frame + MADE]
whole:
    call {take}([frame + OBJECT])
    store result, [kept2]
    call PyErr_Occurred
    jnz result, unmade
    load arg0, [kept2]
    extend arg1, arg0, {size}, {signed}
    jne arg0, arg1, unmade
    load arg0, [frame + MADE]
    jz arg0, as_it_is
    call Py_DecRef
    jmp code_ran
unmade:
    call Py_DecRef([frame + MADE])  # it takes NULL too
    jmp failed
""" + _END
_EXACT_FLOAT = """
    load spare, [arg0 + TYPE]; jne spare, FLOAT, rare; load spare, [arg0 + BODY]"""
_REAL = _RARE + """
    call PyFloat_AsDouble
    stored f0, [kept2]
    call PyErr_Occurred
    jnz result, failed
    load spare, [kept2]
    add spare, spare  # no sign
    je spare, INFINITE, refuse  # the reference refuses it, if it was finite
"""
# CFUNCTYPE's and pointers' functions: one of ours, unless it is closed, a Memory's, or was never
# made.
_FUNCTION = """
function:
    load arg1, [arg0 + ENTRY]
    jz arg1, refuse
    je arg1, CLOSED, refuse
    load arg1, [arg0 + GATE]
    jnz arg1, refuse
    load arg1, [arg0 + CODE]
    jnz arg1, its_code
    load arg1, [arg0 + TARGET]
its_code:
    store arg1, [kept2]
    jmp not_for_ctypes
"""
_ARRAY = """
array:
    load arg2, [kept3 + item]
    jz arg2, its_place
    call PyObject_GetAttr(arg1, ITEM_ATTRIBUTE)
    jz result, failed
    store result, [frame + MADE]
    call Py_DecRef(result)  # the array's type keeps it
    load arg0, [frame + OBJECT]
    load arg1, [frame + MADE]
    load arg2, [kept3 + item]
    jne arg1, arg2, refuse
its_place:
    load arg0, [arg0 + BODY]
    jmp store_it
"""
_POINTER = _RARE + """
    je arg0, NONE, null
    load arg2, [kept3 + item]  # 0 for void *
    je arg1, arg2, instance
    je arg1, FUNCTION, function
    je arg1, BYREF, byref
    jne arg2, CHAR, any_buffer
    je arg1, BYTES, its_text
any_buffer:
    set arg3, BUFFER_TYPES
next_type:
    load spare, [arg3]
    je arg1, spare, buffer
    add arg3, 8
    jne arg3, BUFFER_TYPES_END, next_type
    load arg3, [arg1 + TYPE]
    je arg3, ARRAY, array
    je arg3, SIMPLE, simple
    jnz arg2, number  # POINTER(T) takes no other pointers
    je arg3, POINTER, same
    je arg3, FUNCTION_TYPE, same
number:
    call PyType_GetFlags(arg1)
    jnobit result, 24, refuse  # Py_TPFLAGS_LONG_SUBCLASS
    call PyLong_AsUnsignedLongLong([frame + OBJECT])
    store result, [kept2]
    call PyErr_Occurred
    jnz result, failed
    jmp not_for_ctypes
null:
    set arg0, 0
    jmp store_it
its_text:
    lea arg0, [arg0 + TEXT]
    jmp store_it
instance:  # of T; ctypes itself takes no c_char and c_wchar
    je arg1, CHAR, character
    jne arg1, WCHAR, its_place
character:
    load arg0, [arg0 + BODY]
    store arg0, [kept2]
    jmp not_for_ctypes
byref:
    load spare, [arg0 + BODY + 8]
    set arg3, KIND_MASK
    and spare, arg3
    jne spare, KIND, refuse  # from_param() makes such objects of numbers
    jz arg2, referred
    load spare, [arg0 + REFERENT]
    jz spare, refuse
    load spare, [spare + TYPE]
    jne spare, arg2, refuse
referred:
    load arg0, [arg0 + BODY + 16]
    jmp store_it
simple:
    je arg1, CHAR_P, characters
    jnz arg2, refuse
    je arg1, WCHAR_P, same
    jmp refuse
characters:
    jz arg2, same
    je arg2, CHAR, same
    jmp refuse
buffer:
    load arg1, [frame + NEXT]
    load arg1, [arg1]
    store arg1, [frame + MADE]
    move arg3, arg2
    set arg2, 0  # PyBUF_SIMPLE
    jz arg3, get_buffer
    set arg2, 13  # PyBUF_WRITABLE, PyBUF_FORMAT, PyBUF_ND
get_buffer:
    call PyObject_GetBuffer
    jnz32 result, failed
    load arg1, [frame + MADE]
    load arg0, [arg1 + buf]
    store arg0, [kept2]
    load arg3, [frame + NEXT]
    lea arg2, [arg1 + BUFFER_SIZE]
    store arg2, [arg3]  # from here on the trampoline releases it
    load arg0, [kept3 + item]
    jz arg0, not_for_ctypes  # no code of the program's runs for these types
    load arg2, [kept3 + size]
    load arg3, [arg1 + itemsize]
    jne arg2, arg3, refuse
    set spare, 66  # B, which is meant by NULL
    load arg0, [arg1 + format]
    load arg2, [kept3 + letters]
    jz arg0, letter
    load8 spare, [arg0]
    je spare, 64, with_order  # @
    je spare, 61, with_order  # =
    jne spare, 60, no_order  # <, the byte order of all that have trampolines
with_order:
    add arg0, 1
    load8 spare, [arg0]
no_order:
    jz spare, refuse
    load8 arg3, [arg0 + 1]
    jz arg3, letter
    jz arg2, not_for_ctypes  # a structure's format is longer than one letter
    jmp refuse
letter:
    extend arg3, arg2, 1, 0
    je arg3, spare, not_for_ctypes
    shr arg2, 8
    jnz arg2, letter
    jmp refuse
""" + _FUNCTION + _ARRAY + _END
# Kinds that ctypes converts: it is given instances of the parameter's type, and these.
_BY_CTYPES = """
    load extra, [kept0 + TABLE]
    add extra, arg2
    load extra, [extra + type]
    load spare, [arg0 + TYPE]
    je spare, extra, good
"""
_LEFT_TO_CTYPES = {
    "Z": """
    je arg0, NONE, good
    jne spare, STR, rare""",
    "g": """
    je spare, FLOAT, good
    jne spare, INT, rare{one_digit}""",
    "j": """
    jne spare, COMPLEX, rare""",
    "c": """
    jne spare, BYTES, rare
    load spare, [arg0 + BODY]  # ob_size
    jne spare, 1, rare""",
    "V": """
    jmp rare"""}
_WAYS = {
    "i": _INTEGER,
    "u": _INTEGER,
    "d": _EXACT_FLOAT + _DONE + _REAL + """
    jmp code_ran
""" + _END,
    "f": """
    load spare, [arg0 + TYPE]
    jne spare, FLOAT, rare
    loadd f0, [arg0 + BODY]
    narrow f0, f0
    storef f0, [arg1]
    load32 spare, [arg1]
    and spare, 0x7fffffff
    je spare, 0x7f800000, rare  # infinite
    set result, 1
    ret
""" + _REAL + """
    loadd f0, [kept2]
    narrow f0, f0
    storef f0, [kept2]
    load32 spare, [kept2]
    and spare, 0x7fffffff
    jne spare, 0x7f800000, code_ran
    jmp refuse
""" + _END,
    "?": """
    set spare, 1
    je arg0, TRUE, done
    set spare, 0
    jne arg0, FALSE, rare
""" + _DONE + _RARE + """
    call PyObject_IsTrue
    extend arg0, result, 4, 1
    store arg0, [kept2]
    jne arg0, -1, code_ran
    jmp failed
""" + _END,
    "z": """
    set spare, 0
    je arg0, NONE, done
    load spare, [arg0 + TYPE]
    jne spare, BYTES, rare
    lea spare, [arg0 + TEXT]
""" + _DONE + _RARE + """
    load arg3, [arg1 + TYPE]
    je arg3, ARRAY, array
    call PyType_GetFlags(arg1)
    jnobit result, 27, refuse  # Py_TPFLAGS_BYTES_SUBCLASS
    load arg0, [frame + OBJECT]
    lea arg0, [arg0 + TEXT]
    jmp store_it
""" + _ARRAY + _END,
    "P": """
    set spare, 0
    je arg0, NONE, done
    load spare, [arg0 + TYPE]
    jne spare, INT, rare{one_digit}
    jbit spare, 63, rare  # it is negative
""" + _DONE + _POINTER,
    "p": _POINTER,
    "F": _RARE + """
    je arg1, FUNCTION, function
    jne arg0, NONE, refuse  # ctypes itself takes no None
    set spare, 0
    store spare, [kept2]
    jmp not_for_ctypes
""" + _FUNCTION + _END,
    "O": """
    load spare, [arg0 + TYPE]
    load spare, [spare + TYPE]
    je spare, SIMPLE, rare  # a py_object, of which the content is passed
    store arg0, [arg1]
""" + _NO_MORE,
    **{kind: _BY_CTYPES + text + _NO_MORE for kind, text in _LEFT_TO_CTYPES.items()}}

# What trampolines have inline for their first arguments, because that is faster by a nanosecond.
_INLINE = {"i4": _EXACT_INT, "i8": _EXACT_INT, "d": _EXACT_FLOAT}


def _simple_kind(type_: _Type) -> str:
    """The kind of one of ctypes' own types: i4 is a signed integer of 4 bytes, u8 an unsigned one
    of 8; j is complex; V is left to ctypes; others have its letter."""
    letter, size = type_._type_, ctypes.sizeof(type_)
    if hasattr(type_, "_check_retval_"):  # HRESULT, whose failures are exceptions
        return "V"
    if letter in _INTEGERS:
        return f"{'u' if letter.isupper() else 'i'}{size}"
    if type_.__name__ in ("c_double_complex", "c_longdouble_complex"):
        return "j"
    return letter if letter in "fd?zPOZgc" else "V"


def _parameter_kind(type_: _Type, own: dict[Any, str]) -> str:
    """The kind of a parameter: a simple one; p for POINTER(T); F for a function pointer; or V: then
    ctypes passes instances of exactly this type."""
    if issubclass(type_, ctypes._Pointer):
        return "p"
    return "F" if issubclass(type_, _FunctionPointer) else own.get(type_, "V")


def _places(kinds: Sequence[str]) -> list[str]:
    """The registers of these arguments, in their order; an empty name is a place on the stack."""
    found, counts = [], {"f": 0, "arg": 0}
    limits = {"f": _processor.vector_arguments, "arg": len(_processor.integers)}
    for position, kind in enumerate(kinds):
        name = "f" if kind in ("f", "d") else "arg"
        number = position if _processor.by_position else counts[name]
        found.append(f"{name}{number}" if number < limits[name] else "")
        counts[name] += 1
    return found


def _are_packed(places: list[str]) -> bool:
    """Whether some are on the stack of Apple's AArch64, where arguments have not 8 bytes each."""
    return "" in places and MACHINE == "aarch64-apple"


# A trampoline from its start to its end. Lines with words and a question mark are for shapes that
# have all these traits, see _Shape.
_TRAMPOLINE = """
    jnz arg3, refer  # keywords
    move spare, arg2
    add spare, spare  # without PY_VECTORCALL_ARGUMENTS_OFFSET, the top bit
    jne spare, {twice}, refer
    enter 2, {frame}
    move kept0, arg0
    move kept1, arg1
guard? call {guard_ready}
guard? jz result, unready
buffers? lea spare, [frame + {buffers}]
buffers? store spare, [frame + {next}]
{arguments}
gated? load arg0, [kept0 + GATE]
gated? increment [arg0 + 8]  # first, because who closes the gate reads this afterwards
gated? load arg1, [arg0]
gated? jz arg1, shut
    lea scratch, [frame + {mark} + MARK]
    store scratch, [frame + {mark}]
nogil? call PyEval_SaveThread
nogil? store result, [frame + {thread}]
{registers}
native? vectors {vectors}
native? call [kept0 + TARGET]
ctypes? call PyObject_VectorcallDict([kept0 + CALLED], kept1, {count}, 0)
    store kept0, [frame + {mark}]
gated? load arg1, [kept0 + GATE]; decrement [arg1 + 8]
between? store result, [frame + {answer}]
between? stored f0, [frame + {double}]
nogil? call PyEval_RestoreThread([frame + {thread}])
guard? call {guard_take}
guard? jnz result, faulted
buffers? call RELEASE(frame + {buffers}, [frame + {next}])
between? load result, [frame + {answer}]
between? loadd f0, [frame + {double}]
raises? jmp look
    set scratch, KEPT
    load scratch, [scratch]
    jnz scratch, look
looked:
{result}{rare}
gated? shut:
gated? load arg0, [kept0 + GATE]; decrement [arg0 + 8]
refused:
buffers? call RELEASE(frame + {buffers}, [frame + {next}])
    call PyErr_Occurred
    jnz result, raised
unready:
    move arg0, kept0
    move arg1, kept1
    unwind 2, {frame}
    set arg2, {count}
    set arg3, 0
refer:
    jump CLOSED
look:
    store result, [frame + {answer}]
    stored f0, [frame + {double}]
    call LOOK(frame + {mark})
    jnz result, told
    load result, [frame + {answer}]
    loadd f0, [frame + {double}]
    jmp looked
told:
object? call Py_DecRef([frame + {answer}])  # which takes NULL too
raised:
    set result, 0
    leave 2, {frame}
guard? faulted:  # what is known of it must be copied before anything else
guard? call PyBytes_FromStringAndSize(result, {guard_size})
guard? store result, [frame + {answer}]
guard buffers? call RELEASE(frame + {buffers}, [frame + {next}])
guard? load arg1, [frame + {answer}]
guard? jz arg1, raised
guard? call PyErr_Clear  # if the code had set an exception before
guard? call ASK({raise_fault}, [frame + {answer}], 2)
guard? call Py_DecRef([frame + {answer}])
guard? call LOOK(frame + {mark})  # a callback's exception becomes the context
guard? jmp raised"""
_WORD_RESULT = """
    extend arg0, result, {size}, {signed}; unwind 2, {frame}; jump {maker}"""
_NONE_RESULT = """
none:
    call Py_IncRef(NONE); set result, NONE; leave 2, {frame}"""
_OR_NONE = """
    jz result, none""" + _WORD_RESULT + _NONE_RESULT
_RESULTS = {  # how a result becomes an object, by the first letter of its kind
    **dict.fromkeys("iu?", _WORD_RESULT), **dict.fromkeys("Pz", _OR_NONE),
    "v": _NONE_RESULT,
    "d": """
    unwind 2, {frame}
    jump PyFloat_FromDouble""",
    "f": """
    widen f0, f0
    unwind 2, {frame}
    jump PyFloat_FromDouble""",
    "V": """
    leave 2, {frame}""",
    "O": """
    jz result, null
    leave 2, {frame}
null:
    call ASK(REFUSE_NULL, 0, 1)
    leave 2, {frame}""",
    "p": """
    store result, [frame + {answer}]
    load arg0, [kept0 + TABLE]
    load arg0, [arg0 + type]
    call PyObject_CallNoArgs
    jz result, raised
    load arg1, [result + BODY]
    load arg2, [frame + {answer}]
    store arg2, [arg1]
    leave 2, {frame}"""}
_MAKERS = {"P": "PyLong_FromVoidPtr", "z": "PyBytes_FromString", "?": "PyBool_FromLong",
           "i": "PyLong_FromLongLong", "u": "PyLong_FromUnsignedLongLong"}


def _kind_parts(kind: str) -> dict[str, Any]:
    """What the texts above name in braces that depends on a kind."""
    size, signed = int(kind[1:] or {"?": 1, "f": 4}.get(kind, 8)), int(kind[0] == "i")
    return {"size": size, "signed": signed, "maker": _MAKERS.get(kind[0]),
            # A digit of 30 bits fits larger types.
            "in_range": "" if kind in ("i4", "i8") else f"""
    extend extra, spare, {min(size, 4)}, {signed}
    jne extra, spare, rare""",
            "width": "" if size == 8 else 8 * size,
            "take": "PyLong_AsLongLong" if signed else "PyLong_AsUnsignedLongLong"}


class _Shape:
    """What a trampoline depends on, and its text."""

    def __init__(self, kinds: tuple[str, ...], result: str, signature: _Signature,
                 gated: bool) -> None:
        self.kinds, self.places = kinds, _places(kinds)
        # ctypes passes what is rare, and keeps errno.
        self.by_ctypes = (result == "V" or signature.flags & _KEEPS_ERRNO != 0
                          or any(kind in _LEFT_TO_CTYPES for kind in kinds))
        self.result = "V" if self.by_ctypes else result
        native, buffers = not self.by_ctypes, kinds.count("P") + kinds.count("p")
        traits = {
            "native": native, "ctypes": self.by_ctypes, "gated": gated, "guard": signature.guard,
            "nogil": signature.nogil and native, "buffers": buffers,
            "raises": native and (signature.objects or signature.flags & _MAY_RAISE),
            "object": self.by_ctypes or result == "O"}
        # Whether something else is called before the result is converted.
        traits["between"] = any(map(traits.get, ("ctypes", "nogil", "guard", "buffers")))
        self.traits = frozenset(name for name, has in traits.items() if has)
        self.key = kinds, self.result, self.traits
        # The frame, as drawn above.
        order = sorted(range(len(kinds)), key=lambda i: self.places[i] != "")
        at = _processor.shadow
        self.slots = {i: at + 8 * number for number, i in enumerate(order)}
        at += 8 * len(kinds)
        self.frame = at + 40 + ctypes.sizeof(_Buffer) * buffers + 15 & -16
        self.fields = {
            "answer": at, "double": at + 8, "thread": at + 16, "mark": at + 24, "next": at + 32,
            "buffers": at + 40, "frame": self.frame, "count": len(kinds), "twice": 2 * len(kinds),
            "vectors": sum(place[:1] == "f" for place in self.places), **_kind_parts(result)}
        # A larger frame might step over the guard page of the stack.
        self.possible = self.frame < 4096
        if self.by_ctypes:
            self.possible &= result != "O" and not gated
        elif _are_packed(self.places):
            self.possible = False

    def text(self, guard: Any) -> str:
        if guard:
            self.fields.update(guard_ready=guard.ready, guard_take=guard.take,
                               guard_size=guard.fault_size, raise_fault=id(_raise_fault))
        self.rare, every, chosen = "", range(len(self.kinds)), _engine().chosen
        if self.traits not in chosen:
            parts = [line.rpartition("? ") for line in _TRAMPOLINE.splitlines()]
            chosen[self.traits] = "\n".join(
                part[2] for part in parts if self.traits.issuperset(part[0].split()))
        arguments = "".join(map(self.argument, every))
        return chosen[self.traits].format(
            **self.fields, arguments=arguments, rare=self.rare,
            registers="" if self.by_ctypes else "".join(map(self.register, every)),
            result=_RESULTS[self.result[0]].format(**self.fields))

    def argument(self, i: int) -> str:
        """Convert an argument. Most of these lines are in other trampolines, too."""
        kind, engine = self.kinds[i], _engine()
        refused = "jne result, 1" if self.by_ctypes else "jz result"
        call = f"\n    call {engine.way(kind)}; {refused}, refused"
        passed = f"\n    load arg0, [kept1 + {8 * i}]; lea arg1, [frame + {self.slots[i]}]"
        passed += f"; set arg2, {ctypes.sizeof(_ParameterRow) * (i + 1)}"
        if kind in ("P", "p"):
            passed += f"; lea arg3, [frame + {self.fields['next']}]"
        if kind not in _INLINE or i >= 8:
            return passed + call
        self.rare += f"\nrare{i}:{call}; jmp next{i}"
        exact = _INLINE[kind].format(one_digit=_ONE_DIGIT[engine.int_layout])
        return passed + exact.replace("rare", f"rare{i}") + f"\n    store spare, [arg1]\nnext{i}:"

    def register(self, i: int) -> str:
        """Load an argument into its register, if it has one."""
        place, kind, where = self.places[i], self.kinds[i], f"[frame + {self.slots[i]}]"
        if place[:1] != "f":
            return f"\n    load {place}, {where}" if place else ""
        # Variadic functions on Windows read it from the other register.
        more = f"; load arg{i}, {where}" if _processor.by_position else ""
        return f"\n    load{kind} {place}, {where}{more}"


class _Entry:
    """A trampoline: where it is, and what keeps it there."""
    __slots__ = ("pages", "address", "__weakref__")

    def __init__(self, pages: _Pages, address: int) -> None:
        self.pages, self.address = pages, address


class _Engine:
    """What all trampolines share. Made with the first function; a forked child has its copy."""

    def __init__(self) -> None:
        self.kept: list[Any] = [_buffer_table]  # what machine code refers to by address
        self.shapes: dict[Any, ref[_Entry]] = {}  # each goes with the last signature that has it
        self.ways: dict[str, int] = {}  # where they are, by kind
        self.chosen: dict[frozenset[str], str] = {}  # a trampoline's lines by traits
        self.int_layout = _int_layout()
        # The kinds of ctypes' own types; _parameter_kind() knows the others.
        self.kinds = {type_: _simple_kind(type_) for type_ in vars(ctypes).values()
                      if isinstance(type_, type) and issubclass(type_, ctypes._SimpleCData)
                      and hasattr(type_, "_type_")}
        self.type = self.function_type()
        self.names = {**_processor.names, **self.layout()}
        self.encoded: dict[str, Any] = {}  # lines of programs with these names
        program = self.assemble(_COMMON)
        start = program.install()
        for label in "closed", "release", "look", "ask":
            self.names[label.upper()] = start + program.labels[label]
        self.type._entry_when_closed = self.names["CLOSED"]
        # A function keeps its type; that keeps what machine code refers to, and its pages.
        self.type._engine, self.pages = self, _process.permanent

    def keep_object(self, value: Any) -> int:
        """The address of a Python object, which is kept from here on."""
        self.kept.append(value)
        return id(value)

    def function_type(self) -> Any:
        """A Function with _WORDS, which the interpreter calls through the first of them."""
        base = Function.__basicsize__
        members = (_PyMemberDef * (len(_WORDS) + 2))()
        # T_PYSSIZET is 19, T_ULONGLONG 18 and READONLY 1 (structmember.h).
        members[0] = _PyMemberDef(b"__vectorcalloffset__", 19, base, 1)
        for i, name in enumerate(_WORDS):
            members[i + 1] = _PyMemberDef(name.encode(), 18, base + 8 * i, 0)
        # Py_tp_members is 72, Py_tp_call 50 (typeslots.h).
        slots = (_PyType_Slot * 3)(_PyType_Slot(72, ctypes.addressof(members)),
                                   _PyType_Slot(50, _api("PyVectorcall_Call")))
        # Py_TPFLAGS_HAVE_VECTORCALL is bit 11.
        spec = _PyType_Spec(f"{__name__}.Function".encode(), base + 8 * len(_WORDS), 0, 1 << 11,
                            ctypes.addressof(slots))
        _python.Py_IncRef((members, slots, spec))  # for good: the type may outlive all that is here
        make = _python.PyType_FromSpecWithBases
        make.restype, make.argtypes = ctypes.py_object, (_void_p, ctypes.py_object)
        type_ = make(ctypes.addressof(spec), (Function,))
        type_.__doc__ = Function.__dict__["__doc__"]
        return type_

    def layout(self) -> dict[str, int]:
        """What programs may name besides registers: sizes, offsets and addresses."""
        header, base, shadow = object.__basicsize__, Function.__basicsize__, _processor.shadow
        names = {"TYPE": header - 8, "BODY": header, "DIGITS": header + 8,
                 "TEXT": bytes.__basicsize__ - 1, "BUFFER_SIZE": ctypes.sizeof(_Buffer),
                 "OBJECT": shadow, "MADE": shadow + 8, "NEXT": shadow + 16, "KEY": shadow + 24,
                 "FRAME": shadow + 48,
                 "INFINITE": 0xFFE0 << 48, "MARK": _MARK, **_ctypes_layout()}
        names.update((name[1:].upper(), base + 8 * i) for i, name in enumerate(_WORDS))
        for structure in (_ParameterRow, _Buffer):
            names.update((field[0], getattr(structure, field[0]).offset)
                         for field in structure._fields_)
        objects = {"NONE": None, "TRUE": True, "FALSE": False, "INT": int, "FLOAT": float,
                   "BYTES": bytes, "STR": str, "COMPLEX": complex, "FUNCTION": self.type,
                   "CHAR_P": ctypes.c_char_p, "WCHAR_P": ctypes.c_wchar_p, "CHAR": ctypes.c_char,
                   "WCHAR": ctypes.c_wchar, "REWORDED": _REWORDED, "KEPT_DICT": _kept,
                   "ITEM_ATTRIBUTE": sys.intern("_type_"), "REFERENCE": Function.__call__,
                   "REFUSE_KEYWORDS": _refuse_keywords, "REFUSE_NULL": _refuse_null}
        names.update((name, self.keep_object(thing)) for name, thing in objects.items())
        names["BUFFER_TYPES"] = ctypes.addressof(_buffer_table)
        names["BUFFER_TYPES_END"] = names["BUFFER_TYPES"] + ctypes.sizeof(_buffer_table)
        names["KEPT"] = names["KEPT_DICT"] + header  # ma_used
        return names

    def assemble(self, text: str) -> _Program:
        program = _Program(self.names)
        program.add(text, self.encoded if _GIL else {})
        return program

    def way(self, kind: str) -> int:
        """The address of the way of a kind."""
        address = self.ways.get(kind)
        if address is None:
            text = _WAYS[kind[0]].replace("{one_digit}", _ONE_DIGIT[self.int_layout])
            address = self.assemble(text.format(**_kind_parts(kind))).install()
            self.ways[kind] = address
        return address


_engines: list[_Engine] = []  # the first one serves, if two threads make one at once


def _engine() -> _Engine:
    if not _engines:
        _engines.append(_Engine())
    return _engines[0]


def _result_kind(type_: _Type, own: dict[Any, str]) -> str:
    """The kind of a result: one that trampolines convert, v for none, or V for all others."""
    if type_ is None:
        return "v"
    if issubclass(type_, ctypes._Pointer) and type_.__mro__[1] is ctypes._Pointer:
        made_by_ctypes = not {"__init__", "__new__", "_check_retval_"} & vars(type_).keys()
        return "p" if made_by_ctypes else "V"
    kind = own.get(type_, "V")
    return "V" if kind in _LEFT_TO_CTYPES else kind


def _rows(signature: _Signature, kinds: Sequence[str]) -> Any:
    """The table of a signature's types."""
    rows = (_ParameterRow * (len(kinds) + 1))()
    rows[0].type, rows[0].size = id(signature.restype), len(kinds)
    for row, type_, kind in zip(rows[1:], signature.argtypes, kinds):
        row.type = id(type_)
        if kind == "z":
            row.item = id(ctypes.c_char)
        elif kind == "p":
            item = type_._type_
            row.item, row.size = id(item), ctypes.sizeof(item)
            if issubclass(item, ctypes._SimpleCData):
                # The letters of its kind of numbers; the reference knows what is left out here.
                letters = next((each for each in _ALIKE if item._type_ in each), item._type_)
                row.letters = int.from_bytes(letters[:8].encode(), "little")
    return rows


def _trampoline(signature: _Signature, gated: bool) -> int:
    """Find or make a trampoline, see _entry_of()."""
    engine = _engine()
    # Only the reference asks types that convert by themselves, and checks the stack's room.
    if signature.large or any(each.ask for _, _, each, _ in signature.parameters):
        return 0
    kinds = tuple(_parameter_kind(type_, engine.kinds) for type_ in signature.argtypes)
    shape = _Shape(kinds, _result_kind(signature.restype, engine.kinds), signature, gated)
    if not shape.possible:
        return 0
    signature.by_ctypes = shape.by_ctypes
    if not signature.tables:
        rows = _rows(signature, kinds)
        signature.tables.append((rows, ctypes.addressof(rows)))
    known = engine.shapes.get(shape.key)
    entry = known() if known else None
    if entry is None:
        program = engine.assemble(shape.text(_guard() if signature.guard else None))
        entry = _Entry(*_load(program.finish(), chunks=_process.heap.permanent))
        if len(engine.shapes) > 2 * _SIGNATURES_KEPT:
            engine.shapes = {key: each for key, each in engine.shapes.items() if each()}
        engine.shapes[shape.key] = ref(entry)
    signature.entries.append(entry)
    return entry.address


def _entry_of(signature: _Signature, gated: bool = False) -> int:
    """The trampoline of a signature; 0 if the reference serves it. Gated: for a Memory's code."""
    if not _TRAMPOLINES:
        return 0
    name = "gated_entry" if gated else "entry"
    if getattr(signature, name) is None:
        setattr(signature, name, _trampoline(signature, gated))
    return getattr(signature, name)  # type: ignore[no-any-return]


def _aim(function: Any, address: int) -> None:
    """Let a function's trampoline call what is at this address."""
    signature, owner = function._signature, function._owner
    function._target = address
    function._table = signature.tables[0][1]
    if address != function._address:
        function._code = function._address
    if owner is not None and hasattr(owner, "_gate"):
        function._gate = ctypes.addressof(owner._gate)
    if signature.by_ctypes:
        call = function._caller = signature.ctypes_function(address, converts=True)
        function._called = id(call)
    if _process.write is None and function._chunk and function._chunk.used > 16 * _LINE:
        _accelerate_loads()  # not before, because it takes a millisecond


def _accelerate_loads() -> None:
    """Let the heap write through machine code, which makes three calls into libc in one."""
    _process.write = lambda *arguments: 0  # until it is made, and where there are no sealed files
    if not any(chunk.file for chunk in _process.heap.permanent):
        return
    program = _assemble("""
    enter 4, 16
    move kept0, arg0  # file
    move kept1, arg1  # mark
    lea kept2, [arg2 + TEXT]  # the bytes of the code
    move kept3, arg3  # size
    store arg4, [frame]  # start
    store arg5, [frame + 8]  # address
    set spare, WITNESS
    load spare, [spare]
    jz spare, failed  # a forked child, whose page of the witness is zero
    call lseek(kept0, 0, SEEK_CUR)
    jne result, kept1, failed
    call pwrite(kept0, kept2, kept3, [frame])
    jne result, kept3, failed
    call memcmp([frame + 8], kept2, kept3)
    jnz32 result, failed
    set result, 1
    leave 4, 16
failed:
    set result, 0
    leave 4, 16
    """, WITNESS=_process.witness, SEEK_CUR=os.SEEK_CUR, TEXT=bytes.__basicsize__ - 1)
    long = ctypes.c_int64
    # The bytes go as an object, because a pointer's way would have to be made for this alone.
    _process.write = bind(program.install(), _int, _int, long, ctypes.py_object, long, long, long,
                          name="write", guard=False)


# ---- Callbacks: Python functions that C can call ----
#
# A callback is a stub in the heap, which jumps to a routine that all callbacks of the same kinds
# share. The routine takes the GIL if its thread has not got it, makes objects of the arguments,
# calls the Python function, and makes C's value of its result, as trampolines do of an argument.
#
# What the function raises belongs to the innermost jitmem call below, which raises it when its code
# has returned. To find that call costs other calls nothing, because the stack is searched upwards
# for the next mark. A trampoline's mark is the call. If there is none, or if a callback's comes
# first, something else has called C, such as ctypes or a thread of C's own.

class _Lease:
    """When this goes, a stub's word, by which it finds its callback, becomes that of a gone one.

    That is after all other finalizers of a cycle have run, see _finalize_last(), because each of
    these may still make C call the callback.
    """
    __slots__ = "word", "gone"

    def __init__(self, word: Any, gone: int) -> None:
        self.word, self.gone = word, gone
        _finalize_last(self)

    def __del__(self) -> None:
        self.word.value = self.gone


class _Callback:
    """The Python side of a callback. Its Function keeps it, and so does a call under way."""
    # Python has these in the order of their names, and clears them so: the lease goes first.
    __slots__ = "a_lease", "argtypes", "function", "name", "pages", "pinned", "restype"

    def __init__(self, function: Any, name: str, restype: _Type, argtypes: Sequence[_Type]) -> None:
        self.function, self.name = function, name
        self.restype, self.argtypes = restype, tuple(argtypes)
        self.pinned: dict[int, Any] = {}  # by thread: what its last result points to
        self.pages: Any = None  # those of the stub
        self.a_lease: Any = None


def _gone(*args: Any) -> None:
    raise ReferenceError("C called a jitmem callback that is gone")


_STUB = """
    address extra, data
    jump [extra + 8]
data:  # the addresses of its word and its routine
"""
_CALLBACK_ROUTINES = """
search:  # the mark of the call below, or 0; 1 if the stack is not from arg0 to arg1
    move arg2, frame
    jb arg2, arg0, elsewhere
    jae arg2, arg1, elsewhere
next_word:
    load extra, [arg2]
    sub extra, arg2
    je extra, MARK, found
    je extra, CALLBACK_MARK, no_call
    add arg2, 8
    jb arg2, arg1, next_word
no_call:
    set arg2, 0
found:
    move result, arg2
    ret
elsewhere:
    set arg0, 1
same:
    move result, arg0
    ret
made_text:
    jz arg0, nothing
    jump PyBytes_FromString
made_address:
    jz arg0, nothing
    jump PyLong_FromVoidPtr
nothing:
    set arg0, NONE
made_object:
    jz arg0, null
    enter 2, FRAME
    move kept0, arg0
    call Py_IncRef
    move result, kept0
    leave 2, FRAME
null:
    set arg0, REFUSE_NULL
    set arg2, 1
    jump ASK
made_pointer:  # of the type in arg1
    enter 2, FRAME
    move kept0, arg0
    call PyObject_CallNoArgs(arg1)
    jz result, no_pointer
    load arg1, [result + BODY]
    store kept0, [arg1]
no_pointer:
    leave 2, FRAME
failed:  # what kept0, a callback, has raised is for the call below
    enter 2, FRAME
    call PyErr_Occurred
    jnz result, is_set  # a Python function without memory may raise nothing
    call ASK(REFUSE_NULL, 0, 1)
is_set:
    call PyErr_Fetch(frame + OBJECT, frame + MADE, frame + NEXT)
    call PyErr_NormalizeException(frame + OBJECT, frame + MADE, frame + NEXT)
    call Py_DecRef([frame + OBJECT])
    load kept1, [frame + MADE]
    load arg1, [frame + NEXT]
    jz arg1, no_traceback
    call PyException_SetTraceback(kept1, arg1)
    call Py_DecRef([frame + NEXT])
no_traceback:
    call ASK(KEY_OF, kept1, 2)
    store result, [frame + OBJECT]
    jnz result, key_found
    call PyErr_ExceptionMatches(NO_ROOM)
    jz32 result, by_thread
    call PyErr_Clear
by_thread:  # what a signal handler has raised stays set: LOOK makes the other its context
    call PyThread_get_thread_ident
    call PyLong_FromVoidPtr(result)
    store result, [frame + OBJECT]
    jz result, lost
key_found:
    load spare, [frame + OBJECT]
    je spare, NONE, unraisable
    call PyDict_SetItem(KEPT_DICT, [frame + OBJECT], kept1)
    jnz32 result, lost
    jmp forget
unraisable:
    load arg0, [kept1 + TYPE]
    call PyErr_SetObject(arg0, kept1)
lost:
    call PyErr_WriteUnraisable([kept0 + ITS_FUNCTION])
forget:
    call Py_DecRef([frame + OBJECT])
    call Py_DecRef(kept1)
    leave 2, FRAME
"""
_CALLBACK = """
    enter 2, {size}
    move kept1, extra{spill}
    set scratch, 0{clear}
    call CURRENT_STATE  # of the thread that has the GIL
    move kept0, result
    jz kept0, attach
    call PyGILState_GetThisThreadState
    jne result, kept0, attach
attached:
    load kept0, [kept1]
    load kept0, [kept0]
    call Py_IncRef(kept0)
    set scratch, KEPT
    load scratch, [scratch]
    jnz scratch, kept
run:
    lea scratch, [frame + {mark} + CALLBACK_MARK]
    store scratch, [frame + {mark}]{convert}
    load arg0, [kept0 + ITS_FUNCTION]
    load spare, [arg0 + TYPE]
    jne spare, PYTHON_FUNCTION, any
    call [arg0 + VECTORCALL](arg0, frame + {objects}, {nargsf}, 0)
called:
    store result, [frame + {value}]
    jz result, raised
    move arg0, result{result}
settled:{drop}
    call Py_DecRef(kept0)
    load arg0, [frame + {state}]
    jz arg0, left
    sub arg0, 2
    call PyGILState_Release
left:
    store kept0, [frame + {mark}]
    {load}, [frame + {answer}]
    leave 2, {size}
attach:
    call Py_IsInitialized
    jz32 result, left
    call PyGILState_Ensure
    add result, 2
    store32 result, [frame + {state}]
    jmp attached
kept:
    call PyErr_Occurred
    jnz result, settled
    call ASK(IS_SUSPENDED, 0, 1)
    store result, [frame + {value}]
    jz result, raised
    je result, TRUE, settled
    call Py_DecRef(result)
    set spare, 0
    store spare, [frame + {value}]
    jmp run
any:
    call PyObject_VectorcallDict(arg0, frame + {objects}, {nargsf}, 0)
    jmp called
inexact:
    call ASK(CONVERT, [frame + {value}], 2)
    store result, [frame + {made}]
    jz result, raised
    call PyLong_AsUnsignedLongLong(result)
    store result, [frame + {answer}]
    call Py_DecRef([frame + {made}])
    jmp settled
raised:  # what is called from here on is not the function's
    store kept0, [frame + {mark}]
    call FAILED
    jmp settled
"""
_OBJECT_OF = {  # how an object is made of the word that C passed; the last one is for integers
    "d": "loadd f0, [frame + {word}]; call PyFloat_FromDouble",
    "f": "loadf f0, [frame + {word}]; widen f0, f0; call PyFloat_FromDouble",
    "z": "call MADE_TEXT([frame + {word}])",
    "P": "call MADE_ADDRESS([frame + {word}])",
    "O": "call MADE_OBJECT([frame + {word}])",
    "p": "load arg1, [kept0 + ITS_TYPES]; call MADE_POINTER([frame + {word}], [arg1 + {type}])",
    "": "load arg0, [frame + {word}]; extend arg0, arg0, {size}, {signed}; call {maker}"}
_WORD_OF = {  # how C's value is made of a result; other kinds take an argument's way
    "v": "",
    "O": """
    store arg0, [frame + {answer}]
    set spare, 0
    store spare, [frame + {value}]  # it is C's now""",
    **dict.fromkeys("zp", """
    jne arg0, NONE, inexact"""),
    "P": """
    je arg0, NONE, settled
    load arg1, [arg0 + TYPE]
    jne arg1, INT, inexact"""}
_BY_WAY = """
    store kept0, [frame + {made}]
    set kept0, NO_ARGUMENTS
    lea arg1, [frame + {answer}]
    set arg2, 0
    call {way}
    load kept0, [frame + {made}]
    jnz result, settled
    set spare, 0
    store spare, [frame + {answer}]
    call PyErr_Occurred
    jnz result, raised
    jmp inexact"""


def _callback_text(result: str, *kinds: str) -> str:
    """The routine of callbacks with a result and arguments of these kinds."""
    # The frame: a word for PY_VECTORCALL_ARGUMENTS_OFFSET, the arguments as objects, a word each
    # with these names, and the words that C passed.
    names = "value", "made", "answer", "state", "mark"
    objects = _processor.shadow + 8
    value = objects + 8 * len(kinds)
    at = {name: value + 8 * i for i, name in enumerate(names)}
    passed = at["mark"] + 8
    stacked = 16 + _processor.shadow  # behind the caller's frame pointer and the return address
    spill = convert = ""
    for i, (kind, place) in enumerate(zip(kinds, _places(kinds))):
        word = passed + 8 * i
        if not place:
            place = "scratch"
            spill += f"\n    load scratch, [base + {stacked}]"
            stacked += 8
        spill += f"\n    store{'d' if place[0] == 'f' else ''} {place}, [frame + {word}]"
        text = _OBJECT_OF.get(kind, _OBJECT_OF[""])
        text = text.format(word=word, type=tuple.__basicsize__ + 8 * i, **_kind_parts(kind))
        convert += f"\n    {text}; store result, [frame + {objects + 8 * i}]; jz result, raised"
    text, way = _WORD_OF.get(result, ""), 0
    if result[0] in "iufd?P":
        text, way = text + _BY_WAY, _engine().way("u8" if result == "P" else result)
    clear = (f"\n    store scratch, [frame + {i}]" for i in range(objects, passed, 8))
    drop = (f"\n    call Py_DecRef([frame + {i}])" for i in range(objects, value + 8, 8))
    return _CALLBACK.format(
        **at, objects=objects, nargsf=len(kinds) | 1 << 63, size=passed + 8 * len(kinds) + 15 & -16,
        spill=spill, clear="".join(clear), convert=convert, result=text.format(way=way, **at),
        drop="".join(drop), load=f"load{result} f0" if result in "fd" else "load result")


class _Callbacks:
    """What all callbacks share. Nothing of it is ever given back; a fork copies it."""

    def __init__(self) -> None:
        word, header = _size_t, object.__basicsize__
        here, first = (_keeping_gil(word)(_api(f"PyInterpreterState_{which}"))()
                       for which in ("Get", "Main"))
        if here != first and sys.version_info < (3, 12):
            raise NotImplementedError("callback() in a subinterpreter needs CPython 3.12 or later: "
                                      "before, PyGILState_Ensure waits for ever there")
        engine = self.engine = _engine()
        self.routines: dict[Any, int] = {}  # their addresses, by kinds
        self.threads = _local()  # `stack`: its ends; `call`: the last that something was kept for
        # It has a type for each argument that there may be.
        self.gone = _Callback(_gone, "", None, [ctypes.POINTER(ctypes.c_char)] * 200)
        # What a way takes for a function without arguments; its table is all zero, as this is.
        self.nobody = (word * 99)()
        self.nobody[engine.names["TABLE"] // 8] = ctypes.addressof(self.nobody)
        unchecked = "PyThreadState_GetUnchecked"  # since 3.13
        if not hasattr(_python, unchecked):
            unchecked = "_PyThreadState_UncheckedGet"
        objects = {"KEY_OF": self.key_of, "IS_SUSPENDED": self.is_suspended,
                   "CONVERT": self.convert, "REFUSE_NULL": self.refuse_null,
                   "PYTHON_FUNCTION": type(callback),
                   "NO_ROOM": (RecursionError, MemoryError, ctypes.ArgumentError)}
        self.names = names = {
            **engine.names, "CALLBACK_MARK": _MARK + 2, "CURRENT_STATE": _api(unchecked),
            "NO_ARGUMENTS": ctypes.addressof(self.nobody),
            "ITS_TYPES": header + 8, "ITS_FUNCTION": header + 16,
            # tp_vectorcall_offset, behind tp_dealloc in a PyTypeObject
            "VECTORCALL": word.from_address(id(type(callback)) + header + 40).value}
        names.update((name, engine.keep_object(thing)) for name, thing in objects.items())
        program = _assemble(_CALLBACK_ROUTINES, **names)
        start = program.install()
        names.update((label.upper(), start + at) for label, at in program.labels.items()
                     if label in ("search", "same", "failed") or label.startswith("made_"))
        self.search = _keeping_gil(word, word, word)(names["SEARCH"])
        self.function_type = _keeping_gil(None)
        self.stub = _assemble(_STUB).finish()
        _process.at_fork.append(self.forked)

    def forked(self) -> None:
        """In a child, which has only the thread that forked."""
        own = getattr(self.threads, "call", None), get_ident()
        for call in list(_kept) if _kept else ():
            if call not in own:
                del _kept[call]

    def routine(self, *types: _Type) -> int:
        """The routine of callbacks with this result and these arguments."""
        kinds = []
        for number, type_ in enumerate(types):
            known = isinstance(type_, type) and _parameter_kind(type_, self.engine.kinds)
            kind = "v" if type_ is None else known or "V"
            if kind[0] not in "viufd?zPpO":
                what = f"{f'argtype {number}' if number else 'restype'} {_type_name(type_)}"
                raise TypeError(f"{what}: callbacks have no such type; CFUNCTYPE may")
            kinds.append(kind)
        # A larger frame might step over the guard page of the stack.
        if len(types) > 201 or _are_packed(_places(kinds[1:])):
            raise NotImplementedError(f"callback(): {len(types) - 1} arguments are too many here")
        key = tuple(kinds)
        if key not in self.routines:
            self.routines[key] = _assemble(_callback_text(*key), **self.names).install()
        return self.routines[key]

    def call_below(self) -> Any:
        """The call that the running callback belongs to, as a key of _kept, or None."""
        frame, ours = sys._getframe(), globals()
        while frame is not None and frame.f_globals is ours:
            if frame.f_code == Function.__call__.__code__:  # or what it was before a reload
                return frame
            frame = frame.f_back  # type: ignore[assignment]
        call = self.search(*getattr(self.threads, "stack", (0, 0)))
        if call == 1:
            self.threads.stack = _stack_bounds()
            call = self.search(*self.threads.stack)
        # A C library may run callbacks on a stack of its own, whose ends are not known.
        return call if call > 1 else None

    def is_suspended(self, callback: _Callback) -> bool:
        """Whether the call below will raise anyway: then no callback runs."""
        return get_ident() in _kept or self.call_below() in _kept

    def key_of(self, callback: _Callback, error: BaseException) -> Any:
        """The call below, for which an exception is to be kept, or None."""
        call = self.call_below()
        if call in _kept:
            error.__context__ = _kept[call]
        if isinstance(call, int):  # a frame would keep what is in it
            self.threads.call = call
        return call

    def refuse_null(self, callback: _Callback) -> None:
        raise SystemError(f"{callback.name}(): NULL in the place of an object")

    def convert(self, callback: _Callback, value: Any) -> int:
        """The bits of a result, by the rules for an argument of its type."""
        parameter, pins = _Parameter(callback.restype, "restype"), list[object]()
        type_ = parameter.type
        if not isinstance(value, type_):
            value = parameter.rule(parameter, value, f"{callback.name}() result", pins)
        if issubclass(type_, (ctypes.c_char_p, _void_p, ctypes._Pointer)):
            callback.pinned[get_ident()] = value, pins
            type_ = _void_p
        same = self.function_type(self.names["SAME"])
        same.restype = type_
        signed = getattr(type_, "_type_", "").islower()
        return int.from_bytes(type_(same(value)), sys.byteorder, signed=signed) & (1 << 64) - 1


_all_callbacks: list[_Callbacks] = []  # the first one serves, if two threads make one at once


def callback(function: Callable[..., Any], restype: _Type, *argtypes: _Type,
             name: str | None = None) -> Function:
    """A C function pointer over a Python function.

    function  what C calls: any callable
    restype   what it returns to C: a ctypes type, or None
    argtypes  what C passes: simple ctypes types, py_object, and POINTER() to anything
    name      for messages and repr; by default the function's

    The Function goes wherever C wants a pointer to a function, and Python may call it, too. It must
    live for as long as C may call it, for example as keep= of the function that does.

    What the function raises, and the error for a wrong result, is raised by the innermost jitmem
    call below as soon as its code has returned. Until then C gets 0, and the call's other callbacks
    return 0 without running. Without such a call, as in a thread that C made or in a call by
    ctypes, sys.unraisablehook gets it. Any thread may call. Text and buffers that are returned as
    pointers live until the next result in the thread.

    Raises TypeError for types that callbacks do not have, NotImplementedError where jitmem has no
    trampolines, and what function() raises where the system refuses memory.
    """
    if not callable(function):
        raise TypeError(f"callback() takes a callable, not {type(function).__name__}")
    name = getattr(function, "__name__", "callback") if name is None else name
    signature = _signature(name, restype, argtypes, False, False)
    if not _TRAMPOLINES:
        raise NotImplementedError(f"callback() is not for {sys.implementation.name} on {MACHINE}; "
                                  "ctypes.CFUNCTYPE has callbacks, without their exceptions")
    if not _all_callbacks:
        _all_callbacks.append(_Callbacks())
    shared = _all_callbacks[0]
    if signature.callback is None:
        signature.callback = shared.routine(restype, *argtypes)
    python = _Callback(function, name, restype, argtypes)
    word = _size_t(id(python))
    python.a_lease = _Lease(word, id(shared.gone))
    stub = shared.stub + struct.pack("QQ", ctypes.addressof(word), signature.callback)
    python.pages, address = _load(stub)
    python.pages.kept.append((word, shared))  # for as long as there is the stub
    made = _make(name, signature, _entry_of(signature), address, len(stub), keep=python)
    _announce("jitmem.load", name, address, len(stub))
    return made


# ---- Guard: a fault in machine code as an exception ----
#
# A guarded function's `_target` is an entry that goes through the thunk. The thunk takes a record,
# notes in it what a caller relies on and what is on the stack above, calls the code, and compares
# when that returns. One handler in machine code gets the process's faults:
#
#     the fault                                           what the handler does
#     in the code of any guarded function, or by a jump   copies what the system says into the
#     from there to where nothing can be executed         record, and goes on at the landing
#     anywhere else                                       hands the signal on to whoever had it
#
# The landing puts everything back, leaves the record in the thread's `fault`, and returns 0. The
# trampoline or the reference finds it there and raises Fault.
#
# Reloaded modules, copies and subinterpreters share one guard in native memory that the process
# keeps. Machine code takes and gives back what a call needs of it, because a signal handler may
# raise between any two bytecodes.

def _marked(text: str) -> str:
    """In red on a terminal that has colours (no-color.org says how a user refuses them)."""
    has_colours = os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
    if has_colours and sys.stdout is not None and sys.stdout.isatty():
        return f"\x1b[31m{text}\x1b[0m"
    return text


def _instruction(code: bytes, offset: int) -> str:
    """The instruction at an offset, if capstone is installed and knows this processor."""
    # CS_ARCH_X86 and CS_MODE_64 or CS_MODE_32, CS_ARCH_AARCH64, CS_ARCH_ARM: the same in all of
    # capstone's versions, while the names have changed.
    kind = {"x86_64": (3, 8), "x86": (3, 4), "aarch64": (1, 0), "arm": (0, 0)}.get(_PROCESSOR)
    if kind is None:
        return ""
    try:
        import importlib
        capstone = importlib.import_module("capstone")
        found = next(capstone.Cs(*kind).disasm(code[offset:offset + 16], offset), None)
    except Exception:  # it is not there, or it is broken, which is not what the user asked about
        return ""
    return f"{found.mnemonic} {found.op_str}".strip() if found else ""


class Fault(Exception):
    """A machine fault in a guarded function; the process goes on.

    what       all this in words; str() puts the function's name before it
    signal     the signal.Signals that the system raised; SIGABRT for code that returned, but has
               changed what its caller relies on
    offset     of the instruction, in bytes from the start of the code that function(), Code() or
               bind() was given; the code's size if the processor ran past its end, and None after
               a jump or a return to somewhere else
    address    the address that could not be accessed or, of other faults, the instruction's; None
               where the system does not say
    registers  the processor's registers, {name: value}, or None
    code       the bytes of the code, or None if it is not known how many they are
    """

    def __init__(self, name: str, what: str, signal: int, offset: int | None = None,
                 address: int | None = None, registers: Any = None,
                 code: bytes | None = None) -> None:
        super().__init__(name, what, signal, offset, address, registers, code)
        self.what, self._signal, self.offset = what, signal, offset
        self.address, self._registers, self.code = address, registers, code

    @property
    def signal(self) -> int:
        try:
            from signal import Signals
        except ImportError:  # at interpreter exit, if nobody has imported it before
            return self._signal
        return Signals(self._signal)

    @property
    def registers(self) -> dict[str, int] | None:
        # From names and values, which cost a fault less than a dict.
        return dict(zip(*self._registers)) if self._registers else None

    def __str__(self) -> str:
        return f"{self.args[0]}(): {self.what}"

    def report(self) -> str:
        """What `python -m jitmem run` prints: what happened, the code, and the registers."""
        lines, code, mark = [_marked(self.what)], self.code, self.offset
        if code:
            shown = [f"{byte:02x}" for byte in code] + ["  "]
            row_of_mark, instruction = (mark or 0) // 16 * 16, ""
            if mark is not None:
                shown[mark] = _marked(f"[{shown[mark].strip() or 'end'}]")
                instruction = _instruction(code, mark)
            first = max(0, row_of_mark - 48)
            lines.append("")
            for at in range(first, min(len(shown), first + 112), 16):
                line = f"  {at:04x}  {' '.join(shown[at:at + 16]).rstrip()}"
                lines.append(f"{line}        {instruction if at == row_of_mark else ''}".rstrip())
        registers = self.registers
        if registers:
            names = [name for name in "rip pc rsp sp".split() if name in registers]
            names += [name for name in registers if name not in names]
            cells = [f"  {name:6} {registers[name]:<#18x}" for name in names]
            lines.append("")
            lines += ["".join(cells[i:i + 3]).rstrip() for i in range(0, len(cells), 3)]
        return "\n".join(lines)


_GUARD_MARK = 0x32_6472_6175_676A  # "jguard2": a new one when what copies share changes
_PUT_BACK = 8 << 10  # bytes of the stack above a call that are put back after a fault
_RECORDS = 8  # calls within calls that a thread gets memory for at once


def _words(names: str) -> list[tuple[str, Any]]:
    """Fields of 64 bits for a structure; "name:count" is an array of them."""
    fields: list[tuple[str, Any]] = []
    for name in [] if MACHINE.startswith("wasm") else names.split():
        name, _, count = name.partition(":")
        fields.append((name, ctypes.c_uint64 * int(count) if count else ctypes.c_uint64))
    return fields


class _Shared(ctypes.Structure):
    """What the process has once: two lists, signals' handlers, and addresses of routines."""
    _fields_ = _words("threads functions key sigsegv sigint timer no_stack:3"
                      " thunk ready take pointer swap release returned handler")


class _Thread(ctypes.Structure):
    """What a thread has. It stands behind the thread's stack for signal handlers."""
    _fields_ = _words("next busy self stack low top current free fault serial")


class _Described(ctypes.Structure):
    """A guarded function."""
    _fields_ = _words("size next start target frame x87 origin name")


class _Found(ctypes.Structure):
    """What is found out about a call. Its caller relies on what is in `expected`."""
    _fields_ = _words("expected:36 found:36 signal code address caller context:128")


class _Record(_Found):
    """A call under way."""
    _fields_ = _words("environment:64 function thread next outer stub back end unused saved:36"
                      f" copy:{_PUT_BACK // 8}")


class _Action(ctypes.Structure):
    """struct sigaction, which Linux's C libraries have in common, and Apple's."""
    _fields_ = [*_words("sa_sigaction sa_mask:16"), ("sa_flags", ctypes.c_int),
                ("sa_restorer", ctypes.c_uint64)]
    if sys.platform == "darwin":
        _fields_ = [_fields_[0], ("sa_mask", ctypes.c_uint32), ("sa_flags", ctypes.c_int)]


class _SignalStack(ctypes.Structure):
    """stack_t"""
    _fields_ = [*_words("ss_sp"), ("ss_flags", ctypes.c_int), *_words("ss_size")]
    if sys.platform == "darwin":
        _fields_ = [_fields_[0], _fields_[2], _fields_[1]]


# A processor's part of the guard: `names` of registers in the program, and in the kernel's context;
# `words`, what a caller relies on besides registers that a call preserves; `context`, the registers
# in Linux's order, with its offset and theirs in `start`; `parts`, which the program has in braces.

class _X86_64Part:
    names = {"record": "r11", "t": "r10", "b": "r8", "c": "r9"}
    kernel = {"U.sp": "rsp", "U.pc": "rip", "U.flags": "rflags", "U.record": "r11"}
    words = ["the stack pointer", "the thread pointer", "MXCSR", "the x87 control word",
             "the x87 stack", "the direction flag", "the alignment check flag"]
    preserved = "rbp rbx r12 r13 r14 r15".split()
    if sys.platform == "win32":
        preserved += ["rdi", "rsi", *(f"xmm{i}" for i in range(6, 16))]
    context = "r8 r9 r10 r11 r12 r13 r14 r15 rdi rsi rbp rbx rdx rax rcx rsp rip rflags"
    start, first, flags = 40, 0, 0x202  # EFLAGS
    parts = {
        # mov r10, gs:[0]; gs:[0x30]; fs:[0]
        "pointer": {"darwin": "hex 65 4c8b1425 00000000", "win32": "hex 65 4c8b1425 30000000"}
                   .get(sys.platform, "hex 64 4c8b1425 00000000"),
        "spill": "hex 4150 4151", "unspill": "hex 4159 4158",  # push and pop r8 and r9
        "clean": "hex 6802020000 9d",  # push 0x202; popfq: neither DF nor TF nor AC
        # rep movsq, with registers that arguments may be in
        "copy": """
    move kept2, rdi
    move kept3, rsi
    move r15, rcx
    lea rdi, [record + R.copy]
    lea rsi, [frame]
    move rcx, kept1
    hex f348a5
    move rdi, kept2
    move rsi, kept3
    move rcx, r15""",
        "return": "hex 415a; store t, [record + R.back]",  # pop r10
        "code": "load record, [record + R.stub]; hex 4153; jump t",  # push r11
        "back": "load record, [record + R.back]; jump record",
        # lock cmpxchg [arg0], arg2
        "swap": "move rax, arg1; hex " + ("f04c0fb101" if sys.platform == "win32"
                                          else "f0480fb117"),
        "base": "hex f3490faec2",  # rdfsbase r10
        "set_base": "load t, [record + R.expected + 8]; hex f3490faed2",  # wrfsbase r10
        # fxsave64 [r10]: MXCSR without what has happened; x87's control word, and which of its
        # registers are in use, as one is for a long double
        "modes": """
    lea t, [record + R.environment]
    hex 490fae02
    load32 t, [record + R.environment + 24]
    and t, 0xffc0
    store t, [record + R.found + 16]
    load16 t, [record + R.environment]
    store t, [record + R.found + 24]
    load kept0, [record + R.function]
    load kept0, [kept0 + D.x87]
    load8 t, [record + R.environment + 4]
    or t, kept0
    store t, [record + R.found + 32]""",
        "flags": """
    hex 9c 415a  # pushfq; pop r10
    move kept0, t
    and t, 0x400
    store t, [record + R.found + 40]
    and kept0, 0x40000
    store kept0, [record + R.found + 48]""",
        # fninit; fldcw [r10]; ldmxcsr [r10]
        "restore": "hex dbe3; lea t, [record + R.expected + 24]; hex 41d92a\n"
                   "lea t, [record + R.expected + 16]; hex 410fae12",
        "returns_to": "load arg1, [kept1 + U.sp]; load arg0, [kept3 + T.low]\n"
                      "jb arg1, arg0, elsewhere; load arg0, [kept3 + T.top]\n"
                      "jae arg1, arg0, elsewhere; load arg0, [arg1]",
        # By ret, whose target is still below the stack pointer: ours if the code has called nobody,
        # as then its own addresses are nowhere on the stack.
        "unbalanced": """
    load arg1, [arg0 - 8]
    load arg2, [kept1 + U.pc]
    jne arg1, arg2, elsewhere
    move kept3, arg0
scan:
    load arg0, [kept2 + R.expected]
    lea arg0, [arg0 - 8]
    jae kept3, arg0, ours
    load arg0, [kept3]
    lea kept3, [kept3 + 8]
    address spare, covered
    call spare
    jz result, scan""",
        # A call is e8 and 4 bytes, or ff, with 2 in the middle of the next byte, and up to 5 more.
        "call_before": """
    set arg1, 2
length:
    move result, arg0
    sub result, arg1
    load8 arg2, [result]
    load8 arg3, [result + 1]
    jne arg2, 0xe8, indirect
    je arg1, 5, call_found
indirect:
    jne arg2, 0xff, longer
    and arg3, 0x38
    je arg3, 0x10, call_found
longer:
    lea arg1, [arg1 + 1]
    jbe arg1, 7, length
    set result, 0
call_found:
    ret""",
        "called": "", "alignment": "jnobit kept3, 3, misaligned",  # of where it returns to
    }

    @staticmethod
    def written(context: Any) -> int | None:
        """Whether a page fault was a write, by bit 1 of its error code; None if nothing says so."""
        return int(context[19]) & 2


class _AArch64Part:
    names = {"record": "x15", "t": "x9", "b": "x10", "c": "x11"}
    kernel = {"U.sp": "sp", "U.pc": "pc", "U.flags": "pstate", "U.record": "x15", "U.link": "x30"}
    words = ["the stack pointer", "the thread pointer", "FPCR"]
    preserved = ["x29", *(f"x{i}" for i in range(19, 29)), *(f"v{i}" for i in range(8, 16))]
    context = " ".join(f"x{i}" for i in range(31)) + " sp pc pstate"
    start, first, flags = 176, 8, 0
    parts = {
        # mrs x9, tpidr_el0; or tpidrro_el0 and x9, x9, ~7: older systems of Apple's have the number
        # of the processor there
        "pointer": "hex 69d03bd5 29f17d92" if sys.platform == "darwin" else "hex 49d03bd5",
        "spill": "move x12, x30", "unspill": "move x30, x12",
        "clean": "",  # code without privilege can change little of PSTATE
        # ldr q16, [x10], 16; str q16, [x9], 16; subs x20, x20, 2; b.hi -12
        "copy": "lea x9, [record + R.copy]; lea x10, [frame]\n"
                "hex 5005c13c 3005813c 940a00f1 a8ffff54",
        "return": "store x30, [record + R.back]",
        "code": "load x30, [record + R.stub]; jump t",
        "back": "load x30, [record + R.back]; ret",
        # ldaxr x3, [x0]; cmp x3, x1; b.ne 12; stlxr w4, x2, [x0]; cbnz w4, -16; mov x0, x3
        "swap": "hex 03fc5fc8 7f0001eb 61000054 02fc04c8 84ffff35 e00303aa",
        "base": "hex 49d03bd5",
        "set_base": "load t, [record + R.expected + 8]; hex 49d01bd5",  # msr tpidr_el0, x9
        "modes": "hex 09443bd5; store t, [record + R.found + 16]",  # mrs x9, fpcr
        "flags": "",
        "restore": "load t, [record + R.expected + 16]; hex 09441bd5",  # msr fpcr, x9
        "returns_to": "load arg0, [kept1 + U.link]",
        "unbalanced": "",
        "call_before": "lea result, [arg0 - 4]; ret",
        "called": "load kept0, [kept1 + U.link]; move arg0, kept0\n"
                  "address spare, covered; call spare; jnz result, called",
        "alignment": "",
    }

    @staticmethod
    def written(context: Any) -> int | None:
        """The same by WnR, bit 6 of ESR_EL1. Its record has ESR_MAGIC and a size of 16."""
        _, record, rest = bytes(context).partition(struct.pack("<II", 0x45535201, 16))
        return rest[0] & 1 << 6 if record else None


_GUARD_PROGRAM = """
thunk:  # `record` is the function's description
    {spill}
    address t, mine
    call t
    jz c, unguarded
    load t, [c + T.free]
    jz t, unguarded
    load b, [t + R.next]
    store b, [c + T.free]
    load b, [c + T.current]
    store b, [t + R.outer]
    store t, [c + T.current]
    store record, [t + R.function]
    move record, t
    {unspill}
    {return}
    {store_saved}
    {store_first}
    {base}
    store t, [record + R.expected + 8]
    {expected_modes}
    # Copy the stack above, up to its end or, if that is not known, to the page's end.
    lea kept2, [frame]
    store kept2, [record + R.expected]
    load kept0, [record + R.thread]
    load kept1, [kept0 + T.top]
    load kept0, [kept0 + T.low]
    jb kept2, kept0, unknown
    jb kept2, kept1, known
unknown:
    move kept1, kept2
    or kept1, PAGE
    lea kept1, [kept1 + 1]
known:
    lea kept0, [kept2 + PUT_BACK]
    jbe kept1, kept0, fits
    move kept1, kept0
fits:
    store kept1, [record + R.end]
    sub kept1, kept2
    shr kept1, 3
    {copy}
    # Registers hold marks during the call, because code that clears one is wrong even if it was 0;
    # but not the first, by which debuggers find frames.
    {load_marks}
    load t, [record + R.function]
    load t, [t + D.target]
    {code}
unguarded:  # who calls this has not asked ready()
    {unspill}
    load t, [record + D.target]
    jump t

returned:  # the code returns to its record's stub, which sets `record` and jumps here
    lea t, [frame]
    store t, [record + R.found]
    load t, [record + R.expected]
    lea frame, [t]
    {base}
    store t, [record + R.found + 8]
    {store_found}
    {flags}
    {modes}
    lea kept0, [record + R.expected]
    lea kept1, [kept0 + WORDS]
compare:
    load kept2, [kept0]
    load kept3, [kept0 + AREA]
    jne kept2, kept3, damaged
    lea kept0, [kept0 + 8]
    jb kept0, kept1, compare
    # Its caller's frame is above the arguments on the stack, and must not have changed.
    load kept0, [record + R.function]
    load kept0, [kept0 + D.frame]
    jbit kept0, 63, well
    lea kept1, [record + R.copy]
    add kept1, kept0
    lea kept2, [kept1 + 256]
    load kept3, [record + R.expected]
    add kept0, kept3
    load kept3, [record + R.end]
    lea kept3, [kept3 - 256]
    jb kept3, kept0, well
same_frame:
    load t, [kept0]
    load kept3, [kept1]
    jne t, kept3, damaged
    lea kept0, [kept0 + 8]
    lea kept1, [kept1 + 8]
    jb kept1, kept2, same_frame
well:  # forget an inner call's fault that an interrupt has kept Python from taking
    load kept0, [record + R.thread]
    set kept1, 0
    store kept1, [kept0 + T.fault]
    jmp leave
damaged:
    set t, SIGABRT
    store t, [record + R.signal]

landing:  # the handler sends the thread here
    {clean}
    # Put the stack back as far as it was overwritten, but not the thread's variables that may be
    # at its end: stop after 128 words that are as they were. A word like the one before it does not
    # count, as memory of zeros may be overwritten with zeros.
    load kept0, [record + R.expected]
    lea kept1, [record + R.copy]
    load kept2, [record + R.end]
    set arg2, 0
    set arg3, 0
    jmp more
put_back:
    load arg0, [kept0]
    load arg1, [kept1]
    je arg0, arg1, same
    store arg1, [kept0]
    set arg2, 0
same:
    je arg0, arg3, counted
    lea arg2, [arg2 + 1]
counted:
    move arg3, arg0
    lea kept0, [kept0 + 8]
    lea kept1, [kept1 + 8]
    jae arg2, 128, put
more:
    jb kept0, kept2, put_back
put:
    {restore}
    {set_base}
    load kept0, [record + R.thread]
    store record, [kept0 + T.fault]
    set result, 0
leave:
    load kept1, [record + R.outer]
    store kept1, [kept0 + T.current]
    load kept1, [kept0 + T.free]
    store kept1, [record + R.next]
    store record, [kept0 + T.free]
    {load_saved}
    {back}

mine:  # this thread's _Thread, or 0, in c
    {pointer}
    set c, S.threads
    load c, [c]
look:
    jz c, looked
    load b, [c + T.self]
    je t, b, looked
    load c, [c + T.next]
    jmp look
looked:
    ret
take:  # take(): the record of this thread's fault, or 0
    enter 0, 16
    address t, mine
    call t
    move result, c
    jz c, taken
    load result, [c + T.fault]
    set b, 0
    store b, [c + T.fault]
taken:
    leave 0, 16
ready:  # ready(): whether this thread can make a guarded call
    enter 0, 256
    address t, mine
    call t
    jz c, unready
    set b, 0
    store b, [c + T.fault]  # see `well`
    load b, [c + T.free]
    jz b, unready
    {handlers}
    set result, 1
    leave 0, 256
unready:
    set result, 0
    leave 0, 256
pointer:  # pointer(): the thread pointer
    {pointer}
    move result, t
    ret
swap:  # swap(address, old, new): what was there. If that was old, it is new now
    {swap}
    ret
release:  # release(thread), when it has ended
    enter 2, 32
    move kept0, arg0
    {no_stack}
    set arg1, 0
    store arg1, [kept0 + T.self]
    store arg1, [kept0 + T.busy]
    leave 2, 32

ours_at:  # whether the address in arg0 is covered, or where the call returns to
    load arg1, [kept2 + R.stub]
    je arg0, arg1, no  # with a result that is not 0
covered:  # the description of the function that the address in arg0 is in, or 0
    set arg1, S.functions
    load arg1, [arg1]
each:
    jz arg1, no
    load arg2, [arg1 + D.start]
    load arg3, [arg1 + D.size]
    move spare, arg0
    sub spare, arg2
    jb spare, arg3, no
    load arg1, [arg1 + D.next]
    jmp each
no:
    move result, arg1
    ret
call_before:  # the call that returns to the address in arg0, or 0
    {call_before}

handler:  # handler(signo, siginfo_t *, ucontext_t *, whom to hand the signal on to)
    enter 4, 320
    {clean}
    store arg0, [frame + 32]
    store arg1, [frame + 40]
    store arg2, [frame + 48]
    store arg3, [frame + 56]
    set kept2, 0
    {context}
    set kept3, S.threads
    load kept3, [kept3]
search:  # by the handler's stack, because the code may have lost the thread pointer
    jz kept3, by_pointer
    lea arg0, [frame]
    load arg1, [kept3 + T.stack]
    sub arg0, arg1
    jb arg0, ROOM, thread
    load kept3, [kept3 + T.next]
    jmp search
by_pointer:  # a handler without SA_ONSTACK may have handed on to this one
    address t, mine
    call t
    jz c, elsewhere
    move kept3, c
thread:
    load kept2, [kept3 + T.current]
    jz kept2, elsewhere
    {sent}
    load arg0, [kept1 + U.pc]
    address spare, ours_at
    call spare
    jnz result, ours
    # If nothing can be executed there: ours if the code has called it, or has left its frame.
    load arg0, [kept0 + SI.address]
    load arg1, [kept1 + U.pc]
    jne arg0, arg1, elsewhere
    load32 arg0, [frame + 32]
    je arg0, SIGSEGV, wild
    jne arg0, SIGBUS, elsewhere
wild:
    {returns_to}
    store arg0, [kept2 + R.caller]
    address spare, ours_at
    call spare
    jnz result, has_called
    load arg0, [kept1 + U.sp]
    load arg1, [kept2 + R.expected]
    jae arg0, arg1, ours
    {unbalanced}
    jmp elsewhere
has_called:
    load arg0, [kept2 + R.caller]
    address spare, call_before
    call spare
    store result, [kept2 + R.caller]
ours:
    load32 arg0, [frame + 32]
    store arg0, [kept2 + R.signal]
    load32 arg0, [kept0 + SI.code]
    store arg0, [kept2 + R.code]
    load arg0, [kept0 + SI.address]
    store arg0, [kept2 + R.address]
    move arg0, kept1
    lea arg1, [kept2 + R.context]
    lea arg2, [kept1 + 1024]
copy:
    load arg3, [arg0]
    store arg3, [arg1]
    lea arg0, [arg0 + 8]
    lea arg1, [arg1 + 8]
    jb arg0, arg2, copy
    load arg0, [kept2 + R.expected]
    store arg0, [kept1 + U.sp]
    address arg0, landing
    store arg0, [kept1 + U.pc]
    set arg0, FLAGS
    store32 arg0, [kept1 + U.flags]
    store kept2, [kept1 + U.record]
    set result, HANDLED
    leave 4, 320
elsewhere:
    {hand_on}
"""


# What a fault is about, by its signal, or by that and si_code; on Windows by ExceptionCode.
_DIVISION = "integer division by zero or overflow"
_FAULTS: dict[Any, str] = {
    "SIGSEGV": "general protection fault", "SIGBUS": "bus error", "SIGILL": "illegal instruction",
    "SIGFPE": "floating-point exception", "SIGTRAP": "breakpoint", "SIGINT": "interrupted",
    ("SIGBUS", 1): "misaligned access",  # BUS_ADRALN
    ("SIGFPE", 1): _DIVISION, ("SIGFPE", 2): _DIVISION,  # FPE_INTDIV, FPE_INTOVF
    ("SIGTRAP", 2): "single step (the trap flag was set)",  # TRAP_TRACE
    0xC0000005: "SIGSEGV general protection fault", 0xC00000FD: "SIGSEGV stack overflow",
    0x80000002: "SIGSEGV misaligned access", 0xC0000096: "SIGILL privileged instruction",
    0xC000001D: "SIGILL illegal instruction", 0x80000003: "SIGILL breakpoint",
    0x80000004: "SIGILL single step (the trap flag was set)",
    0xC0000094: "SIGFPE " + _DIVISION, 0xC0000095: "SIGFPE " + _DIVISION,
}
# What is by signals, on Linux and macOS. What is Apple's is from its headers, and was never run.
_BLAME = "jitmem: %s(): a fault in code that it called "
_BY_SIGNALS = {
    # si_code is from 1 to 0xfff if an instruction raised the signal, and nobody sent it.
    "sent": "load32 arg0, [kept0 + SI.code]; lea arg0, [arg0 - 1]; jae arg0, 0xfff, sent",
    "no_stack": "call sigaltstack(S.no_stack, 0)",
    "handlers": "\n".join(f"""
    call sigaction({name.upper()}, 0, frame + 32)
    load b, [frame + 32]; set c, S.{name}; load c, [c]; jne b, c, unready"""
                          for name in ("sigsegv", "sigint")),
    "arguments": "load32 arg0, [frame + 32]; load arg1, [frame + 40]; load arg2, [frame + 48]\n"
                 "load scratch, [frame + 56]",
    "hand_on": """
    {arguments}
    jz scratch, default  # SIG_DFL
    je scratch, 1, ignored  # SIG_IGN
    unwind 4, 320
    jump scratch
ignored:  # which does not hold for faults
    load32 arg0, [kept0 + SI.code]
    lea arg0, [arg0 - 1]
    jae arg0, 0xfff, handled
default:  # say on stderr who called the code that faults, unless kill() has sent the signal
    jz kept2, die
    load32 arg0, [kept0 + SI.code]
    jz arg0, die
    load kept3, [kept2 + R.expected]
    load kept2, [kept2 + R.function]
    {called}
seek:  # the outermost return into guarded code
    lea kept3, [kept3 - 8]
    load arg0, [kept1 + U.sp]
    jb kept3, arg0, jumped
    load kept0, [kept3]
    move arg0, kept0
    address spare, covered
    call spare
    jz result, seek
called:
    move kept2, result
    move arg0, kept0
    address spare, call_before
    call spare
    load arg4, [kept2 + D.origin]
    sub result, arg4
    move arg4, result
    address arg2, at_offset
    {alignment}
    jmp say
misaligned:
    address arg2, by_misaligned_call
    jmp say
jumped:
    address arg2, by_last_jump
say:  # Apple passes what belongs to a format on the stack
    load arg3, [kept2 + D.name]
    store arg3, [frame]
    store arg4, [frame + 8]
    call snprintf(frame + 64, 256, arg2, arg3)
    move arg2, result
    call write(2, frame + 64, arg2)
die:
    call signal([frame + 32], 0)
    call raise([frame + 32])  # it is blocked until this handler has returned
handled:
    leave 4, 320

sent:  # SIGINT, or the timer of a call
    load32 arg0, [frame + 32]
    je arg0, SIGINT, stop
    set arg1, S.timer
    load arg1, [arg1]
    jne arg0, arg1, elsewhere
    load arg0, [kept0 + 24]
    load arg1, [kept3 + T.serial]
    jne arg0, arg1, elsewhere
stop:
    load arg0, [kept1 + U.pc]
    address spare, ours_at
    call spare
    jz result, elsewhere
    {arguments}
    jbe scratch, 1, ours
    call scratch  # first whoever had it
    jmp ours
""" + "\n".join(f"{label}: \n hex {(_BLAME + text).encode().ljust(128, bytes(1)).hex()}"
                for label, text in {
                    "at_offset": "at offset %ld\n", "by_last_jump": "by its last jump\n",
                    "by_misaligned_call": "with a stack that is no multiple of 16, at offset %ld\n",
                }.items()),
}


def _forever(thing: Any) -> Any:
    """Keep an object, also when this module is reloaded or its interpreter ends."""
    if _python:
        _python.Py_IncRef(thing)
    else:
        _process.permanent.append(thing)
    return thing


class _Place:
    """The words of a description. They are free again once this goes, which like a _Lease it does
    after all other finalizers of a cycle, because these may still call the function."""
    __slots__ = "words", "free"

    def __init__(self, words: Any, free: list[Any]) -> None:
        self.words, self.free = words, free
        _finalize_last(self)

    def __del__(self) -> None:
        self.words[0] = 0
        self.free.append(self.words)


_GUARD_PARTS: dict[str, Any] = {"x86_64": _X86_64Part, "aarch64": _AArch64Part}


class _Guard:
    """The guard of this process, as this copy of the module sees it."""
    fault_size = ctypes.sizeof(_Found)

    def __init__(self) -> None:
        import _signal  # type: ignore[import-not-found]
        self.signal: Any = _signal
        self.own: Any = _GUARD_PARTS[_PROCESSOR]
        self.words = [*self.own.words]  # what a caller relies on, as in `expected`
        for name in self.own.preserved:
            self.words += [name] * (2 if name[:3] == "xmm" else 1)
        self.handlers: dict[int, int] = {}  # ours, by whom they hand on to
        self.places: list[Any] = []  # for descriptions
        self.set_up()
        self.last = self.first + 8 * len(self.registers)
        self.pc, self.sp = (self.registers.index(self.own.kernel[name])
                            for name in ("U.pc", "U.sp"))
        shared = self.shared = _Shared.from_address(self.find() or self.make())
        self.ready, self.take = shared.ready, shared.take  # for trampolines
        word = ctypes.c_uint64
        self.is_ready, self.take_fault, self.pointer = map(
            _keeping_gil(word), (shared.ready, shared.take, shared.pointer))
        self.swap = _keeping_gil(word, word, word, word)(shared.swap)
        self.take_signals()
        _process.at_fork.append(self.forked)
        if _TRAMPOLINES:
            _forever(_raise_fault)  # they know its address

    def make(self) -> int:
        """Assemble the program. Returns the address of its _Shared."""
        address = int(_forever(_Pages(ctypes.sizeof(_Shared))).address)
        shared = _Shared.from_address(address)
        first, *others = self.own.preserved
        parts = {**self.own.parts, **self.parts,
                 "expected_modes": self.own.parts["modes"].replace("R.found", "R.expected"),
                 "store_saved": self.moved("store", "saved", first, *others),
                 "store_first": self.moved("store", "expected", first),
                 "store_found": self.moved("store", "found", first, *others),
                 "load_marks": self.moved("load", "expected", *others),
                 "load_saved": self.moved("load", "saved", first, *others)}
        text = _GUARD_PROGRAM
        while "{" in text:
            text = text.format(**parts)
        program = _assemble(text, **self.program_names(address))
        start = self.load(program.finish())
        for name, offset in program.labels.items():
            if hasattr(shared, name):
                setattr(shared, name, start + offset)
        self.install(shared)
        return address

    def moved(self, operation: str, array: str, *registers: str) -> str:
        """Move registers to an array of a record, or from it."""
        lines = []
        for name in registers:
            kind = {"xmm": "v", "v": "d"}.get(name.rstrip("0123456789"), "")
            register = f"f{name.strip('xmv')}" if kind else name
            place = f"R.{array} + {8 * self.words.index(name)}"
            lines.append(f"{operation}{kind} {register}, [record + {place}]")
        return "\n".join(lines)

    def program_names(self, shared: int) -> dict[str, int]:
        names = {"PAGE": mmap.PAGESIZE - 1, "ROOM": self.room, "PUT_BACK": _PUT_BACK,
                 "AREA": _Found.found.offset, "WORDS": 8 * len(self.words),
                 "SIGABRT": self.signal.SIGABRT, "FLAGS": self.own.flags, **self.names}
        for name, register in self.own.kernel.items():
            if register in self.registers:
                names[name] = self.first + 8 * self.registers.index(register)
        for name, register in self.own.names.items():
            names[name] = _processor.names[register]
        # Of a field the offset, but of _Shared the address.
        for letter, layout, start in (("S", _Shared, shared), ("T", _Thread, 0),
                                      ("D", _Described, 0), ("R", _Record, 0)):
            for field in dir(layout):
                if hasattr(getattr(layout, field), "offset"):
                    names[f"{letter}.{field}"] = start + getattr(layout, field).offset
        return names

    def load(self, code: bytes) -> int:
        """The address of this code, which the process keeps."""
        pages, address = _load(code, chunks=_process.heap.permanent)
        _forever(pages)
        return address

    def entry(self, name: str, value: int, address: int) -> bytes:
        """Code that sets a register of the program's and jumps to an address."""
        register, t = self.own.names.get(name, name), self.own.names["t"]
        text = f"set {register}, VALUE\n set {t}, ADDRESS\n jump {t}"
        return _assemble(text, VALUE=value, ADDRESS=address).finish()

    def push(self, name: str, item: Any) -> None:
        """Put a structure at the head of a list that others may be changing."""
        place = ctypes.addressof(self.shared) + getattr(_Shared, name).offset
        item.next = getattr(self.shared, name)
        while self.swap(place, item.next, ctypes.addressof(item)) != item.next:
            item.next = getattr(self.shared, name)

    def threads(self) -> list[_Thread]:
        found, address = [], self.shared.threads
        while address:
            found.append(_Thread.from_address(address))
            address = found[-1].next
        return found

    def thread(self) -> _Thread | None:
        """This thread's."""
        pointer = self.pointer()
        return next((each for each in self.threads() if each.self == pointer), None)

    def prepare(self, name: str) -> _Thread:
        """Make this thread ready for a call of a guarded function of this name."""
        thread = self.thread() or self.add_thread(name)
        if not thread.free:
            self.add_records(thread)
        self.take_signals()
        return thread

    def add_thread(self, name: str) -> _Thread:
        """Memory for this thread: that of one that has ended, or new."""
        for thread in self.threads():
            if not self.swap(ctypes.addressof(thread) + _Thread.busy.offset, 0, 1):
                break
        else:
            stack = _forever(_Pages(self.room + mmap.PAGESIZE)).address
            thread = _Thread.from_address(stack + self.room)
            thread.stack, thread.busy = stack, 1
            self.push("threads", thread)
        try:
            thread.current = thread.fault = 0
            self.set_stack(thread, name)
            thread.low, thread.top = _stack_bounds()
            thread.self = self.pointer()
        except BaseException:
            thread.busy = 0
            raise
        return thread

    def add_records(self, thread: _Thread) -> None:
        """Memory for more calls within calls of this thread."""
        size = ctypes.sizeof(_Record)
        start = _forever(_Pages(_RECORDS * size)).address
        places = range(start, start + _RECORDS * size, size)
        stubs = [self.entry("record", place, self.shared.returned) for place in places]
        stub = self.load(b"".join(code.ljust(64, b"\0") for code in stubs))
        first_mark = len(self.own.words) + 1
        for place in places:
            record = _Record.from_address(place)
            record.expected[first_mark:] = range(place + first_mark, place + 36)
            record.thread, record.stub, record.next = ctypes.addressof(thread), stub, thread.free
            thread.free = place
            stub += 64

    def forked(self) -> None:
        """In a child there is only this thread, and what others had is free."""
        for thread in self.threads():
            if thread.self != self.pointer():
                thread.self = thread.busy = 0

    def describe(self, size: int, *words: int) -> _Place:
        """The address of a description of a function, for as long as there is this object."""
        place = None
        while place is None:
            try:
                place = _Place(self.places.pop(), self.places)
            except IndexError:  # none is free
                start = _forever(_Pages(4096)).address
                for address in range(start, start + 4096, 64):
                    self.push("functions", _Described.from_address(address))
                    self.places.append((ctypes.c_uint64 * 8).from_address(address))
        place.words[2:], place.words[0] = words, size  # it counts once it has a size
        return place

    # What is by signals, see _BY_SIGNALS.

    def set_up(self) -> None:
        """Set where ucontext_t has the registers, and what else the program names."""
        apple, registers = sys.platform == "darwin", self.own.context
        ask = _native("getauxval", ctypes.c_ulong, ctypes.c_ulong) or (lambda number: 0)
        self.room = _whole_pages(ask(51) + (128 << 10))  # AT_MINSIGSTKSZ
        self.flags, self.restart = (0x41, 2) if apple else (0x08000004, 0x10000000)
        signals = "SIGSEGV SIGBUS SIGILL SIGFPE SIGTRAP SIGINT"
        self.numbers = {name: int(getattr(self.signal, name)) for name in signals.split()}
        self.by_number = {number: name for name, number in self.numbers.items()}
        # In ucontext_t Linux has gregs or regs, and Apple a pointer to a structure with __ss.
        start = 48 if apple else self.own.start
        self.first: int = 16 if apple else self.own.first
        if apple and _PROCESSOR == "x86_64":
            registers = "rax rbx rcx rdx rdi rsi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"
        self.registers = registers.split()
        self.names = {"SI.code": 8, "SI.address": 24 if apple else 16, "HANDLED": 0,
                      **self.numbers}
        find = "load" if apple else "lea"
        self.parts = {**_BY_SIGNALS,
                      "context": f"move kept0, arg1; {find} kept1, [arg2 + {start}]"}
        # FSGSBASE is bit 1 of AT_HWCAP2, since Linux 5.9. Apple's TPIDRRO_EL0 cannot be written.
        if apple or _PROCESSOR == "x86_64" and not ask(26) & 2:
            self.parts.update({"base": "set t, 0", "set_base": ""})

    def action(self, number: int, new: Any = None) -> Any:
        """What handles a signal. From here on new does, if given."""
        action = _Action()
        _library["sigaction"](number, new and ctypes.byref(new), ctypes.byref(action))
        return action

    def find(self) -> int:
        """The _Shared that another copy of this module has made, or 0."""
        found = (self.owner(self.action(number)) for number in self.numbers.values())
        return next(filter(None, found), 0)

    def owner(self, action: Any) -> int:
        """The _Shared of the guard that this handler is of, or 0: it is before its code."""
        handler = action.sa_sigaction
        if handler % 4096 < 16:  # what is before it may not be there
            return 0
        mark, shared = (ctypes.c_uint64 * 2).from_address(handler - 16)
        return int(shared) if mark == _GUARD_MARK else 0

    def handler(self, previous: int) -> int:
        """Our handler that hands on to this one."""
        if previous not in self.handlers:
            marks = struct.pack("<QQ", _GUARD_MARK, ctypes.addressof(self.shared))
            code = marks + self.entry("arg3", previous, self.shared.handler)
            self.handlers[previous] = self.load(code) + 16
        return self.handlers[previous]

    def install(self, shared: _Shared) -> None:
        key = ctypes.c_uint()
        if _library["pthread_key_create"](ctypes.byref(key), ctypes.c_void_p(shared.release)):
            raise OSError(errno.EAGAIN, "pthread_key_create: too many keys")
        shared.key = key.value
        disabled = _SignalStack.from_buffer(shared.no_stack)
        disabled.ss_flags = 4 if sys.platform == "darwin" else 2  # SS_DISABLE

    def set_stack(self, thread: _Thread, name: str) -> None:
        """Give the system this thread's stack for handlers."""
        stack = _SignalStack(ss_sp=thread.stack, ss_size=self.room)
        if _library["sigaltstack"](ctypes.byref(stack), None):
            raise OSError(errno.EPERM, f"{name}(): sigaltstack refused; "
                                       "is this the stack of a signal handler?")
        _library["pthread_setspecific"](ctypes.c_uint(self.shared.key), ctypes.byref(thread))
        # A fault whose signal is blocked ends the process. Pending signals stay blocked.
        faults = set(self.numbers.values()) - {self.numbers["SIGINT"], *self.signal.sigpending()}
        self.signal.pthread_sigmask(self.signal.SIG_UNBLOCK, faults)

    def take_signals(self) -> None:
        """Give the signals to our handlers, above whoever has them now.

        Each of ours hands on to the same one for ever, because whoever is replaced may have saved
        one of ours, and may put it back and go.
        """
        shared, taken = self.shared, {}
        for name, number in self.numbers.items():
            now = self.action(number)
            while name != "SIGINT" or now.sa_sigaction > 1:  # else it is as good without us
                owner = self.owner(now)
                # Of two guards that were made at once one hands on to the other.
                if owner == ctypes.addressof(shared) or owner and shared.sigsegv:
                    break
                new = _Action.from_buffer_copy(now)
                new.sa_sigaction = self.handler(now.sa_sigaction)
                new.sa_flags = self.flags | now.sa_flags & self.restart
                before = self.action(number, new)
                # Another handler may have come since the question.
                now = new if before.sa_sigaction == now.sa_sigaction else before
            taken[name] = now.sa_sigaction
        shared.sigsegv, shared.sigint = taken["SIGSEGV"], taken["SIGINT"]  # what ready() expects

    def explain(self, found: _Found) -> tuple[str, str, int | None]:
        """The signal, what it was about, and the address that was accessed."""
        name = self.by_number[found.signal]
        what = _FAULTS.get((name, found.code)) or _FAULTS[name]
        if not 0 < found.code < 0x80:  # SI_KERNEL, or it was sent: there is no address
            return name, what, None
        if what in ("general protection fault", "bus error"):
            written = self.own.written(found.context) if sys.platform != "darwin" else None
            what = "access" if written is None else "write" if written else "read"
        return name, what, found.address

    def call_in_time(self, guarded: _Guarded, passed: tuple[Any, ...]) -> Any:
        """A call with a timer. Its signals carry a number, by which the handler knows them.

        They come every 10 ms, because one that finds the thread outside of the code does nothing.
        """
        thread, timer = self.prepare(guarded.name), ctypes.c_int(-1)
        kernel = _library["syscall"]  # C libraries have timer_create() in different places
        create, settime, delete, gettid = {
            "x86_64": (222, 223, 226, 186), "aarch64": (107, 110, 111, 178)}[_PROCESSOR]
        outer, seconds = thread.serial, guarded.timeout or 0
        thread.serial = serial = ctypes.addressof(timer)
        # struct itimerspec: it_interval, it_value
        times = (ctypes.c_uint64 * 4)(0, 10 ** 7, int(seconds), int(seconds % 1 * 1e9))
        # struct sigevent: sigev_value; sigev_signo, and SIGEV_THREAD_ID, which is 4; the thread
        event = (ctypes.c_uint64 * 8)(serial, self.timer_signal() | 4 << 32, kernel(gettid))
        try:
            if kernel(create, 1, event, ctypes.byref(timer)):  # 1 is CLOCK_MONOTONIC
                raise OSError(errno.EAGAIN, f"{guarded.name}(): timer_create was refused")
            kernel(settime, timer, 0, times, None)
            return guarded.call(*passed)
        finally:
            thread.serial = outer
            if timer.value >= 0:
                kernel(delete, timer)

    def timer_signal(self) -> int:
        """The signal of timers, which nobody else has, and which hands on to SIG_IGN."""
        if not self.shared.timer:
            # From 62 downwards, because QEMU has two real-time signals less.
            numbers = range(self.signal.SIGRTMAX - 2, self.signal.SIGRTMIN, -1)
            number = next(n for n in numbers if not self.action(n).sa_sigaction)
            flags = self.flags | self.restart
            self.action(number, _Action(sa_sigaction=self.handler(1), sa_flags=flags))
            place = ctypes.addressof(self.shared) + _Shared.timer.offset
            self.swap(place, 0, number)  # unless another thread has been faster
        return int(self.shared.timer)


class _WindowsGuard(_Guard):
    """The guard by a vectored exception handler, on Windows for x86-64."""

    def set_up(self) -> None:
        self.room, self.first = 0, 0x78  # in CONTEXT, where EFlags is at 0x44
        registers = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip"
        self.registers = registers.split()
        # ExceptionInformation in EXCEPTION_RECORD; EXCEPTION_CONTINUE_EXECUTION
        self.names = {"U.flags": 0x44, "SI.code": 0x20, "SI.address": 0x28, "HANDLED": -1,
                      "SIGSEGV": 0xC0000005, "SIGBUS": 0xC0000005}
        self.parts = {
            # EXCEPTION_POINTERS, ExceptionCode; EXCEPTION_CONTINUE_SEARCH
            "context": "load kept0, [arg0]; load kept1, [arg0 + 8]\n"
                       "load32 arg0, [kept0]; store arg0, [frame + 32]",
            "hand_on": "set result, 0; leave 4, 320",
            "base": "set t, 0", **dict.fromkeys(("sent", "no_stack", "handlers", "set_base"), "")}

    def find(self) -> int:
        return 0  # several of these handlers do not mind each other

    def install(self, shared: _Shared) -> None:
        word, pointer = ctypes.c_uint32, ctypes.c_void_p
        shared.key = _native("FlsAlloc", word, pointer)(shared.release)
        _native("AddVectoredExceptionHandler", pointer, word, pointer)(1, shared.handler)

    def set_stack(self, thread: _Thread, name: str) -> None:
        set_value = _native("FlsSetValue", ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p)
        set_value(self.shared.key, ctypes.addressof(thread))

    def take_signals(self) -> None:
        pass

    def explain(self, found: _Found) -> tuple[str, str, int | None]:
        """The nearest signal, what it was about, and the address that was accessed."""
        if found.signal == 0xC0000005 and found.address != 2**64 - 1:
            return "SIGSEGV", "write" if found.code == 1 else "read", found.address
        if found.signal == 0xC00000FD:
            ctypes.CDLL("msvcrt")["_resetstkoflw"]()  # so that the next one can be told too
        words = _FAULTS.get(found.signal, "SIGFPE floating-point exception")
        signal, _, what = words.partition(" ")
        return signal, what, None


class _Guarded:
    """A guarded function's part of the guard. `entry` is what trampolines call.

    start, size     the bytes that the guard answers for
    origin, length  the code, from where offsets count; length is 0 if it is not known
    """

    def __init__(self, function: Function, start: int, size: int, origin: int, length: int,
                 timeout: float | None = None) -> None:
        guard, signature = _guard(), function._signature
        self.name, self.timeout = function._name, timeout
        self.start, self.size, self.origin, self.length = start, size, origin, length
        self.code = _bytes_at(origin, length) if length else None
        # Bytes of arguments that the stack may have, which belong to the code; -1 if that is not
        # known: of structures and so on.
        frame = _processor.shadow + 8 * max(0, len(signature.passed) - len(_processor.integers))
        restype = signature.restype or ctypes.c_int
        for type_ in (restype, *signature.passed):
            if getattr(type_, "_type_", None) not in [*"?bBhHiIlLqQPzZuOcvfd"]:
                frame = -1
        x87 = 0xFF if getattr(restype, "_type_", "") in ("g", "G", "Zg") else 0
        self.text = ctypes.create_string_buffer(
            self.name.encode("ascii", "backslashreplace")[:120])
        self.description = guard.describe(size, start, function._address, frame % 2**64, x87,
                                          origin, ctypes.addressof(self.text))
        description = ctypes.addressof(self.description.words)
        self.pages, self.entry = _load(guard.entry("record", description, guard.shared.thunk))
        self.call = signature.ctypes_function(self.entry)
        guard.take_signals()
        function._call = self
        if type(function) is not Function:
            _aim(function, self.entry)

    def __call__(self, *passed: Any) -> Any:
        """Call it, and raise what the handler has found."""
        guard = _guard()
        if self.timeout is not None:
            result = guard.call_in_time(self, passed)
        else:
            if not guard.is_ready():
                guard.prepare(self.name)
            result = self.call(*passed)
        fault = guard.take_fault()
        if fault:
            raise self.fault(_Found.from_buffer_copy(_Found.from_address(fault)))
        return result

    def fault(self, found: _Found) -> Exception:
        """What has been found out, in words."""
        guard = _guard()
        if found.signal == guard.signal.SIGABRT:
            rows = zip(guard.words, found.expected, found.found)
            changed = dict.fromkeys(name for name, before, after in rows if before != after)
            what = "the code wrote over its caller's stack frame, and returned"
            if changed:
                what = f"the code returned with {' and '.join(changed)} changed, "
                what += "which its caller relies on"
            return Fault(self.name, f"SIGABRT: {what}", found.signal, code=self.code)
        values = found.context[guard.first // 8:guard.last // 8]
        pc, more = values[guard.pc], ""
        if found.signal == guard.shared.timer:
            limit = f"{self.timeout:g} s" if self.timeout else "the limit of a call around it"
            return TimeoutError(f"{self.name}(): no answer within {limit}, {self.place(pc)[1]}")
        signal, what, address = guard.explain(found)
        if signal == "SIGTRAP" and what == "breakpoint" and _PROCESSOR == "x86_64":
            # It is reported behind itself.
            pc -= 1 if self.covers(pc - 1) and _bytes_at(pc - 1, 1) == b"\xcc" else 2
        if address is not None and what in ("read", "write", "access", "misaligned access"):
            if address == pc and not self.covers(pc):
                what, pc = "jump", found.caller
                if not self.covers(pc):
                    more = self.unbalanced(values[guard.sp] - found.expected[0])
            elif what == "write" and self.covers(address):
                more = "; that is the code itself, which is not writable"
            what += f" {'to' if what == 'jump' else 'of'} address {address:#x}"
        offset, where = self.place(pc)
        if self.length and offset == self.length:
            what, where = "the code ran past its end", f"offset {offset}"
        return Fault(self.name, f"{signal}: {what}, {where}{more}", getattr(guard.signal, signal),
                     offset, address, (guard.registers, values), self.code)

    def covers(self, address: int) -> bool:
        return self.start <= address < self.start + self.size

    def place(self, pc: int) -> tuple[int | None, str]:
        """The offset of an address, if it is in the code or right behind it, and that in words."""
        offset = pc - self.origin
        inside = 0 <= offset <= self.length if self.length else self.covers(pc)
        if not inside:
            return None, "outside the code"
        return offset, f"at offset {offset}" + (f" of {self.length}" if self.length else "")

    def unbalanced(self, distance: int) -> str:
        """How the stack pointer differs from what it was, where a wrong return is likely."""
        if distance == 0 or abs(distance) >= 4096:
            return ""
        where = "above" if distance > 0 else "below"
        why = "pop too many" if distance > 0 else "push without its pop"
        return f"; the stack pointer is {abs(distance)} {where} its value at the call: a {why}?"


_guards: list[Any] = []


def _raise_fault(function: Any, data: bytes) -> None:
    raise function._call.fault(_Found.from_buffer_copy(data))


def _why_no_guard() -> str:
    """Why there can be no guard here; empty if there can."""
    known = _LINUX or sys.platform == "darwin" or MACHINE == "x86_64-windows"
    if not known or _PROCESSOR not in _GUARD_PARTS:
        return (f"it knows Linux, macOS and, on x86-64, Windows; x86-64 and AArch64; "
                f"this is {sys.platform} on {MACHINE}")
    status = _kernel_says("/proc/self/status").splitlines()
    if any(line.startswith("x86_Thread_features:") and "shstk" in line for line in status):
        return "this process has a hardware shadow stack, which a recovery would not match"
    return ""


def _guard() -> Any:
    """The guard, made at the first use. Raises NotImplementedError where it cannot be had."""
    if not _guards:
        why = _why_no_guard()
        if why:
            raise NotImplementedError(
                f"guard: {why}; python -m jitmem run tries code in a child process")
        # Another thread may be making one too: then one of them hands on to the other.
        _guards.append(_WindowsGuard() if sys.platform == "win32" else _Guard())
    return _guards[0]


# ---- function, bind and Code: all of it together ----

# int3 and udf, before and behind code that may be guarded: a processor that runs past the
# end, or jumps a bit too far, is stopped where the guard still answers for it.
_TRAPS = {"x86_64": b"\xcc" * 256, "aarch64": bytes(256)}.get(_PROCESSOR, b"")


def _select(code: Any) -> bytes:
    """The code for this machine: of a mapping that for MACHINE, or else for its processor."""
    what = "code"
    if hasattr(type(code), "keys"):
        given = {}
        for key, value in code.items():
            plain = str(key).lower().replace("x86-64", "x86_64")
            processor, dash, convention = plain.partition("-")
            machine = _ALIASES.get(processor, processor) + dash + convention
            if machine in given:
                raise ValueError(f"two codes are given for {machine}")
            given[machine] = value
        machine = MACHINE if MACHINE in given else _PROCESSOR
        if machine not in given:
            names = " or ".join(dict.fromkeys((MACHINE, _PROCESSOR)))
            raise NotImplementedError(f"no code for {names}, which this is; "
                                      f"given: {', '.join(given) or 'none'}")
        code, what = given[machine], f"code for {machine}"
    data = _code_bytes(code, what)
    if not data:
        raise ValueError("code is empty; it needs at least the instruction that returns")
    return data


def _time_limit(timeout: Any, guard: Any) -> tuple[float | None, Any]:
    """What timeout= and guard= mean together."""
    if timeout is None:
        return None, guard
    if not hasattr(type(timeout), "__float__"):
        raise TypeError(f"timeout must be a number of seconds, not {_type_of(timeout)}")
    seconds = float(timeout)
    if not 0 < seconds < 1e9:
        raise ValueError(f"timeout must be some seconds, not {seconds:g}")
    if guard is not None and not guard:
        raise ValueError("timeout needs a guard, and guard=False was given")
    if not _LINUX:
        raise NotImplementedError("timeout: only Linux has timers of threads")
    return seconds, True


def function(code: Any, restype: _Type, *argtypes: _Type, name: str = "machine_code",
             nogil: bool = False, guard: bool | None = None, timeout: float | None = None,
             keep: Any = None, align: int = _LINE) -> Function:
    """Machine code as a Python function.

    code      bytes or another buffer, which are your word that they fit this machine; or
              a mapping from machines ("x86_64-sysv", "aarch64", …) to such: the one for
              MACHINE is taken, or else for the processor, which is MACHINE up to its "-"
    restype   what it returns: a ctypes type, or None
    argtypes  what it takes: ctypes types
    name      for messages, repr and profilers
    nogil     release the GIL during calls
    guard     raise Fault where the code faults, instead of ending the process; by default
              as the environment variable JITMEM_GUARD said at import, 1 for True
    timeout   seconds until a call raises TimeoutError; brings a guard, and needs Linux
    keep      an object to keep as long as the function, such as a callback or a table
    align     the code starts at a multiple of so many bytes: a power of two up to a page's
              size, and at least 64. Code with adrp (AArch64 compilers make it) needs 4096

    The code must work at any address and follow the platform's C calling convention. Hooks
    of sys.addaudithook() see ("jitmem.load", name, address, size), and may refuse it by
    raising. Raises TypeError and ValueError for what makes no sense, NotImplementedError
    without code for this machine or a guard for it, MemoryError or OSError where the system
    refuses, with the policy that does.
    """
    data = code if type(code) is bytes and code else _select(code)
    signature = _signature(name, restype, argtypes, nogil, guard)
    if signature.guard or timeout is not None or align != _LINE:
        return Code(data, align=align, name=name).function(
            restype, *argtypes, name=name, nogil=nogil, guard=guard, timeout=timeout, keep=keep)
    entry = signature.entry or _entry_of(signature)
    pages, address = _load(data)
    size = len(data)
    made = _make(name, signature, entry, address, size, None, keep, pages)
    _announce("jitmem.load", name, address, size)
    return made


def _target(target: Any, types: tuple[_Type, ...]) -> tuple[int, tuple[_Type, ...], int]:
    """The address, types and ctypes' flags of what bind() is given."""
    flags = 0
    if isinstance(target, _FunctionPointer):
        if target.errcheck is not None:
            raise ValueError("bind() would lose the errcheck of this ctypes function")
        # Where addresses have 64 bits there is one convention only.
        if not target._flags_ & _CDECL and sys.maxsize < 2**32:
            raise NotImplementedError("bind() does not know the stdcall convention")
        flags = target._flags_ & (_MAY_RAISE | _KEEPS_ERRNO)
        address = ctypes.cast(target, _void_p).value or 0
        if not types and target.argtypes is not None:
            types = target.restype, *target.argtypes
    elif hasattr(type(target), "__index__"):
        address = _index(target, "bind() target")
    else:
        raise TypeError("bind() target must be a ctypes function or an address, as f.address and "
                        f"cast(pointer, c_void_p).value are, not {_type_of(target)}")
    if not types:
        raise TypeError("bind() needs restype, *argtypes: only ctypes functions have argtypes of "
                        "their own, once they are set")
    if not 0 < address <= 2 * sys.maxsize + 1:
        raise ValueError(f"bind() target {_shown(address)} is not an address")
    if MACHINE.startswith("wasm"):
        _allocate(0)  # refuses
    return address, types, flags


def bind(target: Any, *types: _Type, name: str | None = None, nogil: bool = False,
         guard: bool | None = None, timeout: float | None = None, keep: Any = None) -> Function:
    """A Function over machine code that is somewhere already, called as function()'s are.

    target  an address, which is your word that code is there for as long as it is called,
            or a ctypes function, which is kept
    types   restype, *argtypes, as for function(); by default a ctypes function's own
    name    by default a ctypes function's
    nogil   without it, code that sleeps or waits freezes every thread, and Ctrl-C waits
    guard   only on Linux, for generated code: all that is in its mapping is guarded. A
            library cannot be, as a callback's crash would be taken for its own

    timeout and keep are as for function(). A ctypes function's errcheck would be lost, and
    is refused; its paramflags are lost, as ctypes hides them; use_errno and use_last_error
    cost what they cost with ctypes. Apple's convention for variadic functions cannot be
    served. Raises TypeError, ValueError and NotImplementedError as function() does.
    """
    address, types, flags = _target(target, types)
    if name is None:
        name = getattr(target, "__name__", "machine_code")
    timeout, guard = _time_limit(timeout, guard)
    guarded = None  # where the guarded memory starts, and its size
    if guard or guard is None and _GUARD_ALL:
        start, end, permissions, file = _mapping(address) or (0, 0, "", "")
        if "x" in permissions and (not file or file.startswith(("/memfd:", "[anon"))):
            guarded = start, end - start
        elif guard:
            raise NotImplementedError(f"bind() cannot guard {address:#x}: only generated code in "
                                      "memory of its own, and only on Linux")
    signature = _signature(name, types[0], types[1:], nogil, guarded is not None, flags)
    entry = 0
    try:
        entry = 0 if timeout else _entry_of(signature)
    except (OSError, MemoryError) as error:
        if not hasattr(error, "by_system"):
            raise  # without memory for a trampoline the reference serves
    made = _make(name, signature, entry, address, 0, target, keep)
    if guarded:
        _Guarded(made, *guarded, address, 0, timeout)
    return made


class Code(_Closing):
    """Read-only machine code with several entry points.

        with Code(data) as code:
            first, second = code.function(c_int), code.function(c_int, c_int, offset=64)

    data, align and name are as function() takes them, and it raises what that raises.
    Constants in the code are aligned as they are in data. Functions keep the code; close()
    closes them all. bytes(code) reads it back.
    """
    __slots__ = ("_address", "_size", "_align", "_chunk", "_functions", "_closed", "__weakref__")

    def __init__(self, data: Any, *, align: int = _LINE, name: str = "code") -> None:
        if hasattr(self, "_chunk"):
            raise ValueError("this code is loaded already")
        code, align = _select(data), _index(align, "align")
        if not 0 < align <= mmap.PAGESIZE or align & align - 1:
            raise ValueError(f"align must be a power of two up to {mmap.PAGESIZE}, a page's bytes, "
                             f"not {_shown(align)}")
        self._align = max(align, _LINE)
        self._size, self._closed = len(code), False
        self._functions: dict[ref[Function], None] = {}
        before = _TRAPS * max(1, self._align // 256)  # so that the code is aligned as well
        pages, start = _load(before + code + _TRAPS, self._align)
        self._address = start + len(before)
        self._chunk = pages  # what keeps the code mapped
        sys.audit("jitmem.load", name, self._address, self._size)

    @property
    def address(self) -> int:
        """Where the code starts."""
        return self._address

    @property
    def size(self) -> int:
        """Bytes of code."""
        return self._size

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def function(self, restype: _Type, *argtypes: _Type, offset: int = 0,
                 name: str = "machine_code", nogil: bool = False, guard: bool | None = None,
                 timeout: float | None = None, keep: Any = None) -> Function:
        """The code at offset, in bytes; the rest is as in jitmem.function().

        Raises ValueError for an offset outside the code, and once it is closed.
        """
        start = _index(offset, "function() offset")
        if not 0 <= start < self._size:
            raise ValueError(f"function() offset {_shown(start)} is outside the "
                             f"{self._size} bytes of code")
        timeout, guard = _time_limit(timeout, guard)
        signature = _signature(name, restype, argtypes, nogil, guard)
        entry = 0 if timeout else _entry_of(signature)
        address, size = self._address + start, self._size - start
        function = _make(name, signature, entry, address, size, self, keep, self._chunk)
        if signature.guard:
            around = self._address - len(_TRAPS), self._size + 2 * len(_TRAPS)
            _Guarded(function, *around, self._address, self._size, timeout)
        _write_name(name, address, size)
        functions = self._functions
        # When a function goes, C code takes it out again: it calls dict.pop with the reference.
        functions[ref(function, functions.pop)] = None
        if self._closed:  # perhaps just now, by another thread that has not seen this one
            function.close()
            raise ValueError("function(): the code is closed")
        return function

    def __bytes__(self) -> bytes:
        if self._closed:
            raise ValueError("bytes(): the code is closed")
        return _bytes_at(self._address, self._size)

    def close(self) -> None:
        """Make calls of its functions raise ValueError from here on.

        The memory goes with the last reference to it and them.
        """
        self._closed = True
        for reference in list(self._functions):
            function = reference()
            if function is not None:
                function.close()

    def __reduce__(self) -> Any:
        raise TypeError("jitmem code cannot be copied or pickled; its bytes can")

    def __repr__(self) -> str:
        if self._closed:
            return "<jitmem code, closed>"
        return f"<jitmem code at {self._address:#x} ({self._size} bytes)>"


# ---- Pickling: a function as its code and signature, for machines of the same kind ----

def _pickled_type(type_: _Type) -> Any:
    """A type as pickle can name it: pointer types have no name."""
    is_pointer = type_ is not None and issubclass(type_, ctypes._Pointer)
    if is_pointer and type_ is ctypes.POINTER(type_._type_):
        return "pointer", _pickled_type(type_._type_)
    return type_


def _unpickled_type(type_: Any) -> _Type:
    if isinstance(type_, tuple) and type_[:-1] == ("pointer",):
        return ctypes.POINTER(_unpickled_type(type_[-1]))
    return type_


def _pickled(function: Function) -> Any:
    """What Function.__reduce__ returns."""
    function._check()
    keeps = function._keep is not None
    if keeps or function._chunk is None:
        why = "it keeps an object" if keeps else "its code is not in jitmem's own memory"
        raise TypeError(f"{function._name}() cannot be pickled: {why}")
    signature, whole = function._signature, function._owner or function
    types = tuple(map(_pickled_type, (signature.restype, *signature.argtypes)))
    options = {"offset": function._address - whole.address, "name": function._name,
               "nogil": signature.nogil, "guard": signature.guard}
    if signature.guard:
        options["timeout"] = function._call.timeout
    return _unpickle, (MACHINE, bytes(whole), getattr(whole, "_align", _LINE), types, options)


def _unpickle(machine: str, code: bytes, align: int, types: tuple[Any, ...],
              options: dict[str, Any]) -> Function:
    """A function out of a pickle. What makes no sense, Code and its function() refuse."""
    name = options["name"]
    if machine != MACHINE:
        raise NotImplementedError(f"{name}() was pickled as code for {machine}, "
                                  f"and this machine is {MACHINE}")
    restype, *argtypes = map(_unpickled_type, types)
    return Code(code, align=align, name=name).function(restype, *argtypes, **options)


# ---- Whole arrays: machine code as a NumPy ufunc ----
#
# NumPy calls a loop for each run of elements (PyUFuncGenericFunction in its C API):
#
#     void loop(char **args, npy_intp *dimensions, npy_intp *steps, void *data)
#
# args: addresses of the first elements, the result's last. steps: bytes from one element to
# the next. dimensions[0]: how many there are. The loops here are machine code of ours. Their
# data is the address of the function, which they call for each element.

# What follows load and store for each kind of element, by the end of its name.
_WIDTHS = {"1": "8", "?": "8", "2": "16", "4": "32", "f": "32", "8": "", "d": ""}


def _loop_kinds(function: Any, count: int) -> list[str]:
    """What a function takes and returns: i1 to i8, u1 to u8, ?, f or d.

    Raises unless a loop can call it by its address alone, with so many arguments.
    """
    if not isinstance(function, Function):
        raise TypeError(f"ufunc() takes jitmem functions, not {_type_of(function)}")
    function._check()
    signature, kinds = function._signature, []
    for type_ in (*signature.argtypes, signature.restype):
        simple = isinstance(type_, type) and issubclass(type_, ctypes._SimpleCData)
        kinds.append(_simple_kind(type_) if simple else "V")
    for problem, found in (
        ("has a guard, which no loop can serve", signature.guard),
        ("is in a Memory, which may be closed; use jitmem.function()",
         isinstance(function._owner, Memory)),
        ("needs the GIL, which no loop holds", signature.flags & _MAY_RAISE),
        ("takes no argument, or not as many as the first function",
         len(kinds) != count + 1 or not count),
        ("has more than integers, bool, float and double",
         any(kind[0] not in "iu?fd" for kind in kinds)),
    ):
        if found:
            raise TypeError(f"ufunc(): {function.__name__}{signature.text} {problem}")
    return kinds


def _loop(kinds: list[str]) -> bytes:
    """The loop that calls functions of these kinds of arguments, and of a result."""
    places, size = _places(kinds[:-1]), _processor.shadow
    if _are_packed(places):
        raise NotImplementedError(f"ufunc(): {len(places)} arguments are too many on {MACHINE}")
    for i, place in enumerate(places):
        if not place:
            places[i] = f"frame + {size}"
            size += 8
    size += size % 16
    places.append("f0" if kinds[-1] in "fd" else "result")
    # Above them in the frame are the step and the address of each operand; but in the loop
    # the first one's address and the result's are in registers, because that is faster.
    addresses = ["kept2", *["spare"] * (len(kinds) - 2), "kept3"]
    start = each = ""
    for i, (kind, place, address) in enumerate(zip(kinds, places, addresses)):
        step, kept = f"[frame + {size}]", f"[frame + {size + 8}]"
        size += 16
        start += (f"load scratch, [arg2 + {8 * i}]\nstore scratch, {step}\n"
                  f"load {address}, [arg0 + {8 * i}]\nstore {address}, {kept}\n")
        register = "scratch" if place.startswith("frame") else place
        width = kind if register.startswith("f") else _WIDTHS[kind[-1]]
        if address == "kept3":
            each += "call kept1\n"
            if kind == "?":  # C's true is any byte but 0, and NumPy's is 1
                each += "extend result, result, 1, 0\nadd result, 255\nshr result, 8\n"
            each += f"store{width} {register}, [{address}]\n"
        else:
            each += f"load spare, {kept}\n" if address == "spare" else ""
            each += f"load{width} {register}, [{address}]\n"
            if kind in ("i1", "i2", "i4"):  # some compilers rely on that
                each += f"extend {register}, {register}, {kind[1]}, 1\n"
            each += f"store scratch, [{place}]\n" if register == "scratch" else ""
        each += f"load scratch, {step}\nadd {address}, scratch\n"
        each += f"store spare, {kept}\n" if address == "spare" else ""
    return _assemble(f"""
            enter 4, {size}
            move kept1, arg3
            {start}
            load kept0, [arg1]
            jz kept0, done
        next:
            {each}
            sub kept0, 1
            jnz kept0, next
        done:
            leave 4, {size}
        """).finish()


def _attach(made: Any, texts: list[Any], kept: Any) -> None:
    """Let a ufunc keep an object, in its field `obj`, as numpy.frompyfunc() does.

    Its neighbours tell where it is: name, types, doc, ptr, obj. The last two are NULL.
    """
    import gc
    neighbours = struct.pack("5N", *map(ctypes.addressof, texts), 0, 0)
    place = _bytes_at(id(made), type(made).__basicsize__).find(neighbours)
    if place < 0:
        raise NotImplementedError("ufunc() does not know this version of NumPy")
    if not gc.is_tracked(made):  # no cycle through it would be collected
        _python.PyObject_GC_Track(ctypes.py_object(made))
    # It stores and counts in one step, which no signal handler can interrupt. 6 is T_OBJECT.
    member = ctypes.byref(_PyMemberDef(b"obj", 6, place + 32, 0))
    _python.PyMember_SetOne(_void_p(id(made)), member, ctypes.py_object(kept))


def ufunc(*functions: Function, name: str | None = None) -> Any:
    """Functions over whole NumPy arrays: a numpy.ufunc, with broadcasting, out=, where=,
    reduce() and all else that NumPy's own have.

    functions  one for each combination of types: integers, c_bool, c_float, c_double. For
               arrays of other types NumPy takes the first to whose types they can be cast
               without loss
    name       for messages and repr; by default the first function's

    NumPy calls the code without the GIL. The ufunc keeps the functions, and goes on when
    they are closed. Raises ImportError without NumPy, TypeError for functions that cannot be
    served, and NotImplementedError on all but CPython for x86-64 and AArch64.
    """
    if not _TRAMPOLINES:
        raise NotImplementedError("ufunc() needs CPython on x86-64 or AArch64, "
                                  f"not {sys.implementation.name} on {MACHINE}")
    import importlib
    try:
        numpy = importlib.import_module("numpy")
    except ImportError as error:
        raise ImportError(f"ufunc() needs NumPy: {error}") from error
    if not functions:
        raise TypeError("ufunc() needs at least one function")
    count = len(getattr(functions[0], "argtypes", ()))
    kinds = [_loop_kinds(each, count) for each in functions]
    name = functions[0].__name__ if name is None else name
    pointers = [_void_p] * 4
    loops = [function(_loop(each), None, *pointers, name=name, guard=False) for each in kinds]
    array = _void_p * len(functions)
    entries, data = (array(*[each.address for each in several]) for several in (loops, functions))
    types = [type_ for each in functions for type_ in (*each.argtypes, each.restype)]
    numbers = bytes(numpy.dtype(type_).num for type_ in types)
    signatures = "\n".join(each.__name__ + each._signature.text for each in functions)
    texts = [*map(ctypes.create_string_buffer, (name.encode(), numbers, signatures.encode()))]
    # The module that frompyfunc() is from has the table of NumPy's C API for ufuncs. The second
    # entry is PyUFunc_FromFuncAndData().
    get = _python["PyCapsule_GetPointer"]
    get.restype = _void_p
    table = get(ctypes.py_object(numpy.frompyfunc.__self__._UFUNC_API), None)
    make = _keeping_gil(ctypes.py_object)(_size_t.from_address(table + 8).value)
    counts, none = (len(functions), count, 1), -1  # PyUFunc_None: reduce() begins with nothing
    made = make(entries, data, texts[1], *counts, none, texts[0], texts[2], 0)
    _attach(made, texts, (entries, data, texts, functions, loops))
    return made


# ---- info: what this system allows, and who refuses the rest ----

def _attempt(what: Callable[[], str]) -> str:
    """What becomes of an attempt at something that the system may refuse."""
    try:
        return what()
    except (OSError, MemoryError, NotImplementedError) as error:
        return f"refused: {error}"


def _try_protect() -> str:
    """Whether written pages may become executable."""
    pages = _Pages(1)
    error = pages.protect("r-x")
    if error:
        raise error
    return f"refused, but {pages.made_by} is allowed" if pages.made_by else "allowed"


def _try_load() -> str:
    """How function() loads code here."""
    chunks: list[_Chunk] = []
    _load(bytes(_LINE), chunks=chunks)
    chunk = chunks.pop()
    chunk.retire()
    return f"protected pages (no sealed file: {chunk.why})" if chunk.why else "sealed file (memfd)"


if not hasattr(sys, "getrefcount"):  # as on PyPy
    import gc


def _open_functions() -> int:
    """How many functions are alive and not closed, without the heap's own."""
    if hasattr(sys, "getrefcount"):  # two references are the module's and this call's
        return sys.getrefcount(_OPEN) - 2 - isinstance(_process.write, Function)
    return sum(type(each) is Function and not each.closed for each in gc.get_objects())


def info() -> dict[str, Any]:
    """What jitmem has found here, as a dict that json can write.

    code_memory, calls, cache_flush, guard   how they work here, or why not
    policies     what can refuse memory for code, {name: state}
    refused_by   if written pages may not become executable: the policies in force, or "unknown"
    bytes        of code memory taken; those of freed functions count until their chunk goes
    functions    how many are alive and not closed
    names        where names are written for profilers: JITMEM_PERF=1

    The others say which jitmem, machine, system and Python this is, and whether the GIL is on.
    """
    system, python = sys.platform, sys.implementation.name
    if sys.platform == "win32":
        system = "Windows {}.{}.{}".format(*sys.getwindowsversion())
    elif hasattr(os, "uname"):
        system = " ".join(os.uname()[:3:2])
    python = {"cpython": "CPython", "pypy": "PyPy"}.get(python, python)
    policies, protecting = _policies(), _attempt(_try_protect)
    refusing = [name for name, _, on in policies if on] or ["unknown"]
    pages = [reference() for reference in list(_process.pages.values())]
    return {
        "jitmem": __version__, "file": os.path.abspath(__file__),
        "machine": MACHINE, "bits": 64 if sys.maxsize > 2**32 else 32, "byteorder": sys.byteorder,
        "page_size": mmap.PAGESIZE, "system": system,
        "python": f"{python} {sys.version.split()[0]}",
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "code_memory": _attempt(_try_load),
        "calls": "trampolines" if _TRAMPOLINES else "reference (ctypes)",
        "cache_flush": _attempt(lambda: _cache()[0]), "guard": _why_no_guard() or "available",
        "policies": {**{name: state for name, state, _ in policies},
                     "written pages to r-x": protecting},
        "refused_by": [] if protecting == "allowed" else refusing,
        "bytes": sum(each.used for each in pages if each is not None and each.owner is not None),
        "functions": _open_functions(),
        "names": f"written to /tmp/perf-{os.getpid()}.map" if _writes_names else "not written",
    }


# ---- The command line: python -m jitmem ----
#
# Its exit status is 0 as promised, 1 refused or wrong, 2 wrong usage, 3 no sample for this machine,
# 130 after Ctrl-C, and of `run` 128 + signal after a fault.

def _answer(sender: Any, folder: str, call: Callable[..., Any], *arguments: Any) -> None:
    """In the child: call a function, and send the exit status and text that it returns."""
    if sys.platform == "win32":
        os.chdir(folder)
    else:
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dump
    try:
        answer = call(*arguments)
    except BaseException as error:
        answer = 1, str(error)
    sender.send(answer)


def _in_child(limit: float, *call: Any) -> tuple[Any, int | None]:
    """Call a function of this module in a child process that sees what its parent sees.

    call: the function and its arguments. Returns what the function returned, or else None and the
    child's exit status as subprocess has it, which is None if there was neither within `limit`
    seconds.
    """
    from multiprocessing import get_context
    # A fork needs neither our file nor a Python that can be started. Windows has no fork.
    spawns, folder, answer = sys.platform == "win32", "", None
    context: Any = get_context("spawn" if spawns else "fork")
    receiver, sender = context.Pipe(False)
    sys.stdout.flush()
    try:
        if spawns:
            folder = os.getcwd()
            os.chdir(os.path.dirname(sys.executable))  # where Python finds no struct.py of ours
            if __name__ == "__main__" and os.path.isfile(__file__):
                globals()["__spec__"] = None  # then the child imports our file
        child = context.Process(target=_answer, args=(sender, folder, *call), daemon=True)
        child.start()
    finally:
        if folder:
            os.chdir(folder)
    sender.close()
    try:
        if receiver.poll(limit):
            answer = receiver.recv()
    except EOFError:  # it has ended
        child.join(limit)
    finally:
        status = child.exitcode
        child.kill()
        child.join()
    return answer, status


def _ending(status: int) -> tuple[str, int]:
    """What a process ended with, and the exit status that says so."""
    if status >= 0x80000000:  # on Windows, such as STATUS_ACCESS_VIOLATION in ntstatus.h
        return f"exception {status:#x}", 128 + 11
    if status >= 0:
        return f"status {status}", 1
    import signal
    names = {int(each): each.name for each in signal.Signals}
    return names.get(-status, f"signal {-status}"), 128 - status


# A function that returns 0x12345678 for each processor, the article's example where there was one.
_SAMPLES = {
    "x86_64": """
        b8 78 56 34 12     mov eax, 0x12345678
        c3                 ret""",
    "aarch64": """
        00 cf 8a 52        mov  w0, 0x5678
        80 46 a2 72        movk w0, 0x1234, lsl 16
        c0 03 5f d6        ret""",
    "arm": """
        00 00 9f e5        ldr r0, [pc]
        1e ff 2f e1        bx  lr
        78 56 34 12        .word 0x12345678""",
    "riscv64": """
        37 55 34 12        lui   a0, 0x12345
        1b 05 85 67        addiw a0, a0, 0x678
        67 80 00 00        ret""",
    "ppc64le": """
        34 12 60 3c        lis r3, 0x1234
        78 56 63 60        ori r3, r3, 0x5678
        20 00 80 4e        blr""",
    "s390x": """
        c0 2f 12 34 56 78  llilf %r2, 0x12345678
        07 fe              br    %r14""",
    "mips64el": """
        34 12 02 3c        lui v0, 0x1234
        08 00 e0 03        jr  ra
        78 56 42 34        ori v0, v0, 0x5678    (in the delay slot)""",
    "loongarch64": """
        a4 68 24 14        lu12i.w a0, 0x12345
        84 e0 99 03        ori     a0, a0, 0x678
        20 00 00 4c        ret""",
}
_SAMPLES["x86"] = _SAMPLES["x86_64"]


def _call_data(code: bytes) -> tuple[int, str]:
    """In the child: call bytes where they lie, as data. On Windows a fault is an OSError."""
    import faulthandler
    faulthandler.disable()
    data = ctypes.create_string_buffer(code)
    result = ctypes.CFUNCTYPE(ctypes.c_uint32)(ctypes.addressof(data))()
    return 0, f"returned {result:#x}. This system executes data."


def _call_as_data(code: bytes) -> str:
    """Call bytes as data in a child: what became of it."""
    try:
        answer, status = _in_child(60, _call_data, code)
    except Exception as error:
        return f"not tried: {error}"
    result, how = answer or (1, f"killed by {_ending(status or 0)[0]}")
    return f"child process: {how}" + (". Data is not executable." if result else "")


def _demo() -> int:
    """The six steps, one by one, with what the system says after each."""
    here, listing = info(), _SAMPLES[_PROCESSOR]
    system = f"{here['system']}, {here['python']}, {mmap.PAGESIZE}-byte pages"
    print(f"jitmem {__version__} on {MACHINE}, {system}\n{listing}\n")
    code = _hex(listing)
    print(f"  0  call as data   {_call_as_data(code)}\n", flush=True)
    allocate, protect, free = _CALLS
    memory = Memory(len(code))
    address, size = memory.address, _whole_pages(len(code))

    def step(what: str, how: str) -> None:
        protection = _query(address)
        state = "unmapped" if protection == "" else f"{address:x}  {protection}"
        if protection is None:
            state = "(this system does not tell)"
        how = how.format(address=f"{address:x}", size=size)
        print(f"  {what:13} {how:44} {state}", flush=True)

    step("1  allocate", allocate)
    memory.write(code)
    step("2  write", f"{len(code)} bytes")
    memory.make_executable()
    step("3  protect", memory._pages.made_by or protect)
    print(f"  4  flush      {here['cache_flush']}", flush=True)
    result = memory.function(ctypes.c_uint32)()
    print(f"  5  call       {'uint32 (void)':44} {result:#x}", flush=True)
    memory.close()
    step("6  free", free)
    print(f"\nThe last column is what {_REPORTER} says.")
    print(f'Next: python -m jitmem run "{code.hex(" ")}" --returns c_uint32')
    return int(result != 0x12345678)


_INFO = """
jitmem       {jitmem} ({file})
machine      {machine}, {bits}-bit, {byteorder}-endian, {page_size}-byte pages
system       {system}
python       {python}, GIL {gil}
code memory  {code_memory}
calls        {calls}
cache flush  {cache_flush}
guard        {guard}
names        {names}

policies"""


def _show_info(as_json: bool) -> int:
    here = info()
    if as_json:
        import json
        print(json.dumps(here, indent=2))
        return 0
    print(_INFO[1:].format(**{**here, "gil": "on" if here["gil"] else "off"}))
    for name, state in here["policies"].items():
        print(f"  {name:24} {state}")
    refusing = ", ".join(here["refused_by"])
    print(f"(refused by: {refusing})" if refusing else "(nothing here is refused)")
    return 0


# int64_t add(int64_t, int64_t), where calls are machine code and so worth a comparison.
_ADD = {
    "x86_64-sysv": bytes.fromhex("48 8d 04 37 c3"),
    "x86_64-windows": bytes.fromhex("48 8d 04 11 c3"),
    "aarch64": bytes.fromhex("00 00 01 8b c0 03 5f d6"),
}


def _recipe(code: bytes, prototype: Any) -> None:
    """Load code, make a function and free, as ctypes code usually does it."""
    (allocate, fresh), (protect, executable), (free, whole) = _RECIPE
    address = allocate(*fresh)
    ctypes.memmove(address, code, len(code))
    protect(address, *executable)
    _flush(address, len(code))
    prototype(address)
    free(address, *whole)


def _bench(share: float = 0.02) -> int:
    """What calls and loads cost, in rounds in which they take turns, each for `share` seconds."""
    import operator
    from statistics import median
    from timeit import Timer, default_timer
    began, word, code = default_timer(), ctypes.c_int64, _hex(_SAMPLES[_PROCESSOR])
    add = function(_ADD, word, word, word, name="add", guard=False)
    plain = ctypes.CFUNCTYPE(word, word, word)(add.address)
    calls = {"jitmem": add, "operator.add": operator.add, "ctypes": plain}
    timers = {name: Timer("add(2, 3)", globals={"add": call}) for name, call in calls.items()}
    loads = {"jitmem": Timer(lambda: function(code, ctypes.c_uint32))}
    if _attempt(_try_protect) == "allowed":
        prototype = ctypes.CFUNCTYPE(ctypes.c_uint32)
        loads["ctypes recipe"] = Timer(lambda: _recipe(code, prototype))
    for title, unit, scale, rows in (
        ("int64 add(int64, int64)", "ns/call", 1e9, timers),
        (f"load and free, {len(code)} bytes", "us", 1e6, loads),
    ):
        counts = dict.fromkeys(rows, 100)
        for name, timer in rows.items():
            while timer.timeit(counts[name]) < share:
                counts[name] *= 2
        rounds = [[rows[name].timeit(counts[name]) * scale / counts[name] for name in rows]
                  for _ in range(15)]
        medians = [*map(median, zip(*rounds))]
        print(f"{title:30}  {unit}")
        for name, cost in zip(rows, medians):
            bar = "#" * max(1, round(36 * cost / max(medians)))
            line = f"  {name:14} {cost:5.{0 if cost >= 20 else 1}f}  {bar:36}"
            if name.startswith("ctypes"):
                line += f" {cost / medians[0]:5.1f}x jitmem"
            print(line.rstrip(), flush=True)
    took = default_timer() - began
    print(f"Medians of interleaved rounds on this machine, in {took:.1f} s.")
    return 0


# How `run` reads code. What is not wholly understood is refused, because other code than was meant
# would run. Each line of a listing says its address, which must be the one behind the bytes so far:
# no line is lost, misplaced, or taken for more or fewer bytes. Text may be long, so no pattern
# looks at the same characters again and again.

_HEX = "[0-9a-fA-F]"
_PAIR = _HEX * 2
_PAIRS = f"(?:{_PAIR})+"
_GROUPS = "|".join(f"{word}(?: {word})*" for word in (_PAIR, _PAIR * 2, _PAIR * 4))
# Lines of listings: an address, digits, and what else tells. The first that fits counts.
_ROWS = {
    "nasm -l": rf"[ \d]{{6}} ({_HEX}{{8}}) ({_PAIRS})(?:<rep ([0-9A-F]{{1,6}})h>)?-?(?:\s|$)",
    "hexdump -C": rf"({_HEX}{{8,16}})(?:  ((?:{_PAIR}  ?)+) *\|(.*)\|)?$",
    "xxd": rf"({_HEX}{{8,16}}): ({_PAIRS}(?: {_PAIRS})*)(  [^\t]*| *)$",
    "objdump -d": rf"\s*({_HEX}{{1,16}}):\s*({_GROUPS})"
                  rf"(?!\s+{_PAIRS}\s+{_PAIRS}(?:\s|$))(\s*\t.*|  .*| *)$",
}
# Other lines begin with no number but nasm's of the line, a symbol's address or a file's name.
_NO_BYTES = rf"[ \d]{{6}}(?: {{10}}|$)|(?!\W*{_HEX}+(?::|\s|$)(?! *<|\s+file format))"
_HOW_TO_LINK = ("`ld -N --oformat binary -Ttext 0 -e NAME f.o -o f.bin` links it for `run @f.bin` "
                "(and --entry, if NAME is not its first function)")


def _row(line: str) -> tuple[int, bytes] | None:
    """The address and the bytes of a listing's line, None if it is not one."""
    import re
    for tool, pattern in _ROWS.items():
        found = re.match(pattern, line)
        if not found:
            continue
        address, digits, more = found.groups("")
        data, words = bytes.fromhex(digits), digits.split()
        size, fits = max(map(len, words), default=2), True
        if tool == "nasm -l":
            data *= int(more or "1", 16)
        elif tool != "objdump -d":
            # Its text tells bytes from numbers, which xxd -e shows, by default of four bytes.
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
            fits = size <= 4 and more.strip() in ("", text.strip())
        elif size > 2:  # where instructions are words, they are shown as numbers
            fits = _PROCESSOR not in ("x86", "x86_64")
            numbers = [int(word, 16) for word in words]
            data = b"".join(number.to_bytes(size // 2, sys.byteorder) for number in numbers)
        return (int(address, 16), data) if fits else None
    return None


def _listed_bytes(lines: list[str]) -> bytes:
    """The bytes of a listing, none if it is not one."""
    import re
    code, end, others = bytearray(), None, []
    for line in lines:
        row = _row(line)
        if row is None:
            others.append(line)
            continue
        address, data = row
        if code and address != end:
            raise ValueError(f"the listing goes on at {address:#x}, and its bytes so far end "
                             f"at {end:#x}: {line.strip()[:60]!r}")
        code += data
        end = address + len(data)
    for line in others:
        if code and not re.match(_NO_BYTES, line):
            raise ValueError(f"not a line of a listing that is understood: {line.strip()[:60]!r}")
    return bytes(code)


def _plain_bytes(text: str) -> bytes:
    r"""The bytes of text that is no listing: b8 2a, b82a, 0xb8,0x2a,0 or \xb8\x2a."""
    import re
    # What is behind a semicolon may be code.
    text = re.sub(rf"""(?:#|//|;(?![ "']*{_PAIRS}\b)).*""", "", text).lower()
    text = re.sub("^0x(?=[0-9a-f]{3,}$)", "", text).replace("\\x", " 0x")
    text = re.sub(r"(?m)^(?:db|\.byte)(?=[\s\d,]*0x)", "", text)
    words = re.sub("""[][{},"']""", " ", text).split()
    decimal = all(word.isdecimal() or word in ("db", "dd") for word in words)
    if (decimal and re.search("[,d]|  ", text)) or re.match(r"0{5,}\s+\S", text):
        raise ValueError(f"hexadecimal, decimal, or an address? 0x tells: {text[:60]!r}")
    form = _PAIRS
    if any(word.startswith("0x") for word in words):
        form = r"0x[0-9a-f]{1,2}|\d" if "," in text else "0x[0-9a-f]{1,2}"
    for word in words:
        if not re.fullmatch(form, word):
            raise ValueError(f"not machine code in hexadecimal: {word[:60]!r} is not digits two by "
                             "two, or not all are like 0xb8 (objdump -dr, xxd -g1, hexdump -C and "
                             "nasm -l are understood too)")
    if form == _PAIRS:
        return bytes.fromhex("".join(words))
    return bytes(int(word, 16) for word in words)


def _parse_code(text: str) -> bytes:
    """Machine code out of text: bytes in any usual spelling, or what a tool lists."""
    import re
    lines = [line for line in text.splitlines() if line.strip()]
    text = "\n".join(line.strip() for line in lines)
    relocation = re.search(r"\bR_[A-Z0-9]+_[A-Z0-9_]+|\b(ARM64|X86_64)_RELOC_[A-Z0-9_]+", text)
    if relocation:
        raise ValueError(f"this code needs a linker, for {relocation[0]}: {_HOW_TO_LINK}")
    if re.search(r"(?m)^(?:\.\.\.|\*)$", text):
        raise ValueError("the listing leaves out bytes; objdump -dz, xxd without -a and hexdump "
                         "-Cv show them")
    if re.match("""b['"]""", text):  # as Python shows bytes
        import ast
        try:
            return memoryview(ast.literal_eval(text)).tobytes()
        except (SyntaxError, TypeError, ValueError):
            raise ValueError(f"not bytes as Python writes them: {text[:60]}") from None
    return _listed_bytes(lines) or _plain_bytes(text)


def _read_code(source: str) -> bytes:
    """The code that a command line names: itself, @file, or - for standard input."""
    import re
    if source == "-":
        if sys.stdin is None:
            raise ValueError("standard input is closed")
        data = sys.stdin.buffer.read()
    elif source.startswith("@"):
        with open(source[1:], "rb") as file:
            data = file.read()
    elif os.path.isfile(source):
        raise ValueError(f"{source} is a file; @{source} reads it")
    else:
        return _parse_code(source)
    if data[:4] in (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"MZ\x90\0"):  # Linux, macOS, Windows
        raise ValueError("this is an object file or a program, not bare code; pipe `objdump -dr` "
                         f"into `run -`, or {_HOW_TO_LINK}")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # as PowerShell writes what a program prints
        return _parse_code(data.decode("utf-16"))
    # Text in any encoding has no control characters, and digits if it is code.
    digits = rb"[0-9a-fA-F]{4}|(?:^|[\s,:x])[0-9a-fA-F]{2}(?:[\s,]|$)"
    is_text = data.isascii() or re.search(digits, data)
    if not is_text or re.search(rb"[\0-\x08\x0e-\x1f\x7f]", data):
        return data
    return _parse_code(data.decode("utf-8-sig", "replace"))


def _type_named(name: str) -> _Type:
    """The ctypes type of this name, c_ left out or not."""
    type_ = getattr(ctypes, name if hasattr(ctypes, name) else f"c_{name}", None)
    simple = isinstance(type_, type) and issubclass(type_, ctypes._SimpleCData)
    if not simple:
        import argparse
        why = f"{name} is not one of ctypes' types, such as c_int64 or c_double (-- ends them)"
        raise argparse.ArgumentTypeError(why)
    return type_


def _result_named(name: str) -> _Type:
    return None if name.lower() in ("none", "void") else _type_named(name)


def _offset(text: str) -> int:
    return int(text, 0)


def _usual_type(text: str) -> _Type:
    """The type of an argument that nobody has named: c_double for 1.0, 1e9, inf and nan."""
    text = text.lower()
    return ctypes.c_double if "x" not in text and set(text) & set(".en") else ctypes.c_int64


def _argument(text: str, type_: _Type) -> Any:
    """An argument of the command line as a value of this type."""
    kind = type_._type_
    if kind in "zZcu":
        return text if kind in "Zu" else os.fsencode(text)
    try:
        return float(text) if kind in "fdg" else int(text, 0)
    except ValueError:
        why = f"argument {text!r} is no {_type_name(type_)}; --takes names another type"
        raise ValueError(why) from None


def _shown_result(value: Any, type_: _Type) -> str:
    if isinstance(value, float):
        return f"{value!r}    {value.hex()}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value}    {value & (1 << 8 * ctypes.sizeof(type_)) - 1:#x}"
    return repr(value)


def _call_code(
    code: bytes, offset: int, types: list[_Type], arguments: list[Any], timed: bool
) -> tuple[int, str]:
    """In the child: call the code, and say what it returned or how it failed."""
    loaded, guard = Code(code), not _why_no_guard()
    call = loaded.function(*types, offset=offset, name="code", guard=guard)
    try:
        shown = _shown_result(call(*arguments), types[0])
    except Fault as fault:
        return 128 + fault.signal, fault.report()
    if timed:
        from timeit import Timer
        call = loaded.function(*types, offset=offset, guard=False)
        timer = Timer("call(*arguments)", globals={"call": call, "arguments": arguments})
        count, _ = timer.autorange()
        shown += f"    ({min(timer.repeat(5, count)) / count * 1e9:.0f} ns a call)"
    return 0, shown


def _run(given: Any) -> int:
    """Call the code in a child process, with a time limit, and say what became of it."""
    source, *texts = given.words
    code = _read_code(source)
    takes = [*map(_usual_type, texts)] if given.takes is None else given.takes
    if len(takes) != len(texts):
        raise ValueError(f"--takes names {len(takes)} types, and there are {len(texts)} arguments")
    arguments = [*map(_argument, texts, takes)]
    floating = {type_._type_ in "fdg" for type_ in takes}
    usual = ctypes.c_double if floating == {True} else ctypes.c_int64
    types = [getattr(given, "returns", usual), *takes]
    if len(floating) > 1 and (given.takes is None or not hasattr(given, "returns")):
        restype, *names = map(_type_name, types)
        print(f"jitmem: taken as {restype} ({', '.join(names)}); --takes and --returns say "
              "otherwise", file=sys.stderr, flush=True)
    call = _call_code, code, given.entry, types, arguments, given.time
    answer, status = _in_child(given.limit, *call)
    if answer:
        result, text = answer
        if result == 1:
            raise ValueError(text)
    elif status is None:
        result = 1
        text = f"jitmem: no answer within {given.limit:g} s; stopped (change it with --limit)"
    else:
        ending, result = _ending(status)
        text = f"the code ended its process with {ending}"
    print(text)
    return int(result)


def _given(words: list[str]) -> Any:
    """What a command line asks for. Ends the process with status 2 where it makes no sense."""
    import argparse
    parser = argparse.ArgumentParser(
        "jitmem", usage="jitmem [run CODE [ARGUMENT ...] | info | bench] [options]",
        description="Run machine code from Python. Without a command: how a JIT starts.")
    option = parser.add_argument
    option("command", nargs="?", choices=["run", "info", "bench"],
           help="run: call machine code in a child process; info: what this system allows and "
           "refuses, by which policy; bench: what calls and loads cost here")
    option("words", metavar="CODE", nargs="*",
           help="hexadecimal such as 'b8 2a 00 00 00 c3', a listing, @file, or - for standard "
           "input; then arguments. -- before CODE ends the options")
    option("--returns", type=_result_named, default=argparse.SUPPRESS,
           help="such as c_int32, or None; by default c_int64, or c_double if all arguments are")
    option("--takes", type=_type_named, nargs="*", action="extend",
           help="of the arguments; by default c_int64, or c_double for such as 1.0 and 1e9")
    option("--entry", type=_offset, default=0, help="start so many bytes into the code")
    option("--limit", type=float, default=10, help="stop it after so many seconds; by default 10")
    option("--time", action="store_true", help="measure a call as well, by many of them")
    option("--json", action="store_true", help="info as JSON")
    option("--version", action="version", version=f"jitmem {__version__}")
    # Options may stand between the code and its arguments. What is behind -- is not one, even -1e3.
    dashes = words.index("--") if "--" in words else len(words)
    given = parser.parse_intermixed_args(words[:dashes])
    given.words += words[dashes + 1:]
    if bool(given.words) != (given.command == "run"):
        parser.error("CODE is for run" if given.words else "CODE is missing")
    if not 0 < given.limit < 1e6:
        parser.error("--limit is a number of seconds above 0 and below a million")
    return given


def _main(arguments: Sequence[str] | None = None) -> int:
    if sys.stderr is None:  # closed; print() would take it for sys.stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    given = _given(list(sys.argv[1:] if arguments is None else arguments))
    try:
        if sys.stdout is None:
            raise ValueError("standard output is closed")
        if given.command == "info":
            status = _show_info(given.json)
        elif given.command == "run":
            status = _run(given)
        elif not {MACHINE, _PROCESSOR} & (_ADD if given.command else _SAMPLES).keys():
            print(f"jitmem has no sample for {MACHINE}; jitmem.function takes code of your own.")
            status = 3
        else:
            status = _bench() if given.command else _demo()
        sys.stdout.flush()
        return status
    except (Exception, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        status = 128 + 2 if interrupted else 1  # SIGINT
        if not isinstance(error, BrokenPipeError):  # as in `python -m jitmem | head`
            print("jitmem:", "interrupted" if interrupted else error, file=sys.stderr)
    try:
        sys.stdout.flush()
    except (AttributeError, OSError):  # Python would try again at its end, and print a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


if __name__ == "__main__":
    sys.exit(_main())
