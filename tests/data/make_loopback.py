"""Makes loopback.pcap and loopback.pcapng: see README.md.

    unshare --net python make_loopback.py       # as root, with tcpdump and dumpcap

The namespace holds nothing but this traffic: no packet of anybody else can get in.
"""

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
PAUSE = 0.05  # seconds between two exchanges, so that there is something to pace

CAPTURES = [
    # Classic pcap in nanoseconds; of a packet at most 600 bytes.
    "tcpdump -i lo -n -s 600 --time-stamp-precision=nano --immediate-mode -w loopback.pcap",
    # pcapng of two interfaces with their own link types and snapshot lengths.
    "dumpcap -q -i lo -s 128 -i any -w loopback.pcapng",
]


def udp(family, host, sizes):
    with (
        socket.socket(family, socket.SOCK_DGRAM) as server,
        socket.socket(family, socket.SOCK_DGRAM) as client,
    ):
        server.bind((host, 0))
        client.bind((host, 0))
        for size in sizes:
            time.sleep(PAUSE)
            client.sendto(
                bytes(range(256)) * (size // 256) + b"x" * (size % 256), server.getsockname()
            )
            data, sender = server.recvfrom(65536)
            server.sendto(b"got %d" % len(data), sender)


def tcp(host):
    with socket.create_server((host, 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data.upper())

        thread = threading.Thread(target=answer)
        thread.start()
        with socket.create_connection(listener.getsockname()) as client:
            for size in 1, 100, 1460, 5000:
                time.sleep(PAUSE)
                client.sendall(b"t" * size)
                client.recv(size, socket.MSG_WAITALL)
        thread.join()


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    return ~(total % 0xFFFF) & 0xFFFF


def ping(host, times):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        for number in range(times):
            time.sleep(PAUSE)
            rest = struct.pack(">HH", 4711, number) + b"echo" * 14
            head = struct.pack(">BBH", 8, 0, 0)
            raw.sendto(struct.pack(">BBH", 8, 0, checksum(head + rest)) + rest, (host, 0))


def main():
    os.chdir(HERE)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    running = []
    for command in CAPTURES:
        process = subprocess.Popen(command.split(), stderr=subprocess.PIPE, text=True)
        while not re.search("listening on|File:", process.stderr.readline()):
            pass
        running.append(process)
    time.sleep(1)
    udp(socket.AF_INET, "127.0.0.1", [0, 5, 100, 601, 4000])
    udp(socket.AF_INET6, "::1", [17, 1000])
    tcp("127.0.0.1")
    ping("127.0.0.1", 3)
    time.sleep(2)
    for process in running:
        process.send_signal(signal.SIGINT)
        process.wait()
    for name in "loopback.pcap", "loopback.pcapng":
        os.chown(name, 0, 0)
        Path(name).chmod(0o644)
    return 0


if __name__ == "__main__":
    sys.exit(main())
