"""Images with masks: every layout is read to the label, and what is damaged or contradicts itself is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclecontrast.data.masked_images import IGNORE, VOC_CLASSES, MaskedImages
from cyclecontrast.errors import UserError

CASES = Path(__file__).parents[3] / ".." / "shared" / "cases"
HEIGHT, WIDTH = 6, 9


def image_file(path, seed=0, size=(HEIGHT, WIDTH)):
    """Write a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)


def mask_file(path, values=0, mode="L"):
    """Write a mask: a value in its upper left corner, 0 elsewhere; a palette file has colors unlike its indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for row, value in enumerate(np.atleast_1d(values)):
        mask[row, :4] = value
    picture = Image.fromarray(mask)
    if mode == "P":
        picture.putpalette(np.random.default_rng(5).integers(0, 256, 768, np.uint8).tobytes())
        assert picture.mode == "P"
    elif mode == "1":
        picture = Image.fromarray(mask > 0)
    elif mode != "L":
        picture = picture.convert(mode)
    picture.save(path)


def list_file(path, *lines):
    """Write a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def rows(split, position=0):
    """Return the label of the upper left corner of the first three rows, and of the background."""
    labels = split.image(position)[..., 3]
    assert (labels[:3, :4] == labels[:3, :1]).all()
    return [*labels[:3, 0].tolist(), int(labels[-1, -1])]


@pytest.fixture
def voc(tmp_path):
    """VOC: two images to train on, one to test on, palette masks."""
    root = tmp_path / "VOC2012"
    for number, name in enumerate(("2007_01", "2007_02", "2007_03", "extra")):
        image_file(root / f"JPEGImages/{name}.jpg", number)
    for name in ("2007_01", "2007_02", "2007_03"):
        mask_file(root / f"SegmentationClass/{name}.png", (15, 255, 20), "P")
    list_file(root / "ImageSets/Segmentation/train.txt", "2007_01", "2007_02", "")
    list_file(root / "ImageSets/Segmentation/val.txt", "2007_03")
    return root


@pytest.fixture
def plain(tmp_path):
    """Folders train and val of images and masks with labels 0, 1, 2."""
    root = tmp_path / "plain"
    for split, num in (("train", 3), ("val", 2)):
        for number in range(num):
            image_file(root / split / f"images/{number}.png", number)
            mask_file(root / split / f"masks/{number}.png", (1, 255, 2))
    return root


def test_voc_masks_are_read_by_index_and_not_by_color(voc):
    """A palette picture gives the class numbers and the ignored border; lists decide who trains."""
    images = MaskedImages.open(voc)
    assert (images.layout, images.classes) == ("voc", VOC_CLASSES)
    assert len(images.classes) == 21
    assert [pair.image for pair in images.train.pairs] == ["JPEGImages/2007_01.jpg", "JPEGImages/2007_02.jpg"]
    assert len(images.test) == 1
    assert rows(images.train) == [15, IGNORE, 20, 0]
    expected = np.asarray(Image.open(voc / "JPEGImages/2007_01.jpg"))
    assert (images.train.image(0)[..., :3] == expected).all()
    assert images.problems == images.notes == ()


def test_the_extended_list_of_voc_finds_its_masks_in_either_folder(voc):
    """train_aug names images whose masks lie in SegmentationClassAug, as an id or as two paths."""
    mask_file(voc / "SegmentationClassAug/extra.png", 7)
    list_file(voc / "ImageSets/Segmentation/train_aug.txt", "2007_01", "extra")
    images = MaskedImages.open(voc, train_list="train_aug")
    assert [rows(images.train, position)[0] for position in (0, 1)] == [15, 7]
    list_file(voc / "ImageSets/Segmentation/train_aug.txt", "/JPEGImages/extra.jpg /SegmentationClassAug/extra.png")
    assert rows(MaskedImages.open(voc, train_list="train_aug").train) == [7, 0, 0, 0]


def test_ade20k_counts_from_one_and_ignores_zero(tmp_path):
    """0 is to be ignored and 1..150 are classes 0..149; their names are those of objectInfo150.txt."""
    for split in ("training", "validation"):
        image_file(tmp_path / f"images/{split}/a.jpg")
        mask_file(tmp_path / f"annotations/{split}/a.png", (1, 150, 0))
    images = MaskedImages.open(tmp_path)
    assert (images.layout, len(images.classes), images.classes[0]) == ("ade20k", 150, "1")
    assert rows(images.test) == [0, 149, IGNORE, IGNORE]
    list_file(tmp_path / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t.1\t9\t9\t1\twall, plain")
    assert MaskedImages.open(tmp_path).classes[:2] == ("wall", "2")
    mask_file(tmp_path / "annotations/validation/a.png", 151)
    with pytest.raises(UserError, match=r"label 151, which is none of 0\.\.150, 255"):
        MaskedImages.open(tmp_path).test.image(0)


def davis(root, sequences=("bear", "camel", "dog"), value=(1, 3, 255), mode="P"):
    """Write two frames of each sequence."""
    for sequence in sequences:
        for frame in ("00000", "00001"):
            image_file(root / f"JPEGImages/480p/{sequence}/{frame}.jpg")
            mask_file(root / f"Annotations/480p/{sequence}/{frame}.png", value, mode)
    return root


@pytest.mark.parametrize("mode", ["P", "L", "1"])
def test_davis_has_figure_and_background(tmp_path, mode):
    """Object numbers, 255 and bits are all figure; both ways of writing a list give the same frames."""
    davis(tmp_path, mode=mode)
    list_file(tmp_path / "ImageSets/2017/train.txt", "bear", "camel")
    list_file(
        tmp_path / "ImageSets/2017/val.txt",
        *(f"/JPEGImages/480p/dog/{f}.jpg /Annotations/480p/dog/{f}.png" for f in ("00000", "00001")),
    )
    images = MaskedImages.open(tmp_path)
    assert (images.layout, len(images.train), len(images.test)) == ("davis", 4, 2)
    assert rows(images.train) == rows(images.test) == [1, 1, 1, 0]


def test_davis_without_a_training_list_is_split_by_a_rule_that_is_noted(tmp_path):
    """Every second sequence by name is tested on; no sequence lies on both sides."""
    davis(tmp_path)
    list_file(tmp_path / "ImageSets/2016/val.txt", "dog", "bear", "camel")
    images = MaskedImages.open(tmp_path)
    sequences = [{Path(pair.image).parent.name for pair in split.pairs} for split in (images.train, images.test)]
    assert sequences == [{"bear", "dog"}, {"camel"}]
    assert any("trained on (bear, dog), the others tested on (camel)" in note for note in images.notes)
    assert images.layout == "davis-val-split"


def test_figures_of_a_frame_tree_get_the_class_of_their_video(tmp_path):
    """0 is background and the figure has the label of its list plus one, named by the folder of its class."""
    for kind in ("cow", "pear"):
        for number in (1, 2):
            image_file(tmp_path / f"frames/{kind}/{kind}{number}/a.jpg")
            mask_file(tmp_path / f"masks/{kind}/{kind}{number}/a.png", 1, "1")
    for name, number in (("train", 1), ("test", 2)):
        list_file(tmp_path / f"{name}.txt", f"cow/cow{number} 0", f"pear/pear{number} 1")
    images = MaskedImages.open(tmp_path)
    assert images.classes == ("background", "cow", "pear")
    assert [rows(images.test, position) for position in (0, 1)] == [[1, 0, 0, 0], [2, 0, 0, 0]]


def test_plain_folders_take_the_number_of_classes_from_their_masks(plain):
    """The highest label of the training masks decides, but for the one to be ignored; the option comes first."""
    images = MaskedImages.open(plain)
    assert (len(images.train), len(images.test), images.classes) == (3, 2, ("0", "1", "2"))
    assert rows(images.train) == [1, IGNORE, 2, 0]
    assert len(MaskedImages.open(plain, num_classes=7).classes) == 7
    other = MaskedImages.open(plain, num_classes=255, ignore_label=2)
    with pytest.raises(UserError, match=r"label 255, which is none of 0\.\.254"):
        other.train.image(0)


def test_a_stray_label_is_traced_to_its_mask(plain):
    """One wrong pixel makes many classes: the note names a mask that holds it, and says how many do."""
    path = sorted((plain / "train/masks").iterdir())[1]
    mask_file(path, (1, 0, 77))
    images = MaskedImages.open(plain)
    where = path.relative_to(plain)
    assert len(images.classes) == 78
    assert images.notes == (
        f"num_classes: 78, for the highest label of the training masks is 77 (in 1 of 3, first in {where})",
    )


def test_another_label_can_be_the_one_to_ignore(plain):
    """Whatever number stands for it in the file, it is IGNORE to the rest of the project."""
    for path in (plain / "train/masks").iterdir():
        mask_file(path, (1, 2, 9))
    images = MaskedImages.open(plain, ignore_label=9)
    assert images.classes == ("0", "1", "2")
    assert rows(images.train) == [1, 2, IGNORE, 0]


def test_lists_of_names_beside_images_and_masks(tmp_path):
    """A line is a name with or without its suffix; black and white masks are figure and background."""
    for name in ("a", "sub/b", "c"):
        image_file(tmp_path / f"images/{name}.png")
        mask_file(tmp_path / f"masks/{name}.png", 255)
    list_file(tmp_path / "train.txt", "a.png", "sub/b")
    list_file(tmp_path / "val.txt", "c")
    images = MaskedImages.open(tmp_path)
    assert [pair.image for pair in images.train.pairs] == ["images/a.png", "images/sub/b.png"]
    assert rows(images.test) == [1, 0, 0, 0]
    assert "0 and 255 alone" in images.notes[0]


def test_colors_are_no_labels_but_gray_ones_are(plain):
    """Three equal channels are as good as one; a color picture is refused by its mode."""
    mask_file(plain / "train/masks/0.png", (1, 255, 2), "RGBA")
    assert rows(MaskedImages.open(plain).train) == [1, IGNORE, 2, 0]
    image_file(plain / "train/masks/0.png")
    with pytest.raises(UserError, match=r"masks/0\.png: is an image of mode RGB; a mask holds one whole number"):
        MaskedImages.open(plain).train.image(0)
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)).save(plain / "train/images/1.png")
    with pytest.raises(UserError, match="more than 8 bits per channel"):
        MaskedImages.open(plain).train.image(1)


@pytest.mark.parametrize("lists", [False, True])
def test_masks_are_found_whatever_their_suffix(plain, tmp_path, lists):
    """Upper case and other formats without loss count; where there are several, the PNG does."""
    root = plain
    if lists:
        root = tmp_path / "lists"
        (plain / "train").rename(root)
        list_file(root / "train.txt", "0.png", "1")
        list_file(root / "val.txt", "2")
    masks = root / ("masks" if lists else "train/masks")
    (masks / "0.png").rename(masks / "0.PNG")
    Image.open(masks / "1.png").save(masks / "1.bmp")
    (masks / "1.png").unlink()
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(masks / "2.tif")
    images = MaskedImages.open(root)
    found = (*images.train.pairs, *(images.test.pairs if lists else ()))
    assert [Path(pair.mask).name for pair in found] == ["0.PNG", "1.bmp", "2.png"]
    assert rows(images.train, 0) == rows(images.train, 1) == [1, IGNORE, 2, 0]
    assert len(images.classes) == 3


def test_masks_of_another_kind_are_named_with_what_is_wrong(plain):
    """JPEG changes labels, colors are none, and other names belong to no image; the number of classes is not blamed."""

    def lines():
        with pytest.raises(UserError) as caught:
            MaskedImages.open(plain)
        return caught.value.problems

    masks = sorted((plain / "train/masks").iterdir())
    for path in masks:
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    assert lines()[0].endswith("none of its training masks can be read")
    assert lines()[1].endswith("train/masks/0.jpg: is a JPEG, whose compression changes labels; save masks as PNG")
    for path in masks:
        path.with_suffix(".jpg").unlink()
        image_file(path)
    assert "train/masks/0.png: is an image of mode RGB" in lines()[1]
    for path in masks:
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    assert "has no image with a mask to train on" in lines()[0]
    assert "train/masks/0_mask.png: is a mask without an image" in lines()[1]
    assert "train/images/0.png: has no mask" in lines()[4]


def test_smooth_edges_and_mixed_numbers_are_noticed(plain):
    """Edges between 0 and 255 are no classes unless that is said; 255 in masks without figure is named."""
    masks = sorted((plain / "train/masks").iterdir())
    mask_file(masks[1], (255, 254, 90))
    with pytest.raises(UserError, match=r"6 numbers up to 254 \(in 1 of 3, first in train/masks/1\.png\); if they are"):
        MaskedImages.open(plain)
    assert len(MaskedImages.open(plain, num_classes=255).classes) == 255
    for path, value in zip(masks, (255, 255, 1), strict=True):
        mask_file(path, value)
    assert MaskedImages.open(plain).notes[1] == (
        "in 2 masks, 255 is ignored and no pixel is 1, such as in train/masks/0.png"
    )


@pytest.mark.skipif(not CASES.exists(), reason="shared cases are absent")
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("antialias", "numbers up to 254 (in 6 of 6, first in train/masks/0.png)"),
        ("jpgmask", "train/masks/0.jpg: is a JPEG"),
        ("rgbcolor", "train/masks/0.png: is an image of mode RGB"),
        ("suffixmask", "train/masks/0_mask.png: is a mask without an image"),
    ],
)
def test_real_masks_that_cannot_be_used_are_named(name, line):
    """Each line says what is wrong with which mask."""
    with pytest.raises(UserError) as caught:
        MaskedImages.open(CASES / "masks" / name)
    assert line in "\n".join(caught.value.problems)


@pytest.mark.skipif(not CASES.exists(), reason="shared cases are absent")
def test_real_masks_in_upper_case_and_of_mixed_numbers_are_read():
    """Three classes in .PNG; two where one mask of six says 1 and the others 255."""
    assert len(MaskedImages.open(CASES / "masks/upper").classes) == 3
    images = MaskedImages.open(CASES / "masks/bw255mixed1")
    assert "in 5 masks, 255 is ignored and no pixel is 1, such as in train/masks/0.png" in images.notes


def test_labels_outside_the_range_are_named(plain):
    """The line names the file, the label and the labels that are known; 16 bits do not avoid it."""
    images = MaskedImages.open(plain, num_classes=2)
    with pytest.raises(UserError, match=r"train/masks/0\.png: holds the label 2, which is none of 0\.\.1, 255;"):
        images.train.image(0)
    Image.fromarray(np.full((HEIGHT, WIDTH), 300, np.uint16)).save(plain / "train/masks/0.png")
    with pytest.raises(UserError, match="label 300"):
        images.train.image(0)


def test_a_mask_of_another_size_is_named_with_both_sizes(plain):
    """Which of the two is wrong cannot be known; the line names both."""
    image_file(plain / "train/images/0.png", size=(4, 5))
    with pytest.raises(UserError, match=r"masks/0\.png: is 9x6, but its image .*images/0\.png is 5x4"):
        MaskedImages.open(plain).train.image(0)


def test_a_note_to_turn_the_image_does_not_part_it_from_its_mask(plain):
    """Masks are drawn on the stored pixels: the orientation of EXIF is not followed."""
    picture = Image.open(plain / "train/images/0.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(plain / "train/images/0.png", exif=exif)
    assert (MaskedImages.open(plain).train.image(0)[..., :3] == np.asarray(picture)).all()


def test_damage_is_reported_file_by_file(plain):
    """Absent files are found when the folder is opened, truncated ones when they are read; the rest is there."""
    (plain / "train/masks/2.png").unlink()
    mask_file(plain / "train/masks/stray.png")
    images = MaskedImages.open(plain)
    assert len(images.train) == 2
    assert "train/images/2.png: has no mask" in " ".join(images.problems)
    assert "masks/stray.png: is a mask without an image" in " ".join(images.problems)
    for path in ("train/images/0.png", "train/masks/1.png"):
        (plain / path).write_bytes((plain / path).read_bytes()[:-30])
    for position, name in ((0, "images/0.png"), (1, "masks/1.png")):
        with pytest.raises(UserError, match=name):
            images.train.image(position)


def test_a_truncated_jpeg_is_not_half_an_image(voc):
    """OpenCV would fill the rest with gray; here it is damage."""
    path = voc / "JPEGImages/2007_01.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"2007_01\.jpg: .*fix or remove it"):
        MaskedImages.open(voc).train.image(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: (root / "ImageSets/Segmentation/val.txt").unlink(), r"val\.txt: no such file.*lists the images"),
        (lambda root: list_file(root / "ImageSets/Segmentation/val.txt"), r"val\.txt: is empty"),
        (lambda root: list_file(root / "ImageSets/Segmentation/val.txt", "gone"), "no image with a mask to test on"),
        (lambda root: [path.unlink() for path in root.glob("S*/*")], r"train on\n.*2007_01\.jpg: has no mask"),
    ],
    ids=["missing list", "empty list", "absent images", "no masks"],
)
def test_lists_that_lead_nowhere_are_errors(voc, make, message):
    """A list that is absent, empty or names nothing stops before anything is computed."""
    make(voc)
    with pytest.raises(UserError, match=message):
        MaskedImages.open(voc)


def test_a_folder_of_something_else_lists_the_known_layouts(tmp_path):
    """The line names the layouts; options that contradict a layout are named too."""
    with pytest.raises(UserError, match="holds no layout of images with masks; the known ones are: JPEGImages"):
        MaskedImages.open(tmp_path)
    davis(tmp_path)
    list_file(tmp_path / "ImageSets/2016/val.txt", "dog", "bear")
    with pytest.raises(UserError, match=r"num_classes: 5, but .* has 2"):
        MaskedImages.open(tmp_path, num_classes=5)
    with pytest.raises(UserError, match="train_list: train_aug"):
        MaskedImages.open(tmp_path, train_list="train_aug")


def test_images_of_both_splits_are_noted(voc):
    """Testing on what was trained on is allowed, but not silent."""
    list_file(voc / "ImageSets/Segmentation/val.txt", "2007_03", "2007_02")
    assert "images both trained on and tested on: 1" in MaskedImages.open(voc).notes


def test_the_fingerprint_is_that_of_the_content(voc):
    """It stays where nothing changes, and changes with a mask's bytes, the lists and the meaning of labels."""
    fingerprints = [MaskedImages.open(voc).fingerprint]
    assert MaskedImages.open(voc).fingerprint == fingerprints[0]
    fingerprints.append(MaskedImages.open(voc, ignore_label=0).fingerprint)
    path = voc / "SegmentationClass/2007_03.png"
    path.write_bytes(path.read_bytes() + b" ")
    fingerprints.append(MaskedImages.open(voc).fingerprint)
    list_file(voc / "ImageSets/Segmentation/train.txt", "2007_02", "2007_01")
    fingerprints.append(MaskedImages.open(voc).fingerprint)
    assert len(set(fingerprints)) == 4
    assert all(len(name) == 16 for name in fingerprints)


def test_real_masks_of_davis_and_eth80(shared):
    """One-bit and black-and-white masks of real data are figure and background, by sequence and by object."""
    images = MaskedImages.open(shared / "davis")
    assert (len(images.train), len(images.test)) == (200, 200)
    car_shadow = next(n for n, pair in enumerate(images.train.pairs) if "car-shadow" in pair.image)
    for position in (0, car_shadow):
        labels = images.train.image(position)[..., 3]
        assert 0.005 < (labels == 1).mean() < 0.5
        assert set(np.unique(labels)) == {0, 1}
    objects = MaskedImages.open(shared / "video_frames" / "eth80")
    assert objects.classes == ("background", "apple", "car", "cow", "cup", "dog", "horse", "pear", "tomato")
    assert (len(objects.train), len(objects.test)) == (984, 984)
    for position, pair in ((0, objects.train.pairs[0]), (983, objects.train.pairs[983])):
        expected = objects.classes.index(Path(pair.image).parts[1])
        assert set(np.unique(objects.train.image(position)[..., 3])) == {0, expected}
