"""Clips as items to load: which frames, and what is done to all of them alike; it knows nothing of networks."""

from dataclasses import dataclass

import numpy as np

from cyclecontrast.data.augment import Recipe, apply_view, draw_view
from cyclecontrast.data.clips import ClipShape, measure, random_clip, read_frames, spread_clips
from cyclecontrast.data.images import Pixels
from cyclecontrast.data.labeled_videos import VideoSplit
from cyclecontrast.data.pairs import FRAMES, QUERY, random_stream
from cyclecontrast.evaluation.image_batches import CROP_MARGIN

JITTER = (0.4, 0.4, 0.4, 0.2)
MIN_CROP = 0.08


@dataclass(frozen=True)
class RandomClips:
    """A clip of each video at `clips_per_video` random places; position // clips_per_video is the video."""

    videos: VideoSplit
    clip: ClipShape
    clips_per_video: int
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.videos) * self.clips_per_video

    def image(self, position: int) -> Pixels:
        """Return the frames (num_frames, height, width, 3); raises UserError naming the file."""
        path = self.videos.path(position // self.clips_per_video)
        rng = random_stream(self.seed, self.epoch, _place(position, self.clips_per_video), FRAMES)
        return read_frames(path, random_clip(measure(path), self.clip, rng).tolist())


@dataclass(frozen=True)
class ClipView:
    """One random crop, flip and change of colours for all frames of a clip: of (seed, epoch, video, clip)."""

    size: int
    flip: bool
    clips_per_video: int
    seed: int
    epoch: int

    def __call__(self, frames: Pixels, position: int) -> Pixels:
        """Return the views (num_frames, size, size, 3)."""
        rng = random_stream(self.seed, self.epoch, _place(position, self.clips_per_video), QUERY)
        recipe = Recipe(JITTER, 1.0, 0.0, 0.0, min_crop=MIN_CROP, flip=self.flip)
        view = draw_view(rng, frames.shape[1], frames.shape[2], recipe)
        return np.stack([apply_view(frame, view, self.size) for frame in frames])


@dataclass(frozen=True)
class SpreadClips:
    """All test clips of a video, one behind the other, decoded in one pass."""

    videos: VideoSplit
    clip: ClipShape
    num_clips: int
    size: int

    def __len__(self) -> int:
        return len(self.videos)

    def image(self, position: int) -> Pixels:
        """Return the frames (num_clips · num_frames, height, width, 3); raises UserError naming the file."""
        path = self.videos.path(position)
        frames = spread_clips(measure(path), self.clip, self.num_clips)
        return read_frames(path, frames.ravel().tolist(), round(self.size * CROP_MARGIN))


def _place(position: int, clips_per_video: int) -> int:
    """Return the place in the random stream that belongs to a video and a clip, whatever the number of clips."""
    video, clip = divmod(position, clips_per_video)
    return video << 32 | clip
