"""docs/methods.md is what the catalog says."""

from __future__ import annotations

from pathlib import Path

from trainers import catalog
from trainers.catalog.page import methods_page

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_committed_page_is_that_of_the_catalog():
    assert PAGE.read_text(encoding="utf-8") == methods_page(), "make docs renews it"


def test_every_row_of_the_catalog_is_on_the_page_with_its_source():
    lines = methods_page().splitlines()
    tables = (catalog.INNER, catalog.OUTER, catalog.WEIGHTING, catalog.REGULARIZER, catalog.WEIGHT_PERTURBATION)
    for table in (catalog.PRESETS, catalog.RECIPES, *tables):
        for name, row in table.items():
            assert [line for line in lines if line.startswith(f"| `{name}` |") and line.endswith(f"| {row.source} |")]
