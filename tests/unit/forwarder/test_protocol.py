"""The messages: what is emitted is read back, however it is cut, and garbage is refused."""

from __future__ import annotations

import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvxlan.forwarder.protocol import (
    MAX_DESCRIPTORS,
    MAX_MESSAGE_BYTES,
    Attachment,
    Decoder,
    Event,
    Hello,
    Message,
    NetworkState,
    ProtocolError,
    TableUpdate,
    emit,
)

numbers = st.integers(0, 2**32)
macs = st.binary(min_size=6, max_size=6)
texts = st.text(max_size=40)
fdbs = st.dictionaries(macs, texts, max_size=5)
neighbours = st.dictionaries(texts, macs, max_size=5)
attachments = st.builds(Attachment, numbers, numbers, st.booleans(), numbers)
messages = st.builds(
    Message,
    numbers,
    st.none() | texts,
    st.lists(numbers | texts | st.binary(max_size=300), max_size=5),
    st.lists(st.integers(3, 1000), max_size=4).map(tuple),
)
updates = st.builds(
    TableUpdate,
    numbers,
    fdbs,
    st.lists(macs, max_size=5),
    st.none() | neighbours,
    st.none() | st.lists(texts, max_size=5),
)
states = st.builds(
    NetworkState,
    attachments,
    numbers,
    fdbs,
    neighbours,
    st.lists(texts, max_size=5).map(tuple),
    st.booleans(),
)


def over_the_wire(value: object) -> object:
    decoder = Decoder()
    decoder.feed(emit(Message(1, None, value)), ())
    message = decoder.next_message()
    assert message is not None
    return message.body


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@given(st.lists(messages, max_size=4), st.data())
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(sent, data):
    decoder = Decoder()
    received = []
    for message in sent:
        stream = emit(message)
        cut = data.draw(st.integers(1, len(stream)))
        for piece, descriptors in ((stream[:cut], message.descriptors), (stream[cut:], ())):
            decoder.feed(piece, descriptors)
            while (got := decoder.next_message()) is not None:
                received.append(got)
    assert received == sent


@given(st.lists(messages, min_size=1, max_size=4))
def test_messages_that_come_in_one_read_each_take_their_own_descriptors(sent):
    decoder = Decoder()
    decoder.feed(b"".join(map(emit, sent)), [fd for message in sent for fd in message.descriptors])
    assert [decoder.next_message() for _ in sent] == sent
    assert decoder.next_message() is None


@given(updates)
def test_an_update_survives_the_wire(update):
    assert TableUpdate.from_wire(over_the_wire(update.to_wire())) == update


@given(states)
def test_a_networks_state_survives_the_wire(state):
    assert NetworkState.from_wire(over_the_wire(state.to_wire())) == state


@given(attachments)
def test_an_attachment_survives_the_wire(attachment):
    assert Attachment.from_wire(over_the_wire(attachment.to_wire())) == attachment


@given(
    st.builds(Hello, numbers, texts, numbers, st.floats(allow_nan=False), numbers, texts, numbers)
)
def test_hello_survives_the_wire(hello):
    assert Hello.from_wire(over_the_wire(hello.to_wire())) == hello


@given(st.builds(Event, texts, texts))
def test_an_event_survives_the_wire(event):
    assert Event.from_wire(over_the_wire(event.to_wire())) == event


@given(st.binary(max_size=200), st.lists(st.integers(3, 9), max_size=3))
def test_garbage_is_refused_or_waited_for_and_its_descriptors_come_back(garbage, descriptors):
    decoder = Decoder()
    decoder.feed(garbage, descriptors)
    taken: list[int] = []
    try:
        while (message := decoder.next_message()) is not None:
            taken += message.descriptors
    except ProtocolError:
        pass
    assert sorted([*taken, *decoder.discard()]) == sorted(descriptors)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | texts | st.binary(max_size=8),
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=12,
    )
)
def test_values_of_the_wrong_shape_are_refused_and_nothing_else(value):
    for kind in (Hello, Attachment, TableUpdate, NetworkState, Event):
        try:
            parsed = kind.from_wire(value)
        except ProtocolError:
            continue
        assert kind.from_wire(parsed.to_wire()) == parsed


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        msgpack.packb(1),
        msgpack.packb([1, "hello", []]),
        msgpack.packb([1, "hello", [], 0, 0]),
        msgpack.packb(["1", "hello", [], 0]),
        msgpack.packb([True, "hello", [], 0]),
        msgpack.packb([1, "hello", [], -1]),
        msgpack.packb([1, "hello", [], 1]),
        msgpack.packb([1, "hello", [], 0]) + b"\x00",
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\x94\x01\x81\x90\x01\x90\x00",
    ],
)
def test_a_body_that_is_no_message_is_refused(body):
    decoder = Decoder()
    decoder.feed(framed(body), ())
    with pytest.raises(ProtocolError):
        decoder.next_message()


def test_a_length_over_the_bound_is_refused_before_its_bytes_come():
    decoder = Decoder()
    decoder.feed(struct.pack(">I", MAX_MESSAGE_BYTES + 1), ())
    with pytest.raises(ProtocolError, match="at most"):
        decoder.next_message()


def test_descriptors_that_no_message_names_are_refused():
    decoder = Decoder()
    decoder.feed(emit(Message(1, "hello", [])), (7,))
    assert decoder.next_message() is not None
    with pytest.raises(ProtocolError, match="no message took"):
        decoder.next_message()
    assert decoder.discard() == (7,)


def test_more_descriptors_than_one_message_can_carry_are_refused():
    decoder = Decoder()
    with pytest.raises(ProtocolError, match="without their message"):
        decoder.feed(b"\x00", range(MAX_DESCRIPTORS + 1))


def test_a_message_over_the_bound_is_not_emitted():
    with pytest.raises(ValueError, match="split the request"):
        emit(Message(1, "update", [bytes(MAX_MESSAGE_BYTES)]))


def test_a_message_with_too_many_descriptors_is_not_emitted():
    with pytest.raises(ValueError, match="at most 253"):
        emit(Message(1, "attach", [], tuple(range(MAX_DESCRIPTORS + 1))))
