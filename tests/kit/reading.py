"""Reading a socket without the core, for comparison, and where a test has a socket of its own."""

import socket

MAX_BYTES = 4096  # in one read


class InPython:
    """As ipcqueue._direct, which an endpoint reads with: but it swallows no doorbells."""

    @staticmethod
    def receive(sock, flags, whole, into, room, most=-1, wary=False):
        size, space = MAX_BYTES, MAX_BYTES
        if most >= 0:
            space = min(space, socket.CMSG_SPACE((most + 1) * 4))
        if wary:
            # Without room for them none is made; it only says that some come.
            data, _, said, _ = sock.recvmsg(size, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            if data and said & socket.MSG_CTRUNC:
                return -1 - data[-1]
            size = len(data) or size
        into.extend(map(sock.recvmsg, (size,), (space,), (flags,)))
        return 0
