"""Predictions first, written as a record; scoring second, from the record alone: every protocol goes this way.

A protocol's module has four functions:
`open_data(config) -> data`, `describe(data, config) -> DataInfo`,
`predict(backbone, data, config, unfinished) -> Predictions` and `score(record, config) -> Score`.
Where the cost is embedding, a fifth says what several processes share: `parts(backbone, data, config) -> parts`.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from cyclecontrast.config import EvaluateConfig
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.record import Record, find_records, read_record, record_path, results_folder
from cyclecontrast.evaluation.registry import protocol_of
from cyclecontrast.evaluation.result import NO_PART_OF_KEY, About, Json, ModelInfo, Result
from cyclecontrast.evaluation.shares import Work, embed_together
from cyclecontrast.evaluation.unfinished import Unfinished
from cyclecontrast.files import check_folder, replacing
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.checkpoint import fingerprint
from cyclecontrast.models.hardware import limited_threads, pick_device
from cyclecontrast.training.distributed import ALONE, World
from cyclecontrast.training.leading import runs_alone


class Predictions(NamedTuple):
    """A table with all that the score needs; `tag` names the variant, `problems` each item that was left out.

    `num_used` is how many items of train and test took part; None: all that there are. `idle` are settings that had no
    effect, or that the tag names in words of its own.
    """

    table: pa.Table
    tag: str
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    details: Json = {}  # noqa: RUF012
    num_used: tuple[int, int] | None = None
    idle: frozenset[str] = frozenset()


class Score(NamedTuple):
    """Metrics as fractions, their breakdown, what the tag says of the scoring, and files (suffix → content)."""

    metrics: dict[str, float]
    per_item: Json
    tag: str = ""
    notes: tuple[str, ...] = ()
    files: Mapping[str, bytes] = {}


def evaluate(backbone: Backbone, data: Any, config: EvaluateConfig, world: World = ALONE) -> Result:
    """Evaluate a backbone by the protocol that the config belongs to; raises UserError.

    The other processes of the `world`, where there are any, embed their shares of the images by `work_of`.

    A stopped evaluation goes on where it was; one process at a time. With `score_only` the record of before is scored
    again.
    """
    work = work_of(backbone, data, config) if world.size > 1 and not config.score_only else None
    config = _resolved(backbone, config)
    about = _about_model(backbone, data, config)
    if config.score_only:
        return _score_again(Record.load(results_folder(config), about.record_key), about, config)
    folder = results_folder(config)
    check_folder(folder)
    unfinished = _unfinished(folder, about)
    with unfinished.alone():
        for leftover in (*folder.glob(f"{about.key}.*.part"), *folder.glob(f"records/{about.record_key}.*.part")):
            leftover.unlink()
        if work is not None:
            with limited_threads(pick_device(config.device)):
                embed_together(work, unfinished, world)
        record = _predict(backbone, data, config, about, unfinished)
        record.save(folder)
        return _score(record, about, config)


def work_of(backbone: Backbone, data: Any, config: EvaluateConfig) -> Work:
    """Return what an evaluation embeds, for several processes; raises UserError where it does more than that."""
    module, config = protocol_of(config).load(), _resolved(backbone, config)
    if not hasattr(module, "parts"):
        raise UserError(runs_alone(f"evaluate {protocol_of(config).name}"))
    return Work(_about_model(backbone, data, config).record_key, module.parts(backbone, data, config))


def _unfinished(folder: Path, about: About) -> Unfinished:
    return Unfinished(folder / "unfinished" / f"{about.record_key}-{about.versions['cyclecontrast']}")


def _predict(backbone: Backbone, data: Any, config: EvaluateConfig, about: About, unfinished: Unfinished) -> Record:
    with limited_threads(pick_device(config.device)):
        predictions: Predictions = protocol_of(config).load().predict(backbone, data, config, unfinished)
    num_train, num_test = predictions.num_used or (about.data.num_train, about.data.num_test)
    made = dataclasses.replace(
        about,
        data=about.data._replace(num_train=num_train, num_test=num_test),
        tag=" ".join([predictions.tag, *_unusual(config, predictions)]),
        **{name: getattr(predictions, name) for name in ("notes", "problems", "details")},
    )
    return Record(made, predictions.table)


def _resolved(backbone: Backbone, config: EvaluateConfig) -> EvaluateConfig:
    """Return the config with the size of images that the backbone was trained at, where a protocol leaves it open."""
    size = getattr(config, "image_size", backbone.image_size)
    return config if size is not None else config.model_copy(update={"image_size": backbone.image_size})


def _unusual(config: EvaluateConfig, made: Predictions) -> Iterator[str]:
    """Yield the words of a tag for settings that change the numbers and that the protocol's own tag does not name.

    The size of images is always named, whoever chose it. A setting of several values, as k, gives several metrics,
    which say it themselves.
    """
    if "image_size" in type(config).model_fields:
        yield f"image_size={getattr(config, 'image_size', None)}"
    free = {*NO_PART_OF_KEY, *config.scoring, *made.idle, "seed", "image_size"}
    if "epochs" not in type(config).model_fields:
        free.add("batch_size")
    for name, value in config.unusual().items():
        if name not in free and f"{name}=" not in made.tag and not isinstance(value, tuple):
            yield f"{name}={value}"


def find_result(backbone: Backbone, data: Any, config: EvaluateConfig) -> Result | None:
    """Return the result that this version wrote for the same model, data and settings, None where there is none.

    Where it or its record is damaged, it counts as none and is told of.
    """
    config = _resolved(backbone, config)
    about = _about_model(backbone, data, config)
    folder = results_folder(config)
    path, record = folder / f"{about.key}.json", record_path(folder, about.record_key)
    try:
        found = Result.load(path) if path.exists() else None
        if found is not None and record.exists():
            read_record(record)
    except UserError as error:
        print(f"{error}; it is evaluated again", file=sys.stderr)
        return None
    if found is None or found.about.versions != about.versions:
        return None
    unfinished = _unfinished(folder, about)
    if unfinished.folder.exists():
        # Its evaluation was killed behind the result, or another one makes it again, which is left in peace.
        with contextlib.suppress(UserError), unfinished.alone():
            pass
    return found


def score_again(data: Any, config: EvaluateConfig) -> Result:
    """Score the record of a model that is no longer there, found by its name; raises UserError."""
    asked = _about(ModelInfo("", "", ""), data, config)
    folder = results_folder(config)
    found = [record for record in find_records(folder, asked.protocol) if _is_meant(record.about, asked)]
    if len(found) != 1:
        what = f"{len(found)} records fit, name more of the settings" if found else "no record fits"
        raise UserError(
            f"{folder}: the model {config.model} is not there, and of its records of {asked.protocol} on this data "
            f"with these settings {what}"
        )
    return _score_again(found[0], asked, config)


def _is_meant(about: About, asked: About) -> bool:
    """Whether a record is that of the model, data and settings asked for; what was left open may be anything."""
    free = NO_PART_OF_KEY | set(asked.scoring) | {name for name, value in asked.config.items() if value is None}
    return (
        about.config["model"] == asked.config["model"]
        and about.data.fingerprint == asked.data.fingerprint
        and all(about.config.get(name) == value for name, value in asked.config.items() if name not in free)
    )


def _score_again(record: Record, asked: About, config: EvaluateConfig) -> Result:
    """Score with the settings of scoring that are asked for; all others stay those that made the record."""
    settings = record.about.config | {name: asked.config[name] for name in asked.scoring}
    return _score(record, dataclasses.replace(record.about, config=settings), config)


def _score(record: Record, about: About, config: EvaluateConfig) -> Result:
    score: Score = protocol_of(config).load().score(record, config)
    said = dataclasses.replace(
        record.about,
        config=about.config,
        tag=f"{record.about.tag} {score.tag}".strip(),
        notes=(*record.about.notes, *score.notes),
    )
    result = Result(said, score.metrics, score.per_item)
    folder = results_folder(config)
    for suffix, content in score.files.items():
        with replacing(folder / f"{about.key}.{suffix}") as aside:
            aside.write_bytes(content)
    result.save(folder)  # last, for it says that all is there
    return result


def _about_model(backbone: Backbone, data: Any, config: EvaluateConfig) -> About:
    return _about(ModelInfo(backbone.name, backbone.source, fingerprint(backbone)), data, config)


def _about(model: ModelInfo, data: Any, config: EvaluateConfig) -> About:
    protocol = protocol_of(config)
    settings = config.model_dump(mode="json", exclude={"score_only", "report"})
    return About(
        protocol.name,
        "",
        settings,
        model,
        protocol.load().describe(data, config),
        scoring=tuple(sorted(config.scoring)),
    )
