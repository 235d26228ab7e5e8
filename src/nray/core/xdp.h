/* Frames out by AF_XDP: handed to a device in a ring of shared memory, past the queueing discipline.
 *
 * In copy mode, which every driver has: the kernel copies each frame into a packet of its own, as
 * it does for AF_PACKET, but without a message's headers to read for each. Nothing is received.
 * Formats: linux/if_xdp.h; Documentation/networking/af_xdp.rst of the kernel. */
#ifndef NRAY_XDP_H
#define NRAY_XDP_H

#include <errno.h>
#include <linux/if_xdp.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef AF_XDP
#define AF_XDP 44
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif

enum {
    NRAY_XDP_FRAMES = 1024,     /* a power of two, as the rings ask for */
    NRAY_XDP_FRAME_BYTES = 2048, /* the least that the kernel takes; the longest frame is 1,600 */
    /* One call sends 32 frames at most; as many calls as a full batch takes, and some. */
    NRAY_XDP_CALLS = 8,
    /* The socket of a process that died is closed a moment after it; so long it is waited for. */
    NRAY_XDP_BUSY_TRIES = 50,
    NRAY_XDP_BUSY_NS = 10000000,
};

typedef struct {
    int fd; /* -1: not open */
    int ifindex;
    int kept; /* frames may be in the ring that the device has not taken */
    uint8_t *memory;
    uint8_t *rings[2]; /* frames to send, frames sent */
    size_t sizes[2];
    uint32_t *send_producer, *done_producer, *done_consumer;
    struct xdp_desc *send;
    uint32_t made; /* frames put into the ring, ever */
} nray_xdp_t;

static inline void nray_xdp_close(nray_xdp_t *x)
{
    if (x->fd >= 0)
        close(x->fd);
    for (int i = 0; i < 2; i++)
        if (x->rings[i])
            munmap(x->rings[i], x->sizes[i]);
    if (x->memory)
        munmap(x->memory, (size_t)NRAY_XDP_FRAMES * NRAY_XDP_FRAME_BYTES);
    memset(x, 0, sizeof *x);
    x->fd = -1;
}

static inline int nray_xdp_ring(nray_xdp_t *x, int which, size_t size, off_t at)
{
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, x->fd, at);
    if (map == MAP_FAILED)
        return errno;
    x->rings[which] = map;
    x->sizes[which] = size;
    return 0;
}

static inline int nray_xdp_set_up(nray_xdp_t *x, int ifindex, uint32_t queue)
{
    struct xdp_umem_reg memory = {0};
    struct xdp_mmap_offsets at;
    struct sockaddr_xdp own = {0};
    socklen_t length = sizeof at;
    int frames = NRAY_XDP_FRAMES, code;
    void *map = mmap(NULL, (size_t)NRAY_XDP_FRAMES * NRAY_XDP_FRAME_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (map == MAP_FAILED)
        return errno;
    x->memory = map;
    x->ifindex = ifindex;
    x->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (x->fd < 0)
        return errno;
    memory.addr = (uintptr_t)x->memory;
    memory.len = (uint64_t)NRAY_XDP_FRAMES * NRAY_XDP_FRAME_BYTES;
    memory.chunk_size = NRAY_XDP_FRAME_BYTES;
    if (setsockopt(x->fd, SOL_XDP, XDP_UMEM_REG, &memory, sizeof memory) != 0 ||
        setsockopt(x->fd, SOL_XDP, XDP_UMEM_FILL_RING, &frames, sizeof frames) != 0 ||
        setsockopt(x->fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &frames, sizeof frames) != 0 ||
        setsockopt(x->fd, SOL_XDP, XDP_TX_RING, &frames, sizeof frames) != 0 ||
        getsockopt(x->fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &length) != 0)
        return errno;
    code = nray_xdp_ring(x, 0, at.tx.desc + NRAY_XDP_FRAMES * sizeof(struct xdp_desc),
                         XDP_PGOFF_TX_RING);
    if (code == 0)
        code = nray_xdp_ring(x, 1, at.cr.desc + NRAY_XDP_FRAMES * sizeof(uint64_t),
                             XDP_UMEM_PGOFF_COMPLETION_RING);
    if (code)
        return code;
    x->send_producer = (uint32_t *)(x->rings[0] + at.tx.producer);
    x->send = (struct xdp_desc *)(x->rings[0] + at.tx.desc);
    x->done_producer = (uint32_t *)(x->rings[1] + at.cr.producer);
    x->done_consumer = (uint32_t *)(x->rings[1] + at.cr.consumer);
    own.sxdp_family = AF_XDP;
    own.sxdp_ifindex = (uint32_t)ifindex;
    own.sxdp_queue_id = queue;
    own.sxdp_flags = XDP_COPY;
    return bind(x->fd, (struct sockaddr *)&own, sizeof own) == 0 ? 0 : errno;
}

/* A way out by a queue of a device, of which each serves one socket alone. 0 or an errno: EINVAL
 * where the device has fewer queues, EBUSY where another has it. Closed after a failure. */
static inline int nray_xdp_open(nray_xdp_t *x, int ifindex, uint32_t queue)
{
    const struct timespec pause = {0, NRAY_XDP_BUSY_NS};
    int code = 0;
    memset(x, 0, sizeof *x);
    x->fd = -1;
    for (int k = 0; k < NRAY_XDP_BUSY_TRIES; k++) {
        code = nray_xdp_set_up(x, ifindex, queue);
        if (code == 0)
            return 0;
        nray_xdp_close(x);
        if (code != EBUSY)
            return code;
        nanosleep(&pause, NULL);
    }
    return code;
}

/* Has the device take what is in the ring. 0, or an errno that does not pass by itself. */
static inline int nray_xdp_push(nray_xdp_t *x)
{
    for (int k = 0; k < NRAY_XDP_CALLS; k++) {
        if (sendto(x->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0) {
            x->kept = 0;
            return 0;
        }
        /* EAGAIN: 32 were sent and there are more, or the device is full. EBUSY: it has dropped
         * one, which is no other than being dropped further on. */
        if (errno == ENOBUFS)
            return 0;
        if (errno != EAGAIN && errno != EBUSY && errno != EINTR)
            return errno;
    }
    return 0;
}

/* Takes frames over, as many as there is room for; how many, or -1 and errno (EAGAIN: the ring is
 * full). With `kept` set afterwards, nray_xdp_push has to be called again. */
static inline int nray_xdp_send(nray_xdp_t *x, const struct iovec *frames, int count)
{
    uint32_t done = __atomic_load_n(x->done_producer, __ATOMIC_ACQUIRE);
    uint32_t room = NRAY_XDP_FRAMES - (x->made - done);
    int code;
    __atomic_store_n(x->done_consumer, done, __ATOMIC_RELEASE);
    if (room == 0 && x->kept) {
        code = nray_xdp_push(x);
        errno = code ? code : EAGAIN;
        return -1;
    }
    if ((uint32_t)count > room)
        count = (int)room;
    if (count == 0) {
        errno = EAGAIN;
        return -1;
    }
    for (int i = 0; i < count; i++, x->made++) {
        uint32_t at = x->made % NRAY_XDP_FRAMES;
        struct xdp_desc *told = &x->send[at];
        memcpy(x->memory + (size_t)at * NRAY_XDP_FRAME_BYTES, frames[i].iov_base,
               frames[i].iov_len);
        told->addr = (uint64_t)at * NRAY_XDP_FRAME_BYTES;
        told->len = (uint32_t)frames[i].iov_len;
        told->options = 0;
    }
    __atomic_store_n(x->send_producer, x->made, __ATOMIC_RELEASE);
    x->kept = 1;
    code = nray_xdp_push(x);
    if (code) {
        /* Such errors (ENETDOWN, ENXIO) come before the ring is looked at: these are still ours. */
        x->made -= (uint32_t)count;
        __atomic_store_n(x->send_producer, x->made, __ATOMIC_RELEASE);
        errno = code;
        return -1;
    }
    return count;
}

#endif
