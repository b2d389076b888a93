"""Which exact form of an operator a backend runs fastest.

Several operators have a reference form of stock XLA operations and a form of shifted
multiply-adds; all are equal in value and gradient. XLA:CPU computes depthwise and
grouped convolutions 25 to 50 times slower than the same sum written as shifted
multiply-adds; GPUs and TPUs have kernels for them. With the second form goes that of
the neural memory in which its inner gradient is written out. "auto" takes native
programs, too, see `lvb.ops.native`.
"""

import jax

FORMS = ("auto", "reference", "shift")


def resolve(form: str) -> str:
    """The form to compute: "reference" or "shift".

    Args:
      form: one of `FORMS`; "auto" is "shift" on CPU and "reference" elsewhere.

    Raises:
      ValueError: if `form` is none of `FORMS`.
    """
    if form not in FORMS:
        raise ValueError(f"op_form={form!r} is unknown; use one of {', '.join(FORMS)}.")
    if form == "auto":
        return "shift" if jax.default_backend() == "cpu" else "reference"
    return form


def takes_native(form: str) -> bool:
    """Whether a native program may compute an operator: "auto" on one CPU device.

    XLA cannot split its arrays among several devices.

    Args:
      form: one of `FORMS`.
    """
    return form == "auto" and jax.default_backend() == "cpu" and jax.device_count() == 1
