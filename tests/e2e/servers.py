"""Servers of the tests' own, in a namespace: TCP with a handler a connection, UDP echo, DNS."""

import ipaddress
import socket
import threading

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from netns import family_of, reset


def _wake(sock):
    """Make a thread that is blocked on the socket return."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # not connected: woken all the same


class TcpServer:
    """Listens on every address (or on `host`) and calls handler(connection) in a thread each.

    A connection is closed when its handler returns. `errors` collects what handlers raised, and
    `peers` who connected.
    """

    def __init__(self, space, handler, port=0, host="::", backlog=1024):
        self.handler = handler
        self.errors = []
        self.peers = []
        self._open = set()
        self._lock = threading.Lock()
        self.sock = space.socket(family_of(host), socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.sock.bind((host, port))
        self.sock.listen(backlog)
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, peer = self.sock.accept()
            except OSError:
                return
            self.peers.append(peer[:2])
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        try:
            self.handler(connection)
        except (OSError, AssertionError) as error:
            self.errors.append(error)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def open_connections(self):
        with self._lock:
            return len(self._open)

    def close(self):
        with self._lock:
            sockets = [self.sock, *self._open]
        for sock in sockets:
            _wake(sock)
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def echo(connection):
    """Echo until the peer's FIN, then send ours."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def resetting(connection):
    """Read something, then reset."""
    connection.recv(1)
    reset(connection)


class UdpEcho:
    """Answers each datagram with itself from the address it was sent to (bound, no wildcard).

    `peers` counts the source addresses seen; `last` is the latest datagram's source.
    """

    def __init__(self, space, host, port=7):
        self.sock = space.socket(family_of(host), socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.sock.bind((host, port))
        self.port = self.sock.getsockname()[1]
        self.peers = {}
        self.last = None
        self._closing = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                data, peer = self.sock.recvfrom(65535)
            except OSError:
                return
            if self._closing:
                return
            self.peers[peer[:2]] = self.peers.get(peer[:2], 0) + 1
            self.last = peer
            try:
                self.sock.sendto(data, peer)
            except OSError:
                pass  # an ICMP error of an earlier answer

    def close(self):
        self._closing = True
        _wake(self.sock)
        self.sock.close()


class DnsServer:
    """Answers A and AAAA, and any other rdata given as text, for the names of `zone`.

    zone: {"www.test": ["10.88.0.2", "fd88::2", ("TXT", '"words"')]}; others get NXDOMAIN.
    `queries` lists (transport, name as asked, type).
    """

    def __init__(self, space, host, zone, port=53, ttl=60):
        self.zone = zone
        self.ttl = ttl
        self.queries = []
        self._closing = False
        self._udp = space.socket(family_of(host), socket.SOCK_DGRAM)
        self._udp.bind((host, port))
        self._tcp = TcpServer(space, self._serve_tcp, port=port, host=host)
        threading.Thread(target=self._serve_udp, daemon=True).start()

    def answer(self, wire, transport):
        query = dns.message.from_wire(wire)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA | dns.flags.RA
        question = query.question[0]
        asked = question.name.to_text()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.queries.append((transport, asked, kind))
        records = self.zone.get(asked.rstrip(".").lower())
        if records is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        values = [value for record in records or [] for value in _values(record, kind)]
        if values:
            rrset = dns.rrset.from_text(question.name, self.ttl, "IN", kind, *values)
            response.answer.append(rrset)
        limit = max(query.payload, 512) if transport == "udp" else 65535
        try:
            return response.to_wire(max_size=limit)
        except dns.exception.TooBig:
            response.answer.clear()
            response.flags |= dns.flags.TC
            return response.to_wire()

    def _serve_udp(self):
        while True:
            try:
                wire, peer = self._udp.recvfrom(65535)
                if self._closing:
                    return
                self._udp.sendto(self.answer(wire, "udp"), peer)
            except OSError:
                if self._closing:
                    return
            except dns.exception.DNSException:
                pass

    def _serve_tcp(self, connection):
        stream = connection.makefile("rb")
        while len(head := stream.read(2)) == 2:
            wire = stream.read(int.from_bytes(head, "big"))
            answer = self.answer(wire, "tcp")
            connection.sendall(len(answer).to_bytes(2, "big") + answer)

    def close(self):
        self._closing = True
        _wake(self._udp)
        self._udp.close()
        self._tcp.close()


def _values(record, kind):
    if isinstance(record, tuple):
        return [record[1]] if record[0] == kind else []
    version = {"A": 4, "AAAA": 6}.get(kind)
    return [record] if ipaddress.ip_address(record).version == version else []
