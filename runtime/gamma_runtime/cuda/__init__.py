"""CUDA memory, streams and graphs behind one small protocol (`CudaRt`); nothing is imported until `open_cuda`.

``api`` says what it is, ``runtime_api`` spells it in calls of the CUDA runtime for ``bindings_`` (cuda-bindings) and
``ctypes_`` (libcudart), ``pycuda_`` adapts PyCUDA; ``owner`` frees what was allocated, ``arrays`` reads images that
already lie on the device.
"""

from gamma_runtime.cuda.api import CudaError, CudaRt, Kind, Properties
from gamma_runtime.cuda.owner import Buffer, Owner
from gamma_runtime.cuda.pick import IMPLEMENTATIONS, open_cuda

__all__ = ["IMPLEMENTATIONS", "Buffer", "CudaError", "CudaRt", "Kind", "Owner", "Properties", "open_cuda"]
