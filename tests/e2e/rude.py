"""A SOCKS5 server that misbehaves on request (RFC 1928, RFC 1929), for the tests' own use.

Every way of misbehaving is an attribute, set before (or while) clients come and put back by
tame(). With none set it is a correct proxy for CONNECT and UDP ASSOCIATE.

    delay       {step: seconds} to wait before the answer of a step
    drip        seconds between the single bytes of each answer (None: one write)
    cut         {step: n}: send only the first n bytes of that answer, then close
    noise       {step: bytes}: send these bytes as that answer
    mute        a set of steps that are never answered (a black hole)
    method      the method chosen in the greeting's answer (None: what fits `auth`)
    auth        (user, password) that must come; None: no authentication
    reply       the REP code of CONNECT; 0 connects to the target
    bound       BND.ADDR's form in replies: "ipv4", "ipv6" or "domain"
    glue        bytes sent in one write with the reply, as if the target had sent them
    reset       end connections by RST instead of FIN
    deaf        what comes in one read with the greeting, past it, is thrown away: a proxy that
                chokes on pipelined requests
    stall       after the reply nothing is read from the client
    udp         "relay", "refuse" (REP 7), "close" (without a reply) or "deny" (REP 2)
    udp_bound   relay address in the reply: "exact", "any" (0.0.0.0 or ::)
    udp_mangle  function(datagram as sent to the client) -> list of datagrams sent in its place

Steps are "accept", "greeting", "auth" and "request". `requests` lists (command, host, port) as
asked, `closed` how each client's connection ended: "fin", "reset" or "ours". A client that
closes before it has said anything is not counted.
"""

import ctypes
import ipaddress
import select
import socket
import struct
import threading
import time

from netns import family_of, reset
from servers import TcpServer

CONNECT, UDP_ASSOCIATE = 1, 3
NO_AUTH, USER_PASSWORD, NO_METHOD = 0, 2, 0xFF


class Closed(Exception):
    """The conversation is over."""


class Rude:
    def __init__(self, space, host, port=0, names=None):
        self.space = space
        self.host = host
        self.names = names or {}  # what CONNECT by name leads to
        self.tame()
        self._server = TcpServer(space, self._serve, port=port, host=host)
        self.port = self._server.port

    def tame(self):
        self.delay, self.cut, self.noise, self.mute = {}, {}, {}, set()
        self.drip = self.method = self.auth = self.udp_mangle = None
        self.reply, self.bound, self.glue = 0, "ipv4", b""
        self.reset = self.deaf = self.stall = False
        self.udp, self.udp_bound = "relay", "exact"
        self.requests, self.closed, self.controls, self.first_reads = [], [], [], []
        self.credentials = []
        self.connections = 0  # TCP connections that said something (start-up checks do not)
        self.upstream_sources = []  # relay sockets' own ports towards the world
        self.udp_clients = []  # where associations' datagrams came from

    def open_connections(self):
        return self._server.open_connections()

    def close_controls(self):
        """Close every association's control connection."""
        for control in self.controls:
            _shut(control)

    def close(self):
        self._server.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- the conversation ---------------------------------------------------------------------

    def _serve(self, client):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not client.recv(1, socket.MSG_PEEK):
            return
        self.connections += 1
        try:
            self._wait("accept", client)
            reader = _Reader(client)
            self._greeting(client, reader)
            command, host, port = self._request(client, reader)
            if command == UDP_ASSOCIATE:
                self._associate(client)
            else:
                self._connect(client, reader, host, port)
        except Closed:
            self.closed.append("fin")
        except ConnectionResetError:
            self.closed.append("reset")
        if self.reset:
            reset(client)

    def _wait(self, step, client):
        time.sleep(self.delay.get(step, 0))
        if step in self.mute:
            while client.recv(4096):
                pass
            raise Closed

    def _answer(self, client, step, data):
        """Send a step's answer in whatever form was asked for."""
        self._wait(step, client)
        data = self.noise.get(step, data)
        if step in self.cut:
            data = data[: self.cut[step]]
        drip = self.drip
        if drip is None:
            client.sendall(data)
        else:
            for byte in data:
                client.sendall(bytes([byte]))
                time.sleep(drip)
        if step in self.cut or step in self.noise:
            raise Closed

    def _greeting(self, client, reader):
        version, count = reader.exactly(2)
        methods = reader.exactly(count)
        assert version == 5, f"greeting has version {version}"
        self.first_reads.append(2 + count + len(reader.rest))
        if self.deaf:
            reader.rest = b""
        method = self.method
        if method is None:
            method = USER_PASSWORD if self.auth else NO_AUTH
            if method not in methods:
                method = NO_METHOD
        self._answer(client, "greeting", bytes([5, method]))
        if method == NO_METHOD:
            raise Closed
        if method == USER_PASSWORD:
            self._auth(client, reader)

    def _auth(self, client, reader):
        version, length = reader.exactly(2)
        assert version == 1, f"sub-negotiation has version {version}"
        user = reader.exactly(length)
        password = reader.exactly(reader.exactly(1)[0])
        self.credentials.append((user.decode(), password.decode()))
        good = self.auth in (None, (user.decode(), password.decode()))
        self._answer(client, "auth", bytes([1, 0 if good else 1]))
        if not good:
            raise Closed

    def _request(self, client, reader):
        version, command, _, kind = reader.exactly(4)
        assert version == 5, f"request has version {version}"
        host = _read_host(reader, kind)
        port = int.from_bytes(reader.exactly(2), "big")
        self.requests.append((command, host, port))
        return command, host, port

    def _reply(self, code, address=("0.0.0.0", 0), bound=None):
        bound = bound or self.bound
        if bound == "domain":
            where = b"\x03\x0aproxy.test"
        elif bound == "ipv6" and ":" not in address[0]:
            where = b"\x04" + ipaddress.ip_address("::").packed
        else:
            where = _pack_host(address[0])
        return bytes([5, code, 0]) + where + struct.pack("!H", address[1])

    # --- CONNECT ------------------------------------------------------------------------------

    def _connect(self, client, reader, host, port):
        if self.reply:
            self._answer(client, "request", self._reply(self.reply))
            raise Closed
        upstream = None
        if not self.glue:
            target = self.names.get(host.lower(), host)
            try:
                upstream = self.space.connect(target, port, timeout=10)
            except (OSError, ValueError):
                self._answer(client, "request", self._reply(5))
                raise Closed from None
            upstream.settimeout(None)
        self._answer(client, "request", self._reply(0) + self.glue)
        if self.stall:
            poll = select.poll()
            poll.register(client, 0)  # errors and hang-ups alone
            poll.poll(60000)
            raise Closed
        if upstream is None:
            while client.recv(1 << 16):
                pass
            raise Closed
        upstream.sendall(reader.rest)
        self._splice(client, upstream)

    def _splice(self, client, upstream):
        outcome = []
        back = threading.Thread(target=_pump, args=(upstream, client, []), daemon=True)
        back.start()
        _pump(client, upstream, outcome)
        back.join()
        upstream.close()
        self.closed.append(outcome[0])

    # --- UDP ASSOCIATE ------------------------------------------------------------------------

    def _associate(self, client):
        if self.udp == "close":
            return
        if self.udp in ("refuse", "deny"):
            self._answer(client, "request", self._reply(7 if self.udp == "refuse" else 2))
            raise Closed
        relay = self.space.udp(self.host, 0, timeout=None)
        address = relay.getsockname()[:2]
        if self.udp_bound == "any":
            address = ("::" if ":" in self.host else "0.0.0.0", address[1])
        self.controls.append(client)
        try:
            self._answer(client, "request", self._reply(0, address, bound="exact"))
            threading.Thread(target=self._relay, args=(relay,), daemon=True).start()
            while client.recv(4096):
                pass
            raise Closed
        finally:
            _shut(relay)
            relay.close()

    def _relay(self, relay):
        """Datagrams of one association: to the world from one socket a family, and back."""
        state = {"client": None}
        worlds = {}
        try:
            while True:
                data, peer = relay.recvfrom(65535)
                if not peer:
                    break
                if state["client"] is None:
                    self.udp_clients.append(peer[:2])
                state["client"] = peer
                if len(data) < 10 or data[2] != 0:
                    continue
                reader = _Reader(None, data[4:])
                host = _read_host(reader, data[3])
                port = int.from_bytes(reader.exactly(2), "big")
                host = self.names.get(host.lower(), host)
                family = family_of(host)
                if family not in worlds:
                    worlds[family] = self._world_socket(family, relay, state)
                try:
                    worlds[family].sendto(reader.rest, (host, port))
                except OSError:
                    pass
        except OSError:
            pass
        for world in worlds.values():
            _shut(world)
            world.close()

    def _world_socket(self, family, relay, state):
        world = self.space.udp(family=family, timeout=None)
        self.upstream_sources.append(world.getsockname()[1])
        threading.Thread(target=self._back, args=(world, relay, state), daemon=True).start()
        return world

    def _back(self, world, relay, state):
        try:
            while True:
                data, remote = world.recvfrom(65535)
                if not remote:
                    return
                header = b"\0\0\0" + _pack_host(remote[0]) + struct.pack("!H", remote[1])
                answers = [header + data]
                if self.udp_mangle:
                    answers = self.udp_mangle(answers[0])
                for answer in answers:
                    relay.sendto(answer, state["client"])
        except OSError:
            pass


class _Reader:
    """Reads exactly n bytes; what one read brought past that stays in `rest`."""

    def __init__(self, sock, rest=b""):
        self.sock = sock
        self.rest = rest

    def exactly(self, count):
        while len(self.rest) < count:
            data = self.sock.recv(4096) if self.sock else b""
            if not data:
                raise Closed
            self.rest += data
        head, self.rest = self.rest[:count], self.rest[count:]
        return head


def _read_host(reader, kind):
    if kind == 3:
        return reader.exactly(reader.exactly(1)[0]).decode("latin-1")
    return str(ipaddress.ip_address(reader.exactly({1: 4, 4: 16}[kind])))


def _pack_host(host):
    address = ipaddress.ip_address(host)
    return (b"\x01" if address.version == 4 else b"\x04") + address.packed


def _pump(source, sink, outcome):
    """Copy until FIN or reset, and pass either on."""
    try:
        while data := source.recv(1 << 17):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
        outcome.append("fin")
    except ConnectionResetError:
        outcome.append("reset")
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _disconnect(sink)
    except OSError:
        outcome.append("ours")
        _shut(source)


def _disconnect(sock):
    """Send a RST now, though other threads still hold the descriptor (connect to AF_UNSPEC)."""
    unspec = struct.pack("=H14x", socket.AF_UNSPEC)
    ctypes.CDLL(None).connect(sock.fileno(), unspec, len(unspec))


def _shut(sock):
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
