"""Presets are what they are named after, and options refuse what cannot be."""

import tomllib
from pathlib import Path

import pytest
from cyclecontrast.training.open_data import split_videos
from cyclecontrast.training.opening import unread_options
from cyclecontrast.training.presets import DataSize, Machine, auto_settings, resolve

from cyclecontrast.config import DECIDED_BY_AUTO, PRESETS, PrepareConfig, PretrainConfig
from cyclecontrast.config.seal import sealed
from cyclecontrast.config.sources import SOURCES
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
    """Every option of the presets paper and release has the value that protocols.md §e records."""
    config = resolve(checked(PretrainConfig, BASE | {"preset": preset}), DataSize(1000, 256), Machine(cpu=True))
    assert {name: getattr(config, name) for name in expected} == expected
    assert set(PRESETS[preset]) <= set(expected)


# protocols.md §f; the learning rates of linear rules at the batch: SimSiam .05·512/256, SeCo .1·512/256 (4 × 128)
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


@pytest.mark.parametrize(("preset", "objective"), SOURCE_FIGURES)
def test_presets_of_other_objectives_equal_their_source(preset, objective):
    """With a preset of sources an objective beside ours has its own source's figures, and what is asked stays."""
    asked = {"preset": preset, "method": objective}
    config = resolve(checked(PretrainConfig, BASE | asked), DataSize(1000, 256), Machine(cpu=True))
    expected = SOURCE_FIGURES[preset, objective]
    assert {name: getattr(config, name) for name in expected} == expected
    assert checked(PretrainConfig, BASE | asked | {"batch_size": 10}).batch_size == 10
    assert all(set(figures) <= set(PretrainConfig.model_fields) for figures in SOURCES[preset].values())


@pytest.mark.parametrize("objective", ["vince", "seco", "simclr", "simsiam", "byol", "cycle-only"])
@pytest.mark.parametrize("num_videos", [2, 300, 100_000])
def test_auto_suits_any_objective(objective, num_videos):
    """`auto` gives every objective a valid config, decides nothing else, and counts VINCE's frames in its batch."""
    config, ours = (
        resolve(PretrainConfig(**BASE, method=name), DataSize(num_videos, 240), Machine(cpu=True))
        for name in (objective, "cycle")
    )
    paper = PretrainConfig(**BASE, preset="paper")
    changed = {name for name in PretrainConfig.model_fields if getattr(config, name) != getattr(paper, name)}
    assert changed <= DECIDED_BY_AUTO | {"preset", "objective"}
    assert config.learning_rate == pytest.approx(
        ours.learning_rate * config.batch_size / ours.batch_size * (4 if objective == "vince" else 1)
    )
    assert config.projector_dim == (512 if objective == "simsiam" else 64)
    assert config.batch_size == ours.batch_size // (4 if objective == "vince" and num_videos > 2 else 1)


def test_release_leaves_the_papers_negatives():
    """The release's cycle queue without its support is the paper's queue: 81,920 - 16,384 = 65,536."""
    release = PRESETS["release"]
    assert release["cycle_queue_size"] - release["support_size"] == PRESETS["paper"]["queue_size"]


def test_what_was_asked_is_known():
    """Options set by the user are told from those of a preset and from a config.toml, which sets all."""
    own = {"momentum": 0.5, "method": "simsiam"}
    for preset in ("auto", "paper", "release"):
        config = checked(PretrainConfig, BASE | own | {"preset": preset})
        assert config.asked() - {"data", "out", "preset"} == own.keys()
        again = checked(PretrainConfig, resolve(config, DataSize(50, 64), Machine(cpu=True)).model_dump())
        assert "momentum_rise" not in again.asked()
        assert preset != "auto" or not again.asked()


def test_what_the_user_sets_stays():
    """A set option survives every preset; the open ones are decided around it."""
    for preset in ("auto", "paper", "release"):
        asked = {"preset": preset, "queue_size": 999, "momentum": 0.5, "backbone": "resnet34"}
        config = resolve(checked(PretrainConfig, BASE | asked), DataSize(50, 64), Machine(cpu=True))
        assert {name: getattr(config, name) for name in asked} == asked


@pytest.mark.parametrize("num_videos", [1, 7, 500, 10_000, 2_700_000])
@pytest.mark.parametrize("cpu", [True, False])
def test_auto_suits_any_size(num_videos, cpu):
    """Whatever the number of videos and the hardware, `auto` gives a config that is valid and decides nothing else."""
    config = resolve(PretrainConfig(**BASE), DataSize(num_videos, 240), Machine(cpu, processes=3))
    assert config.batch_size % 3 == 0
    assert config.support_size < config.cycle_queue_size
    trained = len(split_videos(num_videos, config.holdout).trained)
    assert 4000 <= config.epochs * trained / config.batch_size <= (20_000 if cpu else 5e6)
    paper = PretrainConfig(**BASE, preset="paper")
    changed = {name for name in PretrainConfig.model_fields if getattr(config, name) != getattr(paper, name)}
    assert changed <= DECIDED_BY_AUTO | {"preset"}
    assert set(auto_settings({}, DataSize(num_videos, 240), Machine(cpu))) == DECIDED_BY_AUTO


@pytest.mark.parametrize("asked", [{}, {"holdout": 0.5}, {"holdout": 0.0}])
@pytest.mark.parametrize("num_videos", [2, 3, 50, 128, 1000, 1100])
def test_auto_is_sized_on_the_videos_trained_on(num_videos, asked):
    """Whatever is held out, `auto` decides as for so many videos as remain, of which no batch holds one twice."""
    size, machine = DataSize(num_videos, 64), Machine(cpu=True)
    config = resolve(PretrainConfig(**BASE, **asked), size, machine)
    trained = len(split_videos(num_videos, config.holdout).trained)
    if trained == 0:
        return
    alone = resolve(PretrainConfig(**BASE, holdout=0.0), size._replace(num_videos=trained), machine)
    assert config.model_dump(exclude={"holdout"}) == alone.model_dump(exclude={"holdout"})
    assert config.batch_size <= max(8, trained)


@pytest.mark.parametrize(
    ("asked", "processes", "words"),
    [
        ({"batch_size": 9}, 2, "batch_size: 9 does not give each of 2 processes"),
        ({"batch_size": 8, "bn_groups": 5}, 1, "bn_groups: 5 groups of a batch of 8 .* set --bn-groups 4 or less"),
        ({"batch_size": 8, "queue_size": 7}, 1, "queue_size: 7 is less than the 8 keys of a step"),
        ({"batch_size": 8, "cycle_queue_size": 7, "support_size": 2}, 1, "^cycle_queue_size: 7 is less than the 8"),
        ({"batch_size": 8, "queue_size": 31, "method": "vince"}, 1, "queue_size: 31 is less than the 32 keys"),
        ({"batch_size": 8, "queue_size": 8, "method": "simclr", "bn_groups": 8}, 1, None),
        ({"batch_size": 8, "queue_size": 8, "cycle_queue_size": 8, "support_size": 7, "bn_groups": 4}, 1, None),
        ({"preset": "paper", "batch_size": 8}, 1, None),
    ],
)
def test_what_does_not_fit_a_step_is_refused(asked, processes, words):
    """Queues hold all keys of a step, and groups that were asked for two images or more; presets are made to fit."""
    config, size, machine = checked(PretrainConfig, BASE | asked), DataSize(100, 64), Machine(True, processes)
    if words is None:
        assert resolve(config, size, machine).batch_size == 8
        return
    with pytest.raises(UserError, match=words):
        resolve(config, size, machine)


@pytest.mark.parametrize("batch_size", [2, 3, 300, 5000])
@pytest.mark.parametrize("objective", ["cycle", "vince", "seco"])
def test_auto_suits_any_batch(batch_size, objective):
    """Around a batch that was asked for, `auto` decides queues that hold a step's keys, and groups of two or more."""
    asked = {"batch_size": batch_size, "method": objective}
    config = resolve(PretrainConfig(**BASE, **asked), DataSize(300, 64), Machine(cpu=True))
    assert config.queue_size >= batch_size * {"cycle": 1, "vince": 4, "seco": 3}[objective]
    assert config.cycle_queue_size >= batch_size
    assert config.bn_groups == 1 or config.bn_groups <= batch_size // 2


def test_steps_go_before_epochs():
    """With both asked for, `auto` decides by the steps, and says that the epochs play no part; no end is too far."""
    size, machine = DataSize(100, 64), Machine(cpu=True)
    both = checked(PretrainConfig, BASE | {"steps": 10, "epochs": 10**6})
    assert resolve(both, size, machine).momentum == 0.99
    assert unread_options(both) == ["epochs"]
    assert resolve(checked(PretrainConfig, BASE | {"steps": 10**9, "batch_size": 200}), size, machine).epochs == 10**9


@pytest.mark.parametrize(
    ("asked", "unread"),
    [
        ({"method": "intra-image", "mask_own_video": False, "distinct_frames": False}, True),
        ({"method": "intra-video", "mask_own_video": False, "distinct_frames": False}, False),
        ({"method": "simclr", "batch_keys": False}, True),
        ({"method": "simclr", "positives": "video", "distinct_frames": False}, False),
        ({"method": "vince", "self_temperature": 0.1}, True),
        ({"method": "vince", "self_temperature": 0.1, "self_batch": True}, False),
    ],
)
def test_options_without_a_part_are_known(asked, unread):
    """What the objective's training does not look at is named, all of it or nothing."""
    asked_beside = asked.keys() - {"objective", "positives"}
    assert set(unread_options(checked(PretrainConfig, BASE | asked))) == (asked_beside if unread else set())


def test_auto_is_the_same_as_unset():
    """Writing `auto` for an option leaves it to the preset, from flags and from files."""
    assert checked(PretrainConfig, BASE | {"queue_size": "auto"}).undecided() == DECIDED_BY_AUTO


def test_all_mistakes_are_listed_at_once():
    """Unknown names, wrong types and values out of range come in one error, with the nearest known name."""
    with pytest.raises(UserError) as error:
        checked(PretrainConfig, {"data": "d", "sped": 1, "batch_size": 0, "learning_rate": "fast"})
    assert {problem.split()[0] for problem in error.value.problems} == {"sped", "out", "batch_size:", "learning_rate:"}
    assert "did you mean seed?" in str(error.value)


def test_what_does_not_fit_is_told_beside_what_is_wrong():
    """Combinations are looked at although other options are wrong, but for those that the wrong ones belong to."""
    asked = {"sped": 1, "batch_size": 0, "method": "cycel", "positives": "video", "top_k": 9, "support_size": 5}
    with pytest.raises(UserError) as error:
        checked(PretrainConfig, asked | {"select": "health", "health_every": 0, "out": ""})
    told = [problem.split()[0] for problem in error.value.problems]
    assert sorted(told) == ["batch_size:", "data", "objective:", "out:", "select", "sped", "top_k"]
    with pytest.raises(UserError) as error:
        checked(
            PrepareConfig, {"videos": "v", "out": "o", "fps": -1, "every": 2, "keyframes": True, "frames_per_video": 3}
        )
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "fps",
        "--frames-per-video and --every and --keyframes exclude each other; name one",
    ]


def test_a_mistake_is_one_line_whatever_was_given():
    """Long values are cut, and what would break a line or steer a terminal is written out."""
    with pytest.raises(UserError) as error:
        checked(PretrainConfig, BASE | {"sp\ned\x1b[2J": 1, "device": "x" * 10**6, "seed": [0] * 10**6})
    assert [problem[:30] for problem in error.value.problems] == [
        "seed: input should be a valid ",
        "device: string should match pa",
        "sp\\ned\\x1b[2J is no option",
    ]
    assert max(map(len, error.value.problems)) < 250


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cycle_queue_size": 100, "support_size": 100}, "leaves no negatives"),
        ({"cycle_queue_size": 100, "support_size": 10, "top_k": 11}, "top_k (11)"),
        ({"support_size": 10, "top_k": 11}, "top_k (11) is more than support_size (10)"),
        ({"momentum": 1.0}, "less than 1"),
        ({"learning_rate": float("nan")}, "finite number"),
        ({"device": "gpu"}, "device"),
        ({"method": "cycle-only", "cycle_queue_size": 100, "support_size": 100}, "leaves no negatives"),
        (
            {"method": "cycle", "own_key_in_support": True},
            "own_key_in_support is for cycle-only only, not for objective cycle",
        ),
        ({"method": "seco", "self_batch": True}, "self_batch is for vince only"),
        ({"positives": "video"}, "positives is for simclr and simsiam and byol only"),
        ({"momentum_rise": True, "momentum_ramp": 10}, "momentum_rise excludes momentum_ramp"),
        ({"steps": True}, "steps: input should be a number, not True"),
        ({"learning_rate": False}, "learning_rate: input should be a number, not False"),
        ({"steps": 10**18}, "steps: input should be less than or equal to 1000000000"),
        ({"workers": 10**6}, "workers: input should be less than or equal to 1024"),
        ({"image_size": 10**6}, "image_size: input should be less than or equal to 8192"),
        ({"epochs": float("inf")}, "epochs: input should be a finite number"),
        ({"backbone": "resnet18-w10000"}, "backbone: name resnet10"),
        ({"init": ""}, "init: input should be a name, not ''"),
        ({"data": "a\0b"}, "data: input should be a name that a file can have"),
        ({"data": "\udcff"}, "data: input should be a name in UTF-8"),
        ({"out": "x" * 300}, "out: input should be a name that a file can have, not 'xxx"),
        ({"seed": 10**5000}, "seed: input should be less than 4294967296, not a number without end"),
    ],
)
def test_what_cannot_be_is_refused(values, words):
    """Combinations and ranges that no training can have are refused with the reason."""
    with pytest.raises(UserError) as error:
        checked(PretrainConfig, BASE | values)
    assert words in str(error.value)


def test_prepare_takes_one_policy():
    """Two sampling policies at once are refused by their flags' names."""
    with pytest.raises(UserError, match="--fps and --keyframes exclude each other"):
        checked(PrepareConfig, {"videos": "v", "out": "o", "fps": 2, "keyframes": True})


def test_resume_refuses_changes_and_shows_them(tmp_path):
    """A resumed run takes the settings of its config.toml; one that differs is named with both values."""
    (tmp_path / "config.toml").write_text(sealed('data = "d"\nout = "elsewhere"\nbatch_size = 8\nseed = 3\n'))
    config = checked(PretrainConfig, {"resume": str(tmp_path), "workers": 5})
    assert (config.out, config.batch_size, config.seed, config.workers) == (tmp_path, 8, 3, 5)
    assert checked(PretrainConfig, {"resume": str(tmp_path), "batch_size": "8", "data": "moved"}).data == Path("moved")
    with pytest.raises(UserError, match="batch_size: 8 in the run, 9 asked"):
        checked(PretrainConfig, {"resume": str(tmp_path), "batch_size": 9})
    with pytest.raises(UserError, match="does not exist") as error:
        checked(PretrainConfig, {"resume": str(tmp_path / "none"), "workers": -1})
    assert [problem.split(":")[0] for problem in error.value.problems] == ["resume", "workers"]
    with pytest.raises(UserError) as error:  # and nothing of the folder, which stands in the run
        checked(PretrainConfig, {"resume": str(tmp_path), "workers": -1})
    assert [problem.split(":")[0] for problem in error.value.problems] == ["workers"]


def test_constraints_pin_what_the_project_was_measured_with():
    """pyproject allows PyTorch from 2.10 on, constraints.txt takes the version that was tried."""
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert "torch>=2.10" in project["dependencies"]
    assert (root / "constraints.txt").read_text().split() == ["torch==2.13.0"]
    assert {"timm", "onnx", "faiss", "tensorboard", "wandb", "dev"} <= set(project["optional-dependencies"])


def test_simsiam_is_slower_on_narrow_networks():
    """SimSiam at the rate of the others does not learn on a narrow network, and takes theirs on wide ones."""
    rates = {
        (objective, backbone): resolve(
            PretrainConfig(**BASE, method=objective, backbone=backbone), DataSize(1000, 64), Machine(cpu=True)
        ).learning_rate
        for objective in ("simsiam", "byol")
        for backbone in ("resnet18-small-w16", "resnet18")
    }
    assert rates["simsiam", "resnet18-small-w16"] == rates["byol", "resnet18-small-w16"] / 4
    assert rates["simsiam", "resnet18"] == rates["byol", "resnet18"]
