#!/usr/bin/env python3
"""Runs a Linux program for x86-64 on an emulated processor that has AVX-512 and VNNI.

    emulator.py PROGRAM [ARGUMENT...]

The processor is Bochs', by the package `bochscpu-python`; this file is the system below the program: it maps the program
and its loader, and answers the system calls that a single-threaded test program makes. A thread cannot be started, so the
test harness runs its tests one after the other.

All memory is mapped to itself by 1 GiB pages, and the program runs with the rights of a kernel. Pages of the host are
inserted when they are first touched.
"""

import ctypes
import mmap
import os
import struct
import sys
import time

import bochscpu
import bochscpu.cpu
import bochscpu.memory

PAGE = 4096
TABLES = 0x1000  # Two pages of page tables.
STUB = 0x4000  # What a system call jumps to.
PROGRAM, LOADER, HEAP, AREAS, STACK = 0x1_0000_0000, 0x2_0000_0000, 0x3_0000_0000, 0x4_0000_0000, 0x9_0000_0000
# clflush [rsp] (whose hook answers); lea rsp, [rsp-128]; push r11; popfq; lea rsp, [rsp+128]; jmp rcx
STUB_CODE = bytes.fromhex("0fae3c24 488d642480 4153 9d 488da42480000000 ffe1")
ENOENT, EAGAIN, ENOSYS = 2, 11, 38


def up(value, to=PAGE):
    return -(-value // to) * to


class Memory:
    """The emulated memory: pages of the host, inserted when they are first touched."""

    def __init__(self):
        self.pages = {}
        self.chunk, self.used = None, 0
        self.chunks = []

    def insert(self, address):
        page = address & ~(PAGE - 1)
        if page in self.pages:
            return
        if self.chunk is None or self.used == 64 << 20:
            self.chunk = mmap.mmap(-1, 64 << 20)
            self.chunks.append(self.chunk)
            self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.chunk))
            self.used = 0
        self.pages[page] = self.base + self.used
        bochscpu.memory.page_insert(page, self.base + self.used)
        self.used += PAGE

    def each(self, address, size):
        while size:
            part = min(size, PAGE - address % PAGE)
            self.insert(address)
            yield self.pages[address & ~(PAGE - 1)] + address % PAGE, part
            address, size = address + part, size - part

    def read(self, address, size):
        return b"".join(ctypes.string_at(at, part) for at, part in self.each(address, size))

    def write(self, address, data):
        done = 0
        for at, part in self.each(address, len(data)):
            ctypes.memmove(at, data[done : done + part], part)
            done += part

    def zero(self, address, size):
        """Only what was touched can be other than zero."""
        for page in range(address, address + size, PAGE):
            if page in self.pages:
                ctypes.memset(self.pages[page], 0, PAGE)

    def text(self, address):
        out = b""
        while b"\0" not in out:
            out += self.read(address + len(out), PAGE - (address + len(out)) % PAGE)
        return out[: out.index(b"\0")].decode()


def load(memory, path, base):
    """Maps an ELF file; gives its entry, its program headers' address and number, and its loader."""
    data = open(path, "rb").read()
    (kind,), (entry, headers) = struct.unpack_from("<H", data, 16), struct.unpack_from("<QQ", data, 24)
    (count,) = struct.unpack_from("<H", data, 56)
    base = base if kind == 3 else 0
    loader, table = None, base + headers
    for index in range(count):
        (kind, _, offset, address, _, size, _, _) = struct.unpack_from("<IIQQQQQQ", data, headers + 56 * index)
        if kind == 1:
            memory.write(base + address, data[offset : offset + size])
        elif kind == 3:
            loader = data[offset : offset + size - 1].decode()
        elif kind == 6:
            table = base + address
    return base, base + entry, table, count, loader


class Call:
    """Numbers of system calls."""

    READ, WRITE, CLOSE, FSTAT, POLL, LSEEK, MMAP = 0, 1, 3, 5, 7, 8, 9
    MPROTECT, MUNMAP, BRK, SIGACTION, SIGPROCMASK, IOCTL, PREAD, WRITEV, ACCESS = 10, 11, 12, 13, 14, 16, 17, 20, 21
    YIELD, MREMAP, MADVISE, GETPID, CLONE, EXIT, FCNTL, GETCWD, READLINK, SIGALTSTACK = 24, 25, 28, 39, 56, 60, 72, 79, 89, 131
    PRCTL, ARCH_PRCTL, GETTID, FUTEX, SETAFFINITY, GETAFFINITY, SET_TID_ADDRESS = 157, 158, 186, 202, 203, 204, 218
    CLOCK_GETTIME, CLOCK_GETRES, EXIT_GROUP, OPENAT, NEWFSTATAT, READLINKAT, FACCESSAT = 228, 229, 231, 257, 262, 267, 269
    SET_ROBUST_LIST, PRLIMIT, GETRANDOM, STATX, RSEQ, CLONE3 = 273, 302, 318, 332, 334, 435


class System:
    """Answers the system calls."""

    def __init__(self, memory):
        self.memory = memory
        self.end, self.area = HEAP, AREAS
        self.code = None
        self.unknown = set()

    def call(self, cpu):
        number, args = cpu.rax, (cpu.rdi, cpu.rsi, cpu.rdx, cpu.r10, cpu.r8, cpu.r9)
        try:
            return self.answer(cpu, number, args) & (2**64 - 1)
        except OSError as error:
            return -error.errno & (2**64 - 1)

    def answer(self, cpu, number, args):
        memory, (a, b, c, d, e, f) = self.memory, args
        fd = a if a < 2**31 else -1
        match number:
            case Call.READ:
                data = os.read(fd, c)
                memory.write(b, data)
                return len(data)
            case Call.PREAD:
                data = os.pread(fd, c, d)
                memory.write(b, data)
                return len(data)
            case Call.WRITE:
                return os.write(fd, memory.read(b, c))
            case Call.WRITEV:
                parts = [struct.unpack("<QQ", memory.read(b + 16 * i, 16)) for i in range(c)]
                return os.write(fd, b"".join(memory.read(*part) for part in parts))
            case Call.CLOSE:
                os.close(fd)
                return 0
            case Call.LSEEK:
                return os.lseek(fd, b if b < 2**63 else b - 2**64, c)
            case Call.OPENAT:
                return os.open(memory.text(b), c & 0xFFFFFF, d)
            case Call.FSTAT | Call.NEWFSTATAT:
                path = memory.text(b) if number == Call.NEWFSTATAT else ""
                self.stat(os.stat(path) if path else os.fstat(fd), b if number == Call.FSTAT else c)
                return 0
            case Call.ACCESS | Call.FACCESSAT:
                path = memory.text(a if number == Call.ACCESS else b)
                return 0 if os.path.exists(path) else -ENOENT
            case Call.READLINK | Call.READLINKAT:
                path, to, size = (a, b, c) if number == Call.READLINK else (b, c, d)
                link = os.readlink(memory.text(path)).encode()[:size]
                memory.write(to, link)
                return len(link)
            case Call.GETCWD:
                path = os.getcwd().encode() + b"\0"
                memory.write(a, path)
                return len(path)
            case Call.MMAP:
                return self.map(a, b, d, e, f)
            case Call.MREMAP:
                at = self.map(0, c, 0x22, 0, 0)
                memory.write(at, memory.read(a, min(b, c)))
                return at
            case Call.BRK:
                if HEAP <= a < AREAS:
                    self.end = a
                return self.end
            case Call.ARCH_PRCTL if a == 0x1002:  # ARCH_SET_FS
                segment = cpu.fs
                segment.base = b
                cpu.fs = segment
                return 0
            case Call.CLOCK_GETTIME | Call.CLOCK_GETRES:
                now = time.clock_gettime_ns(a) if number == Call.CLOCK_GETTIME else 1
                memory.write(b, struct.pack("<QQ", *divmod(now, 10**9)))
                return 0
            case Call.GETRANDOM:
                memory.write(a, os.urandom(b))
                return b
            case Call.PRLIMIT:
                if d:
                    memory.write(d, struct.pack("<QQ", 8 << 20, 2**64 - 1))
                return 0
            case Call.GETAFFINITY:
                memory.write(c, struct.pack("<Q", 1))
                return 8
            case Call.GETPID | Call.GETTID | Call.SET_TID_ADDRESS:
                return 1
            case Call.EXIT | Call.EXIT_GROUP:
                self.code = a & 255
                return 0
            case Call.CLONE | Call.CLONE3:
                return -EAGAIN
            # Newer calls, without which the C library and Rust's do well.
            case Call.STATX | Call.RSEQ:
                return -ENOSYS
            # Protection, advice, signals, locks that nobody else holds: nothing to do.
            case Call.MPROTECT | Call.MUNMAP | Call.MADVISE | Call.SIGACTION | Call.SIGPROCMASK | Call.YIELD | Call.FUTEX:
                return 0
            case Call.SET_ROBUST_LIST | Call.POLL | Call.FCNTL | Call.PRCTL | Call.IOCTL | Call.SETAFFINITY:
                return 0
            case Call.SIGALTSTACK:
                if b:  # There is none: SS_DISABLE.
                    memory.write(b, struct.pack("<QQQ", 0, 2, 0))
                return 0
            case _:
                self.unknown.add(number)
                return -ENOSYS

    def map(self, address, size, flags, fd, offset):
        if not flags & 0x10:
            address, self.area = self.area, self.area + up(size) + PAGE
        self.memory.zero(address, up(size))
        if not flags & 0x20:
            self.memory.write(address, os.pread(fd, size, offset))
        return address

    def stat(self, of, at):
        self.memory.write(
            at,
            struct.pack(
                "<QQQIIIIQqqqQQQQQQQQQ", of.st_dev, of.st_ino, of.st_nlink, of.st_mode, of.st_uid, of.st_gid, 0, of.st_rdev,
                of.st_size, of.st_blksize, of.st_blocks, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ),
        )


def stack(memory, path, arguments, image, loader_base):
    """The first frame: arguments, environment, and what the loader is told."""
    at = STACK - PAGE

    def put(data):
        nonlocal at
        at -= len(data)
        memory.write(at, data)
        return at

    kept = [name for name in os.environ if name.startswith(("RUST", "PROPTEST"))]
    variables = [put(f"{name}={os.environ[name]}".encode() + b"\0") for name in kept]
    words = [put(word.encode() + b"\0") for word in [path, *arguments]]
    noise = put(os.urandom(16))
    _, entry, table, count, _ = image
    facts = [(3, table), (4, 56), (5, count), (6, PAGE), (7, loader_base), (9, entry), (11, 0), (12, 0), (13, 0), (14, 0)]
    facts += [(16, 0), (17, 100), (23, 0), (25, noise), (26, 2), (31, words[0]), (51, 4096), (0, 0)]
    frame = [len(words), *words, 0, *variables, 0, *(word for fact in facts for word in fact)]
    at &= ~63
    at -= up(8 * len(frame), 64)
    memory.write(at, struct.pack(f"<{len(frame)}Q", *frame))
    return at


def segment(attributes, selector):
    out = bochscpu.Segment()
    out.present, out.selector, out.base, out.limit, out.attr = True, selector, 0, 0xFFFFFFFF, attributes
    return out


def main():
    path, arguments = sys.argv[1], sys.argv[2:]
    memory = Memory()
    session = bochscpu.Session()
    session.missing_page_handler = memory.insert
    memory.write(TABLES, struct.pack("<Q", (TABLES + PAGE) | 7))
    memory.write(TABLES + PAGE, struct.pack("<512Q", *(gib << 30 | 0x87 for gib in range(512))))
    memory.write(STUB, STUB_CODE)
    image = load(memory, path, PROGRAM)
    start, loader_base = image[1], 0
    if image[4]:
        loader_base, start, *_ = load(memory, image[4], LOADER)

    state = bochscpu.State()
    bochscpu.cpu.set_long_mode(state)
    state.cr0, state.cr3, state.cr4, state.efer = 0x80050033, TABLES, 0x50620, 0xD01
    state.xcr0 = 0xE7
    state.star, state.lstar, state.sfmask = 0x10 << 32, STUB, 0
    state.cs = segment(0xA09B, 0x10)
    for name in ("ss", "ds", "es", "fs", "gs"):
        setattr(state, name, segment(0xC093, 0x18))
    state.rip, state.rsp, state.rflags = start, stack(memory, path, arguments, image, loader_base), 2
    state.mxcsr, state.mxcsr_mask, state.fpcw, state.fptw = 0x1F80, 0xFFFF, 0x37F, 0xFFFF
    session.cpu.state = state

    system = System(memory)

    def answer(session, *_):
        session.cpu.rax = system.call(session.cpu)
        if system.code is not None:
            session.stop()

    def exception(session, _, vector, code):
        print(f"exception {vector}, error {code}, at {session.cpu.rip:#x}", file=sys.stderr)
        system.code = 128 + vector
        session.stop()

    hook = bochscpu.Hook()
    hook.clflush, hook.exception = answer, exception
    session.run([hook])
    if system.unknown:
        print(f"system calls that were not answered: {sorted(system.unknown)}", file=sys.stderr)
    sys.stdout.flush()
    # The package's own objects do not come down in order.
    os._exit(1 if system.code is None else system.code)


main()
