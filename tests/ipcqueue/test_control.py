"""The table of two-byte messages, and the parser that cuts a stream into them."""

import os
import struct

import pytest

from ipcqueue import _errors
from ipcqueue._errors import (
    Closed,
    CorruptPeer,
    CredentialsRefused,
    EndOfStream,
    HandshakeTimeout,
    LimitRefused,
    PeerDied,
    RecordRefused,
    Refused,
    RoleRefused,
    SealsRefused,
    SizeRefused,
    VersionRefused,
)
from ipcqueue._link.control import (
    HELLO,
    ControlParser,
    Opcode,
    Reason,
    application_message,
    err,
    reason_of,
    refusal,
)

REASONS = {
    1: Refused,
    2: VersionRefused,
    3: RecordRefused,
    4: SealsRefused,
    5: SizeRefused,
    6: CredentialsRefused,
    7: RoleRefused,
    8: LimitRefused,
}
UNKNOWN_REASONS = [0, 9, 255]
DOORBELLS = b"\x01\x00\x01\xff\x02\x07\x02\x80"


def test_the_numbers_on_the_wire_are_those_of_the_design():
    assert {opcode.name: int(opcode) for opcode in Opcode} == {
        "WRITE": 1,
        "READ": 2,
        "HELLO": 16,
        "FDS": 17,
        "ERR": 100,
    }
    assert HELLO == b"\x10\x01"
    assert [int(reason) for reason in Reason] == list(REASONS)


class TestParser:
    def test_nothing_gives_nothing(self):
        assert ControlParser().feed(b"") == ([], None)

    def test_doorbells_say_nothing_whatever_their_argument(self):
        assert ControlParser().feed(DOORBELLS) == ([], None)

    def test_one_read_may_bring_many_messages_in_order_between_doorbells(self):
        read = b"\x80\x00" + DOORBELLS + b"\xff\x01" + b"\x01\x02" + b"\x80\x00"
        assert ControlParser().feed(read) == ([b"\x80\x00", b"\xff\x01", b"\x80\x00"], None)

    @pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
    def test_it_does_not_matter_where_the_stream_is_cut(self, step):
        sent = [bytes((128 + n % 128, n)) for n in range(200)]
        stream = b"\x01\x81".join(sent)  # arguments that look like opcodes
        parser, got = ControlParser(), []
        for at in range(0, len(stream), step):
            messages, error = parser.feed(stream[at : at + step])
            assert error is None
            got += messages
        assert got == sent

    def test_half_a_message_waits_for_its_other_half(self):
        parser = ControlParser()
        assert parser.feed(b"\x85") == ([], None)
        assert parser.feed(b"") == ([], None)
        assert parser.feed(b"\x03\x86") == ([b"\x85\x03"], None)
        assert parser.feed(b"\x04") == ([b"\x86\x04"], None)

    def test_every_opcode_without_meaning_is_a_corrupt_peer(self):
        for opcode in set(range(128)) - {1, 2, 17, 100}:
            with pytest.raises(CorruptPeer, match=rf"\b{opcode}\b"):
                ControlParser().feed(DOORBELLS + bytes((opcode, 1)))

    def test_an_opcode_without_meaning_is_seen_across_a_cut(self):
        parser = ControlParser()
        parser.feed(b"\x01\x01\x10")
        with pytest.raises(CorruptPeer, match="16"):
            parser.feed(b"\x01")

    @pytest.mark.parametrize(("argument", "kind"), REASONS.items())
    def test_err_ends_the_stream_after_the_messages_before_it(self, argument, kind):
        read = b"\x80\x01\x64" + bytes((argument,)) + b"\x80\x02\x00\x00"
        messages, error = ControlParser().feed(read)
        assert messages == [b"\x80\x01"]
        assert type(error) is kind

    def test_err_cut_in_two_is_err(self):
        parser = ControlParser()
        assert parser.feed(b"\x80\x01\x64") == ([b"\x80\x01"], None)
        assert type(parser.feed(b"\x03")[1]) is RecordRefused


class TestErr:
    @pytest.mark.parametrize(("argument", "kind"), REASONS.items())
    def test_each_reason_becomes_its_error_and_back(self, argument, kind):
        error = refusal(argument)
        assert type(error) is kind
        assert err(error) == bytes((100, argument))

    def test_the_message_says_the_reason(self):
        texts = {str(refusal(reason)) for reason in Reason}
        assert len(texts) == len(Reason)
        said = (
            f"does not admit this user: the server's option allow_uids must name uid {os.geteuid()}"
        )
        assert said in str(refusal(Reason.CREDENTIALS))

    def test_what_the_peer_calls_our_fault_is_not_called_its_own(self):
        # CorruptPeer would say that the peer broke the protocol.
        assert type(refusal(Reason.PROTOCOL)) is Refused
        assert "we broke the protocol" in str(refusal(Reason.PROTOCOL))

    @pytest.mark.parametrize("argument", UNKNOWN_REASONS)
    def test_a_reason_of_a_later_version_is_still_a_refusal(self, argument):
        error = refusal(argument)
        assert type(error) is Refused
        assert str(argument) in str(error)

    @pytest.mark.parametrize(
        "kind", [CorruptPeer, PeerDied, HandshakeTimeout, Closed, EndOfStream, Refused]
    )
    def test_errors_without_a_reason_of_their_own_are_about_the_protocol(self, kind):
        assert reason_of(kind("why")) is Reason.PROTOCOL
        assert err(kind("why")) == b"\x64\x01"

    @pytest.mark.parametrize("kind", [OSError, BlockingIOError])
    def test_what_is_short_here_is_a_limit_to_the_peer(self, kind):
        assert reason_of(kind("why")) is Reason.LIMIT
        assert err(kind("why")) == b"\x64\x08"

    def test_every_kind_of_refusal_has_a_reason_of_its_own(self):
        kinds = [Refused, *Refused.__subclasses__()]
        assert sorted(reason_of(kind("why")) for kind in kinds) == sorted(Reason)
        named = {kind for kind in vars(_errors).values() if isinstance(kind, type)}
        assert {kind for kind in named if issubclass(kind, Refused)} == set(kinds)


class TestApplicationMessage:
    @pytest.mark.parametrize("message", [b"\x80\x00", b"\xff\xff", b"\x80\x64"])
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_two_bytes_from_128_on_are_the_applications(self, message, kind):
        checked = application_message(kind(message))
        assert type(checked) is bytes
        assert checked == message

    @pytest.mark.parametrize(
        "message",
        [b"", b"\x80", b"\x80\x00\x00", b"\x7f\x80", b"\x00\x00", b"\x01\x00", b"\x64\x01", HELLO],
    )
    def test_other_bytes_are_refused_and_shown(self, message):
        with pytest.raises(ValueError) as caught:
            application_message(message)
        assert repr(message) in str(caught.value)

    @pytest.mark.parametrize("message", ["\x80\x00", 128, None, [128, 0], (128, 0)])
    def test_what_is_not_bytes_is_a_type_error(self, message):
        with pytest.raises(TypeError, match=type(message).__name__):
            application_message(message)

    def test_a_view_counts_in_bytes(self):
        two_items = memoryview(struct.pack("HH", 1, 2)).cast("H")
        with pytest.raises(ValueError):
            application_message(two_items)

    def test_what_may_be_sent_is_what_the_parser_delivers(self):
        for opcode in range(256):
            message = bytes((opcode, 9))
            try:
                sendable = application_message(message)
            except ValueError:
                continue
            assert ControlParser().feed(sendable) == ([message], None)
