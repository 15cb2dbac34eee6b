"""The three stages, described once; everything that differs by stage starts from here."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """A modality, and the step that embeds it."""

    VIDEO = "video"
    AUDIO = "audio"
    TEXT = "text"

    @property
    def raw_suffix(self) -> str:
        """File name suffix of the raw artifact that the stage reads, such as `.mp4`."""
        return _RAW_SUFFIX[self]


_RAW_SUFFIX = {Stage.VIDEO: ".mp4", Stage.AUDIO: ".wav", Stage.TEXT: ".json"}
