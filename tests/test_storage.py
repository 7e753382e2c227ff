"""Paths of file systems and of buckets: what they do alike, and what a bucket refuses."""

import importlib.util
import os
import threading

import pytest

from fiberjax import buckets, digests, storage


@pytest.fixture
def folder(bucket, request):
    """A folder of the bucket for one test."""
    return storage.place(f"gs://bucket/{request.node.name.replace('[', '-')}/a")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where copies are made, and a process that has made none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage._copied.cache_clear()
    yield tmp_path / "cache" / "fiberjax"
    storage._copied.cache_clear()


def names(folder):
    return sorted(buckets.entries(folder))


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("s3://a/b", "'s3://a/b': expected the path of a file system, or gs://bucket/folder"),
        ("gs://", "'gs://' names no bucket: expected gs://bucket/folder"),
        ("gs://ab/c", "'gs://ab/c' names no bucket"),
        ("gs:///c", "'gs:///c' names no bucket"),
        ("gs://A_b", "'gs://A_b' names no bucket"),
        ("gs://bucket/[a]", "'gs://bucket/[a]': expected a path in a bucket without any of *?["),
    ],
)
def test_what_is_no_place_is_refused_and_no_folder_of_that_name_is_made(path, told):
    with pytest.raises(ValueError) as error:
        storage.place(path)
    assert str(error.value).startswith(told) and "\n" not in str(error.value)


def test_without_the_packages_a_bucket_is_refused(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gcsfs" else found(name)
    )
    with pytest.raises(ValueError, match=r"gcsfs is not installed: it is of the extra 'gcs'"):
        storage.place("gs://bucket/a")


def test_a_path_of_a_disk_alone(tmp_path):
    assert storage.on_disk(tmp_path, "it") == tmp_path
    with pytest.raises(ValueError, match=r"it is 'gs://bucket/a': expected a folder of a file"):
        storage.on_disk("gs://bucket/a", "it")


@pytest.mark.parametrize("remote", [False, True])
def test_files_are_written_whole_measured_moved_and_removed(remote, folder, tmp_path):
    root = folder if remote else tmp_path / "a"
    file = root / "in" / "file.json"
    for text in ("first", "séc"):
        storage.write(file, text)
        assert file.read_bytes().decode() == text and storage.size(file) == len(text.encode())
    storage.write(root / "in" / "b" / "c", b"1")
    storage.move(file, root / "in" / "moved")
    (root / "out").parent.mkdir(exist_ok=True)
    storage.move(root / "in", root / "out")
    moved = [(root / "out" / name).read_bytes() for name in ("moved", "b/c")]
    assert moved == ["séc".encode(), b"1"]
    assert not (root / "in").exists()
    with storage.filled(root / "full") as place:
        (place / "d").mkdir(parents=True)
        (place / "d" / "e").write_text("2")
    assert (root / "full" / "d" / "e").read_bytes() == b"2"
    storage.remove_folder(root / "out")
    storage.remove_folder(root / "nothing")
    assert not (root / "out").exists() and (root / "full" / "d" / "e").exists()


def test_what_could_not_be_written_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        storage.write(tmp_path / "taken", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_bucket_is_never_asked_for_what_it_has_not(bucket):
    assert bucket.refused == []


def test_an_object_changes_as_it_was_last_seen_alone(folder):
    path = folder / "object"
    assert buckets.see(path) is None and buckets.entry(path) is None
    first = buckets.put(path, b"1", expected=buckets.ABSENT)
    assert buckets.see(path) == (b"1", first)
    assert buckets.put(path, b"other", expected=buckets.ABSENT) is None
    # As after an answer that was lost: it is this one's.
    assert buckets.put(path, b"1", expected=buckets.ABSENT) == first
    second = buckets.put(path, b"2", expected=first)
    assert second != first and buckets.put(path, b"3", expected=first) is None
    assert not buckets.drop(path, expected=first) and buckets.see(path).content == b"2"
    assert buckets.drop(path, expected=second) and not buckets.drop(path)


def test_of_many_that_create_an_object_one_does(folder):
    made, begin = [], threading.Barrier(8)

    def create(number):
        begin.wait()
        if buckets.put(folder / "one", b"%d" % number, expected=buckets.ABSENT):
            made.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and buckets.see(folder / "one").content == b"%d" % made[0]


def test_what_grows_is_put_whole_and_only_now_and_then(folder, bucket, monkeypatch):
    file = storage.Growing(folder / "lines", b"0")
    name = f"{os.fspath(folder)[len('gs://bucket/') :]}/lines"
    for number in range(3):
        file.write(b"%d" % number)
        assert not file.due
    file.flush()
    file.close()  # There is nothing new.
    assert (folder / "lines").read_bytes() == b"0012" and bucket.puts.count(name) == 1
    file.write(b"3")
    monkeypatch.setattr(storage.Growing, "SECONDS", 0.0)
    assert storage.Growing(folder / "lines").due


def test_what_grows_is_not_put_over_what_another_program_has_written(folder):
    file = storage.Growing(folder / "lines", b"0")
    file.flush()
    storage.write(folder / "lines", b"of another")
    file.write(b"1")
    with pytest.raises(storage.Changed, match=r"/lines was changed by another program"):
        file.flush()
    file.close()
    assert (folder / "lines").read_bytes() == b"of another"


@pytest.mark.parametrize("harm", ["cut", "change", "lose", "list"])
def test_digests_of_a_bucket_are_its_own_checksums(folder, harm):
    for name in ("a", "b/c"):
        storage.write(folder / name, f"content of {name}")
    digests.write(folder, digests.files_of(folder))
    assert "crc32c:" in (folder / "digests.process_0.json").read_text()
    assert digests.problem(folder) is None
    if harm == "cut":
        storage.write(folder / "a", "content")
    elif harm == "change":
        storage.write(folder / "a", "Content of a")
    elif harm == "lose":
        (folder / "a").unlink()
    else:
        storage.write(folder / "digests.process_0.json", b"0\n{}")
    expected = {"cut": "a has 7 bytes of 12", "change": "a has changed", "lose": "a is missing"}
    assert digests.problem(folder) == expected.get(harm, "digests.process_0.json has changed")


def test_digests_hold_where_a_folder_is_copied_to_or_from_a_bucket(folder, tmp_path):
    for root, other in ((folder, tmp_path / "near"), (tmp_path / "far", folder.parent / "b")):
        for name in ("a", "b/c"):
            storage.write(root / name, f"content of {name}")
        digests.write(root, digests.files_of(root))
        for name in ("a", "b/c", "digests.process_0.json"):
            storage.write(other / name, (root / name).read_bytes())
        assert digests.problem(other) is None
        storage.write(other / "b/c", "Content of b/c")
        assert digests.problem(other) == "b/c has changed"


def test_local_copies_are_made_once_and_anew_where_the_bucket_changed(folder, cache):
    storage.write(folder / "rows.jsonl", "1")
    storage.write(folder / "b" / "rows.jsonl", "2")
    copy = storage.local(os.fspath(folder))
    assert copy.name == "a" and (copy / "b" / "rows.jsonl").read_text() == "2"
    assert storage.local(os.fspath(folder / "rows.jsonl")).read_text() == "1"
    assert storage.local(f"{folder}/*.jsonl") == copy / "*.jsonl"
    assert storage.origin(copy / "b" / "rows.jsonl") == f"{folder}/b/rows.jsonl"
    assert storage.origin("elsewhere/a") == "elsewhere/a"
    assert len(list(cache.iterdir())) == 2
    storage.write(folder / "rows.jsonl", "3")
    assert (storage.local(os.fspath(folder)) / "rows.jsonl").read_text() == "1"  # Of one process.
    storage._copied.cache_clear()
    assert (storage.local(os.fspath(folder)) / "rows.jsonl").read_text() == "3"
    with pytest.raises(ValueError, match=r"'gs://bucket/nothing': no such file or folder"):
        storage.local("gs://bucket/nothing")
    assert not list(cache.glob("*.making-*"))
