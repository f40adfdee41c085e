"""The C interface: the programs of runtime/cpp/tests through ctest, the header on its own, what the library exports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gamma_export.photos import packaged_photos
from gamma_runtime.bundle import Bundle
from tests.cpp.conftest import ROOT
from tests.runtime.tiny_bundle import make_bundle

CPP = ROOT / "runtime" / "cpp"
WITHOUT_BUNDLE = {"guard", "area", "area_pixel", "sources"}
TESTS = WITHOUT_BUNDLE | {"c_api", "example", "leak", "leak_is_seen", "leak_of_pages_is_seen"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("c") / "five.gamma")


def run(command: list[str | Path], bundle: Path | None = None) -> subprocess.CompletedProcess[str]:
    others = {name: value for name, value in os.environ.items() if name != "GAMMA_TEST_BUNDLE"}
    env = others | ({"GAMMA_TEST_BUNDLE": str(bundle)} if bundle else {})
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=600, env=env)


def ctest(tools: Path, *flags: str, bundle: Path | None = None) -> str:
    done = run(["ctest", "--test-dir", tools.parent.parent, "--output-on-failure", *flags], bundle)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    return done.stdout


def test_every_program_of_ctest(tools: Path, bundle: Bundle) -> None:
    said = ctest(tools, bundle=bundle.folder)
    assert f"100% tests passed, 0 tests failed out of {len(TESTS)}" in said
    assert set(re.findall(r"Test +#\d+: (\w+) \.+ +Passed", said)) == TESTS


def test_without_a_bundle_they_say_that_they_were_skipped(tools: Path) -> None:
    said = ctest(tools)
    assert set(re.findall(r"Test +#\d+: (\w+) \.+ *\*+Skipped", said)) == TESTS - WITHOUT_BUNDLE


def test_the_bundle_by_a_flag_of_cmake(tmp_path: Path, tools: Path) -> None:
    folder = tmp_path / "build"
    flags = ["-DGAMMA_TEST_BUNDLE=some/where.gamma", f"-DPython3_EXECUTABLE={sys.executable}"]
    done = run(["cmake", "-S", ROOT, "-B", folder, *flags])
    assert done.returncode == 0, done.stderr
    shown = json.loads(run(["ctest", "--test-dir", folder, "--show-only=json-v1"]).stdout)
    given = {test["name"]: str(test["properties"]) for test in shown["tests"]}
    assert {name for name, properties in given.items() if "some/where.gamma" in properties} == TESTS - WITHOUT_BUNDLE


def test_the_c_program_sees_another_score(tools: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Against a tool that says another number, and with a bundle that cannot score, the test in C must fail."""
    program, photo = tools / "tests" / "c_api", packaged_photos()[0]
    right = run([program, photo, tools / "gamma-run-cpp"], bundle.folder)
    assert right.returncode == 0, right.stderr
    value = float(right.stdout.split()[-1])
    told = json.loads(run([tools / "gamma-run-cpp", bundle.folder, photo, "--json"]).stdout)["score"]
    assert value == told
    liar = tmp_path / "liar"
    liar.write_text(f"#!/bin/sh\necho '{{\"score\":{value + 1e-9!r}}}'\n")
    liar.chmod(0o755)
    wrong = run([program, photo, liar], bundle.folder)
    assert (wrong.returncode, "told_by" in wrong.stderr) == (1, True)
    assert run([program, photo, tools / "gamma-run-cpp"], tmp_path).returncode == 1


def test_the_example_of_the_readme(tools: Path, bundle: Bundle, tmp_path: Path) -> None:
    """It is what runtime/cpp/tests/example.c compiles; and it prints what gamma-run-cpp prints."""
    blocks = re.findall(
        r"(?m)^    gamma_edge_scorer\*[\s\S]*?gamma_edge_close\(scorer\);$", (CPP / "README.md").read_text()
    )
    assert len(blocks) == 1
    assert blocks[0] in (CPP / "tests" / "example.c").read_text()
    photo = packaged_photos()[0]
    done = run([tools / "tests" / "example", bundle.folder, photo])
    assert done.returncode == 0
    assert run([tools / "gamma-run-cpp", bundle.folder, photo]).stdout.startswith(done.stdout.strip())
    done = run([tools / "tests" / "example", tmp_path / "none.gamma", photo])
    assert (done.returncode, "none.gamma" in done.stderr) == (3, True)


@pytest.mark.parametrize(("language", "standard"), [("c", "c11"), ("c++", "c++17")])
def test_the_header_stands_alone(tools: Path, tmp_path: Path, language: str, standard: str) -> None:
    source = tmp_path / "x"
    source.write_text(
        "#include <gamma/gamma.h>\n#include <math.h>\n"
        "static gamma_edge_options options = GAMMA_EDGE_OPTIONS;\nstatic gamma_edge_score score = GAMMA_EDGE_SCORE;\n"
        "int main(void) { return (int)(options.struct_size + score.struct_size); }\n"
    )
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", f"-I{CPP / 'include'}"]
    done = run(["c++" if language == "c++" else "cc", "-x", language, f"-std={standard}", *flags, source])
    assert done.returncode == 0, done.stderr


def test_what_the_library_exports(tools: Path) -> None:
    """The C interface, with its version, and the C++ namespace: nothing of OpenCV's, OpenVINO's or JSON's."""
    done = run(["nm", "-D", "--defined-only", "--demangle", tools / "libgamma_runtime.so"])
    names = [line.split(maxsplit=2)[2] for line in done.stdout.splitlines()]
    ours = r"(vtable for |typeinfo (name )?for )?gamma_edge::|gamma_edge_\w+@@GAMMA_EDGE_0$|GAMMA_EDGE_0$"
    assert [name for name in names if not re.match(ours, name)] == []
    header = (CPP / "include" / "gamma" / "gamma.h").read_text()
    declared = set(re.findall(r"(?m)^(?:\w+\s+)*(?:\w+\*? )\*?(gamma_edge_\w+)\(", header))
    assert len(declared) == 8
    assert {name.split("@")[0] for name in names if name.startswith("gamma_edge_")} == declared
