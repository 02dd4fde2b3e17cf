"""How well rows of self-similarity tell objects apart: counts by hand, and the command on a small demo's runs."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.measurements import similarity
from jobs.measurements.finished_runs import Run
from jobs.measurements.similarity import REFERENCE, SAM_ROWS, as_markdown, separation, table
from jobs.measurements.similarity_rows import share_of_cells
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]

OBJECT, OTHER = (slice(0, 2), slice(0, 4)), (slice(4, 6), slice(0, 4))


def halves():
    """Shares of an object and of another one, on 8 x 8 cells; a row of cells beside the object belongs to neither."""
    share, others = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    share[OBJECT], others[OTHER] = 1, 1
    share[2, :4] = 0.5
    return share, others


def test_a_row_that_is_the_object_parts_it_from_everything():
    share, others = halves()
    row = share * 1.5 - 0.5
    perfect = separation(row, share, others, -row)
    assert perfect.auroc == perfect.auroc_objects == 1
    assert (perfect.inside, perfect.outside) == (1, -0.5)
    assert perfect.agreement == pytest.approx(-1)
    turned = separation(-row, share, others, row)
    assert turned.auroc == turned.auroc_objects == 0


def test_equal_cosines_count_half_and_partly_covered_cells_not_at_all():
    share, others = halves()
    blind = np.full((8, 8), 0.5, np.float32)
    blind[2, :4] = 9  # would be a mean outside of more
    found = separation(blind, share, others, np.arange(64, dtype=np.float32).reshape(8, 8))
    assert found.auroc == found.auroc_objects == 0.5
    assert found.inside == found.outside == 0.5


def test_another_object_that_is_alike_is_seen_by_its_own_figure_only():
    share, others = halves()
    row = np.where(share + others >= 1, 0.9, -0.9).astype(np.float32)
    found = separation(row, share, others, row)
    assert found.auroc_objects == 0.5
    assert found.auroc == pytest.approx((44 + 0.5 * 8) / 52)


def test_too_small_an_object_is_left_out_and_too_few_others_are_no_figure():
    share, others = halves()
    row = share.copy()
    assert math.isnan(separation(row, share, others * 0, row).auroc_objects)
    share[0, :4], share[1, 0] = 0.5, 0.5
    assert separation(row, share, others, row) is None
    share, others = halves()
    row[0, :4], row[1, 0] = np.nan, np.nan  # what the network does not see does not count
    assert separation(row, share, others, share) is None


def test_seeds_of_one_name_share_a_line_and_missing_figures_are_no_zeros():
    share, others = halves()
    with_other, alone = (separation(share, share, rest, share) for rest in (others, others * 0))
    rows = table({"a": [[with_other, alone], [alone, with_other]], "b": [[with_other, alone]]})
    assert rows["a"]["auroc_objects"] == [1.0, 1.0]
    assert rows["a"]["objects"] == 2
    lines = as_markdown(rows).splitlines()
    assert lines[2].startswith("| a | 1.000 ± 0.000 |")
    assert lines[3].startswith("| b | 1.000 |")


def test_a_figure_that_no_object_has_is_none():
    share, others = halves()
    rows = table({"a": [[separation(share, share, others * 0, share)]]})
    assert rows["a"]["auroc_objects"] == [None]
    assert as_markdown(rows).splitlines()[2].startswith("| a | 1.000 | - |")


@pytest.mark.parametrize("size_hw", [(480, 640), (427, 640), (258, 260), (192, 192)])
@pytest.mark.parametrize("grid_hw", [(64, 64), (24, 24)])
def test_a_cell_that_a_mask_fills_is_full_at_any_size(size_hw, grid_hw):
    height, _ = size_hw
    mask = np.zeros(size_hw, bool)
    mask[: height // 2] = True
    share = share_of_cells(mask, grid_hw)
    middle = grid_hw[0] // 2
    assert (share[: middle - 1] == 1).all()
    assert (share[middle + 1 :] == 0).all()
    assert share.mean() == pytest.approx((height // 2) / height, abs=1e-3)
    assert (share_of_cells(np.ones(size_hw, bool), grid_hw) == 1).all()


def test_the_command_measures_sam_and_every_run(demo, tmp_path, monkeypatch, capsys):
    runs = [f"labels={demo.root}/teacher_supervised", f"labels={demo.root}/teacher_structural"]
    monkeypatch.setattr(sys, "argv", ["similarity", str(tmp_path / "x.json"), *runs, "--images", "2"])
    similarity.main()
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert list(rows) == [*SAM_ROWS, "labels"]
    assert rows[REFERENCE]["agreement"] == [pytest.approx(1)]
    assert len(rows["labels"]["auroc"]) == 2
    assert len({row["objects"] for row in rows.values()}) == 1
    assert all(0 <= value <= 1 for row in rows.values() for value in (*row["auroc"], *row["auroc_objects"]))
    assert "| labels | " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="how many images"):
        similarity.measure([Run.parse(runs[0])], None, num_images=1000)


def test_readme_shows_the_committed_figures():
    rows = json.loads((ROOT / "docs/results/similarity.json").read_text())["rows"]
    assert as_markdown(rows) in (ROOT / "README.md").read_text()
