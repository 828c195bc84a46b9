"""The child process that opens files; started by `isolation`, by path, and never imported.

It reads requests from standard input and writes answers to standard output (see `messages`) until
its input ends, which it also does when the parent dies, however that happens. It imports neither
torch nor transformers, so that it starts in a moment.
"""

import os
import signal
import sys
import types
from pathlib import Path


def limit_memory(size: int) -> None:
    """Address space in bytes, on Linux. macOS takes the limit and ignores it, Windows has none."""
    if sys.platform == "linux":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        size = size if most == resource.RLIM_INFINITY else min(size, most)
        resource.setrlimit(resource.RLIMIT_AS, (size, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no dump of a patient's image


def restart_clock(seconds: float) -> None:
    """The kernel ends this process after so many seconds, 0: never. The parent ends it before;
    this is for a process whose parent is gone."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    time_limit, memory_limit = float(sys.argv[1]), int(sys.argv[2])
    # these are for the parent, which may save first, and ends this; a terminal and a cluster send
    # them to the whole group
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints must not get between the answers
    # the package without its __init__, which imports torch
    package = types.ModuleType("sssd_hf")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["sssd_hf"] = package
    from sssd_hf.data.facts import read_facts
    from sssd_hf.data.files import ImageError, source_name
    from sssd_hf.data.messages import read_message, write_message
    from sssd_hf.data.preparation import Preparation, prepare_image
    from sssd_hf.data.volumes import describe

    limit_memory(memory_limit)
    write_message(answers, {"ready": True})
    while (message := read_message(sys.stdin.buffer)) is not None:
        request, data = message
        source = {**request["source"], "bytes": data or None}
        restart_clock(time_limit)
        answer, pixels = {}, b""
        try:
            if "slice_axis" in request:
                answer = {"result": describe(source, request["slice_axis"])}
            else:
                preparation = Preparation.from_dict(
                    request["preparation"], request["size"], request["num_channels"]
                )
                if request.get("facts"):
                    facts, array = read_facts(source, preparation)
                    answer = {"shape": array.shape, "facts": facts}
                else:
                    array = prepare_image(source, preparation)
                    answer = {"shape": array.shape}
                pixels = array.tobytes()
        except ImageError as error:
            answer = {"error": str(error)}
        except Exception as error:  # none is known; the process could go on, and so it does
            answer = {"error": f"{source_name(source)}: {type(error).__name__} while it was read"}
        restart_clock(0)
        write_message(answers, answer, pixels)


if __name__ == "__main__":
    main()
