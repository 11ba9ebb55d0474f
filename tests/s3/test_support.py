"""The page of what is offered is in step with the code. `python -m tests.s3.test_support` writes it anew."""

from __future__ import annotations

from pathlib import Path

from tests.s3.support import page

PAGE = Path(__file__).parents[2] / "docs" / "s3.md"


def test_the_page_is_in_step_with_the_code() -> None:
    text = PAGE.read_text()
    assert text.count("<!-- table: ") == text.count("<!-- end -->") == 3
    assert text == page(text), "run: python -m tests.s3.test_support"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
