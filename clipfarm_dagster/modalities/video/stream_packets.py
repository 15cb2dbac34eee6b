"""All packets of a clip's video stream, and what they tell without decoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipfarm_dagster.modalities.video.bitstream import (
    CODECS_READ,
    RESTARTS_ALONE,
    PacketRole,
    UnclearBitstreamError,
    packet_roles,
)
from clipfarm_dagster.modalities.video.clip_file import ClipFile
from clipfarm_dagster.modalities.video.decode_plan import DecodePlan, plan_decode, presentation_times
from clipfarm_dagster.modalities.video.picture_order import check_headers

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class StreamPackets:
    """All packets of a stream; iteration ends as demuxing did."""

    clip: ClipFile
    read: list[av.Packet[av.VideoStream]]
    error: av.error.FFmpegError | None

    @classmethod
    def of(cls, clip: ClipFile) -> StreamPackets:
        """Read them.

        Raises:
            InvalidRawObjectError: a packet is encrypted.
            MemoryError: memory ran out.
        """
        import av

        read: list[av.Packet[av.VideoStream]] = []
        try:
            read.extend(clip.packets())
        except MemoryError:
            raise
        except av.error.FFmpegError as error:
            return cls(clip, read, error)
        return cls(clip, read, None)

    def __iter__(self) -> Iterator[av.Packet[av.VideoStream]]:
        yield from self.read
        if self.error is not None:
            raise self.error

    @property
    def shown(self) -> list[bool]:
        """Of each packet, whether no edit list hides its frame."""
        return [not packet.is_discard for packet in self.read]

    def times(self, total: int) -> list[int] | None:
        """The frames' timestamps in order, where they tell which of `total` frames is which."""
        clip = self.clip
        if clip.decoder.name not in CODECS_READ or clip.container.format.name == "avi":
            return None  # other decoders may give a frame another packet's; AVI's are those of decoding
        return presentation_times([packet.pts for packet in self.read], self.shown, total)

    def plan(self, total: int, wanted: tuple[int, ...]) -> DecodePlan | None:
        """How to decode the wanted frames alone; None where only decoding all packets in order is certain."""
        decoder = self.clip.decoder
        if self.error is not None or total == len(wanted):
            return None
        if decoder.name in RESTARTS_ALONE and sum(1 for packet in self.read if packet.is_keyframe) < 2:
            return None
        if any(packet.is_corrupt or _changes_decoder(packet) for packet in self.read):
            return None
        times = [packet.pts for packet in self.read]
        try:
            roles = self._roles()
            plan = plan_decode(
                times, self.shown, roles, total=total, wanted=wanted, reorder_depth=decoder.reorder_depth
            )
            if plan is not None:
                known = [time or 0 for time in times]  # a plan has them all
                check_headers(decoder.name, decoder.extradata or b"", self._contents(), roles, known)
        except UnclearBitstreamError:
            return None
        return plan

    def needed_by_none(self) -> set[int | None]:
        """Timestamps of packets that no other depends on, as far as can be told."""
        try:
            roles = self._roles()
        except UnclearBitstreamError:
            return set()
        return {packet.pts for packet, role in zip(self.read, roles, strict=True) if not role.reference}

    def _roles(self) -> list[PacketRole]:
        decoder = self.clip.decoder
        return packet_roles(decoder.name, decoder.extradata or b"", self._contents())

    def _contents(self) -> list[memoryview]:
        return [memoryview(packet) for packet in self.read]


def _changes_decoder(packet: av.Packet[av.VideoStream]) -> bool:
    return packet.has_sidedata("new_extradata") or packet.has_sidedata("param_change")
