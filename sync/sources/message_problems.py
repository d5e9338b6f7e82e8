"""What a scan of message streams found amiss, in sentences for people."""

from collections.abc import Iterator, Sequence

from sensorium.sync.sources.message_stream import MessageChannel
from sensorium.sync.sources.ros_definitions import is_library_here
from sensorium.sync.sources.source import Problem
from sensorium.sync.sources.stamp_units import arrival_unit, calendar_unit


def message_problems(channels: Sequence[MessageChannel]) -> Iterator[Problem]:
    """Yield what is amiss with the channels of a recording."""
    if not any(channel.count for channel in channels):
        yield Problem("empty", "", 0, f"no messages ({len(channels)} topics)")
        return
    yield from _arrival_problems([channel for channel in channels if channel.count])
    for channel in channels:
        if not channel.count:
            text = f"{channel.topic} is declared but holds no message"
            yield Problem("empty_stream", channel.name, 0, text)
            continue
        yield from _type_problems(channel)
        yield from _stamp_problems(channel)


def _arrival_problems(channels: Sequence[MessageChannel]) -> Iterator[Problem]:
    """Yield that arrivals are of a wrong unit, where no header's stamps tell so."""
    if any(channel.unit is not None for channel in channels):
        return
    busiest = max(channels, key=lambda channel: len(channel.arrivals_ns))
    unit = arrival_unit(busiest.arrivals_ns)
    if unit is not None:
        text = (
            f"times of arrival lie in 1970, {max(busiest.arrivals_ns)} ns at most, and look like {unit.name} (factor "
            f"{unit.num}); they are played as they are, so rates and dates mean nothing: convert the recording anew"
        )
        yield Problem("wrong_unit", "", sum(channel.count for channel in channels), text)


def _type_problems(channel: MessageChannel) -> Iterator[Problem]:
    schema = channel.schema
    if schema.name and not schema.data and not schema.encoding:
        remedy = (
            "" if is_library_here() else "; pip install 'sensorium[ros]' knows those of the common packages"
        )
        text = (
            f"{channel.topic}: {channel.count} messages of {schema.name}, whose definition the recording lacks, "
            f"pass as bytes that no viewer can decode{remedy}"
        )
        yield Problem("unknown_type", channel.name, channel.count, text)
    elif "definition" in channel.details:
        text = (
            f"{channel.topic}: the recording lacks the definition of {schema.name}; "
            f"that of {channel.details['definition']} is filled in"
        )
        yield Problem("filled_definition", channel.name, channel.count, text)
    if 2 * channel.packed > channel.count:
        text = (
            f"{channel.topic}: {channel.packed} of {channel.count} messages begin like packed data (zstd, LZ4, gzip or "
            f"bzip2), not like {schema.message_encoding or 'what they are'}; they pass as they are, and no viewer "
            f"decodes them before they are unpacked"
        )
        yield Problem("bad_message", channel.name, channel.packed, text)


def _stamp_problems(channel: MessageChannel) -> Iterator[Problem]:
    found = channel.header
    if not channel.is_headed:
        return
    topic, count = channel.topic, channel.count
    remedy = "their arrival stands for them" if found.are_a_clock else "arrival is the only time"
    if found.unset == found.count:
        text = f"{topic}: no header stamp was ever set; arrival is the only time"
        yield Problem("unset_stamps", channel.name, found.unset, text)
    elif found.unset:
        text = f"{topic}: {found.unset} of {count} header stamps were not set (0); {remedy}"
        yield Problem("unset_stamps", channel.name, found.unset, text)
    if found.bad:
        text = f"{topic}: {found.bad} of {count} header stamps are no time (a billion nanoseconds or more); {remedy}"
        yield Problem("bad_stamp", channel.name, found.bad, text)
    if found.unreadable:
        text = (
            f"{topic}: {found.unreadable} of {count} messages do not hold the header of {channel.schema.name}: they "
            f"are too short, or not in plain {channel.schema.message_encoding}; arrival stands for their stamps"
        )
        yield Problem("bad_message", channel.name, found.unreadable, text)
    if found.has_strays and channel.uses_header:
        text = (
            f"{topic}: {found.far} of {count} header stamps lie more than a day from their arrival, where the others "
            f"do not; {remedy}"
        )
        yield Problem("bad_stamp", channel.name, found.far, text)
    if channel.is_beyond:
        text = f"{topic}: header stamps lie beyond the year 2043; they are no clock, arrival is the only time"
        yield Problem("bad_stamp", channel.name, found.sound, text)
    elif channel.stands_still:
        text = (
            f"{topic}: header stamps do not advance ({found.stamps_ns[0]} ns at first, {found.stamps_ns[-1]} ns at "
            f"last); they are no clock, arrival is the only time"
        )
        yield Problem("bad_stamp", channel.name, found.sound, text)
    if channel.unit is not None:
        yield Problem("wrong_unit", channel.name, count, _unit_sentence(channel))


def _unit_sentence(channel: MessageChannel) -> str:
    assert channel.unit is not None
    arrivals = calendar_unit(channel.header.arrivals_ns[-1])
    if channel.unit.den > 1 and arrivals is not None and arrivals.num == channel.unit.den:
        return (
            f"{channel.topic}: arrivals advance {arrivals.words} beside the header stamps, and would lie in the "
            f"recent past as such; the recorder wrote them in a wrong unit, and they are played as they are"
        )
    reading = (
        "they are read as such" if channel.unit.is_steady else "they are no clock, arrival is the only time"
    )
    return f"{channel.topic}: header stamps advance {channel.unit.words}; {reading}"
