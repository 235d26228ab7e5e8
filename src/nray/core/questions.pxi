# What UDP ports are asked, and by what an answer is known: see questions.h.

cdef extern from "frames.h" nogil:
    uint64_t nray_sum(const uint8_t *data, size_t size)

cdef extern from "questions.h" nogil:
    enum:
        NRAY_STEP_LEAST, NRAY_STEP_BYTE, NRAY_STEP_SAME, NRAY_STEP_BITS, NRAY_STEP_FIND
        NRAY_STEP_WHOLE, NRAY_STEP_ELSE, NRAY_STEP_OWN
    ctypedef struct nray_step_t:
        uint16_t kind, a, b, c
    ctypedef struct nray_question_t:
        const uint8_t *payload
        uint16_t size, steps_used, own_at, own_size
        uint8_t checked
        const nray_step_t *steps
        const nray_question_t *next
        uint64_t sum
    const char *nray_step_fault(const nray_step_t *step, size_t size)
    int nray_shows(const nray_question_t *q, const uint8_t *sent, const uint8_t *got, size_t size)
    void nray_ask(const nray_question_t *q, uint64_t cookie, uint8_t *out)
    int nray_answers(const nray_question_t *q, int own, uint64_t cookie, const uint8_t *got,
                     size_t size)

# Of a UDP probe: it stays within one packet of any path.
PAYLOAD_BYTES_MAX = 1400
# The longest check of the table has some fifty.
STEPS_MAX = 96
# Payloads of one port: each costs a silent port another packet.
QUESTIONS_MAX = 8

STEP_LEAST, STEP_BYTE, STEP_SAME = NRAY_STEP_LEAST, NRAY_STEP_BYTE, NRAY_STEP_SAME
STEP_BITS, STEP_FIND, STEP_WHOLE = NRAY_STEP_BITS, NRAY_STEP_FIND, NRAY_STEP_WHOLE
STEP_ELSE, STEP_OWN = NRAY_STEP_ELSE, NRAY_STEP_OWN


cdef class Question:
    """A payload and its steps, kept for as long as pointers into them are."""

    cdef nray_question_t q
    cdef bytes payload
    cdef nray_step_t *steps

    def __cinit__(self, bytes payload not None, steps):
        cdef nray_step_t *step
        cdef const char *fault
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise ValueError(
                f"a UDP payload has at most {PAYLOAD_BYTES_MAX} bytes, to fit one packet")
        if len(steps) > STEPS_MAX:
            raise ValueError(f"a check has at most {STEPS_MAX} steps")
        self.payload = payload
        self.q.payload = <const uint8_t *><const char *>self.payload
        self.q.size = <uint16_t>len(payload)
        self.steps = <nray_step_t *>calloc(len(steps) + 1, sizeof(nray_step_t))
        if self.steps == NULL:
            raise MemoryError
        self.q.steps = self.steps
        for number, each in enumerate(steps):
            if len(each) != 4 or not all([0 <= value < 65536 for value in each]):
                raise ValueError(f"step {number} of a check is not four numbers below 65536")
            step = &self.steps[number]
            step.kind, step.a, step.b, step.c = each
            fault = nray_step_fault(step, len(payload))
            if fault != NULL:
                raise ValueError(f"step {number} of a check: {(<bytes>fault).decode()}")
            if step.kind == NRAY_STEP_OWN:
                self.q.own_at, self.q.own_size = step.a, step.b
            else:
                self.q.checked = 1
            self.q.steps_used += 1

    def __dealloc__(self):
        free(self.steps)


def steps_fault(bytes payload not None, steps):
    """What is wrong with a check of this payload's answers, in words; empty if nothing."""
    try:
        Question(payload, steps)
    except ValueError as error:
        return str(error)
    return ""


def answers(bytes payload not None, steps, bytes answer not None):
    """Whether a datagram is an answer to a payload; None if the steps have nothing to tell by."""
    cdef Question question = Question(payload, steps)
    if not question.q.checked:
        return None
    return bool(nray_shows(&question.q, question.q.payload,
                           <const uint8_t *><const char *>answer, len(answer)))
