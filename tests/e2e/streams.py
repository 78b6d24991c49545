"""Byte streams whose every byte is known, and a server that takes and gives them."""

import random
import socket
import struct

MIB = 1 << 20
_PERIOD = 13 * MIB
_POOL = random.Random(1928).randbytes(_PERIOD)
_POOL += _POOL[:MIB]  # so that a piece of up to 1 MiB never has to be put together


def piece(seed, position, length):
    """`length` (at most 1 MiB) bytes of stream `seed` from `position` on; each seed differs."""
    start = (seed * 1299709 + position) % _PERIOD
    return _POOL[start:start + length]


def send(sock, seed, total):
    done = 0
    while done < total:
        data = piece(seed, done, min(MIB, total - done))
        sock.sendall(data)
        done += len(data)


def expect(sock, seed, total):
    """Receive exactly `total` bytes of the stream; fail at the first that differs."""
    done = 0
    while done < total:
        data = sock.recv(min(256 << 10, total - done))
        assert data, f"end of stream after {done} of {total} bytes"
        assert data == piece(seed, done, len(data)), \
            f"stream differs within bytes {done} to {done + len(data)}"
        done += len(data)


def expect_end(sock):
    data = sock.recv(1 << 16)
    assert data == b"", f"{len(data)} bytes more than were sent"


def ask(sock, mode, seed, total):
    """Tell the stream server what to do: see serve_stream."""
    sock.sendall(mode + struct.pack("!IQ", seed, total))


def serve_stream(sock):
    """A server for one connection: mode, seed and length come first, then

    U  take the stream, check it, wait for FIN, answer "ok" or what is wrong, FIN
    V  the same, but answer without waiting for FIN
    D  give the stream, FIN, wait for FIN
    L  give the stream and FIN at once, then take as much until FIN; the verdict is in the end:
       FIN for right, reset for wrong (nothing can be sent any more)
    """
    head = b""
    while len(head) < 13:
        data = sock.recv(13 - len(head))
        if not data:
            return
        head += data
    mode, (seed, total) = head[:1], struct.unpack("!IQ", head[1:])
    if mode in (b"U", b"V"):
        sock.sendall(_verdict(sock, seed, total, until_end=mode == b"U"))
    elif mode == b"D":
        send(sock, seed, total)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass
    elif mode == b"L":
        send(sock, seed, total)
        sock.shutdown(socket.SHUT_WR)
        verdicts.append(_verdict(sock, seed + 1, total))


verdicts = []  # of mode L, in the order of their ends


def _verdict(sock, seed, total, until_end=True):
    try:
        expect(sock, seed, total)
        if until_end:
            expect_end(sock)
    except AssertionError as problem:
        return f"server saw: {problem}".encode()
    return b"ok"


def upload(sock, seed, total, half_close=True):
    """Send a stream to the stream server, FIN, and fail unless all of it arrived as sent."""
    ask(sock, b"U" if half_close else b"V", seed, total)
    send(sock, seed, total)
    if half_close:
        sock.shutdown(socket.SHUT_WR)
    verdict = b""
    while data := sock.recv(1 << 16):
        verdict += data
    assert verdict == b"ok", verdict.decode() or "no verdict: the answer after our FIN was lost"


def download(sock, seed, total):
    ask(sock, b"D", seed, total)
    expect(sock, seed, total)
    expect_end(sock)
