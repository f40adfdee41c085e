"""Built-in scenes, scenes by name, and scenes of the user's own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gamma_runtime.errors import InputError, UsageError
from gamma_training.scenes import LEVELS, SCENES, Scene, find_scenes, load_scenes, scenes_of

PRODUCT = """
name: product-photos
prompts: [bad product photo, poor product photo, fair product photo, good product photo, perfect product photo]
"""


def user_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "scenes.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_built_in_scenes() -> None:
    assert [scene.name for scene in scenes_of("sdp")] == [
        "natural-quality",
        "aigc-quality",
        "underwater-quality",
        "face-quality",
        "natural-aesthetics",
    ]
    assert [scene.name for scene in scenes_of("plain")] == ["plain"]
    assert SCENES["natural-quality"].prompts[0] == "natural bad-quality image"
    assert SCENES["natural-aesthetics"].prompts[-1] == "natural perfect-aesthetics image"
    assert SCENES["plain"].prompts == tuple(f"{level} image" for level in LEVELS)


def test_working_sizes() -> None:
    """What the scenes were trained on (model.md section 2)."""
    assert {name: scene.short_side for name, scene in SCENES.items()} == {
        "natural-quality": 384,
        "aigc-quality": 384,
        "underwater-quality": 224,
        "face-quality": 512,
        "natural-aesthetics": 224,
        "plain": 384,
    }


def test_finding_keeps_the_order_and_takes_each_once() -> None:
    found = find_scenes(["face-quality,plain", "natural-quality", "plain"])
    assert [scene.name for scene in found] == ["face-quality", "plain", "natural-quality"]


def test_finding_the_users_own(tmp_path: Path) -> None:
    user = load_scenes(user_file(tmp_path, PRODUCT))
    assert find_scenes(["product-photos"], user) == user
    with pytest.raises(UsageError, match="unknown scene 'product-photos'"):
        find_scenes(["product-photos"])


@pytest.mark.parametrize("names", [["nature"], [""], [","], ["Plain"]])
def test_unknown_and_empty_names(names: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        find_scenes(names)
    assert "natural-quality" in str(caught.value.hint)


def test_user_scenes(tmp_path: Path) -> None:
    prompts = tuple(f"{level} product photo" for level in LEVELS)
    assert load_scenes(user_file(tmp_path, PRODUCT)) == [Scene("product-photos", prompts, "user", 384)]
    assert load_scenes(user_file(tmp_path, PRODUCT + "short_side: null\n"))[0].short_side is None
    assert load_scenes(user_file(tmp_path, PRODUCT + "short_side: 512\n"))[0].short_side == 512
    several = f"- {{name: a, prompts: {list(prompts)}}}\n- {{name: b_2, prompts: {list(prompts)}, short_side: 224}}\n"
    assert [scene.name for scene in load_scenes(user_file(tmp_path, several))] == ["a", "b_2"]


def variant(**changes: str) -> str:
    entry = {"name": "mine", "prompts": "[a, b, c, d, e]", **changes}
    return "{" + ", ".join(f"{key}: {value}" for key, value in entry.items()) + "}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a scene is a mapping"),
        ("[]", "at least one scene"),
        ("just text", "a scene is a mapping"),
        ("{name: mine}", "a scene is a mapping"),
        (variant(extra="1"), "a scene is a mapping"),
        (variant(name="Mine"), "must be lower-case"),
        (variant(name="joint"), "not 'joint'"),
        (variant(name='"../x"'), "must be lower-case"),
        (variant(name='"a\\n"'), "must be lower-case"),
        (variant(name="x" * 65), "must be lower-case"),
        (variant(name="7"), "must be lower-case"),
        (variant(name="plain"), "is built in"),
        (variant(prompts="[a, b, c, d]"), "five different prompts"),
        (variant(prompts="[a, b, c, d, 5]"), "five different prompts"),
        (variant(prompts="[a, b, c, d, '  ']"), "five different prompts"),
        (variant(prompts="[a, b, c, d, a]"), "five different prompts"),
        (variant(prompts="[a, b, c, d, ' A ']"), "five different prompts"),
        (variant(prompts='[a, b, c, d, "e\\nf"]'), "five different prompts"),
        (variant(prompts='[a, b, c, d, "\\ud800"]'), "five different prompts"),
        (variant(prompts="abcde"), "five different prompts"),
        (variant(short_side="100"), "short_side 100 is not between 224 and 4096"),
        (variant(short_side="true"), "short_side True is not between"),
        (variant(short_side="384.0"), r"short_side 384\.0 is not between"),
        (f"[{variant()}, {variant()}]", "every name once"),
        ("{name: mine, prompts: [a, b", "cannot be read as YAML"),
        ("2001-99-99", "cannot be read as YAML"),
        ("9" * 5000, "cannot be read as YAML"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
        ("[" * 20_000, "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"x" * 2**19, "not a regular file of at most"),
    ],
)
def test_bad_user_scenes(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_scenes(user_file(tmp_path, text))
    assert len(caught.value.message.splitlines()) == 1
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("part", ["extra", "name", "prompts", "short_side"])
def test_endless_aliases_are_no_trap(tmp_path: Path, part: str) -> None:
    """A small file whose value, written out, has 10^30 items: each level names the one inside it ten times."""
    bomb = "[x]"
    for level in range(30):
        bomb = f"[&a{level} {bomb}{f', *a{level}' * 9}]"
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        load_scenes(user_file(tmp_path, variant(**{part: bomb})))
    assert time.monotonic() - start < 5
    assert len(caught.value.message) < 1000


def test_places_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(InputError):
            load_scenes(path)
