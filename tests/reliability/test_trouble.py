"""A share of what ``make reliability`` tries: a grid that is killed, whose disk fails, whose files are damaged."""

from share import tried


def test_a_grid_that_is_killed_ends_as_if_it_had_not_been() -> None:
    done = tried("kills", 2, seed=1)
    assert done["found"] == []
    assert sum(done["tried"].values()) >= 2


def test_a_disk_that_fails_is_named_and_harms_nothing_that_is_there() -> None:
    done = tried("disks", 2, seed=1)
    assert done["found"] == []
    assert sum(done["tried"].values()) >= 2


def test_a_damaged_file_is_found_named_kept_and_done_again() -> None:
    done = tried("damages", 400, seed=1)
    assert done["found"] == []
    assert sum(done["tried"].values()) >= 402
