"""What is checked before a training begins: options, data, weights and memory, all problems in one error."""

import os
import re
import shutil
import tomllib

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import cyclecontrast as cc
from cyclecontrast.config import PrepareConfig, PretrainConfig
from cyclecontrast.data.prepare import prepare
from cyclecontrast.data.store import FrameStore
from cyclecontrast.distributed import World
from cyclecontrast.errors import UserError, checked
from cyclecontrast.loss.attention import log_sum_exp
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.checkpoint import save_backbone
from cyclecontrast.training import setup
from cyclecontrast.training.auto_settings import Machine
from cyclecontrast.training.health import health_views
from cyclecontrast.training.setup import (
    build_method_on_meta,
    make_dataset,
    make_health_dataset,
    memory_lower_bounds,
    open_training,
    split_videos,
)
from tests import make_videos as make
from tests.make_runs import TINY, about_of, refusal, run

SMALL = {"backbone": "resnet10-small-w1", "image_size": 16, "batch_size": 4, "steps": 1, "workers": 0, "device": "cpu"}


def few(stripes, folder, number):
    """Return a copy of some of the videos."""
    for video in range(number):
        shutil.copytree(stripes / f"group_{video % 3}" / f"video_{video}", folder / str(video))
    return folder


@pytest.fixture
def flat(stripes, tmp_path):
    """A flat folder of the frames of all videos."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, path in enumerate(stripes.rglob("*.png")):
        (folder / f"{number}.png").hardlink_to(path)
    return folder


def begin(data, out, **options):
    """Open a training that has not begun; returns its config and dataset."""
    config = checked(PretrainConfig, {"data": data, "out": out, **SMALL, **options})
    return open_training(config, Machine(cpu=True), World(0, 1))[:2]


def problems_of(data, out, **options):
    """Return the problems of a training, for which nothing is written."""
    with pytest.raises(UserError) as error:
        begin(data, out, **options)
    assert not out.exists()
    return list(error.value.problems)


# --- options and data


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "nowhere"}, "nowhere: no such folder"),
        ({"backbone": "resnet17"}, "resnet17"),
        ({"init": "nothing.pth"}, "nothing.pth"),
        ({"device": "cuda:7"}, "cuda"),
        ({"support_size": 32}, "must be smaller than cycle_queue_size"),
        ({"support_size": 1024, "cycle_queue_size": "auto"}, "must be smaller than cycle_queue_size"),
        (
            {"batch_size": 1, "bn_groups": "auto"},
            "batch_size: a batch of 1 video has no negatives; set 2",
        ),
        ({"seed": 2**32}, "seed"),
        (
            {"backbone": "timm:cait_xxs24_224", "image_size": 32},
            r"does not take images of 32 px \(.*224.*\); set",
        ),
    ],
)
def test_a_mistake_writes_nothing(stripes, tmp_path, changes, words):
    """A mistake is one line, and the output folder is not made."""
    if "cuda" in str(changes) and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (problem,) = refusal(**({"data": stripes, "out": tmp_path / "run", "steps": 1} | TINY | changes))
    assert re.search(words, problem)


@pytest.mark.parametrize("name", ["data", "out", "init", "resume"])
def test_an_empty_name_is_not_a_folder(stripes, tmp_path, monkeypatch, name):
    """An empty name, as of a variable that is not set, is not taken for the current folder."""
    monkeypatch.chdir(stripes)
    with pytest.raises(UserError, match=name):
        cc.pretrain(**({"data": stripes, "out": tmp_path / "run", **SMALL} | {name: ""}))
    assert not (tmp_path / "run").exists()


def test_mistakes_are_reported_together(tmp_path):
    """Wrong data, a wrong backbone and an output that exists are three lines of one error."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UserError) as error:
        cc.pretrain(tmp_path / "none", out=tmp_path / "out", backbone="resnet17")
    assert len(error.value.problems) == 3


def test_problems_of_all_kinds_are_reported_together(flat, monkeypatch):
    """Output, initial weights, memory and data are checked although others of them are wrong."""
    monkeypatch.setattr(setup, "free_memory", lambda device: 10**4)
    with pytest.raises(UserError) as error:
        begin(flat, flat, init="random:resnet18")
    assert [problem.split(":")[0] for problem in error.value.problems] == ["out", "init", "memory", str(flat)]


def test_random_weights_are_no_start(stripes, tmp_path):
    """They would be trained with the settings for pretrained weights."""
    (problem,) = problems_of(stripes, tmp_path / "run", init="random:resnet18", backbone="auto")
    assert problem == "init: random weights need no --init: use --backbone resnet18 instead"


def test_images_are_checked_before_videos_are_prepared(tmp_path):
    """A size that the backbone does not take is refused before a frame is written."""
    make.write_numbered(tmp_path / "0.mp4", num_frames=4)
    make.write_numbered(tmp_path / "1.mp4", num_frames=4)
    (problem,) = problems_of(tmp_path, tmp_path / "run", backbone="timm:cait_xxs24_224", image_size=32)
    assert problem.startswith("image_size: timm:cait_xxs24_224 does not take images of 32 px (")
    (problem,) = problems_of(tmp_path, tmp_path / "run", backbone="timm:test_vit", image_size=40)
    assert problem == (
        "image_size: timm:test_vit takes images whose side is a multiple of 16, not 40; set --image-size 32 or 48"
    )


def test_a_folder_that_cannot_be_listed_is_left_out_of_a_tree(stripes, tmp_path, monkeypatch, capsys):
    """It makes a tree of images neither unusable nor a folder of videos, and it is named."""
    tree = few(stripes, tmp_path / "tree", 4)
    (tree / "locked").mkdir()
    scandir = os.scandir

    def guarded(path="."):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert setup.count_videos(checked(PretrainConfig, {"data": tree, "out": tmp_path / "run"})) == 0
    _, dataset = begin(tree, tmp_path / "run")
    assert dataset.store.num_videos == 4
    assert "left out: 1 folder that cannot be listed (permission denied), such as locked" in capsys.readouterr().err


def test_a_flat_folder_needs_a_method_of_one_frame(stripes, flat, tmp_path):
    """Unrelated images are refused where two frames of a video are needed, and accepted for single frames."""
    for method in ("cycle", "seco"):
        (problem,) = problems_of(flat, tmp_path / "run", method=method)
        assert "only --method intra-image, simclr, simsiam, byol, nnclr, diet and distill can learn from it" in problem
    for method in ("intra-image", "simsiam", "diet"):
        begin(flat, tmp_path / "run", method=method)


def test_a_batch_larger_than_the_data_is_refused(stripes, tmp_path):
    """A batch has at most as many videos as there are frames to train on, without those held out."""
    assert begin(stripes, tmp_path / "run", batch_size=48)[0].batch_size == 48
    (problem,) = problems_of(stripes, tmp_path / "run", batch_size=49)
    assert problem.startswith("batch_size: 49 is more than the 48 frames of the 12 videos that are trained on; set")
    (problem,) = problems_of(stripes, tmp_path / "run", batch_size=48, holdout=0.5)
    assert "the 24 frames of the 6 videos" in problem


def test_a_batch_that_repeats_videos_is_reported(stripes, tmp_path, capsys):
    """If a batch is larger than the number of videos, a line says how often it has each."""
    begin(stripes, tmp_path / "run", batch_size=12)
    assert capsys.readouterr().err == ""
    begin(stripes, tmp_path / "run", batch_size=30)
    assert capsys.readouterr().err == (
        "batch size 30 exceeds the number of videos, 12: each appears up to 3 times per batch\n"
    )


def test_options_are_checked_against_the_number_of_videos(tmp_path):
    """A support of 1,200 keys fits 1,500 videos, for which `auto` makes a queue of 2,048."""
    for number in range(1500):
        (tmp_path / "data" / str(number)).mkdir(parents=True)
        (tmp_path / "data" / str(number) / "0.png").touch()
    image = cv2.imencode(".png", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(image)
    config, _ = begin(tmp_path / "data", tmp_path / "run", queue_size=8, support_size=1200)
    assert config.cycle_queue_size == 2048


def test_single_frames_take_part(stripes, tmp_path, capsys):
    """Videos of one frame give two views of it; they are counted in what is printed and in run.json."""
    data = tmp_path / "data"
    shutil.copytree(stripes, data)
    for path in (data / "group_1" / "video_1").glob("[123].png"):
        path.unlink()
    run(data, tmp_path / "run", steps=1)
    assert "1 of them with a single frame" in capsys.readouterr().err
    assert about_of(tmp_path / "run")["num_single_frame_videos"] == 1


# --- held-out videos


def test_videos_held_out():
    """A tenth is held out, always the same; no video is in both parts, and at least two are held out."""
    trained, held_out = split_videos(556, 0.1)
    assert len(held_out) == 56
    assert sorted([*trained, *held_out]) == list(range(556))
    assert np.array_equal(held_out, split_videos(556, 0.1)[1])
    assert len(split_videos(7, 0.01)[1]) == 2
    assert split_videos(5, 0.0)[0].tolist() == list(range(5))


def test_at_least_two_videos_are_held_out(stripes, tmp_path):
    """Of three videos only one would remain, which is refused; of four, two are trained on."""
    (problem,) = problems_of(few(stripes, tmp_path / "three", 3), tmp_path / "run", holdout=0.1)
    assert problem == (
        "holdout: holds out 2 of 3 videos (minimum 2), which leaves 1 for training, but contrasting needs at least "
        "two; set --holdout 0, or add videos"
    )
    assert begin(few(stripes, tmp_path / "four", 4), tmp_path / "run", holdout=0.1)[1].num_videos == 2


def test_too_few_videos_are_refused_before_they_are_prepared(tmp_path):
    """The number of video files is known before a frame is written."""
    for number in range(3):
        make.write_numbered(tmp_path / f"{number}.mp4", num_frames=4)
    (problem,) = problems_of(tmp_path, tmp_path / "run", holdout=0.5)
    assert "leaves 1 for training" in problem


def datasets_of(data, **changes):
    """Return the dataset of a training and the one that its health is measured on."""
    config = PretrainConfig(data=data, out="o", **(TINY | {"holdout": 1 / 3} | changes))
    dataset = make_dataset(config, FrameStore.open(data))
    return dataset, make_health_dataset(config, dataset)


def test_held_out_videos_are_not_trained_on(stripes):
    """Training and health share no video, and together they use all."""
    dataset, health = datasets_of(stripes)
    trained = {dataset.sample(position).video for position in range(2 * dataset.num_videos)}
    assert not trained & {*health.videos}
    assert trained | {*health.videos} == set(range(12))


def test_health_is_measured_on_two_frames_whatever_the_options(stripes):
    """The measured views are the same if the training may draw one frame twice, has more views or another seed."""
    plain, release, vince, seed = (
        health_views(datasets_of(stripes, **changes)[1])
        for changes in ({}, {"preset": "release"}, {"method": "vince", "distinct_frames": False}, {"seed": 4})
    )
    assert (plain.frames[:, 0] != plain.frames[:, 1]).all()
    for other in (vince, seed):
        assert all(map(torch.equal, plain.views, other.views))
    assert torch.equal(plain.frames, release.frames), "its augmentation differs"
    assert set(health_views(datasets_of(stripes, holdout=0.0)[1]).video.tolist()) == set(range(12))


# --- memory


def test_what_does_not_fit_into_memory_is_refused(stripes, tmp_path, monkeypatch):
    """Far too large sizes are one line that names the largest part, and no weight is allocated."""
    monkeypatch.setattr(setup, "free_memory", lambda device: 10**10)
    start = save_backbone(make_backbone("resnet18"), tmp_path)
    for options, words in (
        ({"queue_size": 10**9}, "at least .* GB are needed, .* for the queues, and 10.0 are free; lower queue_size"),
        (
            {"method": "byol", "projector_dim": 10**6},
            "for the weights, .* lower projector_dim or take a smaller backbone",
        ),
        ({"backbone": "resnet50-w999"}, "for the weights"),
        ({"image_size": 2048, "batch_size": 640}, "for the views, .* lower batch_size or image_size"),
        (
            {"init": start, "backbone": "auto", "method": "byol", "projector_dim": 10**5},
            "for the weights",
        ),
    ):
        (problem,) = problems_of(stripes, tmp_path / "run", **options)
        assert re.search(words, problem)


def test_the_least_memory_is_the_sum_of_its_parts():
    """What is counted equals the weights, queues and views that the training has, byte by byte."""
    options = {"method": "cycle", "queue_size": 100, "cycle_queue_size": 60, "support_size": 8, "projector_dim": 5}
    config = checked(PretrainConfig, {"data": "d", "out": "o", "preset": "paper", **SMALL, **options})
    backbone, dim = 4 * sum(weight.numel() for weight in cc.load_backbone("random:resnet10-small-w1").parameters()), 8
    weights, queues, views, similarities = memory_lower_bounds(
        config, build_method_on_meta(config, None, 9), processes=2
    )
    assert weights[0] == 4 * (backbone + 4 * 2 * (dim * 5 + 5))
    assert queues[0] == 2 * 160 * 5 * 4
    assert views[0] == 3 * 16 * 16 * (2 * 2 + 4 * 2)  # two views as bytes, one of them at a time as numbers
    assert similarities[0] == 2 * 160 * 4


def test_the_weights_of_classifier_and_teacher_are_counted():
    """DIET's classifier has a row for each video that is not held out; a teacher counts once, the rest three times."""
    student, teacher = (
        sum(weight.numel() for weight in cc.load_backbone(f"random:{name}").parameters())
        for name in ("resnet10-small-w1", "resnet18-w16")
    )
    for options, expected in (
        ({"method": "diet", "holdout": 0.1}, 3 * (student + 8 * 900)),
        ({"method": "distill", "teacher": "random:resnet18-w16"}, 3 * (student + 8 * 128 + 128) + teacher),
    ):
        config = checked(PretrainConfig, {"data": "d", "out": "o", "preset": "paper", **SMALL, **options})
        weights = memory_lower_bounds(config, build_method_on_meta(config, None, 1000), processes=1)[0]
        assert weights[0] == 4 * expected


def test_similarities_are_counted_in_blocks():
    """At the release's sizes no more is counted than the losses, which work in blocks, allocate at once."""
    config = checked(PretrainConfig, {"data": "d", "out": "o", "preset": "release", "method": "cycle"})
    similarities = memory_lower_bounds(config, build_method_on_meta(config, None, 9), processes=1)[3][0]
    query, keys = torch.randn(512, 8, requires_grad=True), torch.randn(65536, 8)
    with torch.profiler.profile(profile_memory=True) as profile:
        log_sum_exp(query, keys, 0.07).sum().backward()
    assert similarities <= max(event.cpu_memory_usage for event in profile.events()) < 4 * 512 * 65536 / 2


def test_a_run_takes_over_from_the_run_that_it_starts_from(stripes, tmp_path):
    """Image size, flip and the sampling of frames are those of the run that `init` names, unless they are set."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        make.write_numbered(videos / f"{number}.mp4", 12)
    start = run(videos, tmp_path / "start", steps=1, image_size=24, flip=False, backbone="resnet10-small-w4")
    shutil.rmtree(start.folder / "frames")
    summary = prepare(PrepareConfig(videos=videos, out=start.folder / "frames", frames_per_video=5, workers=0))
    assert summary.num_frames == 15
    shared = {"steps": 1, "init": start.folder, "batch_size": 3, "workers": 0, "report": False, "holdout": 0}
    done = cc.pretrain(videos, out=tmp_path / "run", **shared)
    assert (done.backbone.image_size, about_of(done.folder)["num_frames"]) == (24, 15)
    config = tomllib.loads((done.folder / "config.toml").read_text())
    assert (config["image_size"], config["flip"]) == (24, False)
    assert cc.pretrain(stripes, out=tmp_path / "set", image_size=16, **shared).backbone.image_size == 16
    shutil.move(start.folder / "frames", tmp_path / "prepared")
    saved = (start.folder / "config.toml").read_text().replace(str(videos), str(tmp_path / "prepared"))
    (start.folder / "config.toml").write_text(saved)
    assert about_of(cc.pretrain(videos, out=tmp_path / "store", **shared).folder)["num_frames"] == 15


def test_freezing_batchnorm_needs_batchnorm(stripes, tmp_path):
    """A network without BatchNorm would be trained as if the option were not set."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU())
    with pytest.raises(UserError, match="has no BatchNorm; remove --freeze-batchnorm"):
        cc.pretrain(stripes, out=tmp_path / "run", backbone=network, steps=1, image_size=16, freeze_batchnorm=True)
    assert not (tmp_path / "run" / "config.toml").exists()
