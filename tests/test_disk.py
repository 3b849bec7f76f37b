"""The disk's calls: all bytes are written whatever the system takes at once, and a file is replaced whole or not at all."""

import errno
import io

import pytest

from entreg import disk
from tests.faults import FaultyDisk


def test_write_goes_on_until_all_is_written():
    class Sips(io.BytesIO):
        def write(self, data):
            return super().write(bytes(data[:3]))

    file = Sips()
    disk.write(file, b"twenty bytes of data")
    assert file.getvalue() == b"twenty bytes of data"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "config.json"
    disk.replace_file(file, b"old")
    with FaultyDisk().installed() as counted:
        disk.replace_file(file, b"old")
    for n, call in enumerate(counted.calls):
        with FaultyDisk(n, errno.ENOSPC).installed(), pytest.raises(OSError):
            disk.replace_file(file, b"new")
        assert file.read_bytes() == (b"new" if call == "sync_folder" else b"old")
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_remove_takes_files_folders_and_nothing(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name in ("a", "file", "nothing"):
        disk.remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_on_the_disk_before_they_take_a_name(tmp_path):
    with FaultyDisk().installed() as counted:
        disk.replace_file(tmp_path / "config.json", b"new")
    assert counted.calls == ["open_file", "write", "sync", "rename", "sync_folder"]
