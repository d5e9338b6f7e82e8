"""MJPEG over HTTP as cameras really send it: logins, and streams that begin or part their images in other ways."""

from collections.abc import Callable, Iterator, Sequence

import pytest
from camera_server import Gate, counted_parts, jpeg, mjpeg_server, uncounted_parts

from sensorium.drivers.links.http_login import authorization, challenges
from sensorium.drivers.links.mjpeg import MjpegStream
from sensorium.errors import DeviceError
from sensorium.masking import Login

IMAGES = [jpeg(index) for index in range(4)]
PASSWORD = 'Xq@7r"T4/uv'
WRITTEN = "Xq@7r%22T4/uv"
MULTIPART = "multipart/x-mixed-replace; boundary=frame"


def bodies(url: str) -> list[bytes]:
    """Return the images of a stream to its end."""
    stream = MjpegStream(url, 5.0)
    found: list[bytes] = []
    with pytest.raises(DeviceError, match=r"closed the connection|ended its stream"):
        found += (part.body for part in stream.parts())
    stream.close()
    return found


def of_the_form(head: bytes, tail: bytes, images: Sequence[bytes] = IMAGES) -> Callable[[], Iterator[bytes]]:
    """Return a body of images, each between two texts; a ``%d`` stands for its length."""
    return lambda: ((head.replace(b"%d", b"%d" % len(image)) + image + tail) for image in images)


HEADERS = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
BARE = b"Content-Type: image/jpeg\r\n\r\n"


@pytest.mark.parametrize(
    ("content_type", "head", "tail"),
    [
        (MULTIPART, HEADERS, b"\r\n--frame\r\n"),
        (MULTIPART, BARE, b"\r\n--frame\r\n"),
        ("multipart/x-mixed-replace", HEADERS, b"\r\n--frame\r\n"),
        ("multipart/x-mixed-replace", BARE, b"\r\n--frame\r\n"),
        ('multipart/x-mixed-replace; boundary="frame"', BARE, b"\r\n--frame\r\n"),
        ('multipart/x-mixed-replace;charset=utf-8;boundary="a b=c;d"', HEADERS, b"\r\n--a b=c;d\r\n"),
        ("multipart/x-mixed-replace; boundary=--frame", BARE, b"\r\n--frame\r\n"),
        ("multipart/x-mixed-replace; boundary=--frame", BARE, b"\r\n----frame\r\n"),
        (MULTIPART, b"frame\r\n" + HEADERS, b"\r\n"),
        (MULTIPART, b"frame\r\n" + BARE, b"\r\n"),
        (MULTIPART, b"--frame\n" + HEADERS.replace(b"\r", b""), b"\n"),
        (MULTIPART, b"--frame \r\n" + HEADERS, b"\r\n"),
        (MULTIPART, b"\r\n\r\n--frame\r\n" + HEADERS, b""),
        (MULTIPART, b"--frame\r\n" + BARE, b""),
        (MULTIPART, BARE, b"--frame\r\n"),
        (MULTIPART, b"--frame\r\ncontent-length: %d\r\n\r\n", b"\r\n"),
        (MULTIPART, b"--frame\r\n\r\n", b"\r\n"),
        (MULTIPART, b"--frame\r\nContent-Length: 7\r\n\r\n", None),
    ],
)
def test_images_pass_byte_for_byte_however_a_camera_parts_them(
    content_type: str, head: bytes, tail: bytes | None
) -> None:
    if tail is None:  # a wrong length costs that image, not the stream
        wrong = head + IMAGES[0] + b"\r\n"
        right = b"--frame\r\n" + HEADERS % len(IMAGES[1]) + IMAGES[1] + b"\r\n"
        with mjpeg_server(lambda: iter([wrong, right]), content_type) as url:
            assert bodies(url)[1:] == [IMAGES[1]]
        return
    with mjpeg_server(of_the_form(head, tail), content_type) as url:
        assert bodies(url) == IMAGES


def test_what_a_camera_says_before_its_first_image_is_no_image() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"HTTP/1.0 200 OK\r\nServer: twice\r\nConnection: close\r\n\r\n"
        yield from uncounted_parts(IMAGES, b"--frame")

    with mjpeg_server(chunks, MULTIPART) as url:
        assert bodies(url) == IMAGES


def test_a_still_image_is_refused_with_the_advice_to_use_the_stream() -> None:
    with (
        mjpeg_server(lambda: iter([IMAGES[0]]), "image/jpeg") as url,
        pytest.raises(DeviceError, match="MJPEG address"),
    ):
        next(MjpegStream(url, 5.0).parts())


OFFERS = [
    ('Digest realm="cam", nonce="n0nce/+=", qop="auth", algorithm=MD5, opaque="op"',),
    ('Digest realm="cam", nonce="n0nce"',),
    ('Digest realm="c, a=b m", nonce="n", qop="auth-int,auth"',),
    ('Digest realm="cam", nonce="n", qop="auth-int"',),
    ('Digest qop="auth", realm="cam", nonce="n", algorithm="MD5-sess"',),
    ('Digest realm="cam", nonce="n", qop="auth", algorithm=SHA-256',),
    ('Digest realm="cam", nonce="n", qop=auth, algorithm=SHA-256-sess', 'Basic realm="cam"'),
    ('Basic realm="cam", Digest realm="cam", nonce="n", qop="auth"',),
]


@pytest.mark.parametrize("offers", OFFERS)
def test_a_camera_that_offers_digest_never_gets_the_password_itself(offers: tuple[str, ...]) -> None:
    gate = Gate("ada", PASSWORD, offers)
    with mjpeg_server(lambda: counted_parts(IMAGES, b"--frame"), MULTIPART, gate=gate) as url:
        assert bodies(url.replace("//", f"//ada:{WRITTEN}@") + "?size=1x2&a=%20b") == IMAGES
    assert gate.asked[0] == ""
    assert [said.split()[0] for said in gate.asked[1:]] == ["Digest"]


@pytest.mark.parametrize("offers", [('Basic realm="cam"',), ('basic realm="cam", charset="UTF-8"',), ()])
def test_basic_is_spoken_where_nothing_better_is_offered(offers: tuple[str, ...]) -> None:
    gate = Gate("ada", PASSWORD, tuple(offer.capitalize() for offer in offers))
    with mjpeg_server(lambda: counted_parts(IMAGES, b"--frame"), MULTIPART, gate=gate) as url:
        assert bodies(url.replace("//", f"//ada:{WRITTEN}@")) == IMAGES
    assert [said.split()[0] for said in gate.asked[1:]] == ["Basic"]


def test_an_old_nonce_is_replaced_and_a_wrong_password_is_not_tried_twice() -> None:
    gate = Gate("ada", PASSWORD, OFFERS[0], stale=1)
    with mjpeg_server(lambda: counted_parts(IMAGES, b"--frame"), MULTIPART, gate=gate) as url:
        assert bodies(url.replace("//", f"//ada:{WRITTEN}@")) == IMAGES
        assert len(gate.asked) == 3
        with pytest.raises(DeviceError, match="does not take the login") as refused:
            MjpegStream(url.replace("//", "//ada:wr0ngword@"), 5.0)
        assert len(gate.asked) == 5
        assert "wr0ngword" not in str(refused.value)


def test_a_way_to_log_in_that_is_not_known_is_named() -> None:
    gate = Gate("ada", PASSWORD, ("Negotiate", 'Digest realm="x", nonce="n", algorithm=SHA-9'))
    with (
        mjpeg_server(lambda: iter(()), MULTIPART, gate=gate) as url,
        pytest.raises(DeviceError, match=r"by digest SHA-9, negotiate; Digest .* and Basic are known"),
    ):
        MjpegStream(url.replace("//", "//ada:secret@"), 5.0)


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_the_answer_to_the_standards_own_example_is_the_standards(algorithm: str, response: str) -> None:
    offer = (
        'Digest realm="http-auth@example.org", qop="auth, auth-int", '
        f"algorithm={algorithm}, "
        'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
    )
    said = authorization(
        challenges([offer]),
        Login("Mufasa", "Circle of Life"),
        "GET",
        "/dir/index.html",
        cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
    )
    assert said is not None
    assert f'response="{response}"' in said
    assert "qop=auth, nc=00000001" in said


def test_challenges_are_read_as_they_are_written() -> None:
    found = challenges(
        ['Basic realm="a, b=c", Digest realm="say \\"x\\"",nonce=n1 , qop="auth,auth-int"', "Negotiate"]
    )
    assert [(each.scheme, each.fields) for each in found] == [
        ("basic", {"realm": "a, b=c"}),
        ("digest", {"realm": 'say "x"', "nonce": "n1", "qop": "auth,auth-int"}),
        ("negotiate", {}),
    ]


def test_damaged_challenges_end_in_no_endless_loop() -> None:
    for text in ("", ",,,", '"', 'Digest realm="open', "Digest =,=", "\0", "Digest " + "a=b," * 500):
        authorization(challenges([text]), Login("ada", None), "GET", "/")
