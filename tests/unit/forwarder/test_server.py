"""Client and server over a real socket, with an engine in memory."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
from contextlib import contextmanager

import msgpack
import pytest

from pyvxlan.capture import DroppedFrame, capture_sockets
from pyvxlan.errors import ForwarderLostError, ForwarderRefusedError
from pyvxlan.forwarder import methods
from pyvxlan.forwarder.channel import Channel
from pyvxlan.forwarder.client import ForwarderClient
from pyvxlan.forwarder.protocol import (
    Attachment,
    CaptureRequest,
    Event,
    Message,
    ProtocolError,
    TableUpdate,
    emit,
)
from pyvxlan.forwarder.server import MAX_CONNECTIONS
from tests.unit.forwarder.fakes import open_descriptors, rig

MAC = bytes.fromhex("02420a000003")
OTHER = bytes.fromhex("02420a000004")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "forwarder.sock")


@contextmanager
def descriptors(count):
    """So many open descriptors: write ends of pipes, each told apart by its inode."""
    pipes = [os.pipe() for _ in range(count)]
    for read, _ in pipes:
        os.close(read)
    try:
        yield [write for _, write in pipes]
    finally:
        for _, write in pipes:
            os.close(write)


def inodes(fds):
    return [os.fstat(fd).st_ino for fd in fds]


async def configured(client, vnis=()):
    with descriptors(3) as fds:
        await client.configure(fds, 2, "198.18.0.1", 4789)
    for vni in vnis:
        with descriptors(3) as fds:
            await client.attach(Attachment(vni, 1450), fds[:2], fds[2])


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_hello_tells_who_the_forwarder_is_and_later_what_it_runs_on(path):
    async with rig(path) as made, await made.client() as client:
        first = await client.hello()
        assert (first.pid, first.version, first.workers) == (os.getpid(), "9.9", 0)
        await configured(client)
        second = await client.hello()
        assert (second.workers, second.address, second.port) == (2, "198.18.0.1", 4789)
        assert second.since == first.since


async def test_a_second_configure_is_refused_and_changes_nothing(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client)
        with pytest.raises(ForwarderRefusedError, match="already configured") as refused:
            await configured(client)
        assert refused.value.kind == "state"
        assert len(made.engines) == 1


async def test_the_engine_forwards_nothing_before_resume(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7])
        assert made.engine.paused
        await client.resume()
        await client.resume()
        assert not made.engine.paused


@pytest.mark.parametrize(
    "update",
    [
        TableUpdate(7, {MAC: "fd98::2"}, neighbours={"10.0.0.2": MAC}),
        TableUpdate(7, {MAC: "198.18.0.2"}, flood=["198.18.0.2", "fd98::2"]),
    ],
)
async def test_an_update_with_a_vtep_of_the_other_family_is_refused_as_a_whole(path, update):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7, 8])
        before = await client.dump()
        mapped = TableUpdate(8, {MAC: "::ffff:198.18.0.2"})
        with pytest.raises(ForwarderRefusedError, match=r"vni 7: VTEP fd98::2 .* 198\.18\.0\.1"):
            await client.update([update, mapped])
        after = await client.dump()
        assert after[7] == before[7]
        assert after[8].fdb == {MAC: "::ffff:198.18.0.2"}, "others are applied"


async def test_calls_before_configure_are_refused(path):
    async with rig(path) as made, await made.client() as client:
        for call in (client.stats(), client.detach(1), client.update([TableUpdate(1)])):
            with pytest.raises(ForwarderRefusedError, match="send configure first"):
                await call


async def test_the_engine_gets_duplicates_of_the_descriptors_that_were_sent(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client)
        with descriptors(3) as fds:
            await client.attach(Attachment(7, 1450, multicast=False, flood_rate=5), fds[:2], fds[2])
            port = made.engine.ports[7]
            assert inodes(port.queues) == inodes(fds[:2])
            assert (port.mtu_bytes, port.multicast, port.flood_rate) == (1450, False, 5)


async def test_a_port_and_its_namespace_come_back_as_new_descriptors(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client)
        with descriptors(3) as fds:
            await client.attach(Attachment(7, 1450), fds[:2], fds[2])
            port = await client.port(7)
            netns = await client.netns(7)
            assert inodes(port.queues) == inodes(fds[:2])
            assert inodes([port.netns, netns]) == inodes([fds[2], fds[2]])
            port.close()
            os.close(netns)


async def test_attaching_again_replaces_the_port_and_keeps_the_tables(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7])
        await client.update([TableUpdate(7, {MAC: "198.18.0.2"})])
        with descriptors(2) as fds:
            await client.attach(Attachment(7, 1400), fds[:1], fds[1])
        state = (await client.dump())[7]
        assert (state.port.mtu_bytes, state.queues, state.fdb) == (1400, 1, {MAC: "198.18.0.2"})


async def test_what_others_carry_is_kept_and_given_back_with_its_namespace(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7])
        kept = Attachment(7, 1450, datapath="kernel")
        with descriptors(2) as fds:
            with pytest.raises(ForwarderRefusedError, match="namespace alone"):
                await client.attach(kept, fds[:1], fds[1])
            await client.attach(kept, (), fds[1])
            handover = await client.handover()
            assert handover.networks[7].port == kept
            assert handover.ports[7].queues == ()
            assert inodes([handover.ports[7].netns]) == inodes(fds[1:])
            handover.close()
        assert made.engine.ports == {}
        with pytest.raises(ForwarderRefusedError, match="not the forwarder's"):
            await client.update([TableUpdate(7, {MAC: "198.18.0.2"})])
        await client.detach(7)
        assert await client.dump() == {}


async def test_an_update_is_what_dump_reads_back(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7, 8])
        await client.update(
            [
                TableUpdate(7, {MAC: "198.18.0.2", OTHER: "198.18.0.3"}),
                TableUpdate(8, {}, (), {"10.0.0.3": MAC}, ["198.18.0.2"]),
                TableUpdate(7, {MAC: "198.18.0.4"}, [OTHER]),
            ]
        )
        state = await client.dump()
        assert state[7].fdb == {MAC: "198.18.0.4"}
        assert (state[8].neighbours, state[8].flood) == ({"10.0.0.3": MAC}, ("198.18.0.2",))
        assert state[8].port == Attachment(8, 1450)


async def test_flood_and_neighbours_that_an_update_does_not_give_stay(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7])
        await client.update([TableUpdate(7, {}, (), {"10.0.0.3": MAC}, ["198.18.0.2"])])
        await client.update([TableUpdate(7, {MAC: "198.18.0.2"})])
        state = (await client.dump())[7]
        assert (state.neighbours, state.flood) == ({"10.0.0.3": MAC}, ("198.18.0.2",))


async def test_an_invalid_update_is_named_and_the_others_are_applied(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7, 8])
        invalid = TableUpdate(7, {bytes(6): "198.18.0.2"}, (), {"10.0.0.3": MAC}, ["198.18.0.2"])
        with pytest.raises(ForwarderRefusedError, match=r"vni 7: MAC .*; vni 9: .*not attached"):
            await client.update([invalid, TableUpdate(9), TableUpdate(8, {MAC: "198.18.0.2"})])
        state = await client.dump()
        assert (state[7].fdb, state[7].neighbours, state[7].flood) == ({}, {}, ())
        assert state[8].fdb == {MAC: "198.18.0.2"}


async def test_a_large_dump_comes_in_pages_and_whole(path, monkeypatch):
    monkeypatch.setattr(methods, "_PAGE_ENTRIES", 2)
    async with rig(path) as made, await made.client() as client:
        await configured(client, range(10, 17))
        assert list(await client.dump()) == list(range(10, 17))


async def test_a_table_of_many_entries_goes_in_and_comes_back(path):
    fdb = {number.to_bytes(6, "big"): f"198.18.{number % 250}.1" for number in range(1, 50_001)}
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7])
        await client.update([TableUpdate(7, fdb)])
        assert (await client.dump())[7].fdb == fdb


async def test_detach_forgets_the_port_and_can_be_repeated(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7])
        await client.detach(7)
        await client.detach(7)
        assert await client.dump() == {}
        with pytest.raises(ForwarderRefusedError, match="vni 7 is not attached"):
            await client.netns(7)


async def test_stats_are_the_engines(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7])
        stats = await client.stats()
        assert (stats.workers, stats.underlay["sent_datagrams"]) == (2, 7)
        assert stats.networks[7]["egress_drops"] == {"truncated": 1}
        assert stats.idle_s == (0.5, 1.5)
        assert stats.vteps == {"198.18.0.2": {"sent_datagrams": 3}}
        assert stats.tunnels == {"198.18.0.2": {"sent": 4, "round_trips": {"50": 1, "inf": 0}}}


async def test_tunnels_to_probe_are_the_engines(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7])
        await client.probe(500, {"198.18.0.2": 1450})
        assert made.engine.tunnels == (500, {"198.18.0.2": 1450})


async def test_a_capture_lives_as_long_as_its_reader(path):
    wish = CaptureRequest(42, MAC, 99, drops_only=True)
    async with rig(path) as served, await served.client() as client:
        await configured(client)
        before = open_descriptors()
        with pytest.raises(ForwarderRefusedError, match="one socket is needed"):
            await client._ask("capture", *wish.to_wire())
        ours, theirs = capture_sockets()
        with ours, theirs:
            with pytest.raises(ForwarderRefusedError, match="too few"):
                await client.capture(CaptureRequest(42, snap_bytes=9), theirs.fileno())
            await client.capture(wish, theirs.fileno())
            theirs.close()
            ((end, asked),) = served.engine.captures.values()
            assert asked == {"vni": 42, "mac": MAC, "snap_bytes": 99, "drops_only": True}
            os.write(end, b"a message")
            assert ours.recv(99) == b"a message"
        await until(lambda: not served.engine.captures)
        assert open_descriptors() == before


async def test_the_end_of_the_forwarder_ends_its_captures(path):
    ours, theirs = capture_sockets()
    with ours:
        async with rig(path) as served, await served.client() as client:
            await configured(client)
            with theirs:
                await client.capture(CaptureRequest(42), theirs.fileno())
        assert ours.recv(9) == b""


async def test_the_last_drops_are_the_engines(path):
    async with rig(path) as served, await served.client() as client:
        await configured(client)
        drop = DroppedFrame(5, 2, "egress", "flood_rate", 42, None, 60, b"headers")
        assert await client.recent_drops() == [drop]


async def test_segmentation_is_switched_and_told(path):
    async with rig(path) as made, await made.client() as client:
        with pytest.raises(ForwarderRefusedError, match="send configure first"):
            await client.switch_segmentation(on=False)
        await configured(client)
        await client.switch_segmentation(on=False)
        assert (await client.stats()).segmentation == (False, False)
        await client.switch_segmentation(on=True)
        assert (await client.stats()).segmentation == (True, True)


async def test_handover_gives_a_successor_all_state_and_all_descriptors(path, tmp_path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7, 8])
        await client.update([TableUpdate(8, {MAC: "198.18.0.2"})])
        handover = await client.handover()
        async with rig(str(tmp_path / "next.sock")) as successor, await successor.client() as new:
            await new.configure(handover.underlay, handover.hello.workers, "198.18.0.1", 4789)
            for vni, port in handover.ports.items():
                await new.attach(handover.networks[vni].port, port.queues, port.netns)
            await new.update([TableUpdate(8, handover.networks[8].fdb)])
            handover.close()
            assert await new.dump() == await client.dump()
            assert inodes(successor.engine.underlay) == inodes(made.engine.underlay)
            assert inodes(successor.engine.ports[7].queues) == inodes(made.engine.ports[7].queues)


async def test_shutdown_ends_the_server_and_returns_when_it_has_let_go(path):
    async with rig(path) as made:
        client = await made.client()
        await configured(client, [7])
        await client.shutdown()
        assert not client.connected
        await until(lambda: made.engine.closed)
        await client.close()


async def test_an_event_reaches_every_client(path):
    async with rig(path) as made, await made.client() as one, await made.client() as two:
        await configured(one, [7])
        made.engine.happen("port_lost", "7")
        for client in (one, two):
            event = await asyncio.wait_for(client.next_event(), 5)
            assert event == Event("port_lost", "7")


async def test_waiting_for_an_event_ends_with_the_connection(path):
    async with rig(path) as made:
        client = await made.client()
        waiting = asyncio.create_task(client.next_event())
        await asyncio.sleep(0)
        made.server.stop()
        with pytest.raises(ForwarderLostError):
            await asyncio.wait_for(waiting, 5)
        await asyncio.wait_for(client.wait_lost(), 5)
        await client.close()


async def test_the_engine_goes_on_when_its_client_goes_away(path):
    async with rig(path) as made:
        async with await made.client() as client:
            await configured(client, [7])
        async with await made.client() as client:
            assert list(await client.dump()) == [7]
        assert not made.engine.closed


async def test_overlapping_calls_get_their_own_answers(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7, 8, 9])
        ports = await asyncio.gather(*(client.port(vni) for vni in (7, 8, 9) * 5))
        for vni, port in zip((7, 8, 9) * 5, ports, strict=True):
            assert inodes(port.queues) == inodes(made.engine.ports[vni].queues)
            port.close()


async def test_no_descriptor_stays_open_whatever_was_refused_or_cut_off(path):
    gc.collect()
    before = open_descriptors()
    async with rig(path) as made:
        async with await made.client() as client:
            with descriptors(3) as fds:
                with pytest.raises(ForwarderRefusedError):
                    await client.attach(Attachment(7, 1450), fds[:2], fds[2])
                with pytest.raises(ForwarderRefusedError, match="no sockets"):
                    await client.configure([], 2, "198.18.0.1", 4789)
            await configured(client, [7])
            with descriptors(2) as fds, pytest.raises(ForwarderRefusedError, match="MTU 3"):
                await client.attach(Attachment(7, 3), fds[:1], fds[1])
            with descriptors(1) as fds, pytest.raises(ForwarderRefusedError, match="at least one"):
                await client.attach(Attachment(7, 1450), [], fds[0])
            asking = [asyncio.create_task(client.port(7)) for _ in range(5)]
            await asyncio.sleep(0)
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
            await client.hello()
        with made.socket() as sock, descriptors(2) as fds:
            socket.send_fds(sock, [emit(Message(1, "hello", []))], fds)
            assert await asyncio.to_thread(sock.recv, 4096)
        with made.socket() as sock, descriptors(2) as fds:
            socket.send_fds(sock, [b"\x00\x00\x01"], fds)
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x01\xc1",
        struct.pack(">I", 2**32 - 1),
        struct.pack(">I", 9) + msgpack.packb([1, 2, 3, 99]) + bytes(9),
    ],
)
async def test_garbage_closes_its_connection_and_no_other(path, garbage):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7])
        with made.socket() as sock:
            sock.sendall(garbage)
            assert await asyncio.to_thread(sock.recv, 1) == b""
        assert list(await client.dump()) == [7]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("attach", []),
        ("attach", [1, "1450", True, 1, "forwarder"]),
        ("attach", [1, 1450, 1, 1, "forwarder"]),
        ("detach", ["7"]),
        ("configure", [1, 2, 3]),
        ("update", [[[7, {"text": "198.18.0.2"}, [], None, None]]]),
        ("update", [[[7, {MAC: 1}, [], None, None]]]),
        ("update", [7]),
        ("dump", []),
        ("netns", [None]),
        ("descriptors", ["x"]),
        ("hello", [1]),
        ("hello", "arguments"),
        (5, []),
    ],
)
async def test_arguments_of_the_wrong_shape_are_answered_and_the_connection_stays(
    path, method, arguments
):
    async with rig(path) as made:
        await configured(client := await made.client(), [7])
        channel = Channel(made.socket())
        for number in (1, 2):
            await channel.send(Message(number, method, arguments))
            answer = await channel.receive()
            assert answer is not None
            assert answer.id == number
            assert answer.head[0] == "invalid"
        channel.close()
        await client.close()


async def test_an_unknown_method_is_answered_as_such(path):
    async with rig(path) as made:
        channel = Channel(made.socket())
        await channel.send(Message(1, "sing", []))
        answer = await channel.receive()
        assert answer is not None
        assert answer.head[0] == "unknown"
        channel.close()


async def test_a_peer_of_another_user_is_not_served(path):
    async with rig(path, allowed_uids=frozenset({os.getuid() + 1})) as made:
        client = await made.client()
        with pytest.raises(ForwarderLostError):
            await client.hello()
        await client.close()


async def test_connections_over_the_bound_are_closed(path):
    async with rig(path) as made:
        clients = [await made.client() for _ in range(MAX_CONNECTIONS)]
        for client in clients:
            await client.hello()
        with made.socket() as sock:
            assert await asyncio.to_thread(sock.recv, 1) == b""
        for client in clients:
            await client.close()


async def test_a_client_that_never_reads_does_not_stop_the_others(path):
    async with rig(path) as made, await made.client() as client:
        await configured(client, [7])
        await client.update(
            [TableUpdate(7, {n.to_bytes(6, "big"): "198.18.0.2" for n in range(1, 60_000)})]
        )
        with made.socket() as sock:
            for number in range(1, 20):
                sock.sendall(emit(Message(number, "dump", [-1])))
            await asyncio.wait_for(client.hello(), 5)


async def test_connecting_where_nobody_listens_says_so(tmp_path):
    with pytest.raises(ForwarderLostError, match=r"no forwarder listens on .*none.sock"):
        await ForwarderClient.connect(tmp_path / "none.sock")


async def test_a_forwarder_that_does_not_answer_is_lost_after_the_timeout():
    ours, theirs = socket.socketpair()
    with theirs:
        client = ForwarderClient(ours, timeout_s=0.05)
        with pytest.raises(ForwarderLostError, match=r"no answer to hello within 0\.05 s"):
            await client.hello()
        with pytest.raises(ForwarderLostError):
            await client.hello()
        await client.close()


async def test_a_forwarder_that_talks_nonsense_is_lost():
    ours, theirs = socket.socketpair()
    with theirs:
        client = ForwarderClient(ours, timeout_s=5)
        theirs.sendall(b"\x00\x00\x00\x01\xc1")
        with pytest.raises(ForwarderLostError):
            await client.hello()
        await client.close()


async def answered_with(call, *bodies):
    """Runs a call of a client whose forwarder answers with these, one per request."""

    async def answer():
        for body in bodies:
            request = await channel.receive()
            await channel.send(Message(request.id, None, body))

    ours, theirs = socket.socketpair()
    client, channel = ForwarderClient(ours, timeout_s=5), Channel(theirs)
    answering = asyncio.create_task(answer())
    try:
        return await call(client)
    finally:
        await answering
        await client.close()
        channel.close()


NETWORK = [[7, 1450, True, 10_000, "forwarder"], 1, {}, {}, [], True]


@pytest.mark.parametrize(
    ("call", "bodies"),
    [
        (ForwarderClient.hello, [["pid"]]),
        (ForwarderClient.stats, [{"workers": 1}]),
        (ForwarderClient.stats, [{"workers": 1, "underlay": {"sent": "x"}, "networks": []}]),
        (ForwarderClient.stats, [{"workers": 1, "underlay": {}, "networks": [], "vteps": [7]}]),
        (ForwarderClient.stats, [{"workers": 1, "underlay": {}, "networks": [], "tunnels": 7}]),
        (ForwarderClient.dump, [[[], True]]),
        (ForwarderClient.dump, [[[NETWORK], True], [[NETWORK], True]]),
        (ForwarderClient.dump, [[[[*NETWORK[:2], {"text": 1}, *NETWORK[3:]]], False]]),
        (lambda client: client.update([]), [[7]]),
    ],
)
async def test_an_answer_that_makes_no_sense_is_a_protocol_error_not_a_loop_or_a_crash(
    call, bodies
):
    with pytest.raises(ProtocolError):
        await answered_with(call, *bodies)


async def test_an_answer_without_its_descriptors_is_refused():
    with pytest.raises(ForwarderLostError, match="without its descriptors"):
        await answered_with(lambda client: client.netns(7), None)


async def test_descriptors_arrive_with_the_message_that_they_were_sent_with():
    ours, theirs = socket.socketpair()
    sender, receiver = Channel(ours), Channel(theirs)
    with descriptors(4) as fds:
        await sender.send(Message(1, "a", [], (fds[0],)))
        await sender.send(Message(2, "b", []))
        await sender.send(Message(3, "c", [bytes(1000)], tuple(fds[1:])))
        received = [await receiver.receive() for _ in range(3)]
        assert [inodes(message.descriptors) for message in received] == [
            inodes(fds[:1]),
            [],
            inodes(fds[1:]),
        ]
        for message in received:
            for fd in message.descriptors:
                os.close(fd)
    sender.close()
    assert await receiver.receive() is None
    receiver.close()


async def test_a_message_larger_than_the_sockets_buffer_arrives_whole():
    ours, theirs = socket.socketpair()
    sender, receiver = Channel(ours), Channel(theirs)
    payload = os.urandom(5_000_000)
    sending = asyncio.create_task(sender.send(Message(1, "a", [payload])))
    message = await receiver.receive()
    assert message is not None
    assert message.body == [payload]
    await sending
    sender.close()
    receiver.close()


async def test_closing_a_channel_wakes_who_waits_on_it():
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    receiving = asyncio.create_task(channel.receive())
    sending = asyncio.create_task(channel.send(Message(1, "a", [bytes(8_000_000)])))
    await asyncio.sleep(0.01)
    channel.close()
    assert await receiving is None
    with pytest.raises(OSError, match="closed"):
        await sending
    theirs.close()


async def test_a_send_that_is_cancelled_halfway_closes_the_connection():
    ours, theirs = socket.socketpair()
    channel, other = Channel(ours), Channel(theirs)
    sending = asyncio.create_task(channel.send(Message(1, "a", [bytes(8_000_000)])))
    await asyncio.sleep(0.01)
    sending.cancel()
    await asyncio.wait([sending])
    assert await other.receive() is None
    with pytest.raises(OSError, match="closed"):
        await channel.send(Message(2, "b", []))
    other.close()


def test_a_protocol_error_is_an_error_of_the_library():
    assert issubclass(ProtocolError, ValueError)
