from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfscan.dataset.layouts import components
from dfscan.dataset.sources import Source, SourceOptions, Sources, read_sources
from dfscan.errors import ConfigError, DataError


def tree(root: Path, *names: str) -> Path:
    """Create empty files: no adapter reads them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def by_name(found: Sources, root: Path) -> dict[str, Source]:
    return {Path(source.path).relative_to(root).as_posix(): source for source in found.items}


def csv_file(folder: Path, text: str) -> str:
    path = folder / "videos.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


# CSV


def test_csv_with_all_columns(tmp_path: Path) -> None:
    tree(tmp_path, "a.mp4", "b/c.mov", "d.png")
    listing = csv_file(
        tmp_path,
        "\ufeffpath,label,method,group,split\na.mp4,Real,,anna,train\n"
        "b/c.mov,1,face swap,bert,Validation\nd.png,0,,,\n",
    )
    found = read_sources([listing])
    assert found.items == [
        Source(f"{tmp_path}/a.mp4", "real", "", "anna", "train"),
        Source(f"{tmp_path}/b/c.mov", "fake", "face swap", "bert", "val"),
        Source(f"{tmp_path}/d.png", "real", "", f"{tmp_path}/d.png", None),
    ]
    assert found.skipped == []


def test_csv_with_columns_of_other_names(tmp_path: Path) -> None:
    tree(tmp_path, "a.mp4")
    listing = csv_file(tmp_path, "clip,truth,who,part,how\na.mp4,FAKE,anna,test,swap\n")
    options = SourceOptions(None, "clip", "truth", "who", "part", "how")
    assert read_sources([listing], options).items == [Source(f"{tmp_path}/a.mp4", "fake", "swap", "anna", "test")]


def test_csv_with_origins_and_takes(tmp_path: Path) -> None:
    """A take defines the group if none is given; a column `source` is read only on request."""
    tree(tmp_path, "a.mp4", "b.mp4")
    listing = csv_file(tmp_path, "path,label,source,take,group\na.mp4,real,page 1,7,\nb.mp4,fake,,,eve\n")
    options = SourceOptions(source_column="source", take_column="take")
    assert read_sources([listing], options).items == [
        Source(f"{tmp_path}/a.mp4", "real", group="7", domain="page 1", take="7"),
        Source(f"{tmp_path}/b.mp4", "fake", "", "eve"),
    ]
    plain = read_sources([listing]).items[0]
    assert (plain.domain, plain.take, plain.group) == ("", "", f"{tmp_path}/a.mp4")
    with pytest.raises(DataError, match=r"'page' \(--source-column\), 'clip' \(--take-column\)"):
        read_sources([listing], SourceOptions(source_column="page", take_column="clip"))


def test_csv_without_labels_and_with_the_column_file(tmp_path: Path) -> None:
    tree(tmp_path, "a.mp4")
    listing = csv_file(tmp_path, "file,kind\na.mp4,\n")
    assert read_sources([listing], SourceOptions(label="real")).items[0].label == "real"


def test_files_missing_from_disk_are_skipped(tmp_path: Path) -> None:
    tree(tmp_path, "a.mp4")
    found = read_sources([csv_file(tmp_path, "path,label\na.mp4,real\ngone.mp4,fake\n")])
    assert [Path(source.path).name for source in found.items] == ["a.mp4"]
    assert found.skipped == [(f"{tmp_path}/gone.mp4", "not_there: no such file")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\n1,2\n", r"videos.csv, line 1: no column 'path' \(--path-column\), 'label' .*--label for all"),
        ("", "line 1: no column 'path'"),
        ("path,label\na.mp4,maybe\na.mp4,real\na.mp4,\n", r"column 'label' is neither real .* \(line 2, 4\)"),
        ("path,label\n,real\n", r"column 'path' is empty.*line 2"),
        ("path,label,split\na.mp4,real,dev\n", r"column 'split' is none of train, val, test \(line 2\)"),
        ("path,label\ngone.mp4,real\nlost.mp4,real\n", r"none of its files can be used: .*gone.mp4.* and 1 more"),
        ("path,label\n", "contains no video"),
        ("path,label\n" + "x,?\n" * 9, r"line 2, 3, 4 and 6 more"),
    ],
)
def test_a_bad_csv_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    tree(tmp_path, "a.mp4")
    with pytest.raises(DataError, match=complaint):
        read_sources([csv_file(tmp_path, text)])


def test_a_csv_without_a_requested_column_is_refused(tmp_path: Path) -> None:
    listing = csv_file(tmp_path, "path,label\na.mp4,real\n")
    with pytest.raises(DataError, match=r"'person' \(--group-column\).*choose from path, label"):
        read_sources([listing], SourceOptions(group_column="person"))


def test_a_file_that_is_no_csv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "video.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        read_sources([str(path)])


# Folders


def test_real_and_fake(tmp_path: Path) -> None:
    tree(tmp_path, "real/a.mp4", "real/x/b.JPG", "fake/c.mkv", "fake/face swap/d/e.webm", "real/notes.txt")
    found = by_name(read_sources([str(tmp_path)]), tmp_path)
    assert {name: (source.label, source.kind) for name, source in found.items()} == {
        "real/a.mp4": ("real", ""),
        "real/x/b.JPG": ("real", ""),
        "fake/c.mkv": ("fake", ""),
        "fake/face swap/d/e.webm": ("fake", "face swap"),
    }
    assert all(source.group == source.path for source in found.values())


def test_plain_folder_and_file_need_a_label(tmp_path: Path) -> None:
    tree(tmp_path, "a/b.mp4", "c.png", "d.txt")
    found = read_sources([str(tmp_path), str(tmp_path / "d.txt")], SourceOptions(label="real"))
    assert [Path(source.path).name for source in found.items] == ["b.mp4", "c.png", "d.txt"]
    for path in (tmp_path, tmp_path / "c.png"):
        with pytest.raises(ConfigError, match=r"set --label, or use one of these: a CSV file.*DFDC"):
            read_sources([str(path)])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains no video or image"):
        read_sources([str(tmp_path)], SourceOptions(label="fake"))


def test_missing_inputs_are_all_named() -> None:
    with pytest.raises(ConfigError, match=r"'/gone/a', '/gone/b'"):
        read_sources(["/gone/a", "/gone/b"])


def test_a_repeated_file_is_skipped_unless_its_labels_differ(tmp_path: Path) -> None:
    tree(tmp_path, "real/a.mp4", "fake/b.mp4")
    (tmp_path / "real/link.mp4").symlink_to(tmp_path / "real/a.mp4")
    found = read_sources([str(tmp_path), str(tmp_path)])
    assert len(found.items) == 2
    assert set(found.skipped) == {(f"{tmp_path}/real/link.mp4", f"repeated: named already, as {tmp_path}/real/a.mp4")}
    (tmp_path / "fake/link.mp4").symlink_to(tmp_path / "real/a.mp4")
    with pytest.raises(DataError, match=r"fake/link.mp4' is fake, but real as .*real/a.mp4"):
        read_sources([str(tmp_path)])


def test_face_forensics(tmp_path: Path) -> None:
    youtube, actors = "original_sequences/youtube/c23/videos", "original_sequences/actors/raw/videos"
    fakes, swapped = "manipulated_sequences/Deepfakes", "manipulated_sequences/DeepFakeDetection/c40/videos"
    tree(tmp_path, f"{youtube}/071.mp4", f"{youtube}/054.mp4", f"{youtube}/000.mp4", f"{youtube}/999.mp4")
    tree(tmp_path, f"{fakes}/c23/videos/071_054.mp4", f"{fakes}/masks/videos/071_054.mp4")
    tree(tmp_path, f"{actors}/01__talking.mp4", f"{actors}/02__hugging.mp4", f"{actors}/54__hugging.mp4")
    tree(tmp_path, f"{swapped}/01_02__talking__YVGY8LOK.mp4")
    for name, pairs in (("train", [["071", "054"]]), ("val", [["000", "003"]]), ("test", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps(pairs))
    found = by_name(read_sources([str(tmp_path)]), tmp_path)
    assert len(found) == 9
    pair = [found[f"{youtube}/071.mp4"], found[f"{youtube}/054.mp4"], found[f"{fakes}/c23/videos/071_054.mp4"]]
    assert {source.group for source in pair} == {"ff++ 054"}
    assert [(source.label, source.kind, source.split) for source in pair] == [
        ("real", "", "train"),
        ("real", "", "train"),
        ("fake", "Deepfakes", "train"),
    ]
    assert found[f"{youtube}/000.mp4"].split == "val"
    assert found[f"{youtube}/999.mp4"].split is None
    swap = found[f"{swapped}/01_02__talking__YVGY8LOK.mp4"]
    assert swap.group == found[f"{actors}/01__talking.mp4"].group == found[f"{actors}/02__hugging.mp4"].group
    assert swap.group != found[f"{actors}/54__hugging.mp4"].group != found[f"{youtube}/054.mp4"].group


def test_face_forensics_reads_or_refuses_the_splits_folder(tmp_path: Path) -> None:
    tree(tmp_path, "original_sequences/youtube/c40/videos/071.mp4", "splits/train.json")
    with pytest.raises(DataError, match=r"splits/train.json: cannot be read as JSON"):
        read_sources([str(tmp_path)])
    (tmp_path / "splits/train.json").write_text('[["071", "054"]]')
    assert read_sources([str(tmp_path)]).items[0].split == "train"


def test_celeb_df(tmp_path: Path) -> None:
    tree(tmp_path, "Celeb-real/id0_0000.mp4", "Celeb-real/id1_0000.mp4", "Celeb-real/id1_0001.mp4")
    tree(tmp_path, "YouTube-real/00170.mp4", "YouTube-real/00171.mp4")
    tree(tmp_path, "Celeb-synthesis/id0_id1_0000.mp4", "Celeb-synthesis/id1_id0_0000.mp4")
    tree(tmp_path, "Celeb-synthesis/id1_id2_0000.mp4")
    listing = "1 YouTube-real/00170.mp4\n1 Celeb-real/id1_0000.mp4\n0 Celeb-synthesis/id1_id0_0000.mp4\n"
    (tmp_path / "List_of_testing_videos.txt").write_text(listing)
    found = read_sources([str(tmp_path)])
    sources = by_name(found, tmp_path)
    assert {name: (source.label, source.group, source.split) for name, source in sources.items()} == {
        "Celeb-real/id0_0000.mp4": ("real", "celeb-df id0", None),
        "Celeb-real/id1_0000.mp4": ("real", "celeb-df id1_0000", "test"),
        "Celeb-real/id1_0001.mp4": ("real", "celeb-df id1", None),
        "Celeb-synthesis/id0_id1_0000.mp4": ("fake", "celeb-df id0", None),
        "Celeb-synthesis/id1_id0_0000.mp4": ("fake", "celeb-df id1_0000", "test"),
        "YouTube-real/00170.mp4": ("real", "celeb-df youtube 00170", "test"),
        "YouTube-real/00171.mp4": ("real", "celeb-df youtube 00171", None),
    }
    assert [(Path(path).name, reason.split(":")[0]) for path, reason in found.skipped] == [
        ("id1_id2_0000.mp4", "test_video")
    ]
    (tmp_path / "List_of_testing_videos.txt").unlink()
    assert len(read_sources([str(tmp_path)]).items) == 8


def dfdc_part(root: Path, part: str, facts: object) -> None:
    tree(root, f"{part}/abc.mp4", f"{part}/xyz.mp4")
    (root / part / "metadata.json").write_text(json.dumps(facts))


def test_dfdc(tmp_path: Path) -> None:
    fake = {"label": "FAKE", "split": "train", "original": "xyz.mp4"}
    facts = {"abc.mp4": fake, "xyz.mp4": {"label": "REAL", "split": "train"}, "gone.mp4": fake}
    dfdc_part(tmp_path, "dfdc_train_part_0", facts)
    for root in (tmp_path, tmp_path / "dfdc_train_part_0"):
        found = read_sources([str(root)])
        assert [(source.label, source.group, source.split) for source in found.items] == [
            ("fake", "dfdc xyz.mp4", None),
            ("real", "dfdc xyz.mp4", None),
        ]
        assert [reason for _, reason in found.skipped] == ["not_there: no such file"]


@pytest.mark.parametrize("facts", [[], {"abc.mp4": "FAKE"}, {"abc.mp4": {"label": "odd"}}])
def test_bad_dfdc_metadata_is_refused(tmp_path: Path, facts: object) -> None:
    dfdc_part(tmp_path, "dfdc_train_part_0", facts)
    with pytest.raises(DataError, match=r"metadata.json: .*download it again"):
        read_sources([str(tmp_path)])


def test_components() -> None:
    pairs = [("b", "c"), ("d", "d"), ("c", "a"), ("f", "e")]
    assert components(pairs) == {"a": "a", "b": "a", "c": "a", "d": "d", "e": "e", "f": "e"}


# System files


def test_thumbnails_resource_forks_and_source_code_are_ignored(tmp_path: Path) -> None:
    tree(tmp_path, "data/real/a.mp4", "data/real/@eaDir/a.mp4/SYNOVIDEO.jpg", "data/fake/.Trashes/501/b.mp4")
    (tmp_path / "data/real/._a.mp4").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "data/real/main.ts").write_text("import x\n")
    (tmp_path / "data/real/cut.ts").write_bytes(b"\x47\x00" * 100)
    (tmp_path / "data/real/link.ts").symlink_to("cut.ts")
    found = read_sources([str(tmp_path / "data")])
    assert sorted(by_name(found, tmp_path)) == ["data/real/a.mp4", "data/real/cut.ts"]
    assert [reason.split(":")[0] for _, reason in found.skipped] == ["repeated"], "of the link"
