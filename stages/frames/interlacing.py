"""Makes whole frames of interlaced ones, by FFmpeg's filter bwdif.

An interlaced frame holds two fields, of its even and its odd lines, that were taken one after the
other. What moves looks combed. The filter keeps one field and predicts the other from the frames
before and after, so a graph of its own for three frames returns the bytes of one over all frames.
"""

from fractions import Fraction

import av
from av.filter import Graph
from av.video.frame import VideoFrame

UNKNOWN_CLOCK = Fraction(1, 25)
"""Seconds per tick for a graph, where the frame does not say; it changes no pixel."""


def deinterlaced(
    frame: VideoFrame, before: VideoFrame | None = None, after: VideoFrame | None = None
) -> VideoFrame:
    """Return a frame that is marked as interlaced without combs, from the frames next to it; itself
    if it is not marked, or too small for the filter. None: there is no such frame."""
    if not frame.interlaced_frame:
        return frame
    before, after = (each if each and _alike(each, frame) else None for each in (before, after))
    if before is None and after is None:
        after = frame  # at the end, the filter would take the other field as it is
    # The filter predicts its first marked frame from that frame alone. An unmarked one does not
    # count, so then the frame itself goes ahead.
    ahead = [frame] if before and not before.interlaced_frame else []
    fed = [*ahead, *filter(None, (before, frame, after))]
    graph, clock = Graph(), frame.time_base or UNKNOWN_CLOCK
    graph.threads = 1
    try:
        nodes = (
            graph.add(
                "buffer",
                video_size=f"{frame.width}x{frame.height}",
                pix_fmt=frame.format.name,
                time_base=str(clock),
                colorspace=str(int(frame.colorspace)),
                range=str(int(frame.color_range)),
            ),
            graph.add("bwdif", "mode=send_frame:deint=interlaced"),
            graph.add("buffersink"),
        )
        graph.link_nodes(*nodes).configure()
        for each in fed:
            graph.push(each)
        if after is None:
            graph.push(None)
        for _ in range(len(fed) - (after is not None)):
            whole = graph.vpull()
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        return frame
    whole.pts, whole.time_base = frame.pts, clock
    return whole


def _alike(one: VideoFrame, other: VideoFrame) -> bool:
    """Return whether a graph takes both frames."""
    return (one.width, one.height, one.format.name) == (
        other.width,
        other.height,
        other.format.name,
    )
