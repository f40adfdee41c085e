"""The CPU's CUDA keeps the rules that the backends are tested by: each check of its own is broken once."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

from gamma_runtime.cuda import CudaError, CudaRt, Kind, Owner
from tests.runtime.host_cuda import HostCuda, LeakError


@pytest.fixture
def cuda() -> Iterator[HostCuda]:
    made = HostCuda()
    yield made
    made.close()


def test_it_is_the_protocol(cuda: HostCuda) -> None:
    checked: CudaRt = cuda
    methods = {name for name in vars(CudaRt) if not name.startswith("_")} - {"name"}
    assert methods
    assert all(callable(getattr(checked, name)) for name in methods)


def test_copies_arrive_only_after_synchronising(cuda: HostCuda) -> None:
    cuda.delay = 0.05
    with Owner(cuda) as owner:
        first, second = (owner.buffer(256, zero_copy=False) for _ in range(2))
        stream = owner.stream()
        first.host[:], second.host[:] = 7, 0
        first.upload(cuda, 256, stream)
        cuda.memcpy_async(second.device, first.device, 256, Kind.DEVICE_TO_DEVICE, stream)
        second.download(cuda, 256, stream)
        assert not second.host.any(), "a missing synchronisation must show"
        cuda.stream_synchronize(stream)
        assert (second.host == 7).all()


def test_two_dimensional_copies(cuda: HostCuda) -> None:
    with Owner(cuda) as owner:
        buffer, small, stream = owner.buffer(100, zero_copy=False), owner.buffer(12, zero_copy=False), owner.stream()
        buffer.host[:] = np.arange(100)
        buffer.upload(cuda, 100, stream)
        cuda.memcpy_2d_async(small.device, 4, buffer.device + 23, 10, 4, 3, Kind.DEVICE_TO_DEVICE, stream)
        small.download(cuda, 12, stream)
        cuda.stream_synchronize(stream)
        assert small.host.reshape(3, 4).tolist() == [[y * 10 + x for x in range(3, 7)] for y in range(2, 5)]
        with pytest.raises(CudaError, match="pitch"):
            cuda.memcpy_2d_async(small.device, 3, buffer.device, 10, 4, 3, Kind.DEVICE_TO_DEVICE, stream)


def test_pageable_memory_is_refused(cuda: HostCuda) -> None:
    pageable = ctypes.create_string_buffer(16)
    with Owner(cuda) as owner:
        device, stream = owner.device(16), owner.stream()
        with pytest.raises(CudaError, match=r"are not .*pinned"):
            cuda.memcpy_async(device, ctypes.addressof(pageable), 16, Kind.HOST_TO_DEVICE, stream)


def test_copy_past_the_end_is_refused(cuda: HostCuda) -> None:
    with Owner(cuda) as owner:
        buffer, stream = owner.buffer(16, zero_copy=False), owner.stream()
        with pytest.raises(CudaError, match="17 bytes"):
            buffer.upload(cuda, 17, stream)


def test_double_free(cuda: HostCuda) -> None:
    address = cuda.malloc(8)
    cuda.free(address)
    with pytest.raises(CudaError, match="freed already"):
        cuda.free(address)


def test_use_after_free_loses_the_context(cuda: HostCuda) -> None:
    cuda.delay = 0.02
    owner = Owner(cuda)
    stream = owner.stream()
    device, host = cuda.malloc(8), owner.pinned(8)
    cuda.memcpy_async(device, host, 8, Kind.HOST_TO_DEVICE, stream)
    cuda.free(device)
    with pytest.raises(CudaError) as caught:
        cuda.stream_synchronize(stream)
    assert caught.value.sticky
    with pytest.raises(CudaError, match="sticky"):
        cuda.malloc(1)
    cuda.sticky = None
    owner.close()


def test_leaks_are_found(cuda: HostCuda) -> None:
    device, stream = cuda.malloc(8), cuda.stream_create()
    with pytest.raises(LeakError, match=r"device of 8.*Stream"):
        cuda.close()
    cuda.free(device)
    del cuda.handles[stream]  # its thread ended with close


@pytest.mark.parametrize("what", ["malloc", "synchronize", "host_alloc"])
def test_capture_forbids(cuda: HostCuda, what: str) -> None:
    with Owner(cuda) as owner:
        stream = owner.stream()
        cuda.begin_capture(stream)
        forbidden = {
            "malloc": lambda: cuda.malloc(1),
            "synchronize": lambda: cuda.stream_synchronize(stream),
            "host_alloc": lambda: cuda.host_alloc(1, mapped=False),
        }[what]
        with pytest.raises(CudaError, match="when stream is capturing"):
            forbidden()
        with pytest.raises(CudaError, match="previous error during capture"):
            cuda.end_capture(stream)


def test_replays_do_the_work_again(cuda: HostCuda) -> None:
    with Owner(cuda) as owner:
        buffer, other, stream = owner.buffer(8, zero_copy=False), owner.buffer(8, zero_copy=False), owner.stream()
        other.host[:] = 0
        cuda.begin_capture(stream)
        buffer.upload(cuda, 8, stream)
        cuda.memcpy_async(other.device, buffer.device, 8, Kind.DEVICE_TO_DEVICE, stream)
        other.download(cuda, 8, stream)
        executable = owner.executable(cuda.end_capture(stream))
        cuda.stream_synchronize(stream)
        assert not other.host.any(), "captured work must not run"
        for value in (3, 9):
            buffer.host[:] = value
            cuda.graph_launch(executable, stream)
            cuda.stream_synchronize(stream)
            assert (other.host == value).all()


def test_owner_frees_newest_first_and_all_of_it(cuda: HostCuda) -> None:
    owner = Owner(cuda)
    first, second, third = owner.device(1), owner.device(2), owner.device(3)
    cuda.free(second)  # somebody else's mistake
    before = len(cuda.calls)
    with pytest.raises(CudaError, match="freed already"):
        owner.close()
    assert cuda.calls[before:] == ["cudaFree"] * 3
    assert not {first, second, third} & set(cuda.memory)
    owner.close()


def test_out_of_memory_says_asked_and_free(cuda: HostCuda) -> None:
    cuda.limit = 10 << 20
    with Owner(cuda) as owner:
        owner.device(4 << 20)
        with pytest.raises(CudaError) as caught:
            owner.buffer(8 << 20, zero_copy=False)
    assert caught.value.out_of_memory
    assert "8.0 MiB asked for, 6 of 10 MiB are free" in caught.value.message
    assert caught.value.exit_code == 5
