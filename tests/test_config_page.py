"""docs/config.md is what the code says."""

import sys

from runs import ROOT

sys.path.insert(0, str(ROOT))
from scripts import config_page


def test_the_page_is_up_to_date():
    written = config_page.page().rstrip("\n") + "\n"
    assert config_page.PAGE.read_text() == written, "run: python -m scripts.config_page"
