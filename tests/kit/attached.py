"""Descriptors and regions that can be told apart, to go along with messages."""

import contextlib
import gc
import os
from pathlib import Path

import fdpass
from tests.kit.settling import settle


def numbered(number):
    """Make a file that can be told apart, by its size."""
    fd = fdpass.Fd(os.memfd_create(f"number {number}"))
    os.ftruncate(fd.fileno(), number)
    return fd


def number_of(fd):
    return os.fstat(fd.fileno()).st_size


@contextlib.contextmanager
def numbers(*wanted):
    files = [numbered(number) for number in wanted]
    try:
        yield files
    finally:
        for file in files:
            file.close()


@contextlib.contextmanager
def region_of(data, **options):
    with fdpass.MemoryRegion.create(len(data), **options) as region:
        region.buffer[:] = data
        yield region


def open_descriptors():
    gc.collect()
    settle()
    return len(list(Path("/proc/self/fd").iterdir()))
