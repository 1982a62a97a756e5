"""Text of other programs reaches a terminal without control sequences."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.client.test_command import command  # noqa: F401 - a fixture

from tritonembed_protocol.printable import printable, printable_json

EVIL = {
    "red": ("\x1b[31mred\x1b[0m", "red"),
    "cleared screen": ("a\x1b[2J\x1b[1;1Hb", "ab"),
    "8-bit CSI": ("a\x9b31mb", "ab"),
    "title": ("a\x1b]0;owned\x07b", "ab"),
    "title with ST": ("a\x1b]0;owned\x1b\\b", "ab"),
    "link": ("\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\", "here"),
    "title that never ends": ("a\x1b]0;owned", "a ]0;owned"),
    "reset": ("a\x1bcb", "ab"),
    "return": ("safe\revil", "safe evil"),
    "lines": ("one\n\r\ntwo\n", "one two"),
    "backspaces": ("good\b\b\b\bevil", "good evil"),
    "bell and null": ("a\x07\x00b", "a b"),
    "line separator": ("a\u2028b", "a b"),
    "direction": ("a\u202egnp.exe", "a gnp.exe"),
    "surrogate": ("a\udcffb", "a b"),
}


@pytest.mark.parametrize(("text", "clean"), EVIL.values(), ids=EVIL.keys())
def test_control_sequences_are_removed_and_the_words_stay(text, clean):
    assert printable(text) == clean
    assert printable_json({text: [text, 1, None]}) == {clean: [clean, 1, None]}


def test_words_of_every_language_stay():
    text = "zwei Wörter, 世界, мир, 🙂, é"
    assert printable(text) == text


@given(st.text(st.characters(min_codepoint=0, max_codepoint=0x2FFF)))
def test_no_control_character_is_ever_left(text):
    clean = printable(text)
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029\u202e" for c in clean)
    assert printable(clean) == clean


@pytest.mark.parametrize("arguments", [("embed", "1"), ("health",)])
def test_a_servers_message_reaches_the_terminal_as_one_clean_line(command, server, arguments):  # noqa: F811
    server.infer = lambda request, context: context.abort(grpc.StatusCode.INTERNAL, "\x1b[31mit broke\x1b]0;a\x07\nb")
    code, out, err = command(*arguments)
    assert (code, out) == (1, "")
    assert err.endswith("it broke b\n")
    assert err[:-1].isprintable()
