"""The part that thinks, with bytes alone: no descriptor is opened here."""

import array
import errno
import itertools
import socket

import pytest

import fdpass
from fdpass import _rights


def message(data, *numbers, flags=0):
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers).tobytes())]
    return data, ancillary if numbers else [], flags | socket.MSG_CMSG_CLOEXEC, None


def test_packing_and_unpacking_are_inverse():
    numbers = list(range(_rights.MAX_FDS))
    [(level, kind, payload)] = _rights.pack(numbers)
    assert _rights.unpack([(level, kind, payload.tobytes())]) == (numbers, [])


def test_a_list_cut_inside_a_number_gives_the_whole_ones():
    _, [(level, kind, payload)], _, _ = message(b"x", 7, 8)
    assert _rights.unpack([(level, kind, payload[:-1])]) == ([7], [])


def test_several_lists_are_read_in_order_and_other_kinds_are_not_descriptors():
    _, first, _, _ = message(b"x", 7)
    _, second, _, _ = message(b"x", 8, 9)
    credentials = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, bytes(12))
    elsewhere = (socket.IPPROTO_IP, socket.SCM_RIGHTS, bytes(4))
    assert _rights.unpack([*first, credentials, elsewhere, *second]) == ([7, 8, 9], [])


def test_a_pidfd_from_the_kernel_is_a_stray_descriptor():
    pidfd = (socket.SOL_SOCKET, 4, array.array("i", [5]).tobytes())
    assert _rights.unpack([pidfd]) == ([], [5])


def test_the_control_buffer_has_room_for_every_descriptor_and_credentials():
    ints = array.array("i").itemsize
    assert socket.CMSG_SPACE(253 * ints) + socket.CMSG_SPACE(3 * ints) <= _rights.ANCILLARY_SPACE


def test_delays_are_bounded_by_the_timeout():
    everything = list(_rights.delays(None))
    assert everything == sorted(everything)
    assert sum(everything) < 1
    assert list(_rights.delays(0)) == []
    assert sum(_rights.delays(0.01)) <= 0.01
    assert list(_rights.delays(60)) == everything


class TestOutgoing:
    @pytest.mark.parametrize("count", [0, 254])
    def test_the_number_of_descriptors_is_checked(self, count):
        with pytest.raises(ValueError, match=rf"1 to 253 .*received {count}"):
            _rights.Outgoing([0] * count, b"x")

    @pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b"")])
    def test_no_data_is_refused(self, empty):
        with pytest.raises(ValueError, match=r"at least 1 byte.*received 0"):
            _rights.Outgoing([0], empty)

    @pytest.mark.parametrize("wrong", [3, "text"])
    def test_what_is_no_bytes_is_refused(self, wrong):
        with pytest.raises(TypeError):
            _rights.Outgoing([0], wrong)

    def test_a_negative_number_is_a_closed_descriptor(self):
        with pytest.raises(fdpass.ClosedFd, match="-1"):
            _rights.Outgoing([-1], b"x")

    def test_descriptors_leave_with_the_first_byte_only(self):
        outgoing = _rights.Outgoing(iter([3, 4]), b"abcd")
        [data], [(_, _, numbers)], flags = outgoing.message()
        assert (bytes(data), list(numbers), flags) == (b"abcd", [3, 4], socket.MSG_NOSIGNAL)
        outgoing.sent(1)
        [data], rights, flags = outgoing.message()
        assert (bytes(data), rights, flags) == (b"bcd", [], socket.MSG_NOSIGNAL)
        assert not outgoing.finished
        outgoing.sent(3)
        assert outgoing.finished

    def test_items_larger_than_bytes_are_counted_in_bytes(self):
        outgoing = _rights.Outgoing([3], memoryview(array.array("I", [1, 2])))
        outgoing.sent(7)
        assert not outgoing.finished
        outgoing.sent(1)
        assert outgoing.finished

    def test_too_many_in_flight_is_tried_again_as_often_as_the_table_says(self):
        outgoing = _rights.Outgoing([3], b"x")
        refusal = OSError(errno.ETOOMANYREFS, "too many references")
        waited = tuple(outgoing.failed(refusal) for _ in _rights.RETRY_DELAYS)
        assert waited == _rights.RETRY_DELAYS
        with pytest.raises(fdpass.TooManyInFlight, match="too many references"):
            outgoing.failed(refusal)

    def test_a_bad_descriptor_is_a_closed_one(self):
        with pytest.raises(fdpass.ClosedFd, match=r"\[3, 4\]"):
            _rights.Outgoing([3, 4], b"x").failed(OSError(errno.EBADF, "bad"))

    @pytest.mark.parametrize(
        "error", [BrokenPipeError(errno.EPIPE, "broken"), TimeoutError("late")]
    )
    def test_other_errors_stay_what_they_are(self, error):
        with pytest.raises(type(error)) as caught:
            _rights.Outgoing([3], b"x").failed(error)
        assert caught.value is error

    def test_blocking_in_the_middle_says_how_much_was_sent(self):
        outgoing = _rights.Outgoing([3], b"abc")
        error = BlockingIOError(errno.EAGAIN, "again")
        with pytest.raises(BlockingIOError) as caught:
            outgoing.failed(error)
        assert caught.value is error
        outgoing.sent(2)
        with pytest.raises(BlockingIOError, match="2 of 3 bytes") as caught:
            outgoing.failed(error)
        assert caught.value.characters_written == 2


class TestIncomingOne:
    one = _rights.expect_one(b"tag", stream=True)
    packet = _rights.expect_one(b"tag", stream=False)

    @pytest.mark.parametrize("cuts", [*itertools.combinations(range(1, 3), 1), (1, 2), ()])
    def test_a_stream_is_read_to_the_last_byte_of_the_tag_wherever_it_is_cut(self, cuts):
        bounds = [0, *cuts, 3]
        messages = []
        for start, end in itertools.pairwise(bounds):
            assert self.one.missing(messages) == 3 - start
            messages.append(message(b"tag"[start:end], *([9] if start == 0 else [])))
        assert self.one.missing(messages) == 0

    @pytest.mark.parametrize("last", range(3))
    def test_the_descriptor_may_come_with_any_byte(self, last):
        messages = [message(bytes([b]), *([9] if i == last else [])) for i, b in enumerate(b"tag")]
        assert self.one.missing(messages) == 0

    def test_the_end_of_the_stream_is_told_wherever_it_comes(self):
        for before in ([], [message(b"t", 9)]):
            with pytest.raises(fdpass.Disconnected, match="expected 3 bytes"):
                self.one.missing([*before, message(b"")])

    def test_another_tag_is_refused(self):
        with pytest.raises(fdpass.WrongTag) as caught:
            self.one.missing([message(b"tug", 9)])
        assert (caught.value.expected, caught.value.received) == (b"tag", b"tug")

    @pytest.mark.parametrize("numbers", [(), (7, 8)])
    def test_another_number_of_descriptors_is_refused(self, numbers):
        with pytest.raises(fdpass.WrongDescriptors) as caught:
            self.one.missing([message(b"tag", *numbers)])
        assert (caught.value.expected, caught.value.received) == (1, len(numbers))

    def test_a_surplus_is_refused_before_the_tag_is_complete(self):
        with pytest.raises(fdpass.WrongDescriptors):
            self.one.missing([message(b"t", 7), message(b"a", 8)])

    def test_a_packet_shorter_than_the_tag_is_not_waited_for(self):
        with pytest.raises(fdpass.WrongTag):
            self.packet.missing([message(b"ta", 9)])

    def test_a_packet_without_data_but_a_descriptor_is_not_the_end(self):
        with pytest.raises(fdpass.WrongTag):
            self.packet.missing([message(b"", 9)])
        with pytest.raises(fdpass.Disconnected):
            self.packet.missing([message(b"")])

    def test_a_packet_longer_than_the_tag_is_cut_and_refused(self):
        with pytest.raises(fdpass.TruncatedData, match="at most 3 bytes"):
            self.packet.missing([message(b"tag", 9, flags=socket.MSG_TRUNC)])

    def test_an_empty_tag_is_refused(self):
        with pytest.raises(ValueError, match="at least 1 byte"):
            _rights.expect_one(b"", stream=True)


class TestIncomingSome:
    def test_one_result_is_enough(self):
        some = _rights.expect_some(2, 100)
        assert some.missing([]) == 100
        for result in (message(b""), message(b"x"), message(b"x", 7, 8)):
            assert some.missing([result]) == 0

    @pytest.mark.parametrize("limit", [0, 2])
    def test_more_than_the_limit_is_refused(self, limit):
        with pytest.raises(fdpass.WrongDescriptors) as caught:
            _rights.expect_some(limit, 100).missing([message(b"x", 7, 8, 9)])
        assert (caught.value.expected, caught.value.received) == (limit, 3)

    def test_a_cut_list_is_refused_even_if_enough_came(self):
        with pytest.raises(fdpass.TruncatedDescriptors):
            _rights.expect_some(2, 100).missing([message(b"x", 7, 8, flags=socket.MSG_CTRUNC)])

    @pytest.mark.parametrize("limit", [-1, 254])
    def test_limits_of_descriptors_that_make_no_sense_are_refused(self, limit):
        with pytest.raises(ValueError, match=f"0 to 253, received {limit}"):
            _rights.expect_some(limit, 1)

    def test_no_room_for_data_is_refused(self):
        with pytest.raises(ValueError, match="at least 1, received 0"):
            _rights.expect_some(1, 0)
