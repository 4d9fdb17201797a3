"""The name of a public function before the messages of what it refuses."""

import pytest

from jaxcnn.errors import ErrorPrefix


class Refusal(ValueError):
    """A kind of ValueError that a caller may catch."""


@pytest.mark.parametrize("error", [ValueError, TypeError, Refusal])
def test_a_refusal_gets_the_name_and_keeps_type_and_cause(error):
    cause = KeyError("the reason")
    with pytest.raises(error, match=r"^conv: strides must be ints$") as raised, ErrorPrefix("conv"):
        raise error("strides must be ints") from cause
    assert type(raised.value) is error
    assert raised.value.__cause__ is cause


def test_other_errors_stay_as_they_are():
    with pytest.raises(KeyError, match=r"^'conv'$"), ErrorPrefix("max_pool"):
        raise KeyError("conv")
    with pytest.raises(ValueError) as raised, ErrorPrefix("conv"):  # noqa: PT011
        raise ValueError("two", "parts")
    assert raised.value.args == ("two", "parts")
    with ErrorPrefix("conv"):
        pass
