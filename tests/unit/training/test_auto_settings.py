"""The preset `auto` decides what the user leaves open, and a step gets settings that fit together."""

import tomllib
from pathlib import Path

import pytest

from cyclecontrast.cli import read
from cyclecontrast.config import RESOLVED_BY_AUTO, PretrainConfig
from cyclecontrast.errors import UserError, checked
from cyclecontrast.training import run_folder
from cyclecontrast.training.auto_settings import DataSize, Machine, auto_settings, resolve, with_method
from cyclecontrast.training.setup import split_videos, unused_options

BASE = {"data": Path("d"), "out": Path("o")}


@pytest.mark.parametrize("method", ["vince", "seco", "simclr", "simsiam", "byol", "cycle-only", "diet", "nnclr"])
@pytest.mark.parametrize("num_videos", [2, 300, 100_000])
def test_auto_suits_any_method(method, num_videos):
    """`auto` gives every method a valid config, decides nothing else, and counts the frames of VINCE in its batch.

    On a CPU, SimCLR takes a quarter of the videos, and four times the steps.
    """
    config, usual = (
        resolve(PretrainConfig(**BASE, method=name), DataSize(num_videos, 240), Machine(cpu=True))
        for name in (method, "cycle")
    )
    paper = PretrainConfig(**BASE, preset="paper")
    changed = {name for name in PretrainConfig.model_fields if getattr(config, name) != getattr(paper, name)}
    assert changed <= RESOLVED_BY_AUTO | {"preset", "method"}
    assert config.learning_rate == pytest.approx(
        usual.learning_rate * config.batch_size / usual.batch_size * {"vince": 4, "simclr": 2}.get(method, 1)
    )
    assert config.projector_dim == (512 if method == "simsiam" else 64)
    assert config.batch_size == usual.batch_size // (4 if method in ("vince", "simclr") and num_videos > 2 else 1)
    assert config.epochs == pytest.approx(usual.epochs / (4 if method == "vince" and num_videos > 2 else 1), abs=4)


@pytest.mark.parametrize(
    ("chosen", "machine", "method"),
    [
        ({}, Machine(cpu=True), "simclr"),
        ({"steps": 10, "backbone": "resnet34", "batch_size": 8, "temperature": 0.1}, Machine(cpu=True), "simclr"),
        ({}, Machine(cpu=False), "cycle"),
        ({}, Machine(cpu=True, processes=2), "cycle"),
        ({"method": "cycle"}, Machine(cpu=True), "cycle"),
        ({"method": "vince"}, Machine(cpu=True), "vince"),
        ({"cycle_weight": 0.5}, Machine(cpu=True), "cycle"),
        ({"momentum": 0.9}, Machine(cpu=True), "cycle"),
        ({"accumulate": 2}, Machine(cpu=True), "cycle"),
        ({"init": "timm:resnet18"}, Machine(cpu=True), "intra-video"),
        ({"views": 3}, Machine(cpu=True), "simclr"),
        ({"views": 64}, Machine(cpu=True), "simclr"),
        ({"positives": "frame"}, Machine(cpu=True), "simclr"),
        ({"preset": "paper"}, Machine(cpu=True), "cycle"),
        ({"preset": "release"}, Machine(cpu=True), "cycle"),
    ],
)
def test_auto_takes_simclr_on_a_cpu(chosen, machine, method):
    """On one CPU, `auto` trains SimCLR on four frames, unless the user names what only other methods have."""
    config = with_method(checked(PretrainConfig, BASE | chosen), machine)
    assert config.method == method
    if not {"views", "positives"} & chosen.keys():
        assert (config.positives, config.views) == (("video", 4) if method == "simclr" else ("frame", 2))
    resolved = resolve(config, DataSize(300, 240), machine)
    assert {name: getattr(resolved, name) for name in chosen} == chosen
    if method == "simclr" and "batch_size" not in chosen:
        assert resolved.batch_size == max(2, 64 // config.views)
        assert resolved.learning_rate == pytest.approx(resolve(config, DataSize(40, 240), machine).learning_rate)


def test_a_printed_config_trains_the_same():
    """The output of --print-config leaves the method to `auto`, unless an option of the user decides it."""
    for words, method in (([], "simclr"), (["--cycle-weight", "0.1"], "cycle"), (["--method", "cycle"], "cycle")):
        printed = tomllib.loads(str(read(["pretrain", "d", "--out", "o", *words, "--print-config"])()))
        assert with_method(checked(PretrainConfig, printed), Machine(cpu=True)).method == method


def test_requested_settings_are_known():
    """Settings of the user differ from those of a preset, and from a config.toml, which sets all."""
    chosen = {"momentum": 0.5, "method": "simsiam"}
    for preset in ("auto", "paper", "release"):
        config = checked(PretrainConfig, BASE | chosen | {"preset": preset})
        assert config.requested() - {"data", "out", "preset"} == chosen.keys()
        again = checked(PretrainConfig, resolve(config, DataSize(50, 64), Machine(cpu=True)).model_dump())
        assert "momentum_rise" not in again.requested()
        assert preset != "auto" or not again.requested()


@pytest.mark.parametrize(
    ("side", "cpu", "patch", "expected"),
    [
        *[(240, True, 1, 112), (90, True, 1, 88), (20, True, 1, 32), (240, True, 14, 112), (90, True, 14, 84)],
        *[(240, False, 16, 224), (90, True, 16, 80), (20, True, 14, 42), (300, False, 32, 224)],
    ],
)
def test_images_are_made_of_whole_patches(side, cpu, patch, expected):
    """`auto` chooses a multiple of 8, or of the patches of the backbone, that is not larger than frames or limit."""
    config = resolve(PretrainConfig(**BASE), DataSize(50, side), Machine(cpu), patch=patch)
    assert config.image_size == expected


def test_settings_of_the_user_stay():
    """What the user sets survives every preset."""
    for preset in ("auto", "paper", "release"):
        chosen = {"preset": preset, "queue_size": 999, "momentum": 0.5, "backbone": "resnet34"}
        config = resolve(checked(PretrainConfig, BASE | chosen), DataSize(50, 64), Machine(cpu=True))
        assert {name: getattr(config, name) for name in chosen} == chosen


@pytest.mark.parametrize("num_videos", [1, 7, 500, 10_000, 2_700_000])
@pytest.mark.parametrize("cpu", [True, False])
def test_auto_suits_any_size(num_videos, cpu):
    """For any number of videos and any hardware, `auto` gives a valid config and decides nothing else."""
    config = resolve(PretrainConfig(**BASE), DataSize(num_videos, 240), Machine(cpu, processes=3))
    assert config.batch_size % 3 == 0
    assert config.support_size < config.cycle_queue_size
    trained = len(split_videos(num_videos, config.holdout)[0])
    assert 4000 <= config.epochs * trained / config.batch_size <= (20_000 if cpu else 5e6)
    paper = PretrainConfig(**BASE, preset="paper")
    changed = {name for name in PretrainConfig.model_fields if getattr(config, name) != getattr(paper, name)}
    assert changed <= RESOLVED_BY_AUTO | {"preset"}
    assert set(auto_settings({}, DataSize(num_videos, 240), Machine(cpu))) == RESOLVED_BY_AUTO


@pytest.mark.parametrize("chosen", [{}, {"holdout": 0.5}, {"holdout": 0.0}])
@pytest.mark.parametrize("num_videos", [2, 3, 50, 128, 1000, 1100])
def test_auto_is_sized_on_the_videos_trained_on(num_videos, chosen):
    """`auto` counts the videos that are not held out, and no batch holds a video twice."""
    size, machine = DataSize(num_videos, 64), Machine(cpu=True)
    config = resolve(PretrainConfig(**BASE, **chosen), size, machine)
    trained = len(split_videos(num_videos, config.holdout)[0])
    if trained == 0:
        return
    alone = resolve(PretrainConfig(**BASE, holdout=0.0), size._replace(num_videos=trained), machine)
    assert config.model_dump(exclude={"holdout"}) == alone.model_dump(exclude={"holdout"})
    assert config.batch_size <= max(8, trained)


@pytest.mark.parametrize(
    ("chosen", "processes", "words"),
    [
        ({"batch_size": 9}, 2, r"batch_size: 9 must be a multiple of 2 \(2 processes\), at least 4"),
        ({"batch_size": 8, "bn_groups": 5}, 1, "bn_groups: 5 groups of a batch of 8 .* set --bn-groups 4 or less"),
        ({"batch_size": 8, "queue_size": 7}, 1, "queue_size: 7 must be at least the 8 keys enqueued per step"),
        ({"batch_size": 8, "cycle_queue_size": 7, "support_size": 2}, 1, "^cycle_queue_size: 7 must be at least the 8"),
        ({"batch_size": 8, "queue_size": 31, "method": "vince"}, 1, "queue_size: 31 must be at least the 32 keys"),
        ({"batch_size": 8, "queue_size": 8, "method": "simclr", "bn_groups": 8}, 1, None),
        ({"batch_size": 8, "queue_size": 8, "cycle_queue_size": 8, "support_size": 7, "bn_groups": 4}, 1, None),
        ({"preset": "paper", "batch_size": 8}, 1, None),
        (
            {"batch_size": 8, "accumulate": 3},
            1,
            r"batch_size: 8 must be a multiple of 3 \(3 micro-batches\), at least 6",
        ),
        ({"batch_size": 8, "accumulate": 8}, 1, r"multiple of 8 \(8 micro-batches\), at least 16"),
        ({"batch_size": 8, "accumulate": 4}, 2, r"multiple of 8 \(4 micro-batches x 2 processes\), at least 16"),
        ({"batch_size": 8, "accumulate": 2, "method": "simclr"}, 1, "accumulate: method simclr contrasts all queries"),
        (
            {"batch_size": 8, "accumulate": 2, "method": "vince", "self_batch": True, "queue_size": 32},
            1,
            "accumulate: --self-batch contrasts all queries",
        ),
    ],
)
def test_settings_that_do_not_fit_a_step_are_refused(chosen, processes, words):
    """Queues hold all keys of a step, groups two images or more, micro-batches equally many; presets are adapted."""
    config, size, machine = checked(PretrainConfig, BASE | chosen), DataSize(100, 64), Machine(True, processes)
    if words is None:
        assert resolve(config, size, machine).batch_size == 8
        return
    with pytest.raises(UserError, match=words):
        resolve(config, size, machine)


@pytest.mark.parametrize(("num_videos", "expected"), [(2, 0.0), (49, 0.0), (50, 0.1), (100_000, 0.1)])
def test_auto_holds_out_of_enough(num_videos, expected):
    """`auto` holds out a tenth of 50 videos or more; the presets paper and release train on all."""
    size, machine = DataSize(num_videos, 64), Machine(cpu=True)
    assert resolve(PretrainConfig(**BASE), size, machine).holdout == expected
    assert resolve(PretrainConfig(**BASE, preset="paper"), size, machine).holdout == 0
    assert resolve(PretrainConfig(**BASE, holdout=0.0), size, machine).holdout == 0


def test_batchnorm_is_frozen_where_weights_are_given(tmp_path):
    """`auto` freezes BatchNorm with `--init`, not without, and not for a config.toml from before the option."""
    size, machine = DataSize(1000, 64), Machine(cpu=True)
    assert not resolve(PretrainConfig(**BASE), size, machine).freeze_batchnorm
    continued = resolve(PretrainConfig(**BASE, init="timm:any"), size, machine)
    assert (continued.freeze_batchnorm, continued.projector_first) == (True, 0.1)
    assert not resolve(PretrainConfig(**BASE, init="timm:any", preset="paper"), size, machine).freeze_batchnorm
    run_folder.write_config(tmp_path, continued)
    older = tomllib.loads((tmp_path / "config.toml").read_text())
    del older["freeze_batchnorm"], older["projector_first"]
    again = resolve(checked(PretrainConfig, older | {"out": "again"}), size, machine)
    assert (again.freeze_batchnorm, again.projector_first, again.holdout) == (False, 0.0, 0.1)


def test_an_older_config_holds_nothing_out(tmp_path):
    """A config.toml from before videos were held out trains on all videos again."""
    size, machine = DataSize(1000, 64), Machine(cpu=True)
    run_folder.write_config(tmp_path, resolve(PretrainConfig(**BASE), size, machine))
    older = tomllib.loads((tmp_path / "config.toml").read_text())
    for name in ("holdout", "health_every", "select"):
        older.pop(name, None)
    assert resolve(checked(PretrainConfig, older | {"out": "again"}), size, machine).holdout == 0.0


@pytest.mark.parametrize("batch_size", [2, 3, 300, 5000])
@pytest.mark.parametrize("method", ["cycle", "vince", "seco"])
def test_auto_suits_any_batch(batch_size, method):
    """Around a requested batch, `auto` decides queues that hold the keys of a step, and groups of two or more."""
    chosen = {"batch_size": batch_size, "method": method}
    config = resolve(PretrainConfig(**BASE, **chosen), DataSize(300, 64), Machine(cpu=True))
    assert config.queue_size >= batch_size * {"cycle": 1, "vince": 4, "seco": 3}[method]
    assert config.cycle_queue_size >= batch_size
    assert config.bn_groups == 1 or config.bn_groups <= batch_size // 2


def test_steps_go_before_epochs():
    """With both set, `auto` decides by the steps, and says that the epochs have no effect."""
    size, machine = DataSize(100, 64), Machine(cpu=True)
    both = checked(PretrainConfig, BASE | {"steps": 10, "epochs": 10**6})
    assert resolve(both, size, machine).momentum == 0.99
    assert unused_options(both) == ["epochs"]
    assert resolve(checked(PretrainConfig, BASE | {"steps": 10**9, "batch_size": 200}), size, machine).epochs == 10**9


@pytest.mark.parametrize(
    ("chosen", "unread"),
    [
        ({"method": "intra-image", "mask_own_video": False, "distinct_frames": False}, True),
        ({"method": "intra-video", "mask_own_video": False, "distinct_frames": False}, False),
        ({"method": "simclr", "batch_keys": False}, True),
        ({"method": "simclr", "positives": "video", "distinct_frames": False}, False),
        ({"method": "vince", "self_temperature": 0.1}, True),
        ({"method": "vince", "self_temperature": 0.1, "self_batch": True}, False),
    ],
)
def test_options_without_effect_are_known(chosen, unread):
    """Options that have no effect on the training of a method are named."""
    others = chosen.keys() - {"method", "positives"}
    assert set(unused_options(checked(PretrainConfig, BASE | chosen))) == (others if unread else set())


def test_simsiam_is_slower_on_narrow_networks():
    """SimSiam does not learn on a narrow network at the rate of the others; on wide ones it takes theirs."""
    rates = {
        (method, backbone): resolve(
            PretrainConfig(**BASE, method=method, backbone=backbone), DataSize(1000, 64), Machine(cpu=True)
        ).learning_rate
        for method in ("simsiam", "byol")
        for backbone in ("resnet18-small-w16", "resnet18")
    }
    assert rates["simsiam", "resnet18-small-w16"] == rates["byol", "resnet18-small-w16"] / 4
    assert rates["simsiam", "resnet18"] == rates["byol", "resnet18"]
