"""Two processes that talk through gloo compute what one process would."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from cyclecontrast.cli import main
from cyclecontrast.models.backbone import make_backbone
from cyclecontrast.models.encoders import Encoder
from cyclecontrast.distributed import World, average_gradients, encode_keys, gather, largest_of_each
from tests import make_videos as make

NUM_GROUPS, SEED = 4, 5


def make_encoder():
    """Build a small encoder with BatchNorm, the same in every process."""
    torch.manual_seed(0)
    return Encoder(make_backbone("resnet10-small-w8"), "linear", 8).train()


def draw_images():
    """Draw the batch of all processes together."""
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return images.to(memory_format=torch.channels_last)


def work(rank, folder):
    """Do one process's part and save what it got."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world, share = World(rank, 2), draw_images()[rank * 4 : rank * 4 + 4]
    keys = encode_keys(make_encoder(), share, NUM_GROUPS, SEED, world)
    layer = torch.nn.Linear(3, 1, bias=False)
    layer.weight.data.fill_(1.0)
    (layer(torch.full((1, 3), float(rank + 1)))).sum().backward()
    average_gradients(layer, world)
    conv = torch.nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    conv(draw_images()[rank : rank + 1]).square().sum().backward()
    own = [parameter.grad.clone() for parameter in conv.parameters()]
    average_gradients(conv, world)
    means = [parameter.grad for parameter in conv.parameters()]
    agreed = largest_of_each((rank, 5 - rank, 3), World(rank, 2, hosts=dist.group.WORLD))
    everything = gather(torch.tensor([rank * 10, rank * 10 + 1]), world)
    found = {"keys": keys.intra, "gradient": layer.weight.grad, "gathered": everything, "own": own, "means": means}
    torch.save(found | {"agreed": agreed}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_do_what_one_does(tmp_path):
    """Keys are shuffled over all processes and come home; gradients are averaged; gathering keeps the order."""
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = encode_keys(make_encoder(), draw_images(), NUM_GROUPS, SEED, World(0, 1))
    together = torch.cat([part["keys"] for part in parts])
    assert torch.allclose(together, alone.intra, atol=1e-6)
    for part in parts:
        assert part["gradient"].flatten().tolist() == [1.5, 1.5, 1.5]
        assert part["gathered"].tolist() == [0, 1, 10, 11]
        assert part["agreed"] == [1, 5, 3]
        for mean, *owns in zip(part["means"], *(other["own"] for other in parts), strict=True):
            assert torch.equal(mean, sum(owns) / 2)


def test_shuffling_mixes_the_processes():
    """The groups of BatchNorm are drawn from the whole batch anew in every step, not from a process's own share."""
    images, encoder = draw_images(), make_encoder()
    first, second = (encode_keys(encoder, images, NUM_GROUPS, seed, World(0, 1)).intra for seed in (1, 2))
    assert not torch.allclose(first, second, atol=1e-4)


def test_torchrun_trains_one_run(tmp_path):
    """Under torchrun three processes train one run on a folder of videos, prepared once, every step once."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        make.write_numbered(videos / f"{number}.mp4", num_frames=6)
    options = (
        "--backbone resnet10-small-w8 --image-size 16 --batch-size 9 --queue-size 16 --cycle-queue-size 16 "
        "--support-size 4 --bn-groups 2 --workers 0 --steps 3 --log-every 1 --device cpu --cycle-start 0"
    ).split()
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=3",
        "-m",
        "cyclecontrast",
    ]
    done = subprocess.run(
        [*launch, "pretrain", str(videos), "--out", str(tmp_path / "run"), *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("backbone: ") == 1
    rows = [json.loads(line) for line in Path(tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 3


@pytest.mark.parametrize(
    "named",
    [{"RANK": "0"}, {"RANK": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, {"RANK": "1", "MASTER_PORT": "1"}],
)
def test_half_an_environment_is_told(tmp_path, monkeypatch, capsys, named):
    """RANK and WORLD_SIZE that another program left there, or wrong ones, are a line, not a wait or a traceback."""
    for name, value in {"WORLD_SIZE": "1", "MASTER_ADDR": "localhost", **named}.items():
        monkeypatch.setenv(name, value)
    make.write_stripes(tmp_path / "tree")
    assert main(["pretrain", *asked(tmp_path / "tree", tmp_path / "run", steps=1)]) == 2
    assert "the environment names several processes and cannot be (RANK=" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


OPTIONS = {
    "backbone": "resnet10-small-w8",
    "image-size": 16,
    "batch-size": 8,
    "queue-size": 16,
    "cycle-queue-size": 16,
    "support-size": 4,
    "bn-groups": 2,
    "workers": 0,
    "log-every": 1,
    "checkpoint-every": 4,
    "device": "cpu",
    "cycle-start": 0.5,
    "holdout": 0,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve videos of four frames: stripes of one width and direction each, which move."""
    return make.write_stripes(tmp_path_factory.mktemp("tree"))


def start_two(arguments, second=None):
    """Start two processes of one training without a launcher, which would end the other; `second` is for the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "cyclecontrast", "pretrain", *(second or arguments if rank else arguments)],
            env=os.environ | place | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def asked(tree, out, **changes):
    """Return the command's arguments."""
    return [str(tree), f"--out={out}", *(f"--{name}={value}" for name, value in (OPTIONS | changes).items())]


def ends_of(processes):
    """Wait for both and return their exit codes and what they said."""
    said = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], said


def wait_for_step(run, step):
    """Wait until the metrics hold so many steps."""
    path, until = run / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < until and not (path.exists() and len(path.read_text().splitlines()) >= step):
        time.sleep(0.02)


def steps_of(run):
    """Read the metrics without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "data_wait")} for row in rows]


def test_the_losses_of_two_processes_are_those_of_one(tree, tmp_path):
    """The same steps at the same batch, to rounding, where no BatchNorm makes the queries of a process depend on it."""
    changes = {"backbone": "timm:test_convnext", "image-size": 32, "projector": "linear", "precision": "fp32"}
    changes |= {"steps": 6, "cycle-start": 0, "warmup": 0}
    assert main(["pretrain", *asked(tree, tmp_path / "one", **changes)]) == 0
    codes, said = ends_of(start_two(asked(tree, tmp_path / "two", **changes)))
    assert codes == [0, 0], said
    one, two = steps_of(tmp_path / "one"), steps_of(tmp_path / "two")
    assert one[0]["loss"] != one[5]["loss"]
    for row, other in zip(one, two, strict=True):
        assert other == pytest.approx(row, rel=1e-4)


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    """A run of two processes that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    codes, said = ends_of(start_two(asked(tree, out, steps=12)))
    assert codes == [0, 0], said
    return out


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_killed_ends_the_other_which_says_so(tree, whole, tmp_path, victim):
    """The one that is left ends with a line and exit code 2, and resumed with both the run is the same to the bit."""
    out = tmp_path / "run"
    processes = start_two(asked(tree, out, steps=12))
    wait_for_step(out, 6)
    processes[victim].kill()
    codes, said = ends_of(processes)
    assert codes[victim] == -signal.SIGKILL, said
    assert codes[1 - victim] == 2, said
    assert "another process of this training has ended" in said[1 - victim]
    assert "Traceback" not in said[1 - victim]
    codes, said = ends_of(start_two([f"--resume={out}"]))
    assert codes == [0, 0], said
    assert steps_of(out) == steps_of(whole)
    states = [load_file(run / "checkpoints" / "step-00000012" / "state.safetensors") for run in (out, whole)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_ends_both_at_the_same_step(tree, whole, tmp_path, signalled):
    """SIGTERM that reaches one process only lets both end behind the same step, with a checkpoint of it."""
    out = tmp_path / "run"
    processes = start_two(asked(tree, out, steps=12))
    wait_for_step(out, 2)
    processes[signalled].terminate()
    codes, said = ends_of(processes)
    assert codes == [143, 143], said
    assert all("goes on from it" in text for text in said)
    codes, said = ends_of(start_two([f"--resume={out}"]))
    assert codes == [0, 0], said
    assert steps_of(out) == steps_of(whole)


def test_processes_that_differ_are_refused_at_the_start(tree, tmp_path):
    """Another setting and other data in one of two processes are named, both end, and nothing is written."""
    shutil.copytree(tree, tmp_path / "other")
    shutil.rmtree(next((tmp_path / "other").rglob("video_0")))
    out = tmp_path / "run"
    for second, told in (
        (asked(tree, out, steps=12, temperature=0.5), "temperature: 0.2 in process 0, 0.5 in process 1"),
        (asked(tmp_path / "other", out, steps=12), "data: "),
    ):
        codes, said = ends_of(start_two(asked(tree, out, steps=12), second))
        assert codes == [2, 2], said
        assert all(told in text for text in said)
        assert not (out / "config.toml").exists()
