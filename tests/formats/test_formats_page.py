"""docs/formats.md is of this tree: it is what its script makes of the tables of code and tests."""

import pytest
from formats_page import PAGE, check, page


def test_the_page_is_what_the_script_makes() -> None:
    assert PAGE.read_text() == page(), "run python tests/formats/formats_page.py"


def test_a_format_that_the_page_does_not_tell_of_is_an_error() -> None:
    with pytest.raises(ValueError, match="methods: b are in the code or on the page, and not in both"):
        check("methods", ["a", "b"], ["a"])
