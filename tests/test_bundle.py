"""Bundles: what is in them, that equal files give equal bytes, and what the check of a bundle finds or refuses."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import openpyxl
import pytest

from dfscan.bundle import signature, verify, write
from dfscan.bundle.verify import verify_bundle
from dfscan.bundle.write import write_bundle
from dfscan.config import ScanSettings
from dfscan.errors import ConfigError, DataError, OutputError
from dfscan.files import AtomicFile
from dfscan.media.source import hash_file
from dfscan.report.readers import NEEDED
from dfscan.scan.ledger import Ledger, LedgerReader, Recipe
from dfscan.scan.setup import NOT_IN_RECIPE
from tests.test_cli import run, scan
from tests.test_cli import surroundings as surroundings

NAMES = ("case", "exhibit", "examiner")
CASE = ("--case", "2026-7", "--exhibit", "A <3>", "--examiner", "=A. Müller")
needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")


@pytest.fixture(scope="module")
def desk(clips: Path, trained: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with videos, all outputs of a scan of them, and a bundle."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "videos").mkdir()
    for name in ("one.mp4", "text.mp4"):
        shutil.copy(clips / name, desk / "videos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(session_cache))
        patch.chdir(desk)
        outs = (
            "-o",
            "out/r.csv",
            "-o",
            "out/r.xlsx",
            "--html",
            "out/r.html",
            "--explain",
            "dumps",
            "--webvtt",
            "out/vtt",
        )
        (desk / "out").mkdir()
        done = scan(trained, "videos", *outs, "--explain-top", 1, "--exit-zero", *CASE)
        assert done.exit_code == 0, done.stderr
        done = run("bundle", "out/r.csv", "-o", "case.zip")
        assert done.exit_code == 0, done.stderr
        assert "warning" not in done.stderr
    return desk


@pytest.fixture
def key(tmp_path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", tmp_path / "key"], check=True)
    signers = f"a.mueller@lab {(tmp_path / 'key.pub').read_text()}"
    (tmp_path / "signers").write_text(signers)
    return tmp_path / "key"


def repacked(bundle: Path, out: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Copy a bundle with other contents; None leaves a file out."""
    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            data = change(info.filename, source.read(info))
            if data is not None:
                target.writestr(info.filename, data)
    return out


# The case


def test_the_case_is_in_every_report(desk: Path, tmp_path: Path) -> None:
    ledger, given = desk / "out/r.csv.ledger", ["2026-7", "A <3>", "=A. Müller"]
    outs = [argument for kind in ("csv", "jsonl", "jsonld") for argument in ("-o", tmp_path / f"r.{kind}")]
    assert run("report", ledger, *outs, *CASE, "--html", tmp_path / "r.html").exit_code == 0
    assert (tmp_path / "r.csv").read_bytes() == (desk / "out/r.csv").read_bytes(), "as in the scan"
    with (tmp_path / "r.csv").open() as file:
        cells = {tuple(row[name] for name in NAMES) for row in csv.DictReader(file)}
        assert cells == {("2026-7", "A <3>", "'=A. Müller")}
    row = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])
    assert [row["case"], row["exhibit"], row["examiner"]] == given
    for meta in (desk / "out/r.csv.meta.json", tmp_path / "r.csv.meta.json"):
        assert list(json.loads(meta.read_text())["case"].values()) == given
    graph = json.loads((tmp_path / "r.jsonld").read_text())["@graph"]
    of = {node["@id"]: node for node in graph}
    (case,) = [node for node in graph if node["@type"] == "investigation:Investigation"]
    assert case["core:name"] == "2026-7"
    performers = [of[of[each["@id"]]["action:performer"]["@id"]]["core:name"] for each in case["core:object"]]
    assert performers == ["=A. Müller"] * 2
    exhibits = [node for node in graph if node["@type"] == "investigation:ProvenanceRecord"]
    assert [node["investigation:exhibitNumber"] for node in exhibits] == ["A <3>"] * 2
    book = openpyxl.load_workbook(desk / "out/r.xlsx")
    head, first = ([cell.value for cell in book["report"][number]] for number in (1, 2))
    assert [first[head.index(name)] for name in NAMES] == ["2026-7", "A <3>", "'=A. Müller"]
    assert ("case", "2026-7") in list(book["about"].iter_rows(values_only=True))
    for page in (desk / "out/r.html", tmp_path / "r.html"):
        assert "exhibit <strong>A &lt;3&gt;</strong>" in page.read_text()
    row = next(csv.DictReader(io.StringIO(run("report", ledger).stdout)))
    assert [row[name] for name in NAMES] == [""] * 3, "the ledger does not have them"
    assert set(ScanSettings().case_facts) <= NOT_IN_RECIPE, "another case needs no new scan"


def test_a_rebuilt_report_lists_only_its_own_heat_maps(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dumps").mkdir()
    listed = []
    for folder in (tmp_path, desk):
        monkeypatch.chdir(folder)
        assert run("report", desk / "out/r.csv.ledger", "-o", tmp_path / "r.csv").exit_code == 0
        listed.append(json.loads((tmp_path / "r.csv.meta.json").read_text())["outputs"]["heat_maps"])
    assert listed == [[], [os.path.relpath(desk / "dumps", tmp_path)]]


# Writing


def test_a_bundle_has_everything_that_belongs_to_the_report(desk: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(desk / "case.zip") as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert names[-1] == "SHA256SUMS"
    top = {name.partition("/")[0] for name in names}
    assert top == {
        "SHA256SUMS",
        "bundle.json",
        "other",
        "r.csv",
        "r.csv.ledger",
        "r.csv.meta.json",
        "r.html",
        "r.xlsx",
        "vtt",
    }
    assert any(name.startswith("other/dumps/") and name.endswith("_heat_map.png") for name in names)
    assert (
        subprocess.run(["sha256sum", "-c", "--quiet", "--strict", "SHA256SUMS"], cwd=tmp_path, check=False).returncode
        == 0
    )
    contents = json.loads((tmp_path / "bundle.json").read_text())
    assert (contents["report"], contents["case"]["case"]) == ("r.csv", "2026-7")
    rebuilt = run("report", tmp_path / "r.csv.ledger", *CASE).stdout_bytes
    assert rebuilt == (desk / "out/r.csv").read_bytes()


def test_equal_files_give_equal_bytes(desk: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_bundle(desk / "out/r.csv", tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_copy_of_the_ledger_has_what_is_only_in_its_log(desk: Path, tmp_path: Path) -> None:
    report = Path(shutil.copy(desk / "out/r.csv", tmp_path))
    ledger = Path(shutil.copy(desk / "out/r.csv.ledger", tmp_path))
    writer = sqlite3.connect(ledger)
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    writer.execute("INSERT INTO reviews VALUES (NULL, 'a', 'fake', 'A', '', '')")
    writer.commit()
    assert Path(f"{ledger}-wal").stat().st_size > 0
    summary = write_bundle(report, tmp_path / "case.zip")
    writer.close()
    assert "does not list what belongs to the report" in summary.warnings[0]
    with zipfile.ZipFile(tmp_path / "case.zip") as archive:
        assert "r.csv.ledger-wal" not in archive.namelist()
        archive.extract("r.csv.ledger", tmp_path / "out")
    with LedgerReader(tmp_path / "out/r.csv.ledger") as reader:
        assert [review.reviewer for review in reader.reviews("a")] == ["A"]


def test_a_ledger_that_does_not_fit_causes_warnings(desk: Path, tmp_path: Path) -> None:
    report = Path(shutil.copy(desk / "out/r.csv", tmp_path))
    with Ledger(tmp_path / "r.csv.ledger", recipe=Recipe("c", "0" * 64, "1", "cpu", {})):
        pass
    done = run("bundle", report, "-o", tmp_path / "case.zip")
    assert "has no results for 2 " in done.stderr
    report.write_text(report.read_text().splitlines()[0] + "\n")
    shutil.copy(desk / "out/r.csv.ledger", tmp_path)
    done = run("bundle", report, "-o", tmp_path / "case.zip")
    assert "also has results of 2 files that are not in" in done.stderr
    done = run("bundle", report, "-o", tmp_path / "case.zip", "--no-ledger", "--add", desk / "videos")
    assert (done.exit_code, "also has" in done.stderr) == (0, False)
    with zipfile.ZipFile(tmp_path / "case.zip") as archive:
        names = archive.namelist()
    assert names == ["bundle.json", "other/videos/one.mp4", "other/videos/text.mp4", "r.csv", "SHA256SUMS"]


def test_missing_files_are_named_and_unusable_ones_refused(desk: Path, clips: Path, tmp_path: Path) -> None:
    for name in ("r.csv", "r.csv.meta.json"):
        shutil.copy(desk / "out" / name, tmp_path)
    report, out = tmp_path / "r.csv", tmp_path / "case.zip"
    assert f"{tmp_path / 'r.html'}: is missing" in run("bundle", report, "-o", out).stderr
    out.unlink()
    (tmp_path / "a\nb.txt").write_text("")
    (tmp_path / "SHA256SUMS").write_text("")
    refused: list[tuple[list[object], str]] = [
        (["--add", tmp_path / "a\nb.txt"], "cannot have a file with this name"),
        (["--add", tmp_path / "SHA256SUMS"], "has another file named SHA256SUMS"),
        (["--add", desk / "videos/one.mp4", "--add", clips / "one.mp4"], "has another file named other/one.mp4"),
        (["-o", report], "would overwrite the input"),
        (["--sign", tmp_path / "no-key"], "no such file; name an SSH key"),
    ]
    for arguments, message in refused:
        done = run("bundle", report, "-o", out, *arguments)
        assert done.exit_code == 2, done.stderr
        assert message in done.stderr
        assert not out.exists()
    for name in ("r.xlsx", "SHA256SUMS", "none.csv"):
        assert run("bundle", tmp_path / name, "-o", out).exit_code == 2


def test_only_what_dfscan_wrote_is_in_a_bundle(desk: Path, clips: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.csv"
    shutil.copytree(desk / "out", tmp_path, dirs_exist_ok=True)
    shutil.copytree(desk / "dumps", tmp_path, dirs_exist_ok=True)
    for name in ("one.mp4", "vtt/two.mkv"):
        shutil.copy(clips / Path(name).name, tmp_path / name)
    meta = json.loads((tmp_path / "r.csv.meta.json").read_text())
    meta["outputs"] |= {"heat_maps": ["."]}
    (tmp_path / "r.csv.meta.json").write_text(json.dumps(meta))
    summary = write_bundle(report, tmp_path / "case.zip")
    with zipfile.ZipFile(tmp_path / "case.zip") as archive:
        names = set(archive.namelist())
    assert summary.warnings == []
    assert {"index.csv", "r.csv.ledger"} < names
    assert any(name.endswith("_heat_map.png") for name in names)
    assert any(name.endswith(".vtt") for name in names)
    assert not any(name.endswith((".mp4", ".mkv")) for name in names)
    assert verify_bundle(tmp_path / "case.zip").differences == []
    (tmp_path / "case.zip").unlink()
    write_bundle(report, tmp_path / "case.zip", added=[tmp_path])
    with zipfile.ZipFile(tmp_path / "case.zip") as archive:
        assert {*names, "r.xlsx.meta.json", "one.mp4", "vtt/two.mkv"} == set(archive.namelist())
    assert verify_bundle(tmp_path / "case.zip").differences == []
    with pytest.raises(ConfigError, match="would overwrite the input"):
        write_bundle(report, tmp_path / "case.zip", added=[tmp_path])


def test_metadata_of_someone_else(desk: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "case.zip"
    folder.mkdir()
    report, secret = Path(shutil.copy(desk / "out/r.csv", folder)), tmp_path / "secret"
    secret.write_text("secret")
    for paths in (None, "r.html", [1]):
        (folder / "r.csv.meta.json").write_text(json.dumps({"outputs": {"reports": paths}}))
        with pytest.raises(DataError, match="`outputs` is damaged"):
            write_bundle(report, out)
    (folder / "r.csv.meta.json").write_text(json.dumps({"outputs": {"page": ["../secret", ".."]}}))
    elsewhere, no_file = write_bundle(report, out).warnings
    assert "/secret: is not in the folder of the report" in elsewhere
    assert "/..: is missing, or no file" in no_file
    (folder / "index.csv").write_text("face_file,heat_map_file,frame_file\n../secret,../secret,../secret\n")
    (folder / "r.csv.meta.json").write_text(json.dumps({"outputs": {"heat_maps": ["."]}}))
    with pytest.raises(DataError, match="is not a file of a heat map"):
        write_bundle(report, out)


def test_files_that_are_no_bundles_are_never_replaced(desk: Path, key: Path, tmp_path: Path) -> None:
    shutil.copytree(desk / "out", tmp_path, dirs_exist_ok=True)
    (tmp_path / "12:30.csv").write_bytes((tmp_path / "r.csv").read_bytes())
    for arguments, cause in (
        (["-o", tmp_path / "r.csv.ledger", "--no-ledger"], "would overwrite the input"),
        (["-o", key, "--sign", key], "would overwrite the input"),
        (["-o", desk / "videos/one.mp4"], "exists and is not a bundle"),
        (["-o", tmp_path / "case.zip", "--add", tmp_path / "12:30.csv"], "could name a place outside the bundle"),
    ):
        done = run("bundle", tmp_path / "r.csv", *arguments)
        assert done.exit_code == 2, done.stderr
        assert cause in done.stderr


def test_a_full_disk_leaves_the_old_bundle(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = small(tmp_path / "case.zip")
    old = out.read_bytes()
    real = AtomicFile.write

    def full(self: AtomicFile, data: bytes) -> None:
        if len(data) > 5000:
            self.discard()
            raise OutputError("cannot write: no space")
        real(self, data)

    monkeypatch.setattr(AtomicFile, "write", full)
    with pytest.raises(OutputError, match="no space"):
        write_bundle(desk / "out/r.csv", out)
    assert out.read_bytes() == old
    assert os.listdir(tmp_path) == ["case.zip"]


# Checking


def test_an_unchanged_bundle_and_unchanged_videos_agree(desk: Path, tmp_path: Path) -> None:
    bundle = desk / "case.zip"
    alone = run("verify", bundle)
    assert alone.exit_code == 0, alone.stdout
    assert "signature: none" in alone.stdout
    assert "original videos: not checked" in alone.stdout
    for folder in (desk, desk / "videos"):
        done = run("verify", bundle, "--videos", folder)
        assert (done.exit_code, "original videos: 2 unchanged\n" in done.stdout) == (0, True), done.stdout
    videos = tmp_path / "videos"
    shutil.copytree(desk / "videos", videos)
    (videos / "one.mp4").write_bytes(b"other")
    (videos / "text.mp4").unlink()
    done = run("verify", bundle, "--videos", tmp_path)
    assert done.exit_code == 1
    assert "difference: ./videos/one.mp4: differs from the scanned file" in done.stdout
    assert f"difference: ./videos/text.mp4: is not in {tmp_path}" in done.stdout
    assert "original videos: 1 different, 1 missing" in done.stdout


def test_each_difference_is_named(desk: Path, tmp_path: Path) -> None:
    def change(name: str, data: bytes) -> bytes | None:
        if name == "r.html":
            return None
        return data.replace(b"inconclusive", b"real") if name == "r.csv" else data

    bundle = repacked(desk / "case.zip", tmp_path / "b.zip", change)
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.mkdir("empty") if hasattr(archive, "mkdir") else archive.writestr("empty/", "")
        archive.writestr("extra.txt", "x")
    found = verify_bundle(bundle)
    assert found.differences == [
        "extra.txt: is not in SHA256SUMS",
        "r.csv: differs from its checksum",
        "r.html: is missing",
    ]
    raw = bytearray((desk / "case.zip").read_bytes())
    with zipfile.ZipFile(desk / "case.zip") as archive:
        start = archive.getinfo("r.html").header_offset
    raw[start + 200] ^= 0xFF
    (tmp_path / "c.zip").write_bytes(raw)
    (difference,) = verify_bundle(tmp_path / "c.zip").differences
    assert difference.startswith("r.html: ")


def small(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], files: Mapping[str, bytes] | None = None) -> Path:
    """Write a small bundle with right checksums."""
    files = files or {"bundle.json": b'{"format": 1, "report": "r.csv"}', "r.csv": b""}
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, "SHA256SUMS": sums}.items():
            archive.writestr(name, data)
        for info, data in entries:
            archive.writestr(info, data)
    return path


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def packed(name: str, method: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    return info


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([("../evil", b"")], "outside the bundle"),
        ([("/etc/evil", b"")], "outside the bundle"),
        ([("C:/evil", b"")], "outside the bundle"),
        ([("a/../../evil", b"")], "outside the bundle"),
        ([("a\\..\\evil", b"")], "backslashes"),
        ([("a\nb", b"")], "unprintable"),
        ([("r.csv", b"other")], "occurs twice"),
        ([(link("r.lnk"), b"/etc/passwd")], "is a link"),
        ([(packed("zeros", zipfile.ZIP_BZIP2), bytes(1 << 20))], "another method than deflate"),
        ([(packed("zeros", zipfile.ZIP_LZMA), bytes(1 << 20))], "another method than deflate"),
        ([("zeros", bytes(80 << 20))], "bytes when unpacked"),
    ],
)
def test_a_harmful_bundle_is_refused(
    tmp_path: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]], problem: str
) -> None:
    assert verify_bundle(small(tmp_path / "good.zip")).differences == []
    with pytest.raises(DataError, match=problem):
        verify_bundle(small(tmp_path / "bad.zip", *entries))


def test_a_bundle_that_would_be_refused_is_not_written(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros, out = tmp_path / "disk.img", tmp_path / "b.zip"
    zeros.write_bytes(bytes(4 << 20))
    write_bundle(desk / "out/r.csv", out, added=[zeros])
    before = out.read_bytes()
    with zipfile.ZipFile(out) as archive:
        ratio = sum(info.file_size for info in archive.infolist()) // len(before)

    def limit(num_bytes: int, ratio: int) -> None:
        for module in (write, verify):
            monkeypatch.setattr(module, "MAX_SMALL_BYTES", num_bytes)
            monkeypatch.setattr(module, "MAX_RATIO", ratio)

    limit(1 << 20, ratio + 1)
    assert verify_bundle(out).num_differences == 0
    write_bundle(desk / "out/r.csv", tmp_path / "accepted.zip", added=[zeros])
    limit(1 << 20, ratio)
    with pytest.raises(DataError, match=f"more than {ratio} times its own size"):
        verify_bundle(out)
    with pytest.raises(ConfigError, match=rf"more than {ratio} times as large .* such as other/disk\.img"):
        write_bundle(desk / "out/r.csv", out, added=[zeros])
    limit(100, ratio + 1)
    with pytest.raises(DataError, match="SHA256SUMS is larger than"):
        verify_bundle(out)
    with pytest.raises(ConfigError, match=r"bundle\.json is larger than"):
        write_bundle(desk / "out/r.csv", out, added=[zeros])
    assert out.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == sorted([zeros, out, tmp_path / "accepted.zip"])


def test_every_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = small(tmp_path / "b.zip")
    monkeypatch.setattr(verify, "MAX_SMALL_BYTES", 1000)
    assert verify_bundle(bundle).differences == []
    sizes = list[int | None]()
    real = zipfile.ZipExtFile.read

    def read(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        sizes.append(n)
        return real(self, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    verify_bundle(bundle)
    assert all(n is not None and 0 < n <= verify.PIECE_BYTES for n in sizes), "no read without a limit"


def report_of(*videos: dict[str, object]) -> bytes:
    """Return a report as JSON Lines with the columns that the check needs."""
    row = dict.fromkeys(sorted(NEEDED), None)
    return "".join(json.dumps({**row, **video}) + "\n" for video in videos).encode()


def checked(tmp_path: Path, *videos: dict[str, object]) -> verify.Verification:
    """Check a bundle with this report against the folder `tmp_path`."""
    report = report_of(*videos)
    contents = b'{"format": 1, "report": "r.jsonl"}'
    return verify_bundle(small(tmp_path / "b.zip", files={"bundle.json": contents, "r.jsonl": report}), videos=tmp_path)


def test_paths_in_a_report_cannot_stop_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = hashlib.sha256(b"a").hexdigest()
    for raw in (b"a.mp4", b"\xff.mp4"):
        Path(os.fsdecode(tmp_path / os.fsdecode(raw))).write_bytes(b"a")
    escaped = {"path": "./\\xff.mp4", "sha256": sha256}
    raw = {**escaped, "path_bytes": base64.b64encode(b"\xff.mp4").decode()}
    found = checked(tmp_path, escaped, raw)
    assert (found.originals, found.differences) == ("1 unchanged, 1 with an escaped path (not checked)", [])
    (difference,) = checked(tmp_path, raw, {**escaped, "path_bytes": 1}).differences
    assert "`path_bytes` is damaged" in difference
    found = checked(tmp_path, {"path": "a/" * 1000, "sha256": "0"}, {"path": "a" * 2**19, "sha256": "0"})
    assert found.originals == "2 missing"
    assert max(map(len, found.differences)) < 2 * verify.MAX_PATH_CHARACTERS
    hashed = []
    monkeypatch.setattr(verify, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    found = checked(tmp_path, *[{"path": f"x{i % 2}/a.mp4", "sha256": sha256} for i in range(50)])
    assert (found.originals, hashed.count(str(tmp_path / "a.mp4"))) == ("50 unchanged", 1)
    monkeypatch.setattr(verify, "MAX_DIFFERENCES", 10)
    found = checked(tmp_path, *[{"path": f"{i}.mp4", "sha256": "0"} for i in range(50)])
    assert (len(found.differences), found.num_differences, found.originals) == (10, 50, "50 missing")
    done = run("verify", tmp_path / "b.zip", "--videos", tmp_path)
    assert "difference: 40 more" in done.stdout
    assert "result: 50 differences" in done.stdout


def test_a_file_that_is_no_bundle_is_refused(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "cut.zip").write_bytes((desk / "case.zip").read_bytes()[:5000])
    for name in ("text.zip", "cut.zip", "none.zip"):
        assert run("verify", tmp_path / name).exit_code == 2
    assert run("verify", desk / "case.zip", "--videos", tmp_path / "none").exit_code == 2
    assert run("verify", desk / "case.zip", "--allowed-signers", tmp_path / "none").exit_code == 2
    without = repacked(desk / "case.zip", tmp_path / "a.zip", lambda name, data: None if name == "SHA256SUMS" else data)
    with pytest.raises(DataError, match="it has no SHA256SUMS"):
        verify_bundle(without)
    deep = repacked(
        desk / "case.zip", tmp_path / "b.zip", lambda name, data: b"[" * 10**6 if name == "bundle.json" else data
    )
    differs, damaged = verify_bundle(deep, videos=tmp_path).differences
    assert differs == "bundle.json: differs from its checksum"
    assert damaged.startswith("bundle.json: is damaged")
    for document, cause in ((b'{"format": 2, "report": "r.csv"}', "format 2"), (None, "it has no bundle.json")):
        files = {"r.csv": b"", **({"bundle.json": document} if document else {})}
        with pytest.raises(DataError, match=cause):
            verify_bundle(small(tmp_path / "c.zip", files=files))
    listed = small(tmp_path / "d.zip", files={"bundle.json": b'{"format": 1, "report": ["r.csv"]}', "r.csv": b""})
    assert verify_bundle(listed).differences == ["bundle.json: the report that it names is missing"]
    monkeypatch.setattr(verify, "MAX_LINE_BYTES", 100)
    (difference,) = verify_bundle(desk / "case.zip", videos=tmp_path).differences
    assert "a line is longer than" in difference
    monkeypatch.setattr(verify, "MAX_SMALL_BYTES", 100)
    with pytest.raises(DataError, match="refused: SHA256SUMS is larger"):
        verify_bundle(desk / "case.zip")


# Signatures


@needs_ssh
def test_a_signed_bundle(desk: Path, key: Path, tmp_path: Path) -> None:
    bundle, signers = tmp_path / "case.zip", tmp_path / "signers"
    done = run("bundle", desk / "out/r.csv", "-o", bundle, "--sign", key)
    assert done.exit_code == 0, done.stderr
    done = run("verify", bundle)
    assert done.exit_code == 0, done.stdout
    assert "signature: valid, made with ED25519 key SHA256:" in done.stdout
    assert "The signer is not checked" in done.stdout
    done = run("verify", bundle, "--allowed-signers", signers)
    assert done.exit_code == 0, done.stdout
    assert "signature: good, by a.mueller@lab with ED25519 key SHA256:" in done.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        done = run("verify", bundle)
        assert (done.exit_code, "signature: not checked, because ssh-keygen" in done.stdout) == (0, True), done.stdout
        assert run("verify", bundle, "--allowed-signers", signers).exit_code == 2
    other = tmp_path / "others"
    other.write_text(signers.read_text().replace("AAAAC3NzaC1lZDI1NTE5AAAAI", "AAAAC3NzaC1lZDI1NTE5AAAAJ"))
    assert "does not allow" in run("verify", bundle, "--allowed-signers", other).stdout
    none = run("verify", desk / "case.zip", "--allowed-signers", signers)
    assert (none.exit_code, "difference: signature: the bundle has none" in none.stdout) == (1, True)
    changed = repacked(
        bundle, tmp_path / "changed.zip", lambda name, data: data + b"\n" if name == "SHA256SUMS" else data
    )
    for arguments in ([], ["--allowed-signers", signers]):
        done = run("verify", changed, *arguments)
        assert (done.exit_code, "difference: signature: invalid" in done.stdout) == (1, True), done.stdout


@needs_ssh
def test_a_key_that_cannot_sign_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", key], check=True)
    real = subprocess.run

    def without_terminal(*arguments: object, **options: object) -> object:
        return real(*arguments, **options, start_new_session=True)  # type: ignore[call-overload]

    monkeypatch.setattr(signature.subprocess, "run", without_terminal)
    monkeypatch.delenv("SSH_ASKPASS", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(ConfigError, match="load it with ssh-add"):
        signature.sign(b"data", key)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="not installed: install OpenSSH"):
        signature.sign(b"data", key)
