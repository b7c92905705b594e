"""The command `explore`: what is in footage, from the vectors that `embed` wrote, as tables and a page to browse.

At most `max_frames` vectors are in memory; of a larger index, frames of all videos are drawn in turn. Groups are found
among these and assigned to all frames, block by block.
"""

import base64
import csv
import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from cyclecontrast.config import ExploreConfig
from cyclecontrast.data.images import Pixels
from cyclecontrast.errors import UserError, attempt
from cyclecontrast.evaluation.metrics import Floats, Integers, dot_products
from cyclecontrast.files import atomic_folder, check_new_folder
from cyclecontrast.output import html_environment, join_lines, say
from cyclecontrast.progress import with_progress
from cyclecontrast.reporting.embeddings import place
from cyclecontrast.reporting.sprites import SpriteSheet, shortened
from cyclecontrast.searching.index import FrameIndex
from cyclecontrast.searching.labeling_tools import LabeledFrame, check_export, write_for_tools
from cyclecontrast.searching.results import Thumbnails, asset, index_summary, moment, open_thumbnails

ROWS_AT_ONCE = 512
MAX_GROUPS = 30
NUM_STARTS = 3
"""How often k-means starts; the best result counts."""
NUM_TYPICAL = 12
"""Typical frames of a group."""
NUM_NEIGHBORS = 8
NUM_NEAREST = 5
"""An outlier is unlike even this many nearest frames of other videos."""
NUM_OUTLIERS = 50
"""At most; of few frames, a tenth."""
OUTLIERS_PER_VIDEO = 3
ODD_FRACTION = 0.25
"""Fraction of the frames, the oddest, that are not chosen for labeling: greedy k-centre takes such frames first."""
ROUNDING = 1e-6
"""Equal vectors of single precision have a product of 1 only up to this."""

MAX_SHOWN = 1200
"""Frames on the page, all of them with a picture."""
MAX_SAMPLE_SHOWN, MAX_PAIRS_SHOWN, MAX_REPEATING_SHOWN, MAX_FOLDERS = 200, 24, 8, 40
SPRITE_SIDE, SPRITES_PER_SHEET = 112, 928
MAX_PAGE_BYTES = 15_000_000


class Group(NamedTuple):
    """A group by number from 1: how many frames of how many videos it has, and the rows of its typical frames."""

    number: int
    num_frames: int
    num_videos: int
    typical: Integers


@dataclass(frozen=True)
class Findings:
    """What was found among the compared frames, `rows` of the index (num_compared,), with `vectors` of length 1.

    `original` (num_compared,) is the position of the earlier frame that a near-duplicate resembles, or -1, `likeness`
    their similarity. `group` has a group for every frame of the index, from 1. `others` (num_compared,) is the mean
    similarity to the nearest frames of other videos. `sample` and `outliers` are positions among the compared frames;
    all but the oddest quarter of these are at least `covered` similar to one of the sample.
    """

    index: FrameIndex
    rows: Integers
    vectors: Floats
    original: Integers
    likeness: Floats
    group: Integers
    groups: tuple[Group, ...]
    others: Floats
    outliers: Integers
    sample: Integers
    covered: float

    @property
    def videos(self) -> Integers:
        """The video of each compared frame."""
        videos: Integers = self.index.video[self.rows]
        return videos

    @property
    def of_other_videos(self) -> Integers:
        """The near-duplicates of frames of other videos, most similar first."""
        found = np.flatnonzero(self.original >= 0)
        found = found[self.videos[found] != self.videos[self.original[found]]]
        ranked: Integers = found[np.argsort(-self.likeness[found], kind="stable")]
        return ranked


@dataclass(frozen=True)
class Explored:
    """What `explore` wrote to the folder `out`, and what it found."""

    out: Path
    num_frames: int
    num_compared: int
    num_duplicates: int
    num_duplicates_of_other_videos: int
    num_groups: int
    num_sample: int
    covered: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        drawn = f" of {self.num_frames:,}" if self.num_compared < self.num_frames else ""
        lines = (
            f"compared: {self.num_compared:,}{drawn} frames",
            f"near-duplicates: {self.num_duplicates:,} frames, {self.num_duplicates_of_other_videos:,} of them of a "
            f"frame of another video",
            f"groups: {self.num_groups}",
            f"to label: {self.num_sample:,} frames; all but the oddest quarter of the frames are at least "
            f"{self.covered:.2f} similar to one",
            f"page: {self.out / 'index.html'}",
            *self.notes,
        )
        return join_lines(lines)


def explore_index(config: ExploreConfig) -> Explored:
    """Write tables and a page about an index to a new folder; raises UserError with all problems, before writing."""
    out = config.out or config.index.with_suffix(".explore")
    problems: list[str] = []
    attempt(lambda: check_new_folder(out), problems)
    index = attempt(lambda: FrameIndex.open(config.index), problems)
    pictures = attempt(lambda: open_thumbnails(index, config.data), problems) if index is not None else None
    if index is None or pictures is None or problems:
        raise UserError(*problems)
    found = find(index, config)
    sample = [LabeledFrame(int(row), f"group {found.group[row]}") for row in found.rows[found.sample]]
    check_export(config.format, len(sample))
    with atomic_folder(out) as folder:
        _write_tables(folder, found)
        (folder / "index.html").write_text(make_page(found, pictures, config), "utf-8", "replace")
        notes = write_for_tools(folder, out, config.format, sample, pictures, "group")
    return Explored(
        out,
        len(index),
        len(found.rows),
        int((found.original >= 0).sum()),
        len(found.of_other_videos),
        len(found.groups),
        len(found.sample),
        found.covered,
        tuple(notes),
    )


def find(index: FrameIndex, config: ExploreConfig) -> Findings:
    """Compare the frames of an index, or a part of them; raises UserError where the index is damaged."""
    rows = draw_rows(index.video, config.max_frames, config.seed)
    vectors = np.empty((len(rows), index.dim), np.float32)
    for start, block in index.blocks_with_progress("loading the vectors"):
        first, last = np.searchsorted(rows, (start, start + len(block)))
        vectors[first:last] = block[rows[first:last] - start]
    videos = index.video[rows]
    original, likeness = near_duplicates(vectors, config.duplicates)
    centers = group_centers(vectors, config.groups, config.seed)
    group, distance = _assign(index, centers)
    order = np.argsort(-np.bincount(group, minlength=len(centers)), kind="stable")  # the largest group is number 1
    group = np.argsort(order)[group] + 1
    others = similarity_to_others(vectors, videos)
    usual = np.flatnonzero(others >= np.quantile(others, ODD_FRACTION))
    chosen, covered = cover(vectors[usual], config.sample)
    num_outliers = min(NUM_OUTLIERS, math.ceil(len(rows) / 10))
    numbers = range(1, int(np.bincount(group).astype(bool).sum()) + 1)
    return Findings(
        index=index,
        rows=rows,
        vectors=vectors,
        original=original,
        likeness=likeness,
        group=group,
        groups=tuple(_describe(number, index, rows, group, distance) for number in numbers),
        others=others,
        outliers=few_per_video(np.argsort(others, kind="stable"), videos, OUTLIERS_PER_VIDEO)[:num_outliers],
        sample=usual[chosen],
        covered=covered,
    )


def draw_rows(videos: Integers, most: int, seed: int) -> Integers:
    """Return the sorted rows of at most `most` frames: random ones, from the videos (num_rows,) in turn."""
    if len(videos) <= most:
        return np.arange(len(videos))
    shuffled = np.random.default_rng(seed).permutation(len(videos))
    by_video = shuffled[np.argsort(videos[shuffled], kind="stable")]
    counts = np.bincount(videos)
    turn = np.arange(len(videos)) - np.repeat(np.cumsum(counts) - counts, counts)
    turns = np.empty(len(videos), np.int64)
    turns[by_video] = turn
    chosen: Integers = np.sort(shuffled[np.argsort(turns[shuffled], kind="stable")[:most]])
    return chosen


def near_duplicates(vectors: Floats, threshold: float) -> tuple[Integers, Floats]:
    """Return for each vector (num, dim) the most similar earlier one that is not a near-duplicate itself, or -1.

    Only one that is at least `threshold` similar counts. Without the vectors that have one, each of the others is less
    similar to all others. Also returns their similarities (num,), 0 where there is none.
    """
    original, likeness = np.full(len(vectors), -1), np.zeros(len(vectors), np.float32)
    kept = np.empty_like(vectors)
    numbers = np.empty(len(vectors), np.int64)
    count = 0
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        block = vectors[start : start + ROWS_AT_ONCE]
        before, first = dot_products(block, kept[:count].T), count
        best = before.argmax(axis=1) if count else np.zeros(len(block), np.int64)
        most = before[np.arange(len(block)), best] if count else np.full(len(block), -np.inf, np.float32)
        within = dot_products(block, block.T)
        here: list[int] = []
        for number in range(len(block)):
            near, similar = numbers[best[number]] if first else -1, most[number]
            if here and (inner := within[number, here]).max() > similar:
                near, similar = start + here[int(inner.argmax())], inner.max()
            if similar >= threshold - ROUNDING:
                original[start + number], likeness[start + number] = near, min(similar, 1.0)
            else:
                here.append(number)
                kept[count], numbers[count] = block[number], start + number
                count += 1
    return original, likeness


def group_centers(vectors: Floats, num_groups: int | None, seed: int) -> Floats:
    """Return the centers of k-means (num_groups, dim), as many as there are different vectors at most.

    Not HDBSCAN: on traffic signs it found three groups of 20 kinds and left a fifth of the frames without one.
    """
    wanted = num_groups or int(np.clip(round(math.sqrt(len(vectors) / 2)), 2, MAX_GROUPS))
    wanted = min(wanted, len(np.unique(vectors, axis=0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of vectors that are equal but for rounding
        fitted = KMeans(wanted, n_init=NUM_STARTS, random_state=seed).fit(vectors)
    centers: Floats = fitted.cluster_centers_.astype(np.float32)
    return centers


def _assign(index: FrameIndex, centers: Floats) -> tuple[Integers, Floats]:
    """Return the nearest center of every frame of the index, and the squared distance to it."""
    nearest, distance = np.empty(len(index), np.int32), np.empty(len(index), np.float32)
    lengths = (centers**2).sum(axis=1)
    for start, block in index.blocks():
        distances = lengths - 2 * dot_products(block, centers.T) + (block**2).sum(axis=1, keepdims=True)
        here = slice(start, start + len(block))
        nearest[here], distance[here] = distances.argmin(axis=1), distances.min(axis=1)
    return nearest, distance


def _describe(number: int, index: FrameIndex, rows: Integers, group: Integers, distance: Floats) -> Group:
    """Return a group; its typical frames are the compared ones nearest to its center, of different videos first."""
    of_group = np.flatnonzero(group == number)
    compared = rows[group[rows] == number]
    compared = compared[np.argsort(distance[compared], kind="stable")]
    different = few_per_video(np.arange(len(compared)), index.video[compared], 1)[:NUM_TYPICAL]
    rest = np.setdiff1d(np.arange(len(compared)), different)[: NUM_TYPICAL - len(different)]
    return Group(number, len(of_group), len(np.unique(index.video[of_group])), compared[np.r_[different, rest]])


def few_per_video(order: Integers, videos: Integers, most: int) -> Integers:
    """Return the positions in this order, without those that come after `most` others of their video."""
    counts: dict[int, int] = {}
    kept = []
    for position in order.tolist():
        video = int(videos[position])
        counts[video] = counts.get(video, 0) + 1
        if counts[video] <= most:
            kept.append(position)
    return np.array(kept, np.int64)


def nearest_others(vectors: Floats, videos: Integers, num: int) -> tuple[Integers, Floats]:
    """Return the nearest frames of other videos and their similarities (num_frames, num), nearest first.

    If all frames are of one video, those of this video count, but not the frame itself. A similarity of -inf means that
    there are fewer.
    """
    num = min(num, len(vectors))
    found, similar = np.empty((len(vectors), num), np.int64), np.empty((len(vectors), num), np.float32)
    is_one = len(np.unique(videos)) < 2
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        here = slice(start, min(start + ROWS_AT_ONCE, len(vectors)))
        similarities = dot_products(vectors[here], vectors.T)
        own = np.arange(here.start, here.stop)
        hidden = own[:, None] == np.arange(len(vectors)) if is_one else videos[here, None] == videos
        similarities[hidden] = -np.inf
        best = np.argpartition(-similarities, num - 1, axis=1)[:, :num]
        values = np.take_along_axis(similarities, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        found[here], similar[here] = np.take_along_axis(best, order, 1), np.take_along_axis(values, order, 1)
    return found, similar


def similarity_to_others(vectors: Floats, videos: Integers) -> Floats:
    """Return the mean similarity of each frame to the nearest frames of other videos (num_frames,); 1 if alone."""
    _, similar = nearest_others(vectors, videos, NUM_NEAREST)
    known = np.isfinite(similar)
    sums = np.where(known, similar, 0).sum(axis=1)
    means: Floats = np.where(known.any(axis=1), sums / np.maximum(known.sum(axis=1), 1), 1).astype(np.float32)
    return means


def cover(vectors: Floats, num: int) -> tuple[Integers, float]:
    """Choose up to `num` vectors that cover all (greedy k-centre); returns them, and the least similarity to them.

    The first is the most typical one, each further one the least similar to all before. It ends where every vector
    equals a chosen one. Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
    """
    chosen = [int(dot_products(vectors, vectors.mean(axis=0)).argmax())]
    nearest = dot_products(vectors, vectors[chosen[0]])
    while len(chosen) < num and nearest.min() < 1 - ROUNDING:
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, dot_products(vectors, vectors[chosen[-1]]))
    return np.array(chosen), float(nearest.min())


# --- tables


def _write_tables(folder: Path, found: Findings) -> None:
    index = found.index
    every = ((row, [group]) for row, group in enumerate(found.group.tolist()))
    write_table(folder / "frames.csv", index, every, ["group"])
    typical = (
        (row, [group.number, group.num_frames, group.num_videos]) for group in found.groups for row in group.typical
    )
    write_table(folder / "groups.csv", index, typical, ["group", "frames_in_group", "videos_in_group"])
    double = np.flatnonzero(found.original >= 0)
    of_double = (
        (
            found.rows[position],
            [*frame_cells(index, int(found.rows[found.original[position]])), f"{found.likeness[position]:.4f}"],
        )
        for position in double
    )
    like = ["like_video", "like_frame", "like_time", "similarity"]
    write_table(folder / "duplicates.csv", index, of_double, like)
    outliers = ((found.rows[position], [f"{found.others[position]:.4f}"]) for position in found.outliers)
    write_table(folder / "outliers.csv", index, outliers, ["similarity_to_others"])
    sample = ((found.rows[position], [found.group[found.rows[position]], ""]) for position in found.sample)
    write_table(folder / "sample.csv", index, sample, ["group", "class"])


def write_table(path: Path, index: FrameIndex, rows: Iterable[tuple[int, Sequence[object]]], names: list[str]) -> None:
    """Write a CSV file with a line per frame: its video, index and time, and further cells of these names."""
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["video", "frame", "time", *names])
        table.writerows([*frame_cells(index, int(row)), *cells] for row, cells in rows)


def frame_cells(index: FrameIndex, row: int) -> list[object]:
    """Return the video, the index and the time in seconds of a frame; an unknown time is empty."""
    time = float(index.time[row])
    return [index.video_ids[index.video[row]], int(index.index[row]), "" if math.isnan(time) else f"{time:.3f}"]


# --- the page


def make_page(found: Findings, pictures: Thumbnails, config: ExploreConfig) -> str:
    """Return the page as HTML with its pictures inside; names are escaped, or set as text by its script."""
    index, rows, videos = found.index, found.rows, found.videos
    shown = _frames_of_page(found, config.seed)  # positions among the compared frames
    numbers = {int(position): number for number, position in enumerate(shown)}
    of_row = {int(rows[position]): number for position, number in numbers.items()}
    places = place(found.vectors[shown], config.seed)
    near, similar = nearest_others(found.vectors[shown], videos[shown], NUM_NEIGHBORS)
    folders = _folders(index, videos)
    sheets, missing = _draw_sprites(rows[shown], pictures)
    frames = []
    for number, position in enumerate(shown):
        row = int(rows[position])
        time = float(index.time[row])
        known = np.isfinite(similar[number])
        frames.append(
            {
                "video": shortened(index.video_ids[index.video[row]]),
                "moment": moment(None if math.isnan(time) else time, int(index.index[row])),
                "frame": int(index.index[row]),
                "group": int(found.group[row]),
                "folder": int(folders.of_frame[position]),
                "x": float(places[number, 0]),
                "y": float(places[number, 1]),
                "near": near[number][known].tolist(),
                "similar": [round(value, 3) for value in similar[number][known].tolist()],
                "sheet": number // SPRITES_PER_SHEET,
                "at": sheets[number // SPRITES_PER_SHEET].position(number % SPRITES_PER_SHEET),
            }
        )
    data = {"frames": frames, "groups": len(found.groups), "folders": folders.names[:MAX_FOLDERS]}
    script = asset("explore.js")
    page = (
        html_environment()
        .from_string(asset("explore.html"))
        .render(
            title=index.path.name,
            facts=index_summary(index),
            found=found,
            frames=frames,
            threshold=config.duplicates,
            groups=[
                (group, [of_row[int(row)] for row in group.typical], folders.mostly(found.group[rows] == group.number))
                for group in found.groups
            ],
            pairs=[
                (numbers[int(one)], numbers[int(found.original[one])], float(found.likeness[one]))
                for one in _pairs(found)
            ],
            repeating=_repeating(found),
            outliers=[(numbers[int(one)], float(found.others[one])) for one in found.outliers],
            sample=[numbers[int(one)] for one in found.sample[:MAX_SAMPLE_SHOWN]],
            sheets=[sheet.size for sheet in sheets],
            by_folder=folders.kind,
            missing=missing,
            script=script,
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            data=json.dumps(data, ensure_ascii=True).replace("<", "\\u003c"),
        )
    )
    free = (MAX_PAGE_BYTES - len(page)) // len(sheets)
    for number, sheet in enumerate(sheets):
        page = page.replace(f'url("sheet-{number}")', f"url({sheet.to_url(free)})")
    return page


def _frames_of_page(found: Findings, seed: int) -> Integers:
    """Return the sorted positions of the frames that the page names, and of others from all videos in turn."""
    typical = np.searchsorted(found.rows, np.concatenate([group.typical for group in found.groups]))
    pairs = np.array(_pairs(found), np.int64)
    named = np.unique(
        np.concatenate([typical, pairs, found.original[pairs], found.outliers, found.sample[:MAX_SAMPLE_SHOWN]])
    )
    rest = np.setdiff1d(np.arange(len(found.rows)), named)
    more = rest[draw_rows(found.videos[rest], max(0, MAX_SHOWN - len(named)), seed)]
    return np.sort(np.r_[named, more])


def _pairs(found: Findings) -> list[int]:
    """Return the near-duplicates of other videos to show: the most similar of each pair of videos."""
    pairs: dict[tuple[int, int], int] = {}
    for position in found.of_other_videos.tolist():
        one, other = sorted((int(found.videos[position]), int(found.videos[found.original[position]])))
        pairs.setdefault((one, other), position)
    return list(pairs.values())[:MAX_PAIRS_SHOWN]


def _repeating(found: Findings) -> list[tuple[str, int, int]]:
    """Return the videos with most near-duplicates of their own frames: name, how many these are, of how many frames."""
    double = np.flatnonzero(found.original >= 0)
    own = double[found.videos[double] == found.videos[found.original[double]]]
    counts = np.bincount(found.videos[own], minlength=len(found.index.video_ids))
    totals = np.bincount(found.videos, minlength=len(counts))
    first = np.argsort(-counts, kind="stable")[:MAX_REPEATING_SHOWN]
    return [
        (shortened(found.index.video_ids[video]), int(counts[video]), int(totals[video]))
        for video in first
        if counts[video]
    ]


class _Folders(NamedTuple):
    """The folders of the compared frames, most frequent first; if all are in one, their videos.

    `kind` is folder or video, `of_frame` (num_compared,) has the number of each frame's folder.
    """

    kind: str
    names: list[str]
    of_frame: Integers

    def mostly(self, frames: Integers) -> str:
        """Return the folder that most of these frames (a mask) are of, with its share; "" where there is one folder."""
        counts = np.bincount(self.of_frame[frames])
        if self.kind == "video" or not counts.sum():
            return ""
        return f"{round(100 * counts.max() / counts.sum())} % from {self.names[counts.argmax()]}"


def _folders(index: FrameIndex, videos: Integers) -> _Folders:
    parents = [str(PurePosixPath(index.video_ids[video]).parent) for video in videos]
    kind, names = ("folder", parents) if len(set(parents)) > 1 else ("video", [index.video_ids[one] for one in videos])
    found, numbers, counts = np.unique(names, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return _Folders(kind, [shortened(str(found[at])) for at in order], np.argsort(order)[numbers])


def _draw_sprites(rows: Integers, pictures: Thumbnails) -> tuple[list[SpriteSheet], int]:
    """Return the sheets with the pictures of rows, in this order, and how many frames could not be read."""
    sheets: list[SpriteSheet] = []
    problems: list[str] = []
    for number, row in enumerate(with_progress(rows.tolist(), "pictures", len(rows))):
        if number % SPRITES_PER_SHEET == 0:
            sheets.append(SpriteSheet(f"sheet-{len(sheets)}", SPRITE_SIDE))
        sheets[-1].sprite(row, "", partial(_picture, row, pictures, problems))
    if problems:
        say(f"{len(problems):,} frames cannot be shown: {problems[0]}")
    return sheets, len(problems)


def _picture(row: int, pictures: Thumbnails, problems: list[str]) -> Pixels:
    try:
        return pictures.image(row)
    except UserError as error:
        problems.append(str(error))
        return np.full((SPRITE_SIDE, SPRITE_SIDE, 3), 128, np.uint8)
