"""The progress of an evaluation: rate and ETA from a clock that we turn."""

from lvb.training import meter


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_rate_and_eta(capsys):
    clock = Clock()
    shown = meter.Meter("imagenet_c last/raw", 3, clock=clock)
    shown.start("fog/1", 1000, known=False)
    clock.now = 10.0
    shown.add(200)
    assert lines(capsys) == []  # Half a minute between lines in a log.
    clock.now = 40.0
    shown.add(200)
    # 10 images/s; 600 left in this part and two more parts of 1,000.
    assert lines(capsys) == [
        "imagenet_c last/raw fog/1 400 of 1,000  10 images/s  ETA 4m20s"
    ]


def test_parts_that_were_finished_before_do_not_count(capsys):
    clock = Clock()
    shown = meter.Meter("imagenet_c raw", 2, clock=clock)
    shown.start("fog/1", 1000, known=True)
    clock.now = 50.0
    shown.start("fog/2", 1000, known=False)
    shown.add(500)
    shown.finish()
    assert lines(capsys) == [
        "imagenet_c raw fog/1 1,000 images, finished before",
        "imagenet_c raw fog/2 500 of 1,000  10 images/s  ETA 50s",
        "imagenet_c raw 500 images in 50s",
    ]


def test_a_terminal_has_one_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    clock = Clock()
    shown = meter.Meter("imagenet_val raw", 1, clock=clock)
    shown.start("", 100, known=False)
    for second in (1.0, 2.0):
        clock.now = second
        shown.add(50)
    shown.finish()
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.count("\r") == 3
