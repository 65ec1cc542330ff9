"""Tests of jitmem: a class a section of the file. `python3 -m unittest` runs them from a clone."""

import array
import contextlib
import copy
import ctypes
import decimal
import enum
import errno
import faulthandler
import fractions
import functools
import gc
import inspect
import io
import itertools
import json
import mmap
import operator
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import typing
import unittest
import warnings
import weakref
import zipfile
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    Union,
    byref,
    c_bool,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int8,
    c_int16,
    c_int32,
    c_int64,
    c_size_t,
    c_ssize_t,
    c_ubyte,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
    c_wchar_p,
    pointer,
    py_object,
)
from random import Random
from unittest import mock

import jitmem

HERE = os.path.dirname(os.path.abspath(jitmem.__file__))
TESTS = os.path.dirname(os.path.abspath(__file__))
PATH = os.pathsep.join([HERE, TESTS, os.environ.get("PYTHONPATH", "")])  # of child processes
LINUX = sys.platform == "linux"
WINDOWS = sys.platform == "win32"
PYPY = sys.implementation.name == "pypy"
FORKS = hasattr(os, "fork")
TIMER = hasattr(signal, "setitimer")
STRESS = bool(os.environ.get("JITMEM_STRESS"))
PROCESSOR = jitmem.MACHINE.partition("-")[0]
TRAMPOLINES = jitmem.info()["calls"] == "trampolines"
SEALED_FILES = jitmem.info()["code_memory"].startswith("sealed")
EMULATED = LINUX and PROCESSOR not in ("x86_64", "x86")
WORD = ctypes.sizeof(c_void_p)


def codes(**listings):
    """A mapping of code by machine from hexadecimal digits; __ in a name is a dash."""
    return {name.replace("__", "-"): bytes.fromhex(digits) for name, digits in listings.items()}


# The same small functions for every processor that the lab has.
ANSWER = {name: jitmem._hex(listing) for name, listing in jitmem._SAMPLES.items()}  # 0x12345678
ADD = codes(  # ssize_t (ssize_t a, ssize_t b): a + b
    x86_64__sysv="488d0437 c3",
    x86_64__windows="488d0411 c3",
    aarch64="0000018b c0035fd6",
    riscv64="3305b500 67800000",
    ppc64le="1422637c 2000804e",
    s390x="b9080023 07fe",
    mips64el="0800e003 2d108500",
    x86="8b442404 03442408 c3",
    arm="010080e0 1eff2fe1",
    loongarch64="84941000 2000004c",
)
ADD_DOUBLES = codes(  # double (double a, double b): a + b
    x86_64="f20f58c1 c3",
    aarch64="0028611e c0035fd6",
    riscv64="5375b502 67800000",
    ppc64le="2a1021fc 2000804e",
    s390x="b31a0002 07fe",
    mips64el="0800e003 00602d46",
    x86="dd442404 dc44240c c3",
    arm="010b30ee 1eff2fe1",
    loongarch64="00040101 2000004c",
)
ADD_FLOATS = codes(  # float (float a, float b): a + b
    x86_64="f30f58c1 c3",
    aarch64="0028211e c0035fd6",
    riscv64="5375b500 67800000",
    ppc64le="2a1021ec 2000804e",
    s390x="b30a0002 07fe",
    mips64el="0800e003 00600d46",
    x86="d9442404 d8442408 c3",
    arm="200a30ee 1eff2fe1",
    loongarch64="00840001 2000004c",
)
SAME = codes(  # T (T a), T an integer or a pointer: a
    x86_64__sysv="4889f8 c3",
    x86_64__windows="4889c8 c3",
    aarch64="c0035fd6",
    riscv64="67800000",
    ppc64le="2000804e",
    s390x="07fe",
    mips64el="0800e003 25108000",
    x86="8b442404 c3",
    arm="1eff2fe1",
    loongarch64="2000004c",
)
CALL = codes(  # ssize_t (ssize_t (*f)(ssize_t), ssize_t a): f(a)
    x86_64__sysv="4889f8 4889f7 ffe0",
    x86_64__windows="4889c8 4889d1 ffe0",
    aarch64="e20300aa e00301aa 40001fd6",
    riscv64="13060500 13850500 67000600",
    ppc64le="781b6c7c a603897d 7823837c 2004804e",
    s390x="b9040012 b9040023 07f1",
    mips64el="25c88000 08002003 2520a000",
    x86="8b442404 8b4c2408 83ec08 51 ffd0 83c40c c3",
    arm="0020a0e1 0100a0e1 12ff2fe1",
    loongarch64="8c001500 a4001500 8001004c",
)
STORE = codes(  # void (char *p, ssize_t value): *p = value
    x86_64__sysv="408837 c3",
    x86_64__windows="8811 c3",
    aarch64="01000039 c0035fd6",
    riscv64="2300b500 67800000",
    ppc64le="00008398 2000804e",
    s390x="42302000 07fe",
    mips64el="0800e003 000085a0",
    x86="8b442404 8b4c2408 8808 c3",
    arm="0010c0e5 1eff2fe1",
    loongarch64="85000029 2000004c",
)
# int64_t (entry, callable, args, count): fills every register that calls must preserve, calls
# entry(callable, args, count, NULL), and returns 0 if they are what they were.
PRESERVES = codes(
    x86_64__sysv=(
        "535541544155415641574883ec084889f84889f74889d64889ca31c9bb11110000bd2222000041bc"
        "3333000041bd4444000041be5555000041bf66660000ffd04881eb111100004881ed222200004981"
        "ec333300004981ed444400004981ee555500004981ef666600004809eb4c09e34c09eb4c09f34c09"
        "fb4889d84883c408415f415e415d415c5d5bc3"
    ),
    x86_64__windows=(
        "5355575641544155415641574883ec380f297424204889c84889d14c89c24d89c84531c9bb111100"
        "00bd2222000041bc3333000041bd4444000041be5555000041bf66660000bf77770000be88880000"
        "66480f6ef3ffd066480f7ef0482d111100004881eb111100004881ed222200004981ec3333000049"
        "81ed444400004981ee555500004981ef666600004881ef777700004881ee888800004809d84809e8"
        "4c09e04c09e84c09f04c09f84809f84809f00f287424204883c438415f415e415d415c5e5f5d5bc3"
    ),
    aarch64=(
        "fd7bb9a9f35301a9f55b02a9f76303a9f96b04a9fb7305a9e83300fde90300aae00301aae10302aa"
        "e20303aae3031faa330080d2540080d2750080d2960080d2b70080d2d80080d2f90080d21a0180d2"
        "3b0180d25c0180d28803679e20013fd67302148b7302158b7302168b7302178b7302188b7302198b"
        "73021a8b73021b8b73021c8b1401669e7302148b600601d1e83340fdfb7345a9f96b44a9f76343a9"
        "f55b42a9f35341a9fd7bc7a8c0035fd6"
    ),
)
LOOP = codes(  # for ever
    x86="ebfe", x86_64="ebfe", aarch64="00000014", arm="feffffea", riscv64="6f000000",
    ppc64le="00000048", s390x="a7f40000", mips64el="ffff0010 00000000", loongarch64="00000050")
CALLBACK = CFUNCTYPE(c_ssize_t, c_ssize_t)


def here(code):
    """The bytes of a mapping for this machine."""
    return jitmem._select(code)


def python(*arguments, **environment):
    """Run Python in a child that can import jitmem and this file: status, output, errors.

    Without site-packages (-S), because reading those can take longer than all else.
    """
    done = subprocess.run(
        [sys.executable, "-S", *arguments], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, cwd=HERE, timeout=300, env={**os.environ, "PYTHONPATH": PATH, **environment})
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def spelled_out(names):
    """What defines these functions and values of this file, all of which takes long to import."""
    def one(name):
        thing = globals()[name]
        return inspect.getsource(thing) if inspect.isfunction(thing) else f"{name} = {thing!r}\n"
    return "".join(map(one, names.split()))


def executable(code):
    """A Memory with this code, made executable."""
    memory = jitmem.Memory(64)
    memory.write(here(code))
    memory.make_executable()
    return memory


def fresh_chunks():
    """Let the loads that follow begin a chunk of their own."""
    chunks = jitmem._process.heap.open
    while chunks:
        chunks.pop().retire()


def living_pages():
    """All pages of jitmem's that are mapped."""
    pages = (reference() for reference in list(jitmem._process.pages.values()))
    return {each for each in pages if each is not None and each.owner is not None}


def shown_protection(address):
    """The protection as the system reports it. QEMU lists neighbours of other kinds as one, and
    next to our pages may be those that libffi writes and executes."""
    protection = mach_protection(address) if sys.platform == "darwin" else jitmem._query(address)
    return "rw-" if EMULATED and protection == "rwx" else protection


def mach_protection(address):
    """The same on macOS, by mach_vm_region."""
    library = ctypes.CDLL(None)
    region, size = c_uint64(address), c_uint64()
    # vm_region_basic_info_64 is packed to 4 bytes: nine words, the protection first.
    info, count, name = (c_int * 9)(), c_uint32(9), c_uint32()
    task = c_uint32.in_dll(library, "mach_task_self_")
    answer = library.mach_vm_region(task, byref(region), byref(size), 9,  # BASIC_INFO_64
                                    info, byref(count), byref(name))
    if answer or region.value > address:  # KERN_INVALID_ADDRESS: nothing from there on
        return ""
    return "".join(letter if info[0] & bit else "-" for letter, bit in zip("rwx", (1, 2, 4)))


def descriptors():
    """How many descriptors are open here."""
    return len(os.listdir("/proc/self/fd")) if LINUX else 0


def sealed_files_refused(reason="injected"):
    """As where the kernel has no sealed files."""
    refusal = OSError(38, reason)
    return mock.patch.object(jitmem, "_sealed_file", lambda pages: refusal)


def collect():
    """Collect what there is; PyPy takes several rounds for what finalizers free."""
    for _ in range(4 if PYPY else 1):
        gc.collect()


def wait_until(condition):
    """Wait for what another thread is to do."""
    end = time.monotonic() + 200
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(condition)
        time.sleep(0.0005)


@contextlib.contextmanager
def on_alarm(handler):
    """Have this called when signal.setitimer() says, and no more afterwards."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        # First no handler that sets the timer again may come.
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mappings():
    """Every mapping of this process as the kernel lists it, [(start, end, permissions, name)].

    None where it has no list.
    """
    try:
        with open("/proc/self/maps") as maps:
            rows = [line.split(None, 5) for line in maps]
    except OSError:
        return None
    found = []
    for span, permissions, _, _, _, *name in rows:
        start, end = (int(bound, 16) for bound in span.split("-"))
        found.append((start, end, permissions, "".join(name).strip()))
    return found


class Case(unittest.TestCase):
    def assert_healthy(self, memory, code=ANSWER):
        """After a refusal nothing is lost: the memory still does all six steps."""
        if memory.protection == "r-x":
            memory.make_writable()
        memory.write(here(code))
        memory.make_executable()
        self.assertEqual(memory.function(c_uint32)(), 0x12345678)

    def raises(self, exception, message, call, /, *args, **kwargs):
        with self.assertRaisesRegex(exception, message):
            call(*args, **kwargs)

    def assert_loads(self, count=50, start=0x01000000):
        functions = [jitmem.function(new_code(start + number), c_uint32) for number in range(count)]
        expected = [start + number for number in range(count)]
        self.assertEqual([function() for function in functions], expected)
        return functions

    def raising_at(self, number, action):
        """Raise at this bytecode of what the action does: the exception, or None if it is over."""
        class Interrupt(Exception):
            pass

        def start(frame, event, argument):
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return count

        def count(frame, event, argument):
            nonlocal number
            if event == "opcode":
                number -= 1
                if not number:
                    raise Interrupt
            return count
        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # CPython 3.12 asks for it when tracing starts
        sys.settrace(start)
        try:
            action()
        except Interrupt as error:
            return error
        finally:
            sys.settrace(before)
        return Interrupt("in a finalizer, which lost it") if number <= 0 else None

    def run_child(self, source, *arguments, use="", **environment):
        """Run a script in another process, which must end well and print no error.

        It may use these names of this file.
        """
        source = spelled_out(use) + textwrap.dedent(source)
        status, out, err = python("-c", source, *arguments, **environment)
        self.assertEqual((status, err), (0, ""), out)
        return out

    def run_hardened(self, source, use=""):
        """The same under Memory-Deny-Write-Execute, for real."""
        out = self.run_child(textwrap.dedent("""
            import ctypes, sys
            word = ctypes.c_ulong
            if ctypes.CDLL(None).prctl(65, word(1), word(0), word(0), word(0)):  # PR_SET_MDWE
                print("no MDWE")
                sys.exit()
            import jitmem
            """) + textwrap.dedent(source), use=use)
        if out == "no MDWE":
            self.skipTest("this kernel, or the emulator, has no PR_SET_MDWE")
        return out

    def run_threads(self, *works):
        """Run these side by side, all from one moment on and with many switches between them.

        None may raise.
        """
        errors, start, interval = [], threading.Barrier(len(works)), sys.getswitchinterval()

        def run(work):
            try:
                start.wait()
                work()
            except BaseException as error:
                errors.append(error)
        threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
        sys.setswitchinterval(1e-5)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        for error in errors:
            raise error

    def fork(self, action):
        """Run this in a forked child; it must end well."""
        with warnings.catch_warnings():
            # 3.12 and later warn of a fork with threads about, which is the point.
            warnings.simplefilter("ignore")
            pid = os.fork()
        if not pid:
            status = 1
            try:
                action()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)


class TheManual(Case):
    def test_its_example_runs_and_says_what_it_prints(self):
        import doctest
        if PROCESSOR in ("x86_64", "aarch64"):
            self.assertEqual(doctest.testmod(jitmem).failed, 0)
        else:
            code = {"x86_64-sysv": b"", "x86_64-windows": b"", "aarch64": b""}
            message = f"no code for {jitmem.MACHINE}.*given: x86_64-sysv, x86_64-windows, aarch64"
            self.raises(NotImplementedError, message, jitmem.function, code, None)

    def test_every_public_name_has_a_docstring(self):
        names = set(jitmem.__all__) - {"MACHINE"}
        self.assertEqual([name for name in names if not getattr(jitmem, name).__doc__], [])

    def test_importing_maps_nothing_executable(self):
        if mappings() is None:
            self.skipTest("no /proc/self/maps here")
        out = self.run_child("""
            import ctypes, mmap
            ctypes.CFUNCTYPE(None)(1)
            def executable():
                with open("/proc/self/maps") as maps:
                    rows = [line.split() for line in maps]
                # Libraries may be loaded; what has no file, or a file in memory, is ours.
                return {row[0] for row in rows
                        if "x" in row[1] and (len(row) < 6 or not row[5].startswith("/")
                                              or row[5].startswith("/memfd"))}
            before = executable()
            import jitmem
            print(len(executable() - before))""")
        self.assertEqual(out, "0")

    def test_importing_brings_in_little_that_ctypes_has_not(self):
        out = self.run_child("""
            import ctypes, sys
            before = set(sys.modules)
            import jitmem
            print(*sys.modules.keys() - before)""")
        expected = {"__future__", "_operator", "errno", "itertools", "jitmem", "mmap"}
        if sys.version_info >= (3, 14):  # a Structure brings these in, with ctypes' own layout
            expected |= {"ctypes._layout", "warnings", "_py_warnings"}
        self.assertLessEqual(set(out.split()), expected)

    def test_docstrings_may_be_stripped(self):
        source = "import jitmem; print(jitmem.Function.__doc__, jitmem.MACHINE)"
        self.assertEqual(python("-OO", "-c", source), (0, f"None {jitmem.MACHINE}", ""))


class Readme(Case):
    def snippets(self):
        """The Python snippets of README."""
        path = os.path.join(HERE, "README.md")
        if not os.path.exists(path):
            self.skipTest("README.md is not here: a vendored or installed copy")
        with open(path, encoding="utf-8") as file:
            found = re.findall(r"```python\n(.*?)```", file.read(), re.S)
        self.assertGreater(len(found), 1)
        return found

    def run_snippet(self, snippet):
        """Run it, with each line that says which error it raises; False if it cannot run here."""
        names, raising = {}, re.compile(r"# (\w+Error: .*)")
        lines = snippet.splitlines()
        try:
            exec("\n".join(line for line in lines if not raising.search(line)), names)
        except ModuleNotFoundError as missing:
            self.assertIn(missing.name, ("keystone", "numpy"))
            return False
        except NotImplementedError as refused:
            if not PYPY:
                self.assertNotEqual(jitmem.MACHINE, "x86_64-sysv")
            known = r"^no code for|^guard: it knows Linux|^callback\(\) is not for"
            self.assertRegex(str(refused), known)
            return False
        for line in lines:
            said = raising.search(line)
            if said:
                with self.assertRaises(Exception) as caught:
                    exec(line, names)
                error = caught.exception
                self.assertEqual(f"{type(error).__name__}: {error}", said[1].strip())
        return True

    def test_every_python_snippet_runs_and_prints_what_it_says(self):
        if PROCESSOR not in ("x86_64", "aarch64"):
            self.skipTest("the snippets have code for x86-64 and AArch64")
        for snippet in self.snippets():
            if WINDOWS:
                snippet = snippet.replace("ctypes.CDLL(None)", 'ctypes.CDLL("msvcrt")')
            with self.subTest(snippet), contextlib.redirect_stdout(io.StringIO()) as out:
                ran = self.run_snippet(snippet)
            said = re.findall(r"print\(.*?\) *#(?:.*?:)? *(\S.*)", snippet)
            if ran and len(said) == snippet.count("print("):  # others print what this machine has
                expected = [text.strip() for text in said]
                self.assertEqual(out.getvalue().split("\n")[:-1], expected, snippet)


class Platform(Case):
    def test_pages_are_writable_then_executable_then_gone(self):
        pages = jitmem._Pages(1)
        page = pages.address
        self.assertEqual((shown_protection(page), pages.protection), ("rw-", "rw-"))
        for protection in "r-x", "rw-":
            self.assertIsNone(pages.protect(protection))
            self.assertEqual((shown_protection(page), pages.protection), (protection, protection))
        pages.release()
        self.assertEqual((shown_protection(page), pages.protection), ("", "---"))

    def test_a_refused_call_is_named_with_its_arguments(self):
        error = jitmem._protect(1, mmap.PAGESIZE, "rw-", mock.Mock(protection="?"))
        # A MemoryError with musl, which asks for whole pages itself.
        self.assertIsInstance(error, (OSError, MemoryError))
        self.assertRegex(str(error), r"(VirtualProtect|mprotect)\(1, \d+, ")

    def test_more_memory_than_there_is_is_a_memory_error(self):
        size, taken = sys.maxsize & ~0xFFFFF, []  # a 32-bit program may get one half

        def take():
            for _ in range(3):
                taken.append(jitmem._allocate(size))
        self.raises(MemoryError, "(mmap|VirtualAlloc).*NULL", take)

    @unittest.skipUnless(LINUX, "RLIMIT_AS is POSIX, and exact on Linux")
    def test_a_limit_on_memory_is_a_memory_error_and_passes(self):
        out = self.run_child("""
            import jitmem, mmap, resource, sys
            limits = resource.getrlimit(resource.RLIMIT_AS)
            with open("/proc/self/statm") as statm:
                used = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), limits[1]))
            try:
                mmap.mmap(-1, 256 << 20)
                sys.exit(print("not enforced"))
            except OSError:
                pass
            try:
                jitmem.Memory(256 << 20)
            except MemoryError as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_AS, limits)
            print(jitmem.Memory(256 << 20).protection)""")
        if out == "not enforced":
            self.skipTest("this emulator does not enforce RLIMIT_AS")
        self.assertRegex(out, r"(?s)mmap(64)?\(NULL, 0x10000000, .*ulimit -v.*\nrw-$")

    def test_the_machine_is_one_of_the_known_names(self):
        self.assertIn(PROCESSOR, jitmem._SAMPLES)
        self.assertEqual(jitmem.MACHINE.endswith("-windows"), WINDOWS)

    def test_the_machine_is_right_for_every_kernel_and_interpreter(self):
        def machine(system, processor, maxsize=2**63 - 1, byteorder="little", version=""):
            with (
                mock.patch.multiple(
                    sys, platform=system, maxsize=maxsize, byteorder=byteorder, version=version
                ),
                mock.patch.object(os, "uname", lambda: mock.Mock(machine=processor), create=True),
            ):
                return jitmem._machine()
        small = 2**31 - 1
        for expected, arguments in {
            "x86_64-sysv": ("linux", "x86_64"),
            "x86": ("linux", "x86_64", small),
            "aarch64": ("linux", "aarch64"),
            "arm": ("linux", "aarch64", small),
            "aarch64-apple": ("darwin", "arm64"),
            "x86_64-windows": (
                "win32",
                "",
                2**63 - 1,
                "little",
                "3.13 [MSC v.1941 64 bit (AMD64)]",
            ),
            "aarch64-windows": (
                "win32",
                "",
                2**63 - 1,
                "little",
                "3.13 [MSC v.1941 64 bit (ARM64)]",
            ),
            "mips64el": ("linux", "mips64"),
            "mips64": ("linux", "mips64", 2**63 - 1, "big"),
            "mipsel": ("linux", "mips64", small),
            "ppc64le": ("linux", "ppcle"),
            "loongarch64": ("linux", "loongarch64"),
            "wasm32": ("emscripten", ""),
        }.items():
            with self.subTest(expected):
                self.assertEqual(machine(*arguments), expected)
        self.assertEqual(
            machine("win32", "", small, "little", "3.13 [MSC v.1941 32 bit (Intel)]"), "x86"
        )
        self.assertEqual(machine("freebsd14", "amd64"), "x86_64-sysv")
        # What `setarch` says of a 64-bit interpreter; and Android.
        self.assertEqual(machine("linux", "i686"), "x86_64-sysv")
        self.assertEqual(machine("linux", "armv8l"), "aarch64")
        self.assertEqual(machine("linux", "armv8l", small), "arm")
        self.assertEqual(machine("android", "aarch64"), "aarch64")

    @unittest.skipIf(WINDOWS, "WebAssembly's mmap module has the names of POSIX's")
    def test_webassembly_imports_and_refuses_before_any_native_call(self):
        for system in "emscripten", "wasi":
            for without_ctypes in "", "sys.modules['_ctypes'] = None":
                with self.subTest(system, without=without_ctypes):
                    out = self.run_child(f"""
                        import sys
                        sys.platform = {system!r}
                        {without_ctypes}
                        import jitmem
                        for make in (lambda: jitmem.Memory(1),
                                     lambda: jitmem.function(b"\\xc3", None)):
                            try:
                                make()
                            except NotImplementedError as error:
                                print(error)
                        print(jitmem.info()["machine"])""")
                    self.assertEqual(out.count(f"cannot run machine code on {system}"), 2)
                    self.assertTrue(out.endswith("wasm32"))


@unittest.skipUnless(LINUX, "MDWE is Linux's")
class HardenedLinux(Case):
    def test_memory_still_takes_all_six_steps_again_and_again(self):
        out = self.run_hardened("""
            before = mappings()
            with jitmem.Memory(10000) as memory:
                for code in (here(ANSWER), here(SAME), here(ANSWER)):
                    memory.write(code, 5000)
                    memory.make_executable()
                    function = memory.function(ctypes.c_uint32, ctypes.c_uint32, offset=5000)
                    print(shown_protection(memory.address + 5000), function(7))
                    memory.make_writable()
                    print(shown_protection(memory.address), memory.read(5000, 4) == code[:4])
            print([row for row in mappings()
                   if "w" in row[2] and "x" in row[2] and row not in before])""",
            use="ANSWER SAME EMULATED here mappings shown_protection")
        self.assertEqual(
            out.split("\n"),
            ["r-x 305419896", "rw- True", "r-x 7", "rw- True", "r-x 305419896", "rw- True", "[]"],
        )

    def test_without_a_file_in_memory_the_refusal_names_the_policy(self):
        out = self.run_hardened("""
            jitmem._memfd_create = None
            memory = jitmem.Memory(100)
            memory.write(b"kept")
            try:
                memory.make_executable()
            except PermissionError as error:
                print(error)
            print(memory.protection, memory.read(0, 4))
            print(jitmem.info()["refused_by"])""")
        self.assertRegex(
            out,
            r"(?s)Errno 13.*mprotect\(0x.*refused by policy: MDWE: on.*\nrw- b'kept'\n\['MDWE'\]$",
        )


class InstructionCache(Case):
    def test_changed_code_at_one_address_is_what_runs(self):
        with jitmem.Memory(64) as memory:
            for round in range(50):
                code = (SAME, ANSWER)[round % 2]
                memory.write(here(code))
                memory.make_executable()
                self.assertEqual(
                    memory.function(c_uint32, c_uint32)(round), 0x12345678 if round % 2 else round
                )
                memory.make_writable()

    def test_a_failed_flush_leaves_the_memory_writable(self):
        def refuse(start, end):
            raise PermissionError(1, "injected")
        memory = jitmem.Memory(64)
        memory.write(here(ANSWER))
        with mock.patch.object(jitmem._process, "cache", ("refused", refuse)):
            self.raises(PermissionError, "injected", memory.make_executable)
        self.assertEqual((memory.protection, shown_protection(memory.address)), ("rw-", "rw-"))
        self.assert_healthy(memory)

    def test_a_processor_nobody_knows_is_refused_not_guessed(self):
        with (
            mock.patch.object(jitmem, "_PROCESSOR", "pdp11"),
            mock.patch.object(jitmem, "_SYSTEM_FLUSH", None),
        ):
            self.raises(NotImplementedError, "flush the instruction cache", jitmem._choose_cache)

    def test_our_own_routines_have_the_length_their_listings_say(self):
        self.assertEqual(
            [
                len(jitmem._hex(jitmem._FLUSH_CODE[machine]))
                for machine in ("aarch64", "ppc64le", "loongarch64")
            ],
            [96, 56, 8],
        )


class Point(Structure):
    _fields_ = [("x", c_int32), ("y", c_int32)]


class Either(Union):
    # On other processors libffi takes such a union for a structure, whose float has its register.
    _fields_ = [("i", c_int32), ("f", c_float if jitmem._PROCESSOR in (
        "x86_64", "x86", "aarch64", "arm", "ppc64le", "s390x") else c_uint32)]


class Integer:
    """An object that is an integer by __index__, and does something on the way."""
    def __init__(self, value, action=lambda: None):
        self.value, self.action = value, action

    def __index__(self):
        self.action()
        return self.value


class Handle(c_void_p):
    """A pointer type of a program's own, as wrappers of C libraries have many."""


class Checked(c_void_p):
    """One that takes nothing but itself."""
    asked = []

    @classmethod
    def from_param(cls, value):
        cls.asked.append(value)
        if not isinstance(value, Checked):
            raise TypeError("a Checked is needed")
        return value


class Cents(c_int32):
    @classmethod
    def from_param(cls, value):
        return c_int32(int(value) * 100)


class Plain:
    """No ctypes type at all: ctypes takes whatever has a from_param."""
    @staticmethod
    def from_param(value):
        answers = {"null": None, "address": c_void_p(77), "number": 5, "large": 1 << 5 * WORD,
                   "text": b"abc"}
        return answers[value] if isinstance(value, str) else value


class Number(enum.IntEnum):
    SEVEN = 7


class AsParameter:
    """What ctypes takes in place of the object itself."""
    def __init__(self, value):
        self._as_parameter_ = value


class Signatures(Case):
    """The reference call: what goes in, what comes out, what is refused."""

    @classmethod
    def setUpClass(cls):
        cls.add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add")
        cls.add_doubles = jitmem.function(ADD_DOUBLES, c_double, c_double, c_double, name="add")
        cls.address = jitmem.function(SAME, c_void_p, c_void_p, name="address")

    def test_integers_of_every_width_arrive_whole_at_both_ends_of_their_range(self):
        for type_, low, high in ((c_int8, -2**7, 2**7 - 1), (c_uint8, 0, 2**8 - 1),
                                 (c_int16, -2**15, 2**15 - 1),
                                 (c_uint16, 0, 2**16 - 1), (c_int32, -2**31, 2**31 - 1),
                                 (c_uint32, 0, 2**32 - 1),
                                 (c_int64, -2**63, 2**63 - 1), (c_uint64, 0, 2**64 - 1)):
            if ctypes.sizeof(type_) > WORD:
                continue  # SAME passes one register
            same = jitmem.function(SAME, type_, type_, name="same")
            with self.subTest(type_):
                for value in (low, high, 0, 1, low + 1, high - 1):
                    self.assertEqual(same(value), value)
                fixed = f"c_{'u' * (low == 0)}int{8 * ctypes.sizeof(type_)}"
                for value in (low - 1, high + 1, 2**100, -2**100):
                    message = rf"^same\(\) argument 1: {value} does not fit {fixed}$"
                    self.raises(OverflowError, message, same, value)

    def test_a_very_long_integer_is_refused_without_printing_it(self):
        self.raises(OverflowError, "argument 2: an integer of 100001 bits does not fit", self.add,
                    1, 1 << 100000)

    def test_an_integer_is_anything_with_index_and_nothing_else(self):
        self.assertEqual(self.add(Integer(2), True), 3)
        self.assertEqual(self.add(c_ssize_t(2), 3), 5)
        for value in ("3", 3.0, None, b"3", c_double(3), [3]):
            kind = jitmem._type_of(value)
            self.raises(TypeError, rf"^add\(\) argument 2 must be an integer, not {kind}$",
                        self.add, 2, value)

    def test_what_index_raises_is_what_the_caller_sees(self):
        def fail():
            raise LookupError("mine")
        self.raises(LookupError, "^mine$", self.add, 1, Integer(1, fail))

    def test_the_count_of_arguments_is_checked(self):
        for arguments in ((), (1,), (1, 2, 3)):
            self.raises(TypeError, rf"^add\(\) takes 2 arguments, not {len(arguments)}$", self.add,
                        *arguments)
        self.raises(TypeError, r"^f\(\) takes no arguments, not 1$",
                    jitmem.function(ANSWER, c_uint32, name="f"), 1)
        self.raises(TypeError, r"takes no keyword arguments", self.add, 1, b=2)

    def test_floating_arguments_take_real_numbers(self):
        self.assertEqual(self.add_doubles(1.5, 2), 3.5)
        self.assertEqual(self.add_doubles(Integer(1), True), 2.0)
        self.assertEqual(self.add_doubles(float("inf"), 1), float("inf"))
        self.assertNotEqual(self.add_doubles(float("nan"), 1), self.add_doubles(float("nan"), 1))
        for value in ("1", None, 1j, b"1"):
            self.raises(TypeError, rf"argument 1 must be a real number, not {type(value).__name__}",
                        self.add_doubles, value, 1)
        self.raises(OverflowError, "argument 1: an integer of 5001 bits does not fit c_double",
                    self.add_doubles, 1 << 5000, 1)

    def test_a_float_does_not_become_infinite_silently(self):
        add = jitmem.function(ADD_FLOATS, c_float, c_float, c_float, name="add")
        self.assertEqual(add(1.5, 0.25), 1.75)
        self.assertEqual(add(float("-inf"), 1), float("-inf"))
        self.raises(OverflowError, r"argument 2: -1e\+39 does not fit c_float", add, 1, -1e39)

    def test_a_c_bool_is_the_truth_of_anything(self):
        truth = jitmem.function(SAME, c_bool, c_bool)
        self.assertEqual([truth(value) for value in (True, False, 2, "", "x")],
                         [True, False, True, False, True])

    def test_characters_and_text_arrive_as_they_are(self):
        self.assertEqual(jitmem.function(SAME, c_char, c_char)(b"x"), b"x")
        text, wide = jitmem.function(SAME, c_char_p, c_char_p), jitmem.function(SAME, c_wchar_p,
                                                                                c_wchar_p)
        self.assertEqual([text(b"abc"), text(None), text(c_char_p(b"d")), wide("h\u00e9"),
                          wide(None)],
                         [b"abc", None, b"d", "h\u00e9", None])
        self.raises(TypeError, "argument 1 must be bytes, an array .*, or None, not str", text,
                    "abc")
        self.raises(TypeError, "argument 1 must be str, an array .*, or None, not bytes", wide,
                    b"abc")
        letter = jitmem.function(SAME, c_char, c_char, name="letter")
        self.raises(TypeError, r"letter\(\) argument 1: .* character", letter, b"xy")

    def test_pointers_take_addresses_pointers_arrays_and_references(self):
        value, items = c_int32(5), (c_int32 * 3)(1, 2, 3)
        self.assertEqual(self.address(0x1234), 0x1234)
        self.assertEqual(self.address(Integer(0x1234)), 0x1234)
        self.assertIsNone(self.address(None))
        self.assertIsNone(self.address(0))
        self.assertEqual(self.address(byref(value)), ctypes.addressof(value))
        self.assertEqual(self.address(ctypes.pointer(value)), ctypes.addressof(value))
        self.assertEqual(self.address(c_void_p(77)), 77)
        self.assertEqual(self.address(items), ctypes.addressof(items))
        self.assertEqual(self.address(self.add), self.add.address)
        callback = CALLBACK(abs)
        self.assertEqual(self.address(callback), ctypes.cast(callback, c_void_p).value)
        for value in (-1, 2 ** (8 * WORD)):
            self.raises(OverflowError, f"argument 1: {value} is not an address", self.address,
                        value)
        for value in (1.5, [1]):
            kind = type(value).__name__
            self.raises(TypeError, f"an address, None, a pointer or a buffer, not {kind}",
                        self.address, value)
        self.raises(TypeError, r"not c_int32; byref\(\) makes a pointer", self.address, c_int(5))

    def test_a_pointer_result_is_an_address_or_none(self):
        typed = jitmem.function(SAME, POINTER(c_int32), POINTER(c_int32))
        items = (c_int32 * 2)(8, 9)
        self.assertEqual(typed(items)[1], 9)
        self.assertFalse(typed(None))

    def test_buffers_are_passed_in_place(self):
        store = jitmem.function(STORE, None, c_void_p, c_ssize_t)
        for target in (bytearray(b"abc"), array.array("B", b"abc"), memoryview(bytearray(b"abc")),
                       (c_char * 3)(*b"abc")):
            self.assertIsNone(store(target, ord("z")))
            self.assertEqual(bytes(target), b"zbc")
        self.assertTrue(self.address(b"read-only"))
        self.raises(BufferError, "argument 1 must be C-contiguous", self.address,
                    memoryview(b"abcdef")[::2])

    def test_a_buffer_is_pinned_during_the_call_and_free_after_it(self):
        data, seen = bytearray(100), []

        def grow(_):
            try:
                data.append(1)
            except BufferError:
                seen.append("pinned")
            return 0
        call = jitmem.function(CALL, c_ssize_t, c_void_p, c_void_p, name="call")
        callback = CALLBACK(grow)
        call(callback, data)
        self.assertEqual(seen, [] if PYPY else ["pinned"])
        data.append(1)

    def test_typed_pointers_check_items_and_writability(self):
        first = jitmem.function(SAME, c_void_p, POINTER(c_int32), name="first")
        items = (c_int32 * 2)()
        value, point = c_int32(), Point()
        self.assertEqual(first(items), ctypes.addressof(items))
        self.assertEqual(first(byref(value)), ctypes.addressof(value))
        self.assertEqual(first(value), ctypes.addressof(value))
        self.assertEqual(first(c_void_p(5)), 5)
        self.assertTrue(first(array.array("i", [1])))
        self.assertTrue(jitmem.function(SAME, c_void_p, POINTER(c_ubyte))(bytearray(1)))
        self.assertTrue(jitmem.function(SAME, c_void_p, POINTER(Point))((Point * 2)()))
        self.raises(TypeError, "argument 1 has items of 4 bytes, format 'f': not c_int32", first,
                    array.array("f", [1]))
        self.raises(TypeError, "argument 1 has items of 2 bytes", first, array.array("h", [1]))
        self.raises(TypeError, "argument 1 has items of 1 bytes", first, bytearray(4))
        self.raises(TypeError, "read-only.*c_void_p takes", first, b"1234")
        self.raises(TypeError, r"first\(\) argument 1", first, byref(point))
        self.raises(TypeError, r"must be POINTER\(c_int32\), not POINTER\(c_double\)", first,
                    ctypes.pointer(c_double()))

    @unittest.skipIf(PYPY or PROCESSOR not in ("x86_64", "aarch64", "riscv64"),
                     "small structures are in one register by these; PyPy's libffi is its own")
    def test_structures_and_unions_travel_by_value(self):
        same = jitmem.function(SAME, Point, Point, name="same")
        point = same(Point(3, -4))
        self.assertEqual((point.x, point.y), (3, -4))
        self.raises(TypeError, r"same\(\) argument 1 must be Point, not int", same, 5)
        self.assertEqual(jitmem.function(SAME, c_int32, Either)(Either(7)), 7)
        adapted = type("Adapted", (),
                       {"_as_parameter_": type("Again", (), {"_as_parameter_": Point(5, 6)})()})()
        self.assertEqual(same(adapted).y, 6)
        derived = type("Derived", (Point,), {"_fields_": [("more", c_int64 * 3)]})
        point = same(derived(7, -8))  # ctypes would pass all of it
        self.assertEqual((point.x, point.y), (7, -8))

    def test_an_adapter_of_itself_is_a_recursion_error(self):
        adapter = type("AsParameter", (), {})()
        adapter._as_parameter_ = adapter
        for type_ in c_void_p, POINTER(c_int), c_int * 3, Point, Either:
            self.raises(RecursionError, "", jitmem.function(SAME, None, type_), adapter)

    def test_a_pointer_is_no_structure(self):
        adapted = type("Adapted", (), {"_as_parameter_": byref(c_int(1))})()
        for type_ in Point, Either:
            same = jitmem.function(SAME, None, type_, name="same")
            message = r"same\(\) argument 1 must be (Point|Either), not "
            for given in byref(c_int(1)), byref(type_()), adapted:
                self.raises(TypeError, message, same, given)

    def test_function_types_take_callbacks_and_functions(self):
        call = jitmem.function(CALL, c_ssize_t, CALLBACK, c_ssize_t, name="call")
        self.assertEqual(call(CALLBACK(lambda value: value + 1), 41), 42)
        self.assertEqual(call(jitmem.function(SAME, c_ssize_t, c_ssize_t), 7), 7)
        message = r"argument 1 must be of the very type CFUNCTYPE\(.*\), .* not builtin"
        self.raises(TypeError, message, call, abs, 7)

    @unittest.skipIf(PYPY, "PyPy's ctypes has no py_object")
    def test_objects_are_passed_as_themselves(self):
        same = jitmem.function(SAME, py_object, py_object)
        thing = object()
        before = sys.getrefcount(thing)
        incref = ctypes.pythonapi["Py_IncRef"]
        incref.argtypes = [py_object]
        incref(thing)  # a function returns a new reference
        self.assertIs(same(thing), thing)
        self.assertEqual(sys.getrefcount(thing), before)
        null = jitmem.function(SAME, py_object, c_void_p, name="null")
        self.raises(SystemError, r"null\(\) returned NULL without setting an exception", null, None)

    def test_types_that_ctypes_cannot_pass_are_refused_at_once(self):
        for type_ in (int, "c_int", 5, None, c_int(5), c_void_p(5)):
            self.raises(TypeError, "argtype 1 must be a ctypes type such as c_int64, not",
                        jitmem.function, SAME, c_int, type_)
        for type_ in (int, "c_int", lambda value: value):
            self.raises(TypeError, "restype must be a ctypes type such as c_int64, not",
                        jitmem.function, SAME, type_, c_int)
        self.raises(TypeError, "return no arrays", jitmem.function, SAME, c_int * 3, c_int)
        self.raises(TypeError, "at most 1024 arguments, not 1025", jitmem.function, SAME, c_int,
                    *[c_int] * 1025)

    def test_a_type_that_cannot_be_passed_is_named_with_what_to_do(self):
        other = c_int32.__ctype_be__ if sys.byteorder == "little" else c_int32.__ctype_le__
        unfinished = type("Unfinished", (Structure,), {})
        for type_, message in (
            ([c_int, c_int],
             r"argtype 1 is a list: types are given one by one, as restype, \*argtypes"),
            ((), "argtype 1 is a tuple: types are given one by one"),
            (unfinished, "argtype 1 Unfinished: it "),  # PyPy has empty ones
            (other, "argtype 1 c_\\w+_[bl]e: it has the other byte order"),
            (type("Empty", (Structure,), {"_fields_": []}), "argtype 1 Empty: it is empty"),
        ):
            self.raises(TypeError, message, jitmem.function, SAME, c_int, type_)
        self.raises(TypeError, "restype is a list", jitmem.function, SAME, [c_int])

    def test_integer_types_are_named_by_their_width(self):
        """c_long, c_ssize_t and c_int64 may be one class; which was written is not known."""
        wide = jitmem.function(SAME, c_ssize_t, c_ssize_t, name="same")
        self.raises(OverflowError, f"does not fit c_int{8 * WORD}$", wide, 2**100)
        self.assertIn(f"same(c_int{8 * WORD}) -> c_int{8 * WORD}", repr(wide))
        call = jitmem.function(SAME, c_void_p, POINTER(POINTER(c_uint16)), CALLBACK, Cents,
                               name="call")
        callback = f"CFUNCTYPE(c_int{8 * WORD}, c_int{8 * WORD})"
        text = f"call(POINTER(POINTER(c_uint16)), {callback}, Cents) -> c_void_p"
        self.assertIn(text, repr(call))

    def test_a_python_function_given_for_a_pointer_is_told_what_to_wrap_it_in(self):
        message = r"not function; jitmem.callback\(f, restype, \*argtypes\) makes a pointer of a"
        for type_ in c_void_p, POINTER(c_int32):
            self.raises(TypeError, message, jitmem.function(SAME, None, type_), lambda: None)
        call = jitmem.function(CALL, c_ssize_t, CALLBACK, c_ssize_t)
        self.raises(TypeError, rf"not function; jitmem.callback\(f, c_int{8 * WORD}, c_int", call,
                    lambda value: value, 1)

    def test_the_default_name_is_not_that_of_what_made_the_function(self):
        self.raises(TypeError, r"^machine_code\(\) argument 1 must be",
                    jitmem.function(SAME, c_int, c_int), "x")

    def test_a_type_outside_the_interpreter_is_named_with_its_module(self):
        for value, name in ((decimal.Decimal(1), "decimal.Decimal"), (Integer, "type"),
                            (Point(), "Point"),
                            (AsParameter, "type"), (Real(1), f"{__name__}.Real"),
                            (byref(c_int()), "what byref")):
            if not PYPY:
                self.raises(TypeError, f"must be an integer, not {name}", self.add, 1, value)

    def test_a_conversion_of_a_program_s_own_is_asked_once_and_decides(self):
        memory = jitmem.Memory(64)
        memory.write(here(SAME))
        memory.make_executable()
        made = jitmem.function(SAME, c_void_p, Checked, name="take")
        for take in (made, jitmem.Code(SAME).function(c_void_p, Checked, name="take"),
                     memory.function(c_void_p, Checked, name="take"),
                     jitmem.bind(made.address, c_void_p, Checked, name="take")):
            del Checked.asked[:]
            given = Checked(9)
            self.assertEqual(take(given), 9)
            self.assertEqual(Checked.asked, [given])
            for value in 9, b"text", c_void_p(9), None, self.add:
                self.raises(TypeError, r"^take\(\) argument 1: a Checked is needed$", take, value)
        cents = jitmem.function(SAME, c_int32, Cents, name="cents")
        self.assertEqual([cents(5), cents("7"), cents(Cents(1).value)], [500, 700, 100])
        self.raises(ValueError, r"^cents\(\) argument 1: invalid literal", cents, "x")

    def test_what_is_no_type_but_converts_is_asked_too(self):
        take = jitmem.function(SAME, c_void_p, Plain, name="take")
        self.assertEqual([take("null"), take("address"), take("number")], [None, 77, 5])
        self.assertEqual(take(c_void_p(3)), 3)
        self.assertEqual(jitmem.function(SAME, c_void_p, Plain(), name="take")("number"), 5)
        self.assertEqual(ctypes.string_at(take("text")), b"abc")
        self.assertEqual(take("large"),
                         2**40 if WORD == 8 else 2**20)  # ctypes would pass the lower half of this
        message = r"take\(\) argument 1 must be an address, None, a pointer or a buffer, not list"
        self.raises(TypeError, message, take, [])

    def test_what_a_conversion_returns_may_still_need_one(self):
        class Address(c_void_p):
            @classmethod
            def from_param(cls, value):
                return value
        take = jitmem.function(SAME, c_void_p, Address, name="take")
        data = bytearray(b"abc")
        self.assertEqual([take(5), take(None), take(c_void_p(7)), take(Address(8))],
                         [5, None, 7, 8])
        self.assertEqual(take(data), ctypes.addressof(c_char.from_buffer(data)))
        self.assertEqual(take(self.add), self.add.address)

    def test_numpy_s_checked_pointers_check(self):
        try:
            import numpy
            from numpy.ctypeslib import ndpointer
        except ImportError:
            self.skipTest("NumPy is not here")
        take = jitmem.function(SAME, c_void_p, ndpointer(dtype=numpy.float64, ndim=1), name="take")
        numbers = numpy.arange(3.0)
        self.assertEqual(take(numbers), numbers.ctypes.data)
        for wrong in numpy.arange(3), numpy.zeros((2, 2)), [1.0], 5:
            self.raises(TypeError, r"^take\(\) argument 1: a", take, wrong)

    def test_a_pointer_to_any_type_takes_one_of_that_type_as_what_to_point_to(self):
        pointer = ctypes.pointer(c_int32(3))
        for value in (c_void_p(0x1234), Handle(0x1234), c_char_p(b"x"), c_wchar_p("x"), c_size_t(5),
                      c_double(1), c_bool(True),
                      c_char(b"x"), pointer, Point(), Either(), CALLBACK(abs)):
            take = jitmem.function(SAME, c_size_t, POINTER(type(value)))
            self.assertEqual(take(value), ctypes.addressof(value), type(value))
        # Of a c_void_p it is not clear whether it is the pointer or is to be pointed to.
        for type_ in Handle, c_char_p, POINTER(c_int32):
            self.raises(TypeError, "must be POINTER",
                        jitmem.function(SAME, c_size_t, POINTER(type_)), c_void_p(8))
        self.assertEqual(jitmem.function(SAME, c_size_t, POINTER(c_int32))(c_void_p(8)), 8)

    def test_memory_given_through_an_out_parameter_arrives(self):
        if not LINUX:
            self.skipTest("posix_memalign is POSIX's")
        library, place = ctypes.CDLL(None), c_void_p()
        allocate = jitmem.bind(library.posix_memalign, c_int, POINTER(c_void_p), c_size_t, c_size_t)
        self.assertEqual(allocate(place, 64, 100), 0)
        self.assertEqual(place.value % 64, 0)
        jitmem.bind(library.free, None, c_void_p)(place)

    def test_numbers_that_are_finite_stay_finite_whatever_their_type(self):
        add = {c_double: self.add_doubles,
               c_float: jitmem.function(ADD_FLOATS, *[c_float] * 3, name="add")}
        large = 10**400
        for type_, call in add.items():
            for value in (decimal.Decimal("1e400"), decimal.Decimal("-1e400"),
                          fractions.Fraction(large), large, -large):
                message = rf"^add\(\) argument 2: .* does not fit {type_.__name__}$"
                self.raises(OverflowError, message, call, 1, value)
            self.raises(ValueError, r"^add\(\) argument 2: ", call, 1, decimal.Decimal("sNaN"))
            self.raises(TypeError, r"^add\(\) argument 2 must be a real number, not complex$", call,
                        1, 1j)
            self.assertEqual(call(decimal.Decimal("Infinity"), 1), float("inf"))
            self.assertEqual(call(Real(float("inf")), 1), float("inf"))
            self.assertEqual(call(fractions.Fraction(1, 2), decimal.Decimal("0.25")), 0.75)
        self.raises(OverflowError, "does not fit c_float", add[c_float], 1, decimal.Decimal("1e39"))

    @unittest.skipUnless(hasattr(ctypes, "c_float_complex"),
                         "this Python's ctypes has no complex numbers")
    def test_complex_numbers_stay_finite_too(self):
        same = jitmem.function(b"\xc3" if PROCESSOR != "aarch64" else here(SAME),
                               ctypes.c_float_complex,
                               ctypes.c_float_complex, name="same")
        if PROCESSOR in ("x86_64", "aarch64"):
            self.assertEqual(same(1 + 2j), 1 + 2j)
        self.raises(OverflowError, r"same\(\) argument 1: \(?1e\+300\+1j\)? does not fit", same,
                    1e300 + 1j)
        self.raises(TypeError, "must be a number, not str", same, "1j")

    @unittest.skipUnless(
        jitmem.MACHINE == "x86_64-sysv" and hasattr(ctypes, "c_longdouble_complex"),
                         "its two parts are returned in x87 registers on x86-64 alone")
    def test_a_long_complex_number_is_the_same_under_guard(self):
        code = bytes.fromhex("db6c2418 db6c2408 c3")  # fld tbyte [rsp+24]; fld tbyte [rsp+8]; ret
        type_ = ctypes.c_longdouble_complex
        for guard in False, True:
            self.assertEqual(jitmem.function(code, type_, type_, guard=guard)(1 + 2j), 1 + 2j)

    def test_unions_go_by_value_where_ctypes_passes_them_as_c_does(self):
        """libffi knows no unions: ctypes tells it of one as of a structure."""
        def union(*types, base=Union):
            return type("Mixed", (base,),
                        {"_fields_": [(f"m{i}", type_) for i, type_ in enumerate(types)]})
        integers = union(c_int64, c_int32, c_uint8 * 3)
        self.assertIs(jitmem.function(SAME, None, integers).argtypes[0], integers)
        wrong = [union(c_double, c_int64), union(c_float, c_double), union(c_float, c_int64),
                 union(c_float, c_int32)]  # the last one is right by chance
        if jitmem.MACHINE == "x86_64-sysv":
            for type_ in wrong:
                for each in type_, union(type_, c_int64, base=Structure):
                    self.raises(TypeError, "argtype 1 Mixed: ctypes may pass it wrong",
                                jitmem.function, SAME, None, each)
                    self.raises(TypeError, "restype Mixed: ctypes may pass it wrong",
                                jitmem.function, SAME, each)
                jitmem.function(SAME, POINTER(type_), POINTER(type_))
                jitmem.function(SAME, None, union(type_, c_int64, c_int64,
                                                  base=Structure))  # in memory, as all of that size
            packed = {"_pack_": 1, "_layout_": "ms", "_fields_": [("a", c_int8), ("b", c_int64)]}
            self.raises(TypeError, "pass it wrong", jitmem.function, SAME, None,
                        type("Packed", (Structure,), packed))
            for type_ in union(c_int64, c_double), union(c_double, c_float):
                jitmem.function(SAME, None, type_)
            first = jitmem.function(SAME, c_int64, union(c_int64, c_double))
            self.assertEqual(first(first.argtypes[0](9)), 9)

    def test_plain_structures_go_by_value_everywhere(self):
        def structure(*types):
            return type("Plain", (Structure,),
                        {"_fields_": [(f"m{i}", type_) for i, type_ in enumerate(types)]})
        pair = structure(c_float, c_float)
        plain = [pair, structure(pair, c_int32), structure(c_float * 4), structure(pair, pair),
                 structure(c_int8, c_double), structure(*[c_double] * 4), structure(c_char * 16),
                 structure(c_void_p, c_int16 * 3), structure(c_int64 * 9), type("Own", (pair,), {})]
        longer = type("Longer", (structure(c_int16, c_int8),), {"_fields_": [("more", c_float)]})
        doubtful = [structure(c_double, c_double * 2), structure(c_float * 2 * 2), longer]
        machines = {"x86_64-sysv": "x86_64", "x86_64-windows": "x86_64", "aarch64": "aarch64",
                    "riscv64": "riscv64", "s390x": "s390x", "arm": "arm", "x86": "x86"}
        for machine, processor in machines.items():
            with mock.patch.multiple(jitmem, MACHINE=machine, _PROCESSOR=processor):
                for type_ in plain:
                    self.assertTrue(jitmem._goes_right(type_, False), (machine, type_._fields_))
                if machine == "aarch64":
                    right = [jitmem._goes_right(type_, False) for type_ in doubtful]
                    self.assertEqual(right, [False, False, True])
        for machine in "x86_64-sysv", "riscv64":
            with mock.patch.multiple(jitmem, MACHINE=machine, _PROCESSOR=machine.partition("-")[0]):
                self.assertFalse(any(jitmem._goes_right(type_, False) for type_ in doubtful[1:]))

    def test_structures_that_the_stack_cannot_hold_are_refused(self):
        out = self.run_child("""
            import ctypes, sys, threading, jitmem
            class Large(ctypes.Structure):
                _fields_ = [("bytes", ctypes.c_char * 65536)]
            def attempt(count):
                types = [ctypes.c_uint32] + [Large] * count
                function = jitmem.function(ANSWER, *types, name="f")
                try:
                    print(function(*[Large()] * count) == 0x12345678)
                except MemoryError as error:
                    print(str(error)[:str(error).index(" bytes")])
            attempt(1)
            attempt(1000)
            for size in 128 << 10, 1 << 20:
                threading.stack_size(size)
                thread = threading.Thread(target=attempt, args=(1,))
                thread.start()
                thread.join()
            """, use="ANSWER")
        self.assertEqual(out.split("\n")[1], "f() passes 65536000")
        if LINUX:
            self.assertEqual(out.split("\n"),
                             ["True", "f() passes 65536000", "f() passes 65536", "True"])

    def test_many_signatures_and_their_trampolines_are_not_kept_for_ever(self):
        out = self.run_child("""
            import gc, itertools, jitmem
            from ctypes import c_double, c_float, c_int8, c_int16, c_int32
            jitmem._SIGNATURES_KEPT, code = 50, here(ANSWER)
            types = itertools.product((c_double, c_float, c_int8, c_int16, c_int32), repeat=5)
            for argtypes in itertools.islice(types, 1500):
                jitmem.function(code, None, *argtypes)
            collect()
            sizes = [end - start for start, end, _, name in mappings() or []
                     if "memfd:jitmem" in name]
            print(len(jitmem._signatures), sum(sizes))
            """, use="ANSWER PYPY here collect mappings")
        signatures, size = map(int, out.split())
        self.assertLessEqual(signatures, 50)
        self.assertLessEqual(size, 5 * 256 << 10)

    def test_signatures_of_a_user_type_let_it_go(self):
        def make():
            class Mine(Structure):
                _fields_ = [("x", c_int)]
            function = jitmem.function(SAME, c_void_p, POINTER(Mine))
            function(byref(Mine()))
            return weakref.ref(Mine) if sys.version_info >= (3,
                14) else weakref.ref(function)  # older POINTER() keeps it
        reference = make()
        collect()
        collect()
        self.assertIsNone(reference())


@unittest.skipIf(PYPY, "PyPy's ctypes has rules of its own")
class SideBySide(Case):
    """ctypes and jitmem, type by type, value by value: what ctypes takes is taken as the same."""

    REGISTERS = PROCESSOR in ("x86_64", "aarch64",
                                      "riscv64")  # that Point and Either travel in
    NUMBERS = (*(c_int8, c_uint8, c_int16, c_uint16, c_int32, c_uint32, c_ssize_t, c_size_t),
               c_float, c_double, c_bool)
    TEXT = c_char, ctypes.c_wchar, c_char_p, c_wchar_p
    POINTED = c_int32, c_double, c_char, ctypes.c_wchar, c_void_p, c_char_p, Point, POINTER(c_int32)
    POINTERS = (c_void_p, Handle, Checked, *map(POINTER, POINTED), CALLBACK, c_int32 * 2,
                c_char * 4)

    def types(self):
        return [*self.NUMBERS, *self.TEXT, *self.POINTERS, Cents, py_object,
                *[Point, Either] * self.REGISTERS]

    def values(self):
        """Of everything that can be passed, what is new each time: another call may change it."""
        class Several(int):
            _as_parameter_ = 3
        instances = [c_int8(-3), c_uint8(3), c_int16(-4), c_int32(5), c_uint32(6), c_ssize_t(-7),
                     c_size_t(8), c_float(1.5),
                     c_double(2.5), c_bool(True), c_bool(False), c_char(b"c"), ctypes.c_wchar("w"),
                     c_char_p(b"text"),
                     c_wchar_p("wide"), c_char_p(), c_void_p(0x1234), c_void_p(), Handle(0x5678),
                     Checked(0x9abc), Cents(3),
                     Point(1, 2), Either(3), ctypes.pointer(c_int32(1)), POINTER(c_int32)(),
                     ctypes.pointer(c_char(b"p")),
                     ctypes.pointer(Point(3, 4)), (c_int32 * 2)(1, 2), (c_int32 * 3)(1, 2, 3),
                     (c_char * 4)(*b"abcd"),
                     (c_void_p * 2)(), ctypes.create_string_buffer(b"buffer"),
                     ctypes.create_unicode_buffer("wide"),
                     CALLBACK(abs),
                     ctypes.cast(ctypes.create_string_buffer(b"cast"), POINTER(c_char)),
                     ctypes.cast(c_wchar_p("cast"), POINTER(ctypes.c_wchar))]
        plain = [None, True, False, 0, 1, -1, 127, 128, 255, 2**15, 2**31 - 1, 2**31, -2**31, 2**63,
                 2**64 - 1, 2**64, -2**63,
                 2**200, Number.SEVEN, IntegerSubclass(9), Several(2), 0.0, 1.5, -2.0, 1e300,
                 float("inf"), FloatSubclass(0.5),
                 Integer(5), Real(2.5), b"", b"x", b"bytes", "", "u", "text", bytearray(b"y"),
                 bytearray(b"many"),
                 memoryview(b"view"), array.array("i", [1]), [], (), {}, object(), 1j, len,
                 lambda: None, int]
        adapted = [AsParameter(value) for value in [*instances, *plain, AsParameter(5),
                                                AsParameter(AsParameter(b"deep")), self.function]]
        return [*instances, *plain, *adapted, *map(byref, instances)]

    def setUp(self):
        self.function = jitmem.function(SAME, c_ssize_t, c_ssize_t)

    def pair(self, type_):
        """The two callables, of one argument, and how their results are compared."""
        restype, show = c_int32 if type_ is Cents else type_, lambda value: value
        if type_ in self.POINTERS or type_ in (py_object, c_char_p, c_wchar_p):
            restype = c_void_p
        elif type_ in (Point, Either):
            show = bytes
        if type_ not in (c_float, c_double):
            ours = jitmem.function(SAME, restype, type_)
            return ours, CFUNCTYPE(restype, type_)(ours.address), show
        ours = jitmem.function(ADD_FLOATS if type_ is c_float else ADD_DOUBLES, type_, type_, type_)
        theirs = CFUNCTYPE(type_, type_, type_)(ours.address)
        return lambda value: ours(value, 0.0), lambda value: theirs(value, 0.0), repr

    def is_cut(self, value, arrived):
        """Whether ctypes passed a number as another one, without a word: jitmem refuses these."""
        while hasattr(value, "_as_parameter_"):
            value = value._as_parameter_
        if isinstance(value, float):
            return arrived == "inf"
        return isinstance(value, int) and arrived not in (value, value or None, repr(float(value)))

    def test_what_ctypes_takes_is_taken_and_arrives_as_the_same(self):
        crashes = {Point, Either, CALLBACK}  # ctypes, given a byref()
        counts = [0, 0, 0, 0]
        for type_ in self.types():
            ours, theirs, show = self.pair(type_)
            pointer = type_ in self.POINTERS
            for value in self.values():
                inner = getattr(value, "_as_parameter_", value)
                if type(inner) is type(byref(c_int())) and type_ in crashes:
                    continue
                with warnings.catch_warnings(), self.subTest(type_, value=value):
                    warnings.simplefilter("ignore")  # 3.9 takes a Decimal for an int, and warns
                    try:
                        expected = show(theirs(value))
                    except (ctypes.ArgumentError, TypeError):
                        expected = "refused"
                    try:
                        found = show(ours(value))
                    except (TypeError, OverflowError, ValueError, BufferError) as error:
                        self.assertIn("machine_code() argument 1", str(error))
                        found = "refused"
                    if expected == found:
                        counts[0] += 1
                    elif found == "refused":  # what ctypes would cut to size
                        counts[1] += 1
                        self.assertTrue(self.is_cut(value, expected), f"ctypes passes {expected}")
                    elif expected == "refused":
                        counts[2] += 1
                        self.assertTrue(pointer,
                                        found)  # of pointers more is taken: README says what
                    else:  # each makes a copy of its own of text for wchar_t*
                        counts[3] += 1
                        self.assertIsInstance(inner, str)
                        self.assertTrue(expected and found)
        self.assertGreater(min(counts[:3]), 0, counts)


class MemoryByHand(Case):
    def test_a_refused_allocation_leaves_nothing_to_free_and_can_be_tried_again(self):
        memory = jitmem.Memory.__new__(jitmem.Memory)
        with mock.patch.object(jitmem, "_allocate", side_effect=MemoryError("injected")):
            self.raises(MemoryError, "injected", memory.__init__, 64)
        self.assertEqual((memory.closed, memory.protection), (True, "---"))
        memory.__init__(64)
        self.assert_healthy(memory)
        memory.close()
        self.raises(ValueError, r"function\(\): the memory is closed", memory.function, c_uint32)

    def test_the_six_steps_make_a_function_and_take_the_memory_back(self):
        with jitmem.Memory(6) as memory:
            self.assertEqual((memory.size, memory.protection), (6, "rw-"))
            self.assertEqual(shown_protection(memory.address), "rw-")
            self.assertEqual(memory.read(), bytes(6))
            with jitmem.Memory(len(here(ANSWER))) as memory:
                self.assertEqual(memory.write(here(ANSWER)), len(here(ANSWER)))
                memory.make_executable()
                self.assertEqual(memory.protection, "r-x")
                self.assertEqual(shown_protection(memory.address), "r-x")
                self.assertEqual(memory.function(c_uint32)(), 0x12345678)
                address = memory.address
            self.assertEqual((memory.protection, memory.closed), ("---", True))
            self.assertNotEqual(shown_protection(address), "r-x")

    def test_every_page_changes_and_goes(self):
        size = 64 * mmap.PAGESIZE + 1
        memory = jitmem.Memory(size)
        first, last = memory.address, memory.address + size - 1
        memory.write(b"\xee", size - 1)
        memory.make_executable()
        self.assertEqual((shown_protection(last), memory.read(size - 1)), ("r-x", b"\xee"))
        memory.make_writable()
        self.assertEqual(shown_protection(last), "rw-")
        memory.close()
        # Libraries that map memory while this looks take the end of what became free.
        self.assertNotEqual(shown_protection(first), "rw-")

    def test_sizes_that_make_no_sense_are_refused(self):
        for size in (0, -1, -2**70):
            self.raises(
                ValueError, f"size must be at least 1 byte, not {size}", jitmem.Memory, size
            )
        for size in (2**64 + 4096, 2**64, 2**1000, sys.maxsize):
            self.raises(OverflowError, "do not fit the address space", jitmem.Memory, size)
        if WORD == 8:
            self.raises(MemoryError, "", jitmem.Memory, sys.maxsize - 2**24)
        for size in ("6", 6.0, None, b"6"):
            self.raises(
                TypeError,
                rf"Memory\(\) size must be an integer, not {type(size).__name__}",
                jitmem.Memory,
                size,
            )

    def test_writes_and_reads_stay_inside(self):
        memory = jitmem.Memory(10)
        memory.write(b"0123456789")
        for data, offset in ((b"ab", 9), (b"a", 10), (b"a", -1), (b"a", 2**70), (bytes(11), 0)):
            self.raises(
                ValueError,
                r"write\(\): \d+ bytes at offset .* do not fit the 10 bytes",
                memory.write,
                data,
                offset,
            )
        for offset, size in ((11, None), (-1, None), (0, 11), (5, 6), (5, 2**70)):
            self.raises(ValueError, r"read\(\)", memory.read, offset, size)
        self.raises(ValueError, "must not be negative", memory.read, 0, -1)
        self.raises(TypeError, "offset must be an integer, not float", memory.write, b"a", 1.0)
        self.assertEqual([memory.read(), memory.read(3), memory.read(3, 2), memory.read(10)],
                         [b"0123456789", b"3456789", b"34", b""])
        self.assertEqual((memory.write(b""), memory.write(b"", 10)), (0, 0))

    def test_what_is_not_bytes_is_not_written(self):
        memory = jitmem.Memory(64)
        self.raises(TypeError, r"must be bytes, not str; bytes\.fromhex\(\)", memory.write, "b8 78")
        for data in (5, None, [1, 2], 1.5):
            self.raises(
                TypeError,
                f"must be bytes or another buffer, not {type(data).__name__}",
                memory.write,
                data,
            )
        for data in (
            bytearray(b"ab"),
            memoryview(b"ab"),
            array.array("B", b"ab"),
            memoryview(b"a-b-")[::2],
        ):
            memory.write(data)
            self.assertEqual(memory.read(0, 2), b"ab")

    def test_writing_to_executable_and_calling_writable_memory_is_refused_with_the_remedy(self):
        memory = jitmem.Memory(64)
        memory.write(here(ANSWER))
        function = memory.function(c_uint32, name="answer")
        self.raises(
            ValueError, r"^answer\(\): the memory is rw-; call make_executable\(\) first$", function
        )
        memory.make_executable()
        self.raises(
            ValueError,
            r"write\(\): the memory is r-x; call make_writable\(\) first",
            memory.write,
            b"x",
        )
        self.assertEqual(function(), 0x12345678)
        self.assertEqual(memory.read(0, 4), here(ANSWER)[:4])
        memory.make_executable()
        memory.make_writable()
        memory.make_writable()
        self.raises(ValueError, "make_executable", function)
        self.assert_healthy(memory)

    def test_offsets_outside_are_refused(self):
        memory = jitmem.Memory(16)
        for offset in (16, -1, 2**70):
            self.raises(ValueError, r"function\(\)", memory.function, c_int, offset=offset)
        self.raises(TypeError, "offset must be an integer", memory.function, c_int, offset="0")

    def test_several_functions_share_one_memory(self):
        with jitmem.Memory(256) as memory:
            memory.write(here(ANSWER))
            memory.write(here(ADD), 128)
            memory.make_executable()
            answer, add = (
                memory.function(c_uint32),
                memory.function(c_ssize_t, c_ssize_t, c_ssize_t, offset=128, name="add"),
            )
            self.assertEqual(
                (answer(), add(2, 3), add.address, add.size),
                (0x12345678, 5, memory.address + 128, 128),
            )

    def test_after_close_everything_is_a_value_error_and_close_is_nothing(self):
        memory = executable(ANSWER)
        function = memory.function(c_uint32, name="answer")
        memory.close()
        memory.close()
        for call in (
            lambda: memory.write(b"a"),
            memory.read,
            memory.make_executable,
            memory.make_writable,
        ):
            self.raises(ValueError, "the memory is closed", call)
        self.raises(ValueError, r"answer\(\): the memory is closed", function)
        self.assertEqual(repr(memory), "<jitmem memory, closed>")

    def test_the_repr_shows_address_size_and_state(self):
        memory = jitmem.Memory(64)
        self.assertEqual(repr(memory), f"<jitmem memory at {memory.address:#x} (64 bytes, rw-)>")
        function = memory.function(None)
        self.assertTrue(repr(function).endswith(f" at {memory.address:#x} (64 bytes)>"))
        memory.close()
        self.assertTrue(repr(function).endswith(", closed>"))

    def test_an_argument_that_closes_the_memory_meets_a_closed_memory(self):
        memory = executable(SAME)
        same = memory.function(c_ssize_t, c_ssize_t, name="same")
        self.raises(ValueError, r"same\(\): the memory is closed", same, Integer(5, memory.close))

    def test_changes_during_a_call_are_refused_and_nothing_is_lost(self):
        memory = executable(CALL)
        call = memory.function(c_ssize_t, c_void_p, c_ssize_t, name="call")
        refused = []

        def change(value):
            for change in (memory.close, memory.make_writable, memory.make_executable):
                try:
                    change()
                except BufferError as error:
                    refused.append(str(error))
            if value:
                call(callback, value - 1)
            memory.read()
            return value
        callback = CALLBACK(change)
        self.assertEqual(call(callback, 2), 2)
        self.assertEqual(len(refused), 9)
        self.assertIn("close(): the memory is in use", refused[0])
        self.assertEqual(call(callback, 0), 0)
        memory.close()

    def test_changes_from_other_threads_never_pull_the_memory_from_under_a_call(self):
        memory, code, stop = jitmem.Memory(64), here(SAME), threading.Event()
        memory.write(code)
        memory.make_executable()
        same = memory.function(c_ssize_t, c_ssize_t, nogil=True)

        def call():
            while not stop.wait(0.0002):  # or a change might never find the memory without a call
                for _ in range(20):
                    with contextlib.suppress(ValueError, BufferError):
                        self.assertEqual(same(5), 5)

        def change():
            changes = refused = 0
            end, enough = time.monotonic() + 200, 2000 if STRESS else 50
            try:
                while min(changes, refused) < enough and time.monotonic() < end:
                    try:
                        memory.make_writable()
                        memory.write(code)
                        memory.make_executable()
                        changes += 1
                    except BufferError:
                        refused += 1
            finally:
                stop.set()
            self.assertGreaterEqual(min(changes, refused), enough)
        self.run_threads(call, call, call, change)
        memory.close()

    @unittest.skipUnless(FORKS, "for systems that fork")
    def test_a_forked_child_is_not_held_up_by_the_threads_it_did_not_inherit(self):
        memory = jitmem.Memory(64)
        entered, leave = threading.Event(), threading.Event()

        def hold():
            with memory._hold("test", "rw-"):
                entered.set()
                leave.wait()

        def fork():
            entered.wait()
            try:
                self.raises(BufferError, "in use", memory.close)
                self.fork(memory.close)
            finally:
                leave.set()
        self.run_threads(hold, fork)
        memory.close()

    @unittest.skipUnless(TIMER, "no interval timer here")
    def test_an_interrupt_never_leaves_state_and_pages_at_odds(self):
        class Interrupt(Exception):
            pass

        def interrupt(*_):
            raise Interrupt
        memory, code, interrupted = jitmem.Memory(64), here(SAME), 0
        memory.write(code)
        quiet = mock.patch.object(
            sys, "unraisablehook", lambda unraisable: None
        )  # where it struck in a finalizer
        with on_alarm(interrupt), quiet:
            for _ in range(300 if STRESS else 100):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.0002)
                    for _ in range(1000):
                        memory.make_executable()
                        same = memory.function(c_ssize_t, c_ssize_t)
                        for value in range(5):
                            same(value)
                        memory.make_writable()
                except Interrupt:
                    interrupted += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
                if memory.protection != "?":
                    self.assertEqual(memory.protection, shown_protection(memory.address))
                if PYPY:
                    collect()  # what the interrupt kept from being released
                memory.make_writable()
                memory.write(code)
        self.assertGreater(interrupted, 0)
        memory.close()

    @unittest.skipIf(PYPY, "PyPy traces other steps")
    def test_an_interrupt_at_any_bytecode_leaves_the_state_that_the_pages_have(self):
        code = here(SAME)
        for change in "make_executable", "make_writable", "close", "write", "read":
            for number in itertools.count(1):
                memory = executable(code)
                same = memory.function(c_ssize_t, c_ssize_t)
                if change in ("make_executable", "write"):
                    memory.make_writable()
                arguments = [code] if change == "write" else []
                # While the exception is there, its traceback keeps frames, and what is in them.
                error = self.raising_at(number, lambda: getattr(memory, change)(*arguments))
                with self.subTest(change, number=number):
                    if STRESS or number % 4 == 0:  # the system's list is long to read
                        shown = "---" if memory.closed else shown_protection(memory.address)
                        self.assertEqual(memory.protection, shown)
                    if memory.protection == "r-x":
                        self.assertEqual(same(5), 5)
                    if not memory.closed:
                        memory.make_writable()
                        memory.write(code)
                        memory.make_executable()
                        self.assertEqual(same(6), 6)
                    memory.close()
                if error is None:
                    break
            self.assertGreater(number, 20)

    @unittest.skipIf(PYPY, "PyPy gives memory back when it collects")
    def test_an_interrupt_at_any_bytecode_of_its_life_leaves_nothing_and_is_what_is_seen(self):
        code = here(SAME)

        def life():
            with jitmem.Memory(10) as memory:
                memory.write(code)
                memory.make_executable()
                assert memory.function(c_ssize_t, c_ssize_t)(5) == 5
                memory.make_writable()
        life()
        before = living_pages()
        for number in itertools.count(1):
            error = self.raising_at(number, life)  # nothing but the exception raised comes out
            ended, error = error is None, None
            self.assertEqual(living_pages(), before, number)
            if ended:
                break
        self.assertGreater(number, 100)

    def test_what_is_closed_cannot_be_entered(self):
        for thing in jitmem.Memory(1), jitmem.Code(ANSWER), jitmem.function(ANSWER, c_uint32):
            with thing:
                pass
            self.raises(ValueError, "closed> cannot be used any more", thing.__enter__)

    @unittest.skipIf(PYPY, "PyPy's frames are not counted so")
    def test_at_the_recursion_limit_a_change_is_made_or_not(self):
        memory, made = executable(SAME), set()
        memory.make_writable()

        def deeper(left):
            if left:
                deeper(left - 1)
            else:
                memory.make_executable()
        limit = sys.getrecursionlimit()
        for left in range(limit - 200, limit):
            try:
                deeper(left)
                made.add(True)
            except (RecursionError, ctypes.ArgumentError):  # as which ctypes passes it on
                made.add(False)
                self.assertEqual(memory.protection, "rw-")
            self.assertEqual(memory.protection, shown_protection(memory.address))
            memory.make_writable()
        self.assertEqual(made, {True, False})

    def test_a_change_that_is_refused_beside_another_one_lets_no_call_in(self):
        memory = executable(ANSWER)
        function, seen, protect = memory.function(c_uint32), [], jitmem._protect

        def others():
            for call in (memory.make_writable, function):
                try:
                    seen.append(call())
                except BufferError:
                    seen.append("refused")

        def while_others_try(*arguments):
            thread = threading.Thread(target=others)
            thread.start()
            thread.join()
            return protect(*arguments)
        with mock.patch.object(jitmem, "_protect", while_others_try):
            memory.make_writable()
        self.assertEqual(seen, ["refused"] * 2)
        memory.make_executable()
        self.assertEqual(function(), 0x12345678)

    @unittest.skipUnless(FORKS, "for systems that fork")
    def test_calls_that_machine_code_counts_end_with_the_threads_of_the_parent(self):
        memory, stop = executable(SAME), threading.Event()
        memory._gate[1] += 1  # as a trampoline does
        self.raises(BufferError, "in use", memory.close)
        self.assertEqual(memory._gate[0], 1)
        self.fork(lambda: self.raises(BufferError, "in use", memory.close))  # it is this thread's
        thread = threading.Thread(target=stop.wait)
        thread.start()
        try:
            self.fork(memory.close)
        finally:
            stop.set()
            thread.join()
        memory._gate[1] -= 1
        memory.close()
        self.assertEqual(memory._gate[0], 0)

    def test_it_cannot_be_copied_pickled_or_allocated_twice(self):
        memory = jitmem.Memory(64)
        for copy_it in (copy.copy, copy.deepcopy, pickle.dumps):
            self.raises(TypeError, "two owners would free one mapping", copy_it, memory)
        self.raises(ValueError, "allocated already", memory.__init__, 5)
        memory.close()
        self.raises(ValueError, "allocated already", memory.__init__, 5)

    def test_a_function_passed_as_a_pointer_must_be_callable_at_the_time_of_the_call(self):
        memory = executable(SAME)
        same = memory.function(c_ssize_t, c_ssize_t, name="same")
        call = jitmem.function(CALL, c_ssize_t, c_void_p, c_ssize_t)
        typed = jitmem.function(CALL, c_ssize_t, CALLBACK, c_ssize_t)
        self.assertEqual((call(same, 5), typed(same, 6)), (5, 6))
        for each in call, typed:
            memory.make_writable()
            self.raises(ValueError, r"same\(\): the memory is rw-", each, same, 5)
            memory.make_executable()
            self.raises(
                ValueError,
                r"same\(\): the memory is rw-",
                each,
                same,
                Integer(5, memory.make_writable),
            )
            memory.make_executable()
        memory.close()
        self.raises(ValueError, r"same\(\): the memory is closed", call, same, 5)
        self.raises(ValueError, "closed", lambda: same._as_parameter_)

    def test_a_refused_change_leaves_the_memory_executable_and_its_functions_callable(self):
        memory = executable(ANSWER)
        function = memory.function(c_uint32)
        with mock.patch.object(jitmem, "_protect", lambda *_: MemoryError("injected")):
            self.raises(MemoryError, "injected", memory.make_writable)
        self.assertEqual(
            (memory.protection, shown_protection(memory.address), function()),
            ("r-x", "r-x", 0x12345678),
        )
        self.assert_healthy(memory)

    def test_a_dropped_memory_is_freed_and_one_with_functions_is_not(self):
        memory = executable(ANSWER)
        function, reference = memory.function(c_uint32), weakref.ref(memory)
        del memory
        collect()
        self.assertEqual(function(), 0x12345678)
        del function
        collect()
        self.assertIsNone(reference())

    def test_nothing_is_said_at_interpreter_exit(self):
        self.run_child("""
            import builtins, jitmem
            builtins.kept = jitmem.Memory(10), jitmem.function(ANSWER, None)
            memory = jitmem.Memory(10)""", use="ANSWER")

    @unittest.skipIf(PYPY, "PyPy calls no finalizers at exit")
    def test_finalizers_at_interpreter_exit_may_call_functions(self):
        out = self.run_child("""
            import ctypes, jitmem, sys
            class Last:
                def __init__(self):
                    by_reference = jitmem.function(SAME, ctypes.c_ssize_t, ctypes.c_wchar)
                    self.calls = [(by_reference, "x"),
                                  (jitmem.function(SAME, ctypes.c_longdouble),),
                                  (jitmem.function(SAME, None),)]
                    # The reference's conversions of numbers need what is gone by then.
                    if jitmem.info()["calls"] == "trampolines":
                        self.calls[2] = jitmem.function(SAME, None, ctypes.c_ssize_t), 5
                    for function, *arguments in self.calls:
                        function(*arguments)
                    self.say = sys.stdout.write
                def __del__(self):
                    for function, *arguments in self.calls:
                        function(*arguments)
                        self.say("called ")
            sys.last = Last()""", use="SAME")
        self.assertEqual(out, "called called called")


def new_code(number):
    """Code that returns this number, and is unlike any other number's.

    For processors whose sample ends in a constant.
    """
    if PROCESSOR in ("x86_64", "x86"):
        return b"\xb8" + struct.pack("<I", number) + b"\xc3"
    if PROCESSOR == "arm":
        return here(ANSWER)[:8] + struct.pack("<I", number)
    if PROCESSOR == "s390x":
        return b"\xc0\x2f" + struct.pack(">I", number) + b"\x07\xfe"
    words = list(struct.unpack("<3I", here(ANSWER)))
    high, low = number >> 16, number & 0xFFFF
    if PROCESSOR == "aarch64":
        words[:2] = 0x52800000 | low << 5, 0x72A00000 | high << 5
    elif PROCESSOR == "ppc64le":
        words[:2] = 0x3C600000 | high, 0x60630000 | low
    elif PROCESSOR == "mips64el":
        words[0], words[2] = 0x3C020000 | high, 0x34420000 | low
    elif PROCESSOR == "loongarch64":  # lu12i.w and ori take 20 and 12 bits
        words[:2] = 0x14000004 | number >> 12 << 5, 0x03800084 | (number & 0xFFF) << 10
    else:  # riscv64, whose second constant is signed
        low = (number & 0xFFF) - 0x1000 * (number >> 11 & 1)
        words[:2] = (
            (number - low & 0xFFFFF000) | 10 << 7 | 0x37,
            (low & 0xFFF) << 20 | 10 << 15 | 10 << 7 | 0x1B,
        )
    return struct.pack("<3I", *words)


class Heap(Case):
    def setUp(self):
        jitmem.function(ANSWER, c_uint32)  # what the first load makes for good is made before

    def test_many_functions_share_a_mapping_and_none_overlap(self):
        fresh_chunks()
        functions = self.assert_loads(200)
        ends = sorted(
            (function.address, function.address + function.size) for function in functions
        )
        self.assertTrue(all(before[1] <= after[0] for before, after in zip(ends, ends[1:])))
        self.assertTrue(all(function.address % 64 == 0 for function in functions))
        if SEALED_FILES:
            self.assertLessEqual(len({function._chunk for function in functions}), 2)

    def test_code_larger_than_a_chunk_gets_one_of_its_own(self):
        size = jitmem._CHUNK + 5
        code = here(ANSWER) + bytes(size - len(here(ANSWER)))
        before, files = living_pages(), descriptors()
        function = jitmem.function(code, c_uint32)
        self.assertEqual((function(), function.size), (0x12345678, size))
        pages, = living_pages() - before
        self.assertEqual((pages, descriptors()), (function._chunk, files))
        del function, pages
        collect()
        self.assertEqual(living_pages(), before)

    def test_all_memory_comes_back_when_the_functions_go(self):
        fresh_chunks()
        collect()
        before = living_pages()
        functions = self.assert_loads(3000 if not EMULATED else 300)
        functions += [jitmem.function(here(ANSWER) + bytes(20000), c_uint32) for _ in range(50)]
        self.assertGreater(len(living_pages()), len(before))
        del functions
        collect()
        fresh_chunks()
        collect()
        self.assertEqual(living_pages() - before, set())

    def test_a_chunk_in_use_stays_and_goes_with_its_last_function(self):
        fresh_chunks()
        first, *others = self.assert_loads(20)
        pages, address = weakref.ref(first._chunk), first.address
        fresh_chunks()
        others.clear()
        collect()
        self.assertEqual((first(), shown_protection(address)), (0x01000000, "r-x"))
        del first
        collect()
        self.assertIsNone(pages())
        if not PYPY:
            self.assertNotEqual(shown_protection(address), "r-x")

    def test_a_failed_load_publishes_nothing_and_the_next_one_works(self):
        for failure in (OSError(28, "injected"), MemoryError("injected"), KeyboardInterrupt()):
            fresh_chunks()
            self.assert_loads(1)
            with (
                self.subTest(failure),
                mock.patch.multiple(
                    jitmem, _MUST_FLUSH=True, _flush=mock.Mock(side_effect=failure)
                ),
            ):
                with self.assertRaises(type(failure)):
                    jitmem.function(ANSWER, c_uint32)
                self.assertEqual(jitmem._process.heap.open, [])
            self.assert_loads(5)

    def test_an_error_of_the_systems_that_a_signal_handler_raises_is_no_refusal(self):
        # A timeout is an OSError, and it may even have a number.
        def raising(*_):
            raise TimeoutError(errno.ETIMEDOUT, "injected")
        names = ["_sealed_file", "_protect", "_flush"] + ["_trampoline"] * TRAMPOLINES
        for name in names:
            fresh_chunks()
            refused = sealed_files_refused() if name == "_protect" else contextlib.nullcontext()
            types = [c_uint32] * 4 if name == "_trampoline" else [c_uint32]
            target = jitmem.bind if name == "_trampoline" else jitmem.function
            with self.subTest(name), refused, mock.patch.object(jitmem, name, raising), \
                    mock.patch.object(jitmem, "_MUST_FLUSH", True), \
                    mock.patch.dict(jitmem._signatures, clear=name == "_trampoline"):
                code = 4096 if target is jitmem.bind else ANSWER
                self.raises(TimeoutError, "injected", target, code, *types)
            self.assert_loads(3)

    def test_memory_that_reads_back_differently_is_not_published(self):
        fresh_chunks()
        with mock.patch.object(jitmem._process, "write", None), \
                mock.patch.object(jitmem, "_bytes_at", lambda address, size: bytes(size)):
            self.raises(
                OSError, "does not hold what was written", jitmem.function, ANSWER, c_uint32
            )
        self.assert_loads(5)

    def test_protected_pages_serve_where_there_are_no_sealed_files(self):
        fresh_chunks()
        with sealed_files_refused():
            functions = self.assert_loads(100 if not EMULATED else 40)
            self.assertIn(
                "protected pages (no sealed file: [Errno 38] injected)",
                jitmem.info()["code_memory"],
            )
        self.assertEqual({shown_protection(function.address) for function in functions}, {"r-x"})
        self.assertEqual(
            len({function.address // mmap.PAGESIZE for function in functions}), len(functions)
        )
        del functions
        collect()
        fresh_chunks()

    def assert_nothing_is_left(self, work, *, enough):
        """Raise at each single bytecode of this, one after the other: nothing of it may stay."""
        def taken():
            return descriptors(), len(living_pages())

        def attempt():
            nonlocal over
            over = self.raising_at(number, work) is None
        work()
        fresh_chunks()
        before = taken()
        over = False
        for number in itertools.count(1):
            # Raised in the cleaning up of an except clause, it leaves that one's exception for ever
            # in the thread (CPython 3.11 and later), so each thread has but one.
            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join()
            del thread
            fresh_chunks()
            if taken() != before:
                collect()  # an exception may be in a cycle with its traceback
            self.assertEqual(taken(), before, number)
            if over:
                break
        self.assertGreater(number, enough)

    @unittest.skipIf(PYPY, "PyPy gives memory back when it collects")
    def test_an_interrupt_at_any_bytecode_of_a_load_leaves_nothing(self):
        small, large = here(ANSWER), here(ANSWER) + bytes(40000)

        def load():
            assert jitmem.function(small, c_uint32)() == 0x12345678

        def code_object():
            with jitmem.Code(large) as entries:
                assert entries.function(c_uint32)() == 0x12345678
        with mock.patch.object(sys, "unraisablehook", lambda unraisable: None):
            for work in load, code_object:
                with self.subTest(work.__name__):
                    self.assert_nothing_is_left(work, enough=100)

    @unittest.skipIf(PYPY, "PyPy gives memory back when it collects")
    def test_a_chunk_that_is_lost_lives_on_with_its_functions_and_without_its_file(self):
        fresh_chunks()
        functions, before = self.assert_loads(3), descriptors()
        jitmem._process.heap.open.clear()  # as if an interrupt had come before it was put back
        self.assertEqual(
            descriptors(), before - bool(LINUX and functions[0]._chunk.protection == "rw-")
        )
        self.assertEqual(functions[2](), 0x01000002)

    @unittest.skipUnless(LINUX, "for systems whose refusals are known")
    def test_what_refuses_a_step_makes_the_next_kind_of_memory_serve(self):
        for name, number in (("_pwrite", errno.ENOSYS), ("_ftruncate", errno.EFBIG),
                             ("_fcntl", errno.EPERM), ("_open", errno.EMFILE)):
            def refuse(*_, number=number):
                ctypes.set_errno(number)
                return -1
            refuse.__name__ = name
            fresh_chunks()
            self.assert_loads(2)
            with self.subTest(name), mock.patch.object(jitmem, name, refuse), \
                    mock.patch.object(jitmem._process, "write", lambda *_: 0):
                self.assertEqual(self.assert_loads(1)[0](), 0x01000000)
                if name == "_pwrite":
                    self.assertIsNone(jitmem._process.heap.open[-1].file)
                self.assertIn("protected pages (no sealed file: ", jitmem.info()["code_memory"])

    @unittest.skipUnless(LINUX, "for systems whose refusals are known")
    def test_where_nothing_may_be_executed_info_says_that_function_refuses(self):
        def refuse(*_):
            ctypes.set_errno(errno.ENOMEM)
            return -1
        refuse.__name__ = "refuse"
        fresh_chunks()
        with mock.patch.multiple(jitmem, _mmap=refuse, _mprotect=refuse):
            self.raises(MemoryError, r"refuse\(0x.*ulimit -v", jitmem.function, ANSWER, c_uint32)
            self.assertRegex(jitmem.info()["code_memory"], "^refused: refuse")
        self.assert_loads(2)

    @unittest.skipUnless(LINUX and not EMULATED, "mlockall is Linux's here")
    def test_the_limit_on_locked_memory_is_named(self):
        out = self.run_child("""
            import ctypes, os, resource, jitmem
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
            if ctypes.CDLL(None).mlockall(2):  # MCL_FUTURE
                print("ulimit -l")
            else:
                try:
                    jitmem.Memory(1 << 20)
                except MemoryError as error:
                    print(error)""")
        self.assertIn("ulimit -l", out)

    @unittest.skipUnless(FORKS, "for systems that fork")
    def test_a_first_use_imports_nothing(self):
        # A fork while another thread imports leaves the child with a lock that nobody gives back.
        self.run_child("""
            import ctypes, sys, jitmem
            class Refuse:
                def find_spec(self, name, path=None, target=None):
                    raise AssertionError(f"{name} is imported")
            wanted = {"_weakref", "itertools", "mmap", "ctypes", "_ctypes", "os", "sys", "struct"}
            for name in list(sys.modules):
                # PyPy's ctypes is written in Python, and imports its own parts when it needs them.
                stays = "jitmem", "importlib", "_frozen", "_ctypes."
                if name not in wanted and not name.startswith(stays):
                    del sys.modules[name]
            sys.meta_path.insert(0, Refuse())
            assert jitmem.function(ANSWER, ctypes.c_uint32)() == 0x12345678
            assert jitmem.function(SAME, ctypes.c_longdouble)
            with jitmem.Code(ANSWER) as code:
                assert code.function(ctypes.c_uint32)() == 0x12345678
            with jitmem.Memory(10) as memory:
                memory.write(b"\\0")
                memory.make_executable()
                memory.function(None)
            assert jitmem.info()["functions"] >= 0""", use="ANSWER SAME")

    @unittest.skipUnless(LINUX and not PYPY, "what is left is asked of Linux, at once")
    def test_a_copy_of_the_module_that_goes_leaves_nothing(self):
        out = self.run_child("""
            import gc, importlib, os, sys
            import jitmem
            from ctypes import c_ssize_t
            def use(module):
                assert module.function(ADD, *[c_ssize_t] * 3)(1, 2) == 3
                with module.Code(ANSWER) as code, module.Memory(10):
                    code.function(c_ssize_t)()
            def copy():
                del sys.modules["jitmem"]
                use(importlib.import_module("jitmem"))
            def reload():
                use(importlib.reload(sys.modules["jitmem"]))
            def taken():
                gc.collect()
                maps = [row for row in mappings() if "jitmem" in row[3] or "x" in row[2]]
                return len(os.listdir("/proc/self/fd")), len(maps)
            for again in copy, reload:
                again()
                again()
                before = taken()
                for _ in range(3):
                    again()
                print(*(after - there for after, there in zip(taken(), before)))""",
            use="ADD ANSWER mappings")
        self.assertEqual(out, "0 0\n0 0")

    @unittest.skipUnless(LINUX and not PYPY, "what is left is asked of Linux, at once")
    def test_an_interpreter_that_ends_leaves_nothing(self):
        out = self.run_child("""
            import os, sys
            source = f'''if True:
                import sys
                sys.path[:] = {sys.path!r}
                import jitmem
                from ctypes import c_ssize_t
                assert jitmem.function({ADD}, *[c_ssize_t] * 3)(1, 2) == 3
            '''
            try:
                from concurrent import interpreters
            except ImportError:
                try:
                    import _interpreters as interpreters
                except ImportError:
                    import _xxsubinterpreters as interpreters
            def once():
                interpreter = interpreters.create()
                if hasattr(interpreter, "exec"):
                    interpreter.exec(source)
                    interpreter.close()
                else:
                    interpreters.run_string(interpreter, source)
                    interpreters.destroy(interpreter)
            def taken():
                code = [row for row in mappings() if "jitmem" in row[3]]
                return len(os.listdir("/proc/self/fd")), len(code)
            try:
                once()
            except Exception as error:  # on 3.12 ctypes does not support it
                assert "does not support loading" in str(error)
                sys.exit(print("0 0"))
            before = taken()
            for _ in range(3):
                once()
            print(*(after - there for after, there in zip(taken(), before)))""", use="ADD mappings")
        self.assertEqual(out, "0 0")

    @unittest.skipUnless(STRESS and WORD == 8, "it takes 8 GiB")
    def test_code_of_more_than_two_gibibytes_is_loaded_whole(self):
        code = bytearray((2 << 30) + 4096)
        code[-64:] = here(ANSWER).ljust(64, b"\0")
        with jitmem.Code(code) as entries:
            self.assertEqual(entries.function(c_uint32, offset=len(code) - 64)(), 0x12345678)

    def test_code_starts_where_align_says(self):
        for align in 1, 64, 128, mmap.PAGESIZE:
            functions = [jitmem.function(ANSWER, c_uint32, align=align) for _ in range(3)]
            for function in *functions, pickle.loads(pickle.dumps(functions[2])):
                self.assertEqual((function.address % max(align, 64), function()), (0, 0x12345678))
            code = jitmem.Code(here(ANSWER).ljust(64, b"\0") * 2, align=align)
            function = pickle.loads(pickle.dumps(code.function(c_uint32, offset=64)))
            self.assertEqual(
                (code.address % align, function.address % 64, function()), (0, 0, 0x12345678)
            )
            self.assertEqual(function._owner.address % align, 0)
        for align in 0, -64, 96, 2 * mmap.PAGESIZE, 2**70:
            self.raises(
                ValueError,
                "align must be a power of two up to",
                jitmem.function,
                ANSWER,
                None,
                align=align,
            )
        self.raises(TypeError, "align must be an integer", jitmem.Code, ANSWER, align="page")

    @unittest.skipIf(
        PYPY, "PyPy finalizes a cycle in order, and its ctypes classes are not collected at once"
    )
    def test_cycles_are_collected_without_a_call_into_memory_that_is_gone(self):
        count = "100" if EMULATED else "300"
        out = self.run_child(
            """
            import gc, sys, jitmem
            from ctypes import Structure, c_double, c_uint32, c_void_p
            answers = {"called": 0, "gone": 0}

            class Caller:
                def __del__(self):
                    for function in self.functions:
                        try:
                            assert function() == 0x12345678
                            answers["called"] += 1
                        except ReferenceError:
                            answers["gone"] += 1

            def cycles(count):
                for _ in range(count):
                    class P(Structure):
                        _fields_ = [("x", c_double), ("y", c_double)]
                    P.area = jitmem.function(ANSWER, c_double, P)
                    caller = Caller()
                    code = jitmem.Code(ANSWER)
                    caller.functions = [jitmem.function(ANSWER, c_uint32, keep=caller),
                                        code.function(c_uint32, keep=caller)]
                    caller.code = code
                    if _ % 100 == 0:
                        gc.collect()
            cycles(int(sys.argv[1]))
            gc.collect(); gc.collect()
            fresh_chunks()
            living = living_pages() - set(jitmem._process.permanent)
            print(sum(answers.values()), len(living),
                  jitmem.info()["functions"])
            cycles(50)  # and at exit""",
            count, use="ANSWER fresh_chunks living_pages")
        self.assertEqual(out, f"{2 * int(count)} 0 0")

    @unittest.skipUnless(TIMER, "no interval timer here")
    def test_a_load_from_a_signal_handler_in_the_middle_of_loads(self):
        loaded, enough = [], 5000 if STRESS else 100

        def load(*_):
            loaded.extend(self.assert_loads(1, 0x02000000 + len(loaded)))
            # Not before, because on a slow machine handlers would pile up.
            signal.setitimer(signal.ITIMER_REAL, 0.0005)

        with on_alarm(load):
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            for round in itertools.count():
                self.assert_loads(20, 0x03000000 + round % 1000 * 20)
                if len(loaded) >= enough:
                    break
        self.assertEqual(
            [function() for function in loaded],
            [0x02000000 + number for number in range(len(loaded))],
        )

    def test_threads_load_call_and_drop_at_once(self):
        ended = []

        def work(thread):
            kept = []
            try:
                for number in range(20000 if STRESS else 300):
                    value = thread << 24 | number
                    kept.append((jitmem.function(new_code(value), c_uint32), value))
                    if len(kept) > 50:
                        kept.pop(number % 50)
                    for function, value in kept[-3:]:
                        self.assertEqual(function(), value)
            finally:
                ended.append(thread)

        def fork():
            while len(ended) < 8:
                self.fork(lambda: self.assert_loads(200, 0x05000000))

        self.run_threads(
            *(functools.partial(work, number) for number in range(8)),
            *[fork] * (2 if STRESS and FORKS else 0),
        )

    @unittest.skipUnless(FORKS, "for systems that fork")
    def test_a_forked_child_runs_what_it_inherited_and_leaves_its_parents_chunks_alone(self):
        fresh_chunks()
        inherited = self.assert_loads(10)
        chunk, pages = jitmem._process.heap.open[-1], inherited[0]._chunk

        def in_child():
            self.assertEqual(jitmem._process.heap.open, [])
            mine = self.assert_loads(10, 0x05000000)
            self.assertIsNot(mine[0]._chunk, pages)
            self.assertEqual(
                [function() for function in inherited],
                [0x01000000 + number for number in range(10)],
            )
            self.assertTrue(chunk.file is None or chunk.file.number == -1)
        self.fork(in_child)
        later = self.assert_loads(10, 0x06000000)
        self.assertIs(later[0]._chunk, pages)
        self.assertEqual(
            [function() for function in inherited], [0x01000000 + number for number in range(10)]
        )

    @unittest.skipUnless(FORKS and TIMER, "for systems that fork")
    def test_forks_in_the_middle_of_loads_never_mix_two_processes_codes(self):
        children, began, number, enough, status = (
            [],
            [],
            0,
            0,
            1,
        )  # began: in a child, the number at which it was forked

        def fork(*_):
            pid = os.fork()
            if not pid:
                began.append(number)
                return
            children.append(pid)
            if len(children) < enough:
                signal.setitimer(signal.ITIMER_REAL, 0.002)
        paged = sealed_files_refused()
        with warnings.catch_warnings(), on_alarm(fork):
            warnings.simplefilter("ignore")
            try:
                for kind in contextlib.nullcontext(), paged:
                    fresh_chunks()
                    enough, kept = enough + (10 if PYPY or EMULATED else 500 if STRESS else 20), []
                    with kind:
                        signal.setitimer(signal.ITIMER_REAL, 0.002)
                        while len(children) < enough and not (began and number > began[0] + 8):
                            number += 1
                            for size in 0, 9000, 60000:
                                value = number << 1 | bool(began)
                                kept.append(
                                    (
                                        jitmem.function(new_code(value) + bytes(size), c_uint32),
                                        value,
                                    )
                                )
                            kept = kept[-30:]
                            self.assertEqual(
                                [function() for function, value in kept],
                                [value for function, value in kept],
                            )
                    if began:
                        break
                status = 0
            finally:
                if began:
                    os._exit(status)
        self.assertEqual([os.waitpid(pid, 0)[1] for pid in children], [0] * enough)
        fresh_chunks()

    @unittest.skipUnless(
        LINUX and not EMULATED, "MADV_WIPEONFORK is Linux's, and emulators may ignore it"
    )
    def test_a_fork_by_another_library_is_seen_too(self):
        fresh_chunks()
        chunk = self.assert_loads(1)[0]._chunk
        pid = ctypes.CDLL(None).fork()  # no hook of Python's runs
        if not pid:
            status = 1
            with contextlib.suppress(BaseException):
                fresh = self.assert_loads(3)
                status = int(any(function._chunk is chunk for function in fresh))
            os._exit(status)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)

    @unittest.skipUnless(
        LINUX and not EMULATED, "MADV_WIPEONFORK is Linux's, and emulators may ignore it"
    )
    def test_a_child_forked_by_another_library_leaves_its_parent_the_chunk_that_is_too_full_for_it(
        self,
    ):
        fresh_chunks()
        large = here(ANSWER) + bytes(jitmem._CHUNK // 8 - len(here(ANSWER)))
        functions = self.assert_loads(1)
        chunk = functions[0]._chunk
        while chunk.size - chunk.used >= len(large):
            functions.append(jitmem.function(large, c_uint32))
        pid = ctypes.CDLL(None).fork()
        if not pid:
            status = 1
            with contextlib.suppress(BaseException):
                status = int(jitmem.function(large, c_uint32)() != 0x12345678)
            os._exit(status)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertIs(self.assert_loads(1)[0]._chunk, chunk)


@unittest.skipUnless(SEALED_FILES, "for systems with sealed files")
class SealedFiles(Case):
    """What the kernel itself promises of code memory on Linux."""

    def load(self, count=1):
        fresh_chunks()
        return self.assert_loads(count)

    def chunk_of(self, function):
        """The chunk that it was loaded into just now."""
        chunk = jitmem._process.heap.open[-1]
        self.assertIs(chunk.pages, function._chunk)
        return chunk

    def chunk_row(self, pages):
        row, = [row for row in mappings() if row[0] <= pages.address < row[1]]
        return row

    def test_no_mapping_of_code_is_writable_not_even_an_alias(self):
        function, = self.load()
        row = self.chunk_row(function._chunk)
        self.assertEqual(row[2], "r-xs")
        self.assertEqual(
            [other for other in mappings() if other[3] == row[3] and "w" in other[2]], []
        )

    def assert_mapping_is_fixed(self, chunk):
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = c_void_p, c_size_t, c_int
        for protection in (3, 7):
            self.assertEqual(protect(chunk.address, mmap.PAGESIZE, protection), -1)
        if not EMULATED:  # emulators open the host's file
            with open("/proc/self/mem", "r+b", buffering=0) as memory:
                memory.seek(chunk.address)
                self.raises(OSError, "", memory.write, b"\xcc")
        self.assertEqual(self.chunk_row(chunk)[2], "r-xs")

    def test_a_chunk_refuses_every_way_to_change_its_mapping(self):
        function, = self.load()
        self.assert_mapping_is_fixed(function._chunk)
        for size in (0, jitmem._CHUNK * 2):
            self.raises(OSError, "", os.ftruncate, self.chunk_of(function).file.number, size)

    def test_a_full_chunk_refuses_every_write(self):
        function, = self.load()
        chunk = self.chunk_of(function)
        file = os.dup(chunk.file.number)
        self.addCleanup(os.close, file)
        fresh_chunks()
        self.assertEqual(chunk.file.number, -1)
        self.assert_mapping_is_fixed(chunk.pages)
        self.raises(OSError, "", os.pwrite, file, b"\xcc", 0)
        self.raises(OSError, "", mmap.mmap, file, mmap.PAGESIZE)
        for size in (0, jitmem._CHUNK * 2):
            self.raises(OSError, "", os.ftruncate, file, size)
        punch = ctypes.CDLL(None, use_errno=True).fallocate64
        punch.argtypes = c_int, c_int, c_int64, c_int64
        self.assertEqual(
            punch(file, 3, 0, mmap.PAGESIZE), -1
        )  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        self.assertEqual(function(), 0x01000000)

    def test_a_stolen_descriptor_is_left_to_its_new_owner(self):
        out = self.run_child("""
            import os, struct, tempfile, jitmem, ctypes
            first = [jitmem.function(new_code(5), ctypes.c_uint32) for _ in range(3)]
            chunk = jitmem._process.heap.open[-1]
            number, size = chunk.file.number, jitmem._CHUNK
            os.closerange(3, 100)
            path = tempfile.mkdtemp() + "/customers.db"
            with open(path, "wb") as file:
                file.write(b"\\5" * size)
            file = os.open(path, os.O_RDWR)
            if file != number:
                os.dup2(file, number)
            functions = [jitmem.function(new_code(i), ctypes.c_uint32) for i in range(5000)]
            assert [function() for function in functions] == list(range(5000)) and first[2]() == 5
            del functions, first
            assert chunk not in jitmem._process.heap.open
            del chunk
            with open(path, "rb") as file:
                print(file.read() == b"\\5" * size, os.lseek(number, 0, 1))""",
            use="ANSWER PROCESSOR here new_code")
        self.assertEqual(out, "True 0")

    def test_another_sealed_file_on_our_number_is_not_taken_for_ours(self):
        function, = self.load()
        number = self.chunk_of(function).file.number
        ours, pages = os.dup(number), jitmem._Pages(jitmem._CHUNK)
        other = jitmem._sealed_file(pages)
        os.dup2(other.number, number)
        self.assertIsNot(self.assert_loads(1)[0]._chunk, function._chunk)
        self.assertEqual(os.pread(number, 64, 0) + os.pread(number, 64, 64), bytes(128))
        os.close(ours)
        os.close(number)
        other.close()

    def test_a_write_that_fails_makes_another_chunk_serve(self):
        function, = self.load()
        chunk, write = self.chunk_of(function), jitmem._pwrite

        def little(file, address, size, start):
            return write(file, address, min(3, size), start)
        with mock.patch.object(jitmem._process, "write", None):
            with mock.patch.object(jitmem, "_pwrite", little):
                self.assertIs(self.assert_loads(1)[0]._chunk, function._chunk)
            chunk.file.close()
            self.assertIsNot(self.assert_loads(2)[0]._chunk, function._chunk)

    def run_limited(self, limit, value):
        return self.run_child(f"""
            import ctypes, resource, struct, jitmem
            first = jitmem.function(new_code(5), ctypes.c_uint32)
            limits = resource.getrlimit(resource.{limit})
            fresh_chunks()
            resource.setrlimit(resource.{limit}, ({value}, limits[1]))
            functions = [jitmem.function(new_code(i), ctypes.c_uint32) for i in range(30)]
            print(all(chunk.file is None for chunk in jitmem._process.heap.open),
                  [function() for function in functions] == list(range(30)))
            resource.setrlimit(resource.{limit}, limits)
            fresh_chunks()
            again = jitmem.function(new_code(7), ctypes.c_uint32)
            print(jitmem._process.heap.open[-1].file is not None, again(), first())""",
            use="ANSWER PROCESSOR here new_code fresh_chunks")

    def test_without_descriptors_to_spare_protected_pages_serve(self):
        self.assertEqual(self.run_limited("RLIMIT_NOFILE", 3), "True True\nTrue 7 5")

    def test_with_a_limit_on_file_sizes_protected_pages_serve(self):
        out = self.run_limited("RLIMIT_FSIZE", 4096)
        if EMULATED and out.startswith("False"):
            self.skipTest("this emulator does not enforce RLIMIT_FSIZE")
        self.assertEqual(out, "True True\nTrue 7 5")

    def test_without_proc_protected_pages_serve(self):
        fresh_chunks()
        with mock.patch.object(jitmem, "_open", mock.Mock(return_value=-1, __name__="open")):
            self.assert_loads(1)
        self.assertIsNone(jitmem._process.heap.open[-1].file)

    def test_without_memfd_create_in_the_c_library_protected_pages_serve(self):
        fresh_chunks()
        with mock.patch.object(jitmem, "_memfd_create", None):
            self.assert_loads(1)
        self.assertIsNone(jitmem._process.heap.open[-1].file)
        fresh_chunks()

    def test_before_linux_6_3_the_flag_it_does_not_know_is_left_out(self):
        asked = []
        create = jitmem._memfd_create

        def old_create(name, flags):
            asked.append(flags)
            if flags & 8:
                ctypes.set_errno(errno.EINVAL)
                return -1
            return create(name, flags)
        with mock.patch.object(jitmem, "_memfd_create", old_create):
            file = jitmem._OpenFile()
            self.assertIsNone(file.create())
            file.close()
        self.assertEqual(asked, [11, 3])

    def test_the_write_in_machine_code_fails_where_the_one_in_python_does(self):
        if not jitmem._TRAMPOLINES:
            self.skipTest("no trampolines on this machine")
        jitmem._engine()
        jitmem._accelerate_loads()
        function, = self.load()
        pages, code, write = function._chunk, b"12345678", jitmem._process.write
        file, place = self.chunk_of(function).file, (len(code), 4096, pages.address + 4096)
        number, mark = file.number, file.mark
        self.assertEqual(write(number, mark, code, *place), 1)
        self.assertEqual(ctypes.string_at(pages.address + 4096, 8), code)
        self.assertEqual(write(number, mark + 1, code, *place), 0)  # another file
        self.assertEqual(write(-1, mark, code, *place), 0)  # none
        self.assertEqual(
            write(number, mark, code, 8, pages.size, pages.address), 0
        )  # beyond its end
        self.assertEqual(
            write(number, mark, code, 8, 8192, pages.address), 0
        )  # reads back otherwise

    def test_a_chunk_that_cannot_be_sealed_is_closed_all_the_same(self):
        function, = self.load()
        chunk = self.chunk_of(function)
        file = chunk.file.number
        with mmap.mmap(file, mmap.PAGESIZE):  # a writable mapping: F_SEAL_WRITE answers EBUSY
            fresh_chunks()
            self.raises(OSError, "Errno 9", os.fstat, file)
        self.assertEqual((chunk.file.number, function()), (-1, 0x01000000))

    def test_descriptors_are_not_inherited_by_programs(self):
        function, = self.load()
        self.assertFalse(os.get_inheritable(self.chunk_of(function).file.number))

    def test_hardened_systems_run_it_all_with_no_writable_alias(self):
        out = self.run_hardened("""
            import struct
            def load(count):
                return [jitmem.function(new_code(i), ctypes.c_uint32) for i in range(count)]
            functions = load(6000)
            rows = mappings()
            ours = {row[3] for row in rows if "memfd:jitmem" in row[3]}
            right = [function() for function in functions] == list(range(6000))
            print(right, jitmem.info()["code_memory"], bool(ours),
                  [row for row in rows if "w" in row[2] and ("x" in row[2] or row[3] in ours)])
            # and without sealed files, each page by a file of its own
            fresh_chunks()
            jitmem._sealed_file = lambda pages: OSError(38, "injected")
            functions = load(100)
            print([function() for function in functions] == list(range(100)))""",
            use="ANSWER PROCESSOR here new_code mappings fresh_chunks")
        self.assertEqual(
            out.replace(" []", " [...]") if not PYPY else re.sub(r" \[.*\]", " [...]", out),
            "True sealed file (memfd) True [...]\nTrue",
        )


class Assembler(Case):
    """The notation of jitmem's own machine code. The bytes are what GNU objdump disassembles."""

    X86_64 = {
        "move rbx, rdi": "488bdf",  # mov rbx, rdi
        "set rax, 0": "b800000000",  # mov eax, 0
        "set r9, -1": "49c7c1ffffffff",  # mov r9, -1
        "set rax, 0x123456789abcdef0": "48b8f0debc9a78563412",  # movabs
        "lea rdi, [r12 + 24]": "498d7c2418",  # lea rdi, [r12+24]
        "load rdi, [rsp + 8]": "488b7c2408",  # mov rdi, qword ptr [rsp+8]
        "load r13, [rbp + 4096]": "4c8bad00100000",  # mov r13, qword ptr [rbp+4096]
        "load8 rsi, [rdi + 1]": "400fb67701",  # movzx esi, byte ptr [rdi+1]
        "store8 rsi, [r12 - 1]": "41887424ff",  # mov byte ptr [r12-1], sil
        "store16 rdx, [rcx + 2]": "66895102",  # mov word ptr [rcx+2], dx
        "store32 r8, [rax + 4]": "44894004",  # mov dword ptr [rax+4], r8d
        "loadd f1, [r12 + 8]": "f2410f104c2408",  # movsd xmm1, qword ptr [r12+8]
        "storef f9, [rsp + 4]": "f3440f114c2404",  # movss dword ptr [rsp+4], xmm9
        "loadv f15, [rdi + 16]": "440f107f10",  # movups xmm15, [rdi+16]
        "add rax, r11": "4903c3",  # add rax, r11
        "sub rsp, 4096": "4881ec00100000",  # sub rsp, 4096
        "and rcx, -16": "4883e1f0",  # and rcx, -16
        "mul rax, r11": "490fafc3",  # imul rax, r11
        "shl rax, 3": "48c1e003",  # shl rax, 3
        "extend rax, rdi, 1, 1": "480fbec7",  # movsx rax, dil
        "extend rax, rdi, 4, 0": "8bc7",  # mov eax, edi
        "narrow f0, f1": "f20f5ac1",  # cvtsd2ss xmm0, xmm1
        "widen f2, f2": "f30f5ad2",  # cvtss2sd xmm2, xmm2
        "call rax": "ffd0",  # call rax
        "call [r12 + 16]": "4d8b5c241041ffd3",  # mov r11, qword ptr [r12+16]; call r11
        "jump [rdi + 8]": "4c8b5f0841ffe3",  # mov r11, qword ptr [rdi+8]; jmp r11
        "increment [r12 + 8]": "f049ff442408",  # lock inc qword ptr [r12+8]
    }
    AARCH64 = {
        "move x19, x0": "13000091",  # add x19, x0, 0
        "set x0, 0": "000080d2",  # mov x0, 0
        "set x9, 0xffff00000000": "e9ffdfd2",  # movz
        "set x0, 0x123456789abcdef0": "00de9bd28057b3f200cfcaf28046e2f2",  # movz, movk, movk, movk
        "lea x0, [x20 + 24]": "80620091",  # add x0, x20, 24
        "lea x0, [x20 - 24]": "806200d1",  # sub x0, x20, 24
        "load x0, [frame + 8]": "e00740f9",  # ldr x0, [sp, 8]
        "load x13, [x29 + 4096]": "ad0348f9",  # ldr x13, [x29, 4096]
        "load8 x1, [x0 + 1]": "01044039",  # ldrb w1, [x0, 1]
        "store8 x1, [x20 - 1]": "81f21f38",  # sturb w1, [x20, -1]
        "store16 x2, [x1 + 2]": "22040079",  # strh w2, [x1, 2]
        "store32 x8, [x0 + 4]": "080400b9",  # str w8, [x0, 4]
        "loadd f1, [x20 + 8]": "810640fd",  # ldr d1, [x20, 8]
        "storef f9, [frame + 4]": "e90700bd",  # str s9, [sp, 4]
        "loadv f15, [x0 + 16]": "0f04c03d",  # ldr q15, [x0, 16]
        "add x0, x17": "0000118b",  # add x0, x0, x17
        "sub frame, 4080": "ffc33fd1",  # sub sp, sp, 4080
        "and x1, x2": "2100028a",  # and x1, x1, x2
        "mul x0, x17": "007c119b",  # mul x0, x0, x17
        "shl x0, 3": "00f07dd3",  # lsl x0, x0, 3
        "extend x0, x7, 1, 1": "e01c4093",  # sxtb x0, w7
        "extend x0, x7, 4, 0": "e07c40d3",  # ubfx x0, x7, 0, 32
        "narrow f0, f1": "2040621e",  # fcvt s0, d1
        "widen f2, f2": "42c0221e",  # fcvt d2, s2
        "call x16": "00023fd6",  # blr x16
        "call [x20 + 16]": "910a40f920023fd6",  # ldr x17, [x20, 16]; blr x17
        "jump [x0 + 8]": "110440f920021fd6",  # ldr x17, [x0, 8]; br x17
        # add x13, x20, 8; ldaxr x12, [x13]; add x12, x12, 1; stlxr w14, x12, [x13]; cbnz w14, …
        "increment [x20 + 8]": "8d220091acfd5fc88c050091acfd0ec8aeffff35",
    }
    REFUSED = {
        "a constant of more than 64 bits": "set scratch, 0x10000000000000000",
        "a shift of more than 63": "shl scratch, 64",
        "a bit that no register has": "jbit scratch, 64, here",
        "a frame that would misalign the stack": "enter 2, 24",
        "an odd number of registers to save": "enter 1, 16",
        "a double where an integer belongs": "add f0, 1",
        "an integer where a double belongs": "loadd arg0, [arg1 + 8]",
        "a number where a register belongs": "load 3, [arg1 + 8]",
        "a number for an address": "load arg0, [3 + 8]",
        "an instruction that there is not": "frobnicate arg0",
        "a register that there is not": "load arg99, [frame + 8]",
        "a constant that nothing can hold, for the stack pointer": "add frame, 0x123456789",
    }

    def processors(self):
        return jitmem._X86_64Processor(), jitmem._AArch64Processor()

    def assembled(self, processor, text, **names):
        with mock.patch.object(jitmem, "_processor", processor):
            return jitmem._assemble(text, **names).finish()

    def test_each_instruction_is_what_the_disassembler_says(self):
        for processor, table in zip(self.processors(), (self.X86_64, self.AARCH64)):
            for line, digits in table.items():
                with self.subTest(type(processor).__name__, line=line):
                    self.assertEqual(self.assembled(processor, line).hex(), digits)

    def test_what_an_instruction_cannot_hold_is_refused_with_its_line(self):
        for processor in self.processors():
            for what, line in self.REFUSED.items():
                with self.subTest(what, processor=type(processor).__name__):
                    text = re.escape(line)
                    self.raises(AssertionError, text, self.assembled, processor, f"{line}\nhere:")

    def test_an_offset_out_of_reach_is_refused(self):
        x86_64, aarch64 = self.processors()
        offsets = (x86_64, 2**31), (aarch64, 32768), (aarch64, 257), (aarch64, -257)
        for processor, offset in offsets:
            self.raises(AssertionError, "offset", self.assembled, processor,
                        f"load arg0, [arg1 + {offset}]")
        self.raises(AssertionError, "distance", self.assembled, aarch64,
                    "lea arg0, [arg1 + 16777216]")

    def test_a_label_too_far_away_is_refused(self):
        _, aarch64 = self.processors()
        self.assembled(aarch64, "jbit arg0, 3, there\n" + "ret\n" * 8000 + "there:")
        for jump, count in (("jbit arg0, 3, there", 8200), ("jz arg0, there", 262200)):
            with mock.patch.object(jitmem, "_processor", aarch64):
                program = jitmem._assemble(jump)
                program.code += bytes(4 * count)
                program.labels["there"] = len(program.code)
                self.raises(AssertionError, "too far", program.finish)

    def test_a_label_is_there_once(self):
        for processor in self.processors():
            self.raises(AssertionError, "no label there", self.assembled, processor, "jmp there")
            self.raises(AssertionError, "already", self.assembled, processor, "here:\nhere:")

    def test_a_line_with_a_name_is_made_anew_for_each_value_of_it(self):
        for processor in self.processors():
            made = [self.assembled(processor, "lea arg0, [arg1 + PLACE]", PLACE=i)
                    for i in (8, 16, 8)]
            self.assertEqual(made[0], made[2])
            self.assertNotEqual(made[0], made[1])

    def test_remembered_lines_do_not_grow_without_end(self):
        for processor in self.processors():
            for number in range(10000):
                self.assembled(processor, f"set arg0, {number}")
            self.assertLess(len(processor.encoded), 5000)

    @unittest.skipUnless(jitmem._processor, "needs a processor that jitmem has an assembler for")
    def test_a_program_runs_the_same_on_every_processor(self):
        program = jitmem._assemble("""
                    enter   4, 32
                    move    kept0, arg0         # how often
                    move    kept1, arg1         # what is added each time
                    set     kept2, 0
                    store   kept2, [frame + 8]
            again:
                    jz      kept0, done
                    add     kept2, kept1
                    increment [frame + 8]
                    sub     kept0, 1
                    jmp     again
            done:
                    load    scratch, [frame + 8]
                    shl     kept2, 8
                    add     kept2, scratch
                    jnobit  kept2, 63, positive
                    set     kept2, -1
            positive:
                    move    result, kept2
                    leave   4, 32
            """)
        function = jitmem.function(program.finish(), c_int64, c_int64, c_int64, name="sum")
        self.assertEqual(function(5, 1000), 5000 << 8 | 5)
        self.assertEqual(function(3, -1), -1)


class Entries(Case):
    """Code: several entry points."""

    def test_functions_at_several_offsets_keep_the_code(self):
        answer, add = here(ANSWER).ljust(64, b"\0"), here(ADD)
        with jitmem.Code(answer + add) as code:
            functions = (
                code.function(c_uint32),
                code.function(c_ssize_t, c_ssize_t, c_ssize_t, offset=64, name="add"),
            )
            self.assertEqual(
                (functions[0](), functions[1](2, 3), functions[1].address - code.address),
                (0x12345678, 5, 64),
            )
            self.assertEqual(
                (bytes(code), code.size, functions[1].size), (answer + add, 64 + len(add), len(add))
            )
            self.assertEqual(code.address % 64, 0)
            self.assertEqual(repr(code), f"<jitmem code at {code.address:#x} ({code.size} bytes)>")
        self.assertEqual(repr(code), "<jitmem code, closed>")

    def test_closing_it_closes_its_functions(self):
        code = jitmem.Code(ANSWER)
        functions = [code.function(c_uint32, name="answer") for _ in range(3)]
        code.close()
        code.close()
        for function in functions:
            self.raises(ValueError, r"answer\(\) is closed", function)
        self.raises(ValueError, "the code is closed", code.function, c_uint32)
        self.raises(ValueError, "the code is closed", bytes, code)

    def test_a_function_outlives_the_object_and_the_memory_goes_with_both(self):
        fresh_chunks()
        code = jitmem.Code(here(ANSWER) + bytes(jitmem._LARGE))  # in a chunk of its own
        function, pages = code.function(c_uint32), weakref.ref(code._chunk)
        del code
        collect()
        self.assertEqual((function(), pages() is None), (0x12345678, False))
        del function
        collect()
        self.assertIsNone(pages())

    def test_one_that_lives_on_keeps_nothing_of_the_functions_that_went(self):
        code = jitmem.Code(ANSWER)
        kept = code.function(c_uint32)
        for _ in range(1000):
            code.function(c_uint32)
        collect()
        self.assertEqual(len(code._functions), 1)
        code.close()
        self.assertTrue(kept.closed)

    def test_in_a_finalizer_of_its_cycle_it_is_closed_and_not_gone(self):
        seen = []

        class Holder:
            def __del__(self):
                for use in (lambda: bytes(self.code), lambda: self.code.function(c_uint32)):
                    try:
                        seen.append(bool(use()))
                    except ValueError as error:
                        seen.append("closed" in str(error))
        for _ in range(50):
            holder = Holder()
            holder.me, holder.code = holder, jitmem.Code(here(ANSWER) + bytes(100000))
            del holder
        collect()
        self.assertEqual(set(seen), {True})

    def test_it_is_loaded_once(self):
        code = jitmem.Code(ANSWER)
        self.raises(ValueError, "loaded already", code.__init__, ANSWER)

    def test_closing_finds_functions_made_at_the_same_time(self):
        def make(code, made):
            with contextlib.suppress(ValueError):
                while True:
                    made.append(code.function(c_uint32))

        def close(code, made):
            wait_until(lambda: len(made) > 10)
            code.close()
        for _ in range(20):
            code, made = jitmem.Code(ANSWER), []
            self.run_threads(*(functools.partial(work, code, made) for work in (make, make, close)))
            self.assertEqual({function.closed for function in made}, {True})

    def test_offsets_outside_are_refused(self):
        code = jitmem.Code(ANSWER)
        for offset in (-1, code.size, 2**70):
            self.raises(
                ValueError, "outside the \\d+ bytes of code", code.function, c_int, offset=offset
            )
        self.raises(TypeError, "offset must be an integer", code.function, c_int, offset=None)

    def test_bad_code_is_refused_and_copies_are(self):
        self.raises(ValueError, "code is empty", jitmem.Code, b"")
        self.raises(TypeError, "must be bytes, not str", jitmem.Code, "c3")
        for copy_it in (copy.copy, pickle.dumps):
            self.raises(TypeError, "cannot be copied", copy_it, jitmem.Code(ANSWER))


def reference(function):
    """The definition of this function's calls, past its trampoline."""
    return functools.partial(jitmem.Function.__call__, function)


def outcome(call, arguments):
    """What a call gives: its value, or its exception's type and message."""
    try:
        value = call(*arguments)
    except Exception as error:
        return type(error), str(error)
    return type(value), struct.pack("d", value) if isinstance(value, float) else value


class Real:
    """An object that is a real number by __float__."""

    def __init__(self, value, action=lambda: None):
        self.value, self.action = value, action

    def __float__(self):
        self.action()
        return self.value


class Truth:
    """An object that says by itself whether it is true."""

    def __init__(self, action):
        self.action = action

    def __bool__(self):
        return bool(self.action())


def fail():
    raise LookupError("from the argument")


class IntegerSubclass(int):
    pass


class FloatSubclass(float):
    pass


class BytesSubclass(bytes):
    pass


class Enumeration(enum.IntEnum):
    FIVE = 5


class PointSubclass(Point):
    pass


class Adapter:
    """An object that ctypes takes as another one."""

    def __init__(self, value):
        self._as_parameter_ = value


INTEGERS = {c_int8: 8, c_uint8: 8, c_int16: 16, c_uint16: 16, c_int32: 32, c_uint32: 32,
            c_int64: 64, c_uint64: 64}
POWERS = [2**bits + around for bits in (7, 8, 15, 16, 29, 30, 31, 32, 59, 60, 62, 63, 64, 65)
          for around in (-1, 0, 1)]
ANY_INTEGER = [0, 1, -1, 2, -2, 255, -255, *POWERS, *(-power for power in POWERS), True, False,
               2**200, -2**200]
ANY_REAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-320, 1e308, -1e308, 3.4028234e38, 3.5e38, -3.5e38, 1e-46,
            float("inf"), float("-inf"), float("nan"), 2.0**53]
RELEASED = memoryview(b"released")
RELEASED.release()
ODD = [None, "1", b"1", 1j, [], object, Integer(5), Integer(-1), Integer(2**70), Integer(0, fail),
       Real(2.5), Real(-1.0), Real(1e300), Real(0.0, fail), Truth(fail), IntegerSubclass(7),
       IntegerSubclass(-1), IntegerSubclass(2**80), Enumeration.FIVE, FloatSubclass(2.5),
       FloatSubclass(-1.0), FloatSubclass("inf"), BytesSubclass(b"bytes"), c_int32(3), c_int64(3),
       c_int8(-3), c_uint8(200), c_double(1.5), c_float(0.5), c_bool(True), c_char_p(b"x"),
       bytearray(b"buffer"), array.array("d", [1.0]), memoryview(b"abcdef"),
       memoryview(b"abcdef")[::2], b"", bytearray(), RELEASED, decimal.Decimal("1e400"),
       decimal.Decimal("-1e39")]
SHARED = c_double(2.5)
# Objects of ctypes', functions and buffers, of which many are pointers to something.
POINTERS = [
    c_void_p(9), c_void_p(), c_char_p(), c_wchar_p("wide"), SHARED, Point(1, 2), Either(),
    PointSubclass(1, 2), (c_double * 2)(), (c_int32 * 2)(1, 2), (c_char * 4)(), (c_ubyte * 4)(),
    (Point * 2)(), (c_void_p * 2)(), (POINTER(c_int) * 2)(), (c_double * 2 * 2)(),
    pointer(SHARED), pointer(c_int(3)), pointer(Point()), pointer(pointer(c_int(1))),
    POINTER(c_double)(), POINTER(c_char)(c_char(b"z")), byref(SHARED), byref(SHARED, 4),
    byref(c_int32(1)), byref(Point()), byref(PointSubclass()), byref((c_double * 3)()),
    c_int.from_param(5), c_void_p.from_param(5), c_char_p.from_param(b"abc"),
    py_object.from_param(SHARED), CALLBACK(int), CALLBACK(), CFUNCTYPE(None)(int),
    Adapter(5), Adapter(SHARED), Adapter(b"abc"),
    Adapter((c_double * 2)()),
    array.array("B", b"12"), array.array("i", [1]), array.array("q", [1]), array.array("f", [1]),
    memoryview(bytearray(8)), memoryview(bytearray(8)).cast("d"), bytearray(16)]


@unittest.skipUnless(TRAMPOLINES, "the reference serves here; the tests above are of it")
class Calls(Case):
    """Trampolines against the reference: they must not be told apart."""

    def places(self, types):
        """The registers of these arguments; an empty name is a place on the stack."""
        return jitmem._places([{c_float: "f", c_double: "d"}.get(type_, "i8") for type_ in types])

    def pick(self, types, which):
        """Code that returns one of its arguments."""
        places, type_ = self.places(types), types[which]
        place = places[which]
        offset = jitmem._processor.shadow + 8 * places[:which].count("")
        if PROCESSOR == "aarch64":
            if place.startswith("f"):
                move = 0x1E604000 | int(place[1:]) << 5                 # fmov d0, dN
            elif place:
                move = 0xAA0003E0 | int(place[3:]) << 16                # mov x0, xN
            elif type_ is c_float:
                move = 0xBD4003E0 | offset // 4 << 10                   # ldr s0, [sp, offset]
            else:
                move = 0xFD4003E0 if type_ is c_double else 0xF94003E0  # ldr d0 or x0
                move |= offset // 8 << 10
            return struct.pack("<II", move, 0xD65F03C0)
        if place.startswith("f"):
            return bytes([0x0F, 0x28, 0xC0 | int(place[1:]), 0xC3])     # movaps xmm0, xmmN; ret
        if place:
            number = jitmem._processor.integers[int(place[3:])]         # mov rax, register; ret
            return bytes([0x48 | (number >> 3) << 2, 0x89, 0xC0 | (number & 7) << 3, 0xC3])
        # mov rax or movss or movsd xmm0, [rsp + 8 + offset]; ret
        load = {c_float: b"\xf3\x0f\x10", c_double: b"\xf2\x0f\x10"}.get(type_, b"\x48\x8b")
        return load + b"\x84\x24" + struct.pack("<i", 8 + offset) + b"\xc3"

    def values(self, random, type_):
        if type_ in INTEGERS:
            common = ANY_INTEGER
        elif type_ in (c_float, c_double):
            common = [*ANY_REAL, 0, 1, -1, 2**53, 2**1024, -2**31]
        else:
            common = {c_bool: [True, False, 0, 1, 2], c_char_p: [None, b"abc", b""],
                      c_void_p: [None, 0, 1, 2**47, 2**63, 2**64 - 1, -1, 2**64, bytearray(b"x"),
                                 b"read-only"]}[type_]
        if random.random() < 0.85:
            return random.choice(common)
        return random.choice(ODD + POINTERS)

    def plain_value(self, random, type_):
        if type_ in INTEGERS:
            low, high = 0, 2**INTEGERS[type_] - 1
            if not type_.__name__.startswith("c_u"):
                low, high = -2**(INTEGERS[type_] - 1), 2**(INTEGERS[type_] - 1) - 1
            return random.choice([low, high, max(low, -1), 0, 1, random.randint(low, high)])
        if type_ in (c_float, c_double):
            return random.choice([value for value in ANY_REAL
                                  if abs(value) != 1e308 and abs(value) != 3.5e38])
        return random.choice({c_bool: [True, False], c_char_p: [b"abc", None],
                              c_void_p: [None, 5, b"bytes", 2**64 - 1]}[type_])

    def assert_like_the_reference(self, function, arguments):
        found, expected = outcome(function, arguments), outcome(reference(function), arguments)
        if str in map(type, arguments) and found[0] is int:
            found, expected = found[0], expected[0]  # each call makes text of its own
        self.assertEqual(found, expected)

    def test_threads_that_make_the_first_function_at_once_make_one_type(self):
        out = self.run_child("""
            import ctypes, jitmem, sys
            def function():
                made.append(jitmem.function(bytes.fromhex(sys.argv[1]), ctypes.c_uint32))
            def while_another_thread_does_it(*arguments):
                jitmem._int_layout = layout
                function()
                return layout(*arguments)
            made, layout, jitmem._int_layout = [], jitmem._int_layout, while_another_thread_does_it
            function()
            print(len(made), len({type(each) for each in made} - {jitmem.Function}),
                  *(each() for each in made))""", here(ANSWER).hex())
        self.assertEqual(out, f"2 1 {0x12345678} {0x12345678}")

    def test_generated_calls_give_what_the_reference_gives(self):
        seed = int(os.environ.get("JITMEM_SEED", "20"))
        random, cases = Random(seed), 0
        types = [*INTEGERS, c_float, c_double, c_bool, c_void_p, c_char_p]
        while cases < (20000 if STRESS else 2000):
            count = random.choice((1, 1, 2, 3, 4, 6, 8, 12, 20, 40))
            argtypes = [random.choice(types) for _ in range(count)]
            if jitmem.MACHINE == "aarch64-apple" and "" in self.places(argtypes):
                continue
            which = random.randrange(len(argtypes))
            restype = argtypes[which]
            if restype is c_char_p and random.random() < 0.5:
                restype = c_void_p
            code = self.pick(argtypes, which)
            function = jitmem.function(code, restype, *argtypes, name="f")
            self.assertIsNot(type(function), jitmem.Function)
            for _ in range(8):
                value_of = random.choice((self.values, self.plain_value))
                arguments = [value_of(random, type_) for type_ in argtypes]
                if random.random() < 0.04:
                    arguments = random.choice((arguments[:-1], [*arguments, 1]))
                expected = outcome(reference(function), arguments)
                found = outcome(function, arguments)
                if restype is c_char_p and expected[0] is found[0] is bytes:
                    continue  # what an address of a random argument's points to
                self.assertEqual(found, expected, (seed, argtypes, which, arguments))
                cases += 1

    def test_every_type_gives_what_the_reference_gives_at_every_odd_value_and_count(self):
        for type_ in [*INTEGERS, c_float, c_double, c_bool, c_void_p, c_char_p, py_object]:
            if type_ is py_object:
                function = jitmem.function(ANSWER, c_uint32, type_)
            else:
                restype = c_void_p if type_ is c_char_p else type_
                function = jitmem.function(self.pick([type_], 0), restype, type_, name="f")
            for value in [*ANY_INTEGER, *ANY_REAL, *ODD, *POINTERS, jitmem.bind(4096, None)]:
                with self.subTest(type_, value=value):
                    self.assert_like_the_reference(function, [value])
            for arguments in ([], [1, 2], [None] * 30):
                self.assert_like_the_reference(function, arguments)

    def test_every_pointer_type_gives_what_the_reference_gives_for_every_object(self):
        class Own(ctypes._Pointer):
            _type_ = c_double
        items = [c_double, c_int32, c_int64, c_char, c_ubyte, ctypes.c_byte, c_bool, c_void_p,
                 c_char_p, ctypes.c_wchar, Point, Either, POINTER(c_int), c_double * 2]
        for type_ in [*map(POINTER, items), Own, CALLBACK]:
            function = jitmem.function(SAME, c_void_p, type_, name="f")
            self.assertIsNot(type(function), jitmem.Function)
            for value in [None, 0, 1, -1, 2**63, 2**64 - 1, 2**64, 1.5, jitmem.bind(4096, None),
                          *ODD, *POINTERS]:
                with self.subTest(type_, value=value):
                    self.assert_like_the_reference(function, [value])

    def test_what_ctypes_own_function_passes_gives_what_the_reference_gives(self):
        class Own(c_int32):
            pass
        types = [Point, Either, c_char, ctypes.c_wchar, c_wchar_p, ctypes.c_longdouble, c_int * 3,
                 Own, *(getattr(ctypes, name) for name in ("c_float_complex", "c_double_complex")
                        if hasattr(ctypes, name))]
        zero = codes(x86_64="31c0 c3", aarch64="000080d2 c0035fd6")
        for type_ in types:
            function = jitmem.function(zero, c_int32, c_int8, type_, name="f")
            for value in ["x", "text", "\U0001F600", b"x", 0.5, 3, Own(3), (c_int * 3)(),
                          *ANY_REAL, *ODD, *POINTERS]:
                for first in (1, Enumeration.FIVE, Integer(5), 128):
                    with self.subTest(type_, first=first, value=value):
                        self.assert_like_the_reference(function, [first, value])

    def test_what_ctypes_itself_refuses_is_passed_beside_what_it_passes(self):
        zero = codes(x86_64="31c0 c3", aarch64="000080d2 c0035fd6")
        for type_, value in ((CALLBACK, None), (POINTER(c_char), c_char(b"x")),
                             (POINTER(ctypes.c_wchar), ctypes.c_wchar("x"))):
            function = jitmem.function(zero, c_int32, c_wchar_p, type_)
            self.assertEqual(function("text", value), 0)
            self.assert_like_the_reference(function, ["text", value])

    def test_results_that_ctypes_makes_are_those_of_the_reference(self):
        zero = codes(x86_64="31c0 c3", aarch64="000080d2 c0035fd6")
        for type_ in (CALLBACK, POINTER(c_double), c_char, ctypes.c_wchar, c_wchar_p):
            function = jitmem.function(zero, type_)
            self.assertIsNot(type(function), jitmem.Function)
            found, expected = function(), reference(function)()
            self.assertEqual((type(found), bool(found)), (type(expected), bool(expected)))
        same = jitmem.function(SAME, POINTER(c_double), c_void_p)
        self.assertEqual(same(byref(SHARED)).contents.value, 2.5)
        self.assertIs(type(same(None)), POINTER(c_double))
        point = jitmem.function(SAME, Point, Point)(Point(1, 2))
        self.assertEqual((point.x, point.y), (1, 2))

    def test_numpy_values_give_what_the_reference_gives(self):
        try:
            import numpy
        except ImportError:
            self.skipTest("NumPy is not here")
        values = [numpy.int8(-1), numpy.uint64(2**64 - 1), numpy.float32(1.5), numpy.float64(-1.0),
                  numpy.bool_(True), numpy.zeros(3), numpy.zeros(3, "f4"), numpy.zeros(3, "i4"),
                  numpy.zeros(2, ">f8"), numpy.zeros((4, 4))[:, 1], numpy.array(5), numpy.zeros(0),
                  numpy.zeros(2, "u1"), numpy.zeros(2, "c16"), numpy.arange(3).astype(object),
                  numpy.zeros(2, [("x", "f8"), ("y", "f8")]), numpy.zeros(3)]
        values[-1].flags.writeable = False
        pointers = [POINTER(item) for item in (c_double, c_float, c_int32, c_ubyte, Point)]
        for type_ in (c_int64, c_uint8, c_double, c_float, c_void_p, c_bool, *pointers):
            restype = c_void_p if type_ in pointers else type_
            function = jitmem.function(self.pick([type_], 0), restype, type_, name="f")
            for value in values * 2:
                with self.subTest(type_, value=value):
                    self.assert_like_the_reference(function, [value])
        array_ = numpy.arange(10.0)
        for type_ in (c_void_p, POINTER(c_double)):
            function = jitmem.function(SAME, c_void_p, type_)
            self.assertEqual(function(array_), array_.ctypes.data)

    def test_code_of_an_argument_that_closes_a_function_meets_a_closed_function(self):
        for type_, argument in ((c_ssize_t, lambda value, action: Integer(5, action)),
                                (c_double, Real), (c_bool, lambda value, action: Truth(action))):
            function = jitmem.function(ANSWER, None, type_, name="f")
            self.raises(ValueError, r"^f\(\) is closed$", function, argument(1.0, function.close))
        for types, order in (([c_void_p, c_ssize_t], 1), ([c_ssize_t, c_void_p], -1)):
            inner = jitmem.function(SAME, c_ssize_t, c_ssize_t, name="inner")
            outer = jitmem.function(ANSWER, None, *types, name="outer")
            arguments = [inner, Integer(1, inner.close)][::order]
            self.raises(ValueError, r"^inner\(\) is closed$", outer, *arguments)

    def test_code_of_an_argument_may_do_anything_else(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t)
        results = []
        self.assertEqual(add(Integer(1, lambda: results.append(add(2, Integer(3)))), 4), 5)
        self.assertEqual(results, [5])
        data = bytearray(b"abc")
        look = jitmem.function(SAME, c_void_p, c_void_p, c_ssize_t)
        self.raises(BufferError, "", look, data, Integer(1, lambda: data.extend(bytes(1000))))
        data.append(1)  # nothing holds its buffer any longer
        kept = [bytearray(b"x" * 5000)]
        first = codes(x86_64__sysv="0fb607 c3", x86_64__windows="0fb601 c3",
                      aarch64="00004039 c0035fd6")
        read = jitmem.function(first, c_uint8, c_void_p, c_ssize_t)
        self.assertEqual(read(kept[0], Integer(1, kept.clear)), ord("x"))

    def test_exceptions_of_an_argument_pass_through_and_it_is_asked_once(self):
        for error in (KeyboardInterrupt, SystemExit, LookupError, OSError, MemoryError):
            for type_, kind in ((c_int8, Integer), (c_uint64, Integer), (c_float, Real),
                                (c_bool, lambda value, action: Truth(action))):
                asked = []

                def action(asked=asked, error=error):
                    asked.append(1)
                    raise error("by the argument")
                function = jitmem.function(ANSWER, None, c_void_p, type_)
                data = bytearray(8)
                with self.assertRaisesRegex(error, "by the argument"):
                    function(data, kind(1, action))
                self.assertEqual(asked, [1])
                data.append(1)  # its buffer has been released

    def test_no_argument_and_the_longest_signature_are_served(self):
        self.assertEqual(jitmem.function(ANSWER, c_uint32)(), 0x12345678)
        self.assertIsNone(jitmem.function(ANSWER, None)())
        count = 8 if jitmem.MACHINE == "aarch64-apple" else 30
        for which in range(count):
            function = jitmem.function(self.pick([c_int64] * count, which), c_int64,
                                       *[c_int64] * count)
            self.assertIsNot(type(function), jitmem.Function)
            self.assertEqual(function(*range(count)), which)
        mixed = [c_int64, c_double] * (count // 2)
        for which in range(len(mixed)):
            function = jitmem.function(self.pick(mixed, which), mixed[which], *mixed)
            self.assertEqual(function(*range(len(mixed))), which)
        for count, type_ in ((300, c_int64), (1000, c_int64), (90, c_void_p)):
            function = jitmem.function(self.pick([type_] * count, count - 1), type_,
                                       *[type_] * count)
            self.assertEqual(function(*range(5, 5 + count)), count + 4)

    @unittest.skipIf(jitmem.MACHINE == "aarch64-apple", "variadic arguments are on Apple's stack")
    def test_variadic_functions_get_floats_and_integers(self):
        library = ctypes.CDLL("msvcrt" if WINDOWS else None)
        types = [c_int, c_char_p, c_size_t, c_char_p, *[c_double, c_int64] * 6]
        text = ctypes.create_string_buffer(200)
        write = jitmem.bind(library._snprintf if WINDOWS else library.snprintf, types[0],
                            POINTER(c_char), *types[2:])
        self.assertIsNot(type(write), jitmem.Function)
        values = [1.5, 2**40, -2.5, -3, 0.25, 4, 1e10, 5, 6.5, 6, 7.5, -7]
        count = write(text, 200, b" ".join([b"%.2f %lld"] * 6), *values)
        expected = " ".join(f"{value:.2f}" if isinstance(value, float) else str(value)
                            for value in values)
        self.assertEqual((text.value.decode(), count), (expected, len(expected)))

    def test_hot_loops_stay_right_past_specialisation(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t)
        reals = jitmem.function(ADD_DOUBLES, c_double, c_double, c_double)
        for value in range(20000):
            self.assertEqual(add(value, 1), value + 1)
            self.assertEqual(reals(value, 0.5), value + 0.5)
        results = []
        for value in [1, 2, 3] * 500 + [2**40, -2**40, "x", 5] * 100:
            try:
                results.append(add(value, 1))
            except TypeError:
                results.append(None)
        self.assertEqual(results, [2, 3, 4] * 500 + [2**40 + 1, 1 - 2**40, None, 6] * 100)

    def test_it_can_be_called_in_every_way_python_has(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add")
        self.assertEqual(add(*(1, 2)), 3)
        self.assertEqual(add(*[1], *[2], **{}), 3)
        self.assertEqual(add.__call__(1, 2), 3)
        self.assertEqual(list(map(add, [1, 2], [3, 4])), [4, 6])
        self.assertEqual(functools.partial(add, 1)(2), 3)
        self.assertEqual(functools.reduce(add, range(10)), 45)
        # It is no method: nothing is passed for self.
        self.assertEqual(type("T", (), {"method": add})().method(1, 2), 3)
        for arguments in ({"b": 2}, {"self": 1}, {"args": 1, "kwargs": 2}):
            for call in (add, reference(add)):
                self.raises(TypeError, r"^add\(\) takes no keyword arguments$",
                            call, 1, **arguments)

    def test_an_empty_tuple_of_keywords_is_none(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t)
        call = ctypes.PyDLL("python", handle=ctypes.pythonapi._handle).PyVectorcall_Call
        call.restype, call.argtypes = py_object, (py_object, py_object, py_object)
        self.assertEqual(call(add, (1, 2), {}), 3)
        holder = type("T", (), {"add": add})()
        self.assertEqual(operator.methodcaller("add", 1, 2, **{})(holder), 3)

    def test_callers_may_pass_an_empty_tuple_of_names_of_keywords(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add")
        arguments = (py_object * 2)(1, 2)
        entry_type = ctypes.PYFUNCTYPE(py_object, py_object, c_void_p, c_size_t, py_object)

        def call(names):  # as PyObject_Vectorcall does
            return entry_type(add._entry)(add, ctypes.addressof(arguments), 2, names)
        self.assertEqual(call(()), 3)
        self.raises(TypeError, r"^add\(\) takes no keyword arguments$", call, ("b",))
        add.close()
        self.raises(ValueError, r"^add\(\) is closed$", call, ())
        self.raises(TypeError, r"^add\(\) takes no keyword arguments$", call, ("b",))

    def test_values_kept_only_for_the_call_are_kept(self):
        class Lazy:
            @property
            def _as_parameter_(self):
                return jitmem.function(SAME, c_ssize_t, c_ssize_t)
        call = jitmem.function(CALL, c_ssize_t, c_void_p, c_ssize_t)
        self.assertEqual(call(Lazy(), 5), 5)

    @unittest.skipUnless(WINDOWS, "HRESULT is Windows'")
    def test_failing_results_of_windows_are_exceptions(self):
        failing = jitmem.function(bytes.fromhex("b8 05 40 00 80 c3"), ctypes.HRESULT)
        self.raises(OSError, "", failing)                               # mov eax, 0x80004005; ret

    def test_machine_code_that_raises_is_heard_if_it_takes_or_returns_objects(self):
        call = jitmem.function(CALL, py_object, c_void_p, py_object, name="call")
        self.assertEqual(call(ctypes.pythonapi.PyObject_Str, 55), "55")
        self.raises(TypeError, "", call, ctypes.pythonapi.PyObject_GetIter, 5)
        null = jitmem.function(SAME, py_object, c_void_p, name="null")
        for each in (null, reference(null)):
            self.raises(SystemError, r"^null\(\) returned NULL without setting an exception$",
                        each, None)
        number = jitmem.function(CALL, c_ssize_t, c_void_p, py_object)
        self.assertEqual(number(ctypes.pythonapi.PyObject_Size, [1, 2]), 2)
        self.raises(TypeError, "has no len", number, ctypes.pythonapi.PyObject_Size, 5)

    def test_no_object_gains_or_loses_a_reference(self):
        data, real, number = bytearray(b"abc"), 1e300 * 3, 10**15 + int(time.time())
        text, thing, point, callback = b"abcdef" * 20, object(), Point(1, 2), CALLBACK(int)
        doubles, integer, reference_ = (c_double * 3)(), Integer(5), byref(point)
        huge = 2**70 + number
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t)
        add_doubles = jitmem.function(ADD_DOUBLES, c_double, c_double, c_double)
        same = jitmem.function(SAME, c_void_p, c_void_p)
        typed = jitmem.function(SAME, c_void_p, POINTER(c_double))
        cases = [
            (add, (number, number)), (add, (True, integer)), (add, (integer, thing)),
            (add, (1, Integer(huge))), (add, (1, Integer(-huge))),
            (add_doubles, (real, real)), (add_doubles, (number, number)),
            (jitmem.function(ADD_FLOATS, c_float, c_float, c_float), (real, real)),
            (jitmem.function(ADD, c_int32, c_int32, c_int32), (number, thing)),
            (same, (data,)), (same, (number,)), (same, (thing,)), (same, (doubles,)),
            (same, (callback,)), (same, (reference_,)), (same, (add,)), (typed, (doubles,)),
            (typed, (reference_,)), (typed, (data,)),
            (jitmem.function(SAME, POINTER(c_double), c_void_p), (doubles,)),
            (jitmem.function(SAME, c_void_p, POINTER(Point)), (point,)),
            (jitmem.function(SAME, c_void_p, POINTER(Point)), (reference_,)),
            (jitmem.function(SAME, c_void_p, CALLBACK), (callback,)),
            (jitmem.function(ANSWER, None, Point, c_int8), (point, number)),
            (jitmem.function(ANSWER, None, Point), (point,)),
            (jitmem.function(SAME, c_char_p, c_char_p), (text,)),
            (jitmem.function(ANSWER, None, c_void_p, c_void_p, c_int8), (data, data, number)),
            (jitmem.function(ANSWER, None, py_object), (thing,)),
            (jitmem.function(ANSWER, c_bool, c_bool), (thing,)),
            (jitmem.function(SAME, c_ssize_t, c_ssize_t), ())]
        objects = [data, real, number, huge, text, thing, point, callback, doubles, integer,
                   reference_, None, True, POINTER(c_double), c_double,
                   *(function for function, _ in cases)]
        rounds = 100000 if STRESS and not EMULATED else 500

        def calls(count):
            for function, arguments in cases:
                for _ in range(count):
                    with contextlib.suppress(TypeError, OverflowError):
                        function(*arguments)
                    with contextlib.suppress(TypeError):
                        function(*arguments, key=None)
        calls(10)
        collect()
        before = [sys.getrefcount(each) for each in objects]
        calls(rounds)
        collect()
        after = [sys.getrefcount(each) for each in objects]
        changes = [count - first for first, count in zip(before, after)]
        self.assertTrue(all(abs(change) < 50 for change in changes), changes)
        data.append(1)  # nothing holds its buffer

    def test_calls_keep_the_stack_aligned_and_registers_preserved(self):
        if PROCESSOR == "aarch64":
            code, expected = bytes.fromhex("e0030091 c0035fd6"), 0      # mov x0, sp; ret
        else:
            code, expected = bytes.fromhex("4889e0 c3"), 8              # mov rax, rsp; ret
        for count in range(9):
            for nogil in False, True:
                function = jitmem.function(code, c_size_t, *[c_int64] * count, nogil=nogil)
                self.assertEqual(function(*[1] * count) % 16, expected)
        check = jitmem.function(PRESERVES, c_int64, c_size_t, c_size_t, c_void_p, c_size_t)
        cases = [([c_int64, c_int64], [5, 6]), ([c_double, c_float], [1.5, 2]), ([], []),
                 ([c_int8] * 8, list(range(8))), ([c_void_p, c_int64], [bytearray(8), 1]),
                 ([c_uint64, c_int64], [2**63, -2**62]), ([c_int64, c_int8], [Integer(5), True]),
                 ([POINTER(Point), c_void_p], [Point(), (c_int * 3)()]), ([Point], [Point()])]
        for types, arguments in cases:
            for nogil in False, True:
                function = jitmem.function(ANSWER, c_bool, *types, nogil=nogil)
                values = (py_object * len(arguments))(*map(py_object, arguments))
                for _ in range(3):
                    self.assertEqual(check(function._entry, id(function),
                                           ctypes.addressof(values), len(arguments)), 0)

    def test_arguments_are_widened_and_results_narrowed(self):
        for type_ in (c_int8, c_int16, c_int32, c_uint8, c_uint16, c_uint32):
            wide = jitmem.function(self.pick([type_], 0), c_int64, type_)
            narrow = jitmem.function(self.pick([c_int64], 0), type_, c_int64)
            half = 2**(INTEGERS[type_] - 1)
            ends = [2 * half - 1] if type_.__name__.startswith("c_u") else [-1, -half]
            for value in (0, 1, half - 1, *ends):
                self.assertEqual(wide(value), value)
                self.assertEqual(wide(type_(value)), value)
                self.assertEqual(narrow(value + (0x7F << 56)), value)

    def test_trampolines_are_shared_by_the_kinds_of_types_and_outlive_functions(self):
        first, second = (jitmem.function(SAME, c_ssize_t, c_ssize_t) for _ in range(2))
        self.assertEqual(first._entry, second._entry)
        other = jitmem.function(SAME, c_ssize_t, c_ssize_t, nogil=True)
        self.assertNotEqual(first._entry, other._entry)
        entries = set()
        for _ in range(3):  # types that nobody else has are not known to a trampoline
            class Own(Structure):
                _fields_ = [("x", c_int)]
            function = jitmem.function(SAME, c_void_p, POINTER(Own))
            entries.add(function._entry)
            own = Own()
            self.assertEqual(function(own), ctypes.addressof(own))
        self.assertEqual(len(entries), 1)

    def test_functions_of_a_memory_count_who_is_inside(self):
        memory = executable(CALL)
        inside = []

        def look(value):
            inside.append(list(memory._gate))
            self.raises(BufferError, "in use by another call", memory.make_writable)
            self.raises(BufferError, "in use by another call", memory.close)
            return value + 1
        callback = CALLBACK(look)
        for nogil in (False, True):
            call = memory.function(c_ssize_t, CALLBACK, c_ssize_t, nogil=nogil, name="call")
            plain = jitmem.function(CALL, c_ssize_t, CALLBACK, c_ssize_t)
            self.assertIs(type(call), type(plain))
            self.assertEqual((call(callback, 5), inside.pop()), (6, [1, 1]))
            self.raises(TypeError, "argument 2 must be an integer", call, callback, "5")
            self.raises(ValueError, "the memory is rw-", call, callback,
                        Integer(5, memory.make_writable))
            self.assertEqual(list(memory._gate), [0, 0])
            memory.make_executable()
            self.assertEqual((call(callback, 5), inside.pop()), (6, [1, 1]))
            self.assertEqual(list(memory._gate), [1, 0])
        memory.close()
        self.raises(ValueError, "the memory is closed", call, callback, 5)

    def test_integers_are_read_by_the_c_api_where_their_layout_is_unknown(self):
        engine = jitmem._engine()
        with mock.patch.multiple(engine, int_layout=None, shapes={}, ways={}), \
                mock.patch.object(jitmem, "_signatures", {}):
            function = jitmem.function(self.pick([c_int64, c_uint64], 0), c_int64, c_int64,
                                       c_uint64, name="f")
        self.assertIsNot(type(function), jitmem.Function)
        for arguments in ((5, 6), (-1, 0), (0, 2**64 - 1), (0, -1), (2**63, 0), ("x", 1)):
            self.assert_like_the_reference(function, arguments)

    def test_objects_of_ctypes_go_to_the_reference_where_their_layout_is_unknown(self):
        self.run_child("""
            import ctypes, jitmem, sys
            layout = jitmem._ctypes_layout()
            jitmem._ctypes_layout = lambda: dict.fromkeys(layout, 0)
            same = jitmem.function(bytes.fromhex(sys.argv[1]), ctypes.c_void_p, ctypes.c_void_p)
            values = (ctypes.c_double * 3)()
            for value in (values, ctypes.byref(values), ctypes.pointer(values)):
                assert same(value) == ctypes.addressof(values)
            assert all(layout.values()), layout""", here(SAME).hex())


GUARD = sys.platform in ("linux", "darwin", "win32") and PROCESSOR in ("x86_64", "aarch64")
# What wrong code does: the signal, the offset of the instruction (None: the processor was sent
# elsewhere), and the code.
FAULTS = {
    "x86_64": {
        "reads a null pointer": (11, 2, "31c0 8b00 c3"),
        "writes a null pointer": (11, 2, "31c0 8900 c3"),
        "reads a wild address": (11, 5, "b8f0ffff7f 8b00 c3"),
        "writes where no address is": (11, 10, "48b80000000000000080 8900 c3"),
        "calls a null pointer": (11, 2, "31c0 ffd0 c3"),
        "jumps to a null pointer": (11, None, "31c0 ffe0"),
        "is no instruction": (4, 0, "0f0b"),
        "is a breakpoint": (5, 1, "90 cc c3"),
        "is a long breakpoint": (5, 1, "90 cd03 c3"),
        "divides by zero": (8, 4, "31c0 31c9 f7f1 c3"),
        "is privileged": (11, 0, "f4 c3"),
        "loads a misaligned vector": (11, 0, "0f280424 c3"),
        "runs past its end": (5, 1, "90"),
        "jumps too far": (5, None, "eb1e"),
        "jumps too far back": (5, None, "eb80"),
        "leaves words on the stack": (11, None, "6a01 6a02 6a03 c3"),
        "clobbers the callee's registers": (
            11,
            18,
            "31db 31ed 4531e4 4531ed 4531f6 4531ff 31c0 8b00 c3",
        ),
        "smashes its return address": (11, None, "48c7042410000000 c3"),
        "loses its stack": (11, 2, "31e4 50 c3"),
        "exhausts its stack": (11, 0, "e8fbffffff c3"),
        "overwrites 4 KiB of stack": (4, 12, "4889e7 b900100000 30c0 f3aa 0f0b"),
        "overwrites 16 bytes of stack": (4, 18, "48c7042400000000 48c744240800000000 90 0f0b"),
        "sets the direction flag": (4, 1, "fd 0f0b"),
        "sets the trap flag": (5, 10, "9c 810c2400010000 9d 90 c3"),
        "checks alignment": (7, 9, "9c 810c2400000400 9d 8b442401 c3"),
        "unmasks MXCSR": (4, 13, "c744240800000000 0fae542408 0f0b"),
        "divides by zero with MXCSR unmasked": (
            8,
            19,
            "c744240800000000 0fae542408 0f57c0 0f28c8 f30f5ec1 c3",
        ),
        "loses its thread": (4, 4, "31c0 8ee0 0f0b"),  # mov fs, eax
        "fills the x87 stack": (4, 16, "d9e8d9e8d9e8d9e8d9e8d9e8d9e8d9e8 0f0b"),
    },
    "aarch64": {
        "reads a null pointer": (11, 4, "000080d2 000040f9"),
        "writes a null pointer": (11, 4, "000080d2 000000f9"),
        "reads a wild address": (11, 4, "e0ffffd2 000040f9"),
        "calls a null pointer": (11, 4, "000080d2 00003fd6 c0035fd6"),
        "jumps to a null pointer": (11, None, "000080d2 00001fd6"),
        "is no instruction": (4, 4, "1f2003d5 00000000"),
        "is a breakpoint": (5, 0, "000020d4"),
        "is privileged": (4, 0, "004018d5"),
        "runs past its end": (4, 4, "1f2003d5"),
        "jumps too far": (4, None, "10000014"),
        "loses its thread": (4, 4, "5fd01bd5 00000000"),
        "clobbers the callee's registers": (
            11,
            20,
            "130080d2 140080d2 15008052 1c0080d2 000080d2 000040f9",
        ),
        "smashes its return address": (11, None, "1e0280d2 c0035fd6"),
        "loses its stack": (11, 8, "090080d2 3f010091 e00f1ff8"),
        "exhausts its stack": (11, 0, "fd7bbfa9 ffffff97 c0035fd6"),
        "overwrites 4 KiB of stack": (
            4,
            20,
            "e9030091 004080d2 3f8500f8 000400d1 c0ffffb5 00000000",
        ),
        "changes the rounding": (4, 12, "00e0a3d2 00441bd5 08e4002f 00000000"),
    },
}.get(PROCESSOR, {})
# What code that returns 0 has changed of what its caller relies on.
DAMAGE = {
    "x86_64": {
        "rbx": "31db 31c0 c3",
        "rbp": "48ffc5 31c0 c3",
        "r12": "4531e4 31c0 c3",
        "r13": "4531ed 31c0 c3",
        "r14": "4531f6 31c0 c3",
        "r15": "4531ff 31c0 c3",
        "the stack pointer": "58 6a00 50 31c0 c3",
        "rbx and r15": "31db 4531ff 31c0 c3",
        "the x87 stack": "d9e8d9e8d9e8d9e8d9e8d9e8d9e8d9e8 31c0 c3",  # fld1, eight times
        "the x87 control word": "6a00 d92c24 58 31c0 c3",
        "MXCSR": "c74424f800000000 0fae5424f8 31c0 c3",
        "the direction flag": "31c0 fd c3",
        "the alignment check flag": "9c 810c2400000400 9d b800000000 c3",
        "the thread pointer": "31c0 8ee0 c3",  # mov fs, eax
    },
    "aarch64": {
        **{f"x{i}": f"{0x13 + i - 19:02x}0080d2 000080d2 c0035fd6" for i in range(19, 29)},
        "v8": "08106e1e 000080d2 c0035fd6",
        "FPCR": "00e0a3d2 00441bd5 000080d2 c0035fd6",
        "the thread pointer": "5fd01bd5 000080d2 c0035fd6",
        "the stack pointer": "ff430091 000080d2 c0035fd6",
    },
}.get(PROCESSOR, {})
TRAP = codes(x86_64="0f0b", aarch64="00000000")
CALL_DEEP = codes(
    x86_64="4883ec08 4889f8 4889f7 ffd0 4883c408 c3",  # ssize_t (f, a): f(a), which comes back here
    aarch64="fd7bbfa9 e20300aa e00301aa 40003fd6 fd7bc1a8 c0035fd6",
)


def repeat():
    """Machine code of ssize_t (ssize_t (*f)(ssize_t), ssize_t n): f(n) + f(n - 1) + … + f(1)."""
    return jitmem._assemble(
        """
        enter 4, SHADOW
        move kept0, arg0
        move kept1, arg1
        set spare, 0
        move kept2, spare
    again:
        move arg0, kept1
        call kept0
        add kept2, result
        sub kept1, 1
        jnz kept1, again
        move result, kept2
        leave 4, SHADOW
    """,
        SHADOW=jitmem._processor.shadow,
    ).finish()


class Unraisable:
    """Collects what goes to sys.unraisablehook, by the name of its type and its message."""

    def __enter__(self):
        self.seen = []
        self.patch = mock.patch.object(sys, "unraisablehook", self.hook)
        self.patch.start()
        return self.seen

    def hook(self, unraisable):
        self.seen.append((type(unraisable.exc_value).__name__, str(unraisable.exc_value)))

    def __exit__(self, *exc_info):
        self.patch.stop()


@unittest.skipUnless(TRAMPOLINES, "callbacks are machine code of jitmem's own")
class Callbacks(Case):
    """Python functions that C calls."""

    def setUp(self):
        self.repeat = jitmem.function(repeat(), c_ssize_t, c_void_p, c_ssize_t, name="repeat")

    def failing_at(self, number, error):
        """A callback that raises in its call with this number, and the list of its calls."""
        calls = []

        def work(value):
            calls.append(value)
            if len(calls) == number:
                raise error
            return value
        return jitmem.callback(work, c_ssize_t, c_ssize_t), calls

    def through(self, type_, value):
        """What a callback sees if C passes this, and what C gets if it is returned."""
        seen = []

        def same(value):
            seen.append(value)
            return value
        function = jitmem.callback(same, type_, type_)
        return seen, CFUNCTYPE(type_, type_)(function.address)(value), function(value)

    def test_integers_of_every_size_come_and_go_unchanged(self):
        for type_ in (c_int8, c_int16, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64):
            bits = 8 * ctypes.sizeof(type_)
            low = -(1 << bits - 1) if type_(-1).value < 0 else 0
            for value in (low, low + 1, -1, 0, 1, 2**30 - 1, 2**30, low + (1 << bits) - 1):
                if low <= value < low + (1 << bits):
                    with self.subTest(type=type_.__name__, value=value):
                        self.assertEqual(self.through(type_, value), ([value] * 2, value, value))

    def test_floats_truths_text_and_addresses_come_and_go_unchanged(self):
        infinite, text = float("inf"), b"text"
        kept = ctypes.create_string_buffer(text)
        for type_, values in (
                (c_double, (0.0, -0.0, 1e308, infinite)), (c_float, (0.5, -2.0**127, infinite)),
                (c_bool, (True, False)), (c_char_p, (text, b"", None)),
                (c_void_p, (ctypes.addressof(kept), 2**63, 1, None))):
            for value in values:
                with self.subTest(type=type_.__name__, value=value):
                    seen, by_ctypes, by_jitmem = self.through(type_, value)
                    self.assertEqual(([repr(each) for each in (*seen, by_ctypes, by_jitmem)]),
                                     [repr(value)] * 4)
        for type_ in (c_double, c_float):
            seen, *results = self.through(type_, float("nan"))
            self.assertTrue(all(value != value for value in (*seen, *results)))

    def test_a_pointer_arrives_as_an_instance_of_its_type(self):
        numbers = (c_int32 * 3)(7, 8, 9)
        get = jitmem.callback(lambda at: at[2] if at else -1, c_int32, POINTER(c_int32))
        self.assertEqual((get(numbers), get(None)), (9, -1))
        point = Point(3, 4)
        where = jitmem.callback(lambda at: at[0].y, c_int, POINTER(Point))
        self.assertEqual(where(byref(point)), 4)
        same = jitmem.callback(lambda at: at, POINTER(c_int32), POINTER(c_int32))
        self.assertEqual(ctypes.addressof(same(numbers).contents), ctypes.addressof(numbers))

    def test_objects_keep_their_counts(self):
        thing = object()
        same = jitmem.callback(lambda each: each, py_object, py_object)
        before = sys.getrefcount(thing)
        for _ in range(10):
            self.assertIs(same(thing), thing)
            self.assertIs(ctypes.PYFUNCTYPE(py_object, py_object)(same.address)(thing), thing)
        self.assertEqual(sys.getrefcount(thing), before)
        function = jitmem.callback(id, c_int, py_object)
        null = ctypes.PYFUNCTYPE(c_int, c_void_p)(function.address)
        with Unraisable() as seen:
            self.assertEqual(null(None), 0)
        self.assertEqual(seen, [("SystemError", "id(): NULL in the place of an object")])

    def test_arguments_beyond_the_registers_arrive_in_their_order(self):
        types = (c_int8, c_double, c_uint16, c_float, c_int32, c_int64) * 4
        values = [number + 1 for number in range(len(types))]
        for count in (1, 5, 9, 13, 24):
            seen = []
            function = jitmem.callback(lambda *args, to=seen: to.append(args), None, *types[:count])
            self.assertIsNone(CFUNCTYPE(None, *types[:count])(function.address)(*values[:count]))
            self.assertIsNone(function(*values[:count]))
            self.assertEqual(seen, [tuple(values[:count])] * 2)

    def test_any_callable_will_do(self):
        class Adder:
            def __call__(self, value):
                return value + 1

            def method(self, value):
                return value + 2

        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t)
        for callable_, result in ((Adder(), 6), (Adder().method, 7), (abs, 5), (int, 5),
                                  (functools.partial(operator.add, 9), 14)):
            self.assertEqual(jitmem.callback(callable_, c_ssize_t, c_ssize_t)(5), result)
        self.assertEqual(jitmem.callback(add, c_ssize_t, c_ssize_t, c_ssize_t)(2, 3), 5)
        self.raises(TypeError, "callback\\(\\) takes a callable, not int", jitmem.callback, 5, None)

    def test_the_result_of_void_is_not_looked_at(self):
        self.assertIsNone(jitmem.callback(lambda: "nothing", None)())

    def test_results_that_are_not_exact_are_converted_as_arguments_are(self):
        for type_, given, result in (
                (c_int8, True, 1), (c_int32, Integer(7), 7),
                (c_uint64, IntegerSubclass(2**63), 2**63),
                (c_double, 3, 3.0), (c_float, FloatSubclass(0.5), 0.5), (c_bool, [0], True),
                (c_bool, "", False), (c_char_p, b"text", b"text")):
            with self.subTest(type=type_.__name__, given=given):
                self.assertEqual(jitmem.callback(lambda given=given: given, type_)(), result)
        function = jitmem.callback(lambda: self.repeat, c_void_p)
        self.assertEqual(function(), self.repeat.address)
        array_ = (c_int32 * 1)(5)
        self.assertEqual(jitmem.callback(lambda: array_, POINTER(c_int32))()[0], 5)

    def test_text_that_is_returned_lives_until_the_next_result(self):
        size = jitmem.bind(ctypes.CDLL(None).strlen if not WINDOWS else ctypes.cdll.msvcrt.strlen,
                           c_size_t, c_void_p)
        text = jitmem.callback(lambda count: b"x" * count, c_char_p, c_ssize_t)
        address = CFUNCTYPE(c_void_p, c_ssize_t)(text.address)
        self.assertEqual([size(address(count)) for count in (1000, 3, 70000)], [1000, 3, 70000])

    def test_wrong_results_are_errors_that_name_the_callback(self):
        for type_, given, error, message in (
                (c_int32, "one", TypeError, "work\\(\\) result must be an integer, not str"),
                (c_int32, 1.0, TypeError, "work\\(\\) result must be an integer, not float"),
                (c_int32, None, TypeError, "work\\(\\) result must be an integer, not NoneType"),
                (c_int8, 128, OverflowError, "work\\(\\) result: 128 does not fit c_int8"),
                (c_int32, 2**33 + 5, OverflowError, "work\\(\\) result: .* does not fit c_int32"),
                (c_int64, Integer(2**63), OverflowError, "work\\(\\) result: .* does not fit"),
                (c_uint64, -1, OverflowError, "work\\(\\) result: -1 does not fit c_uint64"),
                (c_int64, 2**63, OverflowError, "work\\(\\) result: .* does not fit c_int64"),
                (c_double, "1", TypeError, "work\\(\\) result must be a real number, not str"),
                (c_float, 1e300, OverflowError, "work\\(\\) result: 1e\\+300 does not fit c_float"),
                (c_char_p, "text", TypeError, "work\\(\\) result must be bytes"),
                (c_void_p, 1.5, TypeError, "work\\(\\) result must be")):
            with self.subTest(type=type_.__name__, given=given):
                work = jitmem.callback(lambda given=given: given, type_, name="work")
                self.raises(error, message, work)
                with Unraisable():
                    self.assertFalse(CFUNCTYPE(type_)(work.address)())  # what C gets
        self.raises(TypeError, "<lambda>\\(\\) result", jitmem.callback(lambda: "x", c_int))

    def test_types_that_callbacks_do_not_have_are_refused_by_name(self):
        class Own(c_int):
            pass

        for type_ in (Point, Either, ctypes.POINTER(Own)._type_, c_wchar_p, c_char, CALLBACK):
            self.raises(TypeError, re.escape(f"argtype 2 {jitmem._type_name(type_)}: callbacks"),
                        jitmem.callback, print, None, c_int, type_)
            self.raises(TypeError, re.escape(f"restype {jitmem._type_name(type_)}: callbacks"),
                        jitmem.callback, print, type_)
        self.raises(TypeError, "argtype 1", jitmem.callback, print, None, int)
        self.raises(TypeError, "name must be str", jitmem.callback, print, None, name=5)

    def test_an_exception_is_raised_by_the_call_whose_code_it_stopped(self):
        function, calls = self.failing_at(5, KeyError("fifth"))
        try:
            self.repeat(function, 9)
        except KeyError as error:
            names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        self.assertEqual((names[-1], calls), ("work", [9, 8, 7, 6, 5]))
        self.assertEqual(jitmem._kept, {})
        self.assertEqual(self.repeat(function, 3), 6)

    def test_every_kind_of_jitmem_call_raises_it(self):
        code, types = repeat(), (c_ssize_t, c_void_p, c_ssize_t)
        memory = jitmem.Memory(len(code))
        self.addCleanup(memory.close)
        memory.write(code)
        memory.make_executable()
        whole = jitmem.Code(code)
        address = ctypes.cast(self.repeat.address, c_void_p).value
        calls = [self.repeat, jitmem.function(code, *types, nogil=True), whole.function(*types),
                 memory.function(*types), jitmem.bind(address, *types),
                 jitmem.bind(CFUNCTYPE(*types, use_errno=True)(address)),  # which ctypes calls
                 jitmem.function(code, c_ssize_t, POINTER(c_int), c_ssize_t),
                 jitmem.function(code, POINTER(c_int), c_void_p, c_ssize_t),
                 jitmem.function(code, c_ssize_t, CALLBACK, c_ssize_t),
                 functools.partial(jitmem.Function.__call__, self.repeat)]  # the reference
        if GUARD:
            calls += [jitmem.function(code, *types, guard=True), whole.function(*types, guard=True),
                      jitmem.function(code, *types, guard=True, nogil=True)]
        for call in calls:
            function, seen = self.failing_at(2, LookupError("here"))
            with self.subTest(call=call):
                with self.assertRaisesRegex(LookupError, "here"):
                    call(function, 4)
                self.assertEqual((len(seen), jitmem._kept), (2, {}))

    def test_a_librarys_loop_raises_it_too(self):
        library = ctypes.cdll.msvcrt if WINDOWS else ctypes.CDLL(None)
        sort = jitmem.bind(library.qsort, None, c_void_p, c_size_t, c_size_t, c_void_p)
        numbers = array.array("i", [5, 3, 9, 1, 7, 2, 8])
        place = POINTER(c_int)
        compare = jitmem.callback(lambda a, b: a[0] - b[0], c_int, place, place)
        sort(numbers, len(numbers), numbers.itemsize, compare)
        self.assertEqual(list(numbers), [1, 2, 3, 5, 7, 8, 9])
        calls = []

        def refuse(a, b):
            calls.append(a)
            raise RuntimeError("unsortable")
        with self.assertRaisesRegex(RuntimeError, "unsortable"):
            compare = jitmem.callback(refuse, c_int, place, place)
            sort(numbers, len(numbers), numbers.itemsize, compare)
        self.assertEqual(len(calls), 1)

    def test_interrupts_and_exits_come_through(self):
        for error in (KeyboardInterrupt(), SystemExit(3), GeneratorExit()):
            function, calls = self.failing_at(1, error)
            with self.assertRaises(type(error)):
                self.repeat(function, 3)
            self.assertEqual(calls, [3])
        interrupt = jitmem.callback(
            lambda value: signal.raise_signal(signal.SIGINT), None, c_ssize_t)
        with self.assertRaises(KeyboardInterrupt):
            self.repeat(interrupt, 3)

    def test_the_innermost_call_raises_and_a_callback_in_between_may_catch(self):
        inner, calls = self.failing_at(2, ValueError("inner"))

        def outer(value):
            with self.assertRaisesRegex(ValueError, "inner"):
                self.repeat(inner, 3)
            calls.clear()
            return value
        self.assertEqual(self.repeat(jitmem.callback(outer, c_ssize_t, c_ssize_t), 4), 10)

        def passes(value):
            return self.repeat(inner, 3)
        with self.assertRaisesRegex(ValueError, "inner"):
            self.repeat(jitmem.callback(passes, c_ssize_t, c_ssize_t), 4)
        self.assertEqual(jitmem._kept, {})

    @unittest.skipUnless(jitmem.MACHINE == "x86_64-sysv", "machine code for this convention only")
    def test_what_earlier_callbacks_left_on_the_stack_is_not_taken_for_a_call(self):
        twice = bytes.fromhex(
            "53 4889fb 31ff ffd3"               # push rbx; mov rbx, rdi; xor edi, edi; call rbx
            "4881ec00080000 bf01000000 ffd3"    # sub rsp, 2048; mov edi, 1; call rbx
            "4881c400080000 5b c3")             # add rsp, 2048; pop rbx; ret
        function, calls = self.failing_at(2, ValueError("second"))
        for _ in range(2):
            with self.assertRaisesRegex(ValueError, "second"):
                jitmem.function(twice, None, c_void_p)(function)
            self.assertEqual(calls, [0, 1])
            calls.clear()

    def test_a_callback_can_be_called_from_python(self):
        function = jitmem.callback(lambda a: 10 // a, c_int, c_int, name="divide")
        self.assertEqual((function(5), repr(function)[:24]), (2, "<jitmem function divide("))
        self.raises(ZeroDivisionError, "", function, 0)
        self.raises(TypeError, "divide\\(\\) argument 1 must be an integer", function, "5")
        function.close()
        self.raises(ValueError, "divide\\(\\) is closed", function, 5)
        self.raises(ValueError, "divide\\(\\) is closed", self.repeat, function, 1)
        callback = jitmem.callback(abs, c_int, c_int)
        self.raises(TypeError, "cannot be .*pickled", pickle.dumps, callback)

    def test_it_goes_wherever_a_function_goes(self):
        double = jitmem.callback(lambda value: 2 * value, c_ssize_t, c_ssize_t)
        by_type = jitmem.function(CALL, c_ssize_t, CALLBACK, c_ssize_t)
        by_pointer = jitmem.function(CALL, c_ssize_t, POINTER(c_int), c_ssize_t)
        by_ctypes = CFUNCTYPE(c_ssize_t, c_void_p, c_ssize_t)(self.repeat.address)
        results = by_type(double, 4), by_pointer(double, 4), by_ctypes(double, 2)
        self.assertEqual(results, (8, 8, 6))

    def test_without_a_jitmem_call_below_it_is_unraisable_and_the_next_call_runs(self):
        function, calls = self.failing_at(2, KeyError("nobody"))
        by_ctypes = CFUNCTYPE(c_ssize_t, c_void_p, c_ssize_t)(self.repeat.address)
        with Unraisable() as seen:
            self.assertEqual(by_ctypes(function, 4), 4 + 0 + 2 + 1)
        self.assertEqual(seen, [("KeyError", "'nobody'")])
        calls.clear()

        def between(value):  # Python that calls C without jitmem
            return by_ctypes(function, value)
        with Unraisable() as seen:
            self.assertEqual(self.repeat(jitmem.callback(between, c_ssize_t, c_ssize_t), 2), 2 + 1)
        self.assertEqual((len(seen), jitmem._kept), (1, {}))

    def test_what_a_signal_handler_raises_in_between_is_raised_with_the_other_as_its_context(self):
        function, _ = self.failing_at(1, KeyError("first"))
        ask, interrupts = jitmem._Callbacks.call_below, iter([KeyboardInterrupt()])

        def interrupted(*args):
            for interrupt in interrupts:
                raise interrupt
            return ask(*args)
        with mock.patch.object(jitmem._Callbacks, "call_below", interrupted), \
                self.assertRaises(KeyboardInterrupt) as caught:
            self.repeat(function, 3)
        self.assertIsInstance(caught.exception.__context__, KeyError)

    def test_an_interrupt_at_any_bytecode_loses_neither_exception(self):
        def work(value):
            if value == 1:
                return 1 << 64
            raise KeyError(value)
        function = jitmem.callback(work, c_ssize_t, c_ssize_t)
        for value, error in (2, KeyError), (1, OverflowError):
            stopped = 0
            for number in range(1, 900):  # more than there are
                try:
                    interrupt = self.raising_at(number, lambda: self.repeat(function, value))
                except error:
                    continue  # it is over, or a generator has swallowed the interrupt
                self.assertEqual(jitmem._kept, {}, number)
                names = [frame.name for frame in traceback.extract_tb(interrupt.__traceback__)]
                if "key_of" in names:
                    stopped += 1
                    self.assertIsInstance(interrupt.__context__, error, number)
            self.assertGreater(stopped, 5)

    def test_an_object_that_the_code_returns_all_the_same_is_not_lost(self):
        code = jitmem._assemble("""
            enter 2, SHADOW
            move kept0, arg1
            call arg0
            move arg0, kept0
            call Py_IncRef
            move result, kept0
            leave 2, SHADOW
        """, SHADOW=jitmem._processor.shadow).finish()
        function = jitmem.function(code, py_object, c_void_p, py_object)
        fail = jitmem.callback(lambda: 1 / 0, None)
        for call in function, functools.partial(jitmem.Function.__call__, function):
            thing = object()
            before = sys.getrefcount(thing)
            for _ in range(5):
                with self.assertRaises(ZeroDivisionError):
                    call(fail, thing)
            self.assertEqual(sys.getrefcount(thing), before)

    @unittest.skipUnless(TIMER, "there are no timers here")
    def test_signals_are_handled_while_callbacks_do_not_run(self):
        calls = []

        def work(value):
            calls.append(value)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            raise KeyError("first")
        function = jitmem.callback(work, c_ssize_t, c_ssize_t)

        def handler(number, frame):
            raise TimeoutError("from the handler")
        before = signal.signal(signal.SIGALRM, handler)
        try:
            with self.assertRaisesRegex(TimeoutError, "from the handler") as caught:
                self.repeat(function, 100000)
        finally:
            signal.signal(signal.SIGALRM, before)
        self.assertIsInstance(caught.exception.__context__, KeyError)
        self.assertEqual((len(calls), jitmem._kept), (1, {}))

    def test_callbacks_in_callbacks_without_end_are_a_recursion_error(self):
        def work(value):
            return self.repeat(function, 1)
        function = jitmem.callback(work, c_ssize_t, c_ssize_t)
        collect()  # finalizers could not run at the end of the recursion
        self.raises(RecursionError, "", self.repeat, function, 1)
        self.assertEqual(jitmem._kept, {})

    @unittest.skipUnless(LINUX, "what is left is asked of Linux")
    def test_copies_of_the_module_that_go_leave_nothing(self):
        self.assertEqual(self.run_child("""
            import gc, importlib, sys
            import jitmem
            from ctypes import c_ssize_t, c_void_p
            code = repeat()

            def use(module):
                loop = module.function(code, c_ssize_t, c_void_p, c_ssize_t)
                for work in abs, lambda value: 1 // 0:
                    try:
                        loop(module.callback(work, c_ssize_t, c_ssize_t), 3)
                    except ZeroDivisionError:
                        pass

            def copy():
                del sys.modules["jitmem"]
                use(importlib.import_module("jitmem"))

            def taken():
                gc.collect()
                return sum("x" in row[2] for row in mappings())
            for again in copy, lambda: use(importlib.reload(sys.modules["jitmem"])):
                again()
                again()
                before = taken()
                for _ in range(3):
                    again()
                print(taken() - before, end=" ")
            """, use="mappings repeat"), "0 0")

    def test_what_was_made_before_a_reload_goes_on_with_what_is_made_after_it(self):
        self.assertEqual(self.run_child("""
            import importlib, jitmem
            from ctypes import c_ssize_t, c_void_p

            def made():
                return (jitmem.function(repeat(), c_ssize_t, c_void_p, c_ssize_t),
                        jitmem.callback(lambda value: 1 // (value - 1), c_ssize_t, c_ssize_t))
            old = made()
            importlib.reload(jitmem)
            new = made()
            for loop in (old[0], new[0]):
                for callback in (old[1], new[1]):
                    for by in (type(loop).__call__, jitmem.Function.__call__):
                        try:
                            by(loop, callback, 3)
                        except ZeroDivisionError:
                            print("raised", end=" ")
            """, use="repeat"), "raised " * 7 + "raised")

    @unittest.skipUnless(GUARD, "there is no guard here")
    def test_guarded_code_may_fault_afterwards(self):
        text = """
            enter 2, SHADOW
            call arg0
            set arg0, 0
            load arg0, [arg0 + 0]
            leave 2, SHADOW
        """
        code = jitmem._assemble(text, SHADOW=jitmem._processor.shadow).finish()
        crash = jitmem.function(code, None, c_void_p, guard=True)
        calls = []
        for _ in range(3):
            with self.assertRaisesRegex(jitmem.Fault, "of address 0x0"):
                crash(jitmem.callback(lambda: calls.append(1), None))
        with self.assertRaisesRegex(jitmem.Fault, "of address 0x0") as caught:
            crash(jitmem.callback(lambda: 1 / 0, c_int))
        self.assertIsInstance(caught.exception.__context__, ZeroDivisionError)
        self.assertEqual((len(calls), jitmem._kept), (3, {}))

    def run_in_a_thread_of_c(self, function):
        """Call this in a thread that Python has not made."""
        if WINDOWS:
            kernel = ctypes.WinDLL("kernel32")
            kernel.CreateThread.restype = c_void_p
            kernel.CreateThread.argtypes = [c_void_p, c_size_t, *[c_void_p] * 4]
            thread = c_void_p(kernel.CreateThread(None, 0, function, None, 0, None))
            kernel.WaitForSingleObject(thread, -1)
            kernel.CloseHandle(thread)
            return
        library, thread = ctypes.CDLL(None), c_void_p()
        self.assertEqual(library.pthread_create(byref(thread), None, function, None), 0)
        self.assertEqual(library.pthread_join(thread, None), 0)

    def test_threads_that_c_made_may_call(self):
        idents, here = [], threading.get_ident()
        work = jitmem.callback(lambda at: idents.append(threading.get_ident()), c_void_p, c_void_p)
        for _ in range(20):
            self.run_in_a_thread_of_c(work)
        self.assertEqual((len(idents), here in idents), (20, False))
        function, calls = self.failing_at(1, KeyError("thread"))
        with Unraisable() as seen:
            self.run_in_a_thread_of_c(function)
        self.assertEqual((seen, len(calls)), ([("KeyError", "'thread'")], 1))
        loop = jitmem.callback(lambda at: self.repeat(function, 2), c_void_p, c_void_p)
        self.run_in_a_thread_of_c(loop)
        self.assertEqual(len(calls), 3)

    def test_exceptions_of_threads_do_not_get_mixed_up(self):
        def work():
            for number in range(300 if STRESS else 60):
                error = KeyError(number)
                function, calls = self.failing_at(3, error)
                with self.assertRaises(KeyError) as caught:
                    (self.repeat if number % 2 else releasing)(function, 5)
                self.assertIs(caught.exception, error)
                self.assertEqual(len(calls), 3)
        releasing = jitmem.function(repeat(), c_ssize_t, c_void_p, c_ssize_t, nogil=True)
        self.run_threads(*[work] * 4)
        self.assertEqual(jitmem._kept, {})

    @unittest.skipUnless(FORKS, "no fork here")
    def test_forked_children_go_on_with_what_they_inherited(self):
        function, calls = self.failing_at(2, KeyError("child"))

        def child():
            with self.assertRaises(KeyError):
                self.repeat(function, 9)
            self.assertEqual(self.repeat(jitmem.callback(abs, c_ssize_t, c_ssize_t), 3), 6)
            self.assertEqual(jitmem._kept, {})
        self.fork(child)
        self.repeat(jitmem.callback(lambda value: self.fork(child), None, c_ssize_t), 1)
        with mock.patch.dict(jitmem._kept, {1 << 40: KeyError("of another thread")}):
            self.fork(child)
        self.assertEqual(calls, [])

    @unittest.skipUnless(LINUX, "PR_SET_MDWE is Linux's")
    def test_they_work_where_no_page_may_become_executable(self):
        self.assertEqual(self.run_hardened("""
            from ctypes import c_ssize_t, c_void_p
            loop = jitmem.function(repeat(), c_ssize_t, c_void_p, c_ssize_t)
            print(loop(jitmem.callback(abs, c_ssize_t, c_ssize_t), 3))
            """, use="repeat"), "6")

    @unittest.skipIf(not LINUX or EMULATED, "Linux lists its mappings; emulators merge them")
    def test_no_page_is_ever_writable_and_executable(self):
        self.assertEqual(self.run_child("""
            import jitmem
            from ctypes import c_ssize_t, c_void_p  # which itself may make such a page
            before = mappings()
            loop = jitmem.function(repeat(), c_ssize_t, c_void_p, c_ssize_t)
            loop(jitmem.callback(abs, c_ssize_t, c_ssize_t), 3)
            print([each for each in mappings() if "wx" in each[2] and each not in before])
            """, use="mappings repeat"), "[]")

    def test_without_memory_there_are_exceptions_and_no_crashes(self):
        out = self.run_child("""
            import ctypes, jitmem, sys
            try:
                import _testcapi
            except ImportError:
                print("no _testcapi")
                sys.exit()
            def fail(value):
                raise KeyError(value)
            class Own:  # with such a type Python code serves the call
                from_param = ctypes.c_ssize_t
            sys.unraisablehook = lambda unraisable: None
            callback = jitmem.callback(fail, ctypes.c_ssize_t, ctypes.c_ssize_t)
            for type_ in ctypes.c_ssize_t, Own:
                loop = jitmem.function(repeat(), None, ctypes.c_void_p, type_)
                for number in range(-1, 60):
                    try:
                        if number >= 0:
                            _testcapi.set_nomemory(number, number + 1)
                        try:
                            loop(callback, 1)
                        finally:
                            _testcapi.remove_mem_hooks()
                    except (KeyError, MemoryError, SystemError, ctypes.ArgumentError):
                        pass
            print("alive")
            """, use="repeat")
        if out == "no _testcapi":
            self.skipTest("this Python has not the module of its own tests")
        self.assertEqual(out, "alive")

    def alive(self):
        """How many callbacks there are."""
        jitmem.callback(abs, c_int, c_int)  # the first one makes what they share
        collect()
        return sum(isinstance(each, jitmem._Callback) for each in gc.get_objects())

    def words(self):
        """The words of callbacks, by the pages of their stubs."""
        pages = [each() for each in list(jitmem._process.pages.values())]
        return [each.kept for each in pages if each]

    def test_many_made_and_dropped_leave_nothing(self):
        def some(count):
            for _ in range(count):
                function = jitmem.callback(lambda value: value, c_ssize_t, c_ssize_t)
                function(5)
        some(1000)
        before = self.alive(), jitmem.info()["bytes"]
        some(100000 if STRESS else 16000)
        self.assertEqual(self.alive(), before[0])
        self.assertLess(jitmem.info()["bytes"], before[1] + (1 << 20))
        # Of three chunks: other tests' functions may keep the first, ours another one.
        stubs = 3 * jitmem._CHUNK // jitmem._LINE
        self.assertLessEqual(sum(map(len, self.words())), stubs)

    def test_cycles_are_collected(self):
        class Thing:
            pass

        def make():
            thing = Thing()
            thing.callback = jitmem.callback(lambda value: bool(thing), c_ssize_t, c_ssize_t)
            thing.loop = jitmem.function(repeat(), c_ssize_t, c_void_p, c_ssize_t, keep=thing)
            thing.loop(thing.callback, 3)
            return weakref.ref(thing)
        before = self.alive()
        gone = [make() for _ in range(5)]
        collect()
        self.assertEqual([each() for each in gone], [None] * 5)
        self.assertEqual(self.alive(), before)

    def test_finalizers_of_its_own_cycle_may_still_call_it(self):
        seen = []

        class Thing:
            def __del__(self):
                seen.append(self.loop(self.address, 3))
        for order in range(4):
            thing = Thing() if order < 2 else None
            function = jitmem.callback(lambda value, thing=thing: value, c_ssize_t, c_ssize_t)
            thing = thing or Thing()  # the collector may call finalizers in the order of creation
            thing.loop, thing.address = self.repeat, function.address
            thing.function = function
            thing.others = [Thing.__new__(object) if order % 2 else None, thing]
            del thing, function
            collect()
        self.assertEqual(seen, [6] * 4)

    def test_an_exception_that_was_raised_keeps_nothing(self):
        for call in self.repeat, functools.partial(jitmem.Function.__call__, self.repeat):
            function, _ = self.failing_at(1, KeyError("soon gone"))
            gone = weakref.ref(function)
            with self.assertRaises(KeyError):
                call(function, 3)
            del function
            collect()
            self.assertIsNone(gone())

    def test_reference_counts_are_level_after_exceptions(self):
        error, big = KeyError(10**30), 10**30

        def work(value):
            if value == 1:
                raise error
            return big if value == 2 else value
        function = jitmem.callback(work, c_ssize_t, c_ssize_t)
        things = error, big, work, function, self.repeat, None
        for start in (1, 2):
            counts = []
            for _ in range(20):
                try:
                    self.repeat(function, start)
                except (KeyError, OverflowError):
                    pass
                error.__traceback__ = error.__context__ = None
                counts.append([sys.getrefcount(thing) for thing in things[:-1]])
            self.assertEqual(counts[3], counts[-1])

    def test_a_callback_may_go_while_it_runs(self):
        held = []

        def work(value):
            held.clear()
            collect()
            return value
        held.append(jitmem.callback(work, c_ssize_t, c_ssize_t))
        address, others = held[0].address, self.assert_loads(3)
        self.assertEqual(self.repeat(address, 1), 1)
        self.assertEqual(len(others), 3)

    def test_a_callback_that_is_gone_never_becomes_another(self):
        first = jitmem.callback(lambda value: value, c_ssize_t, c_ssize_t)
        address, pages = first.address, first._keep.pages  # which stay while this is here
        del first
        collect()
        others = [jitmem.callback(lambda value: 0, c_ssize_t, c_ssize_t) for _ in range(9)]
        message = "C called a jitmem callback that is gone"
        self.raises(ReferenceError, message, self.repeat, address, 2)
        self.assertNotIn(address, [other.address for other in others])
        self.assertIn(address, range(pages.address, pages.address + pages.size))


def ever(number):
    """A signal; macOS tells SIGSEGV and SIGBUS apart in its own way."""
    return signal.SIGSEGV if sys.platform == "darwin" and number == signal.SIGBUS else number


def guarded_faults():
    return {what: (signal.SIGBUS if number == 7 else signal.Signals(number), offset,
                   jitmem.function(bytes.fromhex(code), c_ssize_t, name="wrong", guard=True))
            for what, (number, offset, code) in FAULTS.items()}


@unittest.skipUnless(GUARD and not WINDOWS, "no guard by signals here")
class Guard(Case):
    @classmethod
    def setUpClass(cls):
        cls.add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, guard=True)
        cls.call = jitmem.function(CALL_DEEP, c_ssize_t, c_void_p, c_ssize_t, guard=True)
        cls.trap = jitmem.function(TRAP, None, guard=True)
        cls.same = jitmem.function(SAME, c_ssize_t, c_ssize_t, guard=True)

    def fault_of(self, function):
        with self.assertRaises(jitmem.Fault) as caught:
            function()
        return caught.exception

    def assert_no_call_is_under_way(self):
        """All records of this thread are free, and there are few."""
        thread = jitmem._guard().thread()
        address, count = thread.free, 0
        while address and count < 100:
            address, count = jitmem._Record.from_address(address).next, count + 1
        self.assertEqual((thread.current, count % jitmem._RECORDS), (0, 0))
        self.assertLess(count, 20)

    def assert_process_healthy(self):
        """malloc, floating point, C functions, the GIL: what wrong code has left shows up here."""
        blocks = [bytearray(size) for size in (1, 500, 70000, 300000)]
        self.assertEqual(bytes(blocks[1] + blocks[2]), bytes(70500))
        tiny, huge, root = 5e-324, 1e308, 2**0.5
        self.assertEqual(
            (tiny * 2 / 2, huge * 10, 1 / 3 + 2 / 3, root * root),
            (tiny, float("inf"), 1.0, 2.0000000000000004),
        )
        items, library = (c_int * 3)(3, 1, 2), ctypes.CDLL(None)
        library.qsort(
            items,
            c_size_t(3),
            c_size_t(4),
            CFUNCTYPE(c_int, POINTER(c_int), POINTER(c_int))(lambda a, b: a[0] - b[0]),
        )
        self.assertEqual(list(items), [1, 2, 3])
        if not PYPY:
            text = ctypes.create_string_buffer(40)
            library.snprintf(text, c_size_t(40), b"%.3Lf %d", ctypes.c_longdouble(1.5), 7)
            self.assertEqual(text.value, b"1.500 7")
            library.strtold.restype = ctypes.c_longdouble
            self.assertAlmostEqual(library.strtold(b"0.1", None), 0.1)  # which is inexact
        time.sleep(0)

    def test_wrong_code_of_every_kind_is_a_fault_with_its_signal_and_offset(self):
        for what, (number, offset, function) in guarded_faults().items():
            for _ in range(3):
                with self.subTest(what):
                    fault = self.fault_of(function)
                    self.assertEqual((ever(fault.signal), fault.offset), (ever(number), offset))
                    self.assert_process_healthy()

    def test_threads_fault_side_by_side_with_good_calls_and_nothing_leaks(self):
        faults = guarded_faults().values()
        # A thread that began after another's end would take over that one's memory.
        all_done = threading.Barrier(4)

        def work(rounds):
            try:
                for i in range(rounds):
                    for number, offset, function in faults:
                        fault = self.fault_of(function)
                        self.assertEqual((ever(fault.signal), fault.offset), (ever(number), offset))
                        self.assertEqual(self.add(i, 3), i + 3)
                    if i % 16 == 0:
                        self.assert_process_healthy()
            finally:
                all_done.wait()

        def deep_in_the_stack(depth, rounds):
            # Code that overwrites 4 KiB of stack must find so much above it in a thread, too.
            if depth == 0:
                return work(rounds)
            return list(map(deep_in_the_stack, [depth - 1], [rounds]))

        def all_threads(rounds):
            self.run_threads(*[functools.partial(deep_in_the_stack, 10, rounds)] * 4)
            collect()
            writable = sum(
                end - start
                for start, end, permissions, _ in mappings() or ()
                if permissions[1] == "w"
            )
            return writable, jitmem.info()["bytes"]

        before, code_before = all_threads(10)
        after, code_after = all_threads(2500 if STRESS and not EMULATED else 10)
        self.assertEqual(code_after, code_before)
        self.assertLess(after - before, 20 << 20)

    def test_code_that_returns_with_something_changed_is_a_fault_that_names_it(self):
        for what, code in DAMAGE.items():
            function = jitmem.function(bytes.fromhex(code), c_ssize_t, name="wrong", guard=True)
            for _ in range(3):
                with self.subTest(what):
                    fault = self.fault_of(function)
                    text = f"wrong(): SIGABRT: the code returned with {what} changed, "
                    text += "which its caller relies on"
                    self.assertEqual(
                        (str(fault), fault.signal, fault.offset), (text, signal.SIGABRT, None)
                    )
                    self.assert_process_healthy()

    def test_exceptions_of_signal_handlers_leak_nothing_wherever_they_come(self):
        class Tick(Exception):
            pass

        def tick(number, frame):
            if ticking:
                ticking.clear()
                raise Tick

        def calls(count):
            for _ in range(count):
                self.add(2, 3)
                with contextlib.suppress(jitmem.Fault):
                    self.trap()

        calls(10)
        began = time.perf_counter()
        calls(20)
        count, ticking, random, usual = 0, [], Random(20), time.perf_counter() - began
        with on_alarm(tick):
            while count < (5000 if STRESS else 400):
                try:
                    ticking.append(1)
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, usual))
                    calls(20)
                    ticking.clear()
                except Tick:
                    count += 1
            ticking.clear()
        self.assert_no_call_is_under_way()
        self.assert_process_healthy()

    # In a child: three daemon threads, each in its hundredth guarded call or a later one.
    BUSY = """
        import jitmem, os, sys, threading, time
        f = jitmem.function(bytes.fromhex(sys.argv[1]), None, guard=True, nogil=True)
        counts = [0] * 3
        def work(number):
            while True:
                f()
                counts[number] += 1
        for number in range(3):
            threading.Thread(target=work, args=(number,), daemon=True).start()
        wait_until(lambda: min(counts) > 100)
        """

    def test_daemon_threads_may_be_in_guarded_calls_at_interpreter_exit(self):
        self.run_child(self.BUSY, here(SAME).hex(), use="wait_until")

    def test_finalizers_of_its_own_cycle_may_still_call_it(self):
        out = self.run_child("""
            import gc, jitmem, sys
            class Thing:
                def __del__(self):
                    try:
                        self.trap()
                    except jitmem.Fault:
                        print("fault")
            for _ in range(4):
                trap = jitmem.function(bytes.fromhex(sys.argv[1]), None, guard=True)
                thing = Thing()
                thing.trap, thing.itself = trap, thing
                del thing, trap
                gc.collect(), gc.collect()
            """, here(TRAP).hex())
        self.assertEqual(out.split(), ["fault"] * 4)

    def test_finalizers_of_ended_threads_may_make_guarded_calls(self):
        out = self.run_child(
            """
            import gc, jitmem, sys, threading
            f = jitmem.function(bytes.fromhex(sys.argv[1]), None, guard=True)
            local = threading.local()
            class Late:
                def __del__(self):
                    f()
            def work(late):
                if late:
                    local.late = Late()
                f()
            for i in range(40):
                thread = threading.Thread(target=work, args=(i % 3 == 0,))
                thread.start()
                thread.join()
            gc.collect()
            print(len(jitmem._guard().threads()) < 20)
            """,
            here(SAME).hex(),
        )
        self.assertEqual(out, "True")

    @unittest.skipIf(EMULATED, "QEMU's own locks do not survive a fork beside threads")
    def test_a_fork_amid_other_threads_guarded_calls_leaves_the_child_whole(self):
        out = self.run_child(
            """
            import os, warnings
            warnings.simplefilter("ignore")
            os.register_at_fork(after_in_child=lambda: f())"""
            + textwrap.indent(self.BUSY, "    ")
            + """
            import ctypes, signal
            for _ in range(10):
                child = os.fork()
                if not child:
                    signal.alarm(60)
                    thread = threading.Thread(target=f)
                    thread.start()
                    thread.join()
                    f()
                    threads = jitmem._guard().threads()
                    wait_until(lambda: sum(thread.busy for thread in threads) == 1)
                    os._exit(0)
                print(os.waitpid(child, 0)[1], end=" ")
            sys.stdout.flush()
            os._exit(0)
            """,
            here(SAME).hex(), use="wait_until",
        )
        self.assertEqual(out.split(), ["0"] * 10)

    @unittest.skipUnless(PROCESSOR == "x86_64", "x86-64 code")
    def test_calls_within_calls_do_not_shorten_what_is_put_back_later(self):
        seen = []
        self.assertEqual(self.call(CALLBACK(lambda n: self.add(n, 1)), 5), 6)
        # 200 KiB of stack between a C function and this:
        # sub rsp, 200 KiB + 8; call rdi; add rsp, …; ret
        deep = jitmem.function(
            bytes.fromhex("4881ec08200300 ffd7 4881c408200300 c3"), None, CFUNCTYPE(None)
        )
        wipe = jitmem.function(
            bytes.fromhex("4889e7 b900000300 30c0 f3aa 0f0b"), None, guard=True
        )  # 192 KiB upwards

        def fault():
            with contextlib.suppress(jitmem.Fault):
                wipe()
                seen.append("returned")
            seen.append("alive")

        deep(CFUNCTYPE(None)(fault))
        self.assertEqual(seen, ["alive"])
        self.assert_process_healthy()

    def test_a_signal_that_waits_to_be_delivered_goes_on_waiting(self):
        out = self.run_child(
            """
            import jitmem, os, signal, sys
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTRAP, signal.SIGILL])
            os.kill(os.getpid(), signal.SIGTRAP)
            try:
                jitmem.function(bytes.fromhex(sys.argv[1]), None, guard=True)()
            except jitmem.Fault as fault:
                print(fault.signal.name)
            print(signal.sigpending() == {signal.SIGTRAP})
            """,
            here(TRAP).hex(),
        )
        self.assertEqual(out.split(), ["SIGILL", "True"])

    def test_arguments_on_the_stack_belong_to_the_code(self):
        if PYPY or PROCESSOR != "x86_64":
            self.skipTest("long double on the stack is x86-64's, and PyPy has none")
        double = bytes.fromhex(
            "db6c2438 d8c0 db7c2438 b807000000 c3"
        )  # fld tbyte [rsp+56]; fadd st0; fstp tbyte [rsp+56]; …
        self.assertEqual(
            jitmem.function(double, c_int, *[ctypes.c_longdouble] * 4, guard=True)(1, 2, 3, 4), 7
        )

    def test_code_that_overwrites_its_caller_and_returns_is_a_fault(self):
        code = codes(
            x86_64="488d7c2408 b940000000 30c0 f3aa c3",  # 64 bytes from where it returns to
            aarch64="e9030091 000280d2 3f8500f8 000400d1 c0ffffb5 c0035fd6",
        )
        function = jitmem.function(code, c_ssize_t, guard=True)
        with self.assertRaisesRegex(
            jitmem.Fault, "wrote over its caller's stack frame, and returned"
        ) as caught:
            function()
        fault = caught.exception
        self.assertEqual(
            (fault.signal, fault.offset, fault.address, fault.registers),
            (signal.SIGABRT, None, None, None),
        )
        one_word = codes(  # 128 bytes above that: not qword [rsp + 136]; ret
            x86_64="48f7942488000000 c3",
            aarch64="e94340f9 e90329aa e94300f9 c0035fd6",  # ldr, mvn, str x9, [sp, 128]; ret
        )
        self.raises(jitmem.Fault, "wrote over its caller's stack frame",
                    jitmem.function(one_word, c_ssize_t, guard=True))
        self.assert_process_healthy()

    def test_good_calls_mean_what_they_mean_without_guard(self):
        many = codes(
            x86_64="488b442408 4801f8 c3", aarch64="e80340f9 0000088b c0035fd6"
        )  # first + the first on the stack
        self.assertEqual(
            jitmem.function(
                many, c_int64, *[c_int64] * (7 if PROCESSOR == "x86_64" else 9), guard=True
            )(1, *range(5 if PROCESSOR == "x86_64" else 7), 41),
            42,
        )
        self.assertEqual(
            jitmem.function(ADD_DOUBLES, c_double, c_double, c_double, guard=True)(1.5, 2.25), 3.75
        )
        self.assertEqual(jitmem.function(SAME, c_char_p, c_char_p, guard=True)(b"text"), b"text")
        if PROCESSOR == "x86_64" and not PYPY:
            self.assertEqual(
                jitmem.function(bytes.fromhex("d9e8 c3"), ctypes.c_longdouble, guard=True)(), 1.0
            )  # fld1
            # fnclex; mov dword [rsp-8], 0; fldcw [rsp-8]; fld1; ret
            masks = jitmem.function(
                bytes.fromhex("dbe2 c74424f800000000 d96c24f8 d9e8 c3"),
                ctypes.c_longdouble,
                guard=True,
            )
            self.raises(jitmem.Fault, "with the x87 control word changed", masks)
            self.assert_process_healthy()
        add = jitmem.function(ADD, c_int64, c_int64, c_int64, name="add", guard=True)
        self.raises(TypeError, r"^add\(\) argument 2 must be an integer, not str$", add, 2, "3")
        self.raises(OverflowError, "does not fit", add, 2**63, 0)
        add.close()
        self.raises(ValueError, "is closed", add, 1, 2)

    def test_a_fault_says_what_happened(self):
        code = codes(
            x86_64="b8efbe0000 8b08 c3", aarch64="e0dd9752 010040f9"
        )  # reads address 0xbeef, in rax or x0
        read = jitmem.function(code, None, name="read", guard=True)
        fault = self.fault_of(read)
        offset = 5 if PROCESSOR == "x86_64" else 4
        self.assertRegex(
            str(fault),
            rf"^read\(\): SIGSEGV: (read|access) of address 0xbeef, at offset {offset} of 8$",
        )
        self.assertIs(fault.signal, signal.SIGSEGV)
        self.assertEqual((fault.offset, fault.address), (offset, 0xBEEF))
        registers = fault.registers
        self.assertEqual(registers.get("rax", registers.get("x0")), 0xBEEF)
        self.assertEqual(registers.get("rip", registers.get("pc")), read.address + offset)
        again = pickle.loads(pickle.dumps(fault))
        self.assertEqual(
            (type(again), str(again), vars(again)), (jitmem.Fault, str(fault), vars(fault))
        )

    def test_aarch64_says_read_or_write_where_the_kernel_does(self):
        guard = jitmem._guard()
        for syndrome, word in ((0x92000046, "write"), (0x92000006, "read")):
            records = (
                struct.pack("<II", 0x46508001, 16)
                + bytes(8)
                + struct.pack("<IIQII", 0x45535201, 16, syndrome, 0, 0)
            )
            for found, expected in ((records, word), (records[:16] + bytes(16), "access")):
                record = jitmem._Found(signal=signal.SIGSEGV, code=1)
                ctypes.memmove(
                    ctypes.addressof(record) + jitmem._Found.context.offset + 288, found, len(found)
                )
                with mock.patch.object(guard, "own", jitmem._AArch64Part):
                    self.assertEqual(guard.explain(record)[1], expected)

    def test_offsets_are_those_of_the_whole_code(self):
        code = jitmem.Code(here(ADD).ljust(16, b"\0") + here(TRAP))
        good, wrong = code.function(c_ssize_t, c_ssize_t, c_ssize_t, guard=True), code.function(
            None, offset=16, guard=True
        )
        self.assertEqual(good(2, 3), 5)
        bound = [(jitmem.bind(wrong.address, None, guard=True), 0)] if LINUX else []
        for function, offset in ((wrong, 16), *bound):
            self.assertEqual(self.fault_of(function).offset, offset)

    @unittest.skipUnless(LINUX, "only Linux tells what a mapping is of")
    def test_bind_guards_generated_code_and_refuses_a_library(self):
        self.raises(
            NotImplementedError,
            "bind.. cannot guard 0x",
            jitmem.bind,
            ctypes.CDLL(None).abs,
            c_int,
            c_int,
            guard=True,
        )
        self.raises(
            NotImplementedError, "bind.. cannot guard 0x10", jitmem.bind, 16, c_int, guard=True
        )
        with executable(TRAP) as memory:
            self.raises(
                jitmem.Fault, "SIGILL", jitmem.bind(memory.address, None, keep=memory, guard=True)
            )

    def test_a_thread_is_made_ready_once(self):
        guard = jitmem._guard()
        self.add(1, 2)
        with mock.patch.object(jitmem._Guard, "prepare", side_effect=AssertionError):
            self.assertEqual(self.add(2, 3), 5)
            self.raises(jitmem.Fault, "SIGILL", self.trap)
            self.assertEqual(self.add(2, 3), 5)
        before = signal.signal(signal.SIGINT, lambda *_: None)
        self.assertEqual((guard.is_ready(), self.add(2, 3), guard.is_ready()), (0, 5, 1))
        signal.signal(signal.SIGINT, before)

    def test_guarded_functions_may_call_each_other_by_pointer(self):
        function = jitmem.function(
            CALL_DEEP, c_ssize_t, c_void_p, c_ssize_t, name="caller", guard=True
        )
        for wrong in self.trap, self.trap.address:
            for _ in range(10_000 if STRESS else 500):
                self.raises(jitmem.Fault, r"^caller\(\): SIGILL: ", function, wrong, 1)
        self.assertEqual(function(self.same, 7), 7)
        self.assert_no_call_is_under_way()

    @unittest.skipUnless(TIMER and not PYPY, "PyPy's ctypes has a callback of its own in each call")
    def test_an_exception_of_a_signal_handler_is_not_lost_behind_a_fault(self):
        slow = jitmem.function(
            codes(
                x86_64="b9c0c62d00 e2fe 8b01 c3",  # 3,000,000 rounds; mov eax, [rcx]
                aarch64="095ba0d2 290500d1 e9ffffb5 000040f9",
            ),
            None,
            c_void_p,
            guard=True,
        )
        seen = []
        with on_alarm(lambda *_: operator.truediv(1, 0)):
            for _ in range(20):
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                try:
                    slow(0)
                except (ZeroDivisionError, jitmem.Fault) as error:
                    seen.append(type(error))
                signal.setitimer(signal.ITIMER_REAL, 0)
        self.assertGreater(seen.count(ZeroDivisionError), 15)

    def interrupt(self, call):
        """Call this, and send SIGINT to the process as Ctrl-C does, some time later."""
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            return call()
        finally:
            timer.join()

    def test_ctrl_c_ends_guarded_code(self):
        function = jitmem.function(LOOP, None, name="loop", nogil=True, guard=True)
        for _ in range(3):
            self.assertRaises(KeyboardInterrupt, self.interrupt, function)
            self.assert_process_healthy()
        self.assert_no_call_is_under_way()

    def test_a_program_s_own_handler_of_ctrl_c_is_called_and_then_there_is_a_fault(self):
        seen, function = [], jitmem.function(LOOP, None, name="loop", nogil=True, guard=True)
        before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
        try:
            with self.assertRaisesRegex(
                jitmem.Fault, r"^loop\(\): SIGINT: interrupted, at offset 0 of "
            ) as caught:
                self.interrupt(function)
            self.assertEqual((seen, caught.exception.signal), ([signal.SIGINT], signal.SIGINT))
            # In a callback it is as ever: the handler returns, and so does the call.
            self.assertEqual(
                self.interrupt(lambda: self.call(CALLBACK(lambda n: time.sleep(0.15) or n), 5)), 5
            )
            self.assertEqual(seen, [signal.SIGINT] * 2)
        finally:
            signal.signal(signal.SIGINT, before)

    @unittest.skipUnless(LINUX, "timers of threads are Linux's")
    def test_threads_that_make_the_first_calls_with_a_limit_take_one_signal(self):
        out = self.run_child("""
            import jitmem, sys, threading, time
            loop = jitmem.function(bytes.fromhex(sys.argv[1]), None, nogil=True, timeout=0.05)
            guard = jitmem._guard()
            action = guard.action

            def slow(number, *new):
                found = action(number, *new)
                if new and threading.current_thread() is first:
                    time.sleep(0.03)  # preempted where its signal is installed and not yet known
                return found
            guard.action = slow

            def work():
                try:
                    loop()
                except TimeoutError:
                    print("ended", end=" ")
            first, second = (threading.Thread(target=work, daemon=True) for _ in range(2))
            first.start()
            time.sleep(0.01)
            second.start()
            first.join(60)
            second.join(60)
            """, here(LOOP).hex())
        self.assertEqual(out, "ended ended")

    @unittest.skipUnless(LINUX, "timers of threads are Linux's")
    def test_a_fault_that_an_interrupt_keeps_python_from_taking_is_not_an_outer_call_s(self):
        loop = jitmem.function(LOOP, None, nogil=True, timeout=60)

        def work(value):
            self.assertRaises(KeyboardInterrupt, self.interrupt, loop)
            return value
        self.assertEqual(self.call(CALLBACK(work), 5), 5)
        self.assert_no_call_is_under_way()

    @unittest.skipUnless(LINUX, "timers of threads are Linux's")
    def test_a_call_that_takes_too_long_is_ended(self):
        function = jitmem.function(LOOP, None, name="loop", nogil=True, timeout=0.05)

        def work():
            for _ in range(2):
                began = time.monotonic()
                self.raises(
                    TimeoutError, r"^loop\(\): no answer within 0.05 s, at offset 0 of ", function
                )
                self.assertLess(time.monotonic() - began, 2)

        # QEMU's timers are not made for two threads.
        self.run_threads(*[work] * (1 if EMULATED else 2))
        self.assert_process_healthy()
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, timeout=0.1)
        self.assertEqual((add(2, 3), pickle.loads(pickle.dumps(add))(2, 3)), (5, 5))
        if os.path.exists("/proc/self/timers"):
            with open("/proc/self/timers") as timers:
                self.assertEqual(timers.read(), "")
        # A call within such a call has a limit of its own, and the outer one keeps its.
        outer = jitmem.function(
            CALL_DEEP, c_ssize_t, c_void_p, c_ssize_t, name="outer", timeout=2
        )
        self.assertEqual(outer(CALLBACK(lambda n: time.sleep(0.15) or add(n, 1)), 4), 5)
        inner = CALLBACK(lambda n: self.raises(TimeoutError, "loop", function) or n)
        self.assertEqual(outer(inner, 4), 4)
        # A call that has none is left when that of the outer one is up.
        endless = jitmem.function(LOOP, None, name="endless", guard=True)
        words = r"^endless\(\): no answer within the limit of a call around it, at offset 0 of "
        inner = CALLBACK(lambda n: self.raises(TimeoutError, words, endless) or n)
        self.assertEqual(outer(inner, 4), 4)

    def test_a_limit_that_makes_no_sense_is_refused(self):
        if not LINUX:
            return self.raises(
                NotImplementedError, "timeout: only Linux", jitmem.function, ADD, None, timeout=1
            )
        for limit in 0, -1, float("nan"), float("inf"):
            self.raises(ValueError, "^timeout must be ", jitmem.function, ADD, None, timeout=limit)
        self.raises(
            TypeError,
            "^timeout must be a number of seconds, not str",
            jitmem.function,
            ADD,
            None,
            timeout="1",
        )
        self.raises(ValueError, "guard=False", jitmem.function, ADD, None, timeout=1, guard=False)
        return None

    @unittest.skipIf(WINDOWS, "Windows says it by itself")
    def test_a_fault_in_foreign_code_is_told_on_stderr_before_the_process_ends(self):
        source = """
            import ctypes, faulthandler, jitmem, sys
            from ctypes import c_ssize_t, c_void_p
            if sys.argv[2]:
                import resource
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = bytes.fromhex(sys.argv[1])
            wrong = jitmem.function(code, c_ssize_t, c_void_p, c_ssize_t, name="wrong", guard=True)
            wrong(ctypes.cast(ctypes.CDLL(None).strlen, c_void_p), 0)
            """
        offset = 10 if PROCESSOR == "x86_64" else 12
        for code, words in ((CALL_DEEP, f"at offset {offset}"), (CALL, "by its last jump")):
            status, _, errors = python("-c", textwrap.dedent(source), here(code).hex(), "1")
            said = f"jitmem: wrong(): a fault in code that it called {words}"
            self.assertEqual((status, errors.splitlines()[:1]), (-signal.SIGSEGV, [said]))
        if PROCESSOR == "x86_64":
            status, _, errors = python("-c", textwrap.dedent(source), "4889f8 4889f7 ffd0 c3", "1")
            self.assertIn("with a stack that is no multiple of 16, at offset 6", errors)

    def test_a_wrong_return_tells_what_is_left_on_the_stack(self):
        if PROCESSOR == "x86_64":
            code = bytes.fromhex("31c0 50 c3")  # push rax; ret
            self.raises(
                jitmem.Fault,
                "the stack pointer is 8 below its value at the call",
                jitmem.function(code, None, guard=True),
            )

    def test_a_fault_s_report_shows_the_code_and_the_registers(self):
        report = self.fault_of(self.trap).report()
        self.assertRegex(
            report, r"(?s)^SIGILL: illegal instruction, at offset 0 of \d.*0000  \[\w\w\] .*sp +"
        )

    def test_a_reloaded_module_and_copies_share_the_guard(self):
        out = self.run_child(
            """
            import importlib.util, jitmem, sys, threading
            def copy(name):
                spec = importlib.util.spec_from_file_location(name, jitmem.__file__)
                sys.modules[name] = module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
            code = bytes.fromhex(sys.argv[1])
            modules, seen = [jitmem, copy("first"), copy("second")], []
            def work(module):
                trap = module.function(code, None, guard=True, nogil=True)
                for _ in range(500):
                    try:
                        trap()
                    except module.Fault:
                        seen.append(module)
            threads = [threading.Thread(target=work, args=(module,)) for module in modules * 2]
            old = jitmem.function(code, None, guard=True), jitmem.Fault
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            importlib.reload(jitmem)
            for function, fault in (jitmem.function(code, None, guard=True), jitmem.Fault), old:
                try:
                    function()
                except (fault, jitmem.Fault):
                    seen.append(fault)
            print(len(seen), len({module._guard().ready for module in modules}))
            """,
            here(TRAP).hex(),
        )
        self.assertEqual(out, "3002 1")

    def test_many_threads_at_once_have_guarded_calls(self):
        start, seen = threading.Barrier(300), []

        def work():
            start.wait()
            self.fault_of(self.trap)
            seen.append(self.add(2, 3))

        threads = [threading.Thread(target=work) for _ in range(300)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(seen, [5] * 300)

    def test_handlers_that_come_and_go_leave_no_loop(self):
        out = self.run_child(
            """
            import ctypes, faulthandler, jitmem, os, resource, signal, sys
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            trap = jitmem.function(bytes.fromhex(sys.argv[1]), None, guard=True)
            def caught():
                try:
                    trap()
                except jitmem.Fault:
                    return
                os._exit(77)
            steps = {"e": lambda: faulthandler.enable(open(os.devnull, "w")),
                     "d": faulthandler.disable, "c": caught,
                     "i": lambda: signal.signal(signal.SIGSEGV, signal.SIG_IGN),
                     "x": lambda: signal.signal(signal.SIGSEGV, signal.SIG_DFL)}
            stories = "c cec ecdc cecdc cecdcec ce cecd ecd cicxc cicxec".split()
            for story in *stories, "cec" * 9 + "d" * 9:
                child = os.fork()
                if not child:
                    signal.alarm(20)
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what QEMU says
                    for step in story:
                        steps[step]()
                    ctypes.CDLL(None).strlen(None)
                    os._exit(78)
                print(os.waitpid(child, 0)[1] & 127, end=" ")
            """,
            here(TRAP).hex(),
        )
        self.assertEqual(out.split(), ["11"] * 11)

    def test_a_guarded_function_may_call_another_through_a_callback(self):
        def callback(n):
            self.fault_of(self.trap)
            seen.append(n)
            return self.call(pointer, n - 1) + 1 if n else 0

        seen, pointer = [], CALLBACK(callback)
        self.assertEqual(self.call(pointer, 5), 5)
        self.assertEqual(seen, [5, 4, 3, 2, 1, 0])
        self.raises(jitmem.Fault, "SIGILL", self.trap)

    def test_it_guards_without_the_gil_too(self):
        self.raises(jitmem.Fault, "SIGILL", jitmem.function(TRAP, None, nogil=True, guard=True))
        self.assertEqual(
            jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, nogil=True, guard=True)(2, 3), 5
        )

    def test_a_guarded_function_pickles_as_one(self):
        self.raises(jitmem.Fault, "SIGILL", pickle.loads(pickle.dumps(self.trap)))
        inner = jitmem.Code(here(ADD).ljust(16, b"\0") + here(TRAP)).function(
            None, offset=16, guard=True
        )
        self.raises(jitmem.Fault, "offset 16", pickle.loads(pickle.dumps(inner)))

    def test_code_that_writes_over_the_very_instruction_has_not_jumped_anywhere(self):
        # mov byte [rip-7], 1; or adr x0, 4; str w0, [x0]
        code, offset = codes(x86_64="c605f9ffffff01 c3", aarch64="20000010 000000b9 c0035fd6"), {
            "aarch64": 4
        }
        function = jitmem.function(code, None, name="write", guard=True)
        with self.assertRaisesRegex(
            jitmem.Fault, "SIGSEGV: (write|access) of address 0x[0-9a-f]+, at offset "
        ) as caught:
            function()
        offset = offset.get(PROCESSOR, 0)
        self.assertEqual(
            (caught.exception.offset, caught.exception.address), (offset, function.address + offset)
        )

    def test_the_repr_shows_that_a_function_is_guarded(self):
        self.assertRegex(repr(self.trap), r"\(\d+ bytes, guarded\)>$")
        if LINUX:
            self.assertRegex(
                repr(jitmem.bind(self.trap.address, None, guard=True)),
                r"at 0x[0-9a-f]+ \(guarded\)>$",
            )

    def test_the_environment_guards_those_that_do_not_say(self):
        out = self.run_child(
            """
            import jitmem, sys, ctypes
            trap = jitmem.function(bytes.fromhex(sys.argv[1]), None)
            try:
                trap()
            except jitmem.Fault as fault:
                print(fault.signal.name)
            print(jitmem.function(b"1", None, guard=False)._signature.guard)
            print(jitmem.bind(ctypes.CDLL(None).abs, ctypes.c_int, ctypes.c_int)(-5))
            """,
            here(TRAP).hex(),
            JITMEM_GUARD="1",
        )
        self.assertEqual(out.split(), ["SIGILL", "False", "5"])

    @unittest.skipUnless(LINUX, "Linux's struct sigaction")
    def test_calls_and_faults_change_no_signal_s_handler_stack_or_mask(self):
        library = ctypes.CDLL(None)

        def state():
            words = []
            for number in sorted(signal.valid_signals()):
                action = (c_uint64 * 32)()
                library.sigaction(number, None, action)
                words.append((number, action[:2], action[17] & ~0x04000000))  # handler, mask, flags
            stack = (c_uint64 * 3)()
            library.sigaltstack(None, stack)
            return words, list(stack), signal.pthread_sigmask(signal.SIG_BLOCK, [])

        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1,))
        try:
            self.add(2, 3)
            expected = state()
            self.raises(jitmem.Fault, "SIGILL", self.trap)
            self.add(2, 3)
            self.assertEqual(state(), expected)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def test_faults_that_are_not_its_own_end_the_process_as_ever(self):
        scenarios = """
            crash()
            call(elsewhere, 1)
            call(wild, 1)
            call(strlen, 0)
            tail(elsewhere, 1)
            tail(strlen, 0)
            os.kill(os.getpid(), signal.SIGSEGV)
            call(CALLBACK(lambda n: os.kill(os.getpid(), signal.SIGSEGV) or 0), 1)
            call(enabling, 1); caught(); call(elsewhere, 1)
            call(enabling, 1); caught(); faulthandler.disable(); crash()
            call(CALLBACK(lambda n: another(CALLBACK(lambda n: call(elsewhere, 0)), 0)), 0)
            """
        out = self.run_child(
            """
            import ctypes, faulthandler, importlib.util, jitmem, os, resource, signal, sys, tempfile
            from ctypes import CFUNCTYPE, c_ssize_t, c_void_p, cast
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            call_code, tail_code, trap_code = map(bytes.fromhex, sys.argv[1:4])
            CALLBACK = CFUNCTYPE(c_ssize_t, c_ssize_t)
            call = jitmem.function(call_code, c_ssize_t, c_void_p, c_ssize_t, guard=True)
            tail = jitmem.function(tail_code, c_ssize_t, c_void_p, c_ssize_t, guard=True)
            trap = jitmem.function(trap_code, None, guard=True)
            spec = importlib.util.spec_from_file_location("copy", jitmem.__file__)
            sys.modules["copy"] = copy = importlib.util.module_from_spec(spec)
            copy.__spec__.loader.exec_module(copy)
            another = copy.function(call_code, c_ssize_t, c_void_p, c_ssize_t, guard=True)
            enabling = CALLBACK(lambda n: faulthandler.enable() or 0)
            elsewhere = CALLBACK(lambda n: crash() and 0)
            wild = CALLBACK(lambda n: CFUNCTYPE(None)(16)() or 0)
            strlen = cast(ctypes.CDLL(None).strlen, c_void_p)

            def crash():
                ctypes.CDLL(None).strlen(None)

            def caught():
                try:
                    trap()
                except jitmem.Fault:
                    return
                os._exit(77)

            for scenario in sys.argv[4].strip().splitlines():
                for enable in "never", "before", "between":
                    with tempfile.TemporaryFile("w+") as errors:
                        child = os.fork()
                        if not child:
                            os.dup2(errors.fileno(), 2)
                            faulthandler.disable()
                            if enable == "before":
                                faulthandler.enable()
                            caught()
                            if enable == "between":
                                faulthandler.enable()
                            caught()
                            exec(scenario)
                            os._exit(78)
                        _, status = os.waitpid(child, 0)
                        errors.seek(0)
                        told = errors.read().count("Fatal Python error: Segmentation fault")
                        expected = "disable" not in scenario and (
                            enable != "never" or "enabling" in scenario)
                        if (status & 127, told) != (signal.SIGSEGV, int(expected)):
                            print(scenario, enable, status, told)
            """,
            here(CALL_DEEP).hex(),
            here(CALL).hex(),
            here(TRAP).hex(),
            textwrap.dedent(scenarios),
        )
        self.assertEqual(out, "")

    def test_signals_that_are_ignored_or_handled_in_python_stay_so(self):
        seen = []
        if faulthandler.is_enabled():  # as by -X dev: Python could not put it back
            faulthandler.disable()
            self.addCleanup(faulthandler.enable)
        send = CALLBACK(lambda n: os.kill(os.getpid(), signal.SIGSEGV) or n)
        for handler, expected in (
            (signal.SIG_IGN, []),
            (lambda number, frame: seen.append(number), [signal.SIGSEGV] * 2),
        ):
            before = signal.signal(signal.SIGSEGV, handler)
            try:
                for _ in range(2):
                    self.assertEqual(self.call(send, 7), 7)
                    self.raises(jitmem.Fault, "SIGILL", self.trap)
            finally:
                # None under -X faulthandler, whose handler was there before Python looked.
                signal.signal(signal.SIGSEGV, before or signal.SIG_DFL)
            self.assertEqual(seen, expected)

    def test_a_signal_that_somebody_handled_and_then_sends_is_handled_again(self):
        brk = jitmem.function(codes(x86_64="cc c3", aarch64="c0035fd6"), None, guard=False)
        seen = []
        before = signal.signal(signal.SIGTRAP, lambda number, frame: seen.append(number))
        try:
            self.call(CALLBACK(lambda n: brk() or os.kill(os.getpid(), signal.SIGTRAP) or 0), 0)
            self.call(CALLBACK(lambda n: os.kill(os.getpid(), signal.SIGTRAP) or 0), 0)
        finally:
            signal.signal(signal.SIGTRAP, before)
        self.assertEqual(len(seen), 3 if PROCESSOR == "x86_64" else 2)

    def test_a_forked_child_guards_too(self):
        def fork(n):
            self.fork(lambda: self.raises(jitmem.Fault, "SIGILL", self.trap))
            return n

        self.assertEqual((self.call(CALLBACK(fork), 1), fork(2)), (1, 2))

    def test_refused_memory_loses_nothing(self):
        seen, guard = [], jitmem._guard()

        def work():  # in a thread that has no memory for this yet
            for patch in (
                mock.patch.object(jitmem, "_allocate", side_effect=MemoryError("none left")),
                contextlib.nullcontext(),
            ):
                try:
                    with patch:
                        self.trap()
                except (MemoryError, jitmem.Fault) as error:
                    seen.append(type(error))

        taken = [thread for thread in guard.threads() if not thread.busy]
        for thread in taken:
            thread.busy = 1
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        self.assertEqual(seen, [MemoryError, jitmem.Fault])
        wait_until(
            lambda: sum(not thread.busy for thread in guard.threads()) == 1
        )  # for the next thread
        for thread in taken:
            thread.busy = 0

    @unittest.skipIf(
        PYPY or not LINUX, "PyPy itself refuses to run on another stack; the structures are Linux's"
    )
    def test_on_the_stack_of_a_signal_handler_it_is_refused_and_the_code_is_not_called(self):
        out = self.run_child(
            """
            import ctypes, jitmem, mmap, signal, sys
            # A result that ctypes would look at.
            code = bytes.fromhex(sys.argv[1])
            trap = jitmem.function(code, ctypes.c_char_p, name="trap", guard=True)
            library, room = ctypes.CDLL(None), mmap.mmap(-1, 1 << 20)
            start = ctypes.addressof(ctypes.c_char.from_buffer(room))
            library.sigaltstack((ctypes.c_uint64 * 3)(start, 0, 1 << 20), None)
            @ctypes.CFUNCTYPE(None, ctypes.c_int)
            def handle(number):
                try:
                    trap()
                except (OSError, jitmem.Fault) as error:
                    print(error)
            action = (ctypes.c_uint64 * 32)(ctypes.cast(handle, ctypes.c_void_p).value)
            action[17] = 0x08000000  # SA_ONSTACK
            library.sigaction(signal.SIGUSR1, action, None)
            library["raise"](signal.SIGUSR1)
            handle(0)
            """,
            here(TRAP).hex(),
        )
        self.assertRegex(
            out,
            r"^\[Errno 1\] trap\(\): sigaltstack refused; is this .*\ntrap\(\): SIGILL",
        )

    def test_it_is_refused_under_a_shadow_stack(self):
        real = open

        def status(path, *args, **kwargs):
            text = "Name:\tpython\nx86_Thread_features:\tshstk\n"
            return io.StringIO(text) if path == "/proc/self/status" else real(path, *args, **kwargs)

        with (
            mock.patch.object(jitmem, "_guards", []),
            mock.patch.object(jitmem, "open", status, create=True),
        ):
            self.raises(
                NotImplementedError, "shadow stack", jitmem.function, TRAP, None, guard=True
            )


@unittest.skipUnless(WINDOWS and PROCESSOR == "x86_64", "the guard by vectored exceptions")
class GuardOnWindows(Case):
    KINDS = {
        "31c0 8b00 c3": "SIGSEGV: read of address 0x0, at offset 2 of 5",
        "31c0 8900 c3": "SIGSEGV: write of address 0x0, at offset 2 of 5",
        "48b80000000000000080 8900 c3": "SIGSEGV: general protection fault, at offset 10 of 13",
        "0f0b": "SIGILL: illegal instruction, at offset 0 of 2",
        "90 cc c3": "SIGILL: breakpoint, at offset 1 of 3",
        "31c0 31c9 31d2 f7f1 c3": "SIGFPE: integer division by zero or overflow, at offset 6 of 9",
        "f4 c3": "SIGILL: privileged instruction, at offset 0 of 2",
        "fd 0f0b": "SIGILL: illegal instruction, at offset 1 of 3",
        "9c 810c2400010000 9d 90 c3": "SIGILL: single step (the trap flag was set), at offset 10",
        "31c0 ffd0 c3": "SIGSEGV: jump to address 0x0, at offset 2 of 5",
        "31c0 ffe0": "SIGSEGV: jump to address 0x0, outside the code",
        "31c0 50 c3": "the stack pointer is 8 below its value at the call",
        "90": "SIGILL: the code ran past its end, offset 1",
        **{
            code: f"the code returned with {what} changed"
            for code, what in {
                "fd c3": "the direction flag",
                "31ff c3": "rdi",
                "31f6 c3": "rsi",
                "31db c3": "rbx",
                "4531e4 c3": "r12",
                "4531ff c3": "r15",
                "0f57f6 c3": "xmm6",
                "450f57ff c3": "xmm15",
            }.items()
        },
    }

    def test_wrong_code_of_every_kind_is_a_fault(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, guard=True)
        for code, words in self.KINDS.items():
            function = jitmem.function(bytes.fromhex(code), c_ssize_t, name="wrong", guard=True)
            with self.subTest(code):
                for i in range(200):
                    with self.assertRaises(jitmem.Fault) as caught:
                        function()
                    self.assertEqual(add(i, 2), i + 2)
                self.assertIn(words, str(caught.exception))

    def test_a_stack_overflow_is_a_fault_again_and_again(self):
        for _ in range(3):
            self.raises(
                jitmem.Fault,
                "SIGSEGV: stack overflow, at offset 0",
                jitmem.function(bytes.fromhex("e8fbffffff c3"), None, guard=True),
            )

    def test_threads_fault_side_by_side(self):
        trap = jitmem.function(TRAP, None, guard=True)

        def work():
            for _ in range(100):
                self.raises(jitmem.Fault, "SIGILL", trap)

        self.run_threads(*[work] * 4)

    def test_a_limit_in_time_is_refused_by_name(self):
        self.raises(
            NotImplementedError, "timeout: only Linux", jitmem.function, TRAP, None, timeout=1
        )


class NoGuard(Case):
    def test_where_there_is_none_it_is_refused_by_name(self):
        with (
            mock.patch.object(jitmem, "_guards", []),
            mock.patch.multiple(jitmem, _GUARD_PARTS={}, _TRAMPOLINES=False),
        ):
            for call in (
                jitmem.function,
                lambda code, *types, **options: jitmem.Code(code).function(*types, **options),
            ):
                self.raises(
                    NotImplementedError,
                    "guard: it knows Linux, .* python -m jitmem run",
                    call,
                    ANSWER,
                    None,
                    guard=True,
                )
        self.assertEqual(GUARD, jitmem.info()["guard"] == "available")


class Binding(Case):
    """bind: code that is somewhere already."""

    def library(self, **options):
        return ctypes.CDLL("msvcrt" if WINDOWS else None, **options)

    def test_ctypes_functions_are_called_by_their_own_types_or_others(self):
        library = self.library()
        library.abs.argtypes, library.abs.restype = [c_int], c_int
        absolute = jitmem.bind(library.abs)
        self.assertEqual(absolute(-5), 5)
        self.assertEqual((absolute.__name__, absolute.argtypes), ("abs", (c_int,)))
        other = jitmem.bind(library.labs, ctypes.c_long, ctypes.c_long, name="other")
        self.assertEqual(other(-7), 7)
        self.assertRegex(repr(absolute), r"^<jitmem function abs\(\w+\) -> \w+ at 0x[0-9a-f]+>$")

    def test_addresses_are_called_with_the_types_given(self):
        same = jitmem.function(SAME, c_ssize_t, c_ssize_t)
        self.assertEqual(jitmem.bind(same.address, c_ssize_t, c_ssize_t, keep=same)(5), 5)
        callback = CALLBACK(lambda value: value * 2)
        self.assertEqual(jitmem.bind(callback, c_ssize_t, c_ssize_t)(21), 42)
        self.assertEqual(jitmem.bind(callback)(21), 42)

    def test_a_ctypes_function_is_kept(self):
        bound = jitmem.bind(CALLBACK(lambda value: value + 1))
        collect()
        self.assertEqual(bound(1), 2)

    @unittest.skipIf(PYPY, "PyPy has no pythonapi")
    def test_python_s_own_functions_raise_what_they_raise(self):
        raises = jitmem.bind(ctypes.pythonapi.PyErr_BadArgument, c_int)
        for _ in range(3):
            self.raises(TypeError, "bad argument type", raises)
            self.raises(TypeError, "bad argument type", reference(raises))
        size = jitmem.bind(ctypes.pythonapi.PyObject_Size, c_ssize_t, py_object)
        self.assertEqual(size("abc"), 3)

    @unittest.skipIf(WINDOWS, "its C library has an errno for each module")
    def test_errno_is_kept_for_each_thread_as_ctypes_keeps_it(self):
        library = self.library(use_errno=True)
        for nogil in (False, True):
            close = jitmem.bind(library.close, c_int, c_int, nogil=nogil)
            for call in (close, reference(close)):
                ctypes.set_errno(0)
                self.assertEqual((call(-1), ctypes.get_errno()), (-1, errno.EBADF))
                ctypes.set_errno(7)  # which the function sees as errno, and leaves there
                absolute = jitmem.bind(library.abs, c_int, c_int)
                self.assertEqual((absolute(-5), ctypes.get_errno()), (5, 7))
                self.raises(OverflowError, "does not fit", call, 2**31)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(ctypes.get_errno()))
        thread.start()
        thread.join()
        self.assertEqual(seen, [0])
        plain = jitmem.bind(self.library().close, c_int, c_int)
        self.assertEqual((plain(-1), ctypes.get_errno()), (-1, 7))

    @unittest.skipUnless(WINDOWS, "the last error is Windows'")
    def test_the_last_error_is_kept_as_ctypes_keeps_it(self):
        library = ctypes.WinDLL("kernel32", use_last_error=True)
        close = jitmem.bind(library.CloseHandle, c_int, c_void_p)
        ctypes.set_last_error(0)
        self.assertEqual((close(0xDEAD), ctypes.get_last_error()), (0, 6))  # ERROR_INVALID_HANDLE

    def test_without_memory_for_a_trampoline_the_reference_serves(self):
        callback = CALLBACK(lambda value: value + 1)
        refusal = jitmem._refusal(mock.Mock(__name__="injected"), (), errno.EACCES)
        refused = mock.Mock(side_effect=refusal)
        with mock.patch.multiple(jitmem, _signatures={}, _load=refused, _engines=[]):
            self.assertEqual(jitmem.bind(callback)(1), 2)

    def test_what_makes_no_sense_or_would_be_lost_is_refused(self):
        library = self.library()
        self.raises(TypeError, r"needs restype, \*argtypes", jitmem.bind, library.labs)
        library.labs.errcheck = lambda *_: None
        self.raises(ValueError, "would lose the errcheck", jitmem.bind, library.labs, c_int, c_int)
        for target in (0, -1, 2**64):
            self.raises(ValueError, f"bind\\(\\) target {target} is not an address",
                        jitmem.bind, target, None)
        self.raises(TypeError, r"needs restype, \*argtypes", jitmem.bind, 4096)
        made = jitmem.function(ANSWER, c_uint32)
        self.raises(TypeError, r"as f\.address .*not .*Function$", jitmem.bind, made, None)
        for pointer_ in c_void_p(made.address), pointer(c_int()):
            message = r"cast\(pointer, c_void_p\)\.value are, not (c_void_p|POINTER\(c_int32\))$"
            self.raises(TypeError, message, jitmem.bind, pointer_, None)
        self.raises(TypeError, "must be a ctypes function or an address, .*not str",
                    jitmem.bind, "abs", None)
        self.raises(TypeError, "cannot be pickled: its code is not in jitmem's own",
                    pickle.dumps, jitmem.bind(library.abs, c_int, c_int))


class Malformed:
    """Pickles as a jitmem function of this state."""
    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        return jitmem._unpickle, self.state


class Pickling(Case):
    def test_a_malformed_pickle_is_refused_with_what_is_malformed(self):
        code = here(ANSWER)
        good = {"machine": jitmem.MACHINE, "code": code, "align": 64, "types": (c_uint32,)}
        options = {"offset": 0, "name": "f", "nogil": False, "guard": False}
        function = pickle.loads(pickle.dumps(Malformed(*good.values(), options)))
        self.assertEqual(function(), 0x12345678)
        for part, value, message in (
            ("machine", 5, "pickled as code for 5, and this machine is"),
            ("code", "b8", "code must be bytes, not str"),
            ("code", b"", "code is empty"),
            ("align", 96, "align must be a power of two"),
            ("offset", -1, "offset -1 is outside"),
            ("offset", len(code), f"offset {len(code)} is outside the {len(code)} bytes"),
            ("offset", "1", "offset must be an integer, not str"),
            ("types", 5, "itera"),
            ("types", (), "not enough values"),
            ("types", (("pointer",),), "restype is a tuple"),
            ("types", (("array", c_uint32),), "restype is a tuple"),
            ("types", (int,), "restype must be a ctypes type"),
            ("name", None, "name must be str, not NoneType"),
        ):
            state = {key: value if key == part else each for key, each in good.items()}
            changed = {key: value if key == part else each for key, each in options.items()}
            data = pickle.dumps(Malformed(*state.values(), changed))
            refusals = TypeError, ValueError, NotImplementedError
            self.raises(refusals, message, pickle.loads, data)

    def test_a_copy_is_a_new_function_or_the_function_itself(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add")
        for copied in copy.copy(add), copy.deepcopy({"f": add})["f"]:
            self.assertIsNot(copied, add)
            self.assertEqual(copied(2, 3), 5)
        closed = jitmem.function(ANSWER, c_uint32)
        closed.close()
        kept = jitmem.function(ANSWER, c_uint32, keep=[1])
        memory = executable(ANSWER)
        bound = jitmem.bind(add.address, c_ssize_t, c_ssize_t, c_ssize_t, keep=add)
        for function in closed, kept, bound, memory.function(c_uint32):
            self.assertIs(copy.copy(function), function)
            self.assertIs(copy.deepcopy({"f": [function]})["f"][0], function)
    def test_a_function_pickles_as_its_code_and_signature(self):
        for function in (jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add"),
                         self.entry()):
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
                other = pickle.loads(pickle.dumps(function, protocol))
                self.assertEqual((other(2, 3), other.__name__, other.argtypes),
                                 (5, "add", function.argtypes))
                self.assertEqual(other.size, function.size)
            self.assertEqual(copy.copy(function)(3, 4), 7)

    def entry(self):
        code = jitmem.Code(here(ANSWER).ljust(64, b"\0") + here(ADD))
        return code.function(c_ssize_t, c_ssize_t, c_ssize_t, offset=64, name="add")

    def test_pointer_types_pickle_too(self):
        function = jitmem.function(SAME, c_void_p, POINTER(POINTER(c_int32)))
        self.assertEqual(pickle.loads(pickle.dumps(function)).argtypes, function.argtypes)

    @unittest.skipIf(EMULATED, "starting so many interpreters takes minutes under emulation")
    def test_worker_processes_get_functions_however_they_are_started(self):
        self.run_child("""
            import concurrent.futures, multiprocessing, jitmem
            from ctypes import c_ssize_t
            add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add")
            for method in multiprocessing.get_all_start_methods():
                with multiprocessing.get_context(method).Pool(2) as pool:
                    assert pool.starmap(add, [(1, 2), (3, 4)]) == [3, 7], method
            with concurrent.futures.ProcessPoolExecutor(2) as pool:
                assert list(pool.map(add, [1, 2], [3, 4])) == [4, 6]""", use="ADD")

    def test_another_machine_is_named_at_the_other_end(self):
        function = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add")
        with mock.patch.object(jitmem, "MACHINE", "pdp11"):
            data = pickle.dumps(function)
        message = f"add\\(\\) was pickled as code for pdp11, and this machine is {jitmem.MACHINE}"
        self.raises(NotImplementedError, message, pickle.loads, data)

    def test_what_cannot_be_rebuilt_is_refused_with_the_reason(self):
        memory = executable(ANSWER)
        self.raises(TypeError, "its code is not in jitmem's own memory", pickle.dumps,
                    memory.function(c_uint32))
        self.raises(TypeError, "it keeps an object", pickle.dumps,
                    jitmem.function(ANSWER, c_uint32, keep=[]))
        closed = jitmem.function(ANSWER, c_uint32)
        closed.close()
        self.raises(ValueError, "is closed", pickle.dumps, closed)


class Functions(Case):
    def test_code_is_chosen_by_machine_longest_name_first(self):
        processor = PROCESSOR
        wrong = b"\0"
        for mapping in ({processor: here(ANSWER)}, {processor: wrong,
            jitmem.MACHINE: here(ANSWER)} if "-" in jitmem.MACHINE else
                        {processor: here(ANSWER), "pdp11": wrong}):
            self.assertEqual(jitmem.function(mapping, c_uint32)(), 0x12345678)

    def test_a_buffer_with_items_of_its_own_is_no_mapping(self):
        code = here(ANSWER)

        class Record(Structure):
            _fields_ = [("code", c_ubyte * len(code)), ("items", c_ubyte)]
        self.assertEqual(jitmem.function(Record.from_buffer_copy(code + b"\0"), c_uint32)(),
                         0x12345678)

    def test_other_names_of_the_processors_are_understood(self):
        with mock.patch.multiple(jitmem, MACHINE="x86_64-windows", _PROCESSOR="x86_64"):
            for name in ("AMD64", "x64", "x86_64", "x86-64", "x86-64-windows", "amd64-windows",
                         "X86_64-Windows"):
                self.assertEqual(jitmem._select({name: b"1", "arm64": b"2", "i686": b"3"}), b"1")
            self.raises(ValueError, "two codes are given for x86_64", jitmem._select,
                        {"AMD64": b"1", "x86_64": b"2"})
        with mock.patch.multiple(jitmem, MACHINE="aarch64-apple", _PROCESSOR="aarch64"):
            self.assertEqual(jitmem._select({"arm64": b"1", "x86": b"2"}), b"1")

    def test_no_code_for_this_machine_is_said_with_what_was_given(self):
        self.raises(NotImplementedError,
                    f"no code for {jitmem.MACHINE}.*, which this is; given: pdp11, vax$",
                    jitmem.function, {"PDP11": b"\1", "vax": b"\2"}, None)
        self.raises(NotImplementedError, "given: none", jitmem.function, {}, None)
        self.raises(NotImplementedError, "given: 5$", jitmem.function, {5: b""}, None)

    def test_the_truth_of_a_buffer_is_not_asked(self):
        class Untrue(bytearray):
            def __bool__(self):
                raise LookupError("asked")
        self.assertEqual(jitmem.function(Untrue(here(ANSWER)), c_uint32)(), 0x12345678)

    def test_code_that_is_none_or_no_bytes_is_refused(self):
        for code in (b"", bytearray(), {jitmem.MACHINE: b""}):
            self.raises(ValueError, "code is empty", jitmem.function, code, None)
        self.raises(TypeError, "code must be bytes, not str", jitmem.function, "b8 78", None)
        for code in (5, None, [0xc3]):
            self.raises(TypeError, "code must be bytes or another buffer", jitmem.function, code,
                        None)
        self.raises(TypeError, "name must be str, not int", jitmem.function, ANSWER, None, name=5)

    def test_its_attributes_say_what_it_is(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_double, name="add")
        size = len(here(ADD))
        self.assertEqual((add.__name__, add.size, add.restype, add.argtypes),
                         ("add", size, c_ssize_t, (c_ssize_t, c_double)))
        name = f"c_int{8 * WORD}"
        where = f"at {add.address:#x} ({size} bytes)"
        self.assertEqual(repr(add), f"<jitmem function add({name}, c_double) -> {name} {where}>")
        signature = inspect.signature(add)
        self.assertEqual([parameter.annotation for parameter in signature.parameters.values()],
                         [c_ssize_t, c_double])
        self.assertEqual(signature.return_annotation, c_ssize_t)
        self.assertIs(weakref.ref(add)(), add)
        self.raises(TypeError, r"Function is made by jitmem\.function\(\)", jitmem.Function)

    def test_its_name_is_read_only_and_its_docstring_its_own(self):
        function = jitmem.function(ANSWER, c_uint32, name="answer")
        with self.assertRaises(AttributeError):
            function.__name__ = "other"
        self.assertEqual((function.__name__, jitmem.Function.__name__), ("answer", "Function"))
        self.assertIn("answer()", function.__doc__)
        self.assertIn("Machine code as a Python callable", jitmem.Function.__doc__)
        self.assertIn("Machine code as a Python callable", type(function).__doc__)

    def test_wrapping_it_brings_in_its_types_and_nothing_of_its_class(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_double, name="add")
        types = {"arg1": c_ssize_t, "arg2": c_double, "return": c_ssize_t}
        self.assertEqual(add.__annotations__, types)
        self.assertEqual(typing.get_type_hints(add), types)

        @functools.wraps(add)
        def wrapped(a: int, b: float) -> int:
            return add(a, b)
        typing.get_type_hints(wrapped)
        self.assertEqual([name for name in wrapped.__annotations__ if name.startswith("_")], [])
        self.assertEqual(inspect.signature(wrapped), inspect.signature(add))
        self.assertEqual(dict(jitmem.Function.__annotations__), {})

    def test_as_an_attribute_of_a_class_it_is_no_method(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t)
        self.assertEqual(type("T", (), {"add": add})().add(1, 2), 3)
        self.assertIn("it is no method", " ".join(jitmem.Function.__doc__.split()))

    def test_one_that_was_never_made_says_so(self):
        take = jitmem.function(SAME, None, c_void_p)
        for kind in type(take), jitmem.Function:
            empty = object.__new__(kind)
            self.assertIn("was never made", repr(empty))
            self.raises(TypeError, "cannot be called|does not support vectorcall", empty)
            self.raises(TypeError, "was never made", reference(empty))
            for use in take, operator.attrgetter("address"), jitmem.Function.close, pickle.dumps:
                with self.assertRaises((TypeError, AttributeError)):
                    use(empty)

    def test_the_names_of_this_machine_are_told(self):
        for machine, names in ("x86_64-sysv", "x86_64-sysv or x86_64"), ("x86", "x86"):
            with mock.patch.multiple(jitmem, MACHINE=machine, _PROCESSOR=machine.split("-")[0]):
                message = f"^no code for {names}, which this is; given: x86_64_sysv$"
                self.raises(NotImplementedError, message, jitmem.function, {"x86_64_sysv": b"1"},
                            None)

    def test_close_makes_calls_value_errors(self):
        with jitmem.function(ANSWER, c_uint32, name="answer") as answer:
            self.assertEqual(answer(), 0x12345678)
        answer.close()
        self.raises(ValueError, r"^answer\(\) is closed$", answer)
        self.raises(ValueError, r"^answer\(\) is closed$", lambda: answer._as_parameter_)
        self.assertRegex(repr(answer), r"^<jitmem function answer\(\) -> \w+, closed>$")

    def test_an_argument_that_closes_the_function_meets_a_closed_function(self):
        for code, type_, make in (ADD, c_ssize_t, Integer), (ADD_DOUBLES, c_double, Real):
            function = jitmem.function(code, type_, type_, type_, name="f")
            self.raises(ValueError, r"^f\(\) is closed$", function,
                        make(type_(5).value, function.close), 3)
            self.raises(ValueError, r"^f\(\) is closed$", function, 5, 3)
            self.raises(TypeError, "must be", function, "x", 3)

    def test_what_is_kept_lives_as_long_as_the_function(self):
        class Thing:
            pass
        thing = Thing()
        reference, function = weakref.ref(thing), jitmem.function(ANSWER, c_uint32, keep=thing)
        del thing
        collect()
        self.assertIsNotNone(reference())
        del function
        collect()
        self.assertIsNone(reference())

    @unittest.skipIf(PYPY, "PyPy always releases the GIL, and has no C API to ask")
    def test_the_gil_is_held_by_default_and_released_by_nogil_and_taken_back(self):
        for nogil in (False, True):
            call = jitmem.function(CALL, c_int, c_void_p, c_ssize_t, nogil=nogil)
            for _ in range(100):
                self.assertEqual(call(ctypes.pythonapi.PyGILState_Check, 0), not nogil)
            self.assertEqual(ctypes.pythonapi.PyGILState_Check(), 1)
            self.assertEqual(jitmem.function(ADD_DOUBLES, c_double, c_double, c_double,
                                             nogil=nogil)(1.5, 2.5), 4.0)
        self.raises(ValueError, "without which no code may touch py_object", jitmem.function, SAME,
                    py_object, nogil=True)

    def test_nothing_is_writable_and_executable_and_nothing_leaks_over_many_loads(self):
        emulated = not LINUX or PROCESSOR not in ("x86_64", "x86") or PYPY
        code = here(ANSWER)
        for _ in range(200):
            jitmem.function(code, c_uint32)
        collect()
        before, alive = mappings(), jitmem.info()["functions"]
        for _ in range(2000 if emulated else 100000 if STRESS else 20000):
            function = jitmem.function(code, c_uint32)
            self.assertEqual(function(), 0x12345678)
        self.assertEqual(shown_protection(function.address), "r-x")
        del function
        collect()
        after = mappings()
        self.assertLessEqual(jitmem.info()["functions"], alive)
        if before is not None:
            self.assertLessEqual(len(after), len(before) + (8 if emulated else 3))
            new = [row for row in after if row not in before]
            self.assertEqual([row for row in new if "w" in row[2] and "x" in row[2]], [])
            sizes = [sum(end - start for start, end, _, _ in rows) for rows in (before, after)]
            self.assertLess(sizes[1] - sizes[0], (8 if emulated else 1) << 20)


class Info(Case):
    def test_it_counts_while_other_threads_make_functions(self):
        ended = []

        def make():
            while not ended:
                kept = [jitmem.Code(bytes(jitmem._CHUNK)) for _ in range(3)]
                del kept

        def ask():
            for _ in range(20):
                self.assertGreaterEqual(jitmem.info()["bytes"], 0)
            ended.append(True)
        self.run_threads(make, make, ask)

    def test_it_says_what_is_here_and_json_can_write_it(self):
        info = json.loads(json.dumps(jitmem.info()))
        self.assertEqual(
            (info["machine"], info["page_size"], info["byteorder"]),
            (jitmem.MACHINE, mmap.PAGESIZE, sys.byteorder),
        )
        self.assertEqual(info["refused_by"], [])
        self.assertEqual(info["bits"], 8 * WORD)

    def test_it_counts_what_is_alive(self):
        collect()
        before = jitmem.info()
        function, memory = jitmem.function(ANSWER, c_uint32), jitmem.Memory(mmap.PAGESIZE + 1)
        after = jitmem.info()
        self.assertEqual(after["functions"] - before["functions"], 1)
        self.assertGreaterEqual(after["bytes"] - before["bytes"], 2 * mmap.PAGESIZE)
        memory.close()
        function.close()

    @unittest.skipUnless(hasattr(gc, "freeze"), "for CPython")
    def test_it_asks_no_collector(self):
        function, before = jitmem.function(ANSWER, c_uint32), jitmem.info()
        gc.freeze()
        try:
            with mock.patch.object(gc, "get_objects", side_effect=AssertionError):
                after = jitmem.info()
        finally:
            gc.unfreeze()
        self.assertEqual(
            (after["functions"], after["bytes"]), (before["functions"], before["bytes"])
        )
        function.close()
        self.assertEqual(jitmem.info()["functions"], before["functions"] - 1)

    def test_objects_of_other_programs_are_not_touched(self):
        class Lazy:
            @property
            def __class__(self):
                raise LookupError("touched")
        lazy, dead = Lazy(), weakref.proxy(Integer(1))
        collect()
        self.assertGreaterEqual(jitmem.info()["functions"], 0)
        del lazy, dead

    def test_a_system_that_refuses_is_reported_with_its_reason(self):
        with mock.patch.object(jitmem, "_protect", lambda *_: PermissionError(13, "injected")):
            info = jitmem.info()
        self.assertIn("refused: [Errno 13] injected", info["policies"]["written pages to r-x"])
        on = [name for name, _, on in jitmem._policies() if on]
        self.assertEqual(info["refused_by"], on or ["unknown"])


SQUARE = codes(x86_64="f20f59c0 c3", aarch64="0008601e c0035fd6")  # double (double a): a * a
MULTIPLY_ADD = codes(  # double (double a, double b, double c): a * b + c
    x86_64="f20f59c1 f20f58c2 c3", aarch64="0008411f c0035fd6")
TENTH = codes(  # int64_t (ten integers): the last one, as it is on the stack
    x86_64__sysv="488b442420 c3", x86_64__windows="488b442450 c3", aarch64="e00740f9 c0035fd6")
TENTH_REAL = codes(  # the same of ten real numbers
    x86_64__sysv="f20f10442410 c3", x86_64__windows="f20f10442450 c3", aarch64="e00740fd c0035fd6")
SCALE = codes(  # double (int64_t a, double b): a * b
    x86_64__sysv="f2480f2acf f20f59c1 c3", x86_64__windows="f2480f2ac1 f20f59c1 c3",
    aarch64="0100629e 0008611e c0035fd6")


class Arrays(Case):
    """Of ufunc()."""

    def setUp(self):
        if PYPY or jitmem._processor is None:
            self.skipTest("ufunc() needs CPython on x86-64 or AArch64")
        global numpy
        try:
            import numpy  # not before, as it starts threads
        except ImportError:
            self.skipTest("NumPy is not installed")
        self.square = jitmem.function(SQUARE, c_double, c_double, name="square")
        self.add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add")

    def assert_gives(self, found, wanted, dtype):
        self.assertEqual((found.tolist(), found.dtype), (wanted, numpy.dtype(dtype)))

    def test_doubles(self):
        square = jitmem.ufunc(self.square)
        self.assertIsInstance(square, numpy.ufunc)
        self.assert_gives(square(numpy.arange(5.0)), [0, 1, 4, 9, 16], c_double)
        self.assert_gives(square(numpy.arange(3, dtype=numpy.int16)), [0, 1, 4], c_double)
        self.assert_gives(square(numpy.arange(4, dtype=">f8")), [0, 1, 4, 9], c_double)
        self.assertEqual(square(1.5), 2.25)
        self.assertEqual(square([]).shape, (0,))

    def test_floats(self):
        add = jitmem.ufunc(jitmem.function(ADD_FLOATS, c_float, c_float, c_float))
        numbers = numpy.arange(4, dtype=numpy.float32)
        self.assert_gives(add(numbers, numpy.float32(0.5)), [0.5, 1.5, 2.5, 3.5], c_float)

    def test_integers_of_every_size(self):
        for type_ in (c_int8, c_int16, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64):
            with self.subTest(type_):
                bits = 8 * ctypes.sizeof(type_)
                low = type_(1 << bits - 1).value
                add = jitmem.ufunc(jitmem.function(ADD, type_, type_, type_))
                numbers = numpy.array([low, 7, type_(-1).value], type_)
                wanted = [type_(low + low).value, 14, type_(-2).value]
                self.assert_gives(add(numbers, numbers), wanted, type_)

    def test_a_negative_argument_fills_its_register(self):
        for type_ in (c_int8, c_int16, c_int32, c_int64):
            same = jitmem.ufunc(jitmem.function(SAME, c_int64, type_))
            self.assert_gives(same(numpy.array([-1, 5], type_)), [-1, 5], c_int64)

    def test_a_true_result_is_one(self):
        # NumPy counts and indexes with the byte, where C has any byte but 0 for true.
        same = jitmem.ufunc(jitmem.function(SAME, c_bool, c_uint8))
        found = same(numpy.array([0, 1, 2, 64, 128, 255], numpy.uint8))
        self.assert_gives(found, [False] + 5 * [True], c_bool)
        self.assertEqual(found.view(numpy.uint8).tolist(), [0, 1, 1, 1, 1, 1])

    def test_three_arguments_and_mixed_ones(self):
        fma = jitmem.ufunc(jitmem.function(MULTIPLY_ADD, *[c_double] * 4))
        self.assert_gives(fma([1, 2], [[3], [4]], 0.5), [[3.5, 6.5], [4.5, 8.5]], c_double)
        scale = jitmem.ufunc(jitmem.function(SCALE, c_double, c_int64, c_double))
        self.assert_gives(scale([1, -2, 3], 0.5), [0.5, -1, 1.5], c_double)

    def test_arguments_on_the_stack(self):
        numbers = [numpy.arange(3) + i for i in range(9)] + [numpy.array([-1, 2, -3])]
        for type_ in (c_int8, c_int32, c_int64):
            last = jitmem.function(TENTH, c_int64, *[type_] * 10)
            arrays = [each.astype(type_) for each in numbers]
            self.assert_gives(jitmem.ufunc(last)(*arrays), [-1, 2, -3], c_int64)
        for type_ in (c_float, c_double):
            last = jitmem.function(TENTH_REAL, type_, *[type_] * 10)
            arrays = [each.astype(type_) for each in numbers]
            self.assert_gives(jitmem.ufunc(last)(*arrays), [-1, 2, -3], type_)

    def test_strides_and_out(self):
        square, numbers = jitmem.ufunc(self.square), numpy.arange(12.0).reshape(3, 4)
        self.assertEqual(square(numbers[::-1, ::2]).tolist(), [[64, 100], [16, 36], [0, 4]])
        self.assertEqual(square(numbers.T).tolist(), (numbers.T ** 2).tolist())
        out = numpy.zeros((3, 8))
        square(numbers, out=out[:, ::2])
        self.assertEqual(out[:, ::2].tolist(), (numbers ** 2).tolist())
        self.assertEqual(out[:, 1::2].sum(), 0)
        square(numbers[:, 1:], out=numbers[:, :-1], where=numbers[:, 1:] > 6)
        self.assertEqual(numbers.tolist(), [[0, 1, 2, 3], [4, 5, 49, 7], [81, 100, 121, 11]])

    def test_reduce_accumulate_outer_and_at(self):
        add = jitmem.ufunc(self.add)
        numbers = numpy.arange(1, 6, dtype=numpy.int64)
        self.assertEqual(add.reduce(numbers), 15)
        self.assertEqual(add.reduce(numpy.ones((3, 2), numpy.int64), axis=1).tolist(), [2, 2, 2])
        self.assertEqual(add.accumulate(numbers).tolist(), [1, 3, 6, 10, 15])
        self.assertEqual(add.outer([1, 2], [10, 20]).tolist(), [[11, 21], [12, 22]])
        add.at(numbers, [0, 0, 1], 100)
        self.assertEqual(numbers.tolist(), [201, 102, 3, 4, 5])

    def test_the_loop_is_chosen_by_the_arrays_types(self):
        doubles = jitmem.function(ADD_DOUBLES, c_double, c_double, c_double)
        bytes_ = jitmem.function(ADD, c_uint8, c_uint8, c_uint8)
        add = jitmem.ufunc(bytes_, self.add, doubles, name="plus")
        self.assertEqual((add.__name__, add.ntypes, add.nin, add.nout), ("plus", 3, 2, 1))
        small = numpy.array([200, 100], numpy.uint8)
        self.assert_gives(add(small, small), [144, 200], c_uint8)
        self.assert_gives(add(small.astype(numpy.int32), 1), [201, 101], c_ssize_t)
        self.assert_gives(add(small, 0.5), [200.5, 100.5], c_double)
        with self.assertRaises(TypeError):
            add(small, 1j)
        self.assertIn("machine_code(c_double, c_double) -> c_double", add.__doc__)

    def test_a_function_of_a_library(self):
        library = ctypes.CDLL("msvcrt" if WINDOWS else None)
        labs = jitmem.bind(library.labs, ctypes.c_long, ctypes.c_long, name="labs")
        absolute = jitmem.ufunc(labs)
        self.assertEqual(absolute(numpy.array([-5, 6], ctypes.c_long)).tolist(), [5, 6])

    def test_it_keeps_its_functions_and_lets_them_go(self):
        fresh_chunks()
        code = jitmem.Code(here(SQUARE))
        functions = [code.function(c_double, c_double)]
        square = jitmem.ufunc(*functions)
        gone = weakref.ref(functions.pop())
        code.close()
        fresh_chunks()
        del code
        collect()
        self.assertEqual(square(3.0), 9)
        self.assertIsNotNone(gone())
        chunks = len(living_pages())
        del square
        collect()
        self.assertIsNone(gone())
        self.assertLess(len(living_pages()), chunks)

    def test_in_a_cycle_it_can_be_called_by_every_finalizer_and_is_collected(self):
        class Holder:
            def __del__(self):
                results.append(self.square(3.0))
        results = []
        collect()
        chunks = len(living_pages())
        for _ in range(20):
            fresh_chunks()
            holder = Holder()
            holder.square = jitmem.ufunc(jitmem.function(SQUARE, c_double, c_double, keep=holder))
        fresh_chunks()
        gone = weakref.ref(holder)
        del holder
        collect()
        self.assertEqual(results, 20 * [9])
        self.assertIsNone(gone())
        self.assertLessEqual(len(living_pages()), chunks)

    def test_an_interrupt_while_it_takes_its_functions_loses_none(self):
        def attach(*arguments):
            interrupt = self.raising_at(number, lambda: real(*arguments))
            if interrupt:
                raise interrupt
        real = jitmem._attach
        for number in itertools.count(1):
            function = jitmem.function(SQUARE, c_double, c_double)
            gone = weakref.ref(function)
            try:
                with mock.patch.object(jitmem, "_attach", attach):
                    jitmem.ufunc(function)
            except Exception as interrupt:
                traceback.clear_frames(interrupt.__traceback__)
                over = False
            else:
                over = True
            del function
            if gone() is not None:
                collect()
            self.assertIsNone(gone(), number)
            if over:
                break
        if sys.version_info[:2] != (3, 12):  # whose first versions do not trace bytecodes so
            self.assertGreater(number, 50)

    def test_threads_run_it_at_once(self):
        square, numbers = jitmem.ufunc(self.square), numpy.arange(100_000.0)
        sums = []
        threads = [threading.Thread(target=lambda: sums.append(square(numbers).sum()))
                   for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sums, 4 * [(numbers ** 2).sum()])

    def test_what_it_refuses(self):
        ufunc, function = jitmem.ufunc, jitmem.function
        self.raises(TypeError, "at least one function", ufunc)
        self.raises(TypeError, "takes jitmem functions, not builtin_function", ufunc, abs)
        self.raises(TypeError, "name must be str, not int", ufunc, self.square, name=5)
        pointer = function(SAME, c_void_p, c_void_p, name="same")
        message = r"same\(c_void_p\) -> c_void_p has more than integers"
        self.raises(TypeError, message, ufunc, pointer)
        void = function(ANSWER, None, c_int)
        self.raises(TypeError, r"\(c_\w+\) -> None has more than", ufunc, void)
        texts = function(ANSWER, c_int, c_char)
        self.raises(TypeError, r"\(c_char\) -> c_\w+ has more than", ufunc, texts)
        message = "takes no argument, or not as many as the first function"
        self.raises(TypeError, message, ufunc, function(ANSWER, c_int))
        self.raises(TypeError, message, ufunc, self.square, self.add)
        with executable(ANSWER) as memory:
            self.raises(TypeError, "is in a Memory", ufunc, memory.function(c_int, c_int))
        if not jitmem._why_no_guard():
            guarded = function(SQUARE, c_double, c_double, guard=True)
            self.raises(TypeError, "has a guard", ufunc, guarded)
        with_gil = ctypes.PYFUNCTYPE(c_double, c_double)(self.square.address)
        self.raises(TypeError, "needs the GIL", ufunc, jitmem.bind(with_gil))
        self.square.close()
        self.raises(ValueError, "is closed", ufunc, self.square)

    def test_a_ufunc_of_an_unknown_shape_is_refused(self):
        real = jitmem._attach
        def attach(made, texts, kept):
            return real(made, texts[::-1], kept)
        with mock.patch.object(jitmem, "_attach", attach):
            self.raises(NotImplementedError, "this version of NumPy", jitmem.ufunc, self.square)

    def test_its_cost_is_near_that_of_numpy(self):
        square, numbers = jitmem.ufunc(self.square), numpy.arange(1_000_000.0)
        out = numpy.empty_like(numbers)
        ratios = []
        for _ in range(9):
            start = time.perf_counter()
            numpy.square(numbers, out)
            middle = time.perf_counter()
            square(numbers, out)
            ratios.append((time.perf_counter() - middle) / (middle - start))
        self.assertLess(min(ratios), 20 if EMULATED else 5)


class Loops(Case):
    """Of ufunc(), where NumPy is not needed."""

    def test_without_numpy_it_says_so(self):
        if PYPY or jitmem._processor is None:
            self.skipTest("ufunc() needs CPython on x86-64 or AArch64")
        with mock.patch.dict(sys.modules, numpy=None):
            self.raises(ImportError, "ufunc.. needs NumPy", jitmem.ufunc)

    def test_where_there_are_no_loops_it_says_so(self):
        with mock.patch.object(jitmem, "_TRAMPOLINES", False):
            self.raises(NotImplementedError, "needs CPython on x86-64 or AArch64", jitmem.ufunc)

    def test_a_loop_calls_its_function_for_each_element(self):
        if jitmem._processor is None:
            self.skipTest("there are loops for x86-64 and AArch64")
        scale = jitmem.function(SCALE, c_double, c_int64, c_double)
        loop = jitmem.function(jitmem._loop(jitmem._loop_kinds(scale, 2)), None, *[c_void_p] * 4)
        integers, doubles = (c_int64 * 3)(1, -2, 3), (c_double * 6)(1, 0, 2, 0, 4, 0)
        results = (c_double * 4)(7, 7, 7, 7)
        args = (c_void_p * 3)(*map(ctypes.addressof, (integers, doubles, results)))
        steps = (c_ssize_t * 3)(8, 16, 8)
        loop(args, (c_ssize_t * 1)(0), steps, scale.address)
        self.assertEqual(list(results), [7, 7, 7, 7])
        loop(args, (c_ssize_t * 1)(3), steps, scale.address)
        self.assertEqual(list(results), [1, -4, 12, 7])


class Names(Case):
    """What profilers and auditors see of code."""

    MAP = """
        import os, sys, jitmem
        from ctypes import c_uint32
        code = bytes.fromhex(sys.argv[1])
        def names(pid=0):
            path = f"/tmp/perf-{pid or os.getpid()}.map"
            with open(path, encoding="utf-8") as lines:
                found = [line.rstrip("\\n").split(" ", 2) for line in lines]
            os.unlink(path)
            return [(int(start, 16), int(size, 16), name) for start, size, name in found]
        """

    def run_named(self, source, *options, **environment):
        if WINDOWS:
            self.skipTest("Windows has no perf")
        script = textwrap.dedent(self.MAP) + textwrap.dedent(source)
        arguments = here(ANSWER).hex(), new_code(7).hex()
        status, out, err = python(*options, "-c", script, *arguments, **environment)
        self.assertEqual((status, err), (0, ""), out)

    def test_every_function_is_in_the_map(self):
        self.run_named("""
            function = jitmem.function(code, c_uint32, name="one\\n of  two")
            entry = jitmem.Code(code + code).function(c_uint32, offset=len(code), name="entry")
            memory = jitmem.Memory(64)
            memory.write(code)
            memory.make_executable()
            by_hand = memory.function(c_uint32, name="by hand \\udc80")
            found = names()
            assert (function.address, len(code), "one of two") in found, found
            assert (entry.address, len(code), "entry") in found, found
            assert (by_hand.address, 64, "by hand \\\\udc80") in found, found
            assert function() == entry() == by_hand() == 0x12345678
            info = jitmem.info()
            assert info["names"] == f"written to /tmp/perf-{os.getpid()}.map", info
            """, JITMEM_PERF="1")

    def test_named_code_is_in_anonymous_pages(self):
        if mappings() is None:
            self.skipTest("needs /proc/self/maps")
        self.run_named("""
            function = jitmem.function(code, c_uint32, name="named")
            with open("/proc/self/maps") as maps:
                rows = [line.split() for line in maps]
            for row in rows:
                start, end = (int(bound, 16) for bound in row[0].split("-"))
                if start <= function.address < end:
                    assert row[1][:3] == "r-x" and row[4] == "0" and len(row) == 5, row
                    break
            names()
            """, JITMEM_PERF="1")

    @unittest.skipUnless(FORKS, "needs fork")
    def test_a_forked_child_has_a_map_of_its_own(self):
        self.run_named("""
            function = jitmem.function(code, c_uint32, name="parent's")
            child = os.fork()
            if not child:
                made = jitmem.function(bytes.fromhex(sys.argv[2]), c_uint32, name="child's")
                os._exit(made() != 7)
            assert os.waitpid(child, 0)[1] == 0
            assert "child's" in [name for *_, name in names(child)]
            assert "child's" not in [name for *_, name in names()]
            """, JITMEM_PERF="1")

    def test_a_map_that_cannot_be_written_harms_nothing(self):
        self.run_named("""
            path = f"/tmp/perf-{os.getpid()}.map"
            target = path + ".target"
            open(target, "w").close()
            os.symlink(target, path)  # as another user might do it
            try:
                assert jitmem.function(code, c_uint32)() == 0x12345678
                assert os.path.getsize(target) == 0
            finally:
                os.unlink(path)
                os.unlink(target)
            """, JITMEM_PERF="1")

    def test_pythons_own_option_asks_for_names_too(self):
        source = """
            function = jitmem.function(code, c_uint32, name="asked for")
            assert "asked for" in [name for *_, name in names()]
            """
        self.run_named(source, "-X", "perf", JITMEM_PERF="")
        self.run_named(source, JITMEM_PERF="", PYTHONPERFSUPPORT="1")

    def test_without_being_asked_for_nothing_is_written(self):
        for variable in ("", "0", "off"):
            self.run_named("""
                jitmem.function(code, c_uint32)
                assert jitmem.info()["names"] == "not written"
                assert not os.path.exists(f"/tmp/perf-{os.getpid()}.map")
                """, JITMEM_PERF=variable)

    AUDIT = """
        import gc, sys, jitmem
        from ctypes import c_uint32
        code = bytes.fromhex(sys.argv[1])
        seen, refused = [], []
        def hook(event, arguments):
            if event == "jitmem.load":
                seen.append(arguments)
                if refused:
                    raise PermissionError("no code today")
        sys.addaudithook(hook)
        """

    def run_audited(self, source):
        script = textwrap.dedent(self.AUDIT) + textwrap.dedent(source)
        self.run_child(script, here(ANSWER).hex())

    def test_every_load_is_audited(self):
        self.run_audited("""
            function = jitmem.function(code, c_uint32, name="answer")
            several = jitmem.Code(code)
            several.function(c_uint32), several.function(c_uint32)
            memory = jitmem.Memory(64)
            memory.write(code)
            memory.make_executable()
            memory.make_executable()
            assert seen == [("answer", function.address, len(code)),
                            ("code", several.address, len(code)),
                            ("memory", memory.address, 64)], seen
            """)

    def test_an_auditor_can_refuse_a_load(self):
        self.run_audited("""
            keep = jitmem.function(code, c_uint32)
            memory = jitmem.Memory(64)
            memory.write(code)
            before = jitmem.info()["functions"]
            refused.append(True)
            for load in (lambda: jitmem.function(code, c_uint32),
                         lambda: jitmem.Code(code), memory.make_executable):
                try:
                    load()
                except PermissionError as error:
                    assert str(error) == "no code today"
                else:
                    raise AssertionError("it was loaded")
            assert memory.protection == "rw-"
            gc.collect(), gc.collect()
            assert jitmem.info()["functions"] == before
            refused.clear()
            memory.make_executable()
            assert memory.function(c_uint32)() == 0x12345678
            """)

    def test_the_bytes_of_a_function_are_its_code(self):
        code = here(ANSWER)
        function = jitmem.function(code, c_uint32)
        self.assertEqual(bytes(function), code)
        several = jitmem.Code(code + code[::-1])
        self.assertEqual(bytes(several.function(c_uint32)), code + code[::-1])
        self.assertEqual(bytes(several.function(c_uint32, offset=len(code))), code[::-1])
        memory = executable(ANSWER)
        by_hand = memory.function(c_uint32)
        self.assertEqual(bytes(by_hand), code.ljust(64, b"\0"))
        memory.close()
        self.raises(ValueError, "closed", bytes, by_hand)
        bound = jitmem.bind(function.address, c_uint32, name="bound")
        self.raises(TypeError, r"bound\(\): bind\(\) does not know", bytes, bound)
        function.close()
        self.raises(ValueError, "is closed", bytes, function)


def text_column(data):
    """Bytes as they stand in the column of text of a dump."""
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data).strip()


class CommandLine(Case):
    def run_main(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = jitmem._main(arguments)
            except SystemExit as exit:
                status = exit.code
        return status, out.getvalue(), err.getvalue()

    def run_code(self, *arguments):
        """In a child, whose own child has a time limit that slow machines keep."""
        return python("-m", "jitmem", "run", "--limit", "250", *arguments)

    def refused(self, text):
        """The message with which this text is refused."""
        with self.assertRaises(ValueError, msg=text) as caught:
            self.fail(jitmem._parse_code(text).hex())
        return str(caught.exception)

    def test_the_demo_shows_the_six_steps_as_the_system_reports_them(self):
        status, out, err = python("-m", "jitmem")
        if not EMULATED:  # emulators say something of their own about the child that they kill
            self.assertEqual(err, "")
        self.assertEqual(status, 0)
        for step in (
            r"0  call as data   child process: .*\n",
            r"1  allocate +(mmap|VirtualAlloc)\(NULL, \d+, .*\)  +[0-9a-f]+  rw-",
            r"2  write +\d+ bytes +[0-9a-f]+  rw-",
            r"3  protect +(mprotect|VirtualProtect)\(.*\)  +[0-9a-f]+  r-x",
            r"4  flush +\S",
            r"5  call .* 0x12345678",
            r"6  free +(munmap|VirtualFree)\(.*\)  +unmapped",
        ):
            self.assertRegex(out, step)
        out.encode("ascii")

    def test_data_is_not_executable(self):
        text = jitmem._call_as_data(here(ANSWER))
        if text.endswith("This system executes data."):
            self.skipTest("this system, or its emulator, executes data")
        self.assertRegex(text, r"(killed by SIG|access violation).*\. Data is not executable\.$")

    def test_a_machine_without_a_sample_gets_a_clear_word_and_status_3(self):
        with mock.patch.multiple(jitmem, MACHINE="pdp11", _PROCESSOR="pdp11"):
            for command in ((), ("bench",)):
                status, out, _ = self.run_main(*command)
                self.assertEqual(status, 3)
                self.assertIn("no sample for pdp11", out)

    def test_a_refusal_is_one_line_and_status_1(self):
        with mock.patch.object(jitmem, "_allocate", side_effect=MemoryError("injected")):
            status, _, err = self.run_main()
        self.assertEqual((status, err), (1, "jitmem: injected\n"))

    def test_a_wrong_answer_is_status_1(self):
        same = "\n   " + here(SAME).hex() + "   same"
        with mock.patch.dict(jitmem._SAMPLES, {PROCESSOR: same}):
            self.assertEqual(self.run_main()[0], 1)

    def test_info_prints_every_policy_and_json(self):
        status, out, _ = self.run_main("info")
        self.assertEqual(status, 0)
        machine = rf"(?s)machine +{jitmem.MACHINE}, .*policies\n.*nothing here is refused"
        self.assertRegex(out, machine)
        written = self.run_main("info", "--json")[1]
        self.assertEqual(json.loads(written)["machine"], jitmem.MACHINE)

    def test_bench_compares_calls_and_loads(self):
        if jitmem._PROCESSOR not in ("x86_64", "aarch64"):
            self.assertEqual(self.run_main("bench")[0], 3)
            return
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(jitmem._bench(0.0002), 0)
        row = r" +[\d.]+  #+\n"
        self.assertRegex(
            out.getvalue(),
            rf"^int64 add\(int64, int64\) +ns/call\n  jitmem{row}  operator.add{row}"
            rf"  ctypes +[\d.]+  #+ +[\d.]+x jitmem\nload and free, \d+ bytes +us\n  jitmem{row}",
        )

    def test_code_is_read_in_any_usual_spelling(self):
        code = bytes.fromhex("b82a000000c3")
        for text in (
            "b82a000000c3", "b8 2a 00 00 00 c3\n", "B8,2A,00,00,00,C3",
            r"\xb8\x2a\x00\x00\x00\xc3", r'"\xb8\x2a" "\x00\x00\x00\xc3"', repr(code),
            "0xb82a000000c3", "0xb8,0x2a,0,0,0,0xc3", "[0xb8, 0x2a, 0x0, 0x0, 0x0, 0xc3]",
            "{0xb8, 0x2a, 0x00, 0x00, 0x00, 0xc3};", "{0xb8, 0x2a,\n  0, 0, 0,\n  0xc3};",
            "db 0xb8,0x2a,0\n db 0,0,0xc3\n", "DB 0xb8,0x2a,0x00\n.byte 0X00,0x00,0xc3",
            "b8 2a 00 00 00  # mov eax, 42\nc3  // ret\n", "b8 2a 00 00 00 ; mov eax, 42\nc3 ; ret",
            "b8 2a 00 # x\r00 00 c3", "b8 2a // 5\x0c00 00 00 c3",
        ):
            with self.subTest(text):
                self.assertEqual(jitmem._parse_code(text), code)
        text = "31 c0\ndb e3  # fninit, 0xdbe3\n"
        self.assertEqual(jitmem._parse_code(text), bytes.fromhex("31c0dbe3"))

    def test_listings_of_usual_tools_are_read(self):
        code = bytes.fromhex("b82a000000c3")
        objdump = (
            "ab:     file format elf64-x86-64\n\nDéassemblage de la section .text :\n\n"
            "0000000000401000 <f>:\nlong f() {\n"
            "  401000:\tb8 2a 00 00 00       \tmov    $0x2a,%eax\n"
            "  401005:\tc3                   \tret\n}\n"
        )
        for text in (
            objdump, objdump.expandtabs(),
            "0:b8 2a 00\n3:00 00 c3", "   0: b8 2a 00 00 00\n\t5: C3",
            "00000000: b82a 0000 00c3                           .*....\n",
            "00000000: b8 2a 00 00 00   .*...\n00000005: c3\n",
            "00000000  b8 2a 00 00  00 c3                               |.*....|\n00000006\n",
            "     1                                  bits 64\n"
            "     2                                  ; 42\n"
            "     3 00000000 B82A0000-               mov eax, 42\n"
            "     3 00000004 00\n     4 00000005 C3                  f: ret\n",
        ):
            with self.subTest(text):
                self.assertEqual(jitmem._parse_code(text), code)
        times = "     1 00000000 90<rep 3h>   times 3 nop\n     2 00000003 C3   ret\n"
        self.assertEqual(jitmem._parse_code(times), b"\x90\x90\x90\xc3")

    def test_instructions_shown_as_numbers_are_read_on_their_machine_alone(self):
        code, dump = struct.pack("=II", 0x52800540, 0xD65F03C0), struct.pack("=I", 0x52800540)
        words = "   0:\t52800540 \tmov\tw0, #0x2a\n   4:\td65f03c0 \tret\n"
        with mock.patch.object(jitmem, "_PROCESSOR", "aarch64"):
            self.assertEqual(jitmem._parse_code(words), code)
            self.assertEqual(jitmem._parse_code(words.expandtabs()), code)
            row = f"00000000: {dump.hex(' ', 2)}   {text_column(dump)}"
            self.assertEqual(jitmem._parse_code(row), dump)
            self.assertIn("not machine code", self.refused("0: 52800540 d65f 03c0d65f"))
        with mock.patch.object(jitmem, "_PROCESSOR", "x86_64"):
            self.assertIn("not machine code", self.refused(words))

    def test_what_is_not_wholly_understood_is_refused(self):
        for message, texts in {
            "not machine code in hexadecimal": (
                "b8 2", "mov eax, 42", "zz", "48 8d 04 37 0xc3", "0xb8,0x2a00",
                "dd 0x00002ab8, 0x0000c300", r'"\xb8" "0"', r"\xb8ab", "48:8d:04", "b8 2a é0 c3",
                "31 c0; c3", "31 c0 ; 0f 05", 'b8 ; "c3"',
                "0: c3 fadd", "00000000: b8 2a 90  90 90 c3", "0: b8 2a  90 90",
                "00000000: 00002ab8     c300          .*....\n",
                "00000000: 00002ab8 0000c300  .*......\n", "00000000: c3900000 0000c390  ........",
                "00000000: 11000011 10010000                        ..",
            ),
            "decimal, or an address": (
                "db 184, 42, 0", "  46  65  97\n", "db 49, 72", "db 49\ndb 72", "dd 49",
                "[49, 72, 10]", "000000 b8 2a 00 00 00 c3",
                "000000 b8 2a 00 00 00 c3\n000006\n", "000000 025270 000000\n000004\n",
                "0000000 2ab8 0000 c300\n0000006\n", "00000000  b8 2a     |.+|\n00000002\n",
            ),
            "not a line of": (
                "b8 2a\n   2: c3",
                "   0: b8 2a\nc3", "   0:\tb8 2a \tmov\nc3 \tret", "   0:\tb8 2a \tmov\n  2 c3 ret",
                "   0:\tb8 \tmov\n   1:\tc\n", "00000000: b82a  .*\nc3",
                "00000000: b82a  .*\n00000002: 0000c300  ....\n",
                "     1 00000000 C3    ret\n     2 00000001 E8(00000000)     call f\n",
                "     1 00000000 B82A                    mov\nc3",
            ),
            "goes on at": (
                "  0:\tb8 2a 00 00 00 \tmov\n  9:\tc3 \tret\n", "  5:\tc3\n  0:\tb8\n",
                "  0:\tb8 2a\n  1:\tc3", "00000000  b8 2a  |.*|\n00000003\n",
            ),
            "leaves out bytes": (
                "   0:\tb8 2a 00   \tmov\n\t...\n", "00000000: 0000   ..\n*\n00000010: c3   .\n",
            ),
            "not bytes as Python writes them": (r"b'\x'", "b'a'b'", "b'é'", "b'a', b'b'"),
            "needs a linker, for R_X86_64_PLT32: `ld -N --oformat binary -Ttext 0 -e NAME f.o": (
                "   4:\te8 00 00 00 00 \tcall 9\n\t\t\t5: R_X86_64_PLT32\text-0x4\n",
            ),
        }.items():
            for text in texts:
                with self.subTest(text):
                    self.assertIn(message, self.refused(text))

    def test_a_listing_of_random_code_is_read_byte_for_byte_or_refused(self):
        def rows_of(code, size, form):
            return [form(at, code[at:at + size]) for at in range(0, len(code), size)]

        def objdump(at, data):
            return f"{at:8x}:\t{data.hex(' '):21}\tadd    %al,(%rax)"

        def hexdump(at, data):
            return f"{at:08x}  {data.hex(' ')}  |{text_column(data):{len(data)}}|"

        def xxd(group):
            def row(at, data):
                return f"{at:08x}: {data.hex(' ', -group)}  {text_column(data)}"
            return row

        def xxd_e(group):
            def row(at, data):
                return f"{at:08x}: {data[::-1].hex(' ', group)}  {text_column(data)}"
            return row

        random = Random(12)
        for _ in range(40):
            code = bytes(random.choices([*range(256), *b".AA"], k=random.randrange(34, 90)))
            right = [rows_of(code, 7, objdump), rows_of(code, 16, hexdump),
                     rows_of(code, 16, xxd(1)), rows_of(code, 16, xxd(2))]
            wrong = [rows_of(code, 4, xxd_e(4)), rows_of(code, 2, xxd_e(2))]
            for rows in right:
                self.assertEqual(jitmem._parse_code("\n".join(rows)), code)
                at = random.randrange(1, len(rows) - 1)
                before, row, after = rows[:at], rows[at], rows[at + 1:]
                wrong += [
                    [*before, *after], [*before, row, row, *after], [*after, row, *before],
                    [*before, row.partition(" ")[2], *after],
                    [*before, row.lstrip(" 0123456789abcdef"), *after],
                ]
            for rows in wrong:
                try:
                    found = jitmem._parse_code("\n".join(rows))
                except ValueError:
                    continue
                self.assertEqual(found, code, rows)

    def test_long_text_is_read_in_linear_time(self):
        row, blanks = "{:8x}:\t90                   \tnop\n", " " * 60_000
        began = time.process_time()
        listing = "".join(map(row.format, range(6_000)))
        self.assertEqual(jitmem._parse_code(listing), b"\x90" * 6_000)
        self.assertEqual(jitmem._parse_code(f"b8{blanks}c3{blanks}"), b"\xb8\xc3")
        self.assertEqual(jitmem._parse_code("b8" + "\n" * 60_000 + "c3"), b"\xb8\xc3")
        for text in (
            f"90{blanks}z", f"0:{blanks}z", f"0: 90{blanks}z{blanks}|", f"00000000: 90{blanks}\tz",
            "00000000: " + "90 " * 30_000 + "\tz", "0: " + "90 " * 30_000 + "z",
            f"00000000  90{blanks}z", f"00000000  90{blanks}|", "90" * 30_000 + "z",
            "0: " + "90" * 30_000 + "z", "00000000  " + "90 " * 30_000 + "z", ";" + blanks + "z",
            f"     1 00000000 90{blanks}z\n{blanks}", "R_" * 30_000, "0" * 60_000 + ":",
        ):
            with contextlib.suppress(ValueError):
                jitmem._parse_code(text)
        self.assertLess(time.process_time() - began, 20 if EMULATED else 3)  # here 0.2

    def test_code_comes_from_files_and_standard_input_as_bytes_or_text(self):
        code, french = b"\xb8\x00\xc3", "Déassemblage :\n 0:\tb8 00 c3 \tmov\n"
        for data, expected in (
            (code, code), (b"b8 00 c3\n", code), (french.encode(), code),
            (french.encode("latin-1"), code), (french.encode("utf-16"), code),
            ("b8 00 c3".encode("utf-8-sig"), code), (b"\x31\xc0\xc3", b"\x31\xc0\xc3"),
        ):
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "code")
                with open(path, "wb") as file:
                    file.write(data)
                self.assertEqual(jitmem._read_code("@" + path), expected)
            with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(data))):
                self.assertEqual(jitmem._read_code("-"), expected)

    def test_files_that_are_no_bare_code_are_refused(self):
        for data, message in (
            (b"\x7fELF\2\1\1", "an object file or a program, not .*`ld -N --oformat binary"),
            (b"MZ\x90\0", "an object file or a program"),
            (b"b8 2 00 c3\n", "'2' is not digits"), (b"\t.file \"f.c\"\n", "'.file' is not digits"),
            (b"b8 2a \xe9 c3", "is not digits"), ("b8 2a é0 c3".encode(), "is not digits"),
        ):
            with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(data))):
                self.raises(ValueError, message, jitmem._read_code, "-")
        path = os.path.abspath(__file__)
        self.raises(ValueError, "is a file; @.*test_jitmem.py reads it", jitmem._read_code, path)

    def test_options_may_stand_anywhere_and_nothing_behind_two_dashes_is_one(self):
        code, word = here(ADD).hex(), "c_ssize_t"
        for arguments in (
            ["--returns", word, "--takes", word, word, "--", code, "2", "-3"],
            [code, "--returns", word, "2", "-3", "--takes", word, word],
            [code, "2", "--returns", word, "-3", "--takes", word, word],
        ):
            found = self.run_main("run", *arguments)
            self.assertEqual(found, (0, f"-1    0x{'ff' * WORD}\n", ""))
        types = ("--returns", "c_double", "--takes", "c_double", "c_double")
        found = self.run_main("run", *types, "--", here(ADD_DOUBLES).hex(), "-1e3", "2.0")
        self.assertEqual(found[:2], (0, f"-998.0    {(-998.0).hex()}\n"))

    def test_run_calls_code_in_a_child_and_prints_decimal_and_hexadecimal(self):
        code, double = here(ADD_DOUBLES).hex(), ("--returns", "double", "--takes", "double")
        status, out, _ = self.run_code(code, "1.5", "2", *double, "c_double")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"^3\.5    0x1\.c0*p\+1$")
        status, out, err = self.run_main("run", code, "1.5", "2e0", "--time")
        self.assertEqual((status, err), (0, ""))  # without a word about types
        self.assertRegex(out, r"^3\.5    0x1\.c0*p\+1    \(\d+ ns a call\)\n$")
        for text, type_ in (("1_000", c_int64), ("-7", c_int64), ("0x1e5", c_int64),
                            ("1_0.5", c_double), ("inf", c_double)):
            self.assertIs(jitmem._usual_type(text), type_, text)

    def test_run_says_which_types_it_assumed_where_kinds_are_mixed(self):
        code = here(ANSWER).hex()
        said = "jitmem: taken as c_int64 (c_double, c_int64); --takes and --returns say otherwise\n"
        self.assertEqual(self.run_main("run", code, "2.5", "3")[2], said)
        for arguments in (("2", "3"), ("2.5", "3.5"), (
                "2.5", "3", "--takes", "c_double", "c_int64", "--returns", "c_int32")):
            self.assertEqual(self.run_main("run", code, *arguments)[2], "")

    def test_run_starts_at_an_entry(self):
        code = "00" * 16 + here(ANSWER).hex()
        found = self.run_main("run", code, "--entry", "0x10", "--returns", "c_uint32")
        self.assertEqual(found, (0, "305419896    0x12345678\n", ""))
        status, _, err = self.run_main("run", "c3c3", "--entry", "2")
        self.assertEqual((status, err.count("outside the 2 bytes")), (1, 1))

    def test_run_reports_how_the_code_ended_its_process(self):
        calls_address_8 = (here(CALL).hex(), "8", "0", "--takes", "c_size_t", "c_size_t")
        status, out, err = self.run_code(*calls_address_8)
        if WINDOWS and not GUARD:
            self.assertIn("access violation", out + err)
            self.assertNotEqual(status, 0)
        elif GUARD:
            self.assertRegex(out, "^SIGSEGV: jump to address 0x8")
            self.assertRegex(out, r"\n\n  0000  [0-9a-f]{2} .*\n\n  (rip|pc) +0x8 ")
            self.assertEqual(status, 139)
        else:
            self.assertRegex(out, "^the code ended its process with SIG(SEGV|BUS|ILL)$")
            self.assertIn(status, (128 + signal.SIGSEGV, 128 + signal.SIGBUS, 128 + signal.SIGILL))

    def test_what_a_child_ends_with_is_told_from_what_run_says(self):
        for status, shown, said in (
            (0, 1, "the code ended its process with status 0\n"),
            (1, 1, "the code ended its process with status 1\n"),
            (139, 1, "the code ended its process with status 139\n"),
            (-40, 168, "the code ended its process with signal 40\n"),
            (-9, 137, "the code ended its process with SIGKILL\n"),
            (0xC0000005, 139, "the code ended its process with exception 0xc0000005\n"),
        ):
            if not (WINDOWS and status < 0):
                with mock.patch.object(jitmem, "_in_child", return_value=(None, status)):
                    self.assertEqual(self.run_main("run", "c3")[:2], (shown, said))

    @unittest.skipUnless(LINUX and jitmem.MACHINE == "x86_64-sysv", "code for Linux on x86-64")
    def test_code_that_ends_its_process_by_itself_is_reported_with_its_status(self):
        for status in (0, 1, 2, 131, 139):  # mov edi, status; mov eax, 60 (exit); syscall
            code = f"bf {status:02x} 00 00 00 b8 3c 00 00 00 0f 05"
            said = f"the code ended its process with status {status}"
            self.assertEqual(self.run_main("run", code), (1, said + "\n", ""))

    @unittest.skipUnless(LINUX and jitmem.MACHINE == "x86_64-sysv", "code for Linux on x86-64")
    def test_the_standard_input_of_code_is_the_user_s(self):
        # xor edi, edi; lea rsi, [rsp - 128]; mov edx, 8; xor eax, eax (read); syscall; ret
        code = "31ff 488d742480 ba08000000 31c0 0f05 c3"
        done = subprocess.run([sys.executable, "-S", "-m", "jitmem", "run", code],
                              cwd=HERE, timeout=300, input=b"abcdef\n", capture_output=True)
        self.assertEqual(done.stdout.split()[:1], [b"7"], done.stderr)

    def test_run_takes_large_code(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "code")
            with open(path, "wb") as file:
                file.write(here(ANSWER) + bytes(200000))
            status, out, _ = self.run_code("@" + path, "--returns", "c_uint32")
            self.assertEqual((status, out), (0, "305419896    0x12345678"))

    def assert_answers(self, *arguments, cwd=HERE, **environment):
        """Run Python, which must print the answer as `run` does."""
        done = subprocess.run([sys.executable, "-S", *arguments], cwd=cwd, capture_output=True,
                              text=True, timeout=300,
                              env={**os.environ, "PYTHONPATH": "", **environment})
        found = (done.returncode, done.stdout, done.stderr)
        self.assertEqual(found, (0, "305419896    0x12345678\n", ""))

    def test_run_works_wherever_jitmem_lies(self):
        run = ("run", here(ANSWER).hex(), "--returns", "c_uint32")
        main = f"sys.exit(jitmem._main({run!r}))"
        with tempfile.TemporaryDirectory() as folder:
            beside = os.path.join(folder, "beside")
            os.mkdir(beside)
            shutil.copy(jitmem.__file__, beside)
            for name in ("struct", "signal", "argparse", "json", "subprocess", "tempfile"):
                with open(os.path.join(beside, name + ".py"), "w") as file:
                    file.write("raise SystemExit('a file that happens to be beside it')\n")
            archive = os.path.join(folder, "app.zip")
            with zipfile.ZipFile(archive, "w") as file:
                file.write(jitmem.__file__, "jitmem.py")
                file.writestr("__main__.py", f"import sys, jitmem; {main}")
            with self.subTest("beside others"):
                script = f"import sys; sys.path.append({beside!r}); import jitmem; {main}"
                self.assert_answers("-c", script)
            with self.subTest("as a script beside others"):
                self.assert_answers(os.path.join(beside, "jitmem.py"), *run, cwd=folder)
                self.assert_answers("-m", "jitmem", *run, cwd=beside)
            with self.subTest("in a zip file"):
                self.assert_answers(archive)
            with self.subTest("isolated"):
                script = f"import sys; sys.path.append({HERE!r}); import jitmem; {main}"
                self.assert_answers("-I", "-c", script, PYTHONPATH=beside)

    @unittest.skipUnless(FORKS, "what has no file can only be forked")
    def test_run_needs_neither_a_file_nor_an_executable(self):
        out = self.run_child(f"""
            import sys
            sys.executable = None
            names = {{"__name__": "jitmem"}}
            with open({jitmem.__file__!r}, encoding="utf-8") as file:
                exec(file.read(), names)
            names["_main"](["run", {here(ANSWER).hex()!r}, "--returns", "c_uint32"])""")
        self.assertEqual(out, "305419896    0x12345678")

    @unittest.skipUnless(FORKS, "a spawned child does not find what is defined here")
    def test_a_child_leaves_no_core_and_no_word_of_its_own(self):
        import resource

        def limits():
            return 0, resource.getrlimit(resource.RLIMIT_CORE)
        self.assertEqual(jitmem._in_child(60, limits)[0], (0, (0, 0)))
        if not EMULATED:
            self.assertEqual(python("-X", "faulthandler", "-m", "jitmem")[2], "")

    def test_colour_is_for_terminals_alone(self):
        terminal = mock.Mock(isatty=lambda: True)
        for environment, expected in (
            ({"TERM": "xterm"}, "\x1b[31mSIGSEGV\x1b[0m"), ({"TERM": "dumb"}, "SIGSEGV"),
            ({}, "SIGSEGV"), ({"TERM": "xterm", "NO_COLOR": "1"}, "SIGSEGV"),
        ):
            with mock.patch.object(sys, "stdout", terminal), \
                    mock.patch.dict(os.environ, environment, clear=True):
                self.assertEqual(jitmem._marked("SIGSEGV"), expected)

    def test_a_report_has_a_dump_with_a_mark_registers_and_the_instruction(self):
        code, registers = bytes(range(40)), {"rax": 0, "rip": 2**64 - 1, "rsp": 0x7FFF0000}
        with mock.patch.dict(sys.modules, {"capstone": None}):
            names_and_values = tuple(registers), tuple(registers.values())
            report = jitmem.Fault("f", "SIGILL: no", 4, 17, None, names_and_values, code).report()
        self.assertEqual(report, "SIGILL: no\n\n"
                         "  0000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f\n"
                         "  0010  10 [11] 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f\n"
                         "  0020  20 21 22 23 24 25 26 27\n\n"
                         "  rip    0xffffffffffffffff  rsp    0x7fff0000          rax    0x0")
        instruction = mock.Mock(mnemonic="mov", op_str="eax, dword ptr [rax]")
        capstone = mock.Mock()
        capstone.Cs.return_value.disasm.return_value = iter([instruction])
        with mock.patch.dict(sys.modules, {"capstone": capstone}), \
                mock.patch.object(jitmem, "_PROCESSOR", "x86_64"):
            report = jitmem.Fault("f", "no", 4, 0, code=b"\x8b\0\xc3").report()
        self.assertEqual(report, "no\n\n  0000  [8b] 00 c3        mov eax, dword ptr [rax]")
        self.assertEqual(jitmem.Fault("f", "no", 4, 1, code=b"\xc3").report(),
                         "no\n\n  0000  c3 [end]")
        self.assertEqual(jitmem.Fault("f", "no", 4).report(), "no")

    def test_run_stops_code_that_does_not_return(self):
        said = "jitmem: no answer within 0.2 s; stopped (change it with --limit)\n"
        self.assertEqual(self.run_main("run", here(LOOP).hex(), "--limit", "0.2"), (1, said, ""))

    @unittest.skipUnless(TIMER, "needs setitimer()")
    def test_ctrl_c_stops_the_code_and_is_one_line_and_status_130(self):
        from multiprocessing.context import ForkProcess
        start = ForkProcess.start

        def start_and_interrupt(child):
            # Not before: an exception that comes during a fork is lost in a hook for forks, if
            # a module such as logging has one.
            start(child)
            signal.setitimer(signal.ITIMER_REAL, 2 if EMULATED else 0.2)
        with on_alarm(signal.default_int_handler), \
                mock.patch.object(ForkProcess, "start", start_and_interrupt):
            found = self.run_main("run", here(LOOP).hex(), "--limit", "250")
        self.assertEqual(found, (130, "", "jitmem: interrupted\n"))
        self.assertRaises(ChildProcessError, os.waitpid, -1, os.WNOHANG)  # none is left

    def test_run_refuses_what_makes_no_sense(self):
        limits = [(["c3", "--limit", limit], 2, "number of seconds")
                  for limit in ("0", "-1", "inf", "nan")]
        for arguments, status, message in (
            ([], 2, "CODE is missing"), (["zz"], 1, "not machine code"),
            (["c3", "--takes", "c_int"], 1, "--takes names 1 types, and there are 0 arguments"),
            (["c3", "5", "--takes", "c_foo"], 2, "c_foo is not one of ctypes' types"),
            (["c3", "5", "--takes", "None"], 2, "None is not one of ctypes' types"),
            (["c3", "08"], 1, "argument '08' is no c_"), (["c3", "x"], 1, "argument 'x' is no c_"),
            (["c3", "--returns", "py"], 2, "is not one of"), (["c3", "--entry", "x"], 2, "offset"),
            (["@/no/such/file"], 1, "No such file"), ([""], 1, "code is empty"), *limits,
        ):
            with self.subTest(arguments):
                found, _, err = self.run_main("run", *arguments)
                self.assertEqual(found, status)
                self.assertIn(message, err)

    @unittest.skipIf(WINDOWS, "Windows closes none")
    def test_closed_and_full_standard_streams_are_one_line(self):
        command = f"'{sys.executable}' -S -m jitmem"
        code = here(ANSWER).hex()
        for line, status, said in (
            (f"{command} run {code} >&-", 1, "jitmem: standard output is closed\n"),
            (f"{command} run - <&-", 1, "jitmem: standard input is closed\n"),
            (f"{command} run {code} --returns c_uint32 <&- 2>&-", 0, ""),
            (f"{command} nonsense 2>&-", 2, ""),
            (f"{command} info >/dev/full", 1, "jitmem: [Errno 28] No space left on device\n"),
        ):
            if ("/dev/full" in line and not LINUX) or ("- <&-" in line and EMULATED):
                continue  # an emulator's own file takes the place of what is closed
            with self.subTest(line):
                done = subprocess.run(["/bin/sh", "-c", line], cwd=HERE, stdin=subprocess.DEVNULL,
                                      env={**os.environ, "PYTHONUNBUFFERED": ""},
                                      capture_output=True, text=True, timeout=300)
                self.assertEqual((done.returncode, done.stderr), (status, said), done.stdout)

    @unittest.skipIf(WINDOWS, "Windows has no broken pipes")
    def test_a_reader_that_is_gone_is_status_1_and_no_traceback(self):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as pipe:
            done = subprocess.run([sys.executable, "-S", "-m", "jitmem", "info"], stdout=pipe,
                                  cwd=HERE, env={**os.environ, "PYTHONUNBUFFERED": ""},
                                  stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=300)
        self.assertEqual((done.returncode, done.stderr), (1, b""))

    def test_usage_errors_are_status_2(self):
        self.assertEqual(self.run_main("nonsense")[0], 2)
        self.assertEqual(self.run_main("--version")[:2], (0, f"jitmem {jitmem.__version__}\n"))


if __name__ == "__main__":
    unittest.main()
