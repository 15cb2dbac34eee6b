"""Finds the ids of erased videos in text, and puts their tombstones in their place.

An id is matched as a whole: not inside a longer run of the characters of ids, nor where that run is the id of
another video. A dot may follow or precede it, since ids stand in file names and at the ends of sentences;
`a1.npy` and `a1.` name the video `a1`, unless there is a video `a1.npy`.

An id may look like a word, such as `video` or `success`. Text is full of words, so such an id is replaced
only where something marks it as an id: a field that holds ids, a key of the store, a word such as `video_id`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.stages import Stage

if TYPE_CHECKING:
    import pyarrow as pa

_TOKENS = re.compile(
    r"(?:\x1b|\\+u001b)\[[0-9;]*m"  # a colour of the terminal
    r"|\\+(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[abfnrtv])"  # an escape, as JSON and Python write it
    r"|(?P<token>[A-Za-z0-9_.-]+)"
)
_WORD = re.compile(r"[_-]*[A-Za-z]?[a-z]*([_-]+[a-z]+)*_*|_*[A-Z]+(_[A-Z]+)*_*|([A-Z][a-z]{2,})+|\d{1,4}")

_FEW = 5
_IN_ONE_PATTERN = 500
"""Ids in one regular expression: RE2 slows down by much where its automaton becomes too large."""

_ID_FIELDS = {
    "added_partitions",
    "deleted_partitions",
    "end",
    "found",
    "key_ranges",
    "partition",
    "partition_key",
    "partition_keys",
    "partition_names",
    "partitions",
    "partitions_subset",
    "skipped_partitions",
    "start",
    "subset",
    "video_id",
    "video_ids",
    "dagster/asset_partition_range_end",
    "dagster/asset_partition_range_start",
    "dagster/partition",
}
"""Fields of JSON, columns of tables and tags that hold ids of videos and no other words."""

_MARKED = (
    r"(?<![A-Za-z0-9_.-])(?:video_ids?|partitions?(?: keys?)?)['\"]?[ :=]+[\['\"]*{id}(?![A-Za-z0-9_-])",
    r"(?:^|\n|\\n){id}(?=: (?:fail|missing_raw_object|invalid_raw_object|quarantined|not in the metadata): )",
    r"/{id}(?=(?:" + "|".join(re.escape(stage.raw_suffix) for stage in Stage) + r"|\.npy)(?![A-Za-z0-9_-]))",
)
"""Where a word is an id: ClipFarm's and Dagster's messages, the failures of a run, keys of the store."""


def is_word(video_id: str) -> bool:
    """Whether an id cannot be told from the words, names and small numbers that any text is made of."""
    return _WORD.fullmatch(video_id) is not None


class IdText:
    """The ids to find, and what takes their place.

    Args:
        tombstones: by `video_id`, the text that takes its place.
        others: the other videos' ids; what is theirs is never taken for one of the ids to find.
    """

    def __init__(self, tombstones: Mapping[str, str], others: Collection[str] = ()) -> None:
        self.tombstones = dict(tombstones)
        self._others = others if isinstance(others, (set, frozenset)) else set(others)
        self._longest = max(map(len, [*self.tombstones, *self._others]), default=0)
        words = [re.escape(video_id) for video_id in self.tombstones if is_word(video_id)]
        either = f"(?P<id>{'|'.join(sorted(words, key=len, reverse=True))})"
        self._marked = [re.compile(form.replace("{id}", either)) for form in _MARKED] if words else []

    def without(self, video_ids: Collection[str]) -> IdText:
        """The same less some ids to find, which are then those of other videos."""
        rest = {key: text for key, text in self.tombstones.items() if key not in video_ids}
        return IdText(rest, self._others | set(video_ids))

    def longer_than(self, video_id: str) -> list[str]:
        """The ids of other videos that have `video_id` inside them."""
        return sorted((other for other in self._others if video_id in other), key=len, reverse=True)

    @property
    def are_few(self) -> bool:
        """Whether a database finds them faster by itself, one after the other, than `held_in` does."""
        return len(self.tombstones) <= _FEW

    def held_in(self, texts: Sequence[str] | Sequence[bytes]) -> list[bool]:
        """Which of some texts have one of the ids anywhere, within another word too; fast for many ids."""
        import pyarrow as pa

        return [bool(held) for held in self.mask(pa.array(texts)).to_pylist()]

    def mask(self, texts: pa.Array) -> pa.BooleanArray:
        """As `held_in`, of a column of texts."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = pa.repeat(False, len(texts))
        escaped = [re.escape(video_id) for video_id in self.tombstones]
        for start in range(0, len(escaped), _IN_ONE_PATTERN):
            pattern = "|".join(escaped[start : start + _IN_ONE_PATTERN])
            found = pc.or_(found, pc.fill_null(pc.match_substring_regex(texts, pattern), False))
        return found

    def spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Where ids stand as wholes, words or not: start, end and id, from left to right."""
        for match in _TOKENS.finditer(text):
            token = match["token"]
            if token is not None:
                for offset, video_id in self._in_token(token):
                    start = match.start() + offset
                    yield start, start + len(video_id), video_id

    def replaced(self, text: str) -> str:
        """Free text with tombstones in place of ids."""
        for form in self._marked:
            text = form.sub(self._tombstone_in, text)
        return self._spliced(text, [span for span in self.spans(text) if not is_word(span[2])])

    def masked(self, text: str) -> str:
        """Text with tombstones in place of all ids, of those too that are words: to be shown."""
        return self._spliced(text, list(self.spans(text)))

    def replaced_value(self, text: str, field: str = "") -> str:
        """The value of a field with tombstones in place of ids: an id, JSON, or free text.

        JSON keeps its form, down to JSON in strings of JSON.
        """
        return self._value(text, _holds_ids(field))

    def _value(self, text: str, in_id_field: bool) -> str:
        if text in self.tombstones and (in_id_field or not is_word(text)):
            return self.tombstones[text]
        if text[:1] in ("{", "["):
            try:
                parsed = json.loads(text)
            except ValueError:
                return self.replaced(text)
            walked = self._walked(parsed, in_id_field)
            return text if walked == parsed else _dumped_like(text, parsed, walked)
        return self.replaced(text)

    def _walked(self, value: Any, in_id_field: bool) -> Any:
        if isinstance(value, dict):
            return {
                self.replaced(key): (
                    item
                    if key in ("__class__", "__enum__")
                    else self._walked(item, in_id_field or _holds_ids(key))
                )
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._walked(item, in_id_field) for item in value]
        return self._value(value, in_id_field) if isinstance(value, str) else value

    def _spliced(self, text: str, spans: Sequence[tuple[int, int, str]]) -> str:
        parts, at = [], 0
        for start, end, video_id in spans:
            parts += [text[at:start], self.tombstones[video_id]]
            at = end
        return "".join([*parts, text[at:]])

    def _in_token(self, token: str) -> Iterator[tuple[int, str]]:
        """Offset and id of each id in a run of the characters of ids; the longest known id counts."""
        if token in self.tombstones:
            yield 0, token
            return
        if "." not in token:
            return
        at = 0
        while at < len(token):
            found = self._longest_id(token, at)
            if found in self.tombstones:
                yield at, found
            dot = token.find(".", at + len(found))
            at = dot + 1 if dot >= 0 else len(token)

    def _longest_id(self, token: str, at: int) -> str:
        """The longest known id that begins at `at` and ends before a dot or with the token; may be empty."""
        limit = min(len(token), at + self._longest)
        ends = [len(token)] if limit == len(token) else []
        ends += [end for end in range(limit, at, -1) if token[end : end + 1] == "."]
        for end in ends:
            candidate = token[at:end]
            if candidate in self.tombstones or candidate in self._others:
                return candidate
        return ""

    def _tombstone_in(self, match: re.Match[str]) -> str:
        start, end = match.start("id") - match.start(), match.end("id") - match.start()
        return match[0][:start] + self.tombstones[match["id"]] + match[0][end:]


def _holds_ids(field: str) -> bool:
    return field in _ID_FIELDS or field.startswith("dagster/partition/")


def _dumped_like(text: str, parsed: Any, changed: Any) -> str:
    """`changed` as JSON, written as `text` is, which holds `parsed`."""
    for separators in ((", ", ": "), (",", ":")):
        for ascii_only in (True, False):
            if json.dumps(parsed, separators=separators, ensure_ascii=ascii_only) == text:
                return json.dumps(changed, separators=separators, ensure_ascii=ascii_only)
    return json.dumps(changed)
