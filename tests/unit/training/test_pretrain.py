"""The command `pretrain`: what a run writes, that it can be repeated, and what it reports."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cyclecontrast as cc
from cyclecontrast.cli import main
from cyclecontrast.errors import UserError
from cyclecontrast.exporting.huggingface import model_card
from cyclecontrast.models.checkpoint import fingerprint, load_backbone, unfinished
from cyclecontrast.training import run_folder
from cyclecontrast.training.pretrain import Run
from tests.make_backbones import execute
from tests.make_runs import (
    TINY,
    about_of,
    assert_same_run,
    assert_same_tensors,
    copy_until,
    rows_of,
    run,
    weights_path,
)


@pytest.fixture(scope="module")
def done(stripes, tmp_path_factory):
    """A run of four steps with a checkpoint after every second."""
    return run(stripes, tmp_path_factory.mktemp("done") / "run", checkpoint_every=2)


def test_a_run_writes_its_files(done):
    """A run leaves its config, run.json, a row of metrics per step, checkpoints and a backbone that loads."""
    names = {path.name for path in done.folder.iterdir()}
    assert names >= {"config.toml", "run.json", "metrics.jsonl", "checkpoints", "backbone.safetensors", "backbone.json"}
    assert [path.name for path in sorted((done.folder / "checkpoints").iterdir())] == ["step-00000002", "step-00000004"]
    assert [row["step"] for row in rows_of(done.folder)] == [1, 2, 3, 4]
    about = about_of(done.folder)
    assert (about["num_videos"], about["num_frames"], about["num_steps"]) == (12, 48, 4)
    assert (about["status"], about["processes"]) == ("finished", 1)
    backbone = load_backbone(done.folder)
    assert (backbone.name, backbone.image_size) == ("resnet10-small-w8", 16)
    last = load_backbone(done.folder / "checkpoints" / "step-00000004")
    assert_same_tensors(backbone.state_dict(), last.state_dict())


def test_the_text_of_a_run_says_what_to_do_next(done, stripes, tmp_path, capsys):
    """As text a run names its backbone and commands that can be pasted; of several processes only the first prints."""
    assert str(done) == (
        f"health (on 12 training videos, none is held out): {done.verdict}\n"
        f"backbone: {done.folder}/backbone.safetensors\n"
        f"next: cyclecontrast embed {done.folder} {stripes} --out {done.folder}/index.parquet\n"
        f"      cyclecontrast search {done.folder}/index.parquet --serve\n"
        f"      cyclecontrast evaluate knn {done.folder} LABELED"
    )
    assert str(Run(done.folder, done.backbone, {}, is_first=False)) == ""
    moved = shutil.copytree(done.folder, tmp_path / "my 'first' run")
    data = shutil.copytree(stripes, tmp_path / "my videos")
    embed, search, _ = str(replace(done, folder=moved, frames=data)).partition("next: ")[2].splitlines()
    assert main([*shlex.split(embed)[1:], "--device", "cpu", "--workers", "0"]) == 0
    words = [word for word in shlex.split(search)[1:] if word != "--serve"]
    assert main([*words, "--video", "group_0/video_0", "--frame", "0"]) == 0
    assert "group_" in capsys.readouterr().out


def test_metrics_have_the_epoch_the_rates_and_the_weight_of_the_cycle(done):
    """Each row has the fraction of the videos shown, the learning rate and λ; what does not exist is None."""
    rows = rows_of(done.folder)
    assert [row["epoch"] for row in rows] == pytest.approx([8 * step / 12 for step in (1, 2, 3, 4)])
    assert [row["cycle_weight"] for row in rows] == [0, 0, 1, 1], "from half of the training on"
    assert all(0 < row["gradient_norm"] < 1e6 for row in rows)
    assert all(0 <= row[name] <= 1 for row in rows for name in ("intra_accuracy", "cycle_closed"))


def test_parts_of_a_loss_are_logged(stripes, tmp_path):
    """SeCo's three parts are in each row of the metrics, and their sum is the loss."""
    (row,) = rows_of(run(stripes, tmp_path / "run", method="seco", steps=1).folder)
    assert row["loss"] == pytest.approx(row["intra_loss"] + row["same_frame_loss"] + row["order_loss"], rel=1e-5)
    assert (row["cycle_loss"], row["cycle_weight"], row["cycle_closed"]) == (None, None, None)


def test_a_run_is_a_function_of_its_seed(stripes, done, tmp_path, capsys):
    """The config of a run repeats it to the bit, with other workers too; another seed gives other numbers."""
    words = ["--config", str(done.folder / "config.toml"), "--out", str(tmp_path / "again"), "--workers", "2"]
    assert main(["pretrain", *words]) == 0
    assert "not used by" not in capsys.readouterr().err, "a config.toml names all options"
    assert rows_of(tmp_path / "again") == rows_of(done.folder)
    assert_same_tensors(*(load_file(weights_path(folder)) for folder in (tmp_path / "again", done.folder)))
    assert rows_of(run(stripes, tmp_path / "other", seed=4).folder) != rows_of(done.folder)


def test_global_random_numbers_have_no_effect(stripes, tmp_path):
    """The projectors and the head are drawn from the seed of the run, whatever was drawn before."""
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        run(stripes, tmp_path / str(seed), method="byol", steps=1)
        weights.append(load_file(weights_path(tmp_path / str(seed))))
    assert_same_tensors(*weights)


def test_a_loss_that_is_not_finite_stops_the_run(stripes, tmp_path):
    """A diverging run ends with one line that has the step, and the last good checkpoint stays."""
    with pytest.raises(UserError, match=r"(not finite at step|weights diverge).*lower --learning-rate") as error:
        run(stripes, tmp_path / "run", learning_rate=1e30, steps=8, checkpoint_every=1)
    assert len(error.value.problems) == 1
    assert about_of(tmp_path / "run")["status"].startswith("stopped: ")
    for path in (tmp_path / "run").rglob("state.safetensors"):
        assert all(value.abs().max() < 1e6 for name, value in load_file(path).items() if "video" not in name)


@pytest.mark.parametrize(
    ("changes", "unread"),
    [
        ({"method": "simsiam", "temperature": 0.1}, {"bn_groups", "queue_size", "temperature"}),
        ({"method": "cycle-only", "cycle_weight": 0.5}, {"cycle_weight", "queue_size"}),
        ({"cycle_weight": 0.5, "momentum": 0.9}, None),
    ],
)
def test_options_without_effect_are_reported(stripes, tmp_path, capsys, changes, unread):
    """Options that were set and that the method does not read are named in one line."""
    options = {name: value for name, value in TINY.items() if name not in ("cycle_queue_size", "support_size")}
    words = {name: value for name, value in (options | {"steps": 1} | changes).items() if name != "report"}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in words.items()]
    assert main(["pretrain", str(stripes), f"--out={tmp_path / 'run'}", "--no-report", *flags]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not used by")]
    assert len(lines) == (0 if unread is None else 1)
    if unread is not None:
        name, names = re.fullmatch("not used by (.*): (.*)", lines[0]).groups()
        assert (name, set(names.split(", "))) == (changes["method"], unread)


def test_settings_are_a_short_table(stripes, tmp_path, capsys):
    """What was set is marked, what auto chose is beside it, in 80 columns; settings of other methods are not shown."""
    run(stripes, tmp_path / "run", method="intra-video", steps=1, temperature=0.3)
    err = capsys.readouterr().err
    lines = re.search(r"^settings \(\* set by you; all are in .*/config.toml\):\n((?:  .*\n)+)", err, re.M)[
        1
    ].splitlines()
    assert all(len(line) <= 80 for line in lines)
    words = " ".join(lines).split()
    assert {"temperature=0.3*", "steps=1*", "momentum=0.99", "projector=mlp-bn"} <= {*words}
    assert not any(word.startswith(("cycle_weight", "epochs", "data=", "out=")) for word in words)
    run(stripes, tmp_path / "run", resume=tmp_path / "run", steps=1, method="intra-video", temperature=0.3)
    again = re.search(r"^settings .*:\n((?:  .*\n)+)", capsys.readouterr().err, re.M)[0]
    assert "*" not in again
    assert "method=intra-video " in again
    assert "freeze_batchnorm" not in again


def test_training_starts_from_given_weights(stripes, done, tmp_path, capsys):
    """`init` takes the backbone of an earlier run with its architecture; another backbone is refused."""
    second = run(stripes, tmp_path / "second", init=str(done.folder), learning_rate=1e-12, weight_decay=0.0, steps=1)
    for (name, one), two in zip(done.backbone.named_parameters(), second.backbone.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6), name
    assert "initialized from" in second.backbone.source
    assert about_of(second.folder)["start"] == {"model": str(done.folder), "fingerprint": fingerprint(done.backbone)}
    assert "start" not in about_of(done.folder)
    assert f"cyclecontrast evaluate knn {second.folder} LABELED --baseline start" in str(second)
    words = capsys.readouterr().err.split()
    assert {"flip=on", f"init={done.folder}*", "freeze_batchnorm=on", "method=cycle"} <= {*words}
    with pytest.raises(UserError, match="is a resnet10-small-w8, but backbone is resnet18; leave one of them out"):
        run(stripes, tmp_path / "other", init=str(done.folder), backbone="resnet18")


def test_a_vision_transformer_from_training_to_export(stripes, tmp_path):
    """It is trained, resumed to the same bits, evaluated and embedded at other sizes, started from, and exported."""
    pytest.importorskip("timm")
    options = {"backbone": "timm:test_vit+avg", "image_size": 32, "steps": 3}
    whole = run(stripes, tmp_path / "whole", checkpoint_every=2, **options)
    part = copy_until(whole.folder, tmp_path / "part", 2)
    cc.pretrain(resume=part, report=False)
    assert_same_run(part, whole.folder, 3)
    further = run(stripes, tmp_path / "further", init=str(whole.folder), freeze=2, layer_decay=0.5, **options)
    assert (further.backbone.name, further.backbone.image_size) == ("timm:test_vit+avg", 32)
    before, after = (load_backbone(folder).network.state_dict() for folder in (whole.folder, further.folder))
    names = [f"blocks.{number}.mlp.fc1.weight" for number in range(6)]
    assert [torch.equal(before[name], after[name]) for name in names] == [True] * 3 + [False] * 3
    for size in (None, 48):
        cc.embed(further.folder, stripes, out=tmp_path / f"{size}.npz", image_size=size, workers=0, device="cpu")
        assert np.load(tmp_path / f"{size}.npz")["vector"].shape == (48, 64)
    with pytest.raises(UserError, match="is a multiple of 16, not 40; set --image-size 32 or 48"):
        cc.embed(further.folder, stripes, out=tmp_path / "40.npz", image_size=40, workers=0, device="cpu")
    labeled = tmp_path / "labeled"
    for split in ("train", "val"):
        shutil.copytree(stripes, labeled / split)
    result = cc.evaluate("knn", further.folder, labeled, out=tmp_path / "knn", k=(1,), workers=0, device="cpu")
    assert result.metrics["top1_k1"] == 1.0, "the same images"
    made = cc.export(further.folder, format="timm", out=tmp_path / "vit.pth")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    variables = execute(made.snippet, images=images)
    backbone = load_backbone(further.folder)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (backbone.mean, backbone.std))
    with torch.no_grad():
        torch.testing.assert_close(variables["features"], backbone((images - mean) / std), atol=1e-5, rtol=1e-4)


def test_weights_of_an_unfinished_training_say_so(stripes, done, tmp_path, capsys):
    """A run that stopped loads its last checkpoint, and says at which step it is; the card of an export, too.

    A finished run says nothing, although it keeps a checkpoint from before its end.
    """
    stopped = tmp_path / "stopped"
    shutil.copytree(done.folder, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-00000004")
    (stopped / "backbone.safetensors").unlink()
    capsys.readouterr()
    backbone = load_backbone(stopped)
    assert capsys.readouterr().err == f"{stopped}: training is unfinished: step 2 of 4\n"
    assert unfinished(backbone) == "unfinished: step 2 of 4"
    assert "Its training is unfinished: step 2 of 4." in model_card(backbone, stopped)
    assert unfinished(load_backbone(done.folder)) == ""
    assert "unfinished" not in model_card(load_backbone(done.folder), done.folder)
    capsys.readouterr()
    other = shutil.copytree(stopped, tmp_path / "other")
    assert main(["export", str(other), "--out", str(tmp_path / "out.safetensors")]) == 0
    assert capsys.readouterr().err == f"{other}: training is unfinished: step 2 of 4\n"
    run_folder.change_about(stopped, status="stopped: interrupted")
    (stopped / "metrics.jsonl").write_text("".join((stopped / "metrics.jsonl").read_text().splitlines(True)[:2]))
    (row,) = json.loads(str(cc.runs.ls(stopped, json=True)))
    assert (row["status"], row["steps_done"], row["num_steps"]) == ("stopped: interrupted", 2, 4)
    page = Path(str(cc.report(stopped))).read_text()
    assert "2 of 4" in page
    assert "stopped: interrupted" in page
    capsys.readouterr()
    load_backbone(done.folder)
    assert capsys.readouterr().err == ""
