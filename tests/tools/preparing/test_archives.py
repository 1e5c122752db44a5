"""`minigpt4 prepare-data align`: what is unpacked, what is refused, and what is found in it."""

import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest

from minigpt4.common.errors import UserError
from minigpt4.tools.preparing.archives import unpack
from tests.datasets.mixing import jpeg

ANNOTATIONS = {"annotations": [{"image_id": str(i), "caption": f"A dog, {i}."} for i in range(3)]}
FILES = {"filter_cap.json": json.dumps(ANNOTATIONS).encode()} | {f"image/{i}.jpg": jpeg(i) for i in range(3)}
WHOLE = {f"cc_sbu_align/{name}": data for name, data in FILES.items()}


def write_zip(file: Path, files: dict[str, bytes], links: tuple[str, ...] = ()) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        for name in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc")


def write_tar(file: Path, files: dict[str, bytes], links: tuple[str, ...] = (), kind: bytes = tarfile.SYMTYPE) -> None:
    with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)


def left(folder: Path) -> list[str]:
    """What is in a folder, but for locks."""
    return sorted(path.name for path in folder.rglob("*") if path.suffix != ".lock")


WRITERS = {"x.zip": write_zip, "x.tar": write_tar, "x.tar.gz": write_tar}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("root", ["cc_sbu_align/", "", "a/b/"])
def test_the_folder_of_filter_cap_is_what_is_unpacked(name, root, tmp_path, minigpt4):
    other = {"README": b"x"} if root else {}
    WRITERS[name](tmp_path / name, other | {root + inside: data for inside, data in FILES.items()})
    code, out, _ = minigpt4("prepare-data", "align", tmp_path / name, "--page", tmp_path / "page.html")
    assert code == 0 and "3 samples that training can use" in out and "no problems" in out
    found = {str(path.relative_to(tmp_path / "x")): path.read_bytes() for path in (tmp_path / "x").rglob("*.*")}
    assert found == FILES
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 and "A dog, 2." in page and "tokens" not in page


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "bad", ["../evil.jpg", "/tmp/evil.jpg", "cc_sbu_align/../../evil.jpg", "C:/evil.jpg", "a\\..\\evil.jpg"]
)
def test_a_name_that_leads_out_is_refused_before_anything_is_written(name, bad, tmp_path, minigpt4):
    WRITERS[name](tmp_path / name, WHOLE | {bad: b"x"})
    code, _, err = minigpt4("prepare-data", "align", tmp_path / name)
    assert code == 2 and "would be written outside the target folder" in err
    assert left(tmp_path) == [name]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_is_refused(kind, tmp_path, minigpt4):
    write_tar(tmp_path / "x.tar", WHOLE, ("cc_sbu_align/link",), kind)
    write_zip(tmp_path / "y.zip", WHOLE, ("cc_sbu_align/link",))
    for name in ("x.tar", "y.zip"):
        code, _, err = minigpt4("prepare-data", "align", tmp_path / name)
        assert code == 2 and "is a link or device" in err
    assert left(tmp_path) == ["x.tar", "y.zip"]


@pytest.mark.parametrize("name", WRITERS)
def test_what_would_fill_the_disk_is_refused(name, tmp_path):
    WRITERS[name](tmp_path / name, WHOLE | {"cc_sbu_align/zeros": bytes(30_000)})
    with pytest.raises(UserError, match="--max-gb"):
        unpack(tmp_path / name, "filter_cap.json", tmp_path / "new", 20_000)
    assert left(tmp_path) == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_archive_leaves_nothing(name, tmp_path, minigpt4):
    WRITERS[name](tmp_path / name, WHOLE)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    code, _, err = minigpt4("prepare-data", "align", tmp_path / name)
    assert code == 2 and "ownload it again" in err and left(tmp_path) == [name]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])  # a plain tar has no checksums of contents
@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_damage_within_an_archive_is_reported_as_such(name, place, tmp_path, minigpt4):
    WRITERS[name](tmp_path / name, WHOLE)
    data = bytearray((tmp_path / name).read_bytes())
    start = int(place * len(data))
    data[start : start + 80] = bytes(80)
    (tmp_path / name).write_bytes(data)
    code, _, err = minigpt4("prepare-data", "align", tmp_path / name)
    assert code == 2 and "ownload it again" in err and left(tmp_path) == [name]


def test_problems_of_the_folder_are_counted_by_cause(tmp_path, minigpt4):
    more = [{"image_id": "9", "caption": "x"}, {"image_id": "1", "caption": " "}, {"caption": "x"}]
    files = FILES | {"filter_cap.json": json.dumps({"annotations": ANNOTATIONS["annotations"] + more}).encode()}
    write_zip(tmp_path / "x.zip", files | {"image/2.jpg": b"no picture"})
    code, out, _ = minigpt4("prepare-data", "align", tmp_path / "x.zip", "--out", tmp_path / "out")
    assert code == 1 and "2 samples that training can use" in out
    for line in ("1 x missing picture: annotation 3", "1 x no caption: annotation 4", "1 x no image_id: annotation 5"):
        assert line in out
    assert "1 x unreadable picture: annotation 2" in out
    assert minigpt4("prepare-data", "align", tmp_path / "out")[:2] == (code, out)  # a folder is only checked


def test_an_archive_without_the_file_is_refused(tmp_path, minigpt4):
    write_zip(tmp_path / "x.zip", {"a.jpg": b"x"})
    assert "0 files named filter_cap.json" in minigpt4("prepare-data", "align", tmp_path / "x.zip")[2]
    (tmp_path / "y.zip").write_bytes(bytes(range(256)))
    assert "not a ZIP or tar archive" in minigpt4("prepare-data", "align", tmp_path / "y.zip")[2]
    (tmp_path / "y.zip").write_text("<html>")
    assert "y.zip' is a web page, not the file" in minigpt4("prepare-data", "align", tmp_path / "y.zip")[2]
    assert "nosuch.zip' is not a file" in minigpt4("prepare-data", "align", tmp_path / "nosuch.zip")[2]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_with_the_name_of_a_folder_is_refused(name, tmp_path, minigpt4):
    WRITERS[name](tmp_path / name, WHOLE | {"cc_sbu_align/image": b"x"})
    code, _, err = minigpt4("prepare-data", "align", tmp_path / name)
    assert code == 2 and "holds 'cc_sbu_align/image' as a file and as a folder" in err and left(tmp_path) == [name]


def test_zeros_behind_a_tar_are_not_read_without_end(tmp_path, minigpt4, monkeypatch):
    monkeypatch.setattr("minigpt4.tools.preparing.archives.MAX_PADDING", 2**20)
    write_tar(tmp_path / "x.tar", WHOLE)
    with lzma.open(tmp_path / "x.tar.xz", "wb", preset=0) as copy:
        copy.write((tmp_path / "x.tar").read_bytes() + bytes(2 * 2**20))
    code, _, err = minigpt4("prepare-data", "align", tmp_path / "x.tar.xz")
    assert code == 2 and "more than 1 MB of zeros follow the last file" in err
