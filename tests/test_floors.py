"""The picture of the floors in CONTRIBUTING.md is true: nothing in ``ttref`` imports from its own floor or above."""

import ast
import re

import pytest

from book.tools.notebooks import ROOT

PACKAGE = ROOT / "ttref"
PICTURE = re.search(r"```floors\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S).group(1)
FLOORS = [line.split("  ")[0].split() for line in reversed(PICTURE.splitlines())]  # the ground first
FILES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module):
    """The name in the picture: of a folder, or of a module that stands alone; a folder may be split by ``folder/x``."""
    if module == "__init__":
        return module
    folder, _, name = module.partition(".")
    if any(f"{folder}/{name}" in floor for floor in FLOORS):
        return f"{folder}/{name}"
    return f"{folder}/" if name else folder


def floor_of(room):
    return next(height for height, rooms in enumerate(FLOORS) if room in rooms)


def imports(module):
    """Modules of ttref that a module imports, inside of functions too, but not for type checkers alone."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in typing:
            continue
        assert node.level or not (node.module or "").startswith("ttref"), f"{module}: import by a relative name"
        if node.level:
            above = module.split(".")[: -node.level]
            source = [*above, *(node.module or "").split(".")] if node.module else above
            for alias in node.names:
                yield next(
                    found
                    for found in (".".join([*source, alias.name]), ".".join(source), ".".join([*source, "__init__"]))
                    if found in FILES
                )


def test_every_room_stands_in_the_picture_once():
    drawn = sorted(room for rooms in FLOORS for room in rooms)
    assert drawn == sorted({room_of(module) for module in FILES})


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module):
    room = room_of(module)
    for found in imports(module):
        other = room_of(found)
        assert other == room or floor_of(other) < floor_of(room), f"{module} imports {found}, which is not below it"


@pytest.mark.parametrize("folder", sorted({module.partition(".")[0] for module in FILES if "." in module}))
def test_no_folder_goes_round(folder):
    inside = {module: [found for found in imports(module) if found in FILES] for module in FILES if "." in module}
    inside = {module: found for module, found in inside.items() if module.startswith(f"{folder}.")}
    left = dict(inside)
    while left:
        free = [module for module, needs in left.items() if not any(need in left for need in needs)]
        assert free, f"these import each other: {sorted(left)}"
        for module in free:
            del left[module]
