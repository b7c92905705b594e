"""Predictions on disk: written before they are scored, so that scoring can be repeated without the network."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cyclecontrast.config import AllConfig, EvaluateConfig
from cyclecontrast.data.storage import size_within_folder
from cyclecontrast.data.tables import read_bounded
from cyclecontrast.errors import UserError
from cyclecontrast.evaluation.result import About
from cyclecontrast.files import replacing

ABOUT, SEAL = b"about", b"sha256"


@dataclass(frozen=True)
class Record:
    """One row per test item, with all that its score needs."""

    about: About
    table: pa.Table

    def save(self, folder: Path) -> Path:
        """Write <folder>/records/<key>.parquet and return its path."""
        path = record_path(folder, self.about.record_key)
        about = json.dumps(self.about.to_json()).encode()
        with replacing(path) as aside:
            pq.write_table(self.table, aside)
            seal = _seal(about, read_bounded(aside))  # as Parquet gives it back
            pq.write_table(self.table.replace_schema_metadata({ABOUT: about, SEAL: seal}), aside)
        return path

    @staticmethod
    def load(folder: Path, key: str) -> "Record":
        """Read the record with this key; raises UserError."""
        path = record_path(folder, key)
        if not path.exists():
            raise UserError(
                f"{path}: no such record; this model, data and settings were not evaluated into this folder, "
                "run it once without --score-only"
            )
        record = read_record(path)
        if record.about.record_key != key:
            raise UserError(f"{path}: is the record of {record.about.record_key}; run it again without --score-only")
        return record


def read_record(path: Path) -> Record:
    """Read a record's file; raises UserError."""
    try:
        size_within_folder(path)
        table, metadata = read_bounded(path), pq.read_schema(path).metadata or {}
        if metadata[SEAL] != _seal(metadata[ABOUT], table):
            raise ValueError("it is not as it was written")
        return Record(About.from_json(json.loads(metadata[ABOUT])), table)
    except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: the record cannot be read ({error}); run it again without --score-only") from error


def _seal(about: bytes, table: pa.Table) -> bytes:
    """Return the checksum of predictions and of what is said of them, whatever bytes Parquet makes of them."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return hashlib.sha256(about + sink.getvalue()).hexdigest().encode()


def find_records(folder: Path, protocol: str) -> list[Record]:
    """Read all records of a protocol below the folder of results."""
    return [read_record(path) for path in sorted((folder / "records").glob(f"{protocol}-*.parquet"))]


def record_path(folder: Path, key: str) -> Path:
    """Return where the record with this key lies below the folder of results."""
    return folder / "records" / f"{key}.parquet"


def results_folder(config: EvaluateConfig | AllConfig) -> Path:
    """Return the folder of results: as asked, or that of the run that is evaluated, or ./results."""
    if config.out is not None:
        return config.out
    return Path(config.model) / "results" if Path(config.model).is_dir() else Path("results")
