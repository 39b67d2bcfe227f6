"""Which uids say nothing about who somebody is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fdpass

NOBODY = 65534


def test_the_overflow_uid_is_a_user_where_all_users_are_mapped():
    whole = Path("/proc/self/uid_map").read_text().split()[2] == str(0xFFFFFFFF)
    assert fdpass.is_ambiguous_uid(NOBODY) is not whole
    assert fdpass.is_ambiguous_uid(0) is False
    assert fdpass.is_ambiguous_uid(os.geteuid()) is (os.geteuid() == NOBODY and not whole)


@pytest.mark.parametrize(
    ("overflow", "uid_map", "uid", "ambiguous"),
    [
        ("65534\n", "         0          0 4294967295\n", 65534, False),
        ("65534\n", "0 0 65534\n65534 65534 4294901761\n", 65534, False),
        ("65534\n", "0 1000 1\n", 65534, True),
        ("65534\n", "0 1000 1\n1 100000 65536\n", 65534, True),  # it is mapped, and yet
        ("65534\n", "", 65534, True),
        ("99\n", "0 1000 1\n", 99, True),
        ("99\n", "0 1000 1\n", 65534, False),
        (None, "0 1000 1\n", 65534, True),
        ("65534\n", None, 65534, True),
        ("65534\n", "what is this\n", 65534, True),
        ("65534\n", "0 1000 1\n", 0, False),
    ],
)
def test_the_kernel_says_which_uid_is_ambiguous(monkeypatch, overflow, uid_map, uid, ambiguous):
    texts = {"/proc/sys/kernel/overflowuid": overflow, "/proc/self/uid_map": uid_map}

    def read_text(path):
        if texts[str(path)] is None:
            raise PermissionError
        return texts[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert fdpass.is_ambiguous_uid(uid) is ambiguous
