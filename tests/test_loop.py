"""The training loop compared with independent computations, with several processes, and after interruptions."""

import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from dfscan.cli import app
from dfscan.detector.card import CheckpointCard
from dfscan.detector.checkpoint import load_network, read_card
from dfscan.detector.network import DeepfakeDetector, create_network
from dfscan.detector.preprocess import Preprocessing
from dfscan.errors import ConfigError, DataError, OutputError, TrainingError
from dfscan.train.batches import plan_epoch
from dfscan.train.dataset import FaceSet, load
from dfscan.train.distributed import DistContext
from dfscan.train.folder import RunFolder
from dfscan.train.interrupt import Interrupt
from dfscan.train.loop import Trainer, chosen_precision
from dfscan.train.loss import detection_loss
from dfscan.train.optim import create_optimizer, create_schedule
from dfscan.train.settings import FORMER_NAMES, TrainSettings
from dfscan.train.state import STATE_KEY, TrainProgress
from dfscan.train.validation import normalised, score_faces
from tests.datasets import write_dataset

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = TrainSettings(
    forgeries="self-blended",
    architecture="test_efficientnet",
    pretrained=False,
    input_size_px=64,
    resize_px=70,
    batch_size=4,
    grad_accumulation=2,
    epochs=2,
    lr_head=1e-3,
    lr_backbone=1e-4,
    workers=0,
    device="cpu",
)
CARD = CheckpointCard(architecture="test_efficientnet", preprocessing=Preprocessing(input_size_px=64))
ALONE = DistContext(0, 1, torch.device("cpu"))


class Ear:
    """A listener that records events and can interrupt the run."""

    def __init__(self, interrupt: Interrupt | None = None, *, after: int = 10**9) -> None:
        self.losses: list[float] = []
        self.rows: list[dict[str, Any]] = []
        self.planned_steps = (0, 0)
        self._interrupt, self._after = interrupt, after

    def noted(self, text: str) -> None:
        raise AssertionError(text)  # these runs have no work before the first step

    def planned(self, num_steps: int, steps_done: int) -> None:
        self.planned_steps = (num_steps, steps_done)

    def stepped(self, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) == self._after and self._interrupt:
            os.kill(os.getpid(), 2)

    def epoch_done(self, row: dict[str, Any], is_best: bool) -> None:
        self.rows.append({**row, "is_best": is_best})


def trainer(folder: Path, settings: TrainSettings = SETTINGS, network: DeepfakeDetector | None = None) -> Trainer:
    samples = write_dataset(folder, num_train=5, num_val=3)
    sets = [
        FaceSet([s for s in samples if s.split == split], folder, settings, is_training=split == "train")
        for split in ("train", "val")
    ]
    network = network or create_network("test_efficientnet", seed=1)
    return Trainer(network, settings, training=sets[0], validation=sets[1], card=CARD, dist=ALONE)


def run_folder(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.create()
    return folder


def run(made: Trainer, folder: RunFolder, *, after: int = 10**9) -> Ear:
    interrupt = Interrupt()
    ear = Ear(interrupt, after=after)
    with interrupt.listening():
        made.run(folder, ear, interrupt)
    return ear


def weights(network: DeepfakeDetector) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_run_trains_validates_and_writes_its_files(tmp_path: Path) -> None:
    made = trainer(tmp_path / "data")
    before = weights(made.network)
    folder = run_folder(tmp_path / "run")
    ear = run(made, folder)
    assert ear.planned_steps == (4, 0)  # 5 pairs make 3 batches of 4 faces, so 2 windows per epoch
    assert len(ear.losses) == 4
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(made.network).items())
    rows = folder.rows()
    assert [row["event"] for row in rows] == ["step", "step", "epoch", "step", "step", "epoch"]
    assert [row["step"] for row in rows] == [1, 2, 2, 3, 4, 4]
    epochs = [row for row in rows if row["event"] == "epoch"]
    assert epochs[0]["train_loss"] == pytest.approx(np.mean(ear.losses[:2]))
    assert all(0 <= row["val_auc"] <= 1 and row["val_loss"] > 0 for row in epochs)
    assert folder.best_path.exists()
    assert folder.state_path.exists()


def test_one_step_equals_a_step_in_plain_pytorch(tmp_path: Path) -> None:
    """Compute the first window by hand: mean of the batches' losses, gradient clipping, AdamW with two rates."""
    settings = TrainSettings(**{**SETTINGS.__dict__, "epochs": 1})
    made = trainer(tmp_path, settings)
    expected = create_network("test_efficientnet", seed=1).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        [
            {"params": expected.head.parameters(), "lr": 1e-3 / 25},
            {"params": expected.backbone.parameters(), "lr": 1e-4 / 25},
        ],
        weight_decay=2e-5,
    )
    faces = made._training
    batches = plan_epoch(faces.num_faces, epoch=0, seed=0, batch_size=4)
    for number, batch in enumerate(load(faces, batches[:2], num_workers=0, pin_memory=False)):
        made._seed(number)
        logits = expected(normalised(batch, CARD.preprocessing, torch.device("cpu")))
        (detection_loss(logits, batch.is_fake, settings) / 2).backward()
    norm = torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    assert norm > 0
    optimizer.step()
    window = list(enumerate(load(faces, batches[:2], num_workers=0, pin_memory=False)))
    made._step(window, Interrupt())
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(made.network.state_dict()[name], tensor, atol=1e-6), name


def test_each_step_uses_the_mean_gradient_of_its_own_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three batches accumulated in twos, the second step uses only the third batch, at full weight."""
    settings = TrainSettings(**{**SETTINGS.__dict__, "epochs": 1})
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: None)  # only batch norm statistics change
    made = trainer(tmp_path, settings)
    batches = made._plan(0)
    gradients: list[dict[str, torch.Tensor]] = []

    def noted(_: Any, max_norm: float) -> torch.Tensor:
        assert max_norm == settings.clip_norm
        gradients.append({name: p.grad.clone() for name, p in made.network.named_parameters() if p.grad is not None})
        return torch.zeros(())

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    run(made, run_folder(tmp_path / "run"))
    assert len(gradients) == 2
    for numbers, found in zip(([0, 1], [2]), gradients, strict=True):
        alone = create_network("test_efficientnet", seed=1).train().to(memory_format=torch.channels_last)
        for number in numbers:
            (faces,) = load(made._training, [batches[number]], num_workers=0, pin_memory=False)
            made.progress = TrainProgress()
            made._seed(number)
            logits = alone(normalised(faces, CARD.preprocessing, torch.device("cpu")))
            detection_loss(logits, faces.is_fake, settings).backward()
        for name, parameter in alone.named_parameters():
            assert parameter.grad is not None
            assert torch.allclose(found[name], parameter.grad / len(numbers), atol=1e-6, rtol=1e-4), name


def test_rates_follow_one_cycle_over_the_whole_run(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    run(trainer(tmp_path / "data"), folder)
    rates = [[row["lr_head"], row["lr_backbone"]] for row in folder.rows() if row["event"] == "step"]
    other = create_network("test_efficientnet", seed=1)
    optimizer = create_optimizer(other, SETTINGS)
    schedule = create_schedule(optimizer, SETTINGS, num_steps=4)
    expected = []
    for _ in range(4):
        expected.append(schedule.get_last_lr())
        optimizer.step()
        if len(expected) < 4:
            schedule.step()
    assert np.allclose(rates, expected, rtol=1e-9)
    assert len({rate for rate, _ in rates}) == 4


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_resumed_run_ends_like_an_uninterrupted_one(after: int, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "data")
    run(whole, run_folder(tmp_path / "whole"))
    folder = run_folder(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        run(trainer(tmp_path / "data"), folder, after=after)
    again = trainer(tmp_path / "data", network=create_network("test_efficientnet", seed=99))
    again.resume(folder)
    run(again, folder)
    assert_same(weights(whole.network), weights(again.network))
    assert (tmp_path / "parts" / "best.safetensors").read_bytes() == (
        tmp_path / "whole" / "best.safetensors"
    ).read_bytes()
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in f.rows()]
        for f in (folder, RunFolder(tmp_path / "whole"))
    ]
    assert rows[0] == rows[1]


def test_a_moving_average_is_saved_and_resumed(tmp_path: Path) -> None:
    settings = TrainSettings(**{**SETTINGS.__dict__, "ema_decay": 0.5})
    whole = trainer(tmp_path / "data", settings)
    ear = run(whole, run_folder(tmp_path / "whole"))
    average = whole._state.average
    assert average is not None
    assert any(not torch.equal(a, b) for a, b in zip(average.parameters(), whole.network.parameters(), strict=True))
    plain = trainer(tmp_path / "data")
    assert run(plain, run_folder(tmp_path / "plain")).losses == ear.losses  # training itself is not affected
    saved = run_folder(tmp_path / "saved")
    saved.save_best(whole._evaluated, whole._card, fp16=whole._settings.fp16)
    assert_same(weights(load_network(read_card(saved.best_path))), weights(average))
    folder = run_folder(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        run(trainer(tmp_path / "data", settings), folder, after=3)
    again = trainer(tmp_path / "data", settings, network=create_network("test_efficientnet", seed=99))
    again.resume(folder)
    run(again, folder)
    assert again._state.average is not None
    assert_same(weights(average), weights(again._state.average))


def test_rows_after_the_saved_state_are_dropped(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for step in range(1, 6):
        folder.append({"event": "step", "step": step, "loss": 1.0})
    lines = tmp_path / "metrics.jsonl"
    lines.write_text(lines.read_text() + '{"event": "st')
    folder.rewind(3)
    assert [row["step"] for row in folder.rows()] == [1, 2, 3]


def test_resuming_with_other_settings_is_an_error_that_lists_them(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    run(trainer(tmp_path / "data"), folder)
    changed = TrainSettings(**{**SETTINGS.__dict__, "lr_head": 5e-4, "threads": 1})
    with pytest.raises(ConfigError, match=r"lr_head was 0\.001, is 0\.0005") as caught:
        trainer(tmp_path / "data", changed).resume(folder)
    assert "threads" not in str(caught.value)


def test_a_state_with_former_names_of_settings_is_resumed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    run(trainer(tmp_path / "data"), folder)
    with safetensors.safe_open(folder.state_path, framework="pt") as file:
        document = json.loads(file.metadata()[STATE_KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    former = {new: old for old, new in FORMER_NAMES.items()}
    document["settings"] = {former.get(name, name): value for name, value in document["settings"].items()}
    assert "accumulate" in document["settings"]
    safetensors.torch.save_file(tensors, folder.state_path, metadata={STATE_KEY: json.dumps(document)})
    again = trainer(tmp_path / "data")
    again.resume(folder)
    assert again.progress.epoch == SETTINGS.epochs


@pytest.mark.parametrize("content", [None, b"", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_missing_or_damaged_state_is_an_error(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"state\.safetensors"):
        trainer(tmp_path / "data").resume(RunFolder(tmp_path))


def test_a_non_finite_loss_stops_before_the_step_and_lists_the_batch(tmp_path: Path) -> None:
    made = trainer(tmp_path / "data")
    folder = run_folder(tmp_path / "run")
    forward = made._loss
    calls: list[int] = []

    def broken(faces: Any) -> torch.Tensor:
        calls.append(1)
        return forward(faces) * (float("nan") if len(calls) == 4 else 1)

    made._loss = broken  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"not finite in epoch 2, step 1 .*crops/\d+\.png") as caught:
        run(made, folder)
    assert "--lr-head" in str(caught.value)
    assert all(torch.isfinite(tensor).all() for tensor in weights(made.network).values())
    kept = trainer(tmp_path / "data")
    kept.resume(folder)
    assert kept.progress.steps_done == 2


def test_a_non_finite_gradient_changes_no_weights(tmp_path: Path) -> None:
    made = trainer(tmp_path / "data")
    before = weights(made.network)
    made.network.head.output.bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"gradient is not finite in epoch 1, step 1 .*batch 1 of device 0"):
        run(made, run_folder(tmp_path / "run"))
    after = weights(made.network)
    assert all(torch.equal(before[name], after[name]) for name, _ in made.network.named_parameters())


def test_more_processes_than_batches_are_rejected(tmp_path: Path) -> None:
    samples = write_dataset(tmp_path, num_train=2, num_val=2)
    sets = [
        FaceSet([s for s in samples if s.split == split], tmp_path, SETTINGS, is_training=split == "train")
        for split in ("train", "val")
    ]
    with pytest.raises(ConfigError, match="fewer devices"):
        Trainer(
            create_network("test_efficientnet", seed=1),
            SETTINGS,
            training=sets[0],
            validation=sets[1],
            card=CARD,
            dist=DistContext(0, 2, torch.device("cpu")),
        )


def test_training_stops_without_improvement(tmp_path: Path) -> None:
    made = trainer(
        tmp_path / "data", TrainSettings(**{**SETTINGS.__dict__, "epochs": 6, "patience": 2, "min_delta": 2.0})
    )
    ear = run(made, run_folder(tmp_path / "run"))
    assert [row["is_best"] for row in ear.rows] == [True, False, False]


def test_a_full_disk_keeps_the_previous_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_folder(tmp_path / "run")
    made = trainer(tmp_path / "data")
    run(made, folder)
    before = folder.state_path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dfscan.files.os.replace", full)
    with pytest.raises(OutputError, match=r"No space left.*Free some space"):
        made._save(folder)
    assert folder.state_path.read_bytes() == before
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "best.safetensors",
        "metrics.jsonl",
        "state.safetensors",
    ]


def test_validation_scores_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    scores = [
        score_faces(made.network, made._validation, CARD.preprocessing, dist=ALONE, batch_size=size, num_workers=0)
        for size in (2, 32)
    ]
    assert np.allclose(scores[0].logits, scores[1].logits, atol=1e-5)
    assert scores[0].is_fake.tolist() == [False, True] * 3
    assert scores[0].sources == [
        "5.mp4",
        "5.mp4#self-blended",
        "6.mp4",
        "6.mp4#self-blended",
        "7.mp4",
        "7.mp4#self-blended",
    ]
    assert made.network.training


@pytest.mark.parametrize(("name", "chosen"), [("auto", "fp32"), ("bf16", "bf16"), ("fp32", "fp32")])
def test_a_cpu_computes_in_fp32_by_default(name: str, chosen: str) -> None:
    assert chosen_precision(name, torch.device("cpu")) == chosen


TWO_PROCESSES = """
import sys, json
from pathlib import Path
import safetensors.torch
import torch
from dfscan.dataset.manifest import read_manifest
from dfscan.train.distributed import joined_processes
from tests import test_loop as t

folder = Path(sys.argv[1])
settings = t.TrainSettings(**{**t.SETTINGS.__dict__, "grad_accumulation": 1, "epochs": 1})
with joined_processes("cpu") as dist:
    samples = read_manifest(folder)
    sets = [t.FaceSet([s for s in samples if s.split == split], folder, settings, is_training=split == "train")
            for split in ("train", "val")]
    made = t.Trainer(t.create_network("test_efficientnet", seed=1), settings, training=sets[0], validation=sets[1],
                     card=t.CARD, dist=dist)
    batches = made._plan(0)[dist.rank::dist.size]
    window = [(0, next(iter(t.load(sets[0], batches[:1], num_workers=0, pin_memory=False))))]
    made._seed(0)
    (made._loss(window[0][1])).backward()
    gradients = {name: p.grad.tolist() for name, p in made.network.named_parameters()}
    assert made.network.training
    dist.broadcast_buffers(made.network)
    buffers = {name: buffer.tolist() for name, buffer in made.network.named_buffers()}
    scores = t.score_faces(made.network, sets[1], t.CARD.preprocessing, dist=dist, batch_size=2, num_workers=0)
    flags = dist.any_rank(dist.rank == 1, False)
    (folder / f"{dist.rank}.json").write_text(json.dumps({
        "gradients": gradients, "logits": scores.logits.tolist(), "fake": scores.is_fake.tolist(), "flags": flags,
        "buffers": buffers}))
"""


@contextmanager
def with_second_process(monkeypatch: pytest.MonkeyPatch, *command: object) -> Iterator[None]:
    """Set what torchrun sets. The first process is this one, which has imported PyTorch already; the second a child."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for name, value in {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    environment = os.environ | {"RANK": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, *map(str, command)]
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as second:
        yield
        said = second.communicate(timeout=900)[1]
    assert second.returncode == 0, said[-3000:]
    assert "epoch" not in said, "only the first process reports progress"
    monkeypatch.setenv("WORLD_SIZE", "1")


def test_two_processes_have_the_same_gradients_as_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare two gloo processes, one batch each, with one process that accumulates the same two batches."""
    samples = write_dataset(tmp_path, num_train=5, num_val=3)
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    with with_second_process(monkeypatch, script, tmp_path):
        runpy.run_path(str(script))
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]

    made = trainer(tmp_path)
    batches = plan_epoch(made._training.num_faces, epoch=0, seed=0, batch_size=4, world_size=2)
    for number, faces in enumerate(load(made._training, batches[:2], num_workers=0, pin_memory=False)):
        made._seed(number)
        (made._loss(faces) / 2).backward()
    for name, parameter in made.network.named_parameters():
        for part in parts:
            assert torch.allclose(torch.tensor(part["gradients"][name]), parameter.grad, atol=1e-5, rtol=1e-3), name
    assert len(parts[0]["logits"]) == 2 * sum(sample.split == "val" for sample in samples)
    assert parts[0]["logits"] == parts[1]["logits"]
    assert parts[0]["fake"] == [False, True] * 3
    assert parts[0]["flags"] == parts[1]["flags"] == [True, False]
    assert parts[0]["buffers"] == parts[1]["buffers"], "both validate with the same batch norm statistics"


def test_two_processes_write_one_calibrated_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "data", num_train=6, num_val=3)
    options = "--architecture test_efficientnet --no-pretrained --input-size-px 64 --resize-px 70 --batch-size 4"
    command = ["train", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *options.split()]
    command += ["--epochs", "2", "--workers", "0", "--forgeries", "self-blended", "--device", "cpu"]
    with with_second_process(monkeypatch, "-m", "dfscan", *command):
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("epoch 2: train loss") == 1
    card = read_card(tmp_path / "run" / "best.safetensors").card
    assert card.calibration.trained
    assert card.training is not None
    assert card.training["device"] == "2 x cpu"
    assert (card.calibration.num_real_videos, card.calibration.num_fake_videos) == (3, 3)


def test_the_seed_depends_on_the_position_in_the_run(tmp_path: Path) -> None:
    made = trainer(tmp_path)

    def draw(epoch: int, number: int) -> float:
        made.progress = TrainProgress(epoch=epoch)
        made._seed(number)
        return float(torch.rand(()))

    drawn = [draw(epoch, number) for epoch, number in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3
