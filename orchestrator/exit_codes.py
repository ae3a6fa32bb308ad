"""What the exit code of the command line says."""

OK = 0
SOME_FAILED = 1  # it ran; some of a study's trials failed, or the one run did
BAD_INPUT = 2  # nothing was launched
ENVIRONMENT = 3  # something that is needed is not there
INTERNAL = 70  # a mistake of this program's own; what it had begun can be resumed
INTERRUPTED = 130  # resumable; the last line printed says how
