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
from cyclecontrast.config import PretrainConfig
from cyclecontrast.distributed import ALONE, World, all_gather_objects, gather, maxima, means
from cyclecontrast.methods import IntraVideo, StepInfo
from cyclecontrast.models.backbone import make_backbone
from tests import make_videos as make


def draw_views():
    """Draw a batch of views of all processes together."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (8, 16, 16, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)


def make_method(world, seed=0):
    """Build a small method, the same in every process."""
    torch.manual_seed(0)
    options = PretrainConfig(data="d", out="o", queue_size=16, bn_groups=4, precision="fp32", seed=seed)
    return IntraVideo(make_backbone("resnet10-small-w8"), options, world).train()


def work(rank, folder):
    """Do one process's part and save what it got."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank, 2, hosts=dist.group.WORLD, patient=dist.group.WORLD)
    keys = make_method(world).encode_keys(draw_views()[rank * 4 : rank * 4 + 4], StepInfo(3, 10))
    found = {
        "keys": keys.intra,
        "gathered": gather(torch.tensor([rank * 10, rank * 10 + 1]), world),
        "maxima": maxima([rank, 5 - rank, 3], world),
        "means": means([rank, 3.0], world),
        "objects": all_gather_objects({"rank": rank}, world),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_do_what_one_does(tmp_path):
    """Keys are shuffled over all processes and return to their views; collectives keep the order of the ranks."""
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = make_method(ALONE).encode_keys(draw_views(), StepInfo(3, 10))
    assert torch.allclose(torch.cat([part["keys"] for part in parts]), alone.intra, atol=1e-5)
    for part in parts:
        assert part["gathered"].tolist() == [0, 1, 10, 11]
        assert part["maxima"] == [1, 5, 3]
        assert part["means"] == [0.5, 3.0]
        assert part["objects"] == [{"rank": 0}, {"rank": 1}]


def test_shuffling_mixes_the_processes():
    """The groups of BatchNorm are drawn from the whole batch anew in every step."""
    method = make_method(ALONE)
    first, second = (method.encode_keys(draw_views(), StepInfo(step, 10)).intra for step in (1, 2))
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
    assert "the environment is not one of torchrun (RANK=" in capsys.readouterr().err
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


def test_two_processes_in_micro_batches_do_what_one_does(tree, tmp_path):
    """Without batch keys and BatchNorm, two processes of two micro-batches each have one process's losses, to rounding.

    Intra-video, because the cycle loss draws its support by the order of the queue, which the processes change.
    """
    changes = {"backbone": "timm:test_convnext", "image-size": 32, "projector": "linear", "precision": "fp32"}
    changes |= {"steps": 4, "method": "intra-video", "warmup": 0}
    assert main(["pretrain", *asked(tree, tmp_path / "one", **changes), "--no-batch-keys"]) == 0
    words = [*asked(tree, tmp_path / "two", **changes, accumulate=2), "--no-batch-keys"]
    codes, said = ends_of(start_two(words))
    assert codes == [0, 0], said
    for row, other in zip(steps_of(tmp_path / "one"), steps_of(tmp_path / "two"), strict=True):
        assert (other["loss"], other["gradient_norm"]) == pytest.approx((row["loss"], row["gradient_norm"]), rel=1e-4)


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    """A run of two processes that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    codes, said = ends_of(start_two(asked(tree, out, steps=12)))
    assert codes == [0, 0], said
    return out


def test_one_of_two_killed_ends_the_other(tree, whole, tmp_path):
    """The other process ends with a line and exit code 2, and the run resumed by both is the same to the bit."""
    out, victim = tmp_path / "run", 0
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


def test_a_signal_to_one_ends_both_at_the_same_step(tree, whole, tmp_path):
    """SIGTERM that reaches one process only lets both end behind the same step, with a checkpoint of it."""
    out = tmp_path / "run"
    processes = start_two(asked(tree, out, steps=12))
    wait_for_step(out, 2)
    processes[1].terminate()
    codes, said = ends_of(processes)
    assert codes == [143, 143], said
    assert all("continues from it" in text for text in said)
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
