"""A SOCKS5 client by hand (RFC 1928, RFC 1929): every byte as the test wants it."""

import ipaddress
import socket
import struct

CONNECT, BIND, UDP_ASSOCIATE = 1, 2, 3
SUCCEEDED, FAILURE, NOT_ALLOWED, NET_UNREACHABLE, HOST_UNREACHABLE, REFUSED, _TTL, \
    COMMAND_UNSUPPORTED, ADDRESS_UNSUPPORTED = range(9)


def address(host, port):
    """ATYP, address and port."""
    try:
        packed = ipaddress.ip_address(host).packed
        return bytes([1 if len(packed) == 4 else 4]) + packed + struct.pack("!H", port)
    except ValueError:
        name = host.encode()
        return bytes([3, len(name)]) + name + struct.pack("!H", port)


def parse_address(data):
    """(host, port, what follows) of ATYP and so on."""
    kind = data[0]
    if kind == 3:
        size = data[1]
        return (data[2:2 + size].decode(), struct.unpack_from("!H", data, 2 + size)[0],
                data[4 + size:])
    size = {1: 4, 4: 16}[kind]
    return (str(ipaddress.ip_address(data[1:1 + size])),
            struct.unpack_from("!H", data, 1 + size)[0], data[3 + size:])


def login(user, password):
    return (bytes([1, len(user)]) + user.encode() + bytes([len(password)]) + password.encode())


def request(command, host, port):
    return bytes([5, command, 0]) + address(host, port)


def read_exactly(sock, n):
    data = b""
    while len(data) < n:
        more = sock.recv(n - len(data))
        if not more:
            raise EOFError(f"closed after {data!r}, {n} bytes expected")
        data += more
    return data


def read_reply(sock):
    """(REP, host, port) of a reply; not a byte more is read."""
    head = read_exactly(sock, 4)
    assert head[0] == 5 and head[2] == 0, head
    size = {1: 4, 4: 16}[head[3]]
    rest = read_exactly(sock, size + 2)
    host, port, _ = parse_address(head[3:] + rest)
    return head[1], host, port


class Refused(Exception):
    def __init__(self, reply):
        super().__init__(f"reply {reply}")
        self.reply = reply


def greet(sock, auth=None):
    """Greeting and, with auth=(user, password), credentials."""
    sock.sendall(bytes([5, 1, 2 if auth else 0]))
    assert read_exactly(sock, 2) == bytes([5, 2 if auth else 0])
    if auth:
        sock.sendall(login(*auth))
        assert read_exactly(sock, 2) == b"\x01\x00"


def ask(space, proxy, command, host, port, auth=None, timeout=15.0):
    """A connection on which the request was made: (socket, bound host, bound port)."""
    sock = space.connect(proxy[0], proxy[1], timeout=timeout)
    try:
        greet(sock, auth)
        sock.sendall(request(command, host, port))
        reply, bound_host, bound_port = read_reply(sock)
        if reply != SUCCEEDED:
            raise Refused(reply)
    except BaseException:
        sock.close()
        raise
    return sock, bound_host, bound_port


def connect(space, proxy, host, port, **kwargs):
    return ask(space, proxy, CONNECT, host, port, **kwargs)[0]


def reply_code(space, proxy, host, port, **kwargs):
    """What CONNECT is answered with."""
    try:
        connect(space, proxy, host, port, **kwargs).close()
        return SUCCEEDED
    except Refused as refusal:
        return refusal.reply


class Association:
    """UDP ASSOCIATE: `send(payload, host, port)`, `receive()` -> (payload, host, port)."""

    def __init__(self, space, proxy, timeout=5.0, hint=None):
        self.family = socket.AF_INET6 if ":" in proxy[0] else socket.AF_INET
        any_host = "::" if self.family == socket.AF_INET6 else "0.0.0.0"
        self.udp = space.udp(any_host, timeout=timeout)
        port = self.udp.getsockname()[1] if hint is None else hint
        self.control, host, port = ask(space, proxy, UDP_ASSOCIATE, any_host, port)
        self.relay = (host, port)

    def send(self, payload, host, port, fragment=0):
        self.udp.sendto(bytes([0, 0, fragment]) + address(host, port) + payload, self.relay)

    def receive(self):
        data, source = self.udp.recvfrom(65535)
        assert source[:2] == self.relay
        assert data[:3] == b"\0\0\0"
        host, port, payload = parse_address(data[3:])
        return payload, host, port

    def close(self):
        self.udp.close()
        self.control.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
