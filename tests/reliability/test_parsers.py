"""A share of the inputs that ``make reliability`` gives to every parser."""

from share import tried


def test_every_parser_refuses_what_is_none_of_its_own_in_the_documented_way() -> None:
    done = tried("parsers", 600, seed=1)
    assert done["found"] == []
    assert len(done["tried"]) == 9 + 1
    assert done["tried"]["runs that were read, joined and reported"] > 0
