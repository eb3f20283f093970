"""What the tests of saves share: the names in a folder, and code that runs in a process of its own."""

import multiprocessing

import pytest


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def forks():
    """What makes processes that begin with all that this one holds; Windows has no such thing."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no process can be forked on this system")
    return multiprocessing.get_context("fork")


def in_child(work, *arguments):
    """The exit status of a process that does this."""
    process = forks().Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode
