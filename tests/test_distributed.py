"""Two processes that talk through gloo compute what one process would."""

import json
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cyclecontrast.model.backbone import make_backbone
from cyclecontrast.model.encoders import Encoder
from cyclecontrast.train.distributed import World, average_gradients, encode_keys, gather
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
    everything = gather(torch.tensor([rank * 10, rank * 10 + 1]), world)
    torch.save({"keys": keys.intra, "gradient": layer.weight.grad, "gathered": everything}, f"{folder}/{rank}.pt")
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
    rows = [json.loads(line) for line in Path(tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 3
