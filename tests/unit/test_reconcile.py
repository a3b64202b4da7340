"""The loop: over a store, a kernel and a data plane that only remember."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from pyvxlan.daemon import records
from pyvxlan.daemon.config import Settings
from pyvxlan.daemon.dataplane.memory import MemoryDataplane
from pyvxlan.daemon.errors import ConflictError, DataplaneError, NetError, NotSettledError
from pyvxlan.daemon.kv import Delete, Write
from pyvxlan.daemon.kv.memory import MemoryStore
from pyvxlan.daemon.local import LocalRecords
from pyvxlan.daemon.model import gateway_host_ifname, host_ifname
from pyvxlan.daemon.operations import EnsureBridge, EnsureVeth, RemoveVeth
from pyvxlan.daemon.reconcile import RETRY_S, Reconciler
from pyvxlan.daemon.state import State
from pyvxlan.daemon.timings import Timings
from tests.unit.memory_net import MemoryNet, endpoint, host, local, network

WAIT_S = 5


class Host1:
    """This host with everything that only remembers, and a reconciler that runs."""

    def __init__(self, tmp_path, *, interval_s=0.05):
        self.store = MemoryStore()
        self.local = LocalRecords(tmp_path)
        self.net = MemoryNet()
        self.dataplane = MemoryDataplane()
        self.state = State(self.store, host(1))
        self.timings = Timings()
        self.reconciler = Reconciler(
            timings=self.timings,
            state=self.state,
            local=self.local,
            net=self.net,
            dataplane=self.dataplane,
            settings=Settings(reconcile_interval_s=interval_s),
            host=host(1),
        )

    async def put(self, *values):
        writes = []
        for value in values:
            match type(value).__name__:
                case "Network":
                    writes.append(Write(records.network_key(value.id), records.emit_network(value)))
                case "Host":
                    writes.append(Write(records.host_key(value.id), records.emit_host(value)))
                case _:
                    key = records.endpoint_key(value.network_id, value.id)
                    writes.append(Write(key, records.emit_endpoint(value)))
        await self.store.txn([], writes)

    async def drop(self, one):
        await self.store.txn([], [Delete(records.endpoint_key(one.network_id, one.id))])

    async def join(self, one, net, **fields):
        """What the service does to connect an endpoint of this host."""
        await self.put(one)
        self.local.put(local(one, **fields), endpoint=one, network=net)
        await self.reconciler.settled(net.id, WAIT_S)

    async def leave(self, one):
        self.local.remove(one.id)
        await self.drop(one)
        await self.reconciler.settled(one.network_id, WAIT_S)

    def noted(self, name, **labels):
        """A sample of the timings."""
        return self.timings.registry.get_sample_value(f"pyvxlan_{name}", labels)

    def links(self, netns="1-0000000001"):
        return self.net.actual.net.namespaces[netns]


@contextlib.asynccontextmanager
async def running(tmp_path, **fields):
    one = Host1(tmp_path, **fields)
    await one.put(host(1), host(2), host(3), network(1), network(2))
    await one.state.start()
    await one.dataplane.start()
    loop = asyncio.create_task(one.reconciler.run())
    try:
        yield one
    finally:
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop
        await one.dataplane.stop(kill=True)
        await one.state.close()
        await one.store.close()
        one.local.close()


async def eventually(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


NET, OTHER = network(1), network(2)
MINE, SECOND = endpoint(2, NET, host(1)), endpoint(4, NET, host(1))
THEIRS = endpoint(3, NET, host(2))
ELSEWHERE = endpoint(2, OTHER, host(1))
MAC = THEIRS.mac


async def test_join_builds_everything_before_settled_returns(tmp_path):
    async with running(tmp_path) as one:
        await one.put(THEIRS)
        await one.join(MINE, NET)
        assert {"br0", "vxlan0", host_ifname(MINE.id)} <= one.links().keys()
        assert gateway_host_ifname(MINE.id) in one.net.actual.net.uplinks
        assert one.dataplane.tables[NET.vni].fdb == {MAC: "198.18.0.2"}


async def test_remote_endpoint_reaches_the_tables_without_touching_the_kernel(tmp_path):
    async with running(tmp_path, interval_s=60) as one:
        await one.join(MINE, NET)
        before = len(one.net.done)
        await one.put(THEIRS)
        await eventually(lambda: one.dataplane.tables[NET.vni].fdb == {MAC: "198.18.0.2"})
        assert one.dataplane.tables[NET.vni].neighbours == {"10.0.1.3": MAC}
        assert len(one.net.done) == before


async def test_withdrawn_endpoint_leaves_the_tables(tmp_path):
    async with running(tmp_path, interval_s=60) as one:
        await one.put(THEIRS)
        await one.join(MINE, NET)
        await one.drop(THEIRS)
        await eventually(lambda: one.dataplane.tables[NET.vni].fdb == {})
        assert one.dataplane.tables[NET.vni].flood == ()


async def test_moved_vtep_changes_the_tables(tmp_path):
    async with running(tmp_path, interval_s=60) as one:
        await one.put(THEIRS)
        await one.join(MINE, NET)
        await one.put(replace(host(2), vtep=host(3).vtep))
        await eventually(lambda: one.dataplane.tables[NET.vni].fdb == {MAC: "198.18.0.3"})


async def test_last_leave_removes_everything_of_the_network(tmp_path):
    async with running(tmp_path) as one:
        await one.join(MINE, NET)
        await one.leave(MINE)
        assert one.net.actual.net.namespaces == {}
        assert one.net.actual.net.uplinks == {}
        assert one.dataplane.tables == {}
        assert one.local.netns_names == {}


async def test_failing_operation_does_not_stop_unrelated_ones(tmp_path):
    async with running(tmp_path) as one:

        def refuse(op):
            if isinstance(op, EnsureBridge) and op.netns.endswith(NET.id[:10]):
                raise NetError("bridge refused")

        one.net.refuse = refuse
        failing = asyncio.create_task(one.join(MINE, NET))
        await one.join(ELSEWHERE, OTHER)
        assert "br0" in one.links(one.local.netns_name(OTHER.id))
        one.net.refuse = lambda _op: None
        await failing
        assert "br0" in one.links(one.local.netns_name(NET.id))


async def test_settled_raises_a_final_cause_at_once(tmp_path):
    async with running(tmp_path) as one:

        def refuse(op):
            if isinstance(op, EnsureVeth):
                raise ConflictError("the sandbox has an interface eth0")

        one.net.refuse = refuse
        with pytest.raises(ConflictError, match="eth0"):
            await asyncio.wait_for(one.join(MINE, NET), WAIT_S / 2)


async def test_settled_names_the_cause_when_time_is_up(tmp_path):
    async with running(tmp_path) as one:

        def refuse(call, _vni):
            raise DataplaneError(f"the forwarder refused to {call}")

        one.dataplane.refuse = refuse
        await one.put(MINE)
        one.local.put(local(MINE), endpoint=MINE, network=NET)
        with pytest.raises(NotSettledError, match="refused to attach") as raised:
            await one.reconciler.settled(NET.id, 0.3)
        assert isinstance(raised.value.__cause__, DataplaneError)


async def test_trouble_of_another_endpoint_does_not_concern_a_new_one(tmp_path):
    async with running(tmp_path) as one:
        await one.join(MINE, NET)

        def refuse(op):
            if isinstance(op, EnsureVeth) and op.veth.outer_name == host_ifname(MINE.id):
                raise NetError("no")

        one.net.refuse = refuse
        broken = dict(one.links())
        del broken[host_ifname(MINE.id)]
        namespaces = {"1-0000000001": broken}
        net = replace(one.net.actual.net, namespaces=namespaces)
        one.net.actual = replace(one.net.actual, net=net)
        await eventually(one.reconciler.problems)
        await one.join(SECOND, NET)
        assert host_ifname(SECOND.id) in one.links()


async def test_teardown_goes_on_to_its_end_and_tells_all_it_met(tmp_path):
    async with running(tmp_path) as one:
        await one.join(MINE, NET)

        def refuse(op):
            if isinstance(op, RemoveVeth):
                raise NetError(f"{op.outer_name} stays")

        one.net.refuse = refuse
        one.local.remove(MINE.id)
        with pytest.raises(NotSettledError) as raised:
            await one.reconciler.settled(NET.id, 0.3)
        assert one.net.actual.net.namespaces == {}
        assert one.dataplane.tables == {}
        assert gateway_host_ifname(MINE.id) in str(raised.value)


async def test_what_failed_is_tried_again(tmp_path):
    async with running(tmp_path, interval_s=60) as one:
        left = 3

        def refuse(op):
            nonlocal left
            if isinstance(op, EnsureVeth) and left:
                left -= 1
                raise NetError("not yet")

        one.net.refuse = refuse
        await one.join(MINE, NET)
        assert left == 0
        assert one.reconciler.problems() == ()


async def test_what_is_deleted_by_hand_comes_back_and_is_counted(tmp_path):
    async with running(tmp_path) as one:
        await one.join(MINE, NET)
        one.net.actual = replace(one.net.actual, net=replace(one.net.actual.net, gateway=None))
        await eventually(lambda: one.net.actual.net.gateway is not None)
        await eventually(lambda: one.reconciler.repairs == 1)


async def test_namespace_that_the_data_plane_holds_is_adopted(tmp_path):
    async with running(tmp_path) as one:
        await one.join(MINE, NET)
        attached = one.dataplane.calls.count(("attach", NET.vni))
        links = one.links()
        net = replace(one.net.actual.net, namespaces={})
        one.net.actual = replace(one.net.actual, net=net)
        real = one.net.ensure_namespace

        async def ensure_namespace(netns, adopt=None):
            await real(netns, adopt)
            assert adopt is not None
            held = replace(one.net.actual.net, namespaces={netns: links})
            one.net.actual = replace(one.net.actual, net=held)

        one.net.ensure_namespace = ensure_namespace
        await eventually(lambda: one.net.actual.net.namespaces)
        await one.reconciler.settled(NET.id, WAIT_S)
        assert one.dataplane.calls.count(("attach", NET.vni)) == attached


async def test_lost_forwarder_gets_its_state_back(tmp_path):
    async with running(tmp_path, interval_s=60) as one:
        await one.put(THEIRS)
        await one.join(MINE, NET)
        one.dataplane.lose()
        await eventually(lambda: one.dataplane.tables.get(NET.vni))
        await eventually(lambda: one.dataplane.tables[NET.vni].fdb == {MAC: "198.18.0.2"})


async def test_data_plane_that_does_not_answer_does_not_stop_the_kernels_repair(tmp_path):
    async with running(tmp_path) as one:
        await one.join(MINE, NET)

        async def dump():
            raise DataplaneError("the forwarder does not run")

        one.dataplane.dump = dump
        one.net.actual = replace(one.net.actual, net=replace(one.net.actual.net, gateway=None))
        await eventually(lambda: one.net.actual.net.gateway is not None)
        assert one.dataplane.tables[NET.vni].port_alive


async def test_lost_sandbox_is_told_and_its_endpoint_taken_down(tmp_path):
    async with running(tmp_path) as one:
        told = []

        async def lost(endpoint_id):
            told.append(endpoint_id)
            one.local.remove(endpoint_id)
            await one.reconciler.settled(NET.id, WAIT_S)

        one.reconciler.on_sandbox_lost = lost
        await one.join(MINE, NET)
        one.net.dead.add(local(MINE).sandbox.path)
        await eventually(lambda: told == [MINE.id])
        await eventually(lambda: one.net.actual.net.namespaces == {})


async def test_end_of_a_process_is_noticed_without_a_full_comparison(tmp_path):
    async with running(tmp_path, interval_s=60) as one:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        told = asyncio.Event()

        async def lost(_endpoint_id):
            told.set()

        one.reconciler.on_sandbox_lost = lost
        await one.join(MINE, NET, pid=process.pid)
        one.net.dead.add(local(MINE).sandbox.path)
        process.kill()
        await process.wait()
        await asyncio.wait_for(told.wait(), WAIT_S)
        assert one.reconciler.sandboxes() == ()


async def test_nothing_is_removed_while_an_endpoints_record_is_unknown(tmp_path):
    async with running(tmp_path) as one:
        await one.join(MINE, NET)
        unknown = endpoint(9, network(7), host(1))
        one.local.put(local(unknown))
        one.local.remove(MINE.id)
        await one.reconciler.settled(NET.id, WAIT_S)
        assert "br0" in one.links()


async def test_store_that_is_away_leaves_the_tables_as_they_are(tmp_path):
    async with running(tmp_path) as one:
        await one.put(THEIRS)
        await one.join(MINE, NET)
        one.store.lose()
        await eventually(lambda: not one.state.synced)
        one.reconciler.poke()
        await one.reconciler.settled(NET.id, WAIT_S)
        assert one.dataplane.tables[NET.vni].fdb == {MAC: "198.18.0.2"}
        one.store.recover()


async def test_names_are_served_before_settled_returns(tmp_path):
    async with running(tmp_path) as one:
        seen = []

        async def after_round():
            seen.append(one.reconciler.sandboxes())

        one.reconciler.after_round = after_round
        await one.join(MINE, NET)
        assert seen[-1] == (local(MINE),)


async def joined_and_quiet(one):
    """Joins, and returns when a round has seen all that came of it."""
    await one.join(MINE, NET)
    await eventually(lambda: one.state.recorded(records.endpoint_key(NET.id, MINE.id)))
    await one.reconciler.settled(NET.id, WAIT_S)


async def test_convergence_is_timed_until_the_tables_have_a_change(tmp_path):
    async with running(tmp_path, interval_s=60) as one:
        await joined_and_quiet(one)
        before = one.noted("convergence_seconds_count")
        refused = []

        def refuse(call, vni):
            if not refused:
                refused.append((call, vni))
                raise DataplaneError("not yet")

        one.dataplane.refuse = refuse
        await one.put(THEIRS)
        await eventually(lambda: one.noted("convergence_seconds_count") == before + 1)
        assert one.dataplane.tables[NET.vni].fdb == {MAC: str(host(2).vtep)}
        assert one.noted("convergence_seconds_sum") >= RETRY_S
        assert one.noted("reconcile_round_failures_total", kind="change") == 1


async def test_change_of_a_network_that_is_not_here_is_no_convergence(tmp_path):
    async with running(tmp_path, interval_s=60) as one:
        await joined_and_quiet(one)
        before = one.noted("convergence_seconds_count")
        rounds = one.noted("reconcile_round_seconds_count", kind="change")
        await one.put(replace(OTHER, mtu_bytes=1400))
        await eventually(lambda: one.noted("reconcile_round_seconds_count", kind="change") > rounds)
        assert one.noted("convergence_seconds_count") == before
