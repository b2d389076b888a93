"""Tables of results."""

from lvb.analysis import evaluation_report


def figure(percent):
    return {"percent": percent, "low": percent - 1, "high": percent + 1}


def a_result(**changes):
    return {
        "benchmark": "imagenet_a",
        "view": "200 classes",
        "weights": "last/ema",
        "protocol": "ImageNet-A; resize 256",
        "images": 7500,
        "top1": figure(17.3),
        "top5": figure(40.0),
        "ece": {"percent": 12.345},
    } | changes


CORRUPTED = a_result(
    benchmark="imagenet_c",
    view="1,000 classes",
    protocol="ImageNet-C",
    corruption_error={
        "mce": {"value": 59.31, "low": 58.9, "high": 59.7},
        "relative_mce": None,
        "corruptions": {
            "fog": {
                "accuracy": {"1": 70.0, "5": 30.0},
                "mean_accuracy": 50.0,
                "ce": 61.0,
            },
            "spatter": {"accuracy": {"1": 66.0}, "mean_accuracy": 66.0, "ce": None},
        },
    },
)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_one_line_for_each_result():
    table = evaluation_report.results_table([a_result(), CORRUPTED]).splitlines()
    assert len(table) == 4
    assert cells(table[2]) == [
        *("imagenet_a", "200 classes", "last/ema", "7,500", "17.30", "16.30..18.30"),
        *("40.00", "12.35", "-", "-", "-"),
    ]
    assert cells(table[3])[8:] == ["59.31", "58.90..59.70", "-"]


def test_few_classes_have_no_top5():
    table = evaluation_report.results_table([a_result(top5=None)])
    assert cells(table.splitlines()[2])[6] == "-"


def test_corruptions_by_severity():
    table = evaluation_report.corruption_table(CORRUPTED).splitlines()
    assert cells(table[0]) == ["top-1 % at severity", "1", "5", "mean", "CE"]
    assert cells(table[2]) == ["fog", "70.00", "30.00", "50.00", "61.00"]
    assert cells(table[3]) == ["spatter", "66.00", "-", "66.00", "-"]


def test_the_whole_report():
    text = evaluation_report.report(
        {
            "checkpoint": "runs/a",
            "commit": "abc",
            "results": [a_result(), a_result(weights="best/ema"), CORRUPTED],
            "missing": [{"benchmark": "imagenet_r", "advice": "run this"}] * 2,
        }
    )
    assert "Checkpoint `runs/a`; lvb commit abc." in text
    assert text.count("ImageNet-A; resize 256") == 1  # One protocol for both rows.
    assert "## imagenet_c, last/ema" in text
    assert text.count("- imagenet_r: run this") == 1
    assert text.endswith("\n")


def test_nothing_evaluated():
    text = evaluation_report.report(
        {"checkpoint": "w", "commit": "abc", "results": [], "missing": []}
    )
    assert "##" not in text
