#!/usr/bin/env python3
"""Plays QEMU and a guest for the runner's tests: speaks QMP, sends guest events,
and ends as FAKE_QEMU says."""

import json
import os
import socket
import struct
import sys


def connect(chardev):
    """The socket of a chardev, as QEMU with server=off."""
    for word in sys.argv:
        parts = word.split(",")
        if parts[0] == "socket" and f"id={chardev}" in parts:
            path = next(p for p in parts if p.startswith("path=")).removeprefix("path=")
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(path)
            return connection
    return None


mode = os.environ["FAKE_QEMU"]
if mode == "dies at once":
    print("could not open disk image\x1b[2J", file=sys.stderr)
    sys.exit(1)

qmp = connect("qmp").makefile("rw")
events = connect("events")


def say(**event):
    events.sendall(json.dumps(event).encode() + b"\n")


def reply(message):
    qmp.write(json.dumps(message) + "\n")
    qmp.flush()


def serve_qmp_until(*commands):
    """Answers QMP until one of the commands comes."""
    for line in qmp:
        message = json.loads(line)
        reply({"return": {}, "id": message["id"]})
        if message["execute"] in commands:
            return message["execute"]
    sys.exit("QMP was closed")


reply({"QMP": {"version": {}, "capabilities": []}})
serve_qmp_until("qmp_capabilities")
if mode == "loops in firmware":
    serve_qmp_until("quit")
    sys.exit(0)

say(event="booted")
if mode == "powers off silently":
    sys.exit(0)
if mode == "fails":
    say(event="failed", message="no root disk")
    sys.exit(0)
if mode == "asks for a report":
    port = connect("psp")
    port.sendall(struct.pack("<I", 96) + bytes([5] * 64) + bytes(32))
    stream = port.makefile("rb")
    (length,) = struct.unpack("<I", stream.read(4))
    with open(os.environ["FAKE_QEMU_OUTPUT"], "wb") as output:
        output.write(stream.read(length))
    say(event="exited", code=0)
    sys.exit(0)
events.sendall(b"not json\n" + b"x" * 100000 + b"\n")
say(event="attested")
say(event="running")
if mode.startswith("exits "):
    say(event="exited", code=int(mode.removeprefix("exits ")))
    sys.exit(0)
if mode == "crashes after exit event":
    say(event="exited", code=0)
    os.abort()
if mode == "is killed":
    os.kill(os.getpid(), 9)
if mode == "obeys the power button":
    serve_qmp_until("system_powerdown")
    say(event="exited", code=3)
    sys.exit(0)
if mode == "ignores the power button":
    serve_qmp_until("quit")
    sys.exit(0)
sys.exit(f"unknown mode {mode}")
