"""The `:arg` string of a config."""

import pytest

from lvb.config import args

DEFAULTS = dict(res=224, smoke=False, data="digits", rate=0.5)


def test_nothing_gives_the_defaults():
    assert vars(args.parse("", **DEFAULTS)) == DEFAULTS


def test_each_key_has_the_type_of_its_default():
    got = args.parse("smoke,res=160,data=folder:/a/b=c,rate=1", **DEFAULTS)
    assert vars(got) == dict(res=160, smoke=True, data="folder:/a/b=c", rate=1.0)
    assert isinstance(got.rate, float)


@pytest.mark.parametrize(("text", "value"), [("smoke=false", False), ("smoke=1", True)])
def test_bools_can_be_written_out(text, value):
    assert args.parse(text, **DEFAULTS).smoke is value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smok", "'smok' is unknown (did you mean 'smoke'?)"),
        ("zzz=1", "'zzz' is unknown; this config knows res, smoke, data, rate"),
        ("res=big", "res='big' is not of type int"),
        ("res=1.5", "res='1.5' is not of type int"),
        ("res", "'res' needs a value"),
        ("data=", "'data' needs a value"),
        ("smoke=maybe", "smoke='maybe' is not a bool"),
        ("res=1,res=2", "'res' is given twice"),
        ("__import__('os')", "is unknown"),
    ],
)
def test_refusals_name_what_came(text, message):
    with pytest.raises(ValueError, match="config argument") as error:
        args.parse(text, **DEFAULTS)
    assert message in str(error.value)


def test_a_value_is_text_and_never_run():
    text = "__import__('os').abort()"
    assert args.parse(f"data={text}", **DEFAULTS).data == text
