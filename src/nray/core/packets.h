/* The raw sockets under the raw engine: batches out, rings in, and the filter in the kernel. */
#ifndef NRAY_PACKETS_H
#define NRAY_PACKETS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "frames.h"
#include "sockets.h"
#include "xdp.h"

/* ── out ─────────────────────────────────────────────────────────────────────────────────── */

enum {
    /* Frames to one system call: at 64 its cost is under a tenth of theirs. */
    NRAY_BATCH = 64,
    NRAY_VIA_PACKET = 0, /* Ethernet frames */
    NRAY_VIA_IP4 = 1,    /* IP packets, for devices without an Ethernet header */
    NRAY_VIA_IP6 = 2,
    NRAY_VIAS = 3,
    /* Room for what a network card has not fetched yet. */
    NRAY_SEND_BYTES = 4 << 20,
    /* Interfaces that frames may leave by AF_XDP from; those beyond are served by AF_PACKET. */
    NRAY_XDPS = 8,
};

typedef struct {
    int fd[NRAY_VIAS];
    struct mmsghdr messages[NRAY_BATCH];
    struct iovec parts[NRAY_BATCH];
    union {
        struct sockaddr any;
        struct sockaddr_ll packet;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } to[NRAY_BATCH];
    uint8_t via[NRAY_BATCH];
    int8_t by_xdp[NRAY_BATCH]; /* which of `xdps`, -1: none */
    nray_xdp_t xdps[NRAY_XDPS];
    int xdps_used;
    int bound; /* the packet socket serves one interface alone, and needs no address */
    uint8_t frames[NRAY_BATCH][NRAY_FRAME_MAX];
} nray_batch_t;

static inline void nray_batch_init(nray_batch_t *b)
{
    memset(b, 0, offsetof(nray_batch_t, frames));
    for (int i = 0; i < NRAY_VIAS; i++)
        b->fd[i] = -1;
    for (int i = 0; i < NRAY_BATCH; i++) {
        b->messages[i].msg_hdr.msg_iov = &b->parts[i];
        b->messages[i].msg_hdr.msg_iovlen = 1;
    }
}

/* Opens the socket for a way out; ifindex binds it to one interface, 0 to none. 0 or an errno. */
static inline int nray_open_way(nray_batch_t *b, int via, int ifindex)
{
    int size = NRAY_SEND_BYTES;
    int fd = via == NRAY_VIA_PACKET ? socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)
             : via == NRAY_VIA_IP4  ? socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW)
                                    : socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
    if (fd < 0)
        return errno;
    b->fd[via] = fd;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) != 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (via == NRAY_VIA_PACKET && ifindex) {
        struct sockaddr_ll own;
        memset(&own, 0, sizeof own);
        own.sll_family = AF_PACKET;
        own.sll_ifindex = ifindex;
        if (bind(fd, (struct sockaddr *)&own, sizeof own) != 0)
            return errno;
        b->bound = 1;
    }
    return 0;
}

/* Has the frames of an interface leave by AF_XDP; 0 or an errno, and then they leave as before. */
static inline int nray_open_xdp(nray_batch_t *b, int ifindex, uint32_t queue)
{
    int code;
    if (b->xdps_used == NRAY_XDPS)
        return ENOSPC;
    code = nray_xdp_open(&b->xdps[b->xdps_used], ifindex, queue);
    if (code == 0)
        b->xdps_used++;
    return code;
}

/* Whether frames were taken over that have not left. They are asked to. */
static inline int nray_push_kept(nray_batch_t *b)
{
    int kept = 0;
    for (int i = 0; i < b->xdps_used; i++) {
        if (b->xdps[i].kept)
            nray_xdp_push(&b->xdps[i]);
        kept |= b->xdps[i].kept;
    }
    return kept;
}

static inline void nray_batch_close(nray_batch_t *b)
{
    for (int i = 0; i < NRAY_VIAS; i++)
        if (b->fd[i] >= 0)
            close(b->fd[i]);
    for (int i = 0; i < b->xdps_used; i++)
        nray_xdp_close(&b->xdps[i]);
}

/* Addresses frame i, of `size` bytes without its Ethernet header. */
static inline void nray_address_frame(nray_batch_t *b, int i, int via, int ifindex,
                                      const uint8_t *target, size_t size)
{
    struct msghdr *m = &b->messages[i].msg_hdr;
    b->via[i] = (uint8_t)via;
    m->msg_name = NULL;
    m->msg_namelen = 0;
    b->by_xdp[i] = -1;
    if (via == NRAY_VIA_PACKET) {
        for (int k = 0; k < b->xdps_used; k++)
            if (b->xdps[k].ifindex == ifindex)
                b->by_xdp[i] = (int8_t)k;
        b->parts[i].iov_base = b->frames[i];
        b->parts[i].iov_len = NRAY_ETHERNET + size;
        if (b->bound)
            return;
        memset(&b->to[i].packet, 0, sizeof b->to[i].packet);
        b->to[i].packet.sll_family = AF_PACKET;
        b->to[i].packet.sll_ifindex = ifindex;
        b->to[i].packet.sll_halen = 6;
        memcpy(b->to[i].packet.sll_addr, b->frames[i], 6);
        memcpy(&b->to[i].packet.sll_protocol, b->frames[i] + 12, 2);
        m->msg_namelen = sizeof b->to[i].packet;
    } else if (via == NRAY_VIA_IP4) {
        b->parts[i].iov_base = b->frames[i] + NRAY_ETHERNET;
        b->parts[i].iov_len = size;
        memset(&b->to[i].v4, 0, sizeof b->to[i].v4);
        b->to[i].v4.sin_family = AF_INET;
        memcpy(&b->to[i].v4.sin_addr, target, 4);
        m->msg_namelen = sizeof b->to[i].v4;
    } else {
        b->parts[i].iov_base = b->frames[i] + NRAY_ETHERNET;
        b->parts[i].iov_len = size;
        memset(&b->to[i].v6, 0, sizeof b->to[i].v6);
        b->to[i].v6.sin6_family = AF_INET6;
        memcpy(&b->to[i].v6.sin6_addr, target, 16);
        if (target[0] == 0xfe && (target[1] & 0xc0) == 0x80)
            b->to[i].v6.sin6_scope_id = (uint32_t)ifindex; /* link-local needs its link */
        m->msg_namelen = sizeof b->to[i].v6;
    }
    m->msg_name = &b->to[i].any;
}

/* Sends frames from..used-1 as far as they leave the same way; how many, or -1 and errno. */
static inline int nray_send_batch(nray_batch_t *b, int from, int used)
{
    int end = from + 1;
    while (end < used && b->via[end] == b->via[from] && b->by_xdp[end] == b->by_xdp[from])
        end++;
    if (b->by_xdp[from] >= 0)
        return nray_xdp_send(&b->xdps[b->by_xdp[from]], b->parts + from, end - from);
    return sendmmsg(b->fd[b->via[from]], b->messages + from, (unsigned)(end - from),
                    MSG_DONTWAIT);
}

/* ── in ──────────────────────────────────────────────────────────────────────────────────── */

enum {
    /* Bytes kept of a packet: a whole one of Ethernet's, for what tells a datagram from others may
     * stand at its end. */
    NRAY_SNAP = 1600,
    /* A ring of 4 MiB holds some 20,000 answers: a fifth of a second at 100,000 a second. */
    NRAY_BLOCK_BYTES = 64 << 10,
    NRAY_BLOCKS = 64,
    /* A block that is not full is handed over after so many ms. */
    NRAY_RETIRE_MS = 2,
};

typedef struct {
    int fd;
    uint8_t *map; /* NULL: not open */
    uint32_t at;  /* the block that comes next, or is being read */
    uint32_t left;
    uint8_t *packet;
    int reading;
    uint64_t drops;
} nray_ring_t;

/* A ring of the IPv4 or IPv6 packets that come in on any interface and pass the filter; 0 or an
 * errno. Closed by nray_ring_close, also after a failure. */
static inline int nray_ring_open(nray_ring_t *r, int family, const struct sock_filter *filter,
                                 int length)
{
    struct sock_fprog program = {(unsigned short)length, (struct sock_filter *)filter};
    struct tpacket_req3 request = {
        .tp_block_size = NRAY_BLOCK_BYTES,
        .tp_block_nr = NRAY_BLOCKS,
        .tp_frame_size = 2048, /* of no meaning in version 3, but checked */
        .tp_frame_nr = NRAY_BLOCK_BYTES / 2048 * NRAY_BLOCKS,
        .tp_retire_blk_tov = NRAY_RETIRE_MS,
    };
    struct sockaddr_ll own;
    int version = TPACKET_V3;
    void *map;
    r->map = NULL;
    /* Nothing comes in before it is bound, so nothing passes that the filter has not seen. */
    r->fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (r->fd < 0)
        return errno;
    memset(&own, 0, sizeof own);
    own.sll_family = AF_PACKET;
    own.sll_protocol = htons(family == 4 ? ETH_P_IP : ETH_P_IPV6);
    if (setsockopt(r->fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0 ||
        setsockopt(r->fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version) != 0 ||
        setsockopt(r->fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof request) != 0)
        return errno;
    map = mmap(NULL, (size_t)NRAY_BLOCK_BYTES * NRAY_BLOCKS, PROT_READ | PROT_WRITE, MAP_SHARED,
               r->fd, 0);
    if (map == MAP_FAILED)
        return errno;
    r->map = map;
    return bind(r->fd, (struct sockaddr *)&own, sizeof own) == 0 ? 0 : errno;
}

static inline void nray_ring_close(nray_ring_t *r)
{
    if (r->map)
        munmap(r->map, (size_t)NRAY_BLOCK_BYTES * NRAY_BLOCKS);
    if (r->fd >= 0)
        close(r->fd);
    r->map = NULL;
    r->fd = -1;
}

/* The next packet, good until the next call: its IP header, size, and when it came, ns of
 * CLOCK_REALTIME. NULL if none is there. */
static inline const uint8_t *nray_ring_next(nray_ring_t *r, size_t *size, int64_t *at_ns)
{
    const struct tpacket3_hdr *packet;
    struct tpacket_block_desc *block =
        (struct tpacket_block_desc *)(r->map + (size_t)r->at * NRAY_BLOCK_BYTES);
    while (r->left == 0) {
        if (r->reading) {
            __atomic_store_n(&block->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
            r->reading = 0;
            r->at = (r->at + 1) % NRAY_BLOCKS;
            block = (struct tpacket_block_desc *)(r->map + (size_t)r->at * NRAY_BLOCK_BYTES);
        }
        if (!(__atomic_load_n(&block->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
            return NULL;
        r->reading = 1;
        r->left = block->hdr.bh1.num_pkts;
        r->packet = (uint8_t *)block + block->hdr.bh1.offset_to_first_pkt;
    }
    packet = (const struct tpacket3_hdr *)r->packet;
    r->left--;
    r->packet += packet->tp_next_offset;
    *size = packet->tp_snaplen;
    *at_ns = (int64_t)packet->tp_sec * 1000000000 + packet->tp_nsec;
    return (const uint8_t *)packet + packet->tp_net;
}

/* Packets that found no room so far. */
static inline uint64_t nray_ring_drops(nray_ring_t *r)
{
    struct tpacket_stats_v3 told;
    socklen_t size = sizeof told;
    memset(&told, 0, sizeof told);
    if (r->map && getsockopt(r->fd, SOL_PACKET, PACKET_STATISTICS, &told, &size) == 0)
        r->drops += told.tp_drops; /* the kernel counts from zero after each call */
    return r->drops;
}

/* What CLOCK_REALTIME is ahead of CLOCK_MONOTONIC, ns. */
static inline int64_t nray_clock_offset(void)
{
    struct timespec real, mono;
    clock_gettime(CLOCK_MONOTONIC, &mono);
    clock_gettime(CLOCK_REALTIME, &real);
    return (int64_t)(real.tv_sec - mono.tv_sec) * 1000000000 + real.tv_nsec - mono.tv_nsec;
}

#endif
