"""Define the contents of a training run's folder and write them.

::

    config.toml            resolved settings
    metrics.jsonl          one line per step and one per epoch
    best.safetensors       checkpoint of the best epoch; calibrated at the end
    state.safetensors      training state for --resume
    validation.csv         score of every validation face under the best checkpoint
    losses.png, ...        plots
    reconstructed/         faces reconstructed by autoencoders, unless stored elsewhere
    events.out.tfevents*   if tensorboard is installed
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfscan.errors import ConfigError
from dfscan.files import make_folder, write_bytes, writing

if TYPE_CHECKING:
    from dfscan.detector.card import CheckpointCard
    from dfscan.detector.network import DeepfakeDetector

VALIDATION_NAME = "validation.csv"
VALIDATION_COLUMNS = ("crop", "source", "group", "label", "kind", "domain", "made_by", "logit", "score")


class RunFolder:
    """Paths and writers of one run; only the main process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state_path = path / "state.safetensors"
        self.best_path = path / "best.safetensors"
        self._metrics_path = path / "metrics.jsonl"
        self._tensorboard: Any = None

    def refuse_earlier_run(self) -> None:
        """Check that a new run may use the folder.

        Raises:
            ConfigError: it already holds a run.
        """
        if self._metrics_path.exists() or self.state_path.exists():
            raise ConfigError(f"{self.path} already holds a run: continue it with --resume, or choose another --out")

    def create(self) -> None:
        """Create the folder for a new run.

        Raises:
            OutputError: it cannot be created.
        """
        make_folder(self.path, remedy="Choose another --out.")

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the resolved settings as a file for --config."""
        lines = []
        for name, value in settings.items():
            # JSON strings, numbers and Booleans are also TOML, which has no null.
            text = json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
            lines.append(f"# {name} =" if value is None else f"{name} = {text}")
        self._replace(self.path / "config.toml", "\n".join(lines) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return all metrics lines so far, without a truncated last line."""
        rows: list[dict[str, Any]] = []
        if self._metrics_path.exists():
            for line in self._metrics_path.read_text("utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    break
        return rows

    def rewind(self, steps_done: int) -> None:
        """Remove the lines of steps after the saved state; those steps run again."""
        kept = [row for row in self.rows() if row["step"] <= steps_done]
        self._replace(self._metrics_path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a metrics line, and add its values to TensorBoard if that is installed.

        Raises:
            OutputError: the line cannot be written.
        """
        with writing(self._metrics_path), self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._tensorboard is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._tensorboard = False
            else:
                self._tensorboard = SummaryWriter(str(self.path))
        if self._tensorboard:
            for name, value in row.items():
                if isinstance(value, float):
                    self._tensorboard.add_scalar(f"{row['event']}/{name}", value, row["step"])

    def save_best(self, network: DeepfakeDetector, card: CheckpointCard, *, fp16: bool) -> None:
        """Write `best.safetensors`."""
        from dfscan.detector.checkpoint import save_checkpoint

        save_checkpoint(self.best_path, network, card, fp16=fp16)

    def write_table(self, name: str, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
        """Write a CSV file atomically."""
        import pandas as pd

        table = pd.DataFrame(list(rows), columns=list(header), dtype=object)
        self._replace(self.path / name, table.to_csv(index=False, lineterminator="\n"))

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._tensorboard:
            self._tensorboard.close()

    def _replace(self, path: Path, text: str) -> None:
        write_bytes(path, text.encode("utf-8", "backslashreplace"))
