import importlib.util
import os
import shutil
import subprocess
import tarfile

import pytest

from lvb.data import imagenet, imagenet_labels, layout_check, layout_folders, sources

SYNSETS = imagenet_labels.synsets()
TRAIN_TAR, VAL_TAR = layout_check.TARS


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def class_folders(directory, wnids=SYNSETS):
    """One image in each class folder."""
    for wnid in wnids:
        (directory / wnid).mkdir(parents=True)
        (directory / wnid / f"{wnid}_1.JPEG").touch()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Both splits with one image in each of the 1,000 classes."""
    root = tmp_path_factory.mktemp("whole")
    for split in ("train", "val"):
        class_folders(root / split)
    return root


@pytest.fixture
def small_imagenet(monkeypatch):
    """An ImageNet of one image per class."""
    for split in imagenet.NUM_EXAMPLES:
        monkeypatch.setitem(imagenet.NUM_EXAMPLES, split, 1000)


def check(root):
    """What was found, as (state, text) pairs with the root shortened to D."""
    return [
        (finding.state, f"{finding.what} -> {finding.advice}".replace(str(root), "D"))
        for finding in layout_check.check_imagenet(root)
    ]


def lone(root):
    ((state, text),) = check(root)
    assert state == "problem"
    return text


def test_a_whole_set_of_folders_is_ready(whole, small_imagenet):
    assert check(whole) == [
        (
            "ready",
            "D is whole: train 1,000, val 1,000 -> train with data source 'folder:D'.",
        )
    ]


def test_the_ready_source_opens(whole, small_imagenet):
    source = sources.open_source(f"folder:{whole}", "val")
    assert (len(source), source.class_names) == (1000, SYNSETS)


@pytest.mark.parametrize("nesting", ["ILSVRC/Data/CLS-LOC", "imagenet", "data"])
def test_nestings_are_searched(whole, small_imagenet, tmp_path, nesting):
    (tmp_path / nesting).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / nesting).symlink_to(whole)
    ((state, text),) = check(tmp_path)
    assert state == "ready"
    assert text.endswith(f"train with data source 'folder:D/{nesting}'.")


def test_missing_and_empty_directories(tmp_path):
    assert lone(tmp_path / "x") == (
        "D does not exist -> give --data_dir an existing directory."
    )
    (tmp_path / "file").touch()
    assert lone(tmp_path / "file").startswith("D is a file")
    (tmp_path / "file").unlink()
    text = lone(tmp_path)
    assert text.startswith("D holds nothing of ImageNet that is known here")
    assert f"download {TRAIN_TAR} and {VAL_TAR} from image-net.org" in text


def test_archives_whole_partial_and_missing(tmp_path):
    """Sparse files of the official sizes."""
    manual = tmp_path / "downloads" / "manual"
    touch(manual, TRAIN_TAR, VAL_TAR)
    for name, size in layout_check.TARS.items():
        os.truncate(manual / name, size)
    assert lone(tmp_path) == (
        "D/downloads/manual holds both archives, not prepared -> run 'tfds build "
        "imagenet2012 --data_dir=D --manual_dir=D/downloads/manual "
        "--file_format=array_record' (needs TensorFlow: pip install 'lvb[tf]')."
    )
    os.truncate(manual / VAL_TAR, 1000)
    assert "has 1,000 of 6,744,924,160 bytes -> continue or repeat" in lone(tmp_path)
    (manual / VAL_TAR).unlink()
    assert f"{VAL_TAR} is missing -> download it" in lone(tmp_path)


def test_kaggle_archive_and_parquet(tmp_path):
    touch(tmp_path, "imagenet-object-localization-challenge.zip")
    assert "run 'unzip -q D/imagenet-object-localization-challenge.zip -d D'" in lone(
        tmp_path
    )
    (tmp_path / "imagenet-object-localization-challenge.zip").unlink()
    touch(tmp_path, "train-00000-of-00294.parquet")
    assert "Parquet files, which are not read" in lone(tmp_path)


def test_flat_validation_images(whole, small_imagenet, tmp_path):
    (tmp_path / "train").symlink_to(whole / "train")
    touch(tmp_path / "val", *(f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 31)))
    assert check(tmp_path) == [
        ("part", "D/train is whole: 1,000 images -> nothing to do."),
        (
            "problem",
            "D/val holds 30 images without class folders -> run 'python "
            "scripts/check_data.py imagenet2012 --data_dir D --sort_flat' to move "
            "them.",
        ),
    ]


def test_sorting_moves_flat_images_to_their_classes(tmp_path, shared_data):
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 31)]
    touch(tmp_path / "val", *names, "other.JPEG")
    touch(tmp_path / "train", "n01440764_12.JPEG", "n15075141_3.JPEG")
    assert layout_folders.sort_flat(tmp_path) == 32
    assert (tmp_path / "train" / "n15075141" / "n15075141_3.JPEG").exists()
    assert (tmp_path / "val" / "other.JPEG").exists()
    # Independent of the list that the code reads.
    path = shared_data / "imagenet_meta" / "imagenet_val_labels.txt"
    for name, label in zip(names, path.read_text().split()[:30], strict=True):
        assert (tmp_path / "val" / SYNSETS[int(label)] / name).exists()
    assert layout_folders.sort_flat(tmp_path) == 0


def test_flat_training_images(tmp_path):
    touch(tmp_path / "train", "n01440764_12.JPEG")
    text = check(tmp_path)[0][1]
    assert "D/train holds 1 images without class folders" in text
    assert "--sort_flat" in text


def test_class_archives_and_the_command_that_unpacks_them(tmp_path):
    image = tmp_path / "n01440764_1.JPEG"
    image.touch()
    directory = tmp_path / "data" / "train"
    directory.mkdir(parents=True)
    with tarfile.open(directory / "n01440764.tar", "w") as tar:
        tar.add(image, image.name)
    state, text = check(tmp_path / "data")[0]
    assert (state, text[:48]) == (
        "problem",
        "D/train holds 1 class archives, not unpacked -> ",
    )
    run_advice(tmp_path / "data", text)
    assert os.listdir(directory) == ["n01440764"]
    assert os.listdir(directory / "n01440764") == [image.name]


def run_advice(root, text):
    """Runs the command that an advice quotes."""
    command = text.partition(" -> ")[2].split("'")[1].replace("D/", f"{root}/")
    subprocess.run(["bash", "-ec", command], check=True)


def test_class_folders_at_the_top(tmp_path):
    class_folders(tmp_path, SYNSETS[:3])
    text = lone(tmp_path)
    assert "3 class folders but no train/ and val/" in text
    assert "(they look like val)" in text
    run_advice(tmp_path, text)
    assert sorted(os.listdir(tmp_path / "val")) == list(SYNSETS[:3])


def test_class_folders_with_many_images_look_like_train(tmp_path):
    class_folders(tmp_path, SYNSETS[:2])
    touch(tmp_path / SYNSETS[0], *(f"{i}.JPEG" for i in range(60)))
    assert "(they look like train)" in lone(tmp_path)


def test_one_folder_too_many(whole, small_imagenet, tmp_path):
    (tmp_path / "val").symlink_to(whole / "val")
    class_folders(tmp_path / "train" / "train", SYNSETS[:3])
    text = check(tmp_path)[0][1]
    assert text.startswith("D/train holds only the folder train -> move")
    run_advice(tmp_path, text)
    assert sorted(os.listdir(tmp_path / "train")) == list(SYNSETS[:3])


@pytest.mark.parametrize("name", ["validation", "valid", "ILSVRC2012_img_val"])
def test_misnamed_split(whole, small_imagenet, tmp_path, name):
    shutil.copytree(whole / "train", tmp_path / "train")
    shutil.copytree(whole / "val", tmp_path / name)
    (part, problem) = check(tmp_path)
    assert part[0] == "part"
    assert problem[1] == f"D calls its val split {name}/ -> run 'mv D/{name} D/val'."
    run_advice(tmp_path, problem[1])
    assert [state for state, _ in check(tmp_path)] == ["ready"]


def test_missing_split(whole, small_imagenet, tmp_path):
    (tmp_path / "train").symlink_to(whole / "train")
    (part, problem) = check(tmp_path)
    assert part[0] == "part"
    assert problem[1].startswith("D/val is missing -> unpack ILSVRC2012_img_val.tar")


def test_missing_foreign_and_empty_classes(whole, small_imagenet, tmp_path):
    class_folders(tmp_path / "train", SYNSETS[2:])
    (tmp_path / "train" / SYNSETS[1]).mkdir()
    class_folders(tmp_path / "val", [*SYNSETS, "n99999999"])
    train, val = (text for _, text in check(tmp_path))
    assert train.startswith(
        f"D/train lacks images of 2 classes: {SYNSETS[0]}, {SYNSETS[1]} -> unpack these"
    )
    assert val == (
        "D/val has folders that are none of the 1,000 classes: n99999999 -> move them "
        "elsewhere."
    )


def test_classes_by_name_are_not_published_labels(tmp_path):
    class_folders(tmp_path / "train", ["tench", "goldfish"])
    text = check(tmp_path)[0][1]
    assert text.startswith(
        "the class folders of D/train are not WordNet ids: goldfish, tench -> unpack"
    )


def test_partial_splits_are_counted(whole):
    """Against the official sizes."""
    train, val = check(whole)
    assert "D/train holds 1,000 images in 1,000 classes, where 1,281,167" in train[1]
    assert "D/val holds 1,000 images in 1,000 classes, where 50,000 belong" in val[1]
    assert (train[0], val[0]) == ("problem", "problem")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, write_tfds):
    root = tmp_path_factory.mktemp("prepared")
    write_tfds(root, {"train": 3, "validation": 2})
    return root


def test_a_whole_tfds_set_is_ready(prepared, monkeypatch):
    monkeypatch.setattr(imagenet, "NUM_EXAMPLES", {"train": 3, "val": 2})
    assert check(prepared) == [
        (
            "ready",
            "the TFDS set in D/imagenet2012/5.1.0 is whole: train 3, val 2 -> train "
            "with data source 'tfds:imagenet2012:5.1.0' and --data_dir=D.",
        )
    ]


def test_a_partial_tfds_set(prepared):
    text = lone(prepared)
    assert "is not whole: train 3, val 2, where train 1,281,167, val 50,000" in text
    assert "'tfds build imagenet2012 --data_dir=D --file_format=array_record'" in text


def test_tfds_sets_to_convert_to_repair_and_to_enter(prepared, tmp_path, edit_info):
    directory = shutil.copytree(prepared / "imagenet2012", tmp_path / "imagenet2012")
    edit_info(directory / "5.1.0", fileFormat="tfrecord")
    assert (
        "run 'tfds convert_format --dataset_version_dir=D/imagenet2012/5.1.0 "
        "--out_file_format=array_record' once."
    ) in lone(tmp_path)

    edit_info(directory / "5.1.0", fileFormat="array_record")
    os.remove(directory / "5.1.0" / "imagenet2012-train.array_record-00000-of-00001")
    assert "lacks 1 of the files of 'train'" in lone(tmp_path)

    for inside in (directory, directory / "5.1.0"):
        text = lone(inside)
        assert text.startswith("D is inside a TFDS set -> give the directory above")
        assert text.endswith(f"--data_dir={tmp_path}.")

    shutil.rmtree(directory / "5.1.0")
    (directory / "incomplete.ABC_5.1.0").mkdir()
    assert "was left by an interrupted build -> remove it and run" in lone(tmp_path)


def test_the_report_marks_each_finding():
    finding = layout_folders.Finding("problem", "what is there", "do this.")
    assert layout_check.report([finding, finding._replace(state="ready")]) == (
        "[problem] what is there\n          -> do this.\n"
        "[ready  ] what is there\n          -> do this."
    )


def test_the_script_prints_and_returns_a_status(
    whole, small_imagenet, repo_root, tmp_path, capsys
):
    spec = importlib.util.spec_from_file_location(
        "check_data", repo_root / "scripts" / "check_data.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.main(["imagenet2012", "--data_dir", str(whole)]) == 0
    assert "[ready  ]" in capsys.readouterr().out
    touch(tmp_path / "train", "n01440764_1.JPEG")
    arguments = ["imagenet2012", "--data_dir", str(tmp_path), "--sort_flat"]
    assert script.main(arguments) == 1
    assert capsys.readouterr().out.startswith("1 images moved\n[problem]")
    with pytest.raises(SystemExit):
        script.main(["cifar10", "--data_dir", str(tmp_path)])
