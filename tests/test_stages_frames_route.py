"""Which packets are left out on the way to the wanted frames, on keyframe lists written by hand."""

from array import array

from stages.frames.route import END, Route
from stages.frames.timeline import Keyframes

GROUPS_OF_TEN = Keyframes(
    pts=array("q", range(0, 100, 10)),
    dts=array("q", range(0, 100, 10)),
    ordinals=array("q", range(0, 100, 10)),
)


def decoded(wanted: list[int], *, threads: int = 1, sent: tuple[int, ...] = ()) -> list[int]:
    """The packets of a video of 100 frames, in order, that are decoded."""
    route = Route(array("q", wanted), GROUPS_OF_TEN, sent=sent, threads=threads)
    found, at = [], len(sent)
    while at < 100:
        leap = route.leap(at)
        if leap == END:
            break
        if leap is not None:
            at = GROUPS_OF_TEN.ordinals[leap]
        route.needs(at)
        found.append(at)
        at += 1
    return found


def test_groups_without_a_wanted_frame_are_left_out() -> None:
    assert decoded([2, 51]) == [0, 1, 2, 50, 51]


def test_packets_after_the_last_wanted_frame_of_a_group_are_left_out() -> None:
    assert decoded([0, 5, 13]) == [*range(6), *range(10, 14)]


def test_nothing_is_decoded_after_the_last_wanted_frame() -> None:
    assert decoded([7])[-1] == 7
    assert decoded([]) == []


def test_a_leap_too_short_to_pay_is_not_made() -> None:
    assert decoded([7, 12], threads=2) == [*range(8), *range(10, 13)]
    assert decoded([7, 12], threads=3) == list(range(13))


def test_what_was_decoded_already_counts() -> None:
    assert decoded([1, 20], sent=(0, 1, 2)) == [20]


def test_only_wanted_frames_are_needed() -> None:
    route = Route(array("q", [3, 4]), GROUPS_OF_TEN)
    assert [ticks for ticks in range(10) if route.needs(ticks)] == [3, 4]


def test_without_trusted_keyframes_everything_is_decoded() -> None:
    route = Route(array("q", [90]), None)
    assert [route.leap(at) for at in range(100)] == [None] * 100
    walking = Route(array("q", [90]), GROUPS_OF_TEN)
    walking.walk()
    assert walking.leap(0) is None
