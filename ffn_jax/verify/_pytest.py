"""The pytest plugin, registered by the package's entry point: three lines in a test check a rule.

```python
def test_my_rule(vjp_check):
    vjp_check(my_rule, my_reference, jnp.ones((4, 8)))
```

`@pytest.mark.vjp_check(dtypes=["bfloat16"])` sets options of `check_vjp` for a test, a class or a module. Inputs are
drawn from the test's own name, so that a run can be repeated; pass `key=` for others.
"""

import zlib
from collections.abc import Callable
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, so that `--strict-markers` knows it."""
    config.addinivalue_line(
        "markers", "vjp_check(**options): options of ffn_jax.verify.check_vjp for the vjp_check fixture"
    )


@pytest.fixture
def vjp_check(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`ffn_jax.verify.check_vjp` with a key of the test's own, and the options of its marker."""
    from ffn_jax.verify import check_vjp

    options: dict[str, Any] = {"key": zlib.crc32(request.node.nodeid.encode()), "progress": False}
    for marker in reversed(list(request.node.iter_markers("vjp_check"))):
        options |= marker.kwargs

    def check(fun: Callable[..., Any], reference: Callable[..., Any] | None, *args: Any, **more: Any) -> Any:
        return check_vjp(fun, reference, *args, **(options | more))

    return check
