"""The training: what it writes, that it learns, that it can be repeated and resumed, and how it refuses."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cyclecontrast as cc
from cyclecontrast.config import PretrainConfig
from cyclecontrast.errors import UserError
from cyclecontrast.models.checkpoint import load_backbone
from cyclecontrast.training.pretrain import pretrain
from tests import make_videos as make

TINY = {
    "backbone": "resnet10-small-w8",
    "image_size": 16,
    "batch_size": 8,
    "queue_size": 32,
    "cycle_queue_size": 32,
    "support_size": 8,
    "bn_groups": 2,
    "workers": 0,
    "log_every": 1,
    "seed": 3,
}
LEARNS = {
    "projector": "linear",
    "augmentation": "moco-v1",
    "min_crop": 0.5,
    "batch_size": 12,
    "queue_size": 64,
    "cycle_queue_size": 64,
    "support_size": 24,
    "temperature": 0.2,
    "learning_rate": 0.03,
    "momentum": 0.9,
    "cycle_start": 0.0,
    "steps": 160,
    "log_every": 160,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames: stripes of one width and direction each, which move."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


def run(tree, out, **changes):
    """Pretrain for a few steps."""
    return pretrain(PretrainConfig(data=tree, out=out, **(TINY | {"steps": 4} | changes)))


def lines_of(folder):
    """Read metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "data_wait")} for row in rows]


def test_a_run_writes_what_the_design_says(tree, tmp_path):
    """A run leaves config, facts, metrics per step, checkpoints and a backbone that loads."""
    done = run(tree, tmp_path / "run", checkpoint_every=2)
    names = {path.name for path in done.folder.iterdir()}
    assert names >= {"config.toml", "run.json", "metrics.jsonl", "checkpoints", "backbone.safetensors", "backbone.json"}
    assert [path.name for path in sorted((done.folder / "checkpoints").iterdir())] == ["step-00000002", "step-00000004"]
    assert [row["step"] for row in lines_of(done.folder)] == [1, 2, 3, 4]
    about = json.loads((done.folder / "run.json").read_text())
    assert (about["num_videos"], about["num_frames"], about["num_steps"]) == (12, 48, 4)
    assert about["status"] == "finished"
    backbone = load_backbone(done.folder)
    assert (backbone.name, backbone.image_size) == ("resnet10-small-w8", 16)
    again = load_backbone(done.folder / "checkpoints" / "step-00000004")
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


@pytest.mark.parametrize("objective", ["intra-image", "intra-video", "cycle"])
def test_every_objective_learns(tree, tmp_path, objective):
    """The loss falls clearly below that of guessing among the keys."""
    done = run(tree, tmp_path / "run", method=objective, **LEARNS)
    assert done.metrics["intra_loss"] < 0.9 * np.log(64 + 12)
    assert (done.metrics["cycle_loss"] is None) == (objective != "cycle")
    assert done.metrics["cycle_weight"] == (1.0 if objective == "cycle" else None)


def test_the_terms_of_a_loss_are_logged(tree, tmp_path):
    """SeCo's three parts stand in each line of the metrics and sum up to the loss."""
    (row,) = lines_of(run(tree, tmp_path / "run", method="seco", steps=1).folder)
    assert row["loss"] == pytest.approx(row["intra_loss"] + row["same_frame_loss"] + row["order_loss"], rel=1e-5)
    assert row["cycle_loss"] is None


def test_a_run_is_a_function_of_its_seed(tree, tmp_path):
    """The config that a run wrote reruns it to the bit, with other workers too; another seed gives other weights."""
    first = run(tree, tmp_path / "first")
    config = tmp_path / "first" / "config.toml"
    from cyclecontrast.cli import main

    assert main(["pretrain", "--config", str(config), "--out", str(tmp_path / "second"), "--workers", "2"]) == 0
    assert lines_of(tmp_path / "second") == lines_of(first.folder)
    weights = [load_file(tmp_path / name / "backbone.safetensors") for name in ("first", "second")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    other = run(tree, tmp_path / "third", seed=4)
    assert lines_of(other.folder) != lines_of(first.folder)


def test_an_unreadable_first_frame_does_not_stop_a_run(tree, tmp_path):
    """A damaged frame is replaced by another of its video, wherever it is, and counted."""
    data = tmp_path / "data"
    shutil.copytree(tree, data)
    (data / "group_0" / "video_0" / "0.png").write_bytes(b"")
    assert run(data, tmp_path / "run", steps=6).metrics["replaced_frames"] > 0


def test_a_loss_that_is_not_finite_stops_the_run(tree, tmp_path):
    """A diverging run ends with the step in its message, and the last good checkpoint stays."""
    with pytest.raises(UserError, match=r"(not finite at step|weights explode)") as error:
        run(tree, tmp_path / "run", learning_rate=1e30, steps=8, checkpoint_every=1)
    assert "Traceback" not in str(error.value)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"].startswith("stopped")
    for path in (tmp_path / "run").rglob("state.safetensors"):
        assert all(value.abs().max() < 1e6 for name, value in load_file(path).items() if "video" not in name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "nowhere"}, "nowhere: no such folder"),
        ({"backbone": "resnet17"}, "resnet17"),
        ({"init": "nothing.pth"}, "nothing.pth"),
        ({"device": "cuda:7"}, "cuda"),
        ({"support_size": 32}, "leaves no negatives"),
        ({"support_size": 1024, "cycle_queue_size": "auto"}, "leaves no negatives"),
        ({"batch_size": 1}, "2 videos or more"),
        ({"seed": 2**32}, "seed"),
    ],
)
def test_a_mistake_writes_nothing(tree, tmp_path, changes, words):
    """What cannot run is refused before the output folder is made."""
    if "cuda" in str(changes) and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=words):
        cc.pretrain(**({"data": tree, "out": tmp_path / "run", "steps": 1} | TINY | changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("of_videos", [False, True])
def test_images_that_a_backbone_does_not_take_are_refused(tree, tmp_path, of_videos):
    """A network of timm for one size refuses another in one line, before a video is prepared or a folder made."""
    data = tree
    if of_videos:
        data = tmp_path / "videos"
        data.mkdir()
        for number in range(2):
            make.write_numbered(data / f"{number}.mp4", num_frames=4)
    with pytest.raises(UserError) as error:
        run(data, tmp_path / "run", backbone="timm:vit_tiny_patch16_224", image_size=32)
    (problem,) = error.value.problems
    assert re.fullmatch(
        r"image_size: timm:vit_tiny_patch16_224 does not take images of 32 px \(.*224.*\); set --image-size", problem
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "simsiam", "temperature": 0.1}, "plays no part in simsiam: bn_groups, queue_size, temperature"),
        ({"method": "cycle-only", "cycle_weight": 0.5}, "plays no part in cycle-only: cycle_weight, queue_size"),
        ({"cycle_weight": 0.5, "momentum": 0.9}, ""),
    ],
)
def test_options_that_play_no_part_are_told(tree, tmp_path, capsys, changes, told):
    """What was asked for and is not read is told in one line; a config.toml names everything, and is silent."""
    from cyclecontrast.cli import main

    options = {name: value for name, value in TINY.items() if name not in ("cycle_queue_size", "support_size")}
    options |= {"steps": 1, "preset": "auto"} | changes
    run_ = pretrain(PretrainConfig(data=tree, out=tmp_path / "run", **options))
    lines = [line for line in capsys.readouterr().err.splitlines() if "plays no part" in line]
    assert [sorted(re.split(": |, ", line)) for line in lines] == ([sorted(re.split(": |, ", told))] if told else [])
    assert main(["pretrain", "--config", str(run_.folder / "config.toml"), "--out", str(tmp_path / "again")]) == 0
    assert "plays no part" not in capsys.readouterr().err


def test_mistakes_come_together(tmp_path):
    """Wrong data, a wrong backbone and an output that exists are told in one error."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(UserError) as error:
        cc.pretrain(tmp_path / "none", out=out, backbone="resnet17")
    assert len(error.value.problems) == 3


def test_what_many_videos_allow_is_not_refused(tree, tmp_path):
    """Options are judged by the videos that are there: 1,500 have an automatic queue of 2,048, and room for 1,200."""
    frame, folders = next(tree.rglob("*.png")), [tmp_path / "data" / str(number) for number in range(1500)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "0.png").hardlink_to(frame)
    changes = {"cycle_queue_size": "auto", "support_size": 1200, "steps": 1}
    done = cc.pretrain(folders[0].parent, out=tmp_path / "run", **(TINY | changes))
    assert "cycle_queue_size = 2048\n" in (done.folder / "config.toml").read_text()


def test_mistakes_in_data_and_options_come_together(tree, tmp_path):
    """A backbone other than that of --init, and frames that the objective cannot use, are told in one error."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(tree.rglob("*.png")):
        shutil.copy(path, flat / f"{number}.png")
    with pytest.raises(UserError) as error:
        run(flat, tmp_path / "run", init="random:resnet18")
    assert [problem.split(":")[0] for problem in error.value.problems] == ["init", str(flat)]
    assert not (tmp_path / "run").exists()


def test_single_frames_take_part(tree, tmp_path, capsys):
    """Videos of one frame are trained with two views of it, and counted in what is printed."""
    data = tmp_path / "data"
    shutil.copytree(tree, data)
    for path in (data / "group_1" / "video_1").glob("[123].png"):
        path.unlink()
    run(data, tmp_path / "run", steps=2)
    assert "1 of them with one frame" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["num_single_frame_videos"] == 1


def test_a_flat_folder_is_for_one_objective(tree, tmp_path):
    """Unrelated images are refused where two frames of one video are needed, and taken for intra-image."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(tree.rglob("*.png")):
        shutil.copy(path, flat / f"{number}.png")
    with pytest.raises(UserError, match="only --objective intra-image"):
        run(flat, tmp_path / "run")
    with pytest.raises(UserError, match="only --objective intra-image"):
        run(flat, tmp_path / "run", method="seco")
    assert run(flat, tmp_path / "run", method="intra-image", steps=1).metrics["step"] == 1
    assert run(flat, tmp_path / "other", method="simsiam", steps=1).metrics["step"] == 1


def test_training_starts_from_given_weights(tree, tmp_path):
    """--init takes the backbone of an earlier run, architecture included."""
    first = run(tree, tmp_path / "first")
    second = run(tree, tmp_path / "second", init=str(first.folder), learning_rate=1e-12, weight_decay=0.0)
    for (name, one), two in zip(first.backbone.named_parameters(), second.backbone.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6), name
