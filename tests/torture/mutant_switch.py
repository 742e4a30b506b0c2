"""What is put into the copy's sources: the switch of each site, for Cython and for Python.

MUTANT is the number of the site that is taken out. MUTANT_REACHED names a file that every process of a run maps: its
byte of that number tells that a site was reached. (Not TAKHIN_…: brokers under test are not given variables of ours.)
"""

import mmap
import os

# In front of the first import of a Python module.
PYTHON_PREAMBLE = "from takhin.mutant_switch import on as _mutant_on\n"

# The same of a Cython module. It is read when the module is loaded, before any thread can come.
CYTHON_PREAMBLE = '''
cdef extern from *:
    """
    #include <fcntl.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #include <sys/stat.h>
    #include <unistd.h>

    static int mutant_number = -1;
    static volatile unsigned char *mutant_reached = NULL;

    static void __attribute__((constructor)) mutant_begin(void) {
        const char *number = getenv("MUTANT");
        const char *path = getenv("MUTANT_REACHED");
        struct stat found;
        void *mapped;
        int fd;
        if (number)
            mutant_number = atoi(number);
        fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
        if (fd < 0)
            return;
        if (fstat(fd, &found) == 0) {
            mapped = mmap(NULL, (size_t)found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (mapped != MAP_FAILED)
                mutant_reached = mapped;
        }
        close(fd);
    }

    static int mutant_on(int number) {
        if (mutant_reached)
            mutant_reached[number] = 1;
        return number != mutant_number;
    }
    """
    bint _mutant_on "mutant_on"(int number) noexcept nogil

'''


def _map(path: str | None) -> mmap.mmap | None:
    if not path:
        return None
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


_number = int(os.environ.get("MUTANT", "-1"))
_reached = _map(os.environ.get("MUTANT_REACHED"))


def on(number: int) -> bool:
    """Whether the safeguard of that number stands."""
    if _reached is not None:
        _reached[number] = 1
    return number != _number
