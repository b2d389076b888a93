"""Named benchmarks: which images, which crop, which classes.

A benchmark has one or more parts (ImageNet-C has one for each corruption and severity)
and one or more views, which score the same logits under different rules.
"""

from typing import NamedTuple


class View(NamedTuple):
    """One way to score the logits of an image.

    Attributes:
      name: in tables.
      subset: name of a class subset, see `imagenet_labels.subset`; others are masked.
      real: score against ReaL's label sets.
    """

    name: str
    subset: str | None = None
    real: bool = False


class Benchmark(NamedTuple):
    """One named benchmark.

    Attributes:
      name: on the command line.
      title: in words.
      paper: where it was published.
      images: number of images of the whole set (of each part).
      views: how logits are scored; the first is the one papers report.
      crop: "own" (as the model was validated), "256/224" (the benchmark's crop ratio
        of 0.875) or "stored" (images are cropped already).
      folders: where a folder of class folders may lie below the data directory.
      tfds: the TFDS set.
      get: how to get the images, for the message when they are missing.
    """

    name: str
    title: str
    paper: str
    images: int
    views: tuple[View, ...]
    crop: str
    folders: tuple[str, ...]
    tfds: str
    get: str

    @property
    def of_imagenet(self) -> bool:
        """Whether its classes are ImageNet's; those of own data are its folders."""
        return bool(self.get)


ALL_CLASSES = View("1,000 classes")

_VAL_FOLDERS = (
    *("val", "validation", "imagenet/val", "imagenet2012/val", "ILSVRC2012/val"),
    *("ILSVRC/Data/CLS-LOC/val", "."),
)
_GET_VAL = (
    "put the validation images into {data_dir}/val/<WordNet id>/, see"
    " 'python scripts/check_data.py imagenet2012 --data_dir {data_dir}'"
)
GENERATED = "imagenet_c_generated"

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "imagenet_val",
            "ImageNet-1k validation",
            "Russakovsky et al., IJCV 2015",
            50_000,
            (ALL_CLASSES,),
            "own",
            _VAL_FOLDERS,
            "imagenet2012",
            _GET_VAL,
        ),
        Benchmark(
            "imagenet_real",
            "ImageNet validation with reassessed labels (ReaL)",
            "Beyer et al., arXiv 2006.07159",
            50_000,
            (View("label sets", real=True),),
            "own",
            _VAL_FOLDERS,
            "imagenet2012_real",
            _GET_VAL + ", and real.json of github.com/google-research/"
            "reassessed-imagenet into {data_dir}",
        ),
        Benchmark(
            "imagenet_v2",
            "ImageNet-V2, matched frequency",
            "Recht et al., ICML 2019",
            10_000,
            (ALL_CLASSES,),
            "own",
            (
                *("imagenetv2-matched-frequency-format-val", "imagenet_v2"),
                *("imagenetv2-matched-frequency", "imagenetv2"),
            ),
            "imagenet_v2/matched-frequency",
            "unpack imagenetv2-matched-frequency.tar.gz (github.com/modestyachts/"
            "ImageNetV2) in {data_dir}",
        ),
        Benchmark(
            "imagenet_a",
            "ImageNet-A, natural adversarial examples",
            "Hendrycks et al., CVPR 2021",
            7_500,
            (View("200 classes", subset="imagenet_a"), ALL_CLASSES),
            "256/224",
            ("imagenet-a", "imagenet_a"),
            "imagenet_a",
            "unpack imagenet-a.tar (github.com/hendrycks/natural-adv-examples) in"
            " {data_dir}",
        ),
        Benchmark(
            "imagenet_r",
            "ImageNet-R, renditions",
            "Hendrycks et al., ICCV 2021",
            30_000,
            (View("200 classes", subset="imagenet_r"), ALL_CLASSES),
            "256/224",
            ("imagenet-r", "imagenet_r"),
            "imagenet_r",
            "unpack imagenet-r.tar (github.com/hendrycks/imagenet-r) in {data_dir}",
        ),
        Benchmark(
            "imagenet_sketch",
            "ImageNet-Sketch",
            "Wang et al., NeurIPS 2019",
            50_889,
            (ALL_CLASSES,),
            "256/224",
            ("sketch", "imagenet-sketch", "imagenet_sketch", "ImageNet-Sketch"),
            "imagenet_sketch",
            "unpack ImageNet-Sketch.zip (github.com/HaohanWang/ImageNet-Sketch) in"
            " {data_dir}",
        ),
        Benchmark(
            "imagenet_c",
            "ImageNet-C, stored corrupted images",
            "Hendrycks and Dietterich, ICLR 2019",
            50_000,
            (ALL_CLASSES,),
            "stored",
            ("imagenet-c", "imagenet_c", "ImageNet-C"),
            "imagenet2012_corrupted",
            "unpack noise.tar, blur.tar, weather.tar and digital.tar"
            " (zenodo.org/record/2235448) in {data_dir}/imagenet-c, or name"
            " imagenet_c_generated to corrupt the validation images in memory",
        ),
        Benchmark(
            GENERATED,
            "ImageNet-C, generated here from the validation images",
            "Hendrycks and Dietterich, ICLR 2019",
            50_000,
            (ALL_CLASSES,),
            "stored",
            _VAL_FOLDERS,
            "imagenet2012",
            _GET_VAL,
        ),
    )
}


def is_corrupted(benchmark: Benchmark) -> bool:
    """Whether the benchmark is ImageNet-C, stored or generated."""
    return benchmark.name in ("imagenet_c", GENERATED)


def custom(spec: str) -> Benchmark:
    """A benchmark of any data source that `sources.open_source` opens.

    Args:
      spec: such as "digits" or "folder:/path"; its "val" split is evaluated.
    """
    return Benchmark(
        spec, "own images", "", 0, (View("all classes"),), "own", (), "", ""
    )
