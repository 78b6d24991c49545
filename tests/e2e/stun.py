"""A STUN server (RFC 8489, RFC 5780) on two addresses, in a namespace, for check's tests."""

import ipaddress
import socket
import struct
import threading

from netns import family_of

COOKIE = 0x2112A442
REQUEST, SUCCESS = 0x0001, 0x0101
CHANGE_REQUEST, XOR_MAPPED, OTHER = 0x0003, 0x0020, 0x802C
CHANGE_BOTH = 6


class StunServer:
    """Answers Binding requests on `hosts`; a CHANGE-REQUEST is answered from the other of the two.

    requests    (host asked, source, whether the answer was to come from elsewhere)
    moves       from where sources seem to be: function(host asked, source) -> source
    other       whether it tells of its other address
    filtered    answers from the address that was not asked are not sent, as if a NAT dropped them
    """

    def __init__(self, space, *hosts, port=3478):
        self.hosts, self.port = hosts, port
        self.tame()
        self._closing = False
        self._socks = []
        for host in hosts:
            sock = space.socket(family_of(host), socket.SOCK_DGRAM)
            sock.bind((host, port))
            self._socks.append(sock)
        for index in range(len(hosts)):
            threading.Thread(target=self._run, args=(index,), daemon=True).start()

    def tame(self):
        self.requests = []
        self.moves = lambda host, source: source
        self.other = len(self.hosts) > 1
        self.filtered = False

    def _run(self, index):
        while True:
            try:
                data, source = self._socks[index].recvfrom(2048)
            except OSError:
                return
            if self._closing:
                return
            self._answer(index, data, source)

    def _answer(self, index, data, source):
        kind, length, cookie = struct.unpack("!HHI", data[:8])
        assert (kind, cookie, length) == (REQUEST, COOKIE, len(data) - 20)
        elsewhere = data[20:] == struct.pack("!HHI", CHANGE_REQUEST, 4, CHANGE_BOTH)
        assert elsewhere or length == 0
        self.requests.append((self.hosts[index], source[:2], elsewhere))
        if elsewhere and self.filtered:
            return
        seen = self.moves(self.hosts[index], source[:2])
        mask = data[4:20]
        body = attribute(XOR_MAPPED, address(seen, mask))
        if self.other:
            body += attribute(OTHER, address((self.hosts[1 - index], self.port), bytes(16)))
        answer = struct.pack("!HH", SUCCESS, len(body)) + mask + body
        sock = self._socks[1 - index if elsewhere and self.other else index]
        sock.sendto(answer, source)

    def close(self):
        self._closing = True
        for sock in self._socks:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()


def attribute(kind, value):
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def address(endpoint, mask):
    """RFC 8489, 14.1 and, with a mask that is not zero, 14.2."""
    host = ipaddress.ip_address(endpoint[0])
    port = endpoint[1] ^ int.from_bytes(mask[:2], "big")
    hidden = bytes(a ^ b for a, b in zip(host.packed, mask))
    return struct.pack("!BBH", 0, 1 if host.version == 4 else 2, port) + hidden
