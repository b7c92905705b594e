"""One cell of a table: a row's setting and a seed, trained and evaluated; what is done already is found on disk."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from cyclecontrast.config import EvaluateConfig, PretrainConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluate import evaluate_config
from cyclecontrast.evaluate.registry import PROTOCOLS
from cyclecontrast.files import replacing
from cyclecontrast.train.pretrain import pretrain
from cyclecontrast.train.run_folder import read_about

Settings = dict[str, Any]


class Evaluation(NamedTuple):
    """A protocol, and its options besides the model, the folder of results and the seed."""

    protocol: str
    settings: Settings

    def config(self, model: Path, seed: int) -> EvaluateConfig:
        """Return the options for one model; raises UserError."""
        named = {"model": str(model), "out": model / "results", "seed": seed}
        return checked(PROTOCOLS[self.protocol].config, self.settings | named)


class Cell(NamedTuple):
    """A training and its evaluations. `settings` decide what is trained, `hardware` only how fast.

    `data_fingerprint` names the content of the frames at `data`.
    """

    row: str
    seed: int
    run: Path
    data: Path
    data_fingerprint: str
    settings: Settings
    hardware: Settings
    evaluations: tuple[Evaluation, ...] = ()

    def of(self, row: str, seed: int, settings: Settings) -> "Cell":
        """Return a cell like this of a row and a seed, whose run lies below this one's."""
        run = self.run / f"{row}-seed{seed}"
        return self._replace(row=row, seed=seed, run=run, settings={**self.settings, **settings, "seed": seed})

    @property
    def note(self) -> Path:
        """File beside the run that says what it was begun for."""
        return self.run.with_name(f"{self.run.name}.json")

    @property
    def pretraining(self) -> PretrainConfig:
        """The options of the training; raises UserError."""
        return checked(PretrainConfig, {"data": self.data, "out": self.run, **self.settings, **self.hardware})


def check_begun(cell: Cell) -> None:
    """Raise UserError where the run's folder was begun with other settings or data, or is not a sweep's."""
    if not cell.note.exists():
        if cell.run.exists():
            raise UserError(f"out: {cell.run} was not made by a sweep; name another folder with --out")
        return
    begun, asked = json.loads(cell.note.read_text()), _identity(cell)
    changed = [
        f"{name} {_shown(begun.get(name))}, not {_shown(asked.get(name))}"
        for name in sorted({*begun, *asked})
        if begun.get(name) != asked.get(name)
    ]
    if changed:
        raise UserError(f"out: {cell.run} was begun with {', '.join(changed)}; name another folder with --out")


def is_trained(cell: Cell) -> bool:
    """Whether the training has come to its end."""
    return (cell.run / "run.json").exists() and read_about(cell.run)["status"] == "finished"


def run_cell(cell: Cell) -> dict[str, dict[str, float]]:
    """Train and evaluate what is not done yet; returns metrics as fractions by protocol. Raises UserError."""
    check_begun(cell)
    if not is_trained(cell):
        _train(cell)
    return {
        evaluation.protocol: evaluate_config(
            evaluation.protocol, evaluation.config(cell.run, cell.seed), reuse=True
        ).metrics
        for evaluation in cell.evaluations
    }


def _train(cell: Cell) -> None:
    with replacing(cell.note) as aside:
        aside.write_text(json.dumps(_identity(cell), indent=2))
    if (cell.run / "config.toml").exists():
        config = checked(PretrainConfig, {"resume": cell.run, "data": cell.data, **cell.hardware})
    else:
        shutil.rmtree(cell.run, ignore_errors=True)  # it was stopped before its first step
        config = cell.pretraining
    pretrain(config)


def _identity(cell: Cell) -> Settings:
    return {**cell.settings, "data": cell.data_fingerprint}


def _shown(value: Any) -> str:
    return "its default" if value is None else f"{value}"
