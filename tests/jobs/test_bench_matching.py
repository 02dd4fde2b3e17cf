"""The benches of the library in small: both ways give the same, call after call."""

from jobs.bench.matching import library_read, match_1x200_1080p
from jobs.bench.run import compare


def test_matching_accepts_what_the_other_ways_accept(tmp_path):
    cases = match_1x200_1080p(tmp_path, size_hw=(90, 160), num=60)
    assert {case.sizes["rule"] for case in cases} == {"IOM", "CPI-U"}
    assert len({case.other_name for case in cases}) == 2
    accepted = 0
    for case in cases:
        for _ in range(24 * case.calls):
            mine = case.ours()
            case.check(mine, case.other())
            accepted += len(mine)
    assert accepted > 20


def test_an_image_read_is_the_image_filtered(tmp_path):
    (case,) = library_read(tmp_path, num_images=12)
    for _ in range(12):
        case.check(case.ours(), case.other())
    assert case.sizes["images"] == 12
    timing = compare(case, rounds=1)
    assert min(*timing.ours, *timing.other) > 0
