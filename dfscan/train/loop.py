"""The training loop, for one device or several.

A run is determined by its data, settings and number of devices: every batch, augmentation and dropout mask depends only
on the seed and its position in the run. An interrupted and resumed run therefore ends with the same weights as an
uninterrupted one.

This module imports PyTorch: import it only inside functions that need it.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.amp.grad_scaler import GradScaler  # noqa: TID253
from torch.nn.parallel import DistributedDataParallel  # noqa: TID253

from dfscan.detector.card import CheckpointCard
from dfscan.detector.checkpoint import load_network, read_card
from dfscan.detector.network import DeepfakeDetector
from dfscan.errors import ConfigError, TrainingError
from dfscan.evaluation.metrics import quick
from dfscan.train.batches import Batch, Pool, draw_epoch, num_steps, plan_epoch
from dfscan.train.dataset import Faces, FaceSet, load
from dfscan.train.distributed import DistContext
from dfscan.train.folder import RunFolder
from dfscan.train.interrupt import Interrupt
from dfscan.train.kinds import KindTeacher, kind_loss
from dfscan.train.loss import detection_loss
from dfscan.train.optim import create_optimizer, create_schedule, update_average
from dfscan.train.settings import SAME_RESULT, TrainSettings
from dfscan.train.state import TrainProgress, TrainState, load_state, save_state
from dfscan.train.validation import ValidationScores, normalised, score_faces

MAX_WORKERS = 16
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainListener(Protocol):
    """Receives progress events of a training run."""

    def noted(self, text: str) -> None:
        """Handle a message about the work before the first step."""

    def planned(self, num_steps: int, steps_done: int) -> None:
        """Handle the start of training, with the total steps and the steps already done."""

    def stepped(self, loss: float) -> None:
        """Handle a finished step."""

    def epoch_done(self, row: dict[str, Any], is_best: bool) -> None:
        """Handle a finished epoch, with its row of metrics.jsonl."""


class Trainer:
    """Trains a network on one set of faces and validates it on another."""

    def __init__(
        self,
        network: DeepfakeDetector,
        settings: TrainSettings,
        *,
        training: FaceSet,
        validation: FaceSet,
        card: CheckpointCard,
        dist: DistContext,
    ) -> None:
        """Plan all epochs, and create the network, optimiser and schedule on the device.

        Args:
            network: new or from a checkpoint; trained in place.
            settings: the training settings.
            training: at least one batch of faces.
            validation: faces of both classes.
            card: card of the checkpoints to write, without calibration; its `preprocessing` is used for training.
            dist: the processes of the run.

        Raises:
            ConfigError: an epoch has less than one batch per process.
        """
        self._settings, self._card, self._dist = settings, card, dist
        self._training, self._validation = training, validation
        self.network: DeepfakeDetector = network.to(dist.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._precision = PRECISIONS[chosen_precision(settings.precision, dist.device)]
        is_fake = [sample.label == "fake" for sample in training.samples]
        texts = {name: [getattr(sample, name) for sample in training.samples] for name in ("domain", "group", "source")}
        self._pool = Pool(is_fake, texts["domain"], texts["group"], texts["source"])
        self._plans = {epoch: len(self._plan(epoch)) for epoch in range(settings.epochs)}
        if not all(self._plans.values()):
            raise ConfigError(
                f"{len(training)} training samples are less than one batch of {settings.batch_size} for each of "
                f"{dist.size} processes; prepare more, lower --batch-size, or train on fewer devices"
            )
        teacher = KindTeacher(self.network).to(dist.device) if settings.kind_weight else None
        kind_output = teacher.kinds if teacher else None
        optimizer = create_optimizer(self.network, settings, kind_output)
        schedule = create_schedule(optimizer, settings, num_steps=self.num_steps)
        scaler = GradScaler(dist.device.type, enabled=self._precision == torch.float16)
        average = copy.deepcopy(self.network).eval() if settings.ema_decay else None
        self._state = TrainState(self.network, optimizer, schedule, scaler, average, kind_output)
        self._model: torch.nn.Module = teacher or self.network
        if dist.size > 1:
            devices = [dist.device] if dist.device.type == "cuda" else None
            self._model = DistributedDataParallel(self._model, device_ids=devices)
        self.progress = TrainProgress()

    @property
    def _evaluated(self) -> DeepfakeDetector:
        """The network that is validated and saved."""
        return self._state.average or self.network

    @property
    def num_steps(self) -> int:
        """Optimiser steps of all epochs."""
        size = self._dist.size
        return sum(
            num_steps(num_batches, grad_accumulation=self._settings.grad_accumulation, world_size=size)
            for num_batches in self._plans.values()
        )

    def _plan(self, epoch: int) -> list[Batch]:
        settings = self._settings
        if settings.faces_per_epoch:
            return draw_epoch(
                self._pool,
                epoch=epoch,
                seed=settings.seed,
                batch_size=settings.batch_size,
                num_faces=settings.faces_per_epoch,
                fake_share=settings.fake_share,
                domain_exponent=settings.domain_exponent,
                world_size=self._dist.size,
            )
        return plan_epoch(
            self._training.num_faces,
            epoch=epoch,
            seed=settings.seed,
            batch_size=settings.batch_size,
            repeat=settings.repeat,
            world_size=self._dist.size,
        )

    def match(self, lite: str, tell: Callable[[str], None]) -> None:
        """Fit the backbone to EfficientNet-Lite's features on `match_faces` faces, before the first step."""
        from dfscan.train.lite import load_lite
        from dfscan.train.match import match_features

        settings = self._settings
        epochs = itertools.count(settings.epochs)  # augmentations differ from those of the run's epochs
        endless = itertools.chain.from_iterable(map(self._plan, epochs))
        batches = list(itertools.islice(endless, settings.match_faces // settings.batch_size))
        match_features(
            self.network,
            load_lite(lite),
            load(self._training, batches, num_workers=self._num_workers(), pin_memory=self._is_cuda),
            num_batches=len(batches),
            precision=self._precision,
            tell=tell,
        )

    # The run

    def run(self, folder: RunFolder, listener: TrainListener, interrupt: Interrupt) -> None:
        """Train to the end or until interrupted, updating `best.safetensors` and `state.safetensors`.

        Raises:
            TrainingError: the loss, a gradient or a validation score is not finite.
            OutputError: a file cannot be written.
            KeyboardInterrupt, SystemExit: the user interrupted the run; the state has been saved.
        """
        settings, progress = self._settings, self.progress
        listener.planned(self.num_steps, progress.steps_done)
        while progress.epoch < settings.epochs and progress.stale_epochs < settings.patience:
            self._train_epoch(folder, listener, interrupt)
            self._finish_epoch(folder, listener)

    def begin(self, folder: RunFolder) -> None:
        """Save the initial state, so that the run can be resumed from the start."""
        self._save(folder)

    def resume(self, folder: RunFolder) -> None:
        """Restore the saved state.

        Raises:
            DataError: there is no state, or it is damaged.
            ConfigError: it belongs to other settings.
        """
        self.progress = load_state(folder.state_path, self._state, self._identity())
        if self._dist.is_main:
            folder.rewind(self.progress.steps_done)

    def _identity(self) -> dict[str, Any]:
        """Return everything that must stay the same for --resume to end with the same weights."""
        faces = [[s.crop_sha256, s.group, s.box_xyxy.tolist(), s.landmarks.tolist()] for s in self._training.samples]
        reconstructions = self._training.reconstructions
        values = dataclasses.asdict(self._settings)
        kept = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        return {name: value for name, value in kept.items() if name not in SAME_RESULT} | {
            "number of devices": self._dist.size,
            "kind of device": self._dist.device.type,
            "kinds of forgeries": [list(self._settings.kinds), list(self._settings.held_out_kinds)],
            "training faces": hashlib.sha256(json.dumps(faces).encode()).hexdigest(),
            "reconstructed faces": reconstructions.name if reconstructions else None,
        }

    def _save(self, folder: RunFolder) -> None:
        if self._dist.is_main:
            save_state(folder.state_path, self._state, self.progress, self._identity())

    def _train_epoch(self, folder: RunFolder, listener: TrainListener, interrupt: Interrupt) -> None:
        settings, progress = self._settings, self.progress
        self.network.train()
        batches = self._plan(progress.epoch)
        first = progress.next_step * settings.grad_accumulation
        mine = batches[self._dist.rank :: self._dist.size][first:]
        loaded = load(self._training, mine, num_workers=self._num_workers(), pin_memory=self._is_cuda)
        saved_s = started_s = time.monotonic()
        seconds = progress.seconds
        for window in _windows(zip(itertools.count(first), loaded, strict=False), settings.grad_accumulation):
            head, backbone = self._state.optimizer.param_groups
            rates = {"lr_head": head["lr"], "lr_backbone": backbone["lr"]}
            loss, is_stopped = self._step(window, interrupt)
            progress.seconds = seconds + time.monotonic() - started_s
            if self._dist.is_main:
                folder.append({"event": "step", "step": progress.steps_done, "loss": loss, **rates})
            listener.stepped(loss)
            is_due = time.monotonic() - saved_s > settings.save_every_s
            if is_stopped or is_due:
                self._save(folder)
                saved_s = time.monotonic()
            if is_stopped:
                self._dist.barrier()  # when one process exits, torchrun kills the others, possibly while they save
                interrupt.leave()

    def _step(self, window: Sequence[tuple[int, Faces]], interrupt: Interrupt) -> tuple[float, bool]:
        """Take one optimiser step over a window of batches; return the mean loss and whether a stop was requested."""
        progress, state = self.progress, self._state
        losses = []
        for position, (number, faces) in enumerate(window):
            self._seed(number)
            is_last = position == len(window) - 1
            syncing: AbstractContextManager[Any] = nullcontext()
            if isinstance(self._model, DistributedDataParallel) and not is_last:
                syncing = self._model.no_sync()
            with syncing:
                loss = self._loss(faces) / len(window)
                state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        values = torch.stack(losses).tolist()
        value = sum(values)
        broken = [batch for batch, loss_of in zip(window, values, strict=True) if not math.isfinite(loss_of)]
        is_broken, is_stopped = self._dist.any_rank(bool(broken), interrupt.is_asked)
        if is_broken:
            self._refuse("loss", broken)
        norm = self._update()
        if not math.isfinite(norm) and not state.scaler.is_enabled():
            self._refuse("gradient", window)
        progress.next_step += 1
        progress.steps_done += 1
        progress.loss_sum += value
        return value, is_stopped

    def _seed(self, number: int) -> None:
        """Seed dropout with the batch's position in the run, independently of the process that computes it."""
        place = number * self._dist.size + self._dist.rank
        mixed = np.random.SeedSequence((self._settings.seed, self.progress.epoch, place))
        torch.manual_seed(int(mixed.generate_state(1)[0]))

    def _loss(self, faces: Faces) -> Tensor:
        pixels = normalised(faces, self._card.preprocessing, self._dist.device)
        with torch.autocast(self._dist.device.type, self._precision, enabled=self._precision != torch.float32):
            outputs = self._model(pixels)
        if not self._settings.kind_weight:
            return detection_loss(outputs, faces.is_fake.to(outputs.device), self._settings)
        logits, kind_logits = outputs
        loss = detection_loss(logits, faces.is_fake.to(logits.device), self._settings)
        return loss + self._settings.kind_weight * kind_loss(kind_logits, faces.kinds)

    def _update(self) -> float:
        """Update the weights unless the gradient is not finite; return the gradient norm before clipping."""
        state = self._state
        state.scaler.unscale_(state.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._settings.clip_norm))
        # With a non-finite gradient, the scaler skips the optimiser step itself and lowers its scale.
        if math.isfinite(norm) or state.scaler.is_enabled():
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.schedule.step()
            if state.average:
                decay, steps_done = self._settings.ema_decay, self.progress.steps_done
                update_average(state.average, self.network, decay=decay, steps_done=steps_done)
        state.optimizer.zero_grad(set_to_none=True)
        return norm

    def _refuse(self, what: str, broken: Sequence[tuple[int, Faces]]) -> None:
        """Abort the run, listing the broken batches of all devices."""
        clauses = []
        for number, faces in broken:
            names = [self._training.samples[index].crop for index in sorted(set(faces.index.tolist()))]
            crops = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            clauses.append(f"batch {number + 1} of device {self._dist.rank}: {crops}")
        raise TrainingError(
            f"the {what} is not finite in epoch {self.progress.epoch + 1}, step {self.progress.next_step + 1} "
            f"({'; '.join(self._dist.gather(clauses))}). The last saved state and the best checkpoint are kept. "
            "Start a new run with lower --lr-head and --lr-backbone, or with --precision fp32"
        )

    @property
    def _is_cuda(self) -> bool:
        return self._dist.device.type == "cuda"

    def _num_workers(self) -> int:
        if self._settings.workers is not None:
            return self._settings.workers
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(MAX_WORKERS, cpus // self._dist.size) if self._is_cuda else min(1, cpus - 1)

    # After an epoch

    def _finish_epoch(self, folder: RunFolder, listener: TrainListener) -> None:
        progress = self.progress
        metrics = self._validate()
        row = {"event": "epoch", "epoch": progress.epoch + 1, "step": progress.steps_done}
        row |= {"train_loss": progress.loss_sum / progress.next_step, **metrics, "seconds": progress.seconds}
        auc = metrics["val_auc"]
        is_best = progress.best_auc is None or auc > progress.best_auc + self._settings.min_delta
        if is_best:
            progress.best_auc, progress.best_epoch, progress.stale_epochs = auc, progress.epoch + 1, 0
        else:
            progress.stale_epochs += 1
        progress.epoch, progress.next_step, progress.loss_sum = progress.epoch + 1, 0, 0.0
        if self._dist.is_main:
            folder.append(row)
            if is_best:
                folder.save_best(self._evaluated, self._card, fp16=self._settings.fp16)
        self._save(folder)
        listener.epoch_done(row, is_best)

    def _validate(self) -> dict[str, float]:
        self._dist.broadcast_buffers(self._evaluated)
        scores = score_faces(
            self._evaluated,
            self._validation,
            self._card.preprocessing,
            dist=self._dist,
            batch_size=self._settings.batch_size,
            num_workers=self._num_workers(),
            precision=self._precision,
        ).without(self._settings.held_out_kinds)
        if not np.isfinite(scores.logits).all():
            raise TrainingError(
                f"the score of a validation face is not finite after epoch {self.progress.epoch + 1}. The best "
                "checkpoint so far is kept. Start a new run with lower learning rates, or with --precision fp32"
            )
        with torch.no_grad():
            loss = detection_loss(torch.from_numpy(scores.logits), torch.from_numpy(scores.is_fake), self._settings)
        metrics = quick(scores.logits, scores.is_fake)
        names = {"val_accuracy": "accuracy", "val_auc": "roc_auc", "val_f1": "f1"}
        return {"val_loss": float(loss), **{name: metrics[metric] or 0.0 for name, metric in names.items()}}

    def score_best(self, folder: RunFolder, faces: FaceSet) -> ValidationScores:
        """Score faces with the best checkpoint, in fp32 and with the weights as stored."""
        self._dist.barrier()
        network = load_network(read_card(folder.best_path)).to(self._dist.device)
        return score_faces(
            network,
            faces,
            self._card.preprocessing,
            dist=self._dist,
            batch_size=self._settings.batch_size,
            num_workers=self._num_workers(),
        )

    @property
    def device_name(self) -> str:
        """Number of processes and name of the GPU, or ``cpu``."""
        device = self._dist.device
        return f"{self._dist.size} x {torch.cuda.get_device_name(device) if self._is_cuda else 'cpu'}"

    # Loading time

    def measure_loading(self, num_steps: int) -> dict[str, float]:
        """Measure the seconds per step with the loader and with one batch kept in memory, and their ratio."""
        grad_accumulation = self._settings.grad_accumulation
        # The run's own schedule may have fewer steps than are measured here.
        endless = create_schedule(self._state.optimizer, self._settings, num_steps=10**9)
        self._state = dataclasses.replace(self._state, schedule=endless)
        batches = self._plan(0)[self._dist.rank :: self._dist.size]
        needed = list(itertools.islice(itertools.cycle(batches), (num_steps + 2) * grad_accumulation))
        loaded = load(self._training, needed, num_workers=self._num_workers(), pin_memory=self._is_cuda)
        windows = _windows(enumerate(loaded), grad_accumulation)
        kept = [next(windows) for _ in range(2)][-1]
        for window in (kept, kept):
            self._step(window, Interrupt())
        with_loader_s = self._timed(windows)
        without_s = self._timed(itertools.repeat(kept, num_steps))
        return {"with_loader_s": with_loader_s, "without_loader_s": without_s, "ratio": with_loader_s / without_s}

    def _timed(self, windows: Iterable[Sequence[tuple[int, Faces]]]) -> float:
        started_s, count = time.perf_counter(), 0
        for window in windows:
            self._step(window, Interrupt())
            count += 1
        if self._is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - started_s) / count


def _windows(batches: Iterator[tuple[int, Faces]], grad_accumulation: int) -> Iterator[list[tuple[int, Faces]]]:
    """Yield windows of `grad_accumulation` batches; the last one may be shorter."""
    while window := list(itertools.islice(batches, grad_accumulation)):
        yield window


def chosen_precision(name: str, device: torch.device) -> str:
    """Resolve ``auto``: bf16 if the GPU supports it natively, else fp16; fp32 on a CPU."""
    if name != "auto":
        return name
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
