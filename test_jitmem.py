"""Tests of jitmem: a class a section of the file. `python3 -m unittest` runs them from a clean clone."""

import array
import contextlib
import copy
import ctypes
import faulthandler
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
    py_object,
)
from random import Random
from unittest import mock

import jitmem

HERE = os.path.dirname(os.path.abspath(jitmem.__file__))
PATH = os.pathsep.join([HERE, os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH", "")])  # of child processes
LINUX, WINDOWS, PYPY = sys.platform == "linux", sys.platform == "win32", sys.implementation.name == "pypy"
FORKS, TIMER = hasattr(os, "fork"), hasattr(signal, "setitimer")
STRESS, EMULATED = bool(os.environ.get("JITMEM_STRESS")), LINUX and jitmem._PROCESSOR not in ("x86_64", "x86")
WORD = ctypes.sizeof(c_void_p)


def codes(**listings):
    """A mapping of code by machine from hexadecimal digits; __ in a name is a dash."""
    return {machine.replace("__", "-"): bytes.fromhex(digits) for machine, digits in listings.items()}


# The same small functions for every processor that the lab has.
ANSWER = {machine: jitmem._hex(listing) for machine, listing in jitmem._SAMPLES.items()}  # 0x12345678
ADD = codes(  # ssize_t (ssize_t a, ssize_t b): a + b
    x86_64__sysv="488d0437 c3", x86_64__windows="488d0411 c3", aarch64="0000018b c0035fd6", riscv64="3305b500 67800000",
    ppc64le="1422637c 2000804e", s390x="b9080023 07fe", mips64el="0800e003 2d108500", x86="8b442404 03442408 c3",
    arm="010080e0 1eff2fe1", loongarch64="84941000 2000004c")
ADD_DOUBLES = codes(  # double (double a, double b): a + b
    x86_64="f20f58c1 c3", aarch64="0028611e c0035fd6", riscv64="5375b502 67800000", ppc64le="2a1021fc 2000804e",
    s390x="b31a0002 07fe", mips64el="0800e003 00602d46", x86="dd442404 dc44240c c3", arm="010b30ee 1eff2fe1",
    loongarch64="00040101 2000004c")
ADD_FLOATS = codes(  # float (float a, float b): a + b
    x86_64="f30f58c1 c3", aarch64="0028211e c0035fd6", riscv64="5375b500 67800000", ppc64le="2a1021ec 2000804e",
    s390x="b30a0002 07fe", mips64el="0800e003 00600d46", x86="d9442404 d8442408 c3", arm="200a30ee 1eff2fe1",
    loongarch64="00840001 2000004c")
SAME = codes(  # T (T a), T an integer or a pointer: a
    x86_64__sysv="4889f8 c3", x86_64__windows="4889c8 c3", aarch64="c0035fd6", riscv64="67800000", ppc64le="2000804e",
    s390x="07fe", mips64el="0800e003 25108000", x86="8b442404 c3", arm="1eff2fe1", loongarch64="2000004c")
CALL = codes(  # ssize_t (ssize_t (*f)(ssize_t), ssize_t a): f(a)
    x86_64__sysv="4889f8 4889f7 ffe0", x86_64__windows="4889c8 4889d1 ffe0", aarch64="e20300aa e00301aa 40001fd6",
    riscv64="13060500 13850500 67000600", ppc64le="781b6c7c a603897d 7823837c 2004804e", s390x="b9040012 b9040023 07f1",
    mips64el="25c88000 08002003 2520a000", x86="8b442404 8b4c2408 83ec08 51 ffd0 83c40c c3", arm="0020a0e1 0100a0e1 12ff2fe1",
    loongarch64="8c001500 a4001500 8001004c")
STORE = codes(  # void (char *p, ssize_t value): *p = value
    x86_64__sysv="408837 c3", x86_64__windows="8811 c3", aarch64="01000039 c0035fd6", riscv64="2300b500 67800000",
    ppc64le="00008398 2000804e", s390x="42302000 07fe", mips64el="0800e003 000085a0", x86="8b442404 8b4c2408 8808 c3",
    arm="0010c0e5 1eff2fe1", loongarch64="85000029 2000004c")
# int64_t (entry, callable, args, count): fills every register that calls must preserve, calls entry(callable, args, count, NULL),
# and returns 0 if they are what they were.
PRESERVES = codes(x86_64__sysv=(
    "535541544155415641574883ec084889f84889f74889d64889ca31c9bb11110000bd2222000041bc3333000041bd4444000041be55550000"
    "41bf66660000ffd04881eb111100004881ed222200004981ec333300004981ed444400004981ee555500004981ef666600004809eb4c09e3"
    "4c09eb4c09f34c09fb4889d84883c408415f415e415d415c5d5bc3"), x86_64__windows=(
    "5355575641544155415641574883ec380f297424204889c84889d14c89c24d89c84531c9bb11110000bd2222000041bc3333000041bd4444"
    "000041be5555000041bf66660000bf77770000be8888000066480f6ef3ffd066480f7ef0482d111100004881eb111100004881ed22220000"
    "4981ec333300004981ed444400004981ee555500004981ef666600004881ef777700004881ee888800004809d84809e84c09e04c09e84c09"
    "f04c09f84809f84809f00f287424204883c438415f415e415d415c5e5f5d5bc3"), aarch64=(
    "fd7bb9a9f35301a9f55b02a9f76303a9f96b04a9fb7305a9e83300fde90300aae00301aae10302aae20303aae3031faa330080d2540080d2"
    "750080d2960080d2b70080d2d80080d2f90080d21a0180d23b0180d25c0180d28803679e20013fd67302148b7302158b7302168b7302178b"
    "7302188b7302198b73021a8b73021b8b73021c8b1401669e7302148b600601d1e83340fdfb7345a9f96b44a9f76343a9f55b42a9f35341a9"
    "fd7bc7a8c0035fd6"))
LOOP = codes(  # for ever
    x86="ebfe", x86_64="ebfe", aarch64="00000014", arm="feffffea", riscv64="6f000000",
    ppc64le="00000048", s390x="a7f40000", mips64el="ffff0010 00000000", loongarch64="00000050")
CALLBACK = CFUNCTYPE(c_ssize_t, c_ssize_t)


def here(code):
    """The bytes of a mapping for this machine."""
    return jitmem._select(code)


def python(*arguments, **environment):
    """Run Python in another process, with jitmem and this file to import: (status, output, errors)."""
    done = subprocess.run([sys.executable, *arguments], stdin=subprocess.DEVNULL, cwd=HERE, capture_output=True, text=True,
                          timeout=300, env={**os.environ, "PYTHONPATH": PATH, **environment})
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def executable(code):
    """A Memory with this code, made executable."""
    memory = jitmem.Memory(64)
    memory.write(here(code))
    memory.make_executable()
    return memory


def fresh_chunks():
    """Let the loads that follow begin a chunk of their own."""
    while jitmem._open_chunks:
        jitmem._open_chunks.pop().retire()


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
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mappings():
    """Every mapping of this process as the kernel lists it, [(start, end, permissions, name)]; None where it has no list."""
    try:
        with open("/proc/self/maps") as maps:
            rows = [line.split(None, 5) for line in maps]
    except OSError:
        return None
    return [(*(int(bound, 16) for bound in row[0].split("-")), row[1], row[5].strip() if len(row) > 5 else "") for row in rows]


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
        self.assertEqual([function() for function in functions], [start + number for number in range(count)])
        return functions

    def run_child(self, source, *arguments, **environment):
        """Run a script in another process, which must end well and print no error."""
        status, out, err = python("-c", textwrap.dedent(source), *arguments, **environment)
        self.assertEqual((status, err), (0, ""), out)
        return out

    def run_hardened(self, source):
        """The same under Memory-Deny-Write-Execute, for real."""
        out = self.run_child(textwrap.dedent("""
            import ctypes, sys
            if ctypes.CDLL(None).prctl(65, *[ctypes.c_ulong(word) for word in (1, 0, 0, 0)]):  # PR_SET_MDWE
                print("no MDWE")
                sys.exit()
            import jitmem, test_jitmem
            """) + textwrap.dedent(source))
        if out == "no MDWE":
            self.skipTest("this kernel, or the emulator, has no PR_SET_MDWE")
        return out

    def run_threads(self, *works):
        """Run these side by side, all from one moment on and with a switch between them every few calls; none may raise."""
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
            warnings.simplefilter("ignore")  # 3.12 and later warn of a fork with threads about, which is the point
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
        if jitmem.MACHINE.partition("-")[0] in ("x86_64", "aarch64"):
            self.assertEqual(doctest.testmod(jitmem).failed, 0)
        else:
            self.raises(NotImplementedError, f"no code for {jitmem.MACHINE}.*given: x86_64-sysv, x86_64-windows, aarch64",
                        jitmem.function, {"x86_64-sysv": b"", "x86_64-windows": b"", "aarch64": b""}, None)

    def test_every_public_name_has_a_docstring(self):
        self.assertEqual([name for name in jitmem.__all__ if name != "MACHINE" and not getattr(jitmem, name).__doc__], [])

    def test_importing_maps_nothing_executable(self):
        if mappings() is None:
            self.skipTest("no /proc/self/maps here")
        out = self.run_child("""
            import ctypes, mmap
            ctypes.CFUNCTYPE(None)(1)
            def executable():
                with open("/proc/self/maps") as maps:
                    return {line.split()[0] for line in maps if "x" in line.split()[1] and ("/" not in line or "/memfd" in line)}
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
        self.assertLessEqual(set(out.split()), {"__future__", "_operator", "errno", "jitmem", "mmap"})

    def test_docstrings_may_be_stripped(self):
        status, out, err = python("-OO", "-c", "import jitmem; print(jitmem.Function.__doc__, jitmem.MACHINE)")
        self.assertEqual((status, out, err), (0, f"None {jitmem.MACHINE}", ""))


class Readme(Case):
    def test_every_python_snippet_runs_and_prints_what_it_says(self):
        if jitmem._PROCESSOR not in ("x86_64", "aarch64"):
            self.skipTest("the snippets have code for x86-64 and AArch64")
        path = os.path.join(HERE, "README.md")
        if not os.path.exists(path):
            self.skipTest("README.md is not here: a vendored or installed copy")
        with open(path, encoding="utf-8") as file:
            snippets = re.findall(r"```python\n(.*?)```", file.read(), re.S)
        self.assertGreater(len(snippets), 1)
        for snippet in snippets:
            if WINDOWS:
                snippet = snippet.replace("ctypes.CDLL(None)", 'ctypes.CDLL("msvcrt")')
            expected = [said.strip() for said in re.findall(r"print\(.*?\) *#(?:.*?:)? *(\S.*)", snippet)]
            lines = [line for line in snippet.splitlines() if not re.search(r"# \w+Error: ", line)]
            out = io.StringIO()
            with self.subTest(snippet), contextlib.redirect_stdout(out):
                names = {}
                try:
                    exec("\n".join(lines), names)
                except ModuleNotFoundError as missing:
                    self.assertIn(missing.name, ("keystone", "numpy"))
                    continue
                except NotImplementedError as refused:
                    self.assertNotEqual(jitmem.MACHINE, "x86_64-sysv")
                    self.assertRegex(str(refused), "^no code for|^guard: it knows Linux")
                    continue
                for line in snippet.splitlines():
                    if re.search(r"# \w+Error: ", line):
                        call, _, said = line.partition("#")
                        with self.assertRaises(Exception) as caught:
                            exec(call, names)
                        self.assertEqual(f"{type(caught.exception).__name__}: {caught.exception}", said.strip())
            if len(expected) == snippet.count("print("):  # what others print depends on the machine
                self.assertEqual(out.getvalue().split("\n")[:-1], expected, snippet)


class Platform(Case):
    def test_pages_are_writable_then_executable_then_gone(self):
        page = jitmem._allocate(mmap.PAGESIZE)
        self.assertEqual(jitmem._query(page), "rw-")
        jitmem._protect(page, mmap.PAGESIZE, "r-x")
        self.assertEqual(jitmem._query(page), "r-x")
        jitmem._protect(page, mmap.PAGESIZE, "rw-")
        self.assertEqual(jitmem._query(page), "rw-")
        jitmem._release(page, mmap.PAGESIZE)
        self.assertEqual(jitmem._query(page), "")

    def test_a_refused_call_is_named_with_its_arguments(self):
        refusal = (OSError, MemoryError)  # the latter with musl, which asks for whole pages itself
        self.raises(refusal, r"(VirtualProtect|mprotect)\(1, \d+, ", jitmem._protect, 1, mmap.PAGESIZE, "rw-")

    def test_more_memory_than_there_is_is_a_memory_error(self):
        self.raises(MemoryError, "(mmap|VirtualAlloc).*NULL", jitmem._allocate, 2 * sys.maxsize & ~0xFFFFF)

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
        self.assertIn(jitmem._PROCESSOR, jitmem._SAMPLES)
        self.assertEqual(jitmem.MACHINE.endswith("-windows"), WINDOWS)

    def test_the_machine_is_right_for_every_kernel_and_interpreter(self):
        def machine(system, processor, maxsize=2**63 - 1, byteorder="little", version=""):
            with mock.patch.multiple(sys, platform=system, maxsize=maxsize, byteorder=byteorder, version=version), \
                    mock.patch.object(os, "uname", lambda: mock.Mock(machine=processor), create=True):
                return jitmem._machine()
        small = 2**31 - 1
        for expected, arguments in {
                "x86_64-sysv": ("linux", "x86_64"), "x86": ("linux", "x86_64", small), "aarch64": ("linux", "aarch64"),
                "arm": ("linux", "aarch64", small), "aarch64-apple": ("darwin", "arm64"),
                "x86_64-windows": ("win32", "", 2**63 - 1, "little", "3.13 [MSC v.1941 64 bit (AMD64)]"),
                "aarch64-windows": ("win32", "", 2**63 - 1, "little", "3.13 [MSC v.1941 64 bit (ARM64)]"),
                "mips64el": ("linux", "mips64"), "mips64": ("linux", "mips64", 2**63 - 1, "big"),
                "mipsel": ("linux", "mips64", small),
                "loongarch64": ("linux", "loongarch64"), "wasm32": ("emscripten", "")}.items():
            with self.subTest(expected):
                self.assertEqual(machine(*arguments), expected)
        self.assertEqual(machine("win32", "", small, "little", "3.13 [MSC v.1941 32 bit (Intel)]"), "x86")
        self.assertEqual(machine("freebsd14", "amd64"), "x86_64-sysv")

    def test_webassembly_imports_and_refuses_before_any_native_call(self):
        for system in "emscripten", "wasi":
            for without_ctypes in "", "sys.modules['_ctypes'] = None":
                with self.subTest(system, without=without_ctypes):
                    out = self.run_child(f"""
                        import sys
                        sys.platform = {system!r}
                        {without_ctypes}
                        import jitmem
                        for make in (lambda: jitmem.Memory(1), lambda: jitmem.function(b"\\xc3", None)):
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
            before = test_jitmem.mappings()
            with jitmem.Memory(10000) as memory:
                for code in (test_jitmem.ANSWER, test_jitmem.SAME, test_jitmem.ANSWER):
                    memory.write(test_jitmem.here(code), 5000)
                    memory.make_executable()
                    print(jitmem._query(memory.address + 5000), memory.function(ctypes.c_uint32, ctypes.c_uint32, offset=5000)(7))
                    memory.make_writable()
                    print(jitmem._query(memory.address), memory.read(5000, 4) == test_jitmem.here(code)[:4])
            print([row for row in test_jitmem.mappings() if "w" in row[2] and "x" in row[2] and row not in before])""")
        self.assertEqual(out.split("\n"), ["r-x 305419896", "rw- True", "r-x 7", "rw- True", "r-x 305419896", "rw- True", "[]"])

    def test_without_a_file_in_memory_the_refusal_names_the_policy(self):
        out = self.run_hardened("""
            import errno
            def refuse(): raise OSError(errno.ENOSYS, "injected")
            jitmem._memory_file = refuse
            memory = jitmem.Memory(100)
            memory.write(b"kept")
            try:
                memory.make_executable()
            except PermissionError as error:
                print(error)
            print(memory.protection, memory.read(0, 4))
            print(jitmem.info()["refused_by"])""")
        self.assertRegex(out, r"(?s)Errno 13.*mprotect\(0x.*refused by policy: MDWE: on.*\nrw- b'kept'\n\['MDWE'\]$")


class InstructionCache(Case):
    def test_changed_code_at_one_address_is_what_runs(self):
        with jitmem.Memory(64) as memory:
            for round in range(50):
                code = (SAME, ANSWER)[round % 2]
                memory.write(here(code))
                memory.make_executable()
                self.assertEqual(memory.function(c_uint32, c_uint32)(round), 0x12345678 if round % 2 else round)
                memory.make_writable()

    def test_a_failed_flush_leaves_the_memory_writable(self):
        def refuse(start, end):
            raise PermissionError(1, "injected")
        memory = jitmem.Memory(64)
        memory.write(here(ANSWER))
        with mock.patch.object(jitmem, "_cache_chosen", [("refused", refuse)]):
            self.raises(PermissionError, "injected", memory.make_executable)
        self.assertEqual((memory.protection, jitmem._query(memory.address)), ("rw-", "rw-"))
        self.assert_healthy(memory)

    def test_a_processor_nobody_knows_is_refused_not_guessed(self):
        with mock.patch.object(jitmem, "_PROCESSOR", "pdp11"), mock.patch.object(jitmem, "_SYSTEM_FLUSH", None):
            self.raises(NotImplementedError, "flush the instruction cache", jitmem._choose_cache)

    def test_our_own_routines_have_the_length_their_listings_say(self):
        self.assertEqual([len(jitmem._hex(jitmem._FLUSH_CODE[machine])) for machine in ("aarch64", "ppc64le", "loongarch64")],
                         [96, 56, 8])


class Point(Structure):
    _fields_ = [("x", c_int32), ("y", c_int32)]


class Either(Union):
    _fields_ = [("i", c_int32), ("f", c_float)]


class Integer:
    """An object that is an integer by __index__, and does something on the way."""
    def __init__(self, value, action=lambda: None):
        self.value, self.action = value, action

    def __index__(self):
        self.action()
        return self.value


class Signatures(Case):
    """The reference call: what goes in, what comes out, what is refused."""

    @classmethod
    def setUpClass(cls):
        cls.add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add")
        cls.add_doubles = jitmem.function(ADD_DOUBLES, c_double, c_double, c_double, name="add")
        cls.address = jitmem.function(SAME, c_void_p, c_void_p, name="address")

    def test_integers_of_every_width_arrive_whole_at_both_ends_of_their_range(self):
        for type_, low, high in ((c_int8, -2**7, 2**7 - 1), (c_uint8, 0, 2**8 - 1), (c_int16, -2**15, 2**15 - 1),
                                 (c_uint16, 0, 2**16 - 1), (c_int32, -2**31, 2**31 - 1), (c_uint32, 0, 2**32 - 1),
                                 (c_int64, -2**63, 2**63 - 1), (c_uint64, 0, 2**64 - 1)):
            if ctypes.sizeof(type_) > WORD:
                continue  # SAME passes one register
            same = jitmem.function(SAME, type_, type_, name="same")
            with self.subTest(type_):
                for value in (low, high, 0, 1, low + 1, high - 1):
                    self.assertEqual(same(value), value)
                fixed = f"c_{'u' * (low == 0)}int{8 * ctypes.sizeof(type_)}"
                for value in (low - 1, high + 1, 2**100, -2**100):
                    self.raises(OverflowError, rf"^same\(\) argument 1: {value} does not fit {fixed}$", same, value)

    def test_a_very_long_integer_is_refused_without_printing_it(self):
        self.raises(OverflowError, "argument 2: an integer of 100001 bits does not fit", self.add, 1, 1 << 100000)

    def test_an_integer_is_anything_with_index_and_nothing_else(self):
        self.assertEqual(self.add(Integer(2), True), 3)
        self.assertEqual(self.add(c_ssize_t(2), 3), 5)
        for value in ("3", 3.0, None, b"3", c_double(3), [3]):
            self.raises(TypeError, rf"^add\(\) argument 2 must be an integer, not {type(value).__name__}$", self.add, 2, value)

    def test_what_index_raises_is_what_the_caller_sees(self):
        def fail():
            raise LookupError("mine")
        self.raises(LookupError, "^mine$", self.add, 1, Integer(1, fail))

    def test_the_count_of_arguments_is_checked(self):
        for arguments in ((), (1,), (1, 2, 3)):
            self.raises(TypeError, rf"^add\(\) takes 2 arguments, not {len(arguments)}$", self.add, *arguments)
        self.raises(TypeError, r"^f\(\) takes no arguments, not 1$", jitmem.function(ANSWER, c_uint32, name="f"), 1)
        self.raises(TypeError, r"takes no keyword arguments", self.add, 1, b=2)

    def test_floating_arguments_take_real_numbers(self):
        self.assertEqual(self.add_doubles(1.5, 2), 3.5)
        self.assertEqual(self.add_doubles(Integer(1), True), 2.0)
        self.assertEqual(self.add_doubles(float("inf"), 1), float("inf"))
        self.assertNotEqual(self.add_doubles(float("nan"), 1), self.add_doubles(float("nan"), 1))
        for value in ("1", None, 1j, b"1"):
            self.raises(TypeError, rf"argument 1 must be a real number, not {type(value).__name__}", self.add_doubles, value, 1)
        self.raises(OverflowError, "argument 1: an integer of 5001 bits does not fit c_double", self.add_doubles, 1 << 5000, 1)

    def test_a_float_does_not_become_infinite_silently(self):
        add = jitmem.function(ADD_FLOATS, c_float, c_float, c_float, name="add")
        self.assertEqual(add(1.5, 0.25), 1.75)
        self.assertEqual(add(float("-inf"), 1), float("-inf"))
        self.raises(OverflowError, r"argument 2: -1e\+39 does not fit c_float", add, 1, -1e39)

    def test_a_c_bool_is_the_truth_of_anything(self):
        truth = jitmem.function(SAME, c_bool, c_bool)
        self.assertEqual([truth(value) for value in (True, False, 2, "", "x")], [True, False, True, False, True])

    def test_characters_and_text_arrive_as_they_are(self):
        self.assertEqual(jitmem.function(SAME, c_char, c_char)(b"x"), b"x")
        text, wide = jitmem.function(SAME, c_char_p, c_char_p), jitmem.function(SAME, c_wchar_p, c_wchar_p)
        self.assertEqual([text(b"abc"), text(None), text(c_char_p(b"d")), wide("h\u00e9"), wide(None)],
                         [b"abc", None, b"d", "h\u00e9", None])
        self.raises(TypeError, "argument 1 must be bytes or None, not str", text, "abc")
        self.raises(TypeError, "argument 1 must be str or None, not bytes", wide, b"abc")
        self.raises(TypeError, r"function\(\) argument 1: .* character", jitmem.function(SAME, c_char, c_char), b"xy")

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
            self.raises(OverflowError, f"argument 1: {value} is not an address", self.address, value)
        for value in ("text", 1.5, [1]):
            self.raises(TypeError, f"an address, None, a pointer or a buffer, not {type(value).__name__}", self.address, value)
        self.raises(TypeError, r"not c_\w+; byref\(\) makes a pointer", self.address, c_int(5))

    def test_a_pointer_result_is_an_address_or_none(self):
        typed = jitmem.function(SAME, POINTER(c_int32), POINTER(c_int32))
        items = (c_int32 * 2)(8, 9)
        self.assertEqual(typed(items)[1], 9)
        self.assertFalse(typed(None))

    def test_buffers_are_passed_in_place(self):
        store = jitmem.function(STORE, None, c_void_p, c_ssize_t)
        for target in (bytearray(b"abc"), array.array("B", b"abc"), memoryview(bytearray(b"abc")), (c_char * 3)(*b"abc")):
            self.assertIsNone(store(target, ord("z")))
            self.assertEqual(bytes(target), b"zbc")
        self.assertTrue(self.address(b"read-only"))
        self.raises(BufferError, "argument 1 must be C-contiguous", self.address, memoryview(b"abcdef")[::2])

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
        self.raises(TypeError, "argument 1 has items of 4 bytes, format 'f': not c_(int|long)", first, array.array("f", [1]))
        self.raises(TypeError, "argument 1 has items of 2 bytes", first, array.array("h", [1]))
        self.raises(TypeError, "argument 1 has items of 1 bytes", first, bytearray(4))
        self.raises(TypeError, "read-only.*c_void_p takes", first, b"1234")
        self.raises(TypeError, r"first\(\) argument 1", first, byref(point))
        self.raises(TypeError, r"must be LP_c_\w+, not LP_c_double", first, ctypes.pointer(c_double()))

    @unittest.skipIf(PYPY or jitmem._PROCESSOR not in ("x86_64", "aarch64", "riscv64"),
                     "small structures by value are in one register by these conventions; PyPy's libffi is its own")
    def test_structures_and_unions_travel_by_value(self):
        same = jitmem.function(SAME, Point, Point, name="same")
        point = same(Point(3, -4))
        self.assertEqual((point.x, point.y), (3, -4))
        self.raises(TypeError, r"same\(\) argument 1: expected Point instance", same, 5)
        self.assertEqual(jitmem.function(SAME, c_int32, Either)(Either(7)), 7)
        adapted = type("Adapted", (), {"_as_parameter_": type("Again", (), {"_as_parameter_": Point(5, 6)})()})()
        self.assertEqual(same(adapted).y, 6)

    def test_an_adapter_of_itself_is_a_recursion_error(self):
        adapter = type("Adapter", (), {})()
        adapter._as_parameter_ = adapter
        for type_ in c_void_p, POINTER(c_int), c_int * 3, Point, Either:
            self.raises(RecursionError, "", jitmem.function(SAME, None, type_), adapter)

    def test_a_pointer_is_no_structure(self):
        adapted = type("Adapted", (), {"_as_parameter_": byref(c_int(1))})()
        for type_ in Point, Either:
            same = jitmem.function(SAME, None, type_, name="same")
            for pointer in byref(c_int(1)), byref(type_()), adapted:
                self.raises(TypeError, r"same\(\) argument 1.* (not a pointer|instead of LP_\w+)", same, pointer)

    def test_function_types_take_callbacks_and_functions(self):
        call = jitmem.function(CALL, c_ssize_t, CALLBACK, c_ssize_t, name="call")
        self.assertEqual(call(CALLBACK(lambda value: value + 1), 41), 42)
        self.assertEqual(call(jitmem.function(SAME, c_ssize_t, c_ssize_t), 7), 7)
        self.raises(TypeError, "argument 1 must be of the very CFUNCTYPE in argtypes, .* not builtin", call, abs, 7)

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
        for type_ in (int, "c_int", 5, c_int(5), None, c_int32.__ctype_be__ if sys.byteorder == "little" else c_int32.__ctype_le__):
            self.raises(TypeError, "argtype 1 must be a ctypes type such as c_int64, not", jitmem.function, SAME, c_int, type_)
        for type_ in (int, "c_int", lambda value: value):
            self.raises(TypeError, "restype must be a ctypes type such as c_int64, not", jitmem.function, SAME, type_, c_int)
        self.raises(TypeError, "return no arrays", jitmem.function, SAME, c_int * 3, c_int)
        self.raises(TypeError, "at most 1024 arguments, not 1025", jitmem.function, SAME, c_int, *[c_int] * 1025)

    def test_signatures_of_a_user_type_let_it_go(self):
        def make():
            class Mine(Structure):
                _fields_ = [("x", c_int)]
            function = jitmem.function(SAME, c_void_p, POINTER(Mine))
            function(byref(Mine()))
            return weakref.ref(Mine) if sys.version_info >= (3, 14) else weakref.ref(function)  # older POINTER() keeps it
        reference = make()
        collect()
        collect()
        self.assertIsNone(reference())


class MemoryByHand(Case):
    def test_a_refused_allocation_leaves_nothing_to_free_and_can_be_tried_again(self):
        memory = jitmem.Memory.__new__(jitmem.Memory)
        with mock.patch.object(jitmem, "_allocate", side_effect=MemoryError("injected")):
            self.raises(MemoryError, "injected", memory.__init__, 64)
        memory.__del__()
        memory.__init__(64)
        self.assert_healthy(memory)
        memory.close()
        self.raises(ValueError, r"function\(\): the memory is closed", memory.function, c_uint32)

    def test_the_six_steps_make_a_function_and_take_the_memory_back(self):
        with jitmem.Memory(6) as memory:
            self.assertEqual((memory.size, memory.protection, jitmem._query(memory.address)), (6, "rw-", "rw-"))
            self.assertEqual(memory.read(), bytes(6))
            with jitmem.Memory(len(here(ANSWER))) as memory:
                self.assertEqual(memory.write(here(ANSWER)), len(here(ANSWER)))
                memory.make_executable()
                self.assertEqual((memory.protection, jitmem._query(memory.address)), ("r-x", "r-x"))
                self.assertEqual(memory.function(c_uint32)(), 0x12345678)
                address = memory.address
            self.assertEqual((memory.protection, memory.closed), ("---", True))
            self.assertNotEqual(jitmem._query(address), "r-x")

    def test_every_page_changes_and_goes(self):
        size = 64 * mmap.PAGESIZE + 1
        memory = jitmem.Memory(size)
        first, last = memory.address, memory.address + size - 1
        memory.write(b"\xee", size - 1)
        memory.make_executable()
        self.assertEqual((jitmem._query(last), memory.read(size - 1)), ("r-x", b"\xee"))
        memory.make_writable()
        self.assertEqual(jitmem._query(last), "rw-")
        memory.close()
        # Libraries that map memory while this looks take the end of what became free.
        self.assertNotEqual(jitmem._query(first), "rw-")

    def test_sizes_that_make_no_sense_are_refused(self):
        for size in (0, -1, -2**70):
            self.raises(ValueError, f"size must be at least 1 byte, not {size}", jitmem.Memory, size)
        for size in (2**64 + 4096, 2**64, 2**1000, sys.maxsize):
            self.raises(OverflowError, "do not fit the address space", jitmem.Memory, size)
        if WORD == 8:
            self.raises(MemoryError, "", jitmem.Memory, sys.maxsize - 2**24)
        for size in ("6", 6.0, None, b"6"):
            self.raises(TypeError, rf"Memory\(\) size must be an integer, not {type(size).__name__}", jitmem.Memory, size)

    def test_writes_and_reads_stay_inside(self):
        memory = jitmem.Memory(10)
        memory.write(b"0123456789")
        for data, offset in ((b"ab", 9), (b"a", 10), (b"a", -1), (b"a", 2**70), (bytes(11), 0)):
            self.raises(ValueError, r"write\(\): \d+ bytes at offset .* do not fit the 10 bytes", memory.write, data, offset)
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
            self.raises(TypeError, f"must be bytes or another buffer, not {type(data).__name__}", memory.write, data)
        for data in (bytearray(b"ab"), memoryview(b"ab"), array.array("B", b"ab"), memoryview(b"a-b-")[::2]):
            memory.write(data)
            self.assertEqual(memory.read(0, 2), b"ab")

    def test_writing_to_executable_and_calling_writable_memory_is_refused_with_the_remedy(self):
        memory = jitmem.Memory(64)
        memory.write(here(ANSWER))
        function = memory.function(c_uint32, name="answer")
        self.raises(ValueError, r"^answer\(\): the memory is rw-; call make_executable\(\) first$", function)
        memory.make_executable()
        self.raises(ValueError, r"write\(\): the memory is r-x; call make_writable\(\) first", memory.write, b"x")
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
            answer, add = memory.function(c_uint32), memory.function(c_ssize_t, c_ssize_t, c_ssize_t, offset=128, name="add")
            self.assertEqual((answer(), add(2, 3), add.address, add.size), (0x12345678, 5, memory.address + 128, 128))

    def test_after_close_everything_is_a_value_error_and_close_is_nothing(self):
        memory = executable(ANSWER)
        function = memory.function(c_uint32, name="answer")
        memory.close()
        memory.close()
        for call in (lambda: memory.write(b"a"), memory.read, memory.make_executable, memory.make_writable):
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
        quiet = mock.patch.object(sys, "unraisablehook", lambda unraisable: None)  # where it struck in a finalizer
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
                    self.assertEqual(memory.protection, jitmem._query(memory.address))
                if PYPY:
                    collect()  # what the interrupt kept from being released
                memory.make_writable()
                memory.write(code)
        self.assertGreater(interrupted, 0)
        memory.close()

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
            self.raises(ValueError, r"same\(\): the memory is rw-", each, same, Integer(5, memory.make_writable))
            memory.make_executable()
        memory.close()
        self.raises(ValueError, r"same\(\): the memory is closed", call, same, 5)
        self.raises(ValueError, "closed", lambda: same._as_parameter_)

    def test_a_refused_change_leaves_the_memory_executable_and_its_functions_callable(self):
        memory = executable(ANSWER)
        function = memory.function(c_uint32)
        with mock.patch.object(jitmem, "_protect", side_effect=MemoryError("injected")):
            self.raises(MemoryError, "injected", memory.make_writable)
        self.assertEqual((memory.protection, jitmem._query(memory.address), function()), ("r-x", "r-x", 0x12345678))
        self.assert_healthy(memory)

    def test_a_free_that_fails_leaves_the_memory_open(self):
        memory = jitmem.Memory(64)
        with mock.patch.object(jitmem, "_release", side_effect=MemoryError("injected")):
            self.raises(MemoryError, "injected", memory.close)
        self.assert_healthy(memory)
        memory.close()

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
            import builtins, jitmem, test_jitmem
            builtins.kept = jitmem.Memory(10), jitmem.function(test_jitmem.ANSWER, None)
            memory = jitmem.Memory(10)""")

    @unittest.skipIf(PYPY, "PyPy calls no finalizers at exit")
    def test_finalizers_at_interpreter_exit_may_call_functions(self):
        out = self.run_child("""
            import ctypes, jitmem, sys
            from test_jitmem import SAME
            class Last:
                def __init__(self):
                    self.calls = [(jitmem.function(SAME, ctypes.c_ssize_t, ctypes.c_wchar), "x"),  # by the reference
                                  (jitmem.function(SAME, ctypes.c_longdouble),), (jitmem.function(SAME, None),)]
                    if jitmem._ASSEMBLER:  # the reference's conversions of numbers need what is gone by then
                        self.calls[2] = jitmem.function(SAME, None, ctypes.c_ssize_t), 5
                    for function, *arguments in self.calls:
                        function(*arguments)
                    self.say = sys.stdout.write
                def __del__(self):
                    for function, *arguments in self.calls:
                        function(*arguments)
                        self.say("called ")
            sys.last = Last()""")
        self.assertEqual(out, "called called called")


def new_code(number):
    """Code that returns this number, and is unlike any other number's: for processors whose sample ends in a constant."""
    if jitmem._PROCESSOR in ("x86_64", "x86"):
        return b"\xb8" + struct.pack("<I", number) + b"\xc3"
    if jitmem._PROCESSOR == "arm":
        return here(ANSWER)[:8] + struct.pack("<I", number)
    if jitmem._PROCESSOR == "s390x":
        return b"\xc0\x2f" + struct.pack(">I", number) + b"\x07\xfe"
    words = list(struct.unpack("<3I", here(ANSWER)))
    high, low = number >> 16, number & 0xFFFF
    if jitmem._PROCESSOR == "aarch64":
        words[:2] = 0x52800000 | low << 5, 0x72A00000 | high << 5
    elif jitmem._PROCESSOR == "ppc64le":
        words[:2] = 0x3C600000 | high, 0x60630000 | low
    elif jitmem._PROCESSOR == "mips64el":
        words[0], words[2] = 0x3C020000 | high, 0x34420000 | low
    else:  # riscv64, whose second constant is signed
        low = (number & 0xFFF) - 0x1000 * (number >> 11 & 1)
        words[:2] = (number - low & 0xFFFFF000) | 10 << 7 | 0x37, (low & 0xFFF) << 20 | 10 << 15 | 10 << 7 | 0x1B
    return struct.pack("<3I", *words)


class Heap(Case):
    def setUp(self):
        jitmem.function(ANSWER, c_uint32)  # what the first load makes for good is made before

    def test_many_functions_share_a_mapping_and_none_overlap(self):
        fresh_chunks()
        functions = self.assert_loads(200)
        ends = sorted((function.address, function.address + function.size) for function in functions)
        self.assertTrue(all(before[1] <= after[0] for before, after in zip(ends, ends[1:])))
        self.assertTrue(all(function.address % 64 == 0 for function in functions))
        if jitmem._mechanism().startswith("sealed"):
            self.assertLessEqual(len({id(function._chunk) for function in functions}), 2)

    def test_code_larger_than_a_chunk_gets_one_of_its_own(self):
        size = jitmem._CHUNK + 5
        code = here(ANSWER) + bytes(size - len(here(ANSWER)))
        before = set(jitmem._mapped)
        function = jitmem.function(code, c_uint32)
        self.assertEqual((function(), function.size), (0x12345678, size))
        chunk, = set(jitmem._mapped) - before
        self.assertTrue(chunk.retired)
        del function
        collect()
        self.assertNotIn(chunk, jitmem._mapped)

    def test_all_memory_comes_back_when_the_functions_go(self):
        fresh_chunks()
        collect()
        before = set(jitmem._mapped)
        functions = self.assert_loads(3000 if not EMULATED else 300)
        functions += [jitmem.function(here(ANSWER) + bytes(20000), c_uint32) for _ in range(50)]
        self.assertGreater(len(jitmem._mapped), len(before))
        del functions
        collect()
        fresh_chunks()
        self.assertEqual(set(jitmem._mapped) - before, set())

    def test_a_chunk_in_use_stays_and_goes_with_its_last_function(self):
        fresh_chunks()
        first, *others = self.assert_loads(20)
        chunk, address = first._chunk, first.address
        fresh_chunks()
        others.clear()
        collect()
        self.assertEqual((first(), jitmem._query(address)), (0x01000000, "r-x"))
        del first
        collect()
        self.assertNotIn(chunk, jitmem._mapped)
        if not PYPY:
            self.assertNotEqual(jitmem._query(address), "r-x")

    def test_a_failed_load_publishes_nothing_and_the_next_one_works(self):
        for failure in (OSError(28, "injected"), MemoryError("injected"), KeyboardInterrupt()):
            fresh_chunks()
            self.assert_loads(1)
            with self.subTest(failure), mock.patch.multiple(jitmem, _MUST_FLUSH=True, _flush=mock.Mock(side_effect=failure)):
                with self.assertRaises(type(failure)):
                    jitmem.function(ANSWER, c_uint32)
                self.assertEqual(jitmem._open_chunks, [])
            self.assert_loads(5)

    def test_a_timeout_raised_by_a_signal_handler_is_no_refusal_of_the_systems(self):
        # TimeoutError is an OSError, and of those the system's have the heap try again or make do with pages.
        def once(real):
            def call(*args):
                if calls.append(1) or len(calls) == 1:
                    raise TimeoutError("injected")
                return real(*args)
            calls = []
            return call
        for holder, name in ((jitmem, "_open_file"), (os, "lseek"), (jitmem, "_trampoline")):
            if holder is os and not self.assert_loads(1)[0]._chunk.mark or name == "_trampoline" and not jitmem._ASSEMBLER:
                continue
            fresh_chunks()
            if holder is os:
                self.assert_loads(1)
            types = c_uint32, *[c_uint32] * 3 * (name == "_trampoline")
            with self.subTest(name), mock.patch.object(jitmem, "_write_checked", None), \
                    mock.patch.object(holder, name, once(getattr(holder, name))), mock.patch.dict(jitmem._signatures, clear=True):
                self.raises(TimeoutError, "injected", jitmem.bind if types[1:] else jitmem.function,
                            4096 if types[1:] else ANSWER, *types)
            self.assert_loads(3)

    @mock.patch.object(jitmem, "_write_checked", None)
    def test_memory_that_reads_back_differently_is_not_published(self):
        fresh_chunks()
        jitmem._open_chunks.append(jitmem._Chunk(jitmem._CHUNK))
        jitmem._open_chunks[0].view = memoryview(bytes(jitmem._CHUNK))
        self.raises(OSError, "does not hold what was written", jitmem.function, ANSWER, c_uint32)
        self.assert_loads(5)

    def test_protected_pages_serve_where_there_are_no_sealed_files(self):
        fresh_chunks()
        with mock.patch.object(jitmem, "_open_file", side_effect=OSError(38, "injected")):
            functions = self.assert_loads(100 if not EMULATED else 40)
            self.assertIn("protected pages (no sealed file: [Errno 38] injected)", jitmem.info()["code_memory"])
        self.assertEqual({jitmem._query(function.address) for function in functions}, {"r-x"})
        self.assertEqual(len({function.address // mmap.PAGESIZE for function in functions}), len(functions))
        del functions
        collect()
        fresh_chunks()

    def test_an_interrupt_before_a_chunk_is_counted_in_does_not_count_out(self):
        class Interrupting(list):
            def append(self, item):
                raise KeyboardInterrupt
        fresh_chunks()
        function, = self.assert_loads(1)
        chunk = function._chunk
        counts, chunk.born = chunk.born, Interrupting(chunk.born)
        with self.assertRaises(KeyboardInterrupt):
            jitmem.function(ANSWER, c_uint32)
        self.assertEqual((function(), len(chunk.dead)), (0x01000000, 0))
        chunk.born = counts

    def test_a_finalizer_called_twice_counts_once_and_nothing_revives_the_function(self):
        fresh_chunks()
        function, other = self.assert_loads(2)
        for finish in function.__del__, function.__del__, function.close:
            finish()
            self.raises(ReferenceError, "is being collected", function)
        fresh_chunks()
        del function
        collect()
        self.assertEqual(other(), 0x01000001)

    @unittest.skipIf(PYPY, "PyPy finalizes a cycle in order, and its ctypes classes are not collected at once")
    def test_cycles_are_collected_without_a_call_into_memory_that_is_gone(self):
        out = self.run_child("""
            import gc, sys, jitmem, test_jitmem
            from ctypes import Structure, c_double, c_uint32, c_void_p
            from test_jitmem import ANSWER, SAME, ADD_DOUBLES
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
                    caller.functions = [jitmem.function(ANSWER, c_uint32, keep=caller), code.function(c_uint32, keep=caller)]
                    caller.code = code
                    if _ % 100 == 0:
                        gc.collect()
            cycles(int(sys.argv[1]))
            gc.collect(); gc.collect()
            test_jitmem.fresh_chunks()
            print(sum(answers.values()), len(set(jitmem._mapped) - set(jitmem._open_permanent)),
                  jitmem.info()["functions"])
            cycles(50)  # and at exit""", "100" if EMULATED else "1000")
        self.assertEqual(out, f"{200 if EMULATED else 2000} 0 0")

    @unittest.skipUnless(TIMER, "no interval timer here")
    def test_a_load_from_a_signal_handler_in_the_middle_of_loads(self):
        loaded, enough = [], 5000 if STRESS else 100

        def load(*_):
            loaded.extend(self.assert_loads(1, 0x02000000 + len(loaded)))
            signal.setitimer(signal.ITIMER_REAL, 0.0005)  # not before: on a slow machine handlers would pile up
        with on_alarm(load):
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            for round in itertools.count():
                self.assert_loads(20, 0x03000000 + round % 1000 * 20)
                if len(loaded) >= enough:
                    break
        self.assertEqual([function() for function in loaded], [0x02000000 + number for number in range(len(loaded))])

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
        self.run_threads(*(functools.partial(work, number) for number in range(8)), *[fork] * (2 if STRESS and FORKS else 0))

    @unittest.skipUnless(FORKS, "for systems that fork")
    def test_a_forked_child_runs_what_it_inherited_and_leaves_its_parents_chunks_alone(self):
        fresh_chunks()
        inherited = self.assert_loads(10)
        chunk = inherited[0]._chunk

        def in_child():
            self.assertEqual(jitmem._open_chunks, [])
            mine = self.assert_loads(10, 0x05000000)
            self.assertIsNot(mine[0]._chunk, chunk)
            self.assertEqual([function() for function in inherited], [0x01000000 + number for number in range(10)])
            self.assertEqual(chunk.file, -1)
        self.fork(in_child)
        later = self.assert_loads(10, 0x06000000)
        self.assertIs(later[0]._chunk, chunk)
        self.assertEqual([function() for function in inherited], [0x01000000 + number for number in range(10)])

    @unittest.skipUnless(FORKS and TIMER, "for systems that fork")
    def test_forks_in_the_middle_of_loads_never_mix_two_processes_codes(self):
        children, began, number, enough, status = [], [], 0, 0, 1  # began: in a child, the number at which it was forked

        def fork(*_):
            pid = os.fork()
            if not pid:
                began.append(number)
                return
            children.append(pid)
            if len(children) < enough:
                signal.setitimer(signal.ITIMER_REAL, 0.002)
        paged = mock.patch.object(jitmem, "_open_file", side_effect=OSError(38, "injected"))
        with warnings.catch_warnings(), on_alarm(fork):
            warnings.simplefilter("ignore")
            try:
                for kind in contextlib.nullcontext(), paged:
                    fresh_chunks()
                    enough, kept = enough + (10 if PYPY or EMULATED else 500 if STRESS else 50), []
                    with kind:
                        signal.setitimer(signal.ITIMER_REAL, 0.002)
                        while len(children) < enough and not (began and number > began[0] + 8):
                            number += 1
                            for size in 0, 9000, 60000:
                                value = number << 1 | bool(began)
                                kept.append((jitmem.function(new_code(value) + bytes(size), c_uint32), value))
                            kept = kept[-30:]
                            self.assertEqual([function() for function, value in kept], [value for function, value in kept])
                    if began:
                        break
                status = 0
            finally:
                if began:
                    os._exit(status)
        self.assertEqual([os.waitpid(pid, 0)[1] for pid in children], [0] * enough)
        fresh_chunks()

    @unittest.skipUnless(LINUX and not EMULATED, "MADV_WIPEONFORK is Linux's, and emulators may ignore it")
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

    @unittest.skipUnless(LINUX and not EMULATED, "MADV_WIPEONFORK is Linux's, and emulators may ignore it")
    def test_a_child_forked_by_another_library_leaves_its_parent_the_chunk_that_is_too_full_for_it(self):
        fresh_chunks()
        large = here(ANSWER) + bytes(jitmem._CHUNK // 8 - len(here(ANSWER)))
        functions = self.assert_loads(1)
        chunk = functions[0]._chunk
        while chunk.room >= len(large):
            functions.append(jitmem.function(large, c_uint32))
        pid = ctypes.CDLL(None).fork()
        if not pid:
            status = 1
            with contextlib.suppress(BaseException):
                status = int(jitmem.function(large, c_uint32)() != 0x12345678)
            os._exit(status)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertIs(self.assert_loads(1)[0]._chunk, chunk)


@unittest.skipUnless(jitmem._mechanism().startswith("sealed"), "for systems with sealed files")
class SealedFiles(Case):
    """What the kernel itself promises of code memory on Linux."""

    def load(self, count=1):
        fresh_chunks()
        return self.assert_loads(count)

    def chunk_row(self, chunk):
        row, = [row for row in mappings() if row[0] <= chunk.address < row[1]]
        return row

    def test_no_mapping_of_code_is_writable_not_even_an_alias(self):
        function, = self.load()
        row = self.chunk_row(function._chunk)
        self.assertEqual(row[2], "r-xs")
        self.assertEqual([other for other in mappings() if other[3] == row[3] and "w" in other[2]], [])

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
            self.raises(OSError, "", os.ftruncate, function._chunk.file, size)

    def test_a_full_chunk_refuses_every_write(self):
        function, = self.load()
        chunk = function._chunk
        file = os.dup(chunk.file)
        self.addCleanup(os.close, file)
        fresh_chunks()
        self.assertEqual((chunk.retired, chunk.file), (True, -1))
        self.assert_mapping_is_fixed(chunk)
        self.raises(OSError, "", os.pwrite, file, b"\xcc", 0)
        self.raises(OSError, "", mmap.mmap, file, mmap.PAGESIZE)
        for size in (0, jitmem._CHUNK * 2):
            self.raises(OSError, "", os.ftruncate, file, size)
        punch = ctypes.CDLL(None, use_errno=True).fallocate64
        punch.argtypes = c_int, c_int, c_int64, c_int64
        self.assertEqual(punch(file, 3, 0, mmap.PAGESIZE), -1)  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        self.assertEqual(function(), 0x01000000)

    def test_a_stolen_descriptor_is_left_to_its_new_owner(self):
        out = self.run_child("""
            import os, tempfile, jitmem, ctypes
            from test_jitmem import new_code
            first = [jitmem.function(new_code(5), ctypes.c_uint32) for _ in range(3)]
            chunk = jitmem._open_chunks[-1]
            number, size = chunk.file, jitmem._CHUNK
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
            with open(path, "rb") as file:
                print(file.read() == b"\\5" * size, chunk.file == number, os.lseek(number, 0, 1))""")
        self.assertEqual(out, "True True 0")

    def test_another_sealed_file_on_our_number_is_not_taken_for_ours(self):
        function, = self.load()
        chunk = function._chunk
        ours, (other, address) = os.dup(chunk.file), jitmem._open_file(jitmem._CHUNK)
        os.dup2(other, chunk.file)
        number = chunk.file
        self.assertIsNot(self.assert_loads(1)[0]._chunk, chunk)
        self.assertEqual(os.pread(number, 64, 0) + os.pread(number, 64, 64), bytes(128))
        for file in (ours, other, number):
            os.close(file)
        jitmem._release(address, jitmem._CHUNK)

    def test_a_failed_or_short_write_retires_the_chunk_and_is_passed_on(self):
        for message, write in (("No space left", mock.Mock(side_effect=OSError(28, "No space left on device"))),
                               ("could not be written whole", lambda file, data, offset: os.pwrite(file, data[:3], offset))):
            function, = self.load()
            with self.subTest(message), mock.patch.multiple(jitmem, _write_checked=None, _write_file=write):
                self.raises(OSError, message, jitmem.function, ANSWER, c_uint32)
            self.assertTrue(function._chunk.retired)
            self.assertIsNot(self.assert_loads(2)[0]._chunk, function._chunk)

    def run_limited(self, limit, value):
        return self.run_child(f"""
            import ctypes, resource, jitmem, test_jitmem
            from test_jitmem import new_code
            first = jitmem.function(new_code(5), ctypes.c_uint32)
            limits = resource.getrlimit(resource.{limit})
            test_jitmem.fresh_chunks()
            resource.setrlimit(resource.{limit}, ({value}, limits[1]))
            functions = [jitmem.function(new_code(i), ctypes.c_uint32) for i in range(30)]
            print(all(function._chunk.mark == 0 for function in functions),
                  [function() for function in functions] == list(range(30)))
            resource.setrlimit(resource.{limit}, limits)
            test_jitmem.fresh_chunks()
            again = jitmem.function(new_code(7), ctypes.c_uint32)
            print(again._chunk.mark != 0, again(), first())""")

    def test_without_descriptors_to_spare_protected_pages_serve(self):
        self.assertEqual(self.run_limited("RLIMIT_NOFILE", 3), "True True\nTrue 7 5")

    def test_with_a_limit_on_file_sizes_protected_pages_serve(self):
        out = self.run_limited("RLIMIT_FSIZE", 4096)
        if EMULATED and out.startswith("False"):
            self.skipTest("this emulator does not enforce RLIMIT_FSIZE")
        self.assertEqual(out, "True True\nTrue 7 5")

    def test_without_proc_protected_pages_serve(self):
        fresh_chunks()
        with mock.patch.object(os, "open", side_effect=FileNotFoundError(2, "no /proc")):
            function, = self.assert_loads(1)
        self.assertEqual(function._chunk.mark, 0)

    def test_without_memfd_create_in_libc_the_system_call_serves(self):
        native = jitmem._native
        with mock.patch.object(jitmem, "_native", lambda name, *types: None if name == "memfd_create" else native(name, *types)):
            file = jitmem._memory_file()
        self.addCleanup(os.close, file)
        if not EMULATED:
            self.assertIn("memfd:jitmem", os.readlink(f"/proc/self/fd/{file}"))
        self.assertEqual(os.fstat(file).st_size, 0)

    def test_before_linux_6_3_the_flag_it_does_not_know_is_left_out(self):
        asked = []

        def create(name, flags):
            asked.append(flags)
            if flags & 8:
                raise OSError(22, "Invalid argument")
            return 77
        with mock.patch.object(jitmem, "_native", lambda *_: create):
            self.assertEqual((jitmem._memory_file(), asked), (77, [11, 3]))

    def test_the_write_in_machine_code_fails_where_the_one_in_python_does(self):
        function, = self.load()
        chunk, code, write = function._chunk, b"12345678", jitmem._write_checked
        if write is None:
            self.skipTest("no trampolines on this machine")
        place = (len(code), 4096, chunk.address + 4096)
        self.assertEqual(write(chunk.file, chunk.mark, code, *place), 1)
        self.assertEqual(bytes(chunk.view[4096:4104]), code)
        self.assertEqual(write(chunk.file, chunk.mark + 1, code, *place), 0)  # another file
        self.assertEqual(write(-1, chunk.mark, code, *place), 0)  # none
        self.assertEqual(write(chunk.file, chunk.mark, code, 8, chunk.size, chunk.address), 0)  # beyond its sealed size
        self.assertEqual(write(chunk.file, chunk.mark, code, 8, 8192, chunk.address), 0)  # does not read back

    def test_a_chunk_that_cannot_be_sealed_is_closed_all_the_same(self):
        function, = self.load()
        chunk = function._chunk
        file = chunk.file
        with mmap.mmap(file, mmap.PAGESIZE):  # a writable mapping: F_SEAL_WRITE answers EBUSY
            fresh_chunks()
            self.raises(OSError, "Errno 9", os.fstat, file)
        self.assertEqual((chunk.file, function()), (-1, 0x01000000))

    def test_descriptors_are_not_inherited_by_programs(self):
        function, = self.load()
        self.assertFalse(os.get_inheritable(function._chunk.file))

    def test_hardened_systems_run_it_all_with_no_writable_alias(self):
        out = self.run_hardened("""
            functions = [jitmem.function(test_jitmem.new_code(i), ctypes.c_uint32) for i in range(6000)]
            rows = test_jitmem.mappings()
            ours = {row[3] for row in rows if "memfd:jitmem" in row[3]}
            print([function() for function in functions] == list(range(6000)), jitmem.info()["code_memory"], bool(ours),
                  [row for row in rows if "w" in row[2] and ("x" in row[2] or row[3] in ours)])
            # and without sealed files, each page by a file of its own
            test_jitmem.fresh_chunks()
            def refuse(size): raise OSError(38, "injected")
            jitmem._open_file = refuse
            functions = [jitmem.function(test_jitmem.new_code(i), ctypes.c_uint32) for i in range(100)]
            print([function() for function in functions] == list(range(100)))""")
        self.assertEqual(out.replace(" []", " [...]") if not PYPY else re.sub(r" \[.*\]", " [...]", out),
                         "True sealed file (memfd) True [...]\nTrue")


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
        "sar r10, 63": "49c1fa3f",  # sar r10, 63
        "extend rax, rdi, 1, 1": "480fbec7",  # movsx rax, dil
        "extend rax, rdi, 4, 0": "8bc7",  # mov eax, edi
        "narrow f0, f1": "f20f5ac1",  # cvtsd2ss xmm0, xmm1
        "widen f2, f2": "f30f5ad2",  # cvtss2sd xmm2, xmm2
        "call rax": "ffd0",  # call rax
        "call [r12 + 16]": "41ff542410",  # call qword ptr [r12+16]
        "jump [rdi + 8]": "ff6708",  # jmp qword ptr [rdi+8]
        "increment [r12 + 8]": "f049ff442408",  # lock inc qword ptr [r12+8]
        "exchange rdx, [rdi + 0]": "48875700",  # xchg qword ptr [rdi+0], rdx
    }
    AARCH64 = {
        "move x19, x0": "f30300aa",  # mov x19, x0
        "set x0, 0": "000080d2",  # mov x0, 0
        "set x9, -1": "09008092",  # movn
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
        "sar x10, 63": "4afd7f93",  # asr x10, x10, 63
        "extend x0, x7, 1, 1": "e01c4093",  # sxtb x0, w7
        "extend x0, x7, 4, 0": "e003072a",  # mov w0, w7
        "narrow f0, f1": "2040621e",  # fcvt s0, d1
        "widen f2, f2": "42c0221e",  # fcvt d2, s2
        "call x16": "00023fd6",  # blr x16
        "call [x20 + 16]": "900a40f900023fd6",  # ldr x16, [x20, 16]; blr x16
        "jump [x0 + 8]": "100440f900021fd6",  # ldr x16, [x0, 8]; br x16
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
        for processor, offset in ((x86_64, 2**31), (aarch64, 32768), (aarch64, 257), (aarch64, -257)):
            self.raises(AssertionError, "offset", self.assembled, processor, f"load arg0, [arg1 + {offset}]")
        self.raises(AssertionError, "distance", self.assembled, aarch64, "lea arg0, [arg1 + 16777216]")

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
            made = [self.assembled(processor, "lea arg0, [arg1 + PLACE]", PLACE=i) for i in (8, 16, 8)]
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
            functions = code.function(c_uint32), code.function(c_ssize_t, c_ssize_t, c_ssize_t, offset=64, name="add")
            self.assertEqual((functions[0](), functions[1](2, 3), functions[1].address - code.address), (0x12345678, 5, 64))
            self.assertEqual((bytes(code), code.size, functions[1].size), (answer + add, 64 + len(add), len(add)))
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
        code = jitmem.Code(ANSWER)
        function, chunk = code.function(c_uint32), code._chunk
        del code
        collect()
        self.assertEqual(function(), 0x12345678)
        alive = len(chunk.born) - len(chunk.dead)
        del function
        collect()
        self.assertEqual(len(chunk.born) - len(chunk.dead), alive - 2)

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
            self.raises(ValueError, "outside the \\d+ bytes of code", code.function, c_int, offset=offset)
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


def fail():
    raise LookupError("from the argument")


class IntegerSubclass(int):
    pass


class FloatSubclass(float):
    pass


INTEGERS = {c_int8: 8, c_uint8: 8, c_int16: 16, c_uint16: 16, c_int32: 32, c_uint32: 32, c_int64: 64, c_uint64: 64}
POWERS = [2**bits + around for bits in (7, 8, 15, 16, 29, 30, 31, 32, 59, 60, 62, 63, 64, 65) for around in (-1, 0, 1)]
ANY_INTEGER = [0, 1, -1, 2, -2, 255, -255, *POWERS, *(-power for power in POWERS), True, False, 2**200, -2**200]
ANY_REAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-320, 1e308, -1e308, 3.4028234e38, 3.5e38, -3.5e38, 1e-46, float("inf"), float("-inf"),
            float("nan"), 2.0**53]
RELEASED = memoryview(b"released")
RELEASED.release()
ODD = [None, "1", b"1", 1j, [], object, Integer(5), Integer(-1), Integer(2**70), Integer(0, fail), Real(2.5), Real(-1.0),
       Real(0.0, fail), IntegerSubclass(7), IntegerSubclass(-1), IntegerSubclass(2**80), FloatSubclass(2.5), FloatSubclass(-1.0),
       c_int32(3), c_int64(3), c_double(1.5), c_void_p(9), c_char_p(b"x"), bytearray(b"buffer"), array.array("d", [1.0]),
       memoryview(b"abcdef"), memoryview(b"abcdef")[::2], byref(c_int32(1)), (c_int32 * 2)(1, 2), b"", bytearray(), RELEASED]


@unittest.skipUnless(jitmem._ASSEMBLER, "the reference serves here, and the tests above are of it")
class Calls(Case):
    """Trampolines against the reference: they must not be told apart."""

    def pick(self, types, which):
        """Code that returns one of its arguments: an integer or a pointer in the result register, a float in the first."""
        places = jitmem._ASSEMBLER(0).places([getattr(type_, "_type_", "") in tuple("fd") for type_ in types])
        self.assertIsNotNone(places)
        where, number = places[which]
        single = types[which] is c_float
        if jitmem._PROCESSOR == "aarch64":
            move = 0x1E604000 | number << 5 if where == "float" else 0xAA0003E0 | number << 16
            return struct.pack("<II", move, 0xD65F03C0)
        if where == "float":
            return bytes([0x0F, 0x28, 0xC0 | number, 0xC3])             # movaps xmm0, xmmN; ret
        if where == "integer":
            return bytes([0x48 | (number >> 3) << 2, 0x89, 0xC0 | (number & 7) << 3, 0xC3])  # mov rax, register; ret
        load = b"\xf3\x0f\x10" if single else b"\xf2\x0f\x10" if types[which] is c_double else b"\x48\x8b"
        return load + b"\x84\x24" + struct.pack("<i", 8 + number) + b"\xc3"  # mov rax or movss, movsd xmm0, [rsp+8+number]; ret

    def values(self, random, type_):
        if type_ in INTEGERS:
            common = ANY_INTEGER
        elif type_ in (c_float, c_double):
            common = [*ANY_REAL, 0, 1, -1, 2**53, 2**1024, -2**31]
        else:
            common = {c_bool: [True, False, 0, 1, 2], c_char_p: [None, b"abc", b""],
                      c_void_p: [None, 0, 1, 2**47, 2**63, 2**64 - 1, -1, 2**64, bytearray(b"x"), b"read-only"]}[type_]
        return random.choice(common if random.random() < 0.85 else ODD)

    def test_threads_that_make_the_first_function_at_once_make_one_type(self):
        out = self.run_child("""
            import ctypes, jitmem, sys
            def function():
                made.append(jitmem.function(bytes.fromhex(sys.argv[1]), ctypes.c_uint32))
            def while_another_thread_does_it(*arguments):
                jitmem._bail_out = bail_out
                function()
                return bail_out(*arguments)
            made, bail_out, jitmem._bail_out = [], jitmem._bail_out, while_another_thread_does_it
            function()
            print(len(made), len({type(each) for each in made} - {jitmem.Function}), *(each() for each in made))""",
                             here(ANSWER).hex())
        self.assertEqual(out, f"2 1 {0x12345678} {0x12345678}")

    def test_generated_calls_give_what_the_reference_gives(self):
        seed = int(os.environ.get("JITMEM_SEED", "20"))
        random, cases = Random(seed), 0
        types = [*INTEGERS, c_float, c_double, c_bool, c_void_p, c_char_p]
        while cases < 6000:
            argtypes = [random.choice(types) for _ in range(random.choice((1, 1, 2, 3, 4, 6, 8, 12, 20)))]
            if jitmem._ASSEMBLER(0).places([type_ in (c_float, c_double) for type_ in argtypes]) is None:
                continue
            which = random.randrange(len(argtypes))
            restype = argtypes[which]
            if restype is c_char_p and random.random() < 0.5:
                restype = c_void_p
            code = self.pick(argtypes, which)
            function = jitmem.function(code, restype, *argtypes, name="f")
            self.assertIsNot(type(function), jitmem.Function)
            for _ in range(8):
                arguments = [self.values(random, type_) for type_ in argtypes]
                if random.random() < 0.5:  # most of the time one wrong argument would hide the rest
                    arguments = [self.plain_value(random, type_) for type_ in argtypes]
                if random.random() < 0.04:
                    arguments = arguments[:-1] if random.random() < 0.5 else [*arguments, 1]
                expected = outcome(reference(function), arguments)
                found = outcome(function, arguments)
                if not (restype is c_char_p and expected[0] is bytes and found[0] is bytes and arguments[which] is not None):
                    self.assertEqual(found, expected, (seed, argtypes, which, arguments))
                cases += 1

    def plain_value(self, random, type_):
        if type_ in INTEGERS:
            low, high = (0, 2**INTEGERS[type_] - 1) if type_.__name__.startswith("c_u") else \
                (-2**(INTEGERS[type_] - 1), 2**(INTEGERS[type_] - 1) - 1)
            return random.choice([low, high, max(low, -1), 0, 1, random.randint(low, high)])
        if type_ in (c_float, c_double):
            return random.choice([value for value in ANY_REAL if abs(value) != 1e308 and abs(value) != 3.5e38])
        return random.choice({c_bool: [True, False], c_char_p: [b"abc", None], c_void_p: [None, 5, b"bytes", 2**64 - 1]}[type_])

    def test_every_type_gives_what_the_reference_gives_at_every_odd_value_and_count(self):
        for type_ in [*INTEGERS, c_float, c_double, c_bool, c_void_p, c_char_p, py_object]:
            if type_ is py_object:
                function = jitmem.function(ANSWER, c_uint32, type_)
            else:
                function = jitmem.function(self.pick([type_], 0), c_void_p if type_ is c_char_p else type_, type_, name="f")
            for value in [*ANY_INTEGER, *ANY_REAL, *ODD]:
                with self.subTest(type_, value=value):
                    self.assertEqual(outcome(function, [value]), outcome(reference(function), [value]))
            for arguments in ([], [1, 2], [None] * 30):
                self.assertEqual(outcome(function, arguments), outcome(reference(function), arguments))

    def test_numpy_values_give_what_the_reference_gives(self):
        try:
            import numpy
        except ImportError:
            self.skipTest("NumPy is not here")
        values = [numpy.int8(-1), numpy.uint64(2**64 - 1), numpy.float32(1.5), numpy.float64(-1.0), numpy.bool_(True),
                  numpy.zeros(3), numpy.zeros((4, 4))[:, 1], numpy.array(5), numpy.zeros(0), numpy.arange(3).astype(object)]
        for type_ in (c_int64, c_uint8, c_double, c_float, c_void_p, c_bool):
            function = jitmem.function(self.pick([type_], 0), type_, type_, name="f")
            for value in values * 2:
                with self.subTest(type_, value=value):
                    self.assertEqual(outcome(function, [value]), outcome(reference(function), [value]))
        array_ = numpy.arange(10.0)
        self.assertEqual(jitmem.function(SAME, c_void_p, c_void_p)(array_), array_.ctypes.data)

    def test_no_argument_and_the_longest_signature_are_served(self):
        self.assertEqual(jitmem.function(ANSWER, c_uint32)(), 0x12345678)
        self.assertIsNone(jitmem.function(ANSWER, None)())
        count = 8 if jitmem._PROCESSOR == "aarch64" else 24
        for which in range(count):
            function = jitmem.function(self.pick([c_int64] * count, which), c_int64, *[c_int64] * count)
            self.assertIsNot(type(function), jitmem.Function)
            self.assertEqual(function(*range(count)), which)
        mixed = [c_int64, c_double] * (8 if jitmem._PROCESSOR == "aarch64" else 12)
        for which in range(len(mixed)):
            function = jitmem.function(self.pick(mixed, which), mixed[which], *mixed)
            self.assertEqual(function(*range(len(mixed))), which)
        many = jitmem.function(self.pick([c_int64] * 30, 0) if count == 24 else here(SAME), c_int64, *[c_int64] * 30)
        self.assertIs(type(many), jitmem.Function)
        self.assertEqual(many(*range(5, 35)), 5)

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
        self.assertEqual(type("T", (), {"method": add})().method(1, 2), 3)  # no method: nothing is passed for self
        for arguments in ({"b": 2}, {"self": 1}, {"args": 1, "kwargs": 2}):
            self.raises(TypeError, r"^add\(\) takes no keyword arguments$", add, 1, **arguments)
            self.raises(TypeError, r"^add\(\) takes no keyword arguments$", reference(add), 1, **arguments)

    def test_an_empty_tuple_of_keywords_is_none(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t)
        call = ctypes.PyDLL("python", handle=ctypes.pythonapi._handle).PyVectorcall_Call
        call.restype, call.argtypes = py_object, (py_object, py_object, py_object)
        self.assertEqual(call(add, (1, 2), {}), 3)
        self.assertEqual(operator.methodcaller("add", 1, 2, **{})(type("T", (), {"add": add})()), 3)

    def test_values_kept_only_for_the_call_are_kept(self):
        class Lazy:
            @property
            def _as_parameter_(self):
                return jitmem.function(SAME, c_ssize_t, c_ssize_t)
        self.assertEqual(jitmem.function(CALL, c_ssize_t, c_void_p, c_ssize_t)(Lazy(), 5), 5)

    @unittest.skipUnless(WINDOWS, "HRESULT is Windows'")
    def test_failing_results_of_windows_are_exceptions(self):
        failing = jitmem.function(bytes.fromhex("b8 05 40 00 80 c3"), ctypes.HRESULT)  # mov eax, 0x80004005; ret
        self.raises(OSError, "", failing)

    def test_machine_code_that_raises_is_heard_if_it_takes_or_returns_objects(self):
        call = jitmem.function(CALL, py_object, c_void_p, py_object, name="call")
        self.assertEqual(call(ctypes.pythonapi.PyObject_Str, 55), "55")
        self.raises(TypeError, "", call, ctypes.pythonapi.PyObject_GetIter, 5)
        null = jitmem.function(SAME, py_object, c_void_p, name="null")
        self.raises(SystemError, r"^null\(\) returned NULL without setting an exception$", null, None)
        self.raises(SystemError, r"^null\(\) returned NULL without setting an exception$", reference(null), None)
        number = jitmem.function(CALL, c_ssize_t, c_void_p, py_object)
        self.assertEqual(number(ctypes.pythonapi.PyObject_Size, [1, 2]), 2)
        self.raises(TypeError, "has no len", number, ctypes.pythonapi.PyObject_Size, 5)

    def test_no_object_gains_or_loses_a_reference(self):
        data, real, number, text, thing = bytearray(b"abc"), 1e300 * 3, 10**15 + int(time.time()), b"abcdef" * 20, object()
        cases = [(jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t), (number, number)),
                 (jitmem.function(ADD_DOUBLES, c_double, c_double, c_double), (real, real)),
                 (jitmem.function(ADD_DOUBLES, c_double, c_double, c_double), (number, number)),
                 (jitmem.function(ADD_FLOATS, c_float, c_float, c_float), (real, real)),
                 (jitmem.function(ADD, c_int32, c_int32, c_int32), (number, thing)),
                 (jitmem.function(SAME, c_void_p, c_void_p), (data,)), (jitmem.function(SAME, c_void_p, c_void_p), (number,)),
                 (jitmem.function(SAME, c_void_p, c_void_p), (thing,)), (jitmem.function(SAME, c_char_p, c_char_p), (text,)),
                 (jitmem.function(ANSWER, None, c_void_p, c_void_p, c_int8), (data, data, number)),
                 (jitmem.function(ANSWER, None, py_object), (thing,)), (jitmem.function(ANSWER, c_bool, c_bool), (thing,)),
                 (jitmem.function(SAME, c_ssize_t, c_ssize_t), (number, number)), (jitmem.function(SAME, c_ssize_t, c_ssize_t), ())]
        objects = [data, real, number, text, thing, None, True, *(function for function, _ in cases)]
        rounds = 100000 if STRESS and not EMULATED else 2000

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
        changes = [after - first for first, after in zip(before, [sys.getrefcount(each) for each in objects])]
        self.assertTrue(all(abs(change) < 50 for change in changes), changes)
        data.append(1)  # nothing holds its buffer

    def test_calls_keep_the_stack_aligned_and_registers_preserved(self):
        if jitmem._PROCESSOR == "aarch64":
            code = bytes.fromhex("e0030091 c0035fd6")                   # mov x0, sp; ret
            expected = 0
        else:
            code, expected = bytes.fromhex("4889e0 c3"), 8              # mov rax, rsp; ret
        for count in range(9):
            for nogil in False, True:
                function = jitmem.function(code, c_size_t, *[c_int64] * count, nogil=nogil)
                self.assertEqual(function(*[1] * count) % 16, expected)
        check = jitmem.function(PRESERVES, c_int64, c_size_t, c_size_t, c_void_p, c_size_t)
        for types, arguments in (([c_int64, c_int64], [5, 6]), ([c_double, c_float], [1.5, 2]), ([c_int8] * 8, list(range(8))),
                                 ([c_void_p, c_int64], [bytearray(8), 1]), ([c_uint64, c_int64], [2**63, -2**62]), ([], [])):
            for nogil in False, True:
                function = jitmem.function(ANSWER, c_bool, *types, nogil=nogil)
                values = (py_object * len(arguments))(*arguments)
                for _ in range(3):
                    self.assertEqual(check(function._entry, id(function), ctypes.addressof(values), len(arguments)), 0)

    def test_arguments_are_widened_and_results_narrowed(self):
        for type_ in (c_int8, c_int16, c_int32, c_uint8, c_uint16, c_uint32):
            wide = jitmem.function(self.pick([type_], 0), c_int64, type_)
            narrow = jitmem.function(self.pick([c_int64], 0), type_, c_int64)
            bits = INTEGERS[type_]
            signed = not type_.__name__.startswith("c_u")
            for value in (0, 1, 2**(bits - 1) - 1, *([-1, -2**(bits - 1)] if signed else [2**bits - 1])):
                self.assertEqual(wide(value), value)
                self.assertEqual(narrow(value + (0x7F << 56)), value)

    def test_trampolines_are_shared_by_signature_and_outlive_functions(self):
        first, second = (jitmem.function(SAME, c_ssize_t, c_ssize_t) for _ in range(2))
        self.assertEqual(first._entry, second._entry)
        self.assertNotEqual(first._entry, jitmem.function(SAME, c_ssize_t, c_ssize_t, nogil=True)._entry)

    def test_integers_are_read_by_the_c_api_where_their_layout_is_unknown(self):
        with mock.patch.object(jitmem, "_int_layout", lambda: None), mock.patch.object(jitmem, "_signatures", {}):
            function = jitmem.function(self.pick([c_int64, c_uint64], 0), c_int64, c_int64, c_uint64, name="f")
        self.assertIsNot(type(function), jitmem.Function)
        for arguments in ((5, 6), (-1, 0), (0, 2**64 - 1), (0, -1), (2**63, 0), ("x", 1)):
            self.assertEqual(outcome(function, arguments), outcome(reference(function), arguments))


GUARD = sys.platform in ("linux", "darwin") and jitmem._PROCESSOR in ("x86_64", "aarch64")
# What wrong code does: the signal, the offset of the instruction (None: the processor was sent elsewhere), and the code.
FAULTS = {"x86_64": {
    "reads a null pointer": (11, 2, "31c0 8b00 c3"), "writes a null pointer": (11, 2, "31c0 8900 c3"),
    "reads a wild address": (11, 5, "b8f0ffff7f 8b00 c3"),
    "writes where no address is": (11, 10, "48b80000000000000080 8900 c3"),
    "calls a null pointer": (11, 2, "31c0 ffd0 c3"), "jumps to a null pointer": (11, None, "31c0 ffe0"),
    "is no instruction": (4, 0, "0f0b"), "is a breakpoint": (5, 1, "90 cc c3"), "is a long breakpoint": (5, 1, "90 cd03 c3"),
    "divides by zero": (8, 4, "31c0 31c9 f7f1 c3"),
    "is privileged": (11, 0, "f4 c3"), "loads a misaligned vector": (11, 0, "0f280424 c3"), "runs past its end": (5, 1, "90"),
    "jumps too far": (5, None, "eb1e"), "jumps too far back": (5, None, "eb80"),
    "leaves words on the stack": (11, None, "6a01 6a02 6a03 c3"),
    "clobbers the callee's registers": (11, 18, "31db 31ed 4531e4 4531ed 4531f6 4531ff 31c0 8b00 c3"),
    "smashes its return address": (11, None, "48c7042410000000 c3"), "loses its stack": (11, 2, "31e4 50 c3"),
    "exhausts its stack": (11, 0, "e8fbffffff c3"), "overwrites 4 KiB of stack": (4, 12, "4889e7 b900100000 30c0 f3aa 0f0b"),
    "overwrites 16 bytes of stack": (4, 18, "48c7042400000000 48c744240800000000 90 0f0b"),
    "sets the direction flag": (4, 1, "fd 0f0b"), "sets the trap flag": (5, 10, "9c 810c2400010000 9d 90 c3"),
    "checks alignment": (7, 9, "9c 810c2400000400 9d 8b442401 c3"), "unmasks MXCSR": (4, 13, "c744240800000000 0fae542408 0f0b"),
    "divides by zero with MXCSR unmasked": (8, 19, "c744240800000000 0fae542408 0f57c0 0f28c8 f30f5ec1 c3"),
    "fills the x87 stack": (4, 16, "d9e8d9e8d9e8d9e8d9e8d9e8d9e8d9e8 0f0b"),
}, "aarch64": {
    "reads a null pointer": (11, 4, "000080d2 000040f9"), "writes a null pointer": (11, 4, "000080d2 000000f9"),
    "reads a wild address": (11, 4, "e0ffffd2 000040f9"), "calls a null pointer": (11, 4, "000080d2 00003fd6 c0035fd6"),
    "jumps to a null pointer": (11, None, "000080d2 00001fd6"), "is no instruction": (4, 4, "1f2003d5 00000000"),
    "is a breakpoint": (5, 0, "000020d4"), "is privileged": (4, 0, "004018d5"), "runs past its end": (4, 4, "1f2003d5"),
    "jumps too far": (4, None, "10000014"), "loses its thread": (4, 4, "5fd01bd5 00000000"),
    "clobbers the callee's registers": (11, 20, "130080d2 140080d2 15008052 1c0080d2 000080d2 000040f9"),
    "smashes its return address": (11, None, "1e0280d2 c0035fd6"), "loses its stack": (11, 8, "090080d2 3f010091 e00f1ff8"),
    "exhausts its stack": (11, 0, "fd7bbfa9 ffffff97 c0035fd6"),
    "overwrites 4 KiB of stack": (4, 20, "e9030091 004080d2 3f8500f8 000400d1 c0ffffb5 00000000"),
    "changes the rounding": (4, 12, "00e0a3d2 00441bd5 08e4002f 00000000"),
}}.get(jitmem._PROCESSOR, {})
# What code that returns 0 has changed of what its caller relies on.
DAMAGE = {"x86_64": {
    "rbx": "31db 31c0 c3", "rbp": "48ffc5 31c0 c3", "r12": "4531e4 31c0 c3", "r13": "4531ed 31c0 c3",
    "r14": "4531f6 31c0 c3", "r15": "4531ff 31c0 c3", "the stack pointer": "58 6a00 50 31c0 c3",
    "rbx and r15": "31db 4531ff 31c0 c3",
    "the x87 stack": "d9e8d9e8d9e8d9e8d9e8d9e8d9e8d9e8 31c0 c3",  # fld1, eight times
    "the x87 control word": "6a00 d92c24 58 31c0 c3",
    "MXCSR": "c74424f800000000 0fae5424f8 31c0 c3", "the direction flag": "31c0 fd c3",
    "the alignment check flag": "9c 810c2400000400 9d b800000000 c3",
    "the thread pointer": "31c0 8ee0 c3",  # mov fs, eax
}, "aarch64": {
    **{f"x{i}": f"{0x13 + i - 19:02x}0080d2 000080d2 c0035fd6" for i in range(19, 29)},
    "v8": "08106e1e 000080d2 c0035fd6", "FPCR": "00e0a3d2 00441bd5 000080d2 c0035fd6",
    "the thread pointer": "5fd01bd5 000080d2 c0035fd6",
    "the stack pointer": "ff430091 000080d2 c0035fd6",
}}.get(jitmem._PROCESSOR, {})
TRAP = codes(x86_64="0f0b", aarch64="00000000")
CALL_DEEP = codes(x86_64="4883ec08 4889f8 4889f7 ffd0 4883c408 c3",  # ssize_t (f, a): f(a), which comes back here
                  aarch64="fd7bbfa9 e20300aa e00301aa 40003fd6 fd7bc1a8 c0035fd6")


def ever(number):
    """A signal; macOS tells SIGSEGV and SIGBUS apart in its own way."""
    return signal.SIGSEGV if sys.platform == "darwin" and number == signal.SIGBUS else number


def guarded_faults():
    return {what: (signal.SIGBUS if number == 7 else signal.Signals(number), offset,
                   jitmem.function(bytes.fromhex(code), c_ssize_t, name="wrong", guard=True))
            for what, (number, offset, code) in FAULTS.items()}


@unittest.skipUnless(GUARD, "no guard here")
class Guard(Case):
    @classmethod
    def setUpClass(cls):
        cls.add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, guard=True)
        cls.call = jitmem.function(CALL_DEEP, c_ssize_t, c_void_p, c_ssize_t, guard=True)
        cls.trap = jitmem.function(TRAP, None, guard=True)

    def fault_of(self, function):
        with self.assertRaises(jitmem.Fault) as caught:
            function()
        return caught.exception

    def assert_no_call_is_under_way(self):
        """All records of this thread are free, and there are few."""
        guard = jitmem._guard()
        thread = jitmem._Thread.from_address(guard.mine())
        counts = []
        for head, following in ("free", "next"), ("records", "another"):
            address, count = getattr(thread, head), 0
            while address and count < 100:
                address, count = getattr(jitmem._Record.from_address(address), following), count + 1
            counts.append(count)
        self.assertEqual((thread.current, counts[0]), (0, counts[1]))
        self.assertLess(counts[1], 20)

    def assert_process_healthy(self):
        """malloc, floating point, C functions, the GIL: what wrong code has left behind shows up here."""
        blocks = [bytearray(size) for size in (1, 500, 70000, 300000)]
        self.assertEqual(bytes(blocks[1] + blocks[2]), bytes(70500))
        tiny, huge, root = 5e-324, 1e308, 2 ** 0.5
        self.assertEqual((tiny * 2 / 2, huge * 10, 1 / 3 + 2 / 3, root * root), (tiny, float("inf"), 1.0, 2.0000000000000004))
        items, library = (c_int * 3)(3, 1, 2), ctypes.CDLL(None)
        library.qsort(items, c_size_t(3), c_size_t(4), CFUNCTYPE(c_int, POINTER(c_int), POINTER(c_int))(lambda a, b: a[0] - b[0]))
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
        all_done = threading.Barrier(4)  # a thread that began after another's end would take over that one's memory

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

        def all_threads(rounds):
            self.run_threads(*[functools.partial(work, rounds)] * 4)
            collect()
            writable = sum(end - start for start, end, permissions, _ in mappings() or () if permissions[1] == "w")
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
                    text = f"wrong(): SIGABRT: the code returned with {what} changed, which its caller relies on"
                    self.assertEqual((str(fault), fault.signal, fault.offset), (text, signal.SIGABRT, None))
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
        import jitmem, os, sys, threading, test_jitmem
        f = jitmem.function(bytes.fromhex(sys.argv[1]), None, guard=True, nogil=True)
        counts = [0] * 3
        def work(number):
            while True:
                f()
                counts[number] += 1
        for number in range(3):
            threading.Thread(target=work, args=(number,), daemon=True).start()
        test_jitmem.wait_until(lambda: min(counts) > 100)
        """

    def test_daemon_threads_may_be_in_guarded_calls_at_interpreter_exit(self):
        self.run_child(self.BUSY, here(SAME).hex())

    def test_finalizers_of_ended_threads_may_make_guarded_calls(self):
        out = self.run_child("""
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
            """, here(SAME).hex())
        self.assertEqual(out, "True")

    @unittest.skipIf(EMULATED, "QEMU's own locks do not survive a fork beside threads")
    def test_a_fork_amid_other_threads_guarded_calls_leaves_the_child_whole(self):
        out = self.run_child("""
            import os, warnings
            warnings.simplefilter("ignore")
            os.register_at_fork(after_in_child=lambda: f())""" + textwrap.indent(self.BUSY, "    ") + """
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
                    test_jitmem.wait_until(lambda: sum(thread.busy for thread in threads) == 1)
                    os._exit(0)
                print(os.waitpid(child, 0)[1], end=" ")
            sys.stdout.flush()
            os._exit(0)
            """, here(SAME).hex())
        self.assertEqual(out.split(), ["0"] * 10)

    @unittest.skipUnless(jitmem._PROCESSOR == "x86_64", "x86-64 code")
    def test_calls_within_calls_do_not_shorten_what_is_put_back_later(self):
        seen = []
        self.assertEqual(self.call(CALLBACK(lambda n: self.add(n, 1)), 5), 6)
        # 200 KiB of stack between a C function and this: sub rsp, 200 KiB + 8; call rdi; add rsp, …; ret
        deep = jitmem.function(bytes.fromhex("4881ec08200300 ffd7 4881c408200300 c3"), None, CFUNCTYPE(None))
        wipe = jitmem.function(bytes.fromhex("4889e7 b900000300 30c0 f3aa 0f0b"), None, guard=True)  # 192 KiB upwards

        def fault():
            with contextlib.suppress(jitmem.Fault):
                wipe()
                seen.append("returned")
            seen.append("alive")
        deep(CFUNCTYPE(None)(fault))
        self.assertEqual(seen, ["alive"])
        self.assert_process_healthy()

    def test_a_signal_that_waits_to_be_delivered_goes_on_waiting(self):
        out = self.run_child("""
            import jitmem, os, signal, sys
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTRAP, signal.SIGILL])
            os.kill(os.getpid(), signal.SIGTRAP)
            try:
                jitmem.function(bytes.fromhex(sys.argv[1]), None, guard=True)()
            except jitmem.Fault as fault:
                print(fault.signal.name)
            print(signal.sigpending() == {signal.SIGTRAP})
            """, here(TRAP).hex())
        self.assertEqual(out.split(), ["SIGILL", "True"])

    def test_arguments_on_the_stack_belong_to_the_code(self):
        if PYPY or jitmem._PROCESSOR != "x86_64":
            self.skipTest("long double on the stack is x86-64's, and PyPy has none")
        double = bytes.fromhex("db6c2438 d8c0 db7c2438 b807000000 c3")  # fld tbyte [rsp+56]; fadd st0; fstp tbyte [rsp+56]; …
        self.assertEqual(jitmem.function(double, c_int, *[ctypes.c_longdouble] * 4, guard=True)(1, 2, 3, 4), 7)

    def test_code_that_overwrites_its_caller_and_returns_is_a_fault(self):
        code = codes(x86_64="488d7c2408 b940000000 30c0 f3aa c3",  # 64 bytes from where it returns to
                     aarch64="e9030091 000280d2 3f8500f8 000400d1 c0ffffb5 c0035fd6")
        function = jitmem.function(code, c_ssize_t, guard=True)
        with self.assertRaisesRegex(jitmem.Fault, "wrote over its caller's stack frame, and returned") as caught:
            function()
        fault = caught.exception
        self.assertEqual((fault.signal, fault.offset, fault.address, fault.registers), (signal.SIGABRT, None, None, None))
        self.assert_process_healthy()

    def test_good_calls_mean_what_they_mean_without_guard(self):
        many = codes(x86_64="488b442408 4801f8 c3", aarch64="e80340f9 0000088b c0035fd6")  # first + the first on the stack
        self.assertEqual(jitmem.function(many, c_int64, *[c_int64] * (7 if jitmem._PROCESSOR == "x86_64" else 9), guard=True)(
            1, *range(5 if jitmem._PROCESSOR == "x86_64" else 7), 41), 42)
        self.assertEqual(jitmem.function(ADD_DOUBLES, c_double, c_double, c_double, guard=True)(1.5, 2.25), 3.75)
        self.assertEqual(jitmem.function(SAME, c_char_p, c_char_p, guard=True)(b"text"), b"text")
        if jitmem._PROCESSOR == "x86_64" and not PYPY:
            self.assertEqual(jitmem.function(bytes.fromhex("d9e8 c3"), ctypes.c_longdouble, guard=True)(), 1.0)  # fld1
            # fnclex; mov dword [rsp-8], 0; fldcw [rsp-8]; fld1; ret
            masks = jitmem.function(bytes.fromhex("dbe2 c74424f800000000 d96c24f8 d9e8 c3"), ctypes.c_longdouble, guard=True)
            self.raises(jitmem.Fault, "with the x87 control word changed", masks)
            self.assert_process_healthy()
        add = jitmem.function(ADD, c_int64, c_int64, c_int64, name="add", guard=True)
        self.raises(TypeError, r"^add\(\) argument 2 must be an integer, not str$", add, 2, "3")
        self.raises(OverflowError, "does not fit", add, 2**63, 0)
        add.close()
        self.raises(ValueError, "is closed", add, 1, 2)

    def test_a_fault_says_what_happened(self):
        code = codes(x86_64="b8efbe0000 8b08 c3", aarch64="e0dd9752 010040f9")  # reads address 0xbeef, in rax or x0
        read = jitmem.function(code, None, name="read", guard=True)
        fault = self.fault_of(read)
        offset = 5 if jitmem._PROCESSOR == "x86_64" else 4
        self.assertRegex(str(fault), rf"^read\(\): SIGSEGV: (read|access) of address 0xbeef, at offset {offset} of 8$")
        self.assertIs(fault.signal, signal.SIGSEGV)
        self.assertEqual((fault.offset, fault.address), (offset, 0xbeef))
        registers = fault.registers
        self.assertEqual(registers.get("rax", registers.get("x0")), 0xbeef)
        self.assertEqual(registers.get("rip", registers.get("pc")), read.address + offset)
        again = pickle.loads(pickle.dumps(fault))
        self.assertEqual((type(again), str(again), vars(again)), (jitmem.Fault, str(fault), vars(fault)))

    def test_aarch64_says_read_or_write_where_the_kernel_does(self):
        guard = jitmem._guard()
        for syndrome, word in ((0x92000046, "write"), (0x92000006, "read")):
            records = struct.pack("<II", 0x46508001, 16) + bytes(8) + struct.pack("<IIQII", 0x45535201, 16, syndrome, 0, 0)
            for found, expected in ((records, word), (records[:16] + bytes(16), "access")):
                with mock.patch.object(guard, "error", 288), mock.patch.object(jitmem, "_PROCESSOR", "aarch64"):
                    self.assertEqual(guard.access(bytes(288) + found), expected)

    def test_offsets_are_those_of_the_whole_code(self):
        code = jitmem.Code(here(ADD).ljust(16, b"\0") + here(TRAP))
        good, wrong = code.function(c_ssize_t, c_ssize_t, c_ssize_t, guard=True), code.function(None, offset=16, guard=True)
        self.assertEqual(good(2, 3), 5)
        bound = [(jitmem.bind(wrong.address, None, guard=True), 0)] if LINUX else []
        for function, offset in ((wrong, 16), *bound):
            self.assertEqual(self.fault_of(function).offset, offset)

    @unittest.skipUnless(LINUX, "only Linux tells what a mapping is of")
    def test_bind_guards_generated_code_and_refuses_a_library(self):
        self.raises(NotImplementedError, "bind.. cannot guard 0x", jitmem.bind, ctypes.CDLL(None).abs, c_int, c_int, guard=True)
        self.raises(NotImplementedError, "bind.. cannot guard 0x10", jitmem.bind, 16, c_int, guard=True)
        with executable(TRAP) as memory:
            self.raises(jitmem.Fault, "SIGILL", jitmem.bind(memory.address, None, keep=memory, guard=True))

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
        self.assertEqual(jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, nogil=True, guard=True)(2, 3), 5)

    def test_a_guarded_function_pickles_as_one(self):
        self.raises(jitmem.Fault, "SIGILL", pickle.loads(pickle.dumps(self.trap)))
        inner = jitmem.Code(here(ADD).ljust(16, b"\0") + here(TRAP)).function(None, offset=16, guard=True)
        self.raises(jitmem.Fault, "offset 16", pickle.loads(pickle.dumps(inner)))

    def test_code_that_writes_over_the_very_instruction_has_not_jumped_anywhere(self):
        # mov byte [rip-7], 1; or adr x0, 4; str w0, [x0]
        code, offset = codes(x86_64="c605f9ffffff01 c3", aarch64="20000010 000000b9 c0035fd6"), {"aarch64": 4}
        function = jitmem.function(code, None, name="write", guard=True)
        with self.assertRaisesRegex(jitmem.Fault, "SIGSEGV: (write|access) of address 0x[0-9a-f]+, at offset ") as caught:
            function()
        offset = offset.get(jitmem._PROCESSOR, 0)
        self.assertEqual((caught.exception.offset, caught.exception.address), (offset, function.address + offset))

    def test_the_repr_shows_that_a_function_is_guarded(self):
        self.assertRegex(repr(self.trap), r"\(\d+ bytes, guarded\)>$")
        if LINUX:
            self.assertRegex(repr(jitmem.bind(self.trap.address, None, guard=True)), r"at 0x[0-9a-f]+ \(guarded\)>$")

    def test_the_environment_guards_those_that_do_not_say(self):
        out = self.run_child("""
            import jitmem, sys, ctypes
            trap = jitmem.function(bytes.fromhex(sys.argv[1]), None)
            try:
                trap()
            except jitmem.Fault as fault:
                print(fault.signal.name)
            print(jitmem.function(b"1", None, guard=False)._signature.guard)
            print(jitmem.bind(ctypes.CDLL(None).abs, ctypes.c_int, ctypes.c_int)(-5))
            """, here(TRAP).hex(), JITMEM_GUARD="1")
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
            call(CALLBACK(lambda n: faulthandler.enable() or 0), 1); caught(); call(elsewhere, 1)
            call(CALLBACK(lambda n: faulthandler.enable() or 0), 1); caught(); faulthandler.disable(); crash()
            call(CALLBACK(lambda n: another(CALLBACK(lambda n: call(elsewhere, 0)), 0)), 0)
            """
        out = self.run_child("""
            import ctypes, faulthandler, importlib.util, jitmem, os, resource, signal, sys, tempfile
            from ctypes import CFUNCTYPE, c_ssize_t, c_void_p, cast
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            call_code, tail_code, trap_code = map(bytes.fromhex, sys.argv[1:4])
            CALLBACK = CFUNCTYPE(c_ssize_t, c_ssize_t)
            call = jitmem.function(call_code, c_ssize_t, c_void_p, c_ssize_t, guard=True)
            tail = jitmem.function(tail_code, c_ssize_t, c_void_p, c_ssize_t, guard=True)
            trap = jitmem.function(trap_code, None, guard=True)
            copy = importlib.util.module_from_spec(importlib.util.spec_from_file_location("copy", jitmem.__file__))
            sys.modules["copy"] = copy
            copy.__spec__.loader.exec_module(copy)
            another = copy.function(call_code, c_ssize_t, c_void_p, c_ssize_t, guard=True)
            elsewhere, wild = CALLBACK(lambda n: crash() and 0), CALLBACK(lambda n: CFUNCTYPE(None)(16)() or 0)
            strlen = cast(ctypes.CDLL(None).strlen, c_void_p)

            def crash():
                return ctypes.string_at(0) if sys.implementation.name == "cpython" else ctypes.CDLL(None).strlen(None)

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
                        expected = "disable" not in scenario and (enable != "never" or "enable" in scenario)
                        if (status & 127, told) != (signal.SIGSEGV, int(expected)):
                            print(scenario, enable, status, told)
            """, here(CALL_DEEP).hex(), here(CALL).hex(), here(TRAP).hex(), textwrap.dedent(scenarios))
        self.assertEqual(out, "")

    def test_signals_that_are_ignored_or_handled_in_python_stay_so(self):
        seen = []
        if faulthandler.is_enabled():  # as by -X dev: Python could not put it back
            faulthandler.disable()
            self.addCleanup(faulthandler.enable)
        send = CALLBACK(lambda n: os.kill(os.getpid(), signal.SIGSEGV) or n)
        for handler, expected in ((signal.SIG_IGN, []), (lambda number, frame: seen.append(number), [signal.SIGSEGV] * 2)):
            before = signal.signal(signal.SIGSEGV, handler)
            try:
                for _ in range(2):
                    self.assertEqual(self.call(send, 7), 7)
                    self.raises(jitmem.Fault, "SIGILL", self.trap)
            finally:
                signal.signal(signal.SIGSEGV, before)
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
        self.assertEqual(len(seen), 3 if jitmem._PROCESSOR == "x86_64" else 2)

    def test_a_forked_child_guards_too(self):
        def fork(n):
            self.fork(lambda: self.raises(jitmem.Fault, "SIGILL", self.trap))
            return n
        self.assertEqual((self.call(CALLBACK(fork), 1), fork(2)), (1, 2))

    def test_refused_memory_loses_nothing(self):
        seen, guard = [], jitmem._guard()

        def work():  # in a thread that has no memory for this yet
            for patch in mock.patch.object(jitmem, "_allocate", side_effect=MemoryError("none left")), contextlib.nullcontext():
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
        wait_until(lambda: sum(not thread.busy for thread in guard.threads()) == 1)  # for the next thread
        for thread in taken:
            thread.busy = 0

    @unittest.skipIf(PYPY or not LINUX, "PyPy itself refuses to run on another stack; the structures are Linux's")
    def test_on_the_stack_of_a_signal_handler_it_is_refused_and_the_code_is_not_called(self):
        out = self.run_child("""
            import ctypes, jitmem, mmap, signal, sys
            # A result that ctypes would look at.
            trap = jitmem.function(bytes.fromhex(sys.argv[1]), ctypes.c_char_p, name="trap", guard=True)
            library, room = ctypes.CDLL(None), mmap.mmap(-1, 1 << 20)
            library.sigaltstack((ctypes.c_uint64 * 3)(ctypes.addressof(ctypes.c_char.from_buffer(room)), 0, 1 << 20), None)
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
            """, here(TRAP).hex())
        self.assertRegex(out, r"^\[Errno 1\] trap\(\): sigaltstack refused; is this the stack of .*\ntrap\(\): SIGILL")

    def test_it_is_refused_under_a_shadow_stack(self):
        real = open

        def status(path, *args, **kwargs):
            text = "Name:\tpython\nx86_Thread_features:\tshstk\n"
            return io.StringIO(text) if path == "/proc/self/status" else real(path, *args, **kwargs)
        with mock.patch.object(jitmem, "_guards", []), mock.patch.object(jitmem, "open", status, create=True):
            self.raises(NotImplementedError, "shadow stack", jitmem.function, TRAP, None, guard=True)


class NoGuard(Case):
    def test_where_there_is_none_it_is_refused_by_name(self):
        with mock.patch.object(jitmem, "_guards", []), mock.patch.object(jitmem, "_processor", None):
            for call in (jitmem.function, lambda code, *types, **options: jitmem.Code(code).function(*types, **options)):
                self.raises(NotImplementedError, "guard: it knows Linux and macOS .* python -m jitmem run", call, ANSWER, None,
                            guard=True)
        self.assertEqual(GUARD, jitmem.info()["guard"] == "available")


class Binding(Case):
    """bind: code that is somewhere already."""

    def test_ctypes_functions_are_called_by_their_own_types_or_others(self):
        library = ctypes.CDLL("msvcrt" if WINDOWS else None)
        library.abs.argtypes, library.abs.restype = [c_int], c_int
        absolute = jitmem.bind(library.abs)
        self.assertEqual((absolute(-5), absolute.__name__, absolute.argtypes), (5, "abs", (c_int,)))
        self.assertEqual(jitmem.bind(library.labs, ctypes.c_long, ctypes.c_long, name="other")(-7), 7)
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
        for _ in range(3):
            self.raises(TypeError, "bad argument type", jitmem.bind(ctypes.pythonapi.PyErr_BadArgument, c_int))

    def test_without_memory_for_a_trampoline_the_reference_serves(self):
        callback = CALLBACK(lambda value: value + 1)
        with mock.patch.multiple(jitmem, _signatures={}, _load=mock.Mock(side_effect=PermissionError(13, "injected"))):
            self.assertEqual(jitmem.bind(callback)(1), 2)

    def test_what_makes_no_sense_or_would_be_lost_is_refused(self):
        library = ctypes.CDLL("msvcrt" if WINDOWS else None, use_errno=True)
        self.raises(ValueError, "would lose what use_errno", jitmem.bind, library.abs, c_int, c_int)
        library = ctypes.CDLL("msvcrt" if WINDOWS else None)
        self.raises(TypeError, "no argtypes", jitmem.bind, library.labs)
        library.labs.errcheck = lambda *_: None
        self.raises(ValueError, "would lose the errcheck", jitmem.bind, library.labs, c_int, c_int)
        for target in (0, -1, 2**64):
            self.raises(ValueError, f"bind\\(\\) target {target} is not an address", jitmem.bind, target, None)
        self.raises(TypeError, "needs types for an address", jitmem.bind, 4096)
        self.raises(TypeError, "must be an integer, not str", jitmem.bind, "abs", None)
        self.raises(TypeError, "cannot be copied or pickled: its code is not in jitmem's own", pickle.dumps,
                    jitmem.bind(library.abs, c_int, c_int))


class Pickling(Case):
    def test_a_function_pickles_as_its_code_and_signature(self):
        for function in (jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add"), self.entry()):
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
                other = pickle.loads(pickle.dumps(function, protocol))
                self.assertEqual((other(2, 3), other.__name__, other.argtypes), (5, "add", function.argtypes))
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
            import concurrent.futures, multiprocessing, jitmem, test_jitmem
            from ctypes import c_ssize_t
            add = jitmem.function(test_jitmem.ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add")
            for method in multiprocessing.get_all_start_methods():
                with multiprocessing.get_context(method).Pool(2) as pool:
                    assert pool.starmap(add, [(1, 2), (3, 4)]) == [3, 7], method
            with concurrent.futures.ProcessPoolExecutor(2) as pool:
                assert list(pool.map(add, [1, 2], [3, 4])) == [4, 6]""")

    def test_another_machine_is_named_at_the_other_end(self):
        function = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_ssize_t, name="add")
        with mock.patch.object(jitmem, "MACHINE", "pdp11"):
            data = pickle.dumps(function)
        self.raises(NotImplementedError, f"add\\(\\) was pickled as code for pdp11, and this machine is {jitmem.MACHINE}",
                    pickle.loads, data)

    def test_what_cannot_be_rebuilt_is_refused_with_the_reason(self):
        memory = executable(ANSWER)
        self.raises(TypeError, "its code is not in jitmem's own memory", pickle.dumps, memory.function(c_uint32))
        self.raises(TypeError, "it keeps an object", pickle.dumps, jitmem.function(ANSWER, c_uint32, keep=[]))
        closed = jitmem.function(ANSWER, c_uint32)
        closed.close()
        self.raises(ValueError, "is closed", pickle.dumps, closed)


class Functions(Case):
    def test_code_is_chosen_by_machine_longest_name_first(self):
        processor = jitmem._PROCESSOR
        wrong = b"\0"
        for mapping in ({processor: here(ANSWER)}, {processor: wrong, jitmem.MACHINE: here(ANSWER)} if "-" in jitmem.MACHINE else
                        {processor: here(ANSWER), "pdp11": wrong}):
            self.assertEqual(jitmem.function(mapping, c_uint32)(), 0x12345678)

    def test_a_buffer_with_items_of_its_own_is_no_mapping(self):
        code = here(ANSWER)

        class Record(Structure):
            _fields_ = [("code", c_ubyte * len(code)), ("items", c_ubyte)]
        self.assertEqual(jitmem.function(Record.from_buffer_copy(code + b"\0"), c_uint32)(), 0x12345678)

    def test_other_names_of_the_processors_are_understood(self):
        with mock.patch.multiple(jitmem, MACHINE="x86_64-windows", _PROCESSOR="x86_64"):
            for name in ("AMD64", "x64", "x86_64", "x86-64", "x86-64-windows", "amd64-windows", "X86_64-Windows"):
                self.assertEqual(jitmem._select({name: b"1", "arm64": b"2", "i686": b"3"}), b"1")
            self.raises(ValueError, "two codes are given for x86_64", jitmem._select, {"AMD64": b"1", "x86_64": b"2"})
        with mock.patch.multiple(jitmem, MACHINE="aarch64-apple", _PROCESSOR="aarch64"):
            self.assertEqual(jitmem._select({"arm64": b"1", "x86": b"2"}), b"1")

    def test_no_code_for_this_machine_is_said_with_what_was_given(self):
        self.raises(NotImplementedError, f"no code for {jitmem.MACHINE}, which this is; given: pdp11, vax$",
                    jitmem.function, {"PDP11": b"\1", "vax": b"\2"}, None)
        self.raises(NotImplementedError, "given: none", jitmem.function, {}, None)
        self.raises(TypeError, "has machines as keys, not 5", jitmem.function, {5: b""}, None)

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
            self.raises(TypeError, "code must be bytes or another buffer", jitmem.function, code, None)
        self.raises(TypeError, "name must be str, not int", jitmem.function, ANSWER, None, name=5)

    def test_its_attributes_say_what_it_is(self):
        add = jitmem.function(ADD, c_ssize_t, c_ssize_t, c_double, name="add")
        size = len(here(ADD))
        self.assertEqual((add.__name__, add.size, add.restype, add.argtypes), ("add", size, c_ssize_t, (c_ssize_t, c_double)))
        name = c_ssize_t.__name__
        self.assertEqual(repr(add), f"<jitmem function add({name}, c_double) -> {name} at {add.address:#x} ({size} bytes)>")
        signature = inspect.signature(add)
        self.assertEqual([parameter.annotation for parameter in signature.parameters.values()], [c_ssize_t, c_double])
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
            self.raises(ValueError, r"^f\(\) is closed$", function, make(type_(5).value, function.close), 3)
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
            self.assertEqual(jitmem.function(ADD_DOUBLES, c_double, c_double, c_double, nogil=nogil)(1.5, 2.5), 4.0)
        self.raises(ValueError, "without which no code may touch py_object", jitmem.function, SAME, py_object, nogil=True)

    def test_nothing_is_writable_and_executable_and_nothing_leaks_over_many_loads(self):
        emulated = not LINUX or jitmem._PROCESSOR not in ("x86_64", "x86") or PYPY
        code = here(ANSWER)
        for _ in range(200):
            jitmem.function(code, c_uint32)
        collect()
        before, alive = mappings(), jitmem.info()["functions"]
        for _ in range(2000 if emulated else 100000):
            function = jitmem.function(code, c_uint32)
            self.assertEqual(function(), 0x12345678)
        self.assertEqual(jitmem._query(function.address), "r-x")
        del function
        collect()
        after = mappings()
        self.assertEqual(jitmem.info()["functions"], alive)
        if before is not None:
            self.assertLessEqual(len(after), len(before) + 8)
            self.assertEqual([row for row in after if "w" in row[2] and "x" in row[2] and row not in before], [])
            self.assertLess(sum(row[1] - row[0] for row in after) - sum(row[1] - row[0] for row in before), 8 << 20)


class Info(Case):
    def test_it_counts_while_other_threads_make_functions(self):
        class Busy:
            """In the list of chunks, one at which another thread comes in and makes a chunk of its own."""
            size, room = 0, property(lambda self: made.append(jitmem.Code(bytes(jitmem._CHUNK))) or 0)
        busy, made = Busy(), []
        jitmem._mapped[busy] = None
        self.addCleanup(jitmem._mapped.pop, busy)
        self.assertGreaterEqual(jitmem.info()["bytes"], 0)
        self.assertEqual(len(made), 1)

    def test_it_says_what_is_here_and_json_can_write_it(self):
        info = json.loads(json.dumps(jitmem.info()))
        self.assertEqual((info["machine"], info["page_size"], info["byteorder"]), (jitmem.MACHINE, mmap.PAGESIZE, sys.byteorder))
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
        with mock.patch.object(jitmem, "_protect", side_effect=PermissionError(13, "injected")):
            info = jitmem.info()
        self.assertIn("refused: [Errno 13] injected", info["policies"]["written pages to r-x"])
        on = [name for name, _, on in jitmem._policies() if on]
        self.assertEqual(info["refused_by"], on or ["unknown"])


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
        text, stopped = jitmem._call_as_data(here(ANSWER))
        if not stopped:
            self.assertIn("This system executes data", text)
            self.skipTest("this system, or its emulator, executes data")
        self.assertRegex(text, "killed by SIG|stopped by an access violation|ended with status")

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
        with mock.patch.dict(jitmem._SAMPLES, {jitmem._PROCESSOR: same}):
            self.assertEqual(self.run_main()[0], 1)

    def test_info_prints_every_policy_and_json(self):
        status, out, _ = self.run_main("info")
        self.assertEqual(status, 0)
        self.assertRegex(out, rf"(?s)machine +{jitmem.MACHINE}, .*policies\n.*nothing here is refused")
        written = self.run_main("info", "--json")[1]
        self.assertEqual(json.loads(written)["machine"], jitmem.MACHINE)

    def test_bench_compares_calls_and_loads(self):
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
            "0000000000401000 <f>:\nlong f() {\nadd:\n  401000:\tb8 2a 00 00 00 \tmov    $0x2a,%eax\n"
            "  401005:\tc3                   \tret\n}\n"
        )
        for text in (
            objdump, objdump.expandtabs(),
            "0:b8 2a 00\n3:00 00 c3", "   0: b8 2a 00 00 00\n\t5: C3",
            "00000000: b82a 0000 00c3                           .*....\n",
            "00000000: b82a0000 00c3                      .*....\n",
            "00000000: b8 2a 00 00 00   .*...\n00000005: c3\n",
            "00000000  b8 2a 00 00  00 c3                               |.*....|\n00000006\n",
            "     1                                  bits 64\n"
            "     2                                  ; 42\n"
            "     3 00000000 B82A00000-              mov eax, 42\n".replace("B82A00000-", "B82A0000-")
            + "     3 00000004 00\n     4 00000005 C3                  f: ret\n",
        ):
            with self.subTest(text):
                self.assertEqual(jitmem._parse_code(text), code)
        times = "     1 00000000 90<rep 3h>              times 3 nop\n     2 00000003 C3       ret\n"
        self.assertEqual(jitmem._parse_code(times), b"\x90\x90\x90\xc3")

    def test_instructions_shown_as_numbers_are_read_on_their_machine_alone(self):
        code, dump = struct.pack("=II", 0x52800540, 0xD65F03C0), struct.pack("=I", 0x52800540)
        words = "   0:\t52800540 \tmov\tw0, #0x2a\n   4:\td65f03c0 \tret\n"
        with mock.patch.object(jitmem, "_PROCESSOR", "aarch64"):
            self.assertEqual(jitmem._parse_code(words), code)
            self.assertEqual(jitmem._parse_code(words.expandtabs()), code)
            row = f"00000000: {dump.hex(' ', 2)}   {jitmem._text_column(dump)}"
            self.assertEqual(jitmem._parse_code(row), dump)
        with mock.patch.object(jitmem, "_PROCESSOR", "x86_64"):
            self.assertIn("not a line of objdump -d", self.refused(words))

    def test_what_is_not_wholly_understood_is_refused(self):
        for message, texts in {
            "not machine code in hexadecimal": (
                "b8 2", "mov eax, 42", "zz", "48 8d 04 37 0xc3", "0xb8,0x2a00",
                "dd 0x00002ab8, 0x0000c300", r'"\xb8" "0"', r"\xb8ab", "48:8d:04", "b8 2a é0 c3",
                "0000000 2ab8 0000 c300\n0000006\n",
            ),
            "decimal or hexadecimal": ("db 184, 42, 0", "  46  65  97\n", "db 49, 72", "db 49\ndb 72", "dd 49", "[49, 72, 10]"),
            "code or a comment": ("31 c0; c3", "31 c0 ; 0f 05", 'b8 ; "c3"'),
            "an address": ("000000 b8 2a 00 00 00 c3\n000006\n", "000000 025270 000000\n000004\n"),
            "not a line of": (
                "0: c3 fadd", "00000000: b8 2a 90  90 90 c3", "0: b8 2a  90 90", "b8 2a\n   2: c3",
                "   0: b8 2a\nc3", "   0:\tb8 2a \tmov\nc3 \tret", "   0:\tb8 2a \tmov\n  2 c3 ret",
                "   0:\tb8 \tmov\n   1:\tc\n", "00000000: 00002ab8     c300          .*....\n",
                "00000000: 00002ab8 0000c300  .*......\n", "00000000: c3900000 0000c390  ........",
                "00000000: 11000011 10010000                        ..",
                "00000000: b82a  .*\nc3", "00000000  b8 2a     |.+|\n00000002\n",
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
        random = Random(12)

        def pieces(code, size):
            return [(at, code[at:at + size]) for at in range(0, len(code), size)]

        for _ in range(40):
            code = bytes(random.choices([*range(256), *b"  ..AA"], k=random.randrange(17, 80)))
            text = jitmem._text_column
            forms = [[f"{at:8x}:\t{row.hex(' ')}  \tadd" for at, row in pieces(code, 7)],
                     [f"{at:08x}  {row.hex(' ')}  |{text(row)}|" for at, row in pieces(code, 16)]]
            for group in (1, 2, -4, -2):  # below 0 as xxd -e shows them
                forms.append([
                    f"{at:08x}: {row[::1 if group > 0 else -1].hex(' ', -abs(group))}  {text(row)}"
                    for at, row in pieces(code, 16 if group > 0 else -group)])
            for rows in forms:
                middle = random.randrange(1, len(rows) - 1) if len(rows) > 2 else 1
                damaged = [list(rows) for _ in range(4)]
                damaged[1][middle - 1:middle + 1] = reversed(damaged[1][middle - 1:middle + 1])
                damaged[2][middle] = damaged[2][middle].lstrip(" 0123456789abcdef").lstrip(":")
                damaged[3].insert(middle, rows[middle - 1])
                for lines in damaged:
                    try:
                        found = jitmem._parse_code("\n".join(lines))
                    except ValueError:
                        self.assertFalse(lines == rows and rows in forms[:4], lines)
                    else:
                        self.assertEqual(found, code, lines)

    def test_long_text_is_read_in_linear_time(self):
        row, blanks = "{:8x}:\t90                   \tnop\n", " " * 400_000
        began = time.monotonic()
        listing = "".join(map(row.format, range(20_000)))
        self.assertEqual(jitmem._parse_code(listing), b"\x90" * 20_000)
        self.assertEqual(jitmem._parse_code(f"b8{blanks}c3{blanks}"), b"\xb8\xc3")
        self.assertEqual(jitmem._parse_code("b8" + "\n" * 400_000 + "c3"), b"\xb8\xc3")
        for text in (
            f"90{blanks}z", f"0:{blanks}z", f"0: 90{blanks}z{blanks}|", f"00000000: 90{blanks}\tz",
            f"00000000  90{blanks}z", f"00000000  90{blanks}|", "90" * 200_000 + "z",
            "0: " + "90" * 200_000 + "z", "00000000  " + "90 " * 200_000 + "z", ";" + blanks + "z",
            f"     1 00000000 90{blanks}z\n{blanks}", "R_" * 200_000, "0" * 400_000 + ":",
        ):
            with contextlib.suppress(ValueError):
                jitmem._parse_code(text)
        self.assertLess(time.monotonic() - began, 60 if EMULATED else 10)  # a second, here

    def test_code_comes_from_files_and_standard_input_as_bytes_or_text(self):
        code, french = b"\xb8\x00\xc3", "Déassemblage :\n 0:\tb8 00 c3 \tmov\n"
        for data, expected in (
            (code, code), (b"b8 00 c3\n", code), (french.encode(), code),
            (french.encode("latin-1"), code), (french.encode("utf-16"), code),
            (french.encode("utf-8-sig"), code), (b"\x31\xc0\xc3", b"\x31\xc0\xc3"),
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
        double = ("--returns", "double", "--takes", "double", "c_double", "--time")
        status, out, _ = self.run_code(here(ADD_DOUBLES).hex(), "1.5", "2", *double)
        self.assertEqual(status, 0)
        self.assertRegex(out, r"^3\.5    0x1\.c0*p\+1    \(\d+ ns a call\)$")
        status, out, err = self.run_code(here(ADD_DOUBLES).hex(), "1.5", "2e0")
        self.assertEqual((status, out[:4], err), (0, "3.5 ", ""))  # without a word about types
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
            self.assertRegex(out, "^SIG(SEGV|BUS|ILL): the code ended its process$")
            self.assertIn(status, (128 + signal.SIGSEGV, 128 + signal.SIGBUS, 128 + signal.SIGILL))

    def test_what_a_child_ends_with_is_told_from_what_run_says(self):
        for status, shown, said in (
            (0, 1, "the code ended its process with status 0\n"),
            (1, 1, "the code ended its process with status 1\n"),
            (139, 1, "the code ended its process with status 139\n"),
            (-40, 168, "signal 40: the code ended its process\n"),
            (-9, 137, "SIGKILL: the code ended its process\n"),
            (0xC0000005, 139, "access violation (0xc0000005): the code ended its process\n"),
        ):
            if not (WINDOWS and status < 0):
                with mock.patch.object(jitmem, "_in_child", return_value=(status, None)):
                    self.assertEqual(self.run_main("run", "c3")[:2], (shown, said))

    @unittest.skipUnless(LINUX and jitmem.MACHINE == "x86_64-sysv", "the code is for Linux on x86-64")
    def test_code_that_ends_its_process_by_itself_is_reported_with_its_status(self):
        for status in (0, 1, 2, 131, 139):  # mov edi, status; mov eax, 60 (exit); syscall
            code = f"bf {status:02x} 00 00 00 b8 3c 00 00 00 0f 05"
            said = f"the code ended its process with status {status}"
            self.assertEqual(self.run_code(code), (1, said, ""))

    @unittest.skipUnless(LINUX and jitmem.MACHINE == "x86_64-sysv", "the code is for Linux on x86-64")
    def test_the_standard_input_of_code_is_the_user_s(self):
        # xor edi, edi; lea rsi, [rsp - 128]; mov edx, 8; xor eax, eax (read); syscall; ret
        code = "31ff 488d742480 ba08000000 31c0 0f05 c3"
        done = subprocess.run([sys.executable, "-m", "jitmem", "run", code], cwd=HERE, timeout=300,
                              input=b"abcdef\n", capture_output=True)
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
        done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True,
                              timeout=300, env={**os.environ, "PYTHONPATH": "", **environment})
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
        with open(jitmem.__file__, "rb") as file:
            source = file.read()
        out = self.run_child(f"""
            import sys
            sys.executable = None
            names = {{"__name__": "jitmem"}}
            exec(sys.stdin.buffer.read() if False else open({jitmem.__file__!r}, "rb").read(), names)
            names["_main"](["run", {here(ANSWER).hex()!r}, "--returns", "c_uint32"])""")
        self.assertEqual(out, "305419896    0x12345678")
        self.assertNotIn(b"\0", source)

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
            report = jitmem._report("SIGILL: no", code, 17, registers)
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
            report = jitmem._report("no", b"\x8b\0\xc3", 0, None)
        self.assertEqual(report, "no\n\n  0000  [8b] 00 c3        mov eax, dword ptr [rax]")
        self.assertEqual(jitmem._report("no", b"\xc3", 1, None), "no\n\n  0000  c3 [end]")
        self.assertEqual(jitmem._report("no", None, None, None), "no")

    def test_run_stops_code_that_does_not_return(self):
        limit = "20" if EMULATED else "0.7"
        said = f"jitmem: no answer within {limit} s; stopped (change it with --limit)"
        self.assertEqual(self.run_code(here(LOOP).hex(), "--limit", limit), (1, said, ""))

    @unittest.skipUnless(TIMER, "needs setitimer()")
    def test_ctrl_c_stops_the_code_and_is_one_line_and_status_130(self):
        status, out, err = python("-c", textwrap.dedent(f"""
            import os, signal, sys, jitmem
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, {5 if EMULATED else 0.5})
            status = jitmem._main(["run", {here(LOOP).hex()!r}, "--limit", "250"])
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                print("no child is left")
            sys.exit(status)"""))
        self.assertEqual((status, out, err), (130, "no child is left", "jitmem: interrupted"))

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
        command = f"'{sys.executable}' -m jitmem"
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
                                      capture_output=True, text=True, timeout=300)
                self.assertEqual((done.returncode, done.stderr), (status, said), done.stdout)

    @unittest.skipIf(WINDOWS, "Windows has no broken pipes")
    def test_a_reader_that_is_gone_is_status_1_and_no_traceback(self):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as pipe:
            done = subprocess.run([sys.executable, "-m", "jitmem", "info"], stdout=pipe, cwd=HERE,
                                  stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=300)
        self.assertEqual((done.returncode, done.stderr), (1, b""))

    def test_usage_errors_are_status_2(self):
        self.assertEqual(self.run_main("nonsense")[0], 2)
        self.assertEqual(self.run_main("--version")[:2], (0, f"jitmem {jitmem.__version__}\n"))


if __name__ == "__main__":
    unittest.main()
