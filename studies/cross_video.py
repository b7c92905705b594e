"""Do positives from other videos add anything? Variants of the cross-video term, judged against longer steps.

    python studies/cross_video.py ../shared/data/video_frames/gtsrb WEIGHTS                 # from ImageNet weights
    python studies/cross_video.py DATA WEIGHTS --rows "scratch, intra-video" "scratch, mutual" --seeds 0

All arguments are those of studies/adaptation.py, which measures and keeps the results. The neighbors of a video are
searched among all training videos at every step: the mean of its last features is compared with those of all others.
Each run writes how many videos have a mutual neighbor, and how many of these are of the same class, at ten moments.
"""

from typing import Any, ClassVar

import adaptation
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize, softmax

from cyclecontrast.config import PretrainConfig
from cyclecontrast.data.dataset import Batch
from cyclecontrast.data.store import FrameStore
from cyclecontrast.distributed import ALONE, World
from cyclecontrast.loss import info_nce
from cyclecontrast.loss.neighbors import mutual_neighbors
from cyclecontrast.methods import Candidates, IntraVideo, Losses, SimCLR, StepInfo
from cyclecontrast.methods.simclr import nt_xent
from cyclecontrast.methods.vince import nce_of_pairs
from cyclecontrast.models.backbone import Backbone
from cyclecontrast.models.encoder import Features


def classes_of(videos: Tensor, options: PretrainConfig) -> Tensor:
    """Return the classes of the videos, from their names."""
    store = FrameStore.open(str(options.data))
    names = [store.video_id(int(video)).split("/")[0] for video in videos]
    classes = sorted(set(names))
    return torch.tensor([classes.index(name) for name in names])


class VideoNeighbors(IntraVideo):
    """Keeps the mean feature and the mean key of each video; subclasses add a term to the intra-video loss."""

    memory = 0.7
    """Weight of the old mean when a video is seen again."""
    share = 1.0
    """The fraction of mutual pairs that is used: those with the largest margins."""
    start = 0.2
    """The fraction of the training before which there is no term."""
    weight = 1.0
    history: ClassVar[list[dict[str, float]]] = []
    numbers: Tensor
    means: Tensor
    features: Tensor

    def __init__(self, backbone: Backbone, options: PretrainConfig, world: World = ALONE) -> None:
        super().__init__(backbone, options, world)
        self.last = torch.empty(0)
        self.encoder.backbone.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, images: tuple[Tensor], features: Tensor) -> None:
        """Keep the features of the last queries."""
        self.last = features.detach()

    def prepare(self, videos: Tensor) -> None:
        """Make room for the means, and read the classes of the videos from their names, for the precision only."""
        self.register_buffer("numbers", videos, persistent=False)
        self.register_buffer("means", torch.zeros(len(videos), self.options.projector_dim))
        self.register_buffer("features", torch.zeros(len(videos), self.encoder.backbone.dim))
        self.classes = classes_of(videos, self.options)
        type(self).history = []

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return the intra-video loss and the term of the variant."""
        key = self.encode_keys(batch.views[1], info)
        new, new_video = self.stage_keys([key], batch.video)
        query = self.encode(batch.views[0])
        rows = torch.searchsorted(self.numbers, batch.video)
        self.remember(rows, key)
        keys = self.candidates(self.intra_queue, new.intra, new_video)
        ignore = keys.ignore(batch.video, own_video=True)
        if info.step % max(1, info.num_steps // 10) == 0:
            self.measure(info)
        if info.progress < self.start:
            loss = info_nce(query.intra, key.intra, keys.keys, self.options.temperature, ignore)
            return Losses(loss, loss)
        return self.losses(query, key, keys, ignore, rows)

    def remember(self, rows: Tensor, key: Features) -> None:
        """Move the means of the batch's videos toward their new features."""
        for means, new in ((self.means, key.intra), (self.features, normalize(self.last.float(), dim=1))):
            old = means[rows]
            is_new = (old == 0).all(dim=1, keepdim=True)
            means[rows] = torch.where(is_new, new, self.memory * old + (1 - self.memory) * new)

    def neighbors(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """Return each video's mutual nearest neighbor, -1 for none, and its margin over the second."""
        found = mutual_neighbors(means - means.mean(dim=0), self.numbers)
        return found.nearest.where(found.mutual, -1), found.margin

    def chosen(self) -> Tensor:
        """Return the neighbor that each video learns from, -1 for none."""
        partner, margin = self.neighbors(self.features)
        if self.share < 1 and (partner >= 0).any():
            least = margin[partner >= 0].quantile(1 - self.share)
            partner = partner.where(margin >= least, -1)
        return partner

    def measure(self, info: StepInfo) -> None:
        """Write coverage and precision of the neighbors by features, by keys, and of those that are used."""
        found = {"progress": info.progress}
        partners = {"features": self.neighbors(self.features)[0], "keys": self.neighbors(self.means)[0]}
        for name, partner in (partners | {"used": self.chosen()}).items():
            has = partner >= 0
            right = self.classes[has] == self.classes[partner[has]]
            found |= {f"{name} coverage": has.float().mean().item(), f"{name} right": right.float().mean().item()}
        self.history.append(found)

    def losses(self, query: Features, key: Features, keys: Candidates, ignore: Tensor, rows: Tensor) -> Losses:
        """Return the losses: the nearest video's mean key is a second positive, and its keys are no negatives."""
        temperature, partner = self.options.temperature, self.chosen()[rows]
        has = partner >= 0
        siblings = has[:, None] & (keys.video == self.numbers[partner][:, None])
        ignore = ignore | siblings
        intra = info_nce(query.intra, key.intra, keys.keys, temperature, ignore)
        if not has.any():
            return Losses(intra, intra)
        positive = normalize(self.means[partner[has]], dim=1)
        term = info_nce(query.intra[has], positive, keys.keys, temperature, ignore[has]) * has.float().mean()
        return Losses(intra + self.weight * term, intra, terms={"neighbor": term.detach()})


class SurestHalf(VideoNeighbors):
    """Only the half of the mutual pairs with the largest margins."""

    share = 0.5


class AnyNearest(VideoNeighbors):
    """The nearest video, whether the way back leads home or not."""

    def chosen(self) -> Tensor:
        """Return the nearest video of each."""
        return mutual_neighbors(self.features - self.features.mean(dim=0), self.numbers).nearest


class Oracle(VideoNeighbors):
    """The nearest video of the same class by the labels: what perfect neighbors would give."""

    def similarities(self) -> Tensor:
        """Return the similarities of all videos to all others, -2 to themselves."""
        vectors = normalize(self.features - self.features.mean(dim=0), dim=1)
        return (vectors @ vectors.T).fill_diagonal_(-2)

    def chosen(self) -> Tensor:
        """Return the nearest video of the same class of each, -1 for the only one of its class."""
        similarities = self.similarities()
        best, first = similarities.masked_fill(self.classes[:, None] != self.classes, -2).max(dim=1)
        return first.where(best > -2, -1)


class PartlyRight(Oracle):
    """The nearest video of the same class, but for a fixed part of the videos the nearest one of another class."""

    right = 0.75

    def chosen(self) -> Tensor:
        """Return the neighbor of each."""
        of_same = super().chosen()
        similarities = self.similarities().masked_fill(self.classes[:, None] == self.classes, -2)
        is_right = torch.rand(len(of_same), generator=torch.Generator().manual_seed(1)) < self.right
        return of_same.where(is_right, similarities.argmax(dim=1))


class HalfRight(PartlyRight):
    """As above, half of them."""

    right = 0.5


class RightMutual(VideoNeighbors):
    """The mutual pairs that are of the same class by the labels."""

    def chosen(self) -> Tensor:
        """Return the neighbor of each, -1 for none."""
        partner = super().chosen()
        return partner.where(self.classes[partner] == self.classes, -1)


class NoSiblings(VideoNeighbors):
    """Mutual neighbors are no negatives, and no positives either."""

    weight = 0.0


class Soft(VideoNeighbors):
    """The distribution of a query over all other videos must be the sharper one of its key."""

    sharper = 0.25

    def losses(self, query: Features, key: Features, keys: Candidates, ignore: Tensor, rows: Tensor) -> Losses:
        """Return the losses: intra-video and the cross entropy of both distributions over the videos' mean keys."""
        temperature = self.options.temperature
        intra = info_nce(query.intra, key.intra, keys.keys, temperature, ignore)
        center = self.means.mean(dim=0)
        means = normalize(self.means - center, dim=1)
        own = torch.nn.functional.one_hot(rows, len(means)).bool()
        wanted = normalize(key.intra - center, dim=1) @ means.T / (self.sharper * temperature)
        wanted = softmax(wanted.masked_fill(own, -torch.inf), dim=1)
        given = log_softmax((query.intra @ means.T / temperature).masked_fill(own, -1e4), dim=1)
        term = -(wanted * given).sum(dim=1).mean()
        return Losses(intra + self.weight * term, intra, terms={"neighbor": term.detach()})


class FourFrames(SimCLR):
    """SimCLR on four frames of a video, and a term that contrasts them with the mean vectors of all videos.

    Of each video there is a mean of its earlier vectors; `chosen` says which of them is a further positive.
    """

    memory = 0.5
    """Weight of the old mean when a video is seen again."""
    start = 0.25
    """The fraction of the training before which there is no term."""
    history: ClassVar[list[dict[str, float]]] = []

    def prepare(self, videos: Tensor) -> None:
        """Make room for the means, and read the classes of the videos from their names."""
        self.numbers, self.means = videos, torch.zeros(len(videos), self.options.projector_dim)
        self.classes = classes_of(videos, self.options)
        type(self).history = []

    def forward(self, batch: Batch, info: StepInfo) -> Losses:
        """Return SimCLR's loss plus the term."""
        views = [self.encode(view).intra for view in batch.views]
        loss = nt_xent(views, self.options.temperature)
        term = self.term(views, batch, info) if info.progress >= self.start else torch.zeros(())
        self.remember(views, batch.video)
        return Losses(loss + term, loss, terms={"across": term.detach()})

    def remember(self, views: list[Tensor], video: Tensor) -> None:
        """Move the means of the batch's videos toward their new vectors."""
        rows = torch.searchsorted(self.numbers, video)
        new, old = normalize(torch.stack(views).mean(dim=0).detach(), dim=1), self.means[rows]
        is_new = (old == 0).all(dim=1, keepdim=True)
        self.means[rows] = torch.where(is_new, new, self.memory * old + (1 - self.memory) * new)

    def term(self, views: list[Tensor], batch: Batch, info: StepInfo) -> Tensor:
        """Return the cross entropy of each chosen mean among the means of all other videos."""
        partner, rows = self.chosen(), torch.searchsorted(self.numbers, batch.video)
        if info.step % max(1, info.num_steps // 10) == 0:
            has = partner >= 0
            right = self.classes[has] == self.classes[partner[has]]
            coverage = has.float().mean().item()
            self.history.append({"used coverage": coverage, "used right": right.float().mean().item()})
        query, wanted = torch.cat(views), partner[rows].repeat(len(views))
        has, video = wanted >= 0, torch.arange(len(self.means))
        positive, own = video == wanted[:, None], video == rows.repeat(len(views))[:, None]
        if not has.any():
            return query.sum() * 0
        logits = query @ self.means.clone().T / self.options.temperature
        return nce_of_pairs(logits[has], positive[has], (own | positive)[has]) * has.float().mean()

    def chosen(self) -> Tensor:
        """Return the mutual neighbor of each video, -1 for none."""
        found = mutual_neighbors(self.means - self.means.mean(dim=0), self.numbers)
        return found.nearest.where(found.mutual, -1)


class FourFramesOracle(FourFrames):
    """The nearest video of the same class by the labels."""

    def chosen(self) -> Tensor:
        """Return the neighbor of each, -1 for the only video of its class."""
        vectors = normalize(self.means - self.means.mean(dim=0), dim=1)
        similarities = (vectors @ vectors.T).fill_diagonal_(-2)
        best, first = similarities.masked_fill(self.classes[:, None] != self.classes, -2).max(dim=1)
        return first.where(best > -2, -1)


class FourFramesCycle(FourFrames):
    """The paper's cycle (Eq. 3 to 5) over the last 1,024 vectors, for each of the four frames."""

    size = 1024

    def prepare(self, videos: Tensor) -> None:
        """Make room for the vectors, too."""
        super().prepare(videos)
        self.keys, self.key_video = torch.zeros(0, self.options.projector_dim), torch.zeros(0, dtype=torch.long)

    def term(self, views: list[Tensor], batch: Batch, info: StepInfo) -> Tensor:
        """Return the loss of the cycles: half of the keys are the support, the others negatives."""
        order = torch.randperm(len(self.keys), generator=torch.Generator().manual_seed(info.step))
        support, negatives = order[: len(order) // 2], order[len(order) // 2 :]
        temperature, losses = self.options.temperature, []
        for number, query in enumerate(views):
            positive = views[(number + 1) % len(views)].detach()
            there = self.similarities(query, support, batch.video)
            found = normalize(softmax(there, dim=1) @ self.keys[support], dim=1)
            home = (found * positive).sum(dim=1, keepdim=True) / temperature
            back = torch.cat((home, self.similarities(found, negatives, batch.video)), dim=1)
            losses.append((back.logsumexp(dim=1) - home[:, 0]).mean())
        return torch.stack(losses).mean()

    def similarities(self, query: Tensor, keys: Tensor, video: Tensor) -> Tensor:
        """Return the logits of these keys, minus infinity for those of the query's own video."""
        logits = query @ self.keys[keys].T / self.options.temperature
        return logits.masked_fill(self.key_video[keys] == video[:, None], -torch.inf)

    def remember(self, views: list[Tensor], video: Tensor) -> None:
        """Keep the vectors of the second frames."""
        self.keys = torch.cat((self.keys, views[1].detach()))[-self.size :]
        self.key_video = torch.cat((self.key_video, video))[-self.size :]


VARIANTS: dict[str, dict[str, Any]] = {
    "intra-video": {"method": "intra-video"},
    "intra-video, half the rate": {"method": "intra-video", "rate": 0.5},
    "intra-video, twice the rate": {"method": "intra-video", "rate": 2.0},
    "cycle": {"method": "cycle", "cycle_start": 0.0},
    "mutual": {"method": VideoNeighbors},
    "mutual, surest half": {"method": SurestHalf},
    "nearest": {"method": AnyNearest},
    "no siblings": {"method": NoSiblings},
    "soft": {"method": Soft},
    "nnclr": {"method": "nnclr", "positives": "video", "queue_size": 1024},
    "simclr": {"method": "simclr", "positives": "video"},
    "simclr, four frames": {"method": "simclr", "positives": "video", "views": 4, "batch_size": 32},
    "simclr, four frames, twice the rate": {
        **{"method": "simclr", "positives": "video", "views": 4, "batch_size": 32, "rate": 2.0},
    },
    "oracle": {"method": Oracle},
    "oracle, 3 of 4 right": {"method": PartlyRight},
    "oracle, half right": {"method": HalfRight},
    "mutual, only right ones": {"method": RightMutual},
}
SMALL: dict[str, Any] = {"backbone": "resnet10-small-w16", "image_size": 32}
ROWS = VARIANTS | {f"scratch, {name}": row | SMALL for name, row in VARIANTS.items()}
ROWS["scratch, cycle"].pop("cycle_start")
FOUR: dict[str, Any] = {"positives": "video", "views": 4, "batch_size": 16, "learning_rate": 0.06, "holdout": 0} | SMALL
ROWS |= {
    "scratch, four frames": {"method": "simclr"} | FOUR,
    "scratch, four frames, mutual": {"method": FourFrames} | FOUR,
    "scratch, four frames, cycle": {"method": FourFramesCycle} | FOUR,
    "scratch, four frames, oracle": {"method": FourFramesOracle} | FOUR,
}

if __name__ == "__main__":
    adaptation.main(ROWS, str(__doc__))
