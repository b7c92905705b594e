"""DAVIS on disk: lists, palettes, black-and-white masks and damaged files."""

import numpy as np
import pytest
from PIL import Image

from cyclecontrast.data.davis import Davis
from cyclecontrast.errors import UserError

SIZE = (12, 16)


def save_mask(path, numbers, mode):
    """Write a mask as DAVIS-2017 does (P), or DAVIS-2016 (1 and L: black and white)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "P":
        image = Image.fromarray(numbers.astype(np.uint8))
        image.putpalette([value for number in range(256) for value in (number * 40 % 256, number * 90 % 256, 0)])
    else:
        image = Image.fromarray(np.where(numbers > 0, 255, 0).astype(np.uint8)).convert(mode)
    image.save(path)


def save_video(root, name, masks, mode="P"):
    """Write frames of noise, and these masks."""
    for index, mask in enumerate(masks):
        frame = root / "JPEGImages" / "480p" / name / f"{index:05d}.jpg"
        frame.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(noise).save(frame, quality=95)
        save_mask(root / "Annotations" / "480p" / name / f"{index:05d}.png", mask, mode)


def save_list(root, text, year="2017"):
    """Write the list of a year."""
    path = root / "ImageSets" / year / "val.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def objects(*numbers):
    """A mask of vertical stripes with these numbers."""
    mask = np.zeros(SIZE, int)
    for position, number in enumerate(numbers):
        mask[2:10, 3 * position : 3 * position + 3] = number
    return mask


@pytest.fixture
def root(tmp_path):
    """Two videos of objects 1 to 3, listed in 2017."""
    root = tmp_path / "davis"
    for name in ("bear", "cat"):
        save_video(root, name, [objects(1, 2, 3), objects(0, 1, 2, 3), objects(2, 0), objects(0)])
    save_list(root, "bear\ncat\n")
    return root


def test_a_palettes_index_is_the_number_of_the_object(root):
    """DAVIS-2017: objects 0 to 3 come back as they were written, frame by frame."""
    davis = Davis.open(root)
    assert (davis.year, [video.name for video in davis.videos], davis.problems) == ("2017", ["bear", "cat"], ())
    masks = davis.videos[0].objects()
    assert [np.unique(mask).tolist() for mask in masks] == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2], [0]]
    assert np.array_equal(masks[1], objects(0, 1, 2, 3))
    assert all(mask.dtype == np.uint8 for mask in masks)
    assert davis.videos[0].image(0).shape == (*SIZE, 3)


def test_void_is_no_object(root):
    """The index 255 of a palette is background, also in a frame that holds nothing else."""
    save_video(root, "bear", [objects(1, 255, 2), objects(255), objects(1)])
    (root / "JPEGImages/480p/bear/00003.jpg").unlink()
    (root / "Annotations/480p/bear/00003.png").unlink()
    assert [np.unique(mask).tolist() for mask in Davis.open(root).videos[0].objects()] == [[0, 1, 2], [0], [0, 1]]


@pytest.mark.parametrize("mode", ["1", "L"])
@pytest.mark.parametrize("year", ["2016", "2017"])
def test_black_and_white_is_object_one(root, mode, year):
    """Masks of 0 and 255, in one bit or eight, hold the object 1 whatever the year."""
    save_video(root, "bear", [objects(1), objects(1, 1), objects(0), objects(0, 1)], mode)
    save_list(root, "bear", year)
    masks = Davis.open(root, year).videos[0].objects()
    assert [np.unique(mask).tolist() for mask in masks] == [[0, 1], [0, 1], [0], [0, 1]]
    assert np.array_equal(masks[1], objects(1, 1))


def test_all_objects_of_2016_are_one(root):
    """DAVIS-2016 has one object per video, also where masks number several."""
    save_list(root, "cat\n", "2016")
    davis = Davis.open(root, "2016")
    assert [video.name for video in davis.videos] == ["cat"]
    assert np.array_equal(davis.videos[0].objects()[0], objects(1, 1, 1))


def test_2017_goes_first_and_2016_is_found_without_it(root):
    """Without a year the list of 2017 is read, and that of 2016 where it is the only one."""
    save_list(root, "cat\n", "2016")
    assert Davis.open(root).year == "2017"
    (root / "ImageSets/2017/val.txt").unlink()
    assert Davis.open(root).year == "2016"
    with pytest.raises(UserError, match=r"2017/val.txt: no such file; .*2016/val.txt is there"):
        Davis.open(root, "2017")


@pytest.mark.parametrize("folder", ["2016", "480p"])
def test_a_list_of_paths_names_each_video_once(root, folder):
    """The list of the first release has a frame and its mask a line."""
    pair = "/JPEGImages/480p/{0}/{1:05d}.jpg /Annotations/480p/{0}/{1:05d}.png\n"
    save_list(root, "".join(pair.format(name, index) for name in ("cat", "bear") for index in range(4)), folder)
    assert [video.name for video in Davis.open(root, "2016").videos] == ["cat", "bear"]


def test_frames_are_in_natural_order(tmp_path):
    """2 comes before 10, and each frame keeps its own mask."""
    save_video(tmp_path, "bear", [objects(1)] * 3)
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        for number, name in enumerate(("1", "2", "10")):
            path = tmp_path / kind / "480p" / "bear" / f"{number:05d}.{suffix}"
            path.rename(path.with_stem(name))
    save_list(tmp_path, "bear")
    (video,) = Davis.open(tmp_path).videos
    assert [path.stem for path in video.frames] == [path.stem for path in video.masks] == ["1", "2", "10"]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: (root / "Annotations/480p/bear/00002.png").unlink(), "3 masks for 4 frames, '00002' is"),
        (lambda root: (root / "JPEGImages/480p/bear/00001.jpg").unlink(), "4 masks for 3 frames, '00001' is"),
        (lambda root: save_list(root, "bare\ncat"), "JPEGImages/480p/bare: no such folder, though"),
        (lambda root: [p.unlink() for p in (root / "JPEGImages/480p/bear").glob("*[23].jpg")], "holds 2 frames"),
    ],
)
def test_a_video_that_is_not_whole_is_left_out(root, damage, expected):
    """The line names the folder and what was expected; the other video stays, and without it there is an error."""
    damage(root)
    davis = Davis.open(root)
    assert [video.name for video in davis.videos] == ["cat"]
    assert len(davis.problems) == 1
    assert expected in davis.problems[0]
    (root / "ImageSets/2017/val.txt").write_text((root / "ImageSets/2017/val.txt").read_text().replace("cat", ""))
    with pytest.raises(UserError, match="none of the 1 videos can be used") as caught:
        Davis.open(root)
    assert expected in caught.value.problems[1]


@pytest.mark.parametrize(
    ("index", "mask", "expected"),
    [
        (0, objects(0), "contains no object; the first mask"),
        (2, objects(1)[:, :-1], "00002.png: is 15x12, the first mask 16x12"),
    ],
)
def test_masks_that_do_not_fit_are_an_error(root, index, mask, expected):
    """A first mask without objects, and masks of several sizes."""
    save_mask(root / f"Annotations/480p/bear/{index:05d}.png", mask, "P")
    with pytest.raises(UserError, match=expected):
        Davis.open(root).videos[0].objects()


def test_unreadable_files_are_named(root):
    """A mask cut short, a mask in color and a frame cut short: one line each, with the path."""
    video = Davis.open(root).videos[0]
    whole = video.masks[1].read_bytes()
    video.masks[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"bear/00001.png"):
        video.objects()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)).save(video.masks[1])
    with pytest.raises(UserError, match=r"bear/00001.png: is an image of mode RGB"):
        video.objects()
    video.frames[1].write_bytes(video.frames[1].read_bytes()[:100])
    with pytest.raises(UserError, match=r"bear/00001.jpg"):
        video.image(1)


def test_no_list_and_no_folder_are_reported(tmp_path):
    """What was looked for is named."""
    with pytest.raises(UserError, match="no such folder; name a DAVIS root"):
        Davis.open(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds none of ImageSets/2017/val.txt"):
        Davis.open(tmp_path)
    save_list(tmp_path, "\n")
    with pytest.raises(UserError, match=r"val.txt: lists no video"):
        Davis.open(tmp_path)


def test_the_fingerprint_names_the_content(root):
    """It changes with the year, the list, a mask's bytes and a frame's size, and with nothing else."""
    seen = {Davis.open(root).fingerprint}
    (root / "README").write_text("other")
    assert Davis.open(root).fingerprint in seen
    save_list(root, "bear\ncat\n", "2016")
    seen.add(Davis.open(root, "2016").fingerprint)
    save_mask(root / "Annotations/480p/cat/00003.png", objects(3), "P")
    seen.add(Davis.open(root).fingerprint)
    with (root / "JPEGImages/480p/cat/00003.jpg").open("ab") as file:
        file.write(b"0")
    seen.add(Davis.open(root).fingerprint)
    save_list(root, "cat\nbear\n")
    seen.add(Davis.open(root).fingerprint)
    assert len(seen) == 5
    assert all(len(name) == 16 for name in seen)


def test_the_real_set_is_read_whole(shared):
    """Ten videos of DAVIS-2016, 40 frames each, one of them in its original size and in eight bits."""
    davis = Davis.open(shared / "davis")
    assert (davis.year, len(davis.videos), davis.problems) == ("2016", 10, ())
    assert all(len(video) == 40 for video in davis.videos)
    by_name = {video.name: video for video in davis.videos}
    for name, size in (("car-shadow", (480, 854)), ("cows", (240, 428))):
        masks = by_name[name].objects()
        assert by_name[name].image(0).shape == (*size, 3)
        assert all(mask.shape == size and np.unique(mask).tolist() == [0, 1] for mask in masks)
        assert 0.01 < np.mean(masks[0]) < 0.3
