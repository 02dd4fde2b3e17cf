"""Costs are carried over from what was measured by what each stage grows with."""

from dataclasses import replace

import pytest

from jobs.measurements import stage_table as measure_stages
from jobs.precompute.cost_model import (
    TABLE,
    Row,
    StageSeconds,
    find_row,
    load_table,
    proposals_cost,
    save_table,
    similarity_cost,
)
from jobs.settings import PrecomputeSettings, SamSettings
from pipeline.errors import InputError
from pipeline.sam.generator_settings import GeneratorSettings
from tests.fakes import FakeSam
from tests.jobs.toys import write_coco

ROW = Row(
    sam="x",
    device="cpu",
    precision="fp32",
    threads=1,
    images=4,
    megapixels=1.0,
    clicks=256,
    candidates=100.0,
    proposals=20.0,
    bytes_per_proposal=300.0,
    stages=StageSeconds(read=1.0, encode_image=10.0, decode_clicks=100.0, filter=4.0, encode_masks=2.0, write=0.5),
    similarity_per_point=0.25,
    peak_memory_bytes=10**9,
    provenance={},
)
SAME = GeneratorSettings(points_per_side=16)


def test_the_measured_case_costs_what_was_measured():
    cost = proposals_cost(ROW, SAME, [(1000, 1000)] * 3)
    assert cost.seconds == pytest.approx(3 * ROW.stages.total)
    assert cost.num_bytes == 3 * 20 * 300


def test_stages_grow_with_pixels_and_clicks():
    larger = proposals_cost(ROW, SAME, [(2000, 2000)]).seconds
    mask = (0.45 + 0.25 * 4) / (0.45 + 0.25)
    assert larger == pytest.approx(4 * 1 + 10 + 100 + mask * 4 + mask * 2 + 0.5)
    denser = proposals_cost(ROW, replace(SAME, points_per_side=32), [(1000, 1000)]).seconds
    assert denser == pytest.approx(1 + 10 + 4 * 100 + 4 * 4 + 2 + 0.5)


def test_crops_and_masks_given_back_cost_more_of_the_network():
    crops = proposals_cost(ROW, replace(SAME, crop_n_layers=1, crop_n_points_downscale_factor=2), [(1000, 1000)])
    assert crops.seconds == pytest.approx(1 + 5 * 10 + 2 * 100 + 2 * 4 + 2 + 0.5)
    back = proposals_cost(ROW, replace(SAME, use_m2m=True), [(1000, 1000)])
    assert back.seconds == pytest.approx(ROW.stages.total + 3 * 100)


def test_similarity_costs_the_encoder_and_its_points():
    cost = similarity_cost(ROW, 8, (4, 4), [(1000, 1000), (500, 2000)])
    assert cost.seconds == pytest.approx(2 * (1 + 10 + 8 * 0.25))
    assert cost.num_bytes == 2 * 8 * (16 + 9)
    assert similarity_cost(None, 8, (4, 4), [(1000, 1000)] * 2).num_bytes == cost.num_bytes


def test_a_table_comes_back_and_a_broken_one_is_named(tmp_path):
    other = replace(ROW, device="cuda")
    save_table(tmp_path / "table.json", [other, ROW])
    assert load_table(tmp_path / "table.json") == [ROW, other]
    assert find_row("x", "cpu", "fp32", [other, ROW]) == ROW
    assert find_row("x", "cpu", "bf16", [other, ROW]) is None
    (tmp_path / "table.json").write_text("[{}]")
    with pytest.raises(InputError, match="stage_table"):
        load_table(tmp_path / "table.json")


def test_the_shipped_table_has_the_embedded_sam():
    row = find_row("scenes-nano", "cpu", "fp32", load_table(TABLE))
    assert row is not None
    assert row.stages.total > 0
    assert row.images >= 5


def test_measuring_does_what_the_stage_does(tmp_path, monkeypatch):
    settings = PrecomputeSettings(
        images=str(write_coco(tmp_path / "data", 5)),
        store=str(tmp_path / "store"),
        sam=SamSettings("fake"),
        proposals=GeneratorSettings(points_per_side=4),
    )
    monkeypatch.setattr(measure_stages, "build_sam", lambda _: FakeSam())
    row = measure_stages.measure(settings, limit=3)
    assert (row.images, row.clicks, row.sam) == (3, 16, "fake")
    assert row.proposals >= 2
    assert row.candidates >= row.proposals
    assert min(row.stages.read, row.stages.decode_clicks, row.stages.write) > 0
    assert "images a second" in row.text()
    assert not (tmp_path / "store").exists()
