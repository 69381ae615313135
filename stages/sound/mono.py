"""Mixes sound of one format down to one channel and resamples it, block by block.

Two channels become their mean, after resampling. More channels first go to stereo by FFmpeg's
matrix, with gains that sum to 1 for each side: FFmpeg's own downmix of floats is 2.4 times as loud
and clips. Channels without known places become their mean.
"""

from collections.abc import Iterator
from fractions import Fraction
from math import gcd

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler
from av.filter import Graph
from numpy.typing import NDArray

Samples = NDArray[np.float32]
"""[samples, channels] of a file, or [samples] of the mix; full scale is 1."""
Block = tuple[int, Samples]
"""Number of its first sample from time 0 on, and the samples."""
MONO = "mono"
BLOCK = 1 << 15
"""Samples that are mixed at a time."""


class MonoResampler:
    """Turns sound of one format into mono samples of another rate.

    It starts where a sample of both rates begins, at or before the requested time.
    """

    def __init__(self, like: AudioFrame, rate: int, start: Fraction) -> None:
        """Take frames like this one. `rate` is that of the output, and `start` is in seconds since
        time 0. Raises FFmpegError."""
        self._format, self._channels = _format_of(like), like.layout.nb_channels
        self._packed = AudioResampler(format="flt")
        self._waiting: list[Samples] = []
        self.rate = like.sample_rate
        common = gcd(self.rate, rate)
        self._step, self._out_step = self.rate // common, rate // common
        """So many samples of the source last as long as so many of the output."""
        steps = int(start * self.rate) // self._step
        self.at = steps * self._step
        """Number of the next sample of the source, from time 0."""
        self._made = steps * self._out_step
        """Number of the next sample of the output, from time 0."""
        self._layout, self._graph = _mixer(like.layout, (self.rate, rate))

    def fits(self, frame: AudioFrame) -> bool:
        """Return whether a frame has the same format."""
        return self._format == _format_of(frame)

    def push(self, frame: AudioFrame, skip: int = 0) -> Iterator[Block]:
        """Take the next frame, without its first `skip` samples, and yield what is ready."""
        frame.pts = None
        # Packed: PyAV reads beyond the planes of a frame with eight of them.
        for packed in self._packed.resample(frame):
            samples = np.asarray(packed.to_ndarray(), np.float32).reshape(-1, self._channels)
            yield from self._push(samples[skip:])

    def _push(self, samples: Samples) -> Iterator[Block]:
        self.at += len(samples)
        self._waiting.append(samples)
        # A call for each frame of 20 ms would take most of the time.
        if sum(map(len, self._waiting)) >= BLOCK:
            yield from self._mixed()

    def _mixed(self) -> Iterator[Block]:
        """Mix and resample what waits for it."""
        if not self._waiting:
            return
        samples = np.concatenate(self._waiting)
        self._waiting.clear()
        if self._layout == MONO:
            samples = samples.mean(axis=1)
        frame = AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=self._layout)
        frame.sample_rate = self.rate
        self._graph.push(frame)
        yield from self._ready()

    def silence(self, count: int) -> Iterator[Block]:
        """Take so many zeros. In the midst of a long silence the output is known."""
        steps = max(0, count - 2 * self.rate) // self._step
        if steps:
            yield from self._zeros(self.rate)
            yield from self._mixed()
            self.at += steps * self._step
            left = steps * self._out_step
            while left:
                yield self._next(np.zeros(min(left, BLOCK), np.float32))
                left -= min(left, BLOCK)
            count -= self.rate + steps * self._step
        yield from self._zeros(count)

    def end(self) -> Iterator[Block]:
        """Yield what the filter still holds."""
        yield from self._mixed()
        self._graph.push(None)
        yield from self._ready()

    def _zeros(self, count: int) -> Iterator[Block]:
        while count > 0:
            yield from self._push(np.zeros((min(count, BLOCK), self._channels), np.float32))
            count -= BLOCK

    def _ready(self) -> Iterator[Block]:
        while True:
            try:
                frame = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(frame, AudioFrame)
            found = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
            yield self._next(found.mean(axis=1))

    def _next(self, samples: Samples) -> Block:
        first = self._made
        self._made += len(samples)
        return first, samples


def _format_of(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _mixer(layout: AudioLayout, rates: tuple[int, int]) -> tuple[str, Graph]:
    """Return the layout that a filter graph takes, and the graph. `rates` are those of the source
    and the output. Raises FFmpegError."""
    name, channels = layout.name, layout.nb_channels
    if channels > 1:
        try:
            return name, _graph(name, name if channels == 2 else "stereo", rates)
        except (ValueError, av.error.FFmpegError) as error:
            if isinstance(error, MemoryError):
                raise
    return MONO, _graph(MONO, MONO, rates)


def _graph(layout: str, mixed: str, rates: tuple[int, int]) -> Graph:
    """Return a filter graph that changes layout and rate. Raises ValueError or FFmpegError for an
    unknown layout."""
    graph, (source, out) = Graph(), rates
    graph.threads = 1
    clock = Fraction(1, source)
    graph.link_nodes(
        graph.add_abuffer(sample_rate=source, format="flt", layout=layout, time_base=clock),
        graph.add("aresample", f"{out}:rematrix_maxval=1.0"),
        graph.add("aformat", f"sample_fmts=flt:channel_layouts={mixed}"),
        graph.add("abuffersink"),
    ).configure()
    return graph
