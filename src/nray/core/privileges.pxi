# What this process may do beyond its user (see `_core.pyi`).

from libc.errno cimport errno

cdef extern from "privileges.h" nogil:
    int privileges_keep(uint64_t keep)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...)
    enum: PR_SET_DUMPABLE


def keep_capabilities(uint64_t keep):
    if privileges_keep(keep) < 0:
        raise OSError(errno, "capabilities cannot be given up")


def refuse_dumps():
    if prctl(PR_SET_DUMPABLE, <unsigned long>0, <unsigned long>0, <unsigned long>0,
             <unsigned long>0) < 0:
        raise OSError(errno, "dumps cannot be refused")
