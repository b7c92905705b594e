"""The files of a run: readable by hand, restored from a checkpoint, and one line where they do not parse."""

import json
import tomllib

import pytest
import torch

from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.training import run_folder
from cyclecontrast.training.health import Cycles


def test_the_config_names_its_data_from_any_folder(tmp_path, monkeypatch):
    """A relative DATA is written as an absolute path, a URL as it is; what is None or for resuming is left out."""
    monkeypatch.chdir(tmp_path)
    for data, expected in (("videos", str(tmp_path / "videos")), ("s3://bucket/store", "s3://bucket/store")):
        run_folder.write_config(tmp_path, PretrainConfig(data=data, out="run"))
        written = tomllib.loads((tmp_path / "config.toml").read_text())
        assert written["data"] == expected
        assert not {"resume", "steps"} & written.keys()


@pytest.mark.parametrize("init", ["random:resnet10-small-w4", "timm:resnet18"])
def test_a_start_is_downloaded_with_permission_only(tmp_path, monkeypatch, init):
    """What run.json names is not downloaded unasked, and not at all if it is not what the run was started with."""
    loaded, network = [], make_backbone("resnet10-small-w4")
    monkeypatch.setattr(run_folder, "load_backbone", lambda model, seed: loaded.append(model) or network)
    run_folder.write_config(tmp_path, PretrainConfig(data="videos", out="run", init=init))
    run_folder.write_about(tmp_path, {"start": {"model": "timm:resnet18"}})
    with pytest.raises(UserError, match=r"its start .* is not the init|allow it: cyclecontrast report \S+ --download$"):
        run_folder.load_start(tmp_path)
    assert loaded == []
    if init == "timm:resnet18":
        assert run_folder.load_start(tmp_path, download=True)[0] == init
        return
    with pytest.raises(UserError, match=r"run\.json: its start timm:resnet18 is not the init of \S+; restore both"):
        run_folder.load_start(tmp_path, download=True)
    assert loaded == []


def test_metrics_are_one_row_a_line(tmp_path):
    """Rows are read as they were appended; a last line that is still being written does not count."""
    assert run_folder.read_metrics(tmp_path) == []
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    for row in rows:
        run_folder.append_metrics(tmp_path, row)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert run_folder.read_metrics(tmp_path) == rows
    with pytest.raises(ValueError, match="not JSON compliant"):
        run_folder.append_metrics(tmp_path, {"step": 3, "loss": float("nan")})


@pytest.mark.parametrize("line", ["{", "3", '{"loss": 1}', '{"step": "x"}', "[" * 100_000, "\udcff"])
def test_a_damaged_line_of_metrics_is_named(tmp_path, line):
    """A line that is not a row is an error with its number and what to copy over the file."""
    checkpoint = tmp_path / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "metrics.jsonl").touch()
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n', errors="surrogateescape")
    with pytest.raises(UserError, match=rf"metrics.jsonl: line 2 is damaged .*; copy {checkpoint}/metrics.jsonl over"):
        run_folder.read_metrics(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_run_json_is_named(tmp_path, content):
    """A run.json that does not parse, or is missing, is an error with what to do."""
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json: is damaged \(.*\); start a new run"):
        run_folder.read_about(tmp_path)


def test_entries_of_run_json_can_be_changed(tmp_path):
    """Changing some entries keeps the others."""
    run_folder.write_about(tmp_path, {"status": "running", "num_videos": 12})
    run_folder.change_about(tmp_path, status="finished")
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": "finished", "num_videos": 12}


def test_bests_of_kept_checkpoints_stay(tmp_path):
    """The best backbone at a step that a run may resume from is kept, and those of later steps."""
    backbone = make_backbone("resnet10-small-w4")

    def steps():
        return sorted(int(path.name[5:]) for path in (tmp_path / "best").iterdir())

    for step in (1, 2, 5, 7):
        run_folder.save_best(tmp_path, step, backbone)
    run_folder.prune_best_backbones(tmp_path, 4)
    assert steps() == [2, 5, 7]
    run_folder.remove_best_and_cycles_after(tmp_path, 6)
    assert steps() == [2, 5]
    run_folder.prune_best_backbones(tmp_path, 6)
    assert steps() == [5]
    run_folder.save_best(tmp_path, 0, backbone)
    run_folder.prune_best_backbones(tmp_path, 6)
    assert steps() == [0, 5], "the start may be needed at the end"


def test_cycles_are_read_as_they_were_written(tmp_path):
    """Cycles are kept by step; a damaged file is an error that names it, and later steps can be dropped."""
    generator = torch.Generator().manual_seed(0)
    query, positive = torch.randn(2, 6, 4, generator=generator)
    cycles = Cycles(query, positive, torch.arange(6), torch.arange(12).view(6, 2))
    for step in (0, 3, 6):
        run_folder.write_cycles(tmp_path, step, cycles)
    run_folder.remove_best_and_cycles_after(tmp_path, 3)
    found = run_folder.read_cycles(tmp_path)
    assert list(found) == [0, 3]
    assert all(torch.equal(value, vars(found[3])[name]) for name, value in vars(cycles).items())
    path = tmp_path / "cycles" / "step-00000003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"step-00000003\.safetensors: is damaged .*remove it"):
        run_folder.read_cycles(tmp_path)


def test_devices_have_names():
    """A CPU is named with its architecture."""
    assert run_folder.device_name(torch.device("cpu")).startswith("cpu (")
