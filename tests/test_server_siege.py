"""A scan beside several hundred strangers, over loopback and mutual TLS: short and untimed.

`bench/siege.py` is the long version, with processes and figures.
"""

from __future__ import annotations

import pytest
import trio

from fakes import FakeHub, Peer, books_over, ledger_of, options, segment_of
from lab.certs import make_credentials
from nray.pki.endpoint import NodeTls, ServerTls
from nray.pki.keys import load_identity, load_trust
from nray.server.accept import open_listeners
from nray.server.door import ADDRESS_PART, LINES_MAX, Stage
from nray.server.server import Server
from nray.server.tls import TlsDoorman
from nray.wire.channel import Channel
from nray.wire.messages import Ask, Bye, Heartbeat, Lease, Stop
from nray.wire.states import NodeEnd

HALF_OPEN = 300
LORIS = 6
SLICES = 40
#: The begin of a TLS record that is never finished.
BEGUN = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


class Judge:
    """In place of credentials that are read again: these never change."""

    def __init__(self, tls):
        self.accept = tls.accept
        self.objection = tls.objection

    async def changed(self):
        await trio.sleep_forever()

    def briefly(self):
        return []


@pytest.mark.parametrize("flood", [False, True])
def test_a_scan_ends_beside_half_open_lines_loris_peers_and_a_flooding_node(tmp_path, flood):
    credentials = make_credentials(tmp_path)
    tls = ServerTls(
        load_identity(str(credentials.server), str(credentials.server_key)),
        load_trust(str(credentials.ca)),
        True,
    )
    node_tls = NodeTls(
        load_trust(str(credentials.ca)),
        insecure=False,
        identity=load_identity(str(credentials.node), str(credentials.node_key)),
        server_name=None,
    )
    segment = segment_of("198.18.0.0/28", "1-25")
    lobby_most = []

    async def node(port, name):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        peer = Peer(Channel(await node_tls.connect(stream, "127.0.0.1", timeout_s=60), NodeEnd()))
        await peer.register(name=name, instance=name, machine_id=name)
        return peer

    async def scan(port):
        peer = await node(port, "honest")
        leases = 0
        await peer.channel.send(Ask(1))
        while isinstance(message := await peer.hear(Lease, Stop), Lease):
            leases += 1
            await peer.report(message)
            await peer.channel.send(Ask(1))
        await peer.channel.send(Bye())
        await peer.channel.aclose()
        return leases

    async def besiege(port, words, held):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        held.append(stream)
        if words:
            try:
                await stream.send_all(words)
            except trio.BrokenResourceError:
                pass

    async def creep(stream):
        try:
            for _ in range(1000):
                await stream.send_all(b"\x00")
                await trio.sleep(0.05)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def pour(port):
        peer = await node(port, "flood")

        async def drain():
            while not isinstance(await peer.channel.receive(), Stop):
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            for number in range(3000):
                await peer.channel.send(Heartbeat(number))
            nursery.cancel_scope.cancel()

    async def main():
        listeners = await open_listeners("127.0.0.1", [0])
        port = listeners[0].socket.getsockname()[1]
        held = []
        async with books_over(FakeHub(), ledger_of([segment]), [segment]) as books:
            made = options(slice_most=segment.probes // SLICES)
            server = Server(made, [segment], books, TlsDoorman(Judge(tls)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.run, listeners)
                async with trio.open_nursery() as siege:
                    for number in range(HALF_OPEN):
                        siege.start_soon(besiege, port, BEGUN if number % 3 == 0 else b"", held)
                for stream in held[:LORIS]:
                    nursery.start_soon(creep, stream)
                if flood:
                    nursery.start_soon(_until_gone, pour, port)
                leases = await scan(port)
                lobby_most.append(server.lobby.most)
                nursery.cancel_scope.deadline = trio.current_time() + 60
        for stream in held:
            await trio.aclose_forcefully(stream)
        assert server.scheduler.finished
        return leases

    async def bounded():
        with trio.fail_after(180):
            return await main()

    assert trio.run(bounded) >= SLICES
    bound = sum(most // ADDRESS_PART for most in LINES_MAX.values())
    assert LINES_MAX[Stage.SILENT] // ADDRESS_PART < lobby_most[0] <= bound


async def _until_gone(task, port):
    try:
        await task(port)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
