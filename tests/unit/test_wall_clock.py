"""When a clock was set."""

from headrace.shard.wall_clock import WallClock


def test_jumps_are_counted_and_slewing_is_not() -> None:
    """Each jump of a second or more counts once, by its direction; what an NTP client does does not."""
    wall, monotonic = [1000.0], [5.0]
    clock = WallClock(lambda: wall[0], lambda: monotonic[0])
    for moved_s in (0.25, 0.25 + 0.9, 0.25 - 0.9, 0.25 - 2.0, 0.25, 3600.0, 0.25):
        wall[0] += moved_s
        monotonic[0] += 0.25
        clock.look()
    assert clock.jumps.counts == {"back": 1, "forward": 1}
