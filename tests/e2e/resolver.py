"""A DNS server over TCP that does as it is told, and a client's questions out of a namespace."""

import socket
import threading
import time

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from netns import family_of, reset
from servers import TcpServer

RESOLVER = "198.18.0.2"  # any address that is routed into the tunnel would do


def frame(wire):
    """RFC 1035, 4.2.2: behind its length."""
    return len(wire).to_bytes(2, "big") + wire


class Resolver:
    """Answers over TCP from a zone {name: {type: [rdata as text]}}, and misbehaves on request.

    behave      function(resolver, connection number, query) -> bytes to send, None: nothing, or
                "close" or "reset" (the connection)
    ttl, soa    of what it answers; soa is the MINIMUM in negative answers, None: without SOA
    queries     (connection number, message) as they came
    datagrams   what came over UDP, which nothing should
    """

    def __init__(self, space, host, port=53):
        self.host = host
        self.tame()
        self.connections = 0
        self._lock = threading.Lock()
        self._udp = space.socket(family_of(host), socket.SOCK_DGRAM)
        self._udp.bind((host, port))
        self._tcp = TcpServer(space, self._serve, port=port, host=host)

    def tame(self):
        self.zone, self.ttl, self.soa = {}, 60, 60
        self.behave = None
        self.queries, self.connections = [], 0

    def datagrams(self):
        self._udp.setblocking(False)
        try:
            return [self._udp.recv(65535)]
        except BlockingIOError:
            return []

    def names(self):
        return [query.question[0].name.to_text().rstrip(".") for _, query in list(self.queries)]

    def answer(self, query):
        """The right answer, as a message."""
        question = query.question[0]
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        kind = dns.rdatatype.to_text(question.rdtype)
        name = question.name.to_text().rstrip(".").lower()
        values = self.zone.get(name, {}).get(kind, [])
        if values:
            response.answer.append(
                dns.rrset.from_text(question.name, self.ttl, "IN", kind, *values))
            return response
        if name not in self.zone:
            response.set_rcode(dns.rcode.NXDOMAIN)
        if self.soa is not None:
            response.authority.append(dns.rrset.from_text(
                "test.", 3600, "IN", "SOA", f"ns.test. host.test. 1 3600 600 86400 {self.soa}"))
        return response

    def _serve(self, connection):
        with self._lock:
            self.connections += 1
            number = self.connections
        stream = connection.makefile("rb")
        while len(head := stream.read(2)) == 2:
            query = dns.message.from_wire(stream.read(int.from_bytes(head, "big")))
            self.queries.append((number, query))
            if self.behave:
                out = self.behave(self, number, query)
            else:
                out = frame(self.answer(query).to_wire(max_size=65535))
            if out == "reset":
                reset(connection)
                return
            if out == "close":
                return
            if out:
                connection.sendall(out)

    def open_connections(self):
        return self._tcp.open_connections()

    def close(self):
        self._tcp.close()
        self._udp.close()


# --- the client's side ---------------------------------------------------------------------------

def ask(app, name, kind="A", server=RESOLVER, tcp=False, timeout=5.0, **options):
    """Ask as an application in the namespace `app`; the answer as a message."""
    query = dns.message.make_query(name, kind, **options)
    wire = query.to_wire()
    if tcp:
        with app.connect(server, 53, timeout=timeout) as sock:
            sock.sendall(frame(wire))
            data = read_frame(sock)
    else:
        with app.udp(family=family_of(server), timeout=timeout) as sock:
            sock.sendto(wire, (server, 53))
            data, source = sock.recvfrom(65535)
            assert source[:2] == (server, 53), f"the answer came from {source[:2]}"
    answer = dns.message.from_wire(data)
    assert answer.id == query.id
    assert answer.flags & dns.flags.QR
    assert answer.question[0].name.labels == query.question[0].name.labels, "the case differs"
    return answer


def read_exactly(sock, count):
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, f"closed after {len(data)} of {count} bytes"
        data += more
    return data


def read_frame(sock):
    return read_exactly(sock, int.from_bytes(read_exactly(sock, 2), "big"))


def values(answer):
    """The rdata of the answer section, as text."""
    return [rdata.to_text() for rrset in answer.answer for rdata in rrset]


def address(app, name, kind="A", **kwargs):
    """The one address in the answer."""
    answer = ask(app, name, kind, **kwargs)
    assert answer.rcode() == dns.rcode.NOERROR, answer.to_text()
    found = values(answer)
    assert len(found) == 1, answer.to_text()
    return found[0]


def seconds(function, *args, **kwargs):
    begin = time.monotonic()
    function(*args, **kwargs)
    return time.monotonic() - begin
