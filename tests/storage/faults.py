"""A small proxy before a server that spoils some of the requests: throttled, failed, cut off, stalled, with a wrong
byte.
"""

import random
import re
import socket
import struct
import threading
import time
from collections import Counter

from ranks import free_port

ANSWERS = {
    "throttled": (503, "SlowDown", "Please reduce your request rate."),
    "failed": (500, "InternalError", "We encountered an internal error. Please try again."),
    "skewed": (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
    ),
    "denied": (403, "AccessDenied", "Access Denied"),
    "gone": (404, "NoSuchBucket", "The specified bucket does not exist"),
}
FAULTS = ("throttled", "failed", "skewed", "reset", "stalled", "flipped")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class FaultProxy:
    """Passes requests on, one for each connection. `kind` of fault is done to a share `rate` of them; `count` of what
    was done.
    """

    def __init__(self, upstream: int, seed: int = 0) -> None:
        self.upstream, self.kind, self.rate = upstream, "", 0.0
        self.only = ""  # faults for requests whose first line has this
        self.left = -1  # how many more of them; -1: no limit
        self.count: Counter[str] = Counter()
        self._draw = random.Random(seed)
        self.port = free_port()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                self._handle(client)
            except OSError:
                return

    def _handle(self, client: socket.socket) -> None:
        head, body = self._head(client)
        if not head:
            return
        length = _LENGTH.search(head)
        if re.search(rb"\r\nexpect:", head, re.IGNORECASE):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"\r\nexpect:[^\r]*", b"", head, flags=re.IGNORECASE)
        parts = bytearray(body)
        while length and len(parts) < int(length[1]):
            part = client.recv(1 << 20)
            if not part:
                return
            parts += part
        body = bytes(parts)
        line = head.split(b"\r\n", 1)[0].decode()
        self.count["requests"] += 1
        spoil = self.kind and self.only in line and self.left and self._draw.random() < self.rate
        self.left -= bool(spoil and self.left > 0)
        if spoil and self.kind in ANSWERS:
            status, code, message = ANSWERS[self.kind]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            text = b"" if line.startswith("HEAD") else text
            self.count[self.kind] += 1
            client.sendall(
                f"HTTP/1.1 {status} {code}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text
            )
            return
        whole_object = "?" not in line or "partNumber" in line  # not a listing, which only TLS protects
        if spoil and self.kind == "flipped" and line.startswith("PUT") and body and whole_object:
            body = self._flip(body)
        if spoil and self.kind == "reset" and line.startswith("PUT"):
            self._reset(client)
            return
        answer = self._ask(head, body)
        at = answer.find(b"\r\n\r\n") + 4
        if spoil and self.kind == "flipped" and line.startswith("GET") and whole_object and answer[9:10] == b"2":
            answer = answer[:at] + self._flip(answer[at:])
        if spoil and self.kind in ("reset", "stalled"):
            client.sendall(answer[: at + max(0, len(answer) - at) // 2])
            if self.kind == "reset":
                self._reset(client)
            else:
                self.count["stalled"] += 1
                time.sleep(1.5)
            return
        client.sendall(answer)

    def _head(self, client: socket.socket) -> tuple[bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            part = client.recv(1 << 16)
            if not part:
                return b"", b""
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        return head, body

    def _ask(self, head: bytes, body: bytes) -> bytes:
        head = re.sub(rb"\r\nconnection:[^\r]*", b"", head, flags=re.IGNORECASE) + b"\r\nConnection: close\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.upstream)) as server:
            server.sendall(head + body)
            parts = []
            while part := server.recv(1 << 20):
                parts.append(part)
        return b"".join(parts)

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return data
        self.count["flipped"] += 1
        spoilt = bytearray(data)
        spoilt[self._draw.randrange(len(spoilt))] ^= 1 << self._draw.randrange(8)
        return bytes(spoilt)

    def _reset(self, client: socket.socket) -> None:
        self.count["reset"] += 1
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends RST
