"""The real bindings up to the driver, ctypes against a C library with CUDA's prototypes, and the choice of one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gamma_runtime.cuda import IMPLEMENTATIONS, CudaError, open_cuda
from gamma_runtime.cuda.bindings_ import Bindings
from gamma_runtime.cuda.ctypes_ import _FUNCTIONS, Ctypes
from gamma_runtime.cuda_probe import probe
from gamma_runtime.errors import EnvironmentFault, UsageError
from tests.runtime.host_cuda import HostCuda

no_gpu = pytest.mark.skipif(probe().usable, reason="this machine has a GPU: the real failures are for those without")
needs_bindings = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None, reason="cuda-bindings has no wheel for this machine"
)

# Memory is the CPU's and nothing is queued; sizes, pitches and addresses must arrive in the right places, unshortened.
_LIBRARY = r"""
#include <stdlib.h>
#include <string.h>
typedef unsigned long long u64;
static int last;
static int fail(int code) { last = code; return code; }
const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "some words"; }
int cudaRuntimeGetVersion(int *v) { const char *t = getenv("STUB_RUNTIME"); *v = t ? atoi(t) : 13000; return 0; }
int cudaGetDeviceCount(int *n) { *n = 3; return 0; }
int cudaDeviceGetAttribute(int *v, int what, int device) { *v = what == 18 ? device == 1 : what == 19; return 0; }
int cudaSetDevice(int device) { return device < 3 ? 0 : fail(101); }
int cudaMemGetInfo(size_t *f, size_t *t) { *f = (size_t)5 << 32; *t = (size_t)6 << 32; return 0; }
int cudaMalloc(void **p, size_t n) { return n > (size_t)1 << 40 ? fail(2) : !(*p = malloc(n)); }
int cudaFree(void *p) { free(p); return 0; }
int cudaHostAlloc(void **p, size_t n, unsigned flags) { *p = malloc(n); memset(*p, (int)flags, n); return 0; }
int cudaFreeHost(void *p) { free(p); return 0; }
int cudaHostGetDevicePointer(void **d, void *h, unsigned flags) { *d = (char *)h + flags; return 0; }
int cudaMemcpyAsync(void *d, const void *s, size_t n, int kind, void *stream) {
    if (kind < 1 || kind > 3 || stream != (void *)0x7fff12345678) return fail(1);
    memcpy(d, s, n); return 0; }
int cudaMemcpy2DAsync(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h, int kind, void *stream) {
    if (kind != 3 || stream != (void *)0x7fff12345678) return fail(1);
    for (size_t y = 0; y < h; y++) memcpy((char *)d + y * dp, (const char *)s + y * sp, w);
    return 0; }
int cudaStreamCreateWithFlags(void **s, unsigned flags) {
    *s = (void *)0x7fff12345678; return flags == 1 ? 0 : fail(1); }
int cudaStreamDestroy(void *s) { return s == (void *)0x7fff12345678 ? 0 : fail(400); }
int cudaStreamSynchronize(void *s) { return cudaStreamDestroy(s); }
int cudaEventCreate(void **e) { *e = (void *)0x7fff00000001; return 0; }
int cudaEventDestroy(void *e) { return e == (void *)0x7fff00000001 ? 0 : fail(400); }
int cudaEventRecord(void *e, void *s) { return cudaEventDestroy(e) || cudaStreamDestroy(s); }
int cudaEventQuery(void *e) { static int asked; (void)e; return asked++ ? 0 : 600; }
int cudaEventElapsedTime(float *ms, void *a, void *b) { *ms = a != b ? 1.5f : 0.25f; return 0; }
int cudaStreamBeginCapture(void *s, int mode) { return mode == 1 ? cudaStreamDestroy(s) : fail(1); }
int cudaStreamEndCapture(void *s, void **g) { *g = (void *)0x7fff00000002; return cudaStreamDestroy(s); }
int cudaGraphInstantiate(void **x, void *g, u64 flags) { *x = (char *)g + 1; return flags ? fail(1) : 0; }
int cudaGraphLaunch(void *x, void *s) { return x == (void *)0x7fff00000003 ? cudaStreamDestroy(s) : fail(400); }
int cudaGraphDestroy(void *g) { return g == (void *)0x7fff00000002 ? 0 : fail(400); }
int cudaGraphExecDestroy(void *x) { return x == (void *)0x7fff00000003 ? 0 : fail(400); }
int cudaGetLastError(void) { int code = last; last = 0; return code; }
"""

_EXERCISE = """
import ctypes, json
from gamma_runtime.cuda import CudaError, Kind, open_cuda
cuda = open_cuda("ctypes")
a, b = cuda.malloc(100), cuda.host_alloc(100, mapped=True)
view = lambda p: bytes((ctypes.c_ubyte * 100).from_address(p))
stream, event = cuda.stream_create(), cuda.event_create()
pinned = view(b)[0]
ctypes.memset(b, 9, 100); ctypes.memset(a, 0, 100)
cuda.memcpy_async(a, b, 50, Kind.HOST_TO_DEVICE, stream)
copied = view(a).count(9)
ctypes.memset(a, 0, 100)
cuda.memcpy_2d_async(a, 20, b, 10, 4, 3, Kind.DEVICE_TO_DEVICE, stream)
rows = [i for i, x in enumerate(view(a)) if x]
cuda.event_record(event, stream)
cuda.begin_capture(stream); graph = cuda.end_capture(stream); run = cuda.graph_instantiate(graph)
cuda.graph_launch(run, stream)
try: cuda.malloc(1 << 50); fault = None
except CudaError as error: fault = [error.message, error.out_of_memory]
last = cuda.last_error()
print(json.dumps({"devices": cuda.device_count(), "integrated": [cuda.properties(i).integrated for i in range(2)],
  "memory": cuda.memory_info(), "pinned": pinned, "copied": copied, "rows": rows,
  "same": cuda.host_device_pointer(b) == b, "asked": [cuda.event_query(event), cuda.event_query(event)],
  "ms": [cuda.event_elapsed_ms(event, event), cuda.event_elapsed_ms(event, stream)], "fault": fault,
  "last": last and last.code, "then": cuda.last_error()}))
for free, handle in ((cuda.graph_exec_destroy, run), (cuda.graph_destroy, graph), (cuda.event_destroy, event),
  (cuda.stream_destroy, stream), (cuda.free, a), (cuda.host_free, b)): free(handle)
"""


def _library(folder: Path) -> dict[str, str]:
    source = folder / "cudart.c"
    source.write_text(_LIBRARY)
    command = ["cc", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(folder / "libcudart.so.13"), str(source)]
    subprocess.run(command, check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)}


def test_ctypes_passes_what_it_is_given(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _EXERCISE], env=_library(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found == {
        "devices": 3,
        "integrated": [False, True],
        "memory": [5 << 32, 6 << 32],
        "pinned": 3,  # portable and mapped
        "copied": 50,
        "rows": [*range(4), *range(20, 24), *range(40, 44)],
        "same": True,
        "asked": [False, True],
        "ms": [0.25, 1.5],
        "fault": ["cudaMalloc: CUDA error 2, out of memory", True],
        "last": 2,
        "then": None,
    }


def test_old_runtime_is_refused(tmp_path: Path) -> None:
    env = {**_library(tmp_path), "STUB_RUNTIME": "11080"}
    code = "from gamma_runtime.cuda import open_cuda; open_cuda('ctypes')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "libcudart.so.13: CUDA runtime 11.8; 12.0 or newer is needed" in done.stderr


@needs_bindings
def test_every_function_has_the_same_name_in_the_bindings() -> None:
    runtime = Bindings()._runtime
    assert [name for name in _FUNCTIONS if not hasattr(runtime, name)] == []


@no_gpu
@needs_bindings
def test_bindings_name_the_function_and_say_cudas_words() -> None:
    cuda = Bindings()
    words = "CUDA error 35, CUDA driver version is insufficient for CUDA runtime version"
    for function, call in (
        ("cudaMalloc", lambda: cuda.malloc(8)),
        ("cudaMemcpyAsync", lambda: cuda.memcpy_async(8, 8, 8, 1, 0)),  # type: ignore[arg-type]
        ("cudaMemcpy2DAsync", lambda: cuda.memcpy_2d_async(8, 8, 8, 8, 8, 1, 3, 0)),  # type: ignore[arg-type]
        ("cudaDeviceGetAttribute", lambda: cuda.properties(0)),
        ("cudaStreamBeginCapture", lambda: cuda.begin_capture(0)),
        ("cudaGraphInstantiate", lambda: cuda.graph_instantiate(0)),
        ("cudaEventQuery", lambda: cuda.event_query(0)),
    ):
        with pytest.raises(CudaError) as caught:
            call()
        assert caught.value.message == f"{function}: {words}"
        assert (caught.value.exit_code, caught.value.sticky) == (5, False)


@no_gpu
def test_real_libcudart_names_the_function_and_says_cudas_words() -> None:
    try:
        cuda = Ctypes()
    except EnvironmentFault as error:
        pytest.skip(f"no libcudart here: {error.message}")
    with pytest.raises(CudaError, match="cudaMalloc: CUDA error 35, CUDA driver version is insufficient"):
        cuda.malloc(8)


@no_gpu
@needs_bindings
def test_opening_fails_with_the_drivers_reason_and_tries_no_other() -> None:
    with pytest.raises(CudaError, match="cudaSetDevice: CUDA error 35"):
        open_cuda()


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> HostCuda:
        raise ImportError("No module named 'cuda'")

    host = HostCuda()
    for name in IMPLEMENTATIONS:
        monkeypatch.setitem(IMPLEMENTATIONS, name, missing)
    with pytest.raises(EnvironmentFault, match=r"cuda-bindings: No module named 'cuda'; ctypes: .*; pycuda: "):
        open_cuda()
    monkeypatch.setitem(IMPLEMENTATIONS, "pycuda", lambda: host)
    assert open_cuda() is host
    monkeypatch.setenv("GAMMA_CUDA", "ctypes")
    with pytest.raises(EnvironmentFault, match=r"cannot be used from Python: ctypes: No module"):
        open_cuda()  # never another one instead
    monkeypatch.setenv("GAMMA_CUDA", "opencl")
    with pytest.raises(UsageError, match="unknown 'opencl'"):
        open_cuda()
