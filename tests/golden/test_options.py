"""The commands have the recorded flags and defaults, and take the recorded choices; their prose may change."""

import pytest

from tests.golden import options
from tests.golden.record import recorded


@pytest.mark.parametrize("command", options.COMMANDS)
def test_flags_and_defaults_are_as_recorded(command):
    """No flag is lost, none is new, and each means the same where it is not named."""
    expected = recorded("options")[command]
    assert options.flags_of(command) == expected["flags"]
    assert options.printed(command) == expected["defaults"]


@pytest.mark.parametrize("command", options.COMMANDS)
def test_every_choice_is_taken(command):
    """What could be chosen with no other flag still can."""
    for flag, choices in recorded("options")[command]["choices"].items():
        for choice in choices:
            assert options.is_taken(command, flag, choice), f"{flag} {choice}"


def test_presets_are_as_recorded():
    """Every preset means the same settings for every method."""
    assert options.presets() == recorded("options")["presets"]


def test_the_former_name_of_the_method_is_taken(tmp_path):
    """A config file that says `objective`, as those of earlier runs, still says which method."""
    (tmp_path / "old.toml").write_text('objective = "byol"\n')
    assert options.printed("pretrain", "--config", str(tmp_path / "old.toml"))["method"] == "byol"
    assert options.printed("pretrain", "--objective", "seco")["method"] == "seco"
