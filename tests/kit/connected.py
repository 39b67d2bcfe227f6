"""Two ends of one connection in one thread, wherever in the ring they are to begin."""

import contextlib
import gc
import os
import struct
from functools import partial
from unittest import mock

import pytest

from ipcqueue._link import ends as _ends
from ipcqueue._ring.end import Place
from ipcqueue.lowlevel import Terms, open_pair
from memenpsf import Interface
from tests.kit.hostile import BOTH_WAYS, HEAD, TAIL, poke


@contextlib.contextmanager
def connection(spec=bytes, *, start=0, other=None, **options):
    """Two sides in one process; `other` are options of the second, which are as the first's."""
    both = [options, options | (other or {})]
    terms = [Terms(each.pop("record", spec), BOTH_WAYS, **each) for each in both]
    with mock.patch.object(_ends, "Place", partial(Place, start=start)):
        endpoints = open_pair(*terms)
    for endpoint in endpoints:
        poke(endpoint, HEAD, struct.pack("=Q", start))
        poke(endpoint, TAIL, struct.pack("=Q", start))
    one, another = map(Interface.of, endpoints)
    with one, another:
        yield one, another


def inode(fd):
    return os.fstat(fd if isinstance(fd, int) else fd.fileno()).st_ino


@pytest.fixture(scope="module", autouse=True)
def quick_collector():
    """Have gc.collect() look only at what these tests make: it is called around each of them."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
