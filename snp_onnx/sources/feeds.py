"""Raw feeds, once matched and counted, become feeds that can be read again and again."""

from collections.abc import Mapping

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.arrays import RowArray, Stored
from snp_onnx.sources.batching import Feed, Place
from snp_onnx.sources.forms import RawFeed, Source
from snp_onnx.sources.matching import Match, Matcher, View, listing, remarks
from snp_onnx.sources.spool import Spool


def collect(source: Source, matcher: Matcher, samples: int | None, spool: Spool) -> tuple[list[Feed], list[str]]:
    """The feeds of the first `samples` samples, and remarks; reads no feed beyond."""
    feeds: list[Feed] = []
    notes: dict[str, None] = {}
    start = 0
    for raw in source.feeds:
        matches = matcher.match(raw.arrays, raw.origin)
        count = _row_count(matches, raw.origin) if matcher.batched else 1
        labels = None if source.labels is not None else _labels(raw, matcher, matches, count)
        kept = count if samples is None else min(count, samples - start)
        if kept:
            feeds.append(settle(matches, labels, Feed(start, kept, not matcher.batched, {}, None), spool))
            start += kept
        for spec in matcher.specs if not source.is_random else ():
            notes.update(dict.fromkeys(remarks(matches[spec.name], spec, matcher.preprocess)))
        if start == samples:
            break
    return feeds, list(notes)


def settle(matches: Mapping[str, Match], labels: Match | None, bare: Feed, spool: Spool) -> Feed:
    """The feed `bare` with its arrays, of which only the rows it needs are spooled."""

    def place(match: Match) -> Place:
        rows = None if bare.whole or match.view.adds_batch else bare.count
        return Place(match.name, match.array.keep(spool, rows), match.view)

    places = {name: place(match) for name, match in matches.items()}
    return Feed(bare.start, bare.count, bare.whole, places, None if labels is None else place(labels))


def _row_count(matches: Mapping[str, Match], origin: str) -> int:
    counts = {match.shape[0] for match in matches.values()}
    if len(counts) > 1:
        found = ", ".join(f"{match.name!r} {match.array.shape}" for match in matches.values())
        raise CalibrationError(f"the arrays of {origin} differ in their number of samples: {found}; give each the same")
    return counts.pop()


def _labels(raw: RawFeed, matcher: Matcher, matches: Mapping[str, Match], count: int) -> Match | None:
    name = matcher.preprocess.label_array
    if name is None:
        return None
    if name not in raw.arrays:
        raise CalibrationError(
            f"{raw.origin} has no label array {name!r}; it has {listing(raw.arrays)}; correct --label-array"
        )
    array: RowArray = raw.arrays[name]
    if array.dtype.hasobject:
        raise CalibrationError(
            f"label array {name!r} of shape {array.shape} in {raw.origin} holds Python objects; save numbers"
        )
    is_one = not matcher.batched or any(match.view.adds_batch for match in matches.values())
    view = View(adds_batch=array.shape == () or (is_one and array.shape[:1] != (1,)))
    match = Match(name, array, view)
    if match.shape[0] != count:
        raise CalibrationError(
            f"label array {name!r} of shape {array.shape} in {raw.origin} is not one label for each of "
            f"{count} samples; give as many labels as samples"
        )
    return match


def check_beside(labels: Stored, count: int, is_all: bool) -> None:
    """Labels in a file of their own must be as many as the samples, or no fewer where only the first ones were read."""
    rows = labels.shape[0] if labels.shape else 0
    if labels.dtype.hasobject or rows < count or (is_all and rows > count):
        raise CalibrationError(
            f"label file {labels.path} of shape {labels.shape} and type {labels.dtype} has not one label for each of "
            f"{count} samples; give as many labels as samples"
        )
