"""docs/formats.md is of this tree: it is what its script makes of the tables of code and tests."""

from formats_page import PAGE, page


def test_the_page_is_what_the_script_makes() -> None:
    assert PAGE.read_text() == page(), "run python tests/formats/formats_page.py"
