"""The truth about a corpus of texts and its generations: what has to be embedded, what serves, what is seen.

Plain Python that knows the rules and nothing of the product. Generations are named by their contract ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

MAX_ATTEMPTS = 2
Texts = tuple[str, ...]


@dataclass
class Video:
    """The truth about one video."""

    rows: list[tuple[int, Texts]] = field(default_factory=list)
    """Snapshots: minute of capture and texts."""
    raw: bytes | None = None
    upload: int = 0
    """Number of the upload, which stands for the ETag."""
    erased: bool = False

    @property
    def latest(self) -> tuple[int, Texts] | None:
        """The latest snapshot, the later line winning."""
        if self.erased or not self.rows:
            return None
        return max(enumerate(self.rows), key=lambda row: (row[1][0], row[0]))[1]

    @property
    def texts(self) -> Texts | None:
        return self.latest[1] if self.latest else None


@dataclass
class Item:
    """What a generation has of one video."""

    vector: tuple[Texts, bytes] | None = None
    """What the vector in the store is known to be made of."""
    source: tuple[Texts | None, int] | None = None
    """Texts and upload of the latest attempt that was recorded."""
    status: str = "new"
    """What the ledger calls that attempt: new, success, missing or failed."""
    at: int = 0
    """When that was, by the number of the pass."""
    tried: tuple[Texts | None, int] | None = None
    """Texts and upload of an attempt that failed, while the ledger tells of it."""
    failures: int = 0
    given_up: bool = False

    @property
    def unknown(self) -> bool:
        """Whether it is called done, and nobody knows of what the vector is made."""
        return self.status == "success" and self.vector is None

    def settle(self, status: str, source: tuple[Texts | None, int], at: int) -> None:
        self.status, self.source, self.at = status, source, at
        self.tried, self.failures, self.given_up = None, 0, False

    def fail(self, source: tuple[Texts | None, int], at: int, *, invalid: bool) -> None:
        again = self.tried == source
        self.failures = 0 if invalid else (self.failures if again else 0) + 1
        self.status, self.source, self.at, self.tried = "failed", source, at, source
        self.given_up = invalid or self.failures >= MAX_ATTEMPTS


class Truth:
    """Videos, generations, and which of these serves."""

    def __init__(self, video_ids: Collection[str], serving: str) -> None:
        self.videos = {video_id: Video() for video_id in video_ids}
        self.generations: dict[str, dict[str, Item]] = {}
        self.broken: set[tuple[str, str]] = set()
        """Generations and videos whose model fails."""
        self.serving = self.wanted = serving
        self.automatic = True
        self.before: str | None = None
        self.following: str | None = None
        self.settled = True
        self.rolled_back: str | None = None
        self.dropped: set[str] = set()
        self.passes = 0

    # what there is

    def items(self, generation: str) -> dict[str, Item]:
        """What a generation has of each video that was not erased."""
        known = self.generations.setdefault(generation, {})
        return {i: known.setdefault(i, Item()) for i, video in self.videos.items() if not video.erased}

    def seen(self, generation: str) -> dict[str, tuple[Texts, bytes]]:
        """What readers see of a generation that is complete: of which video, made of what."""
        return {
            video_id: item.vector
            for video_id, item in self.items(generation).items()
            if item.status == "success" and item.vector is not None
        }

    def incomplete(self, generation: str) -> bool:
        """Whether a manifest of a generation has to wait."""
        return any(item.unknown for item in self.items(generation).values())

    # what a pass over a generation has to do

    def expected(self, generation: str, video_id: str) -> str:
        """What has to be done about a video."""
        video, item = self.videos[video_id], self.items(generation).get(video_id)
        if item is None:
            return "erased"
        if video.texts is None:
            return "gone" if item.unknown else "nothing"
        if video.raw is None:
            stays = item.status == "success" and item.vector is not None and item.vector[0] == video.texts
            return "nothing" if stays else "missing"
        if item.vector == (video.texts, video.raw):
            return "stands"
        if item.tried == (video.texts, video.upload) and item.given_up:
            return "nothing"
        if b"transcript" not in video.raw:
            return "invalid"
        return "fails" if (generation, video_id) in self.broken else "embedded"

    def order(self, video_id: str) -> tuple[int, str]:
        """By which work is sorted: newest first."""
        latest = self.videos[video_id].latest
        assert latest is not None, f"{video_id} is not in the metadata"
        return -latest[0], video_id

    def did(self, generation: str, video_id: str, what: str) -> None:
        """What had to be done was done and recorded."""
        video, item = self.videos[video_id], self.items(generation)[video_id]
        source = (video.texts, video.upload)
        match what:
            case "gone":
                item.status = "missing"
            case "missing":
                item.settle("missing", source, self.passes)
            case "stands":
                if (item.status, item.source) != ("success", source):
                    item.settle("success", source, self.passes)
            case "fails" | "invalid":
                item.fail(source, self.passes, invalid=what == "invalid")
            case "embedded":
                assert video.texts is not None
                assert video.raw is not None
                item.vector = (video.texts, video.raw)
                item.settle("success", source, self.passes)

    # which generation serves

    def lacking(self, generation: str) -> Counter[str]:
        """What a generation has of the videos that the serving one calls done."""
        found: Counter[str] = Counter()
        others = self.items(generation)
        for video_id, served in self.items(self.serving).items():
            if served.status != "success":
                continue
            found["served"] += 1
            other, in_metadata = others[video_id], self.videos[video_id].texts is not None
            if other.status == "success" and other.vector is not None:
                found["done"] += 1
                found["outdated"] += in_metadata and other.source != served.source and other.at < served.at
            elif not in_metadata:
                found["orphaned"] += 1
            elif self._lost(other, served):
                found["lost"] += 1
            else:
                found["to do"] += 1
        return found

    @staticmethod
    def _lost(other: Item, served: Item) -> bool:
        """Whether nothing is going to come of a video in another generation."""
        if other.source is None or served.source is None:
            return False
        failed = other.status == "failed" and other.given_up and other.source == served.source
        return failed or (other.status == "missing" and other.source[0] == served.source[0])

    def may_serve(self, generation: str) -> bool:
        """Whether a generation lacks nothing that keeps it from serving."""
        found = self.lacking(generation)
        served = found["served"] - found["orphaned"]
        few = found["outdated"] <= served // 100 and found["lost"] <= max(3, served // 100)
        return bool(found["done"]) and not found["to do"] and few

    def serves_by_itself(self) -> bool:
        """Whether the wanted generation takes over when that is next looked at."""
        held = not self.automatic or self.rolled_back == self.wanted
        return self.wanted != self.serving and not held and self.may_serve(self.wanted)

    def way_back(self) -> str | None:
        """The generation to which a person can go back; again and again to the same one."""
        if self.following is not None:
            return self.following if self.rolled_back == self.serving else self.serving
        if self.rolled_back is not None and (not self.settled or self.rolled_back == self.before):
            return self.serving
        return self.before

    def has_success(self, generation: str) -> bool:
        """Whether it has anything that could serve."""
        return any(item.status == "success" for item in self.items(generation).values())

    def begin(self, generation: str, *, going_back: bool = False) -> None:
        """A cut-over begins, or one that is under way is undone."""
        if generation == self.serving:
            if going_back and self.following is not None:
                self.rolled_back, self.following, self.settled = self.following, None, False
            return
        self.following = generation
        self.rolled_back = self.serving if going_back else None

    def switch(self) -> None:
        """The moment of a cut-over."""
        if self.following is not None:
            self.before, self.serving, self.following = self.serving, self.following, None
            self.settled = False

    def droppable(self, generation: str) -> bool:
        """Whether a generation may be removed."""
        at_rest = self.following is None and self.settled
        return at_rest and generation not in (self.serving, self.wanted)

    def drop(self, generation: str) -> None:
        """A generation is removed."""
        self.generations.pop(generation, None)
        self.before = None if self.before == generation else self.before
        self.rolled_back = None if self.rolled_back == generation else self.rolled_back
        self.dropped.add(generation)
