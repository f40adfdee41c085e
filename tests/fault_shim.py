"""Faults at the n-th call: a library between Python and the C library that fails or kills, as SQLite tests its disk.

A process started with `environment`, and all that it starts, count the calls that change something under one folder;
at the armed one the call returns an error, or the process that armed it gets a signal. Nothing of ours is replaced: the
code under test runs whole.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import subprocess
import tempfile
from pathlib import Path

__all__ = ["CHANGES", "FROM_THEN_ON", "ONCE", "REMOVALS", "Shim", "environment"]

ONCE, FROM_THEN_ON = -1, -2  # the n-th call fails; or it and all later ones, like a full disk
CHANGES, REMOVALS = 1, 2  # what is counted: creating, writing, syncing, renaming; unlink and rmdir

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* In a file that the process and its children map: a build writes from a child of its own. */
static struct state { volatile long armed_at, counted; volatile int action, mask, pid; char events[1 << 16]; } *s;

static __attribute__((constructor)) void share(void) {
    const char *path = getenv("GAMMA_FAULT_STATE");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *made = fd < 0 ? MAP_FAILED : mmap(0, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    if (made != MAP_FAILED) s = made;
}

void gamma_fault_arm(long at, int what, int which) {
    s->counted = 0; s->action = what; s->mask = which; s->pid = getpid(); s->events[0] = 0; s->armed_at = at; }
long gamma_fault_count(void) { return s->counted; }
const char *gamma_fault_events(void) { return s->events; }

static int inside(const char *path) {
    const char *under = getenv("GAMMA_FAULT_UNDER");
    return under && !strncmp(path, under, strlen(under));
}

static int inside_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

/* 1 when the call must fail now. */
static int fault(const char *name, int kind, const char *path, int fd) {
    if (!s || s->armed_at < 0 || !(s->mask & kind) || !(path ? inside(path) : inside_fd(fd))) return 0;
    char shown[PATH_MAX] = "", link[64];
    if (path) snprintf(shown, sizeof shown, "%s", path);
    else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        if (readlink(link, shown, sizeof shown - 1) < 0) shown[0] = 0;
    }
    size_t used = strlen(s->events);
    snprintf(s->events + used, sizeof s->events - used, "%s %s\n", name, shown);
    long here = s->counted++;
    if (s->action == -2 ? here < s->armed_at : here != s->armed_at) return 0;
    if (s->action > 0) { kill(s->pid, s->action); return 0; }
    errno = strcmp(name, "fsync") ? ENOSPC : EIO;
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define OPENER(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        if ((flags & O_CREAT) && access(path, F_OK) && fault("open", 1, path, -1)) return -1; \
        return real(path, flags, mode); }
OPENER(open)
OPENER(open64)
ssize_t write(int fd, const void *data, size_t size) {
    REAL(write); return fault("write", 1, 0, fd) ? -1 : real(fd, data, size); }
int fsync(int fd) { REAL(fsync); return fault("fsync", 1, 0, fd) ? -1 : real(fd); }
int rename(const char *a, const char *b) { REAL(rename); return fault("rename", 1, b, -1) ? -1 : real(a, b); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return fault("mkdir", 1, path, -1) ? -1 : real(path, mode); }
int unlink(const char *path) { REAL(unlink); return fault("unlink", 2, path, -1) ? -1 : real(path); }
int unlinkat(int fd, const char *path, int flags) {
    REAL(unlinkat); return fault("unlink", 2, 0, fd) ? -1 : real(fd, path, flags); }
int rmdir(const char *path) { REAL(rmdir); return fault("rmdir", 2, path, -1) ? -1 : real(path); }
"""


@functools.cache
def _library() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="gamma-fault-shim-"))
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(_SOURCE)
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def environment(under: Path) -> dict[str, str]:
    """For a process in which calls that concern paths under this folder can fail."""
    state = _library().with_name("state")
    state.write_bytes(struct.pack("q", -1).ljust(1 << 17, b"\0"))
    shim = {"LD_PRELOAD": str(_library()), "GAMMA_FAULT_UNDER": str(under), "GAMMA_FAULT_STATE": str(state)}
    return {**os.environ, **shim, "OMP_NUM_THREADS": "1"}


class Shim:
    """The library, as seen from inside such a process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._library.gamma_fault_arm.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_int)
        self._library.gamma_fault_count.restype = ctypes.c_long
        self._library.gamma_fault_events.restype = ctypes.c_char_p

    def arm(self, at: int, action: int, mask: int = CHANGES) -> None:
        """Fault at call number ``at``: `ONCE`, `FROM_THEN_ON`, or a signal's number."""
        self._library.gamma_fault_arm(at, action, mask)

    def rest(self) -> None:
        """No more faults."""
        self._library.gamma_fault_arm(-1, 0, 0)

    def count(self) -> int:
        """Calls since `arm`."""
        return int(self._library.gamma_fault_count())

    def events(self) -> list[tuple[str, str]]:
        """Those calls: name and path."""
        lines = self._library.gamma_fault_events().decode().splitlines()
        return [(name, path) for name, _, path in (line.partition(" ") for line in lines)]
