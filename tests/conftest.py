"""What every test obeys: gpu tests skip with the driver's own reason, long tests run only when they are asked for."""

from __future__ import annotations

import importlib.util
import signal
import tempfile
from collections.abc import Iterator

import pytest

NO_GPU = "no usable GPU: "  # tests/gpu_check.py accepts a skip only when its reason starts with this


def _gpu_fault() -> str | None:
    """Why no GPU can be used, in the words of the runtime's probe; None when one answers."""
    if importlib.util.find_spec("gamma_runtime") is None:
        return "gamma_runtime is not installed, so the driver was not asked"
    from gamma_runtime.cuda_probe import probe

    state = probe()
    return None if state.usable else state.detail


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored; the commands under test would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and (fault := _gpu_fault()):
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason=f"{NO_GPU}{fault}"))
    if "long" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="part of `make test-long` only"))


@pytest.fixture(autouse=True, scope="session")
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the programs under test leave in the temporary folder, such as logs of failed builds, goes with pytest's."""
    folder = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
