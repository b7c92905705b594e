"""The options of the other commands, and what every option must have."""

import pytest

from cyclecontrast.cli import COMMANDS
from cyclecontrast.config import ActionConfig, PrepareConfig, SearchConfig
from cyclecontrast.config.types import GROUPS
from cyclecontrast.errors import UserError, checked


def problems_of(config, **values):
    """Return the lines that the user sees."""
    with pytest.raises(UserError) as caught:
        checked(config, values)
    return list(caught.value.problems)


def test_prepare_takes_one_policy():
    """Two ways of choosing frames are refused by the names of their flags."""
    (line,) = problems_of(PrepareConfig, videos="v", out="o", fps=2, keyframes=True)
    assert line == "--fps and --keyframes exclude each other; choose one"


def test_a_part_is_one_of_all():
    """A part I/N has I from 1 to N."""
    assert checked(PrepareConfig, {"videos": "v", "out": "o", "part": "3/3"}).part == "3/3"
    for part in ("4/3", "0/3", "1", "a/b"):
        assert problems_of(PrepareConfig, videos="v", out="o", part=part)[0].startswith("part: ")


def test_search_needs_one_query():
    """A search has an image or a frame of a video, and each option that belongs to the other is refused."""
    (line,) = problems_of(SearchConfig, index="i.npz")
    assert line.startswith("give one of --image FILE and --video ID")
    assert len(problems_of(SearchConfig, index="i.npz", image="q.png", frame=1, other_videos=True, port=1)) == 3
    assert checked(SearchConfig, {"index": "i.npz", "video": "v", "time": "1:02:03.5"}).time == 3723.5
    (line,) = problems_of(SearchConfig, index="i.npz", serve=True, image="q.png", format="json")
    assert line == "with --serve, queries come from the web page; remove --image, --format"


def test_the_mode_of_action_sets_defaults():
    """Mode linear has defaults of its own, and what differs from them is unusual."""
    linear = checked(ActionConfig, {"model": "m", "data": "d", "mode": "linear", "epochs": 3})
    assert (linear.num_frames, linear.batch_size, linear.clips_per_video, linear.dropout) == (8, 64, 10, 0.5)
    assert linear.unusual() == {"epochs": 3}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    """Every option has a help text and a known group, and its default is valid."""
    config = COMMANDS[name].config
    assert config.__doc__.endswith(".")
    for field in config.model_fields.values():
        assert field.description
        assert field.json_schema_extra["group"] in GROUPS
    needed = {name: ["x"] if name == "runs" else "x.npz" for name in config.model_fields}
    required = {name: needed[name] for name, field in config.model_fields.items() if field.is_required()}
    required |= {"image": "q"} if config is SearchConfig else {"table": "table4"} if "table" in required else {}
    assert checked(config, required).model_fields_set == required.keys()
