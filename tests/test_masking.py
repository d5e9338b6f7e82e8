"""No part of a login is shown: addresses, options, texts of libraries, and what they print by themselves."""

import subprocess
import sys

import pytest

from sensorium.masking import (
    Login,
    masked,
    masked_address,
    masked_document,
    secrets_of,
    split_login,
    with_login,
)

LOGINS = [
    ("http://ada:Xq@7rT4uv@127.0.0.1:18473/video", "http://127.0.0.1:18473/video", "Xq@7rT4uv"),
    ("http://ada:Xq/7rT4uv@127.0.0.1:18473/video", "http://127.0.0.1:18473/video", "Xq/7rT4uv"),
    ("http://ada:Xq//7r@T4uv@cam.local:80/a", "http://cam.local:80/a", "Xq//7r@T4uv"),
    ("http://ada:12/34abcd@192.0.2.3/video", "http://192.0.2.3/video", "12/34abcd"),
    ("http://ada:se?cret#word@cam:80/video?size=1x2", "http://cam:80/video?size=1x2", "se?cret#word"),
    ("http://ada:p@ss/wo:rd7@host:80/x", "http://host:80/x", "p@ss/wo:rd7"),
    ("http://ada:p%40ss%2Fword@h.local/x", "http://h.local/x", "p@ss/word"),
    ("RTSP://ada:secret@[fe80::1]:554/live", "RTSP://[fe80::1]:554/live", "secret"),
    ("rtsp://ada:sec//ret@cam/live", "rtsp://cam/live", "sec//ret"),
    ("http://ada:two words@cam/x", "http://cam/x", "two words"),
]
QUERIES = [
    ("http://192.0.2.1/video.cgi?usr=ada&pwd=Zk8Wn3yb", "http://192.0.2.1/video.cgi?usr=***&pwd=***"),
    ("http://cam/x?size=1x2&PassWord=Zk8Wn3yb&fps=5", "http://cam/x?size=1x2&PassWord=***&fps=5"),
    ("http://cam/x?access_token=Zk8Wn3yb", "http://cam/x?access_token=***"),
    ("http://cam/x;apikey=Zk8Wn3yb;fps=5", "http://cam/x;apikey=***;fps=5"),
    ("http://cam/x#auth=Zk8Wn3yb", "http://cam/x#auth=***"),
    (
        "rtsp://cam:554/user=admin&password=Zk8Wn3yb&channel=1",
        "rtsp://cam:554/user=***&password=***&channel=1",
    ),
    ("rtsp://cam:554/user=admin_password=Zk8Wn3yb_channel=1_stream=0.sdp?real", "rtsp://cam:554/user=***"),
    ("http://cam/x?mail=a@b.c&pass=Zk8Wn3yb", "http://cam/x?mail=a@b.c&pass=***"),
]


@pytest.mark.parametrize(("address", "bare", "password"), LOGINS)
def test_a_password_may_hold_any_sign_as_it_is_and_no_part_of_it_is_shown(
    address: str, bare: str, password: str
) -> None:
    assert split_login(address) == (bare, Login("ada", password))
    shown = masked_address(address)
    assert shown == bare.replace("://", "://***@", 1)
    strict = with_login(bare, Login("ada", password))
    assert split_login(strict) == (bare, Login("ada", password))
    assert masked(f"{strict}: cannot be opened", secrets_of(address)) == f"{shown}: cannot be opened"


def test_where_a_login_ends_in_two_ways_more_is_masked_than_is_sent() -> None:
    address = "http://ada:Xq@7rT4uv/9Lm2@cam/x"
    assert split_login(address)[0] == "http://7rT4uv/9Lm2@cam/x", "as RFC 3986 reads it"
    assert masked_address(address) == "http://***@cam/x"
    assert (
        masked("no route to 7rT4uv (path /9Lm2@cam/x)", secrets_of(address))
        == "no route to *** (path /***@cam/x)"
    )


@pytest.mark.parametrize(("address", "shown"), QUERIES)
def test_values_of_secret_keys_are_masked_wherever_they_stand_in_an_address(address: str, shown: str) -> None:
    assert masked_address(address) == shown
    assert "Zk8Wn3yb" in secrets_of(address)


@pytest.mark.parametrize(
    "address",
    [
        "http://192.0.2.1:8080/stream?fps=5",
        "http://cam/x?mail=a@b.c",
        "http://[fe80::1%25eth0]:80/x",
        "file:///var/lib/x",
        "/dev/video0",
        "clip@home.avi",
    ],
)
def test_an_address_without_a_secret_is_shown_as_it_is(address: str) -> None:
    assert masked_address(address) == address
    assert not secrets_of(address)
    assert split_login(address) == (address, None)


def test_a_token_in_the_place_of_the_user_is_a_secret() -> None:
    assert masked_address("http://tok3n99@cam/x") == "http://***@cam/x"
    assert "tok3n99" in secrets_of("http://tok3n99@cam/x")


def test_an_address_inside_the_query_of_another_hides_its_login_too() -> None:
    assert "Zk8Wn3yb" not in masked_address("http://relay/x?from=rtsp%3A%2F%2Fada%3AZk8Wn3yb%40cam%2Flive")


def test_pieces_that_a_library_cut_out_of_an_address_are_masked_in_its_texts() -> None:
    secrets = secrets_of("http://ada:Xq@7rT4uv/9Lm2@cam:80/x")
    for text in (
        "nonnumeric port: '7rT4uv'",
        "unknown host 7rT4uv/9Lm2@cam",
        "open http://ada:Xq%407rT4uv%2F9Lm2@cam failed",
        "open ada:xq%407rT4uv%2f9Lm2@cam failed".replace("xq", "Xq"),
        "Authorization: Basic YWRhOlhxQDdyVDR1di85TG0y",
    ):
        shown = masked(text, secrets)
        assert all(part not in shown for part in ("7rT4uv", "9Lm2", "YWRhOlhx")), shown


def test_addresses_in_a_text_are_masked_without_knowing_them() -> None:
    text = "cannot open 'rtsp://ada:Xq@7rT4uv@192.0.2.4/x': refused (http://cam/b?token=abc1, try again)"
    assert masked(text) == "cannot open 'rtsp://***@192.0.2.4/x': refused (http://cam/b?token=***, try again)"


def test_options_are_shown_without_what_is_secret_in_them() -> None:
    options = {
        "device": "http://ada:Zk8Wn3yb@cam/x",
        "password": 123456,
        "zones": [{"api_key": "abcdef"}],
        "hz": 5,
    }
    assert masked_document(options) == {
        "device": "http://***@cam/x",
        "password": "***",
        "zones": [{"api_key": "***"}],
        "hz": 5,
    }
    assert {"Zk8Wn3yb", "123456", "abcdef"} <= secrets_of(options)


PRINTS = """
import os, sys
from sensorium.masking import MaskedOutput
MaskedOutput.begin({"Zk8Wn3yb"})
os.write(2, b"[tcp] a library prints Zk8W")
os.write(2, b"n3yb in two pieces\\n")
print("and on standard output: rtsp://ada:other77@cam/x")
os.system("echo a child prints Zk8Wn3yb >&2")
sys.stderr.write("no end of line, Zk8Wn3yb")
raise ValueError("Zk8Wn3yb")
"""


def test_what_a_process_and_its_libraries_print_passes_the_mask_to_the_last_line() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, timeout=60, check=False)
    text = done.stderr.decode()
    assert done.returncode == 1
    assert "[tcp] a library prints *** in two pieces\n" in text
    assert "rtsp://***@cam/x" in text
    assert "a child prints ***" in text
    assert "no end of line, ***" in text
    assert text.rstrip().endswith("ValueError: ***")
    assert "Zk8W" not in text + done.stdout.decode()


def test_a_crash_inside_a_library_still_leaves_its_trace() -> None:
    code = (
        "import faulthandler; faulthandler.enable()\n"
        "from sensorium.masking import MaskedOutput; MaskedOutput.begin({'Zk8Wn3yb'})\n"
        "faulthandler._sigsegv()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode < 0
    assert b"Segmentation fault" in done.stderr
