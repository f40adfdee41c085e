"""Images that already lie on the device: ``__cuda_array_interface__`` (PyCUDA, CuPy, Numba, torch) and DLPack."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gamma_runtime.contract import CROP
from gamma_runtime.cuda.api import CudaRt, Kind
from gamma_runtime.cuda.owner import Owner
from gamma_runtime.cuda.pick import open_cuda
from gamma_runtime.errors import InputError

__all__ = ["DeviceCrops", "DeviceFrame", "SupportsArray", "is_array", "read_array"]

_LEGACY_STREAM = 1  # CUDA's handle of the default stream, in the array interface and in DLPack
_CPU_KINDS, _CUDA_KINDS = (1, 3), (2, 13)  # DLDeviceType: CPU, pinned; CUDA, managed
_UINT8 = (1, 8, 1)  # DLDataType: code unsigned, bits, lanes


class SupportsCuda(Protocol):
    """What PyCUDA, CuPy, Numba and torch say of their arrays."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


class SupportsDlpack(Protocol):
    """What nearly every array library says of its arrays."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


SupportsArray: TypeAlias = SupportsCuda | SupportsDlpack


class DeviceFrame:
    """An RGB frame on the device, uint8 ``[H, W, 3]``; as a numpy array it is copied to the host, once.

    Attributes:
        address: of the first pixel.
        strides: in bytes, of the three dimensions.
    """

    def __init__(
        self, cuda: CudaRt, address: int, shape: tuple[int, ...], strides: tuple[int, ...], keep: object
    ) -> None:
        self.cuda = cuda
        self.address = address
        self.shape = shape
        self.strides = strides
        self._keep = keep  # whoever owns the memory

    @property
    def rows(self) -> bool:
        """Every row's pixels lie side by side, so that crops can be copied on the device."""
        return self.strides[1:] == (3, 1) and self.strides[0] >= 3 * self.shape[1]

    def copy_to(self, target: int, stream: int) -> None:
        """Queue the copy of the whole frame, its rows packed, to ``target`` on the device."""
        height, width, _ = self.shape
        kind = Kind.DEVICE_TO_DEVICE
        self.cuda.memcpy_2d_async(target, 3 * width, self.address, self.strides[0], 3 * width, height, kind, stream)

    def cut(self, places: Sequence[tuple[int, int]]) -> DeviceCrops:
        """Crops of 224 pixels at top and left positions; nothing is copied yet."""
        return DeviceCrops(self, tuple(places))

    @functools.cached_property
    def _pixels(self) -> NDArray[np.uint8]:
        ends = [(size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)]
        low, high = sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends)
        span = high - low + 1
        self.cuda.bind(0)
        with Owner(self.cuda) as owner:
            host, stream = owner.pinned(span), owner.stream()
            self.cuda.memcpy_async(host, self.address + low, span, Kind.DEVICE_TO_HOST, stream)
            self.cuda.stream_synchronize(stream)
            memory = np.frombuffer((ctypes.c_ubyte * span).from_address(host), np.uint8)
            view = np.ndarray(self.shape, np.uint8, memory, -low, self.strides)
            return view.copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._pixels if dtype in (None, np.uint8) else self._pixels.astype(dtype)


class DeviceCrops:
    """The crops of one image, still inside their frame; stands where uint8 ``[C, 224, 224, 3]`` is expected."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, frame: DeviceFrame, places: tuple[tuple[int, int], ...]) -> None:
        self.frame = frame
        self.places = places
        self.shape = (len(places), CROP, CROP, 3)

    def __len__(self) -> int:
        return len(self.places)

    def split(self) -> list[DeviceCrops]:
        """Each crop by itself."""
        return [DeviceCrops(self.frame, (place,)) for place in self.places]

    def copy_to(self, target: int, stream: int) -> None:
        """Queue the copies of all crops to ``target`` on the device, one behind the other."""
        pitch, width = self.frame.strides[0], 3 * CROP
        for index, (top, left) in enumerate(self.places):
            source = self.frame.address + top * pitch + 3 * left
            place = target + index * CROP * width
            kind = Kind.DEVICE_TO_DEVICE
            self.frame.cuda.memcpy_2d_async(place, width, source, pitch, width, CROP, kind, stream)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        pixels = np.asarray(self.frame)
        crops = np.stack([pixels[y : y + CROP, x : x + CROP] for y, x in self.places])
        return crops if dtype in (None, np.uint8) else crops.astype(dtype)


def is_array(source: object) -> bool:
    """Another library's array: it offers the CUDA array interface or DLPack."""
    return hasattr(source, "__cuda_array_interface__") or hasattr(source, "__dlpack__")


def read_array(source: Any) -> NDArray[np.uint8] | DeviceFrame:
    """A frame where it lies: on the host as numpy, on the device as `DeviceFrame`.

    The producer's stream is waited for; the caller leaves the pixels alone until the score is there. Frames whose rows
    are not packed (other channel order, mirrored) are copied to the host.

    Raises:
        InputError: not uint8 ``[H, W, 3]``, or on a device that is not the first GPU. CudaError: CUDA failed.
    """
    interface = getattr(source, "__cuda_array_interface__", None)
    # Before version 3 the interface does not name a stream (torch: still 2), DLPack waits for the right one.
    if interface is not None and (interface.get("version", 0) >= 3 or not hasattr(source, "__dlpack__")):
        frame = _from_interface(source, interface)
    else:
        kind, index = source.__dlpack_device__()
        if int(kind) in _CPU_KINDS:
            return _checked(np.from_dlpack(source))
        if int(kind) not in _CUDA_KINDS or index != 0:
            raise InputError(f"array: on DLPack device {int(kind)}:{index}; needed is a CPU or the first GPU")
        frame = _from_dlpack(source)
    return frame if frame.rows else np.asarray(frame)


def _checked(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    _check(str(pixels.dtype), pixels.shape)
    return pixels


def _check(kind: str, shape: tuple[int, ...]) -> None:
    if kind != "uint8" or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise InputError(
            f"array: {kind} {list(shape)}; needed is uint8 [H, W, 3] in RGB order",
            hint="convert to 8 bits and three channels first",
        )


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[1] * shape[2], shape[2], 1)


def _from_interface(source: Any, interface: dict[str, Any]) -> DeviceFrame:
    shape = tuple(interface["shape"])
    _check(np.dtype(interface["typestr"]).name, shape)
    if interface.get("mask") is not None:
        raise InputError("array: has a mask; needed are plain pixels")
    cuda = open_cuda()
    stream = interface.get("stream") if interface.get("version", 0) >= 3 else _LEGACY_STREAM
    if stream is not None:
        cuda.stream_synchronize(stream)
    return DeviceFrame(cuda, interface["data"][0], shape, interface.get("strides") or _packed(shape), source)


class _Tensor(ctypes.Structure):
    """DLTensor, which is also where an unversioned DLManagedTensor begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(source: Any) -> DeviceFrame:
    cuda = open_cuda()
    capsule = source.__dlpack__(stream=_LEGACY_STREAM)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.argtypes, pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[: tensor.ndim])
    known = (tensor.code, tensor.bits, tensor.lanes) == _UINT8
    _check("uint8" if known else f"DLPack type {tensor.code} of {tensor.bits} bits", shape)
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _packed(shape)
    cuda.stream_synchronize(_LEGACY_STREAM)
    # The capsule is kept, not consumed: its own destructor gives the memory back.
    return DeviceFrame(cuda, (tensor.data or 0) + tensor.byte_offset, shape, strides, capsule)
