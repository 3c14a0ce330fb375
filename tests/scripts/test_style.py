"""The measures of the code that no other check of .ci/run holds it to."""

from radon.complexity import cc_visit

from common import CODE


def test_no_function_is_more_complex_than_15():
    found = {}
    for path in CODE.rglob("*.py"):
        for block in cc_visit(path.read_text("utf-8")):
            for one in (block, *getattr(block, "methods", ())):
                found[f"{path.relative_to(CODE)}: {one.fullname}"] = one.complexity
    assert {name: complexity for name, complexity in found.items() if complexity > 15} == {}
