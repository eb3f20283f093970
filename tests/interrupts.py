"""What the tests of interrupts share: a KeyboardInterrupt at any line of some folders, and at every line in turn."""

import sys

import torch


def run(function, rooms, stop=None):
    """Run it with an interrupt at the line event of this number; the lines that it came by, and whether it ended."""
    lines = []

    def local(frame, event, argument):
        if event == "line":
            lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(lines) - 1 == stop:
                raise KeyboardInterrupt
        return local

    before, gradients = sys.gettrace(), torch.is_grad_enabled()
    sys.settrace(lambda frame, event, argument: local if frame.f_code.co_filename.startswith(rooms) else None)
    try:
        function()
    except KeyboardInterrupt:
        return lines, False
    finally:
        sys.settrace(before)
        torch.set_grad_enabled(gradients)  # an interrupt just before the end of a no_grad block leaves them off
    return lines, True


def every_line(make, verb, rooms):
    """The model after an interrupt at each line the first, the second and the last time, and at last after none."""
    model = make()
    lines, ended = run(lambda: verb(model), rooms)
    assert ended and len(lines) > 5
    met = {}
    for number, line in enumerate(lines):
        met.setdefault(line, []).append(number)
    for number in sorted({number for times in met.values() for number in (*times[:2], times[-1])}):
        fresh = make()
        assert not run(lambda fresh=fresh: verb(fresh), rooms, number)[1]
        yield fresh
    yield model
