"""One cell of a table: a row's setting and a seed, trained and evaluated; what is done already is found on disk."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from cyclecontrast.config import MAY_CHANGE, PROTOCOL_CONFIGS, EvaluateConfig, PretrainConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.evaluation.runner import evaluate
from cyclecontrast.files import replacing
from cyclecontrast.training.pretrain import pretrain
from cyclecontrast.training.run_folder import ABOUT, CONFIG, read_about

Settings = dict[str, Any]


class Evaluation(NamedTuple):
    """A protocol, and its options besides the model, the folder of results and the seed."""

    protocol: str
    settings: Settings

    def config(self, model: Path, seed: int) -> EvaluateConfig:
        """Return the options for one model; raises UserError."""
        named = {"model": str(model), "out": model / "results", "seed": seed}
        return checked(PROTOCOL_CONFIGS[self.protocol], self.settings | named)


class Cell(NamedTuple):
    """A training and its evaluations. `settings` decide what is trained, `hardware` only how fast.

    A plan's cells have all settings, none is left to `auto`. `data_fingerprint` names the content of the frames at
    `data`.
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
        """File beside the run that says, by being there, that a sweep began it."""
        return self.run.with_name(f"{self.run.name}.json")

    @property
    def pretraining(self) -> PretrainConfig:
        """The options of the training; raises UserError."""
        return checked(PretrainConfig, {"data": self.data, "out": self.run, **self.settings, **self.hardware})


def settings_of(config: PretrainConfig) -> Settings:
    """Return the options that decide what is trained, as plain values; epochs are none of them where steps are set."""
    overridden = set() if config.steps is None else {"epochs"}
    return config.model_dump(mode="json", exclude={*MAY_CHANGE, "out", *overridden})


def check_begun(cell: Cell) -> None:
    """Raise UserError where the run's folder was begun with other settings or data, is damaged, or is not a sweep's.

    What it trains with is what its config.toml says, also where a sweep of another version began it.
    """
    if not cell.note.exists():
        if cell.run.exists():
            raise UserError(f"out: {cell.run} was not made by a sweep; name another folder with --out")
        return
    if not _has_begun(cell):
        return
    about = read_about(cell.run) if (cell.run / ABOUT).exists() else {}
    begun = {**settings_of(_begun(cell)), "data": about.get("data_fingerprint", cell.data_fingerprint)}
    asked = {**cell.settings, "data": cell.data_fingerprint}
    changed = [
        f"{name} {_shown(begun.get(name))}, not {_shown(asked.get(name))}"
        for name in sorted({*begun, *asked})
        if begun.get(name) != asked.get(name)
    ]
    if changed:
        raise UserError(f"out: {cell.run} was begun with {', '.join(changed)}; name another folder with --out")


def is_trained(cell: Cell) -> bool:
    """Whether the training has come to its end; raises UserError where run.json is damaged."""
    return (cell.run / ABOUT).exists() and read_about(cell.run).get("status") == "finished"


def run_cell(cell: Cell) -> dict[str, dict[str, float]]:
    """Train and evaluate what is not done yet; returns metrics as fractions by protocol. Raises UserError."""
    check_begun(cell)
    with replacing(cell.note) as aside:
        aside.write_text(json.dumps({"data": cell.data_fingerprint}))
    if not is_trained(cell):
        _train(cell)
    return {
        evaluation.protocol: evaluate(
            evaluation.protocol, evaluation.config(cell.run, cell.seed), reuse=True, alone=True
        ).metrics
        for evaluation in cell.evaluations
    }


def _train(cell: Cell) -> None:
    if _has_begun(cell):
        config = _begun(cell)
    else:
        shutil.rmtree(cell.run, ignore_errors=True)  # it was stopped before its first step
        config = cell.pretraining
    pretrain(config, alone=True)


def _has_begun(cell: Cell) -> bool:
    return (cell.run / CONFIG).exists()


def _begun(cell: Cell) -> PretrainConfig:
    """Return the options to go on with the run, its settings as it was begun."""
    return checked(PretrainConfig, {"resume": cell.run, "data": cell.data, **cell.hardware})


def _shown(value: Any) -> str:
    return "unset" if value is None else f"{value}"
