"""Scans on a real Ray cluster of several nodes, all on this machine."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dfscan.config import ScanSettings, build_settings
from dfscan.errors import ConfigError, DfscanError, MissingExtraError
from dfscan.ray import ScanBatch
from dfscan.scan.cluster import Cluster, for_workers
from dfscan.scan.cores import can_confine
from tests.pictures import astronaut, moved
from tests.stores import BUCKET, Store, running_store
from tests.stub_engine import IDENTITY, WARNING, StubJob
from tests.test_cli import program, run
from tests.test_cli import surroundings as surroundings
from tests.test_resume import known
from tests.videos import write_video

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]

HEARTBEATS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 12}
"""Ray's defaults take 10 s to notice that a node is gone. Nodes on a busy machine miss some."""


def on_a_busy_machine(start: Callable[[], Any]) -> Any:
    """Start a node; Ray gives up after half a minute."""
    for _ in range(3):
        with suppress(Exception):
            return start()
    return start()


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture(scope="module")
def nodes(session_cache: Path, store: Store) -> Iterator[Any]:
    """A cluster of two nodes with one core each, both with the keys of the store."""
    from ray.cluster_utils import Cluster as Nodes

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": HEARTBEATS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = on_a_busy_machine(lambda: Nodes(initialize_head=True, head_node_args=head))
        on_a_busy_machine(lambda: cluster.add_node(num_cpus=1))
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()


# With an engine that only pretends


def stub(notes: Path, *, pause_s: float = 0.02, sample: tuple[str, int] | None = None, **settings: Any) -> StubJob:
    chosen = for_workers(ScanSettings(on="ray", threads=1, **settings))
    return StubJob(chosen, (), None, sample, pause_s=pause_s, notes=str(notes))


@pytest.fixture
def connected(nodes: Any, tmp_path: Path) -> Iterator[Any]:
    """Return a function that connects to the cluster."""
    opened: list[Cluster] = []

    def connect(**options: Any) -> Cluster:
        opened.append(Cluster(stub(tmp_path, **options)))
        return opened[-1]

    yield connect
    for cluster in opened:
        cluster.close()


def names(count: int) -> list[str]:
    return [f"{i:03}.mp4" for i in range(count)]


def test_workers_that_die_lose_no_row_and_double_none(
    connected: Any,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("dfscan"), "propagate", True)
    paths = ["poison.mp4", *names(30), "kills-one.mp4", *names(60)[30:], "raises-once.mp4"]
    with caplog.at_level(logging.WARNING, "dfscan"):
        results = [result for result, _ in connected().results(paths)]
    assert sorted(result.path for result in results) == sorted(paths)
    assert {result.path for result in results if result.verdict.label == "error"} == {"poison.mp4"}
    (reason,) = (result.verdict.reason for result in results if result.verdict.label == "error")
    assert reason
    assert reason.code == "worker_died"
    assert len({result.info.codec for result in results} - {None}) == 2, "both nodes worked"
    # A record that two handlers have passed to caplog is listed twice.
    assert [record.getMessage() for record in dict.fromkeys(caplog.records)] == [WARNING]
    assert capsys.readouterr().out == "", "stdout is for the report"


def test_a_node_that_leaves_loses_nothing_and_one_that_joins_is_used(nodes: Any, connected: Any) -> None:
    leaving = nodes.add_node(num_cpus=1)
    paths = [*(f"after-3-nodes-{i:02}" for i in range(40)), *(f"after-4-nodes-{i:02}" for i in range(40))]
    cluster = connected()
    results = []
    joined = None
    for result, identity in cluster.results(paths):
        assert identity == IDENTITY
        results.append(result)
        if joined is None and sum(each.info.codec == leaving.node_id for each in results) == 3:
            nodes.remove_node(leaving, allow_graceful=False)
            joined = nodes.add_node(num_cpus=1)
    assert sorted(result.path for result in results) == paths
    assert {result.verdict.label for result in results} == {"no_face"}
    assert joined
    assert any(result.info.codec == joined.node_id for result in results)
    nodes.remove_node(joined)


def test_a_worker_that_does_not_see_the_files_ends_the_scan(connected: Any, tmp_path: Path) -> None:
    cluster = connected(max_workers=1, sample=(str(tmp_path / "gone.mp4"), 7))
    with pytest.raises(ConfigError, match=r"worker on .*gone\.mp4 is missing or differs; mount the disk"):
        list(cluster.results(names(3)))


def test_a_worker_with_other_libraries_is_refused(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dfscan.scan import cluster as module

    own = module.versions()
    monkeypatch.setattr(module, "versions", lambda: {**own, "onnxruntime": "0.0.1"})
    message = rf"onnxruntime {own['onnxruntime']} instead of 0\.0\.1; install the same versions"
    with pytest.raises(ConfigError, match=message):
        list(connected(max_workers=1).results(names(3)))


def test_workers_that_only_die_end_the_scan(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfscan.scan.cluster.MAX_DEATHS", 1)
    with pytest.raises(DfscanError, match="2 workers died without any result between"):
        list(connected(max_workers=1).results(["poison.mp4"]))


def test_an_unreachable_cluster_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"^Ray at 127\.0\.0\.1:1: Connection refused; check RAY_ADDRESS"):
        Cluster(stub(tmp_path))


def test_without_ray_the_command_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfscan.extras.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"^--on ray needs ray, .*: pip install 'dfscan\[ray\]'$"):
        for_workers(ScanSettings(on="ray"))


# Whole scans


@pytest.fixture(scope="module")
def videos(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips, and ten copies of one of them."""
    folder = Path(shutil.copytree(clips, tmp_path_factory.mktemp("cluster") / "videos"))
    lying = [np.rot90(moved(astronaut(), 3 * i)) for i in range(6)]
    write_video(folder / "turned.mp4", map(np.ascontiguousarray, lying), fps=10)
    for i in range(10):
        shutil.copy(folder / "one.mp4", folder / f"copy{i}.mp4")
    return folder


def arguments(videos: Path | str, checkpoint: Path, out: Path) -> list[object]:
    return ["scan", videos, "--checkpoint", checkpoint, "--num-frames", 4, "--exit-zero", "-o", out]


@pytest.fixture(scope="module")
def local(videos: Path, untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the outputs of a scan on this machine alone."""
    folder = tmp_path_factory.mktemp("local")
    more = ("--frames-out", folder / "f.csv", "--html", folder / "r.html", "--explain", "dumps", "--explain-top", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*arguments(videos, untrained, folder / "r.csv"), *more, "--device", "cpu").exit_code == 0
    return folder


def test_a_cluster_gives_the_bytes_of_a_local_scan(
    nodes: Any, videos: Path, untrained: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("--frames-out", "f.csv", "--html", "r.html", "--explain", "dumps", "--explain-top", 1)
    done = run(*arguments(videos, untrained, Path("r.csv")), *more, "--on", "ray")
    assert done.exit_code == 0, done.stderr
    files = sorted(path.relative_to(local) for path in local.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    differing = [str(file) for file in files if (local / file).read_bytes() != (tmp_path / file).read_bytes()]
    assert differing == ["r.csv.ledger", "r.csv.meta.json"]
    assert "turned: faces were found" in Path("r.csv").read_text()
    assert '"started": ' in Path("r.csv.meta.json").read_text()


def with_mark(mark: str) -> list[int]:
    """Return the processes whose environment contains this text."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
def test_a_stopped_scan_leaves_no_process_and_is_resumed_with_the_same_bytes(
    nodes: Any, videos: Path, untrained: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted with a temporary cluster, killed on the one of several nodes, then completed there."""
    monkeypatch.chdir(tmp_path)
    mark = f"mark-of-{tmp_path.name}"
    alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"TEST_MARK": mark}
    ledger, more = tmp_path / "r.csv.ledger", ["--explain", "dumps", "--explain-top", 1, "--on", "ray", "--resume"]
    command = [*arguments(videos, untrained, tmp_path / "r.csv"), *more]
    for number, code, environment in ((signal.SIGINT, 130, alone), (signal.SIGKILL, -9, None)):
        num_known = known(ledger)
        with subprocess.Popen(
            program(*command, "--threads", 1), env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            while known(ledger) == num_known:
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.01)
            assert number == signal.SIGKILL or len(with_mark(mark)) > 3
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
        assert process.returncode == code, said
        assert ("to continue, run the same command again" in said) == (number == signal.SIGINT)
        assert "Traceback" not in said
        end_s = time.monotonic() + 90  # what ends on a busy machine takes its time
        while (left := with_mark(mark)) and time.monotonic() < end_s:
            time.sleep(0.1)
        assert not left
        assert not Path("r.csv").exists()
    done = run(*command)
    assert done.exit_code == 0, done.stderr
    assert f"{known(ledger)} known" not in done.stderr, "something was left to do"
    assert "known from the ledger" in done.stderr
    assert Path("r.csv").read_bytes() == (local / "r.csv").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on": "ray", "gpus_per_worker": 1.5}, "a fraction or a whole number"),
        ({"on": "ray", "device": "cuda"}, "add --gpus-per-worker 1"),
        ({"on": "ray", "device": "cpu", "gpus_per_worker": 1}, "exclude each other"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_settings(ScanSettings, settings)


def test_a_bucket_is_read_by_the_workers(
    nodes: Any, store: Store, clips: Path, untrained: Path, tmp_path: Path
) -> None:
    store.put_files(clips, "inbox")
    reports = [tmp_path / "local.csv", tmp_path / "ray.csv"]
    for report, on in zip(reports, ("local", "ray"), strict=True):
        done = run(*arguments(f"s3://{BUCKET}/inbox", untrained, report), "--on", on)
        assert done.exit_code == 0, done.stderr
    assert reports[0].read_bytes() == reports[1].read_bytes()
    assert f"s3://{BUCKET}/inbox/two.mkv" in reports[1].read_text()


def test_bench_compares_a_cluster_with_a_local_scan(nodes: Any, clips: Path, untrained: Path) -> None:
    base = ("bench", clips / "one.mp4", clips / "nobody.mp4", "--checkpoint", untrained, "--num-frames", 2)
    done = run(*base, "--on", "ray", "--json")
    assert done.exit_code == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["videos"], figures["workers"], figures["threads"]) == (2, 2, 1)
    times_s = [figures[name] for name in ("local_s", "one_worker_s", "all_workers_s", "start_s")]
    assert min(times_s) > 0
    assert figures["efficiency"] == pytest.approx(times_s[1] / (2 * times_s[2]))
    assert figures["overhead"] == pytest.approx(times_s[1] / times_s[0] - 1)
    assert figures["not_confined"] == "the cluster in RAY_ADDRESS is not a temporary one on this machine"
    assert figures["one_worker_cpu_s"] is figures["one_worker_cores"] is None


@pytest.mark.slow
@pytest.mark.skipif(not can_confine(), reason="this system cannot confine processes")
def test_bench_confines_each_run_on_its_own_cluster(
    clips: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    base = ("bench", clips / "one.mp4", clips / "two.mkv", "--checkpoint", untrained, "--num-frames", 8, "--threads", 1)
    done = run(*base, "--on", "ray", "--max-workers", 2, "--json")
    assert done.exit_code == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["not_confined"] is None
    for name, num_workers in (("local", 1), ("one_worker", 1), ("all_workers", figures["workers"])):
        assert figures[f"{name}_cores"] == num_workers
        assert 0 < figures[f"{name}_cpu_s"] < figures[f"{name}_s"] * num_workers * 1.1


# Ray Data


@pytest.fixture
def batch(clips: Path) -> list[str]:
    return [str(clips / name) for name in ("text.mp4", "one.mp4", "gone.mp4", "one.mp4")]


def test_scan_batch_gives_the_rows_of_a_report(batch: list[str], clips: Path, untrained: Path, local: Path) -> None:
    with ScanBatch(untrained, column="file", num_frames=4, device="cpu") as scan_batch:
        rows = scan_batch({"file": np.array(batch)}).to_pylist()
    assert [row["path"] for row in rows] == batch
    assert [row["verdict"] for row in rows] == ["error", "inconclusive", "error", "inconclusive"]
    assert rows[2]["reason"].startswith("not_found")
    assert rows[1] == rows[3]
    report = pd.read_csv(local / "r.csv")
    (expected,) = report[report.path.str.endswith("/one.mp4")].to_dict("records")
    assert rows[1]["score"] == expected["score"]
    assert list(rows[1]) == list(report.columns)


@pytest.mark.slow
def test_scan_batch_maps_a_dataset_of_ray_data(nodes: Any, batch: list[str], untrained: Path) -> None:
    import ray
    import ray.data

    ray.init(nodes.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        paths = ray.data.from_items([{"path": path} for path in batch], override_num_blocks=1)
        options = {"checkpoint": str(untrained), "num_frames": 4}
        compute = ray.data.ActorPoolStrategy(size=1)
        rows = paths.map_batches(ScanBatch, fn_constructor_kwargs=options, batch_size=4, num_cpus=1, compute=compute)
        assert [row["path"] for row in rows.take_all()] == batch
    finally:
        ray.shutdown()
