"""Progress where stderr is no terminal: lines in the log of a CI or of nohup."""

import pytest

from toolkit.cli.progress import ProgressLines, duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def printed(clock: Clock, unit: str, calls: list[tuple[float, int, int]]) -> list[str]:
    """The lines for calls of (seconds, done, total)."""
    lines: list[str] = []
    progress = ProgressLines("build", unit, lines.append, clock)
    for clock.now, done, total in calls:
        progress(done, total)
    return lines


def test_a_line_at_each_rank_and_every_30_seconds_between(clock):
    calls = [(0, 0, 8), (1, 0, 8), (29, 0, 8), (31, 0, 8), (32, 0, 8), (45, 2, 8), (50, 2, 8), (300, 8, 8)]
    assert printed(clock, "ranks", calls) == [
        "build: 0 of 8 ranks, 31 s",
        "build: 2 of 8 ranks, 45 s, about 2 min left",
        "build: 8 of 8 ranks, 5 min",
    ]


def test_ranks_that_were_there_say_nothing_of_the_speed(clock):
    assert printed(clock, "ranks", [(0, 5, 8), (60, 6, 8)]) == ["build: 6 of 8 ranks, 60 s, about 2 min left"]


def test_what_is_not_ranks_says_a_line_every_30_seconds(clock):
    calls = [(second, second * 10**9, 90 * 10**9) for second in range(62)]
    assert printed(clock, "B", calls) == [
        "build: 30.0 of 90.0 GB, 30 s, about 60 s left",
        "build: 60.0 of 90.0 GB, 60 s, about 30 s left",
    ]


def test_short_work_says_nothing(clock):
    assert printed(clock, "ranks", [(0, 0, 2), (0.5, 1, 2), (1.9, 2, 2)]) == []


def test_another_part_of_the_work_is_estimated_by_itself(clock):
    calls = [(0, 1, 2), (20, 2, 2), (20, 0, 2), (40, 1, 2)]
    assert printed(clock, "ranks", calls) == ["build: 2 of 2 ranks, 20 s", "build: 1 of 2 ranks, 20 s, about 20 s left"]


def test_durations():
    assert [duration(seconds) for seconds in (12, 89, 150, 720, 5400)] == ["12 s", "89 s", "2 min", "12 min", "1.5 h"]
