"""What the tests of saves share: the names in a folder, and code that runs in a process of its own."""

import multiprocessing


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def in_child(work, *arguments):
    """The exit status of a process that does this."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode
