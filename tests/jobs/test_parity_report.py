"""The parity report counts what it says it counts, and finds differences where there are some."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs.bench.generators import scene
from jobs.measurements import parity as parity_report
from jobs.measurements.parity import Subject, agreement, markdown, match, p0, p1, p3, p4
from pipeline.masks import rle
from pipeline.sam.generator_settings import GeneratorSettings
from pipeline.sam.sam2_backend import build_backend


@pytest.fixture(scope="module")
def subject():
    settings = GeneratorSettings(points_per_side=6, pred_iou_threshold=0.4, stability_score_threshold=0.5)
    return Subject("nano", build_backend("scenes-nano"), settings, [scene((96, 120)), scene((150, 90))])


def boxes(*corners):
    masks = np.zeros((len(corners), 20, 20), bool)
    for mask, (top, left, size) in zip(masks, corners, strict=True):
        mask[top : top + size, left : left + size] = True
    return rle.encode_many(masks)


def test_float32_is_the_stock_generator(subject):
    found = p0(subject)
    assert found["images"] == 2
    assert found["masks"] >= 10
    assert found["images with another number of masks"] == 0
    assert found["IoU at least 0.999, %"] >= 99
    assert found["largest difference of a logit"] < 1e-3
    assert found["largest difference of a predicted IoU"] < 1e-4
    assert found["images with the candidates in the same order"] == 2


def test_a_decoder_that_differs_is_seen(subject, monkeypatch):
    decode = type(subject.backend).decode_confident

    def worse(self, embedding, points_xy, labels, threshold):
        masks = decode(self, embedding, points_xy, labels, threshold)
        return replace(masks, logits=masks.logits - 1.5, predicted_iou=masks.predicted_iou.flip(0))

    monkeypatch.setattr(type(subject.backend), "decode_confident", worse)
    found = p0(subject)
    assert found["IoU at least 0.999, %"] < 99
    assert found["images with the candidates in the same order"] == 0


def test_half_precision_is_measured_against_float32_both_ways(subject):
    found = p1(subject)
    assert found["images"] == 2
    assert 0 < found["stock in bf16"]["recall at 0.9"] <= 100
    assert 0 < found["ours in bf16"]["recall at 0.9"] <= 100
    assert found["ours in bf16"] != found["stock in bf16"]
    assert subject.backend.precision == "fp32"


def test_pairs_are_one_to_one_and_the_best_first():
    ours, theirs = boxes((0, 0, 10), (0, 0, 9), (15, 15, 4)), boxes((0, 0, 10), (0, 10, 5))
    assert match(ours, theirs).tolist() == [1.0]
    assert match(ours, []).tolist() == []
    found = agreement([ours, []], [theirs, theirs])
    assert found["recall at 0.9"] == 25
    assert found["precision at 0.75"] == pytest.approx(100 / 3)
    assert found["mean IoU of pairs"] == 100
    assert found["mean difference of counts"] == 1.5


def test_codes_areas_and_boxes_are_checked(subject, monkeypatch):
    assert p3(subject)["masks"] >= 10
    assert p3(subject)["wrong"] == 0
    whole = parity_report.segment_everything
    monkeypatch.setattr(
        parity_report, "segment_everything", lambda *args: [replace(each, area=each.area + 1) for each in whole(*args)]
    )
    assert p3(subject)["wrong"] == p3(subject)["masks"]


def test_odd_images_are_told(subject, monkeypatch):
    monkeypatch.setattr(parity_report, "scene", lambda size_hw: np.zeros((40, 60, 3), np.uint8))
    few = replace(subject, settings=replace(subject.settings, points_per_side=2))
    found = p4(few)
    assert set(found) >= {"blank", "grey", "noise", "one row", "one column", "one pixel", "6000 x 4000"}
    assert all(each["sound"] for each in found.values() if isinstance(each, dict))
    assert found["peak memory, MB"] > 100


def test_the_command_writes_figures_and_tables(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(parity_report, "subjects", lambda photos, num: [replace(subject, images=subject.images[:1])])
    monkeypatch.setattr(parity_report, "p4", lambda one: {"blank": {"masks": 0}})
    monkeypatch.setattr(sys, "argv", ["parity_report", "--out", str(tmp_path / "deep/parity.json")])
    parity_report.main()
    results = json.loads((tmp_path / "deep/parity.json").read_text())
    assert results["P0"]["nano"]["images"] == 1
    assert results["threads"] == torch.get_num_threads()
    text = (tmp_path / "deep/parity.md").read_text()
    assert text == markdown(results)
    assert "IoU at least 0.999, %" in text
