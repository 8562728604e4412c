"""C2PA manifests: read offline in the sandboxed child, and never part of a verdict."""

from __future__ import annotations

import json
import shutil
import socket
import sysconfig
from io import FileIO
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from dfscan.errors import VideoError
from dfscan.media import isolate
from dfscan.media.isolate import Ended, Limits, decode_videos
from dfscan.media.plan import Sampling
from dfscan.media.provenance import ManifestReader
from dfscan.types import Provenance
from tests import test_sandbox
from tests.signing import CREATED, SOURCE_TYPE, TYPES, identity, sign
from tests.test_cli import run, scan
from tests.test_cli import surroundings as surroundings
from tests.test_facts import ends
from tests.test_sandbox import target as target
from tests.videos import numbered, numbered_picture, write_video

pytest.importorskip("c2pa", reason="needs the extra provenance")


def unsigned(path: Path) -> Path:
    if path.suffix in (".jpg", ".png", ".webp"):
        noise = np.random.default_rng(0).integers(0, 60, (64, 64, 3), np.uint8)
        cv2.imwrite(str(path), numbered_picture(5) + noise)
    else:
        write_video(path, numbered(20), codec="mpeg4" if path.suffix == ".avi" else "libx264")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plain, a signed and a tampered file of each type."""
    folder = tmp_path_factory.mktemp("signed")
    for suffix in TYPES:
        plain = unsigned(folder / f"plain{suffix}")
        signed = sign(plain, folder / f"signed{suffix}")
        data = bytearray(signed.read_bytes())
        data[data.index(plain.read_bytes()[-300:-100]) + 50] ^= 1  # in the coded pictures, which the manifest covers
        (folder / f"tampered{suffix}").write_bytes(data)
    return folder


def provenance_of(*paths: Path, trust_list: str = "", sandbox: bool = True) -> list[Provenance | None]:
    found = ends(*paths, limits=Limits(60, sandbox=sandbox), trust_list=trust_list)
    return [end.facts.provenance if end.facts else None for end in found.values()]


def one(path: Path, trust_list: str = "") -> Provenance:
    (found,) = provenance_of(path, trust_list=trust_list)
    assert found is not None
    return found


# What is found


def test_states_of_all_types(files: Path) -> None:
    paths = [files / f"{kind}{suffix}" for kind in ("plain", "signed", "tampered") for suffix in TYPES]
    nobody, ours, others = (
        [each and each.state for each in provenance_of(*paths, trust_list=trust_list)]
        for trust_list in ("", identity().root_pem, identity("Other").root_pem)
    )
    num = len(TYPES)
    assert nobody == ["unknown"] * num + ["valid"] * num + ["invalid"] * num
    assert ours == ["unknown"] * num + ["trusted"] * num + ["invalid"] * num
    assert others == nobody


def test_a_manifest_is_quoted(files: Path) -> None:
    found = one(files / "signed.mp4")
    assert found == Provenance("valid", "Signer, Test Organisation", "Test Camera 1.0", ("c2pa.created",))
    assert one(files / "tampered.mp4").problem == "assertion.bmffHash.mismatch"
    assert one(files / "plain.mp4") == Provenance("unknown")


def test_a_file_that_cannot_hold_a_manifest_is_unknown(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", numbered(5))
    assert one(tmp_path / "a.mkv") == Provenance("unknown")


def test_a_manifest_in_a_file_that_cannot_be_judged_is_read(files: Path, tmp_path: Path) -> None:
    """Cover art is no video, but its manifest is evidence."""
    end = ends(files / "tampered.png", trust_list="")["tampered.png"]
    assert end.facts is not None
    assert end.facts.provenance is not None
    assert end.facts.provenance.state == "invalid"


def test_a_damaged_manifest_is_invalid(files: Path, tmp_path: Path) -> None:
    data = bytearray((files / "signed.jpg").read_bytes())
    at = data.index(b"c2cl") - 20  # the box of the claim
    data[at : at + 40] = bytes(40)
    (tmp_path / "a.jpg").write_bytes(data)
    found = one(tmp_path / "a.jpg")
    assert found.state == "invalid"
    assert found.problem


@pytest.mark.parametrize(
    ("source_type", "declared"),
    [
        ("trainedAlgorithmicMedia", "generated"),
        ("compositeWithTrainedAlgorithmicMedia", "partly generated"),
        ("compositeSynthetic", "partly generated"),
        ("algorithmicMedia", None),
        ("digitalCapture", None),
    ],
)
def test_what_the_manifest_says_about_trained_models(
    source_type: str, declared: str | None, files: Path, tmp_path: Path
) -> None:
    action = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE + source_type}
    found = one(sign(files / "plain.jpg", tmp_path / "a.jpg", actions=[action]))
    assert (found.state, found.declared_ai) == ("valid", declared)


def test_a_generated_ingredient_makes_the_content_partly_generated(files: Path, tmp_path: Path) -> None:
    made = {"action": "c2pa.created", "digitalSourceType": f"{SOURCE_TYPE}trainedAlgorithmicMedia"}
    part = sign(files / "plain.png", tmp_path / "part.png", actions=[made])
    edited = [CREATED, {"action": "c2pa.placed"}]
    whole = one(sign(files / "plain.jpg", tmp_path / "whole.jpg", actions=edited, ingredient=part))
    assert whole.declared_ai == "partly generated"
    assert whole.actions == ("c2pa.created", "c2pa.placed")


# What is never done


def test_a_manifest_on_a_server_is_not_fetched(files: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/manifest.c2pa"
        paths = [sign(files / f"plain{end}", tmp_path / f"a{end}", remote_url=url) for end in (".mp4", ".jpg")]
        server.settimeout(0.2)
        for found in provenance_of(*paths, sandbox=False):  # not even where the network could be used
            assert found is not None
            assert found.state == "present"
            assert found.problem == f"the manifest is stored elsewhere and was not fetched: {url}"
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_library_in_the_working_directory_is_not_loaded(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """c2pa looks there first; any other library would lack its functions."""
    other = next(Path(sysconfig.get_path("platlib")).glob("numpy/_core/_multiarray_umath*.so"))
    shutil.copy(other, tmp_path / "libc2pa_c.so")
    monkeypatch.chdir(tmp_path)
    assert one(files / "signed.mp4").state == "valid"


@pytest.mark.skipif(*test_sandbox.pytestmark.args, **test_sandbox.pytestmark.kwargs)
def test_the_sandbox_refuses_as_much_with_the_library_in_it(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "_CHILD", test_sandbox.HIJACKED)
    monkeypatch.setenv("DFSCAN_TEST_LEAVE_OUT", "")
    limits = Limits(60, max_memory_mb=1024)
    *_, last = decode_videos([str(target)], sampling=Sampling(4), num_workers=1, limits=limits, trust_list="x")
    assert isinstance(last, Ended)
    assert last.failure is not None
    told = json.loads(last.failure.text.removeprefix("unexpected ValueError: "))
    assert told.pop("read what was handed over") == "precious"
    assert set(told) == set(test_sandbox.attempts(target))
    assert len(told) == 22
    assert [name for name, outcome in told.items() if outcome == "worked"] == []


# When reading fails


def test_a_crash_of_the_library_costs_the_file_only_its_manifest(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os; from dfscan.media import provenance; provenance.ManifestReader.read = lambda *_: os._exit(9); "
    monkeypatch.setattr(isolate, "_CHILD", isolate._CHILD.replace("main()", f"{crash}main()"))
    end = ends(files / "signed.mp4", trust_list="")["signed.mp4"]
    assert end.failure is None
    assert end.facts is not None
    assert end.facts.provenance is not None
    assert end.facts.provenance.state == "unreadable"
    assert end.facts.container == "mp4"


def test_a_library_that_cannot_be_loaded_is_reported_in_each_row(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "sys.modules['c2pa'] = None; from dfscan.media import provenance; provenance.PACKAGE = 'no_such'; main()"
    monkeypatch.setattr(isolate, "_CHILD", isolate._CHILD.replace("main()", broken))
    found = one(files / "signed.mp4")
    assert found.state == "unreadable"
    assert found.problem is not None
    assert found.problem.startswith("the C2PA library cannot be loaded (ModuleNotFoundError")


def test_reading_can_be_stopped(files: Path) -> None:
    def stop() -> None:
        raise VideoError("timeout", "too slow")

    with FileIO(files / "signed.mp4") as file:
        assert ManifestReader("").read(file, stop) == Provenance("unreadable", problem="too slow")
        assert file.tell() == 0


# In a scan


def test_rows_and_page_tell_the_provenance_and_the_verdict_stays(clips: Path, untrained: Path, tmp_path: Path) -> None:
    made = {"action": "c2pa.created", "digitalSourceType": f"{SOURCE_TYPE}trainedAlgorithmicMedia"}
    sign(clips / "one.mp4", tmp_path / "signed.mp4", actions=[made])
    shutil.copy(clips / "one.mp4", tmp_path / "plain.mp4")
    (tmp_path / "trusted.pem").write_text(f"# Comment: Müller\n{identity().root_pem}")
    out, page, ledger = tmp_path / "r.csv", tmp_path / "r.html", tmp_path / "all.ledger"
    inputs = [tmp_path / "plain.mp4", tmp_path / "signed.mp4", "-o", out, "--ledger", ledger]
    done = scan(untrained, *inputs, "--html", page, "--trust-list", tmp_path / "trusted.pem")
    assert done.exit_code == 0, done.stderr
    plain, signed = pd.read_csv(out).to_dict("records")
    assert (plain["provenance"], signed["provenance"]) == ("unknown", "trusted")
    assert signed["declared_ai"] == "generated"
    assert signed["provenance_signer"] == "Signer, Test Organisation"
    same = ("verdict", "score", "threshold", "status", "reason", "num_faces", "max_face_score")
    assert [plain[name] for name in same] == pytest.approx([signed[name] for name in same], nan_ok=True)
    assert '"state":"trusted"' in page.read_text()
    again = scan(untrained, *inputs, "--trust-list", tmp_path / "trusted.pem")
    assert "2 known from the ledger" in again.stderr
    assert "known" not in scan(untrained, *inputs).stderr, "another trust list gives other rows"
    assert pd.read_csv(out).provenance.tolist() == ["unknown", "valid"]


def test_options_that_cannot_be_followed_are_refused(
    clips: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.pem").write_text("no certificate")
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for name in ("empty.pem", "bad.pem", "none.pem"):
        done = scan(untrained, clips / "one.mp4", "--trust-list", tmp_path / name)
        assert done.exit_code == 2
        assert name in done.stderr
        assert "--trust-list" in done.stderr
    done = scan(untrained, clips / "one.mp4", "--no-provenance", "--trust-list", tmp_path / "bad.pem")
    assert "exclude each other" in done.stderr
    monkeypatch.setattr("dfscan.extras.find_spec", lambda _: None)
    done = scan(untrained, clips / "one.mp4", "--provenance")
    assert done.exit_code == 2
    assert "pip install 'dfscan[provenance]'" in done.stderr


def test_info_names_the_version_of_the_library() -> None:
    assert json.loads(run("info", "--json").stdout)["versions"]["c2pa"].startswith("0.")
