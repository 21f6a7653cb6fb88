"""The first feeds of a source, read ahead to see whether their rows are samples or each feed is one."""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace

import numpy as np

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.arrays import Block
from snp_onnx.sources.batch_axis import MOST_ROWS, Finding, Runnable, by_others, by_subset
from snp_onnx.sources.batching import Chunk, Feed, Part, group
from snp_onnx.sources.feeds import collect, settle
from snp_onnx.sources.forms import Feeds, RawFeed, Source
from snp_onnx.sources.inputs import fixed_batch, repeats_batch_symbol
from snp_onnx.sources.matching import Match, Matcher
from snp_onnx.sources.reading import Reader
from snp_onnx.sources.spool import Spool

_FIRST_ROWS = 64
"""The rows are spread over this many first ones of a feed: neighbours may be alike."""

_MOST_FEEDS = 8
"""Feeds that are read ahead at most, where they have one row each."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """The first feeds, matched; `source` still gives them."""

    source: Source
    feeds: tuple[RawFeed, ...]
    matches: tuple[Mapping[str, Match], ...]


def look_ahead(source: Source, matcher: Matcher, samples: int | None) -> Ahead:
    """Read feeds until there are rows enough to experiment with, and none beyond the samples asked for."""
    fixed = fixed_batch(matcher.specs)
    wanted = 2 * fixed if fixed else MOST_ROWS
    wanted = wanted if samples is None else min(wanted, samples)
    feeds: list[RawFeed] = []
    matches: list[Mapping[str, Match]] = []
    for raw in source.feeds:
        feeds.append(raw)
        try:
            matches.append(matcher.match(raw.arrays, raw.origin))
        except CalibrationError:  # said when its turn comes
            break
        if sum(min(_lengths(found)) for found in matches) >= wanted or len(feeds) == max(_MOST_FEEDS, wanted):
            break
    return Ahead(replace(source, feeds=_rejoined(deque(feeds), source.feeds)), tuple(feeds), tuple(matches))


def _rejoined(first: deque[RawFeed], rest: Feeds) -> Feeds:
    with closing(rest):
        while first:
            yield first.popleft()
        yield from rest


def _lengths(matches: Mapping[str, Match]) -> set[int]:
    return {match.shape[0] for match in matches.values()}


def try_rows(ahead: Ahead, matcher: Matcher, model: Runnable, samples: int | None) -> Finding:
    """Whether axis 0 is a batch axis, by experiment, or by names of axes where that tells nothing."""
    if not ahead.matches:
        return Finding()
    with closing(Spool()) as spool:
        found = Finding()
        if any(len(_lengths(matches)) > 1 for matches in ahead.matches):
            if not _have_one_name(matcher):
                found = Finding("the inputs differ in length", is_refusal=True)
        else:
            with suppress(CalibrationError):  # what is wrong with the data is said when they are read
                found = _experiment(ahead.matches, matcher, model, samples, spool)
        if found.is_refusal and not _runs_whole(ahead, matcher, model, spool):
            found = Finding()
    if found.why is None and not found.axes and _has_one_symbol(ahead.matches, matcher):
        return Finding("its name is that of another axis too")
    return found if found.why is None else _at_length(found, ahead, fixed_batch(matcher.specs))


def _at_length(found: Finding, ahead: Ahead, fixed: int | None) -> Finding:
    """Feeds of the length that the model fixes are taken as they are, longer ones in blocks, shorter ones as rows."""
    lengths = {length for matches in ahead.matches for length in _lengths(matches)}
    if fixed is None or lengths == {fixed}:
        return found
    return replace(found, in_blocks=True) if min(lengths) >= fixed else Finding()


def collect_as(
    finding: Finding, source: Source, matcher: Matcher, samples: int | None, spool: Spool
) -> tuple[list[Feed], list[str]]:
    """The feeds of the first `samples` samples: rows, or whole feeds where axis 0 turned out to be no batch axis.

    Where the model fixes the length of axis 0, longer feeds are cut into blocks of that length.
    """
    fixed = fixed_batch(matcher.specs)
    if finding.why is None:
        return collect(source, matcher, samples, spool)
    if fixed is None or not finding.in_blocks:
        return collect(source, replace(matcher, batched=False), samples, spool)
    feeds, notes = collect(source, matcher, None if samples is None else samples * fixed, spool)
    return _in_blocks(feeds, fixed), notes


def _in_blocks(feeds: Sequence[Feed], length: int) -> list[Feed]:
    """Each feed cut into blocks of that many rows, each a whole sample; what is left over is dropped."""
    blocks = list[Feed]()
    for feed in feeds:
        for start in range(0, feed.count - length + 1, length):
            rows = np.arange(start, start + length)
            places = {name: replace(place, array=Block(place.array, rows)) for name, place in feed.places.items()}
            blocks.append(Feed(len(blocks), 1, True, places, None))
    return blocks


def _has_one_symbol(several: Sequence[Mapping[str, Match]], matcher: Matcher) -> bool:
    shapes = [{name: match.shape for name, match in matches.items()} for matches in several]
    return all(repeats_batch_symbol(matcher.specs, sizes) for sizes in shapes)


def _have_one_name(matcher: Matcher) -> bool:
    """Whether the model says that all inputs have the same number of rows."""
    names = {spec.symbols[0] for spec in matcher.specs if spec.symbols}
    return len(names) == 1 and "" not in names


def _experiment(
    several: Sequence[Mapping[str, Match]], matcher: Matcher, model: Runnable, samples: int | None, spool: Spool
) -> Finding:
    fixed, reader = fixed_batch(matcher.specs), Reader(matcher.specs, matcher.preprocess)
    feeds, start = list[Feed](), 0
    for matches in several:
        count = min(_lengths(matches).pop(), 2 * fixed if fixed else _FIRST_ROWS)
        count = count if samples is None else min(count, samples - start)
        feeds.append(settle(matches, None, Feed(start, count, False, {}, None), spool))
        start += count
    if fixed is not None:
        batches = [reader.read(batch) for batch in group(feeds, Part.ALL, fixed, keep_partial=False)]
        if not batches:
            return Finding()
        others = batches[1] if len(batches) > 1 else {name: values[::-1] for name, values in batches[0].items()}
        alike = all(others[name].shape == values.shape for name, values in batches[0].items())
        return by_others(model, batches[0], others) if alike else Finding()
    batch = max(group(feeds, Part.ALL, _FIRST_ROWS, keep_partial=True), key=_count, default=[])
    single = [Chunk(chunk.feed, np.array([row])) for chunk in batch for row in chunk.rows]
    if len(single) < 2:
        return Finding()
    places = np.linspace(0, len(single) - 1, min(model.most_rows, len(single))).astype(np.int64)
    return by_subset(model, reader.read([single[place] for place in places]))


def _count(batch: Sequence[Chunk]) -> int:
    return sum(len(chunk.rows) for chunk in batch)


def _runs_whole(ahead: Ahead, matcher: Matcher, model: Runnable, spool: Spool) -> bool:
    """Whether the runtime takes the first feed as it is."""
    raw, unbatched = ahead.feeds[0], replace(matcher, batched=False)
    try:
        matches = unbatched.match(raw.arrays, raw.origin)
        feed = settle(matches, None, Feed(0, 1, True, {}, None), spool)
        values = Reader(matcher.specs, matcher.preprocess).read([Chunk(feed, np.arange(1))])
    except CalibrationError:
        return False
    return model.attempt(values) is not None
