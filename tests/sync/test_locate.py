"""One function finds an episode: in a spool, in a store, as a copy; and says what is there where none is."""

import shutil
from pathlib import Path

import pytest
from episode_samples import sealed_episode
from upload_samples import EPISODE_ID, begin_spool, seal_episode

from sensorium.errors import EpisodeError, SensoriumError, UsageError
from sensorium.sync.episode.manifest import read_manifest, stored_name
from sensorium.sync.episode.reader import Episode
from sensorium.sync.reading.locate import Place, folder_of, locate


def stored(episode: Path, store: Path) -> Path:
    """Copy an episode as a store keeps it."""
    folder = store / "episodes" / episode.name
    folder.mkdir(parents=True)
    shutil.copy(episode / "manifest.json", folder)
    for file in read_manifest(episode).files:
        shutil.copy(episode / file.name, folder / stored_name(file))
    return folder


@pytest.fixture
def episode(tmp_path: Path) -> Path:
    spool, _ = begin_spool(tmp_path / "spool")
    return seal_episode(spool)


@pytest.mark.parametrize("state", ["sealed", "held", "gone", "open"])
def test_an_id_is_found_in_every_state_of_its_spool(episode: Path, state: str) -> None:
    spool = episode.parent.parent
    (spool / state).mkdir(exist_ok=True)
    episode.rename(spool / state / "scratch")
    (spool / state / "scratch").rename(spool / state / EPISODE_ID)
    found = locate(EPISODE_ID, spool)
    assert (found.folder, found.place, found.is_delivered) == (
        spool / state / EPISODE_ID,
        Place.SPOOL,
        False,
    )


def test_a_store_is_named_by_its_url_with_the_id_or_the_folder_or_alone_where_it_holds_one(
    episode: Path, tmp_path: Path
) -> None:
    folder = stored(episode, tmp_path / "cent ral")
    store = (tmp_path / "cent ral").as_uri()
    for url in (f"{store}/{EPISODE_ID}", f"{store}/episodes/{EPISODE_ID}", f"{store}/episodes", store):
        found = locate(url)
        assert (found.folder, found.place, found.is_delivered) == (folder, Place.STORE, True)
        assert folder_of(Path(url)) == folder  # as the command line's own types would have it
    assert found.file("data.mcap").is_file()
    assert found.output("report.html") == Path(f"{EPISODE_ID}-report.html")


def test_a_copy_is_known_by_the_names_of_its_files(episode: Path, tmp_path: Path) -> None:
    found = locate(stored(episode, tmp_path / "central"))
    assert (found.place, found.is_delivered, found.episode_id) == (Place.COPY, True, EPISODE_ID)
    moved = tmp_path / "stick"
    shutil.copytree(episode, moved)
    found = locate(str(moved))
    assert (found.place, found.is_delivered) == (Place.COPY, False)
    assert found.output("report.html") == moved / "report.html"


def test_a_store_with_several_episodes_lists_the_newest(tmp_path: Path) -> None:
    for serial in range(5):
        episode = sealed_episode(tmp_path / str(serial), serial=serial)
        stored(episode, tmp_path / "central")
    with pytest.raises(UsageError, match=f"holds 5 episodes: name one, .*/ID; the newest are {episode.name}"):
        locate((tmp_path / "central").as_uri())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{root}/nowhere", "does not exist; `sensorium episodes list`"),
        (
            "01J0000000000000000000000Z",
            "has no episode 01J0000000000000000000000Z; did you mean " + EPISODE_ID + ".*name its spool",
        ),
        ("01j00000000000000000000O01", "does not exist; did you mean " + EPISODE_ID),
        ("{root}/spool", "is a spool and no episode folder: name .*sealed/" + EPISODE_ID),
        (
            "{root}/spool/sealed/" + EPISODE_ID + "/data.mcap",
            "is a file .*; its folder is one: .*" + EPISODE_ID,
        ),
        ("{root}/central", "holds 1 episodes: name one, file:///.*/ID"),
        ("{root}", "no manifest.json but central, other, spool"),
        ("file://server/share", "written file:///absolute/path"),
        ("file:///nowhere/at/all", "there is no folder /nowhere/at/all"),
        ("file://{root}/other", "holds no episode that is complete"),
        ("s3://bucket/" + EPISODE_ID, "copy its folder here"),
    ],
)
def test_where_there_is_none_the_error_says_what_is_there(
    episode: Path, tmp_path: Path, text: str, said: str
) -> None:
    stored(episode, tmp_path / "central")
    (tmp_path / "other" / "episodes").mkdir(parents=True)
    with pytest.raises(SensoriumError, match=said):
        locate(text.format(root=tmp_path), tmp_path / "spool")


def test_a_swapped_manifest_is_an_error_and_no_episode(episode: Path) -> None:
    path = episode / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"payload", b"pay1oad"))
    with pytest.raises(EpisodeError, match=r"manifest\.json"):
        locate(episode)


@pytest.mark.parametrize("litter", ["._data.mcap", "._cam.mcap", "Thumbs.db", "other.mcap"])
def test_what_the_manifest_does_not_name_is_not_read(episode: Path, litter: str) -> None:
    (episode / litter).write_bytes(b"\0\5\26\7")
    with Episode(episode) as opened:
        assert set(opened.streams) == {"cam", "mic", "lidar"}


def test_of_a_copy_a_file_may_be_missing_and_the_others_are_read(episode: Path, tmp_path: Path) -> None:
    copy = stored(episode, tmp_path / "central")
    next(copy.glob("cam-*.mcap")).unlink()
    with Episode(copy) as opened:
        assert set(opened.streams) == {"mic", "lidar"}
    with Episode(copy, ["mic.mcap"]) as opened:
        assert set(opened.streams) == {"mic"}
    next(copy.glob("data-*.mcap")).unlink()
    with pytest.raises(EpisodeError, match=r"has no data\.mcap"):
        Episode(copy)
