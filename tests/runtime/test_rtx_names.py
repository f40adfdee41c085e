"""The real TensorRT-RTX bindings have every name that the backend uses; its runtime fails as the backend expects."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest

from gamma_runtime.backends import tensorrt_session
from gamma_runtime.cuda_probe import probe
from gamma_runtime.engines import runtime_cache
from tests.runtime import ort_engine
from tests.runtime.engine_bundle import needs_rtx

pytestmark = needs_rtx

ENGINE = ("create_execution_context", "create_runtime_config", "get_tensor_dtype", "get_tensor_mode", "get_tensor_name")
ENGINE += ("get_tensor_profile_shape", "get_tensor_shape", "num_io_tensors", "num_optimization_profiles")
CONTEXT = ("execute_async_v3", "get_tensor_shape", "infer_shapes", "is_stream_capturable", "set_input_shape")
CONTEXT += ("set_optimization_profile_async", "set_tensor_address")
CONFIG = ("create_runtime_cache", "dynamic_shapes_kernel_specialization_strategy", "set_runtime_cache")
CACHE = ("deserialize", "serialize")
OWNERS = {"engine": ENGINE, "_context": CONTEXT, "context": CONTEXT, "config": CONFIG, "_cache": CACHE}


@pytest.fixture(scope="module")
def rtx() -> Any:
    return importlib.import_module("tensorrt_rtx")


def test_every_name_exists(rtx: Any) -> None:
    for kind, names in {"ICudaEngine": ENGINE, "IExecutionContext": CONTEXT, "IRuntimeConfig": CONFIG}.items():
        assert [name for name in names if not hasattr(getattr(rtx, kind), name)] == [], kind
    assert all(hasattr(rtx.IRuntimeCache, name) for name in CACHE)
    assert rtx.TensorIOMode.INPUT.name == "INPUT"
    assert {"UINT8", "FLOAT", "HALF", "INT32", "INT64"} <= set(rtx.DataType.__members__)
    assert "EAGER" in rtx.DynamicShapesKernelSpecializationStrategy.__members__
    assert "runtime_config:" in rtx.ICudaEngine.create_execution_context.__doc__


def _used(module: Any) -> set[str]:
    """Names that the module reads from its engine, context, configuration and cache."""
    assert module.__file__ is not None
    found = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if name in OWNERS:
                found.add(node.attr)
    return found


def test_the_lists_are_what_the_backend_uses() -> None:
    listed = {*ENGINE, *CONTEXT, *CONFIG, *CACHE}
    assert _used(tensorrt_session) | _used(runtime_cache) == listed


def test_the_computing_engine_has_the_same_names() -> None:
    engine = {*dir(ort_engine.OrtEngine), "create_runtime_config"}
    for names, has in ((ENGINE, engine), (CONTEXT, dir(ort_engine.Context)), (CONFIG, dir(ort_engine.Config))):
        assert set(names) <= set(has)


@pytest.mark.skipif(probe().usable, reason="this machine has a GPU, where the runtime works")
def test_runtime_constructs_and_deserialises_to_none_without_a_driver(rtx: Any) -> None:
    logger = rtx.Logger(rtx.Logger.INTERNAL_ERROR)
    assert rtx.Runtime(logger).deserialize_cuda_engine(b"not a plan" * 100) is None
