"""The options of `pretrain`: presets equal their sources, and combinations that cannot work are refused."""

import hashlib
import json
from pathlib import Path

import pytest

from cyclecontrast.config import PRESETS, RESOLVED_BY_AUTO, PretrainConfig
from cyclecontrast.config.presets import BASELINE_PRESETS
from cyclecontrast.errors import UserError, checked

BASE = {"data": Path("d"), "out": Path("o")}
PAPER = {
    "projector": "linear",
    "projector_dim": 64,
    "temperature": 0.07,
    "cycle_weight": 0.1,
    "queue_size": 65_536,
    "cycle_queue_size": 65_536,
    "support_size": 16_384,
    "batch_keys": False,
    "mask_own_video": True,
    "split_by": "frame",
    "distinct_frames": True,
    "momentum": 0.999,
    "momentum_ramp": 0,
    "batch_size": 256,
    "epochs": 200,
    "learning_rate": 0.06,
    "schedule": "step",
    "augmentation": "moco-v1",
    "bn_groups": 8,
    "sgd_momentum": 0.9,
    "weight_decay": 1e-4,
    "min_crop": 0.2,
    "flip": True,
    "image_size": 224,
    "backbone": "resnet18",
    "gradient_clip": None,
    "top_k": None,
    "cycle_start": 0.0,
    "warmup": 0.0,
}
RELEASE = PAPER | {
    "backbone": "resnet50",
    "projector": "mlp",
    "projector_dim": 128,
    "cycle_queue_size": 81_920,
    "mask_own_video": False,
    "distinct_frames": False,
    "batch_size": 512,
    "schedule": "cosine",
    "augmentation": "moco-v2",
}


@pytest.mark.parametrize(("preset", "expected"), [("paper", PAPER), ("release", RELEASE)])
def test_presets_equal_their_source(preset, expected):
    """The presets hold the figures of the paper (§4.1) and of the script of the release."""
    config = checked(PretrainConfig, BASE | {"preset": preset})
    assert {name: getattr(config, name) for name in expected} == expected
    assert set(PRESETS[preset]) <= set(expected)


# Learning rates of linear rules are those of the batch: SimSiam 0.05 · 512/256, SeCo 0.1 · 512/256 (4 × 128).
SOURCE_FIGURES = {
    ("paper", "vince"): {
        **{"projector": "mlp", "projector_dim": 64, "temperature": 0.07, "queue_size": 65_536, "batch_size": 64},
        **{"learning_rate": 0.03, "schedule": "step", "backbone": "resnet18", "self_batch": False},
        "distinct_frames": False,
    },
    ("release", "vince"): {
        **{"projector_dim": 128, "temperature": 0.2, "batch_size": 896 // 4, "learning_rate": 0.105},
        **{"schedule": "cosine", "backbone": "resnet50", "self_batch": True, "self_temperature": 0.03},
        "distinct_frames": False,
    },
    ("paper", "simsiam"): {
        **{"projector": "mlp3-bn", "projector_dim": 2048, "batch_size": 512, "learning_rate": 0.1, "epochs": 100},
        **{"weight_decay": 1e-4, "schedule": "cosine", "positives": "frame"},
    },
    ("release", "seco"): {
        **{"queue_size": 131_072, "momentum": 0.999, "epochs": 400, "temperature": 0.1, "learning_rate": 0.2},
    },
    ("paper", "byol"): {
        **{"projector_dim": 256, "momentum": 0.99, "momentum_rise": True, "momentum_ramp": 0, "bn_groups": 1},
    },
    ("paper", "simclr"): {"projector_dim": 128, "temperature": 0.1},
}


@pytest.mark.parametrize(("preset", "method"), SOURCE_FIGURES)
def test_presets_of_baselines_equal_their_source(preset, method):
    """For a baseline the presets hold the figures of its own paper and code, and what the user sets stays."""
    chosen = {"preset": preset, "method": method}
    config = checked(PretrainConfig, BASE | chosen)
    expected = SOURCE_FIGURES[preset, method]
    assert {name: getattr(config, name) for name in expected} == expected
    assert checked(PretrainConfig, BASE | chosen | {"batch_size": 10}).batch_size == 10
    assert all(set(figures) <= set(PretrainConfig.model_fields) for figures in BASELINE_PRESETS[preset].values())


def test_release_leaves_the_papers_negatives():
    """The release's cycle queue without its support is the paper's queue: 81,920 - 16,384 = 65,536."""
    release = PRESETS["release"]
    assert release["cycle_queue_size"] - release["support_size"] == PRESETS["paper"]["queue_size"]


def test_auto_is_the_same_as_unset():
    """Writing `auto` for an option leaves it to the preset, from flags and from files."""
    unset = RESOLVED_BY_AUTO | {"method", "positives", "views"}
    assert checked(PretrainConfig, BASE | {"queue_size": "auto", "method": "auto"}).undecided() == unset
    assert checked(PretrainConfig, BASE | {"method": "cycle"}).undecided() == RESOLVED_BY_AUTO


@pytest.mark.parametrize(
    ("values", "method"),
    [
        ({}, "intra-video"),
        ({"cycle_weight": 0.5}, "cycle"),
        ({"method": "cycle"}, "cycle"),
        ({"preset": "paper"}, "cycle"),
        ({"init": None}, "cycle"),
    ],
)
def test_given_weights_are_trained_by_intra_video(values, method):
    """Unless the user names a method, a preset or an option of the cycle loss; it is not called the user's choice."""
    config = checked(PretrainConfig, BASE | {"init": "timm:resnet18"} | values)
    assert config.method == method
    assert ("method" in config.requested()) == ("method" in values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cycle_queue_size": 100, "support_size": 100}, "must be smaller than cycle_queue_size"),
        ({"cycle_queue_size": 100, "support_size": 10, "top_k": 11}, "top_k (11)"),
        ({"support_size": 10, "top_k": 11}, "top_k (11) is more than support_size (10)"),
        ({"momentum": 1.0}, "less than 1"),
        ({"learning_rate": float("nan")}, "finite number"),
        ({"device": "gpu"}, "device"),
        (
            {"method": "cycle-only", "cycle_queue_size": 100, "support_size": 100},
            "must be smaller than cycle_queue_size",
        ),
        (
            {"method": "cycle", "query_frame_in_support": True},
            "query_frame_in_support is supported only by cycle-only, not by method cycle",
        ),
        ({"method": "seco", "self_batch": True}, "self_batch is supported only by vince"),
        ({"method": "cycle", "positives": "video"}, "positives is supported only by simclr, simsiam, byol, nnclr"),
        ({"teacher": "timm:vit"}, "teacher is supported only by distill, not by method cycle"),
        ({"method": "distill"}, "method distill needs a model to learn from; set --teacher MODEL"),
        ({"momentum_rise": True, "momentum_ramp": 10}, "momentum_rise excludes momentum_ramp"),
        ({"steps": True}, "steps: input should be a number, not True"),
        ({"learning_rate": False}, "learning_rate: input should be a number, not False"),
        ({"steps": 10**18}, "steps: input should be less than or equal to 1000000000"),
        ({"workers": 10**6}, "workers: input should be less than or equal to 1024"),
        ({"image_size": 10**6}, "image_size: input should be less than or equal to 2048"),
        ({"epochs": float("inf")}, "epochs: input should be a finite number"),
        ({"backbone": "resnet18-w10000"}, "backbone: name resnet10"),
        ({"init": ""}, "init: must be a non-empty file name or path, not ''"),
        ({"data": "a\0b"}, "data: must be a valid file name"),
        ({"data": "\udcff"}, "data: input should be a name in UTF-8"),
        ({"out": "x" * 300}, "out: must be a valid file name, not 'xxx"),
        ({"seed": 10**5000}, "seed: input should be less than 4294967296, not a number with thousands of digits"),
    ],
)
def test_impossible_settings_are_refused(values, words):
    """Values out of range and combinations that cannot work are refused with the reason."""
    with pytest.raises(UserError) as error:
        checked(PretrainConfig, BASE | values)
    assert words in str(error.value)


def write_config(folder, text):
    """Write a config.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(text)


SAVED = 'data = "d"\nout = "elsewhere"\nbatch_size = 8\nseed = 3\n'


def test_a_resumed_run_keeps_its_settings(tmp_path):
    """A resumed run has the settings of its config.toml, except those that may change; others are refused by name."""
    write_config(tmp_path, SAVED)
    config = checked(PretrainConfig, {"resume": str(tmp_path), "workers": 5})
    assert (config.out, config.batch_size, config.seed, config.workers) == (tmp_path, 8, 3, 5)
    assert checked(PretrainConfig, {"resume": str(tmp_path), "batch_size": "8", "data": "moved"}).data == Path("moved")
    with pytest.raises(UserError, match="cannot change: batch_size is 8 in the run and 9 requested"):
        checked(PretrainConfig, {"resume": str(tmp_path), "batch_size": 9})


def test_a_teacher_is_downloaded_again_on_request_only(tmp_path):
    """A run whose teacher must be downloaded is resumed only if the command names it; a file may be elsewhere now."""
    write_config(tmp_path, SAVED + 'method = "distill"\nteacher = "timm:vit_tiny_patch16_224"\n')
    with pytest.raises(UserError, match=r"to allow its download: .* --resume \S+ --teacher timm:vit_tiny_patch16_224$"):
        checked(PretrainConfig, {"resume": tmp_path})
    named = {"resume": tmp_path, "teacher": "timm:vit_tiny_patch16_224"}
    assert checked(PretrainConfig, named).teacher == "timm:vit_tiny_patch16_224"
    write_config(tmp_path, SAVED + 'method = "distill"\nteacher = "timm:vit_tiny_patch16_224@/a.pth"\n')
    assert checked(PretrainConfig, {"resume": tmp_path}).teacher == "timm:vit_tiny_patch16_224@/a.pth"
    assert checked(PretrainConfig, {"resume": tmp_path, "teacher": "/b.pth"}).teacher == "/b.pth"


def test_a_start_is_downloaded_again_on_request_only(tmp_path):
    """So is the start of a run without a checkpoint, also where run.json names it; with one, it is not loaded."""
    name = "timm:resnet18"
    for init, about in ((name, "{}"), ("a", json.dumps({"start": {"model": name}}))):
        write_config(tmp_path, SAVED + f'init = "{init}"\n')
        (tmp_path / "run.json").write_text(about)
        with pytest.raises(UserError, match=rf"starts from {name}; to allow its download: .* --init {name}$"):
            checked(PretrainConfig, {"resume": tmp_path})
        assert checked(PretrainConfig, {"resume": tmp_path, "init": name}).init == name
    for step, is_checkpoint in (("x1", False), ("00000005", True)):
        checkpoint = tmp_path / "checkpoints" / f"step-{step}"
        write_config(checkpoint, SAVED + f'init = "{name}"\n')
        digest = hashlib.sha256((checkpoint / "config.toml").read_bytes()).hexdigest()
        (checkpoint / "checksums.json").write_text(json.dumps({"config.toml": digest}))
        write_config(tmp_path, SAVED)  # without its init, which is that of the checkpoint
        (tmp_path / "run.json").unlink(missing_ok=True)
        assert checked(PretrainConfig, {"resume": tmp_path}).init == (name if is_checkpoint else None)


@pytest.mark.parametrize(
    ("given", "absolute"),
    [
        ("run", "/run"),
        ("./file.pth", "/file.pth"),
        ("timm:vit@file.pth", "timm:vit@/file.pth"),
        ("resnet18@file.pth#teacher", "resnet18@/file.pth#teacher"),
        ("file.pth#teacher", "/file.pth#teacher"),
        ("timm:resnet18", None),
        ("timm:vit_tiny_patch16_224+avg", None),
        ("random:resnet18", None),
    ],
)
def test_models_are_named_from_any_folder(tmp_path, monkeypatch, given, absolute):
    """A start and a teacher keep their meaning in another folder, however they were spelled."""
    monkeypatch.chdir(tmp_path)
    expected = given if absolute is None else absolute.replace("/", f"{tmp_path}/")
    values = BASE | {"method": "distill", "teacher": given, "init": given}
    for folder in (".", "/"):
        config = checked(PretrainConfig, values)
        assert (config.init, config.teacher) == (expected, expected)
        values |= {"init": config.init, "teacher": config.teacher}
        monkeypatch.chdir(folder)


def test_what_a_start_passes_on_is_not_requested(tmp_path):
    """Settings of the run that a training starts from are not those of the user, unless the user changes them."""
    write_config(tmp_path, SAVED + "image_size = 32\nflip = false\n")
    config = checked(PretrainConfig, BASE | {"init": tmp_path, "image_size": 48, "seed": 1})
    assert not config.flip
    assert config.requested() & {"image_size", "flip", "seed", "init"} == {"image_size", "seed", "init"}


def test_a_config_edited_after_the_last_checkpoint_is_refused(tmp_path):
    """Settings that were edited by hand must be those of the last checkpoint; comments and other lines may change."""
    checkpoint = tmp_path / "checkpoints" / "step-00000005"
    write_config(checkpoint, SAVED)
    digest = hashlib.sha256((checkpoint / "config.toml").read_bytes()).hexdigest()
    (checkpoint / "checksums.json").write_text(json.dumps({"config.toml": digest}))
    write_config(tmp_path, "# mine\n" + SAVED.replace("seed", "workers = 2\nseed"))
    assert checked(PretrainConfig, {"resume": tmp_path}).workers == 2
    write_config(tmp_path, SAVED.replace("seed = 3", "seed = 4"))
    with pytest.raises(
        UserError,
        match=r"was changed since .*: seed is 3 in the .*and 4 in this file; restore it by copying \S+ over it",
    ):
        checked(PretrainConfig, {"resume": tmp_path})
    (checkpoint / "checksums.json").write_text("[]")
    assert checked(PretrainConfig, {"resume": tmp_path}).seed == 4, "a damaged checkpoint is passed over"


def test_mistakes_beside_resume_are_reported(tmp_path):
    """A wrong option is reported, but no folder as missing, because the run names it; so is a run that is damaged."""
    write_config(tmp_path, SAVED)
    for run, option in ((tmp_path / "none", "resume"), (tmp_path, "workers")):
        with pytest.raises(UserError) as error:
            checked(PretrainConfig, {"resume": run, "workers": -1})
        assert [problem.split(":")[0] for problem in error.value.problems] == [option]
    write_config(tmp_path, "data = ")
    with pytest.raises(UserError, match=r"resume: .*config\.toml is damaged .*; start a new run"):
        checked(PretrainConfig, {"resume": tmp_path})


def test_former_names_are_accepted():
    """Files with the former names of options are read, and a file with both names is a mistake."""
    former = {"objective": "cycle-only", "max_unreadable": 0.5, "own_key_in_support": True}
    config = checked(PretrainConfig, BASE | former)
    assert (config.method, config.max_unreadable, config.query_frame_in_support) == ("cycle-only", 0.5, True)
    with pytest.raises(UserError, match="unknown option objective"):
        checked(PretrainConfig, BASE | {"objective": "cycle", "method": "cycle"})


def test_options_of_methods_are_checked_against_the_method():
    """A built-in method refuses the options of others, one of a user takes all; those of SimCLR choose it."""
    options = {"data": "d", "out": "o", "positives": "video", "views": 3}
    assert checked(PretrainConfig, options | {"method": "own:Mine"}).views == 3
    for implied in ({"views": 3}, {"positives": "video"}):
        config = checked(PretrainConfig, {"data": "d", "out": "o"} | implied)
        assert (config.method, config.positives) == ("simclr", "video")
        assert config.requested() - {"data", "out"} == implied.keys()
    for method in ("cycle", "byol"):
        with pytest.raises(UserError, match="views is supported only by simclr"):
            checked(PretrainConfig, options | {"method": method})
    with pytest.raises(UserError, match="views of more than two frames need --positives video"):
        checked(PretrainConfig, options | {"method": "simclr", "positives": "frame"})
