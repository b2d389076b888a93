"""Pictures, folders and weight files made to harm: refused in a sentence, or used.

`tests/data` has the cases one by one; here they come in hundreds and through the
loader, with limits on time and memory.
"""

import contextlib
import io
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import zipfile

import hostile_images
import numpy as np
import pytest
from PIL import Image

from lvb.data import decode, folder, loader, reader, transforms
from lvb.models import torch_file
from scripts import convert_torch_lsnet

SEED, FILES = 7, 500
SECONDS = 300  # Of a test that may hang; each takes a few, on a busy machine more.
MEMORY = 1 << 30  # Bytes: a picture of the largest size, twice over.
CANARY = "canary"


@pytest.fixture(autouse=True)
def in_time():
    """Ends a test that hangs."""

    def stop(number, frame):
        raise TimeoutError(f"not done after {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="module")
def mutants():
    """Names and bytes of 500 damaged files."""
    mutator = hostile_images.Mutator(SEED)
    return [mutator.draw() for _ in range(FILES)]


def outcome(data):
    """A picture, or the sentence that refuses it."""
    try:
        return decode.decode_image(data)
    except decode.BrokenImage as error:
        return str(error)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("name", hostile_images.whole())
def test_whole_pictures_are_read(name):
    image = decode.decode_image(hostile_images.whole()[name])
    assert image.mode in ("L", "RGB")
    assert sorted(image.size) == [24, 32]


USED = {"png pixels", "png many"}  # Their surplus is never unpacked.


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", hostile_images.bombs())
def test_bombs_are_refused_before_they_unpack(name):
    before = peak()
    found = outcome(hostile_images.bombs()[name])
    assert isinstance(found, Image.Image) == (name in USED), found
    assert peak() - before < MEMORY // 2  # Of one byte per pixel at the limit, twice.


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
def test_mutants_are_sane_pictures_or_one_sentence(mutants):
    before, counts = peak(), {"read": 0, "refused": 0}
    for kind, data in mutants:
        found = outcome(data)
        if isinstance(found, str):
            counts["refused"] += 1
            assert found.isprintable(), kind
            assert 10 < len(found) < 300, (kind, found)
        else:
            counts["read"] += 1
            assert found.mode in ("L", "RGB"), kind
            assert 0 < found.width * found.height <= decode.MAX_PIXELS, kind
    print(counts)
    assert min(counts.values()) > FILES // 10
    assert peak() - before < MEMORY


@pytest.mark.filterwarnings("error:::PIL")
def test_a_warning_that_is_an_error_is_told_like_any_other(mutants):
    for kind, data in mutants[:100]:
        found = outcome(data)
        assert not isinstance(found, str) or found.isprintable(), kind


# Under names that say another format, or are not text.
ENDINGS = ("a.jpg", "b.png", "c\n.webp", "d\x1b[2J.bmp", "é.tiff", "\udcff.ppm")


@pytest.fixture(scope="module")
def gallery(mutants, tmp_path_factory):
    """A folder of the mutants and of as many good pictures, of two classes."""
    root = tmp_path_factory.mktemp("gallery")
    good = list(hostile_images.whole().values())
    for label in ("cats", "dogs\n"):
        (root / label).mkdir()
    for number, (_, data) in enumerate(mutants):
        parent = root / ("cats", "dogs\n")[number % 2]
        (parent / f"{number}{ENDINGS[number % len(ENDINGS)]}").write_bytes(data)
        (parent / f"{number}.good.jpg").write_bytes(good[number % len(good)])
    return folder.FolderSource(root)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
def test_an_epoch_of_mutants_is_loaded(gallery):
    """What cannot be read is replaced and counted; what can is what it should be."""
    assert len(gallery) == 2 * FILES
    broken = [isinstance(outcome(gallery[i].image), str) for i in range(len(gallery))]
    batches = loader.train_batches(
        gallery, transforms.TrainTransform(16), batch_size=50, seed=0, max_broken=1.0
    )
    with batches:
        rows = [next(batches) for _ in range(2 * FILES // 50)]
    index, flagged = (
        np.concatenate([row[name] for row in rows]) for name in ("index", "broken")
    )
    assert sorted(index) == list(range(2 * FILES))
    np.testing.assert_array_equal(flagged, np.array(broken)[index])
    assert batches.num_broken == sum(broken)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
def test_a_broken_file_is_named_in_one_line(gallery):
    """Whatever its name holds, an error about it can be shown."""
    broken = [
        i for i in range(len(gallery)) if isinstance(outcome(gallery[i].image), str)
    ]
    for index in broken[:60]:
        with pytest.raises(ValueError, match=r"is broken: .*; evaluation") as told:
            reader.load_strictly(gallery, index)
        assert str(told.value).isprintable()


def tree(root, *names):
    """Class folders with one good picture each."""
    for name in names:
        (root / name).mkdir()
        (root / name / "0.png").write_bytes(hostile_images.whole()["png"])
    return root


def test_a_maze_of_links_is_walked_once(tmp_path):
    """Sixty folders with two links to the next: 2^60 paths lead to the last."""
    tree(tmp_path, "a", "b", *(f".maze{level:02}" for level in range(60)))
    for level in range(60):
        for name in ("left", "right"):
            target = tmp_path / (f".maze{level + 1:02}" if level < 59 else "a")
            (tmp_path / f".maze{level:02}" / name).symlink_to(target)
    (tmp_path / "b" / "in").symlink_to(tmp_path / ".maze00")
    # The system follows 40 links of a path, and no more.
    source = folder.FolderSource(tmp_path)
    assert len(source) == 2 + 40


def test_what_is_no_file_is_left_out(tmp_path):
    tree(tmp_path, "a", "b")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "link.jpg").symlink_to(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "a" / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "b" / "s.jpg"))
        source = folder.FolderSource(tmp_path)
    assert len(source) == 2


@pytest.mark.parametrize("late", ["pipe", "zero", "folder", "gone"])
def test_what_takes_a_files_place_is_a_broken_image(tmp_path, late):
    source = folder.FolderSource(tree(tmp_path, "a", "b"))
    path = tmp_path / "a" / "0.png"
    path.unlink()
    match late:
        case "pipe":
            os.mkfifo(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
    with pytest.raises(decode.BrokenImage, match="the file cannot be read"):
        reader.load(source, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_permission_is_named(tmp_path):
    tree(tmp_path, "a", "b")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(PermissionError, match="a"):
            folder.FolderSource(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o700)


@pytest.mark.slow
def test_100_000_files_are_listed(tmp_path):
    root = os.fsencode(tree(tmp_path, *(f"class{label:02}" for label in range(20))))
    for number in range(100_000):
        name = b"%d\n\xff.jpg" % number if number % 1000 == 0 else b"%d.jpg" % number
        os.mknod(os.path.join(root, b"class%02d" % (number % 20), name))
    train, val = (folder.open_folder(tmp_path, split) for split in ("train", "val"))
    assert len(train) + len(val) == 100_020
    assert len(pickle.dumps(train)) < 4_000_000
    assert train.describe(0).isprintable()


class Evil:
    """An object whose unpickling makes the canary."""

    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


def torch_archive(path, body):
    """A file as `torch.save` writes it: a pickle among others in an archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/version", "3\n")


def hostile_weights(root):
    """Weight files with code, lies or nothing in them, by name."""
    evil = pickle.dumps({"model": Evil()})
    torch_archive(root / "code.pth", evil)
    (root / "legacy.pth").write_bytes(evil)
    (root / "empty.pth").write_bytes(b"")
    (root / "noise.bin").write_bytes(bytes(range(256)))
    np.savez(root / "objects.npz", a=np.array([Evil()], object))
    np.savez(root / "text.npz", a=np.array(["abc"]))
    np.savez(root / "complex.npz", a=np.ones(2, complex))
    with zipfile.ZipFile(root / "lie.npz", "w") as archive:
        shape = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,)}"
        text = shape.ljust(117) + "\n"
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
        archive.writestr("a.npy", head)
        archive.writestr("b.npy", head.replace(b"'<f4'", b"'|O8'"))
    (root / "pickle.npz").write_bytes(evil)
    for name, length, header in (
        ("long", 1 << 60, b"{}"),
        ("text", 9, b"no JSON!!"),
        ("range", 0, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,99]}}'),
        ("type", 0, b'{"a":{"dtype":"Q99","shape":[0],"data_offsets":[0,0]}}'),
    ):
        size = struct.pack("<Q", length or len(header))
        (root / f"{name}.safetensors").write_bytes(size + header)
    return sorted(path.name for path in root.iterdir())


def test_weight_files_are_refused_and_run_nothing(tmp_path, monkeypatch, capsys):
    """With PyTorch and safetensors or without them, by the library and the script."""
    monkeypatch.chdir(tmp_path)
    for name in hostile_weights(tmp_path):
        with pytest.raises((ValueError, ImportError)) as told:
            torch_file.read_state(name)
        assert str(told.value).startswith(f"{name}: "), name
        assert len(str(told.value).splitlines()) == 1, told.value
        assert convert_torch_lsnet.main([name, "--out", "W"]) == 1
        assert capsys.readouterr().err.startswith(f"convert_torch_lsnet: {name}: ")
    assert not os.path.exists(CANARY)
    assert not os.path.exists("W")


def test_the_code_would_have_run(tmp_path, monkeypatch):
    """The canary sings where a pickle is read carelessly."""
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stderr(io.StringIO()):
        pickle.loads(pickle.dumps(Evil()))
    assert os.path.exists(CANARY)


@pytest.mark.parametrize(
    "error", [EOFError(), KeyError("archive"), AttributeError("x"), MemoryError()]
)
def test_whatever_pytorch_raises_is_told(tmp_path, monkeypatch, error):
    """A damaged file meets its reader with nearly any exception there is."""

    class Torch:
        class serialization:
            safe_globals = staticmethod(lambda allowed: contextlib.nullcontext())

        @staticmethod
        def load(path, **options):
            raise error

    monkeypatch.setitem(sys.modules, "torch", Torch)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="not a PyTorch checkpoint"):
        torch_file.read_state(tmp_path / "weights.pth")
