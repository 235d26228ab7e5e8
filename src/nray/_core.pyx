# cython: language_level=3
"""The compiled core: what must be fast or must count alike on both ends.

Contents, one part each:
"""

# byte order, checksums' home, the probe that all parts pass around
include "core/common.pxi"
# keyed permutation, numbered space, exclusion lookup
include "core/space.pxi"
# what a node's own policy refuses, whoever asks for it
include "core/policy.pxi"
# the rate that the workers of a node share
include "core/bucket.pxi"
# what one host or one network gets at most
include "core/caps.pxi"
# states, reasons and packed hits
include "core/hits.pxi"
# hosts of which an open port was found
include "core/hostset.pxi"
# what UDP ports are asked, and by what an answer is known
include "core/questions.pxi"
# hosts that limit their ICMP errors, and their silent UDP ports
include "core/limited.pxi"
# slices, their counts and hits: what both engines keep
include "core/slices.pxi"
# hosts on which every port answers
include "core/tarpits.pxi"
# connect engine: TCP connect and UDP over epoll
include "core/engine.pxi"
# what is sent again to learn how much a path loses
include "core/samples.pxi"
# raw engine: SYN and UDP probes as packets of its own
include "core/raw.pxi"
# giving up what this process may do beyond its user
include "core/privileges.pxi"
