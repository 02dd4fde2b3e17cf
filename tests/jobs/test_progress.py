"""Progress: lines now and then off a terminal, one bar on it, rate and time left by the clock."""

import io

import pytest

from jobs.progress import Progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def test_lines_come_every_few_seconds_and_at_the_end(clock):
    stream = io.StringIO()
    with Progress("proposals", 10, stream=stream, clock=clock) as progress:
        for _ in range(10):
            clock.now += 1.0
            progress.advance()
    assert stream.getvalue().splitlines() == [
        "proposals: 5 of 10 images, 1 images/s, 0:05 left",
        "proposals: 10 of 10 images, 1 images/s, 0:10 in all",
    ]


def test_a_terminal_has_one_line_that_is_drawn_over(clock):
    stream = Terminal()
    with Progress("train", 4, unit="steps", stream=stream, clock=clock) as progress:
        clock.now += 2.0
        progress.advance(2, note="loss 1.5")
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert "\r\x1b[K[############------------] train: 2 of 4 steps, 1 steps/s, 0:02 left, loss 1.5" in text


def test_long_times_have_hours(clock):
    progress = Progress("x", 1001, stream=io.StringIO(), clock=clock)
    clock.now += 36.61
    progress.advance(10)
    assert progress.text().endswith("1:00:28 left")  # 991 images at 10 / 36.61 s


def test_nothing_done_yet_has_no_estimate(clock):
    assert Progress("x", 5, stream=io.StringIO(), clock=clock).text() == "x: 0 of 5 images, 0 images/s"


def test_the_last_state_is_shown_when_it_breaks(clock):
    stream = io.StringIO()

    def break_off():
        with Progress("x", 5, stream=stream, clock=clock) as progress:
            clock.now += 1.0
            progress.advance(2)
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert stream.getvalue() == "x: 2 of 5 images, 2 images/s, 0:02 left\n"
